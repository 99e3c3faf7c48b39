# No restore while changes are frozen, and none without an approval that names the backup.
# The freezes stand in pipeline.toml: [policy.settings] freezes = [{ from = "…", until = "…", why = "…" }]
package essrun.may_restore

import rego.v1

default allow := false

allow if input.drill

allow if {
	not input.drill
	count(reasons) == 0
}

reasons contains msg if {
	not input.drill
	some freeze in input.settings.freezes
	now := input.now.unix_seconds * 1000000000
	now >= time.parse_rfc3339_ns(freeze.from)
	now < time.parse_rfc3339_ns(freeze.until)
	msg := sprintf("changes are frozen until %s: %s", [freeze.until, freeze.why])
}

approved if {
	some approval in input.approvals
	some line in split(approval.text, "\n")
	line == concat(" ", ["approve", input.backup.id])

	# An approval is for tonight, not for ever.
	input.now.unix_seconds - approval.modified_unix_seconds < 24 * 3600
	approval.owner != input.person
}

reasons contains msg if {
	not input.drill
	some target in input.targets
	target.live
	not approved
	msg := sprintf("%s is in use: somebody else than %s must write `approve %s` into an approval file", [target.label, input.person, input.backup.id])
}
