# A result is suspect if a table lost a fifth of its rows, or vanished, since the newest normal backup that has the
# component. What the run was not asked for (`--only`) and what failed (the backup is incomplete then) is not held
# against it. When the loss was meant: `essrun policy accept`.
#
# [policy.settings]
# most-lost = 0.2       # part of the rows a table may lose between two backups
# fewest-rows = 100     # smaller tables may shrink as they like
package essrun.judge_result

import rego.v1

most_lost := object.get(input, ["settings", "most-lost"], 0.2)

fewest_rows := object.get(input, ["settings", "fewest-rows"], 100)

# input.previous is newest first.
before[component] := backups[0] if {
	some component, _ in input.result.components
	backups := [b | some b in input.previous; b.state == "normal"; b.components[component]]
}

suspect contains msg if {
	some component, backup in before
	some name, _ in backup.components[component].artifacts
	not input.result.components[component].artifacts[name]
	msg := sprintf("%s/%s was in %s and is not in this one", [component, name, backup.id])
}

suspect contains msg if {
	some component, backup in before
	some name, artifact in backup.components[component].artifacts
	artifact.rows >= fewest_rows
	now := input.result.components[component].artifacts[name].rows
	now < artifact.rows * (1 - most_lost)
	msg := sprintf("%s/%s fell from %d rows in %s to %d", [component, name, artifact.rows, backup.id, now])
}
