package essrun.gfs_test

import rego.v1

import data.essrun.retention

settings := {"days": 2, "weeks": 1, "months": 2, "sla": {"mas": 3, "irc": 1}}

noon := 1767268800 # Thursday 2026-01-01T12:00:00Z

at(id, day, verified, components) := {
	"id": id,
	"state": "normal",
	"taken_at_unix_seconds": noon + (day * 86400),
	"verified_at_unix_seconds": verified,
	"components": components,
}

backups := [
	at("old", -60, null, {}),
	at("irc", -55, null, {"irc": {}}),
	at("mas", -40, 1, {"mas": {}}),
	at("proved", -30, 1, {}),
	at("within", -3, null, {"mas": {}}),
	at("december", -2, null, {}),
	at("yesterday", -1, null, {}),
	at("today", 0, null, {}),
	object.union(at("odd", -50, null, {}), {"state": "suspect"}),
	object.union(at("half", -49, null, {}), {"state": "incomplete"}),
	at("future", 9, null, {}),
]

kept := said if {
	said := retention.keep with input as {
		"now": {"unix_seconds": noon},
		"backups": backups,
		"settings": settings,
	}
}

ids(kept) := {id | some id, _ in kept}

test_what_is_kept if {
	ids(kept) == {"today", "yesterday", "proved", "mas", "within", "irc", "odd", "future"}
}

test_reasons if {
	kept.today == {"newest of its day", "newest of its week", "newest of its month"}
	kept.proved == {"newest verified"}
	kept.mas == {"newest verified of mas"}
	kept.within == {"within the 3 days of mas", "newest of mas"}
	kept.irc == {"newest of irc"}
}

test_defaults_keep_more if {
	defaults := retention.keep with input as {"now": {"unix_seconds": noon}, "backups": backups, "settings": {}}
	{"december", "within", "old"} & ids(defaults) == {"december", "within", "old"}
}

# 23:30 UTC is the next day in Berlin.
test_days_begin_where_the_site_is if {
	late := [
		object.union(at("evening", 0, null, {}), {"taken_at_unix_seconds": noon - (14 * 3600)}),
		object.union(at("night", 0, null, {}), {"taken_at_unix_seconds": noon - (12 * 3600) - 1800}),
	]
	one := {"days": 9, "weeks": 0, "months": 0}
	utc := retention.keep with input as {"now": {"unix_seconds": noon}, "backups": late, "settings": one}
	berlin := retention.keep with input as {
		"now": {"unix_seconds": noon},
		"backups": late,
		"settings": object.union(one, {"time-zone": "Europe/Berlin"}),
	}
	ids(utc) == {"night"}
	ids(berlin) == {"night", "evening"}
}
