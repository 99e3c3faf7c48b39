# Nothing is restored over what is in use without an approval that somebody else wrote today and that names the backup.
#
# [policy]
# approvals = "/etc/essrun/approvals"     # a directory; whoever may approve may write into it
#
# To approve: echo "approve 20260101t000000z-0123abcd" > /etc/essrun/approvals/tonight
package essrun.may_restore

import rego.v1

approved if {
	some approval in input.approvals
	some line in split(approval.text, "\n")
	trim_space(line) == concat(" ", ["approve", input.backup.id])

	# An approval is for tonight, not for ever, and not from tomorrow.
	age := input.now.unix_seconds - approval.modified_unix_seconds
	age >= 0
	age < 24 * 3600
	approval.owner != input.person
}

deny contains msg if {
	not input.drill
	some target in input.targets
	target.live
	not approved
	msg := sprintf("%s/%s is in use: somebody else than %s must write `approve %s` into an approval file", [target.component, target.label, input.person, input.backup.id])
}
