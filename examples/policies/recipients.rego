# A run may start only if what it writes can still be read after one key is lost, and after the house burnt down:
# sensitive data needs two recipients, one of them kept offline.
#
# In pipeline.toml: recipients = ["age1…", { key = "age1…", offline = true }]
package essrun.may_run

import rego.v1

sensitive contains component.name if {
	some component in input.components
	component.highest_sensitivity in {"personal", "secret"}
}

offline := [r | some r in input.recipients; r.offline]

deny contains msg if {
	count(sensitive) > 0
	count(input.recipients) < 2
	msg := sprintf("%v hold personal or secret data, but there is only %d recipient; add a second one", [concat(", ", sort(sensitive)), count(input.recipients)])
}

deny contains msg if {
	count(sensitive) > 0
	count(offline) == 0
	msg := "no recipient is kept offline; mark one with `offline = true`, and keep its identity where this machine is not"
}
