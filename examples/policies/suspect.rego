# A result is suspect if a table lost a fifth of its rows, or vanished, since the last normal backup.
package essrun.judge_result

import rego.v1

default suspect := false

suspect if count(reasons) > 0

# input.previous is newest first.
normal := [b | some b in input.previous; b.state == "normal"]

before := normal[0]

reasons contains msg if {
	some component, held in before.components
	some name, artifact in held.artifacts
	not input.result.components[component].artifacts[name]
	msg := sprintf("%s/%s was in %s and is not in this one", [component, name, before.id])
}

reasons contains msg if {
	some component, held in before.components
	some name, artifact in held.artifacts
	artifact.rows >= 100
	now := input.result.components[component].artifacts[name].rows
	now < artifact.rows * 0.8
	msg := sprintf("%s/%s fell from %d rows in %s to %d", [component, name, artifact.rows, before.id, now])
}
