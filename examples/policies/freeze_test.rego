package essrun.freeze_test

import rego.v1

import data.essrun.may_restore

holidays := {"from": "2025-12-20T00:00:00Z", "until": "2026-01-06T00:00:00Z", "why": "holidays"}

base := {
	"now": {"unix_seconds": 1767225600}, # 2026-01-01T00:00:00Z
	"person": "ada",
	"drill": false,
	"backup": {"id": "b7"},
	"targets": [{"component": "synapse", "label": "main", "live": true}],
	"approvals": [],
	"settings": {"freezes": [holidays]},
}

frozen(changes) if {
	some r in may_restore.deny with input as object.union(base, changes)
	startswith(r, "changes are frozen")
}

test_frozen if {
	"changes are frozen until 2026-01-06T00:00:00Z: holidays" in may_restore.deny with input as base
}

test_thawed if not frozen({"settings": {"freezes": [object.union(holidays, {"until": "2025-12-31T00:00:00Z"})]}})

test_not_yet if not frozen({"settings": {"freezes": [object.union(holidays, {"from": "2026-01-02T00:00:00Z"})]}})

test_one_of_several if frozen({"settings": {"freezes": [object.union(holidays, {"until": "2025-12-21T00:00:00Z"}), holidays]}})

test_drills_are_free if not frozen({"drill": true})

test_leaks_do_not_wait if not frozen({"verb": "incident"})

test_restores_wait if frozen({"verb": "restore"})

test_onto_nothing_is_free if not frozen({"targets": [{"component": "synapse", "label": "main", "live": false}]})
