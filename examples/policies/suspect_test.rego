package essrun.judge_result_test

import rego.v1

import data.essrun.judge_result

backup(id, state, tables) := {
	"id": id,
	"state": state,
	"components": {"synapse": {"artifacts": tables}},
}

judged(now, before) := {
	"result": backup("b2", "normal", now),
	"previous": [
		backup("b1b", "suspect", {}),
		backup("b1", "normal", before),
	],
}

test_the_same if {
	tables := {"main/public.users": {"rows": 1000}}
	not judge_result.suspect with input as judged(tables, tables)
}

test_a_little_less if not judge_result.suspect with input as judged(
	{"main/public.users": {"rows": 801}},
	{"main/public.users": {"rows": 1000}},
)

test_a_fifth_less if {
	reasons := judge_result.reasons with input as judged(
		{"main/public.users": {"rows": 799}},
		{"main/public.users": {"rows": 1000}},
	)
	reasons == {"synapse/main/public.users fell from 1000 rows in b1 to 799"}
}

test_vanished if judge_result.suspect with input as judged({}, {"main/public.users": {"rows": 3}})

test_the_first if not judge_result.suspect with input as {
	"result": backup("b1", "normal", {}),
	"previous": [],
}
