package essrun.recipients_test

import rego.v1

import data.essrun.may_run

secret := [{"name": "synapse", "highest_sensitivity": "secret"}]

a := {"id": "a", "offline": false}

b := {"id": "b", "offline": true}

reasons(recipients) := {r | some r in said; contains(r, "recipient")} if {
	said := may_run.deny with input as {"components": secret, "recipients": recipients}
}

test_two_one_offline if count(reasons([a, b])) == 0

test_one_is_not_enough if {
	some r in reasons([b])
	contains(r, "synapse hold personal or secret data, but there is only 1 recipient")
}

test_none_offline_is_not_enough if {
	some r in reasons([a, object.union(a, {"id": "c"})])
	startswith(r, "no recipient is kept offline")
}

test_both_at_once if count(reasons([a])) == 2

test_harmless_data_needs_none if {
	said := may_run.deny with input as {
		"components": [{"name": "hosts", "highest_sensitivity": "internal"}],
		"recipients": [],
	}
	every r in said { not contains(r, "recipient") }
}
