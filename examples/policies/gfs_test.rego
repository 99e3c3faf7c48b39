package essrun.retention_test

import rego.v1

import data.essrun.retention

settings := {"days": 2, "weeks": 1, "months": 2, "sla": {"mas": 3}}

noon := 1767268800 # Thursday 2026-01-01T12:00:00Z

at(id, day, taken_at, verified, components) := {
	"id": id,
	"state": "normal",
	"taken_at_unix_seconds": noon + (day * 86400),
	"taken_at": taken_at,
	"verified_at_unix_seconds": verified,
	"components": components,
}

backups := [
	at("old", -60, "2025-11-02T12:00:00Z", null, {}),
	at("mas", -40, "2025-11-22T12:00:00Z", 1, {"mas": {}}),
	at("proved", -30, "2025-12-02T12:00:00Z", 1, {}),
	at("december", -2, "2025-12-30T12:00:00Z", null, {}),
	at("yesterday", -1, "2025-12-31T12:00:00Z", null, {}),
	at("today", 0, "2026-01-01T12:00:00Z", null, {}),
	object.union(at("odd", -50, "2025-11-12T12:00:00Z", null, {}), {"state": "suspect"}),
	at("future", 9, "2026-01-10T12:00:00Z", null, {}),
]

kept := answer if {
	answer := retention.keep with input as {
		"now": {"unix_seconds": noon},
		"backups": backups,
		"settings": settings,
	}
}

test_what_is_kept if {
	{id | some id, _ in kept} == {"today", "yesterday", "proved", "mas", "odd", "future"}
}

test_reasons if {
	kept.today == {"newest of its day", "newest of its week", "newest of its month"}
	kept.proved == {"newest verified"}
	"newest verified of mas, whose service level is 3 days" in kept.mas
}
