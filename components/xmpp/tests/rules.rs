//! Every rule of the component, on a small bifrost made of answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_xmpp::Xmpp;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep, db::Cell};

/// `rooms` itself is empty; counted without ONLY it would seem to have its child's row.
fn world(inherits: bool, group_rooms: u64) -> World {
    let rows: Vec<Vec<Cell>> = match inherits {
        true => vec![vec!["public.group_rooms".into(), "public.rooms".into()]],
        false => vec![],
    };
    let database = Database::postgres()
        .table("public.rooms", &["id"], 0)
        .table("public.group_rooms", &["id"], group_rooms)
        .table("public.im_rooms", &["id"], 0)
        .table("public.remote_users", &["id"], 1)
        .answer_with(move |sql, _| sql.contains("pg_inherits").then(|| Ok(rows.clone())))
        .answer_with(|sql, _| {
            let whole = sql.contains("FROM \"public\".\"rooms\"") || sql.contains("FROM public.rooms");
            assert!(!whole, "counted with its children: {sql}");
            None
        });
    World::new().database("main", database).volume(
        "config",
        Volume::new().file("registration.yaml", "as_token: a\nhs_token: b\n"),
    )
}

fn view() -> BackupView {
    let table = |name: &str, n| Artifact {
        name: format!("main/public.{name}"),
        kind: "postgres-table".into(),
        items: Some(n),
        size_bytes: 1,
    };
    BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: world(true, 1)
            .run(Xmpp::plan_backup)
            .unwrap()
            .facts()
            .cloned()
            .collect(),
        artifacts: vec![
            table("rooms", 0),
            table("group_rooms", 1),
            Artifact {
                name: "config".into(),
                kind: "volume".into(),
                items: None,
                size_bytes: 1,
            },
        ],
    }
}

fn severity(w: &World, check: &str) -> Severity {
    w.run(|| Xmpp::verify(&view()))
        .unwrap()
        .into_iter()
        .find(|f| f.check == check)
        .unwrap()
        .severity
}

#[test]
fn inherited_tables_are_counted_by_themselves() {
    assert_eq!(severity(&world(true, 1), "row-counts-main"), Severity::Info);
    assert_eq!(severity(&world(true, 1), "xmpp-inheritance"), Severity::Info);
    assert_eq!(severity(&world(true, 0), "row-counts-main"), Severity::Error);
    assert_eq!(view().fact("rows/main/public.rooms"), Some("0"));
}

#[test]
fn children_without_their_parent_are_found() {
    assert_eq!(severity(&world(false, 1), "xmpp-inheritance"), Severity::Error);
}

#[test]
fn files_instead_of_a_database() {
    let w = World::new().volume("data", Volume::new().file("rooms.db", "{}"));
    let plan = w.run(Xmpp::plan_backup).unwrap();
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, BackupStep::ArchiveVolume(a) if a.volume == "data"))
    );
    assert!(World::new().run(Xmpp::plan_backup).unwrap_err().text().contains("NeDB"));
}
