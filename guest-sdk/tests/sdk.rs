//! What every component relies on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep, InspectError, db::Cell};

struct Plain;

impl Component for Plain {
    fn describe() -> Description {
        Description::new("Plain", "1", Tier::Feature)
            .need(Need::database("main", "x"))
            .need(Need::database("other", "x").peer())
            .need(Need::volume("files", "x").optional())
            .class(ArtifactClass::new("main/*", Sensitivity::Personal, "names").on_leak("tell them"))
            .class(ArtifactClass::new("files", Sensitivity::Secret, "keys").on_leak("replace them"))
    }
}

essrun_guest::export!(Plain);

fn view(artifacts: &[(&str, &str, Option<u64>)]) -> BackupView {
    let artifact = |(name, kind, items): &(&str, &str, Option<u64>)| Artifact {
        name: (*name).into(),
        kind: (*kind).into(),
        items: *items,
        size_bytes: 1,
    };
    BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: artifacts.iter().map(artifact).collect(),
    }
}

#[test]
fn the_defaults_take_what_is_owned_and_granted_and_put_files_back_first() {
    let world = World::new()
        .database("main", Database::postgres())
        .database("other", Database::postgres());
    let plan = world.run(Plain::plan_backup).unwrap();
    assert!(matches!(&plan.steps[..], [BackupStep::DumpDatabase(d)] if d.database == "main"));
    let world = World::new()
        .database("main", Database::sqlite())
        .volume("files", Volume::new());
    let plan = world.run(Plain::plan_backup).unwrap();
    assert!(matches!(
        &plan.steps[..],
        [BackupStep::CopySqlite(_), BackupStep::ArchiveVolume(_)]
    ));

    let v = view(&[
        ("main/ddl", "postgres-ddl", None),
        ("files", "volume", None),
        ("mainly", "volume", None),
    ]);
    let plan = Plain::plan_restore(&v).unwrap();
    assert_eq!(
        plan.steps,
        [
            RestoreStep::RestoreVolume("files".into()),
            RestoreStep::RestoreDatabase("main".into())
        ]
    );
    let advice: Vec<String> = Plain::respond(&v)
        .unwrap()
        .steps
        .into_iter()
        .map(|s| match s {
            IncidentStep::Advise(a) => a.text,
            IncidentStep::RunSql(_) => panic!("nothing to run"),
        })
        .collect();
    assert_eq!(advice, ["replace them (keys)", "tell them (names)"]);
}

#[test]
fn rows_doubled_lost_or_gone_with_their_table_are_found() {
    let v = view(&[
        ("main/public.a", "postgres-table", Some(2)),
        ("main/public.b\"x", "postgres-table", Some(0)),
    ]);
    let verify = |a, b: Option<u64>| {
        let mut d = Database::postgres().table("public.a", &["x"], a);
        if let Some(b) = b {
            d = d.table("public.b\"x", &["x"], b).answer(
                "\"b\"\"x\"",
                &[
                    &[Cell::Integer(0), Cell::Integer(a as i64)],
                    &[Cell::Integer(1), Cell::Integer(b as i64)],
                ],
            );
        }
        World::new().database("main", d).run(|| Plain::verify(&v)).unwrap()[0].severity
    };
    assert_eq!(verify(2, Some(0)), Severity::Info);
    for (a, b) in [(4, Some(0)), (1, Some(0)), (2, Some(1)), (2, None)] {
        assert_eq!(verify(a, b), Severity::Error, "{a} {b:?}");
    }
}

#[test]
fn what_the_host_does_not_let_be_counted_is_said_and_not_failed() {
    let v = view(&[
        ("main/public.huge", "postgres-table", Some(161_000_000)),
        ("main/public.a", "postgres-table", Some(1)),
    ]);
    let database = |error| {
        Database::postgres()
            .table("public.huge", &["x"], 0)
            .table("public.a", &["x"], 1)
            .fail("\"huge\"", error)
    };
    let world = World::new().database("main", database(InspectError::Limit("60 s".into())));
    let findings = world.run(|| Plain::verify(&v)).unwrap();
    assert!(
        findings[0].severity == Severity::Warning && findings[0].message.contains("public.huge"),
        "{findings:?}"
    );
    // Any other failure is one.
    let world = World::new().database("main", database(InspectError::Failed("gone".into())));
    assert!(world.run(|| Plain::verify(&v)).unwrap_err().text().contains("gone"));
}

#[test]
fn many_small_tables_are_counted_by_few_queries_and_none_is_forgotten() {
    let names: Vec<String> = (0..95).map(|i| format!("public.t{i:02}")).collect();
    let database = || {
        names
            .iter()
            .enumerate()
            .fold(Database::postgres(), |d, (i, name)| d.table(name, &["id"], i as u64))
    };
    let asked = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = asked.clone();
    let counting = database().answer_with(move |sql, _| {
        count.set(count.get() + usize::from(sql.contains("count(*)")));
        None
    });
    let all = |world: World| {
        world.run(|| {
            let tables = db::tables("main").unwrap();
            db::counts_only("main", &tables.iter().collect::<Vec<_>>())
        })
    };
    let counts = all(World::new().database("main", counting)).unwrap();
    assert_eq!(counts, (0..95).collect::<Vec<i64>>());
    assert_eq!(asked.get(), 3);

    // A server that answers about fewer tables than it was asked for.
    let short = database().answer("t94", &[&[0.into(), 80.into()], &[14.into(), 94.into()]]);
    let error = all(World::new().database("main", short)).unwrap_err().to_string();
    assert!(error.contains("the rows of public.t81 were not counted"), "{error}");
}

/// A database that answers a page's query as PostgreSQL would, from numbers in order.
fn numbers(all: u64, ordered: bool) -> World {
    let database = Database::postgres().answer_with(move |sql, _| {
        assert!(sql.contains("ORDER BY k.\"id\" COLLATE \"C\" LIMIT 100000"), "{sql}");
        let after = sql
            .split("> ('")
            .nth(1)
            .and_then(|s| s.split('\'').next())
            .map(|s| s.parse::<u64>().unwrap());
        let from = after.map_or(0, |n| n + 1);
        let page = (from..all).take(100_000).map(|n| vec![Cell::Text(format!("{n:08}"))]);
        Some(Ok(if ordered {
            page.collect()
        } else {
            page.collect::<Vec<_>>().into_iter().rev().collect()
        }))
    });
    World::new().database("main", database)
}

#[test]
fn long_lists_come_whole_and_in_order() {
    for all in [0, 1, 99_999, 100_000, 100_001, 250_000] {
        let world = numbers(all, true);
        let count =
            world.run(|| db::pages("main", "SELECT id FROM t", &["id"]).try_fold(0, |n, row| row.map(|_| n + 1)));
        assert_eq!(count, Ok(all));
        assert_eq!(world.queries().len() as u64, all / 100_000 + 1);
    }
    let world = numbers(3, false);
    let result: Result<Vec<_>, _> = world.run(|| db::pages("main", "SELECT id FROM t", &["id"]).collect());
    assert!(result.unwrap_err().text().contains("out of order"));
}

#[test]
fn a_wrong_setting_is_named() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
    struct Settings {
        how_many: u32,
    }
    impl Default for Settings {
        fn default() -> Self {
            Settings { how_many: 3 }
        }
    }
    assert_eq!(World::new().run(settings::get::<Settings>).unwrap().how_many, 3);
    let error = World::new()
        .setting("how-many", "five")
        .run(settings::get::<Settings>)
        .unwrap_err();
    assert!(
        matches!(&error, Error::InvalidSetting(t) if t.contains("`how-many`") && t.contains("\"five\"")),
        "{error:?}"
    );
}

#[test]
fn the_mock_world_is_strict_where_a_component_could_go_wrong_unnoticed() {
    let world = World::new()
        .database("main", Database::postgres())
        .volume("v", Volume::new().file("a/b", "x"));
    world.run(|| {
        assert!(matches!(db::info("x"), Err(InspectError::Denied(_))));
        assert_eq!(db::granted("x"), Ok(None));
        assert!(
            db::count("main", "SELECT 1", &[])
                .unwrap_err()
                .text()
                .contains("SELECT 1")
        );
        assert!(
            db::count("main", "SELECT 1;", &[])
                .unwrap_err()
                .text()
                .contains("semicolon")
        );
        assert!(matches!(volume::look("v", "a/../b"), Err(InspectError::Invalid(_))));
        assert!(matches!(volume::read("v", "a/b", 0), Err(InspectError::Limit(_))));
        assert!(volume::walk("v", "nope", true).is_err());
        assert_eq!(volume::find("v", "b").unwrap(), ["a/b"]);
        assert_eq!(volume::find("v", "a/*").unwrap(), ["a/b"]);
        assert!(volume::find("v", "a").unwrap().is_empty());
    });
    assert!(
        matches!(db::info("main"), Err(InspectError::Other(_))),
        "outside a world nothing answers"
    );
}
