# While changes are frozen, nothing is restored over what is in use. Backups go on: a freeze is when they are needed most;
# and so does `incident --apply`, since a leak does not wait.
# To stop runs as well, copy the rule into a file with `package essrun.may_run`.
#
# [policy.settings]
# freezes = [{ from = 2026-12-20T00:00:00Z, until = 2027-01-06T00:00:00Z, why = "holidays" }]
package essrun.may_restore

import rego.v1

deny contains msg if {
	not input.drill
	not input.verb == "incident"
	some target in input.targets
	target.live
	some freeze in input.settings.freezes
	now := input.now.unix_seconds * 1000000000
	now >= time.parse_rfc3339_ns(freeze.from)
	now < time.parse_rfc3339_ns(freeze.until)
	msg := sprintf("changes are frozen until %s: %s", [freeze.until, freeze.why])
}
