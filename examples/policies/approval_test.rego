package essrun.approval_test

import rego.v1

import data.essrun.may_restore

now := 1767225600 # 2026-01-01T00:00:00Z

base := {
	"now": {"unix_seconds": now},
	"person": "ada",
	"drill": false,
	"backup": {"id": "b7"},
	"targets": [{"component": "synapse", "label": "main", "live": true}],
	"approvals": [{"owner": "grace", "text": "I looked at it.\napprove b7 \n", "modified_unix_seconds": now - 60}],
	"settings": {"freezes": []},
}

waits(changes) if {
	some r in may_restore.deny with input as object.union(base, changes)
	contains(r, "must write `approve ")
}

test_approved if not waits({})

test_not_approved if {
	"synapse/main is in use: somebody else than ada must write `approve b7` into an approval file" in may_restore.deny with input as object.union(base, {"approvals": []})
}

test_approved_for_another if waits({"backup": {"id": "b8"}})

test_by_oneself if waits({"person": "grace"})

test_yesterdays if waits({"now": {"unix_seconds": now + (2 * 24 * 3600)}})

test_tomorrows if waits({"now": {"unix_seconds": now - (2 * 24 * 3600)}})

test_drills_are_free if not waits({"drill": true, "approvals": []})

test_leaks_wait if waits({"verb": "incident", "replace": true, "approvals": []})

test_onto_nothing_is_free if not waits({"targets": [{"component": "synapse", "label": "main", "live": false}], "approvals": []})
