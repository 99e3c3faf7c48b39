package essrun.suspect_test

import rego.v1

import data.essrun.judge_result

backup(id, state, tables) := {
	"id": id,
	"state": state,
	"components": {"synapse": {"artifacts": tables}},
}

judged(now, before) := {
	"settings": {},
	"result": backup("b2", "normal", now),
	"previous": [
		{"id": "b1c", "state": "normal", "components": {"mas": {"artifacts": {}}}},
		backup("b1b", "suspect", {}),
		backup("b1", "normal", before),
		backup("b0", "normal", {"main/public.users": {"rows": 9999}, "main/public.gone": {"rows": 1}}),
	],
}

test_the_same if {
	tables := {"main/public.users": {"rows": 1000}}
	said := judge_result.suspect with input as judged(tables, tables)
	said == set()
}

test_a_little_less if {
	said := judge_result.suspect with input as judged(
		{"main/public.users": {"rows": 801}},
		{"main/public.users": {"rows": 1000}},
	)
	said == set()
}

test_a_fifth_less if {
	said := judge_result.suspect with input as judged(
		{"main/public.users": {"rows": 799}},
		{"main/public.users": {"rows": 1000}},
	)
	said == {"synapse/main/public.users fell from 1000 rows in b1 to 799"}
}

test_as_much_as_the_site_says if {
	now := {"main/public.users": {"rows": 799}}
	before := {"main/public.users": {"rows": 1000}}
	said := judge_result.suspect with input as object.union(judged(now, before), {"settings": {"most-lost": 0.5}})
	said == set()
}

test_small_tables_may_shrink if {
	said := judge_result.suspect with input as judged(
		{"main/public.users": {"rows": 0}},
		{"main/public.users": {"rows": 99}},
	)
	said == set()
}

test_vanished if {
	said := judge_result.suspect with input as judged({}, {"main/public.users": {"rows": 3}})
	said == {"synapse/main/public.users was in b1 and is not in this one"}
}

test_a_volume_vanished if {
	said := judge_result.suspect with input as judged({}, {"media": {"entries": 3}})
	said == {"synapse/media was in b1 and is not in this one"}
}

test_not_asked_for if {
	said := judge_result.suspect with input as {
		"result": {"id": "b2", "state": "normal", "components": {}},
		"previous": [backup("b1", "normal", {"main/public.users": {"rows": 3}})],
	}
	said == set()
}

test_the_first if {
	said := judge_result.suspect with input as {"result": backup("b1", "normal", {}), "previous": []}
	said == set()
}
