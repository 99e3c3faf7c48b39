# What is secret comes back by a restore or not at all: no `extract` hands it out.
package essrun.may_restore

import rego.v1

deny contains msg if {
	input.verb == "extract"
	input.sensitivity == "secret"
	msg := sprintf("%s is secret: it is restored, not handed out", [input.artifact])
}
