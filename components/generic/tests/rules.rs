//! Every setting of the component.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_generic::Generic;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep, db::Cell};
use serde_json::json;

fn view(artifacts: &[(&str, &str, u64)], facts: Vec<Fact>) -> BackupView {
    let artifact = |(name, kind, n): &(&str, &str, u64)| Artifact {
        name: (*name).into(),
        kind: (*kind).into(),
        items: Some(*n),
        size_bytes: 1,
    };
    BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts,
        artifacts: artifacts.iter().map(artifact).collect(),
    }
}

fn postgres(rows: u64) -> World {
    World::new().database(
        "main",
        Database::postgres()
            .table("public.pages", &["id"], rows)
            .answer("EXISTS", &[&[Cell::Boolean(rows > 1)]]),
    )
}

#[test]
fn what_is_granted_is_taken_less_what_is_left_out() {
    let w = postgres(2)
        .volume("files", Volume::new().file("a", "x"))
        .database("second", Database::sqlite().table("main.t", &["x"], 3))
        .setting("leave-out-data", json!({"main": ["public.cache*"]}))
        .setting("keep-rows", json!({"main": {"public.log": "at > 1"}}))
        .setting("take", json!({"files": ["up/**"]}))
        .setting("leave-out", json!({"files": ["up/tmp"]}));
    let plan = w.run(Generic::plan_backup).unwrap();
    assert!(plan.steps.iter().any(|s| matches!(s, BackupStep::DumpDatabase(d)
        if d.database == "main" && d.leave_out_data[0].table == "public.cache*" && d.row_filters[0].keep_where == "at > 1")));
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, BackupStep::CopySqlite(c) if c.database == "second"))
    );
    assert!(plan.steps.iter().any(|s| matches!(s, BackupStep::ArchiveVolume(a)
        if a.take[0].pattern == "up/**" && a.leave_out[0].pattern == "up/tmp")));
    assert!(plan.facts().any(|f| f.key == "rows/second/main.t" && f.value == "3"));
}

#[test]
fn restores_do_what_the_site_says() {
    let w = postgres(2)
        .setting(
            "after-restore",
            json!({"main": ["UPDATE public.pages SET x = 1"], "second": ["SELECT 1"]}),
        )
        .setting("owner", json!({"files": [1000, 1001]}))
        .setting("notes", json!(["ring the admin"]));
    let plan = w
        .run(|| {
            Generic::plan_restore(&view(
                &[("main/public.pages", "postgres-table", 2), ("files", "volume", 1)],
                vec![],
            ))
        })
        .unwrap();
    let order: Vec<String> = plan
        .steps
        .iter()
        .map(|s| format!("{s:?}").chars().take(20).collect())
        .collect();
    assert!(
        matches!(&plan.steps[0], RestoreStep::RestoreVolume(l) if l == "files"),
        "{order:?}"
    );
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, RestoreStep::SetOwner(o) if (o.uid, o.gid) == (1000, 1001)))
    );
    // Only for what the backup holds.
    assert_eq!(
        plan.steps
            .iter()
            .filter(|s| matches!(s, RestoreStep::RunSql(_)))
            .count(),
        1
    );
    assert!(plan.notes().any(|n| n.text == "ring the admin"));
}

#[test]
fn what_must_be_true_is_checked() {
    let truth = json!({"main": ["SELECT EXISTS (SELECT 1 FROM public.pages)"]});
    let v = view(&[("main/public.pages", "postgres-table", 2)], vec![]);
    let find = |rows, name: &str| {
        let findings = postgres(rows)
            .setting("must-be-true", truth.clone())
            .run(|| Generic::verify(&v))
            .unwrap();
        findings.into_iter().find(|f| f.check == name).unwrap().severity
    };
    assert_eq!(find(2, "generic-main-1"), Severity::Info);
    assert_eq!(find(2, "row-counts-main"), Severity::Info);
    assert_eq!(find(1, "generic-main-1"), Severity::Error);
    assert_eq!(find(1, "row-counts-main"), Severity::Error);
}

#[test]
fn an_empty_volume_and_a_lost_sqlite_table_are_found() {
    let w = World::new()
        .volume("files", Volume::new())
        .database("main", Database::sqlite().table("main.t", &["x"], 0));
    let fact = Fact {
        key: "rows/main/main.t".into(),
        value: "3".into(),
    };
    let findings = w
        .run(|| Generic::verify(&view(&[("files", "volume", 9), ("main", "sqlite", 1)], vec![fact])))
        .unwrap();
    assert_eq!(
        findings.iter().filter(|f| f.severity == Severity::Error).count(),
        2,
        "{findings:#?}"
    );
}

#[test]
fn wrong_settings_and_no_grants_are_refused() {
    for (name, value) in [
        ("leave-out-data", json!({"mian": ["x"]})),
        ("take", json!({"main": ["x"]})),
        ("owner", json!({"files": ["root", 0]})),
        ("keep-rows", json!(["x"])),
    ] {
        let error = postgres(1).setting(name, value).run(Generic::plan_backup).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidSetting(t) if t.contains(name)),
            "{error:?}"
        );
    }
    assert!(
        World::new()
            .run(Generic::plan_backup)
            .unwrap_err()
            .text()
            .contains("nothing is granted")
    );
    let sqlite = World::new()
        .database("main", Database::sqlite())
        .setting("leave-out-data", json!({"main": ["x"]}));
    assert!(
        sqlite
            .run(Generic::plan_backup)
            .unwrap_err()
            .text()
            .contains("copied whole")
    );
    assert!(
        Generic::describe().classes.is_empty(),
        "everything unknown counts as secret"
    );
}
