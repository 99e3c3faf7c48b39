package essrun.may_run_test

import rego.v1

import data.essrun.may_run

secret := [{"name": "synapse", "highest_sensitivity": "secret"}]

test_two_one_offline if may_run.allow with input as {
	"components": secret,
	"recipients": [{"id": "a", "offline": false}, {"id": "b", "offline": true}],
}

test_one_is_not_enough if not may_run.allow with input as {
	"components": secret,
	"recipients": [{"id": "b", "offline": true}],
}

test_none_offline_is_not_enough if {
	reasons := may_run.reasons with input as {
		"components": secret,
		"recipients": [{"id": "a", "offline": false}, {"id": "b", "offline": false}],
	}
	count(reasons) == 1
}

test_harmless_data_needs_none if may_run.allow with input as {
	"components": [{"name": "hosts", "highest_sensitivity": "internal"}],
	"recipients": [],
}
