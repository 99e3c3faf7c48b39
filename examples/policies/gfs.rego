# Grandfather, father, son: the newest of each of the last days, weeks and months; and whatever a component's service
# level still needs. Suspect backups and those of the future are never credited; the newest verified one always stays.
#
# [policy.settings]
# days = 7
# weeks = 5
# months = 12
# sla = { synapse = 2 }        # days within which a verified backup of it must exist
package essrun.retention

import rego.v1

now := input.now.unix_seconds

# A number that is missing must not read as "none": then nothing would be kept for it.
setting(name, otherwise) := object.get(input, ["settings", name], otherwise)

credited := [b | some b in input.backups; b.state == "normal"; b.taken_at_unix_seconds <= now]

newest(backups) := b if {
	times := [x.taken_at_unix_seconds | some x in backups]
	some b in backups
	b.taken_at_unix_seconds == max(times)
}

day(b) := floor(b.taken_at_unix_seconds / 86400)

# Weeks begin on Monday; day 0 was a Thursday.
week(b) := floor((day(b) + 3) / 7)

month(b) := substring(b.taken_at, 0, 7)

last(values, n) := array.slice(sort(values), max([0, count(values) - n]), count(values))

keep[b.id] contains "newest of its day" if {
	some d in last({day(x) | some x in credited}, setting("days", 7))
	b := newest([x | some x in credited; day(x) == d])
}

keep[b.id] contains "newest of its week" if {
	some w in last({week(x) | some x in credited}, setting("weeks", 5))
	b := newest([x | some x in credited; week(x) == w])
}

keep[b.id] contains "newest of its month" if {
	some m in last({month(x) | some x in credited}, setting("months", 12))
	b := newest([x | some x in credited; month(x) == m])
}

keep[b.id] contains "newest verified" if {
	b := newest([x | some x in credited; x.verified_at_unix_seconds != null])
}

keep[b.id] contains msg if {
	some component, days in input.settings.sla
	b := newest([x | some x in credited; x.verified_at_unix_seconds != null; x.components[component]])
	msg := sprintf("newest verified of %s, whose service level is %d days", [component, days])
}

# What cannot be judged is not for a script to throw away.
keep[b.id] contains "suspect: look at it, then forget it by hand" if {
	some b in input.backups
	b.state == "suspect"
}

keep[b.id] contains "dated in the future" if {
	some b in input.backups
	b.taken_at_unix_seconds > now
}
