package essrun.may_restore_test

import rego.v1

import data.essrun.may_restore

now := 1767225600 # 2026-01-01T00:00:00Z

base := {
	"now": {"unix_seconds": now},
	"person": "ada",
	"drill": false,
	"backup": {"id": "b7"},
	"targets": [{"component": "synapse", "label": "main", "live": true}],
	"approvals": [{"owner": "grace", "text": "approve b7\n", "modified_unix_seconds": now - 60}],
	"settings": {"freezes": []},
}

changed(changes) := object.union(base, changes)

test_approved if may_restore.allow with input as base

test_not_approved if not may_restore.allow with input as changed({"approvals": []})

test_approved_for_another if not may_restore.allow with input as changed({"backup": {"id": "b8"}})

test_by_oneself if not may_restore.allow with input as changed({"person": "grace"})

test_yesterdays if not may_restore.allow with input as changed({"now": {"unix_seconds": now + (2 * 24 * 3600)}})

test_frozen if not may_restore.allow with input as changed({"settings": {"freezes": [{"from": "2025-12-20T00:00:00Z", "until": "2026-01-06T00:00:00Z", "why": "holidays"}]}})

test_thawed if may_restore.allow with input as changed({"settings": {"freezes": [{"from": "2025-12-20T00:00:00Z", "until": "2025-12-31T00:00:00Z", "why": "holidays"}]}})

test_drills_are_free if may_restore.allow with input as changed({"drill": true, "approvals": []})
