package essrun.extract_test

import rego.v1

import data.essrun.may_restore

base := {
	"verb": "extract",
	"artifact": "synapse/main/public.users",
	"sensitivity": "secret",
	"backup": {"id": "b7"},
	"targets": [{"component": "synapse", "label": "main", "live": false}],
	"drill": false,
	"settings": {"freezes": []},
}

secret(changes) if {
	some r in may_restore.deny with input as object.union(base, changes)
	endswith(r, "restored, not handed out")
}

test_secret if {
	"synapse/main/public.users is secret: it is restored, not handed out" in may_restore.deny with input as base
}

test_what_is_no_secret_is_free if not secret({"sensitivity": "personal"})

test_restores_are_free if not secret({"verb": "restore", "artifact": null, "sensitivity": null})
