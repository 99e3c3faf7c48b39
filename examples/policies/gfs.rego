# Grandfather, father, son, with a service level for each component: the newest of each of the last days, weeks and
# months is kept, and for each component all backups of its last days, at least one of them verified. Suspect and
# incomplete backups and those dated in the future are never credited.
#
# [policy.settings]
# days = 7
# weeks = 5
# months = 12
# time-zone = "Europe/Berlin"               # where a day begins; UTC unless said
# sla = { synapse = 14, hookshot = 3 }      # days every backup of a component is kept
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

# [year, month, day] where the site is.
date(b) := time.date([b.taken_at_unix_seconds * 1000000000, setting("time-zone", "UTC")])

# Days since 1970 of that date; day 0 was a Thursday, and weeks begin on Monday.
day(b) := floor(time.parse_rfc3339_ns(sprintf("%04d-%02d-%02dT00:00:00Z", date(b))) / 86400000000000)

week(b) := floor((day(b) + 3) / 7)

month(b) := array.slice(date(b), 0, 2)

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

# The service levels. A component that no backup of its days holds keeps its newest, however old.
keep[b.id] contains msg if {
	some component, days in input.settings.sla
	some b in credited
	b.components[component]
	now - b.taken_at_unix_seconds <= days * 86400
	msg := sprintf("within the %d days of %s", [days, component])
}

keep[b.id] contains msg if {
	some component, _ in input.settings.sla
	b := newest([x | some x in credited; x.components[component]])
	msg := sprintf("newest of %s", [component])
}

keep[b.id] contains msg if {
	some component, _ in input.settings.sla
	b := newest([x | some x in credited; x.verified_at_unix_seconds != null; x.components[component]])
	msg := sprintf("newest verified of %s", [component])
}

# What cannot be judged is not for a script to throw away.
keep[b.id] contains "suspect: look at it, then accept it or forget it by hand" if {
	some b in input.backups
	b.state == "suspect"
}

keep[b.id] contains "dated in the future" if {
	some b in input.backups
	b.taken_at_unix_seconds > now
}
