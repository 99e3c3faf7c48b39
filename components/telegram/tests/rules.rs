//! Every rule of the component, on a small bridge of each generation made of answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_telegram::Telegram;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, db::Cell};

fn world(table: &str, sessions: i64, users: u64) -> World {
    let database = Database::postgres()
        .table("public.user", &["mxid"], users)
        .table("public.portal", &["id"], 1)
        .table(&format!("public.{table}"), &["auth_key", "metadata"], 5)
        .answer("IS NOT NULL", &[&[Cell::Integer(sessions)]]);
    World::new().database("main", database).volume(
        "config",
        Volume::new().file("registration.yaml", "as_token: a\nhs_token: b\n"),
    )
}

fn view(w: &World) -> BackupView {
    let artifact = |name: &str, kind: &str, n| Artifact {
        name: name.into(),
        kind: kind.into(),
        items: Some(n),
        size_bytes: 1,
    };
    BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: w.run(Telegram::plan_backup).unwrap().facts().cloned().collect(),
        artifacts: vec![
            artifact("main/public.user", "postgres-table", 2),
            artifact("main/public.telethon_sessions", "postgres-table", 5),
            artifact("main/public.puppet", "postgres-table", 0),
        ],
    }
}

#[test]
fn what_decides_about_the_first_start_is_said() {
    let w = world("user_login", 4, 2);
    let view = view(&w);
    let plan = w.run(|| Telegram::plan_restore(&view)).unwrap();
    for said in [
        "resets its encryption store",
        "as_token is fatal",
        "the pickled object is too new",
    ] {
        assert!(plan.notes().any(|n| n.text.contains(said)), "{said}");
    }
}

#[test]
fn sessions_are_flagged_counted_and_the_reserved_name_is_quoted() {
    for table in ["telethon_sessions", "user_login"] {
        let good = world(table, 4, 2);
        let plan = good.run(Telegram::plan_backup).unwrap();
        assert!(
            plan.notes()
                .any(|n| n.severity == Severity::Warning && n.text.contains("4 Telegram sessions in clear"))
        );
        assert!(
            good.queries()
                .iter()
                .any(|(_, sql)| sql.contains("\"public\".\"user\""))
        );
        assert!(good.queries().iter().all(|(_, sql)| !sql.contains("public.user ")));
        let mut view = view(&good);
        view.artifacts.retain(|a| a.name == "main/public.user");
        let find = |w: &World, name: &str| {
            w.run(|| Telegram::verify(&view))
                .unwrap()
                .into_iter()
                .find(|f| f.check == name)
                .unwrap()
                .severity
        };
        assert_eq!(find(&good, "telegram-sessions"), Severity::Info);
        assert_eq!(find(&good, "row-counts-main"), Severity::Info);
        assert_eq!(find(&world(table, 3, 2), "telegram-sessions"), Severity::Error);
        assert_eq!(find(&world(table, 4, 1), "row-counts-main"), Severity::Error);
    }
}

#[test]
fn auth_keys_are_the_gravest_class() {
    let d = Telegram::describe();
    let class = d
        .classes
        .iter()
        .find(|c| c.pattern == "main/public.telethon_sessions")
        .unwrap();
    assert!(
        class.sensitivity == Sensitivity::Secret && class.exposes.contains("FULL ACCESS") && !class.on_leak.is_empty()
    );
}

#[test]
fn foreign_databases_are_refused_and_leaks_have_statements() {
    let w = World::new().database(
        "main",
        Database::postgres()
            .table("public.user", &["x"], 1)
            .table("public.portal", &["x"], 1),
    );
    assert!(matches!(w.run(Telegram::plan_backup), Err(Error::Unsupported(_))));
    let w = world("telethon_sessions", 4, 2);
    let plan = w.run(|| Telegram::respond(&view(&w))).unwrap();
    assert_eq!(
        plan.steps
            .iter()
            .filter(|s| matches!(s, IncidentStep::RunSql(_)))
            .count(),
        2
    );
}
