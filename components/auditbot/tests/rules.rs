//! Every rule of the component, on a small volume.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_auditbot::Auditbot;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep};

fn world(owner: u32, config: &'static str) -> World {
    World::new()
        .volume(
            "data",
            Volume::new()
                .owner(owner, owner)
                .file("store/crypto.db", "x")
                .file("login.json", "{}"),
        )
        .volume("config", Volume::new().file("bot.yaml", config))
        .database("synapse", Database::postgres())
        .database("mas", Database::postgres())
}

fn view(labels: &[&str]) -> BackupView {
    let artifact = |l: &&str| Artifact {
        name: (*l).into(),
        kind: "volume".into(),
        items: Some(2),
        size_bytes: 1,
    };
    BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: labels.iter().map(artifact).collect(),
    }
}

fn find(w: &World, name: &str) -> Severity {
    let findings = w.run(|| Auditbot::verify(&view(&["data", "config"]))).unwrap();
    findings
        .into_iter()
        .find(|f| f.check == name)
        .unwrap_or_else(|| panic!("{name}"))
        .severity
}

const CONFIG: &str = "bot_backup_phrase: 'words'\n";

#[test]
fn files_belong_to_the_bots_numeric_user() {
    let w = world(10006, CONFIG);
    assert_eq!(find(&w, "auditbot-owner"), Severity::Info);
    assert_eq!(find(&world(0, CONFIG), "auditbot-owner"), Severity::Warning);
    assert_eq!(
        find(
            &world(4711, CONFIG).setting("uid", 4711).setting("gid", 4711),
            "auditbot-owner"
        ),
        Severity::Info
    );
    let plan = w.run(|| Auditbot::plan_restore(&view(&["data"]))).unwrap();
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, RestoreStep::SetOwner(o) if (o.uid, o.gid) == (10006, 10006) && o.volume == "data"))
    );
    assert!(plan.notes().any(|n| n.text.contains("must not be older than Synapse")));
}

#[test]
fn an_empty_volume_is_an_error_and_the_passphrase_is_looked_for() {
    let empty = World::new().volume("data", Volume::new());
    assert_eq!(find(&empty, "auditbot-data"), Severity::Error);
    assert!(
        empty
            .run(Auditbot::plan_backup)
            .unwrap()
            .notes()
            .any(|n| n.text.contains("empty"))
    );
    assert_eq!(find(&world(10006, CONFIG), "auditbot-passphrase"), Severity::Info);
    assert_eq!(find(&world(10006, "x: 1\n"), "auditbot-passphrase"), Severity::Warning);
    let plan = world(10006, CONFIG).run(Auditbot::plan_backup).unwrap();
    assert!(plan.facts().all(|f| !f.value.contains("words")));
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, BackupStep::ArchiveVolume(a) if a.volume == "data"))
    );
}

#[test]
fn after_a_leak_only_the_bots_sessions_end() {
    let w = world(10006, CONFIG).setting("user-id", "@bot:example.org");
    let plan = w.run(|| Auditbot::respond(&view(&["data", "config"]))).unwrap();
    let sql: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|s| match s {
            IncidentStep::RunSql(s) => Some((s.database.as_str(), s.sql.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(
        sql[0],
        (
            "synapse",
            "DELETE FROM public.access_tokens WHERE user_id = '@bot:example.org'"
        )
    );
    for (step, table) in sql.get(1..).unwrap().iter().zip(["access", "refresh"]) {
        assert!(step.0 == "mas" && step.1.contains("u.username = 'bot'"), "{step:?}");
        assert!(
            step.1.starts_with(&format!("UPDATE public.compat_{table}_tokens ")),
            "{step:?}"
        );
    }
    assert_eq!(sql.len(), 3);
    // Without its name nothing is run, and that is said.
    let plan = world(10006, CONFIG)
        .run(|| Auditbot::respond(&view(&["data"])))
        .unwrap();
    assert!(plan.steps.iter().all(|s| matches!(s, IncidentStep::Advise(_))));
    for bad in ["bot", "@bot", "@:x", "@a:b' OR 'x'='x"] {
        let error = world(10006, CONFIG)
            .setting("user-id", bad)
            .run(Auditbot::plan_backup)
            .unwrap_err();
        assert!(matches!(error, Error::InvalidSetting(_)), "{bad}");
    }
}

#[test]
fn cleartext_logs_are_flagged_wherever_they_are() {
    let warned = |w: &World, text: &str| {
        w.run(Auditbot::plan_backup)
            .unwrap()
            .notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains(text))
    };
    assert!(warned(&world(10006, CONFIG), "cleartext audit logs (from `data`)"));
    let bucket = world(10006, CONFIG).setting("logs-in-bucket", true);
    assert!(warned(&bucket, "NOT in this backup"));
    assert_eq!(find(&bucket, "auditbot-logs"), Severity::Warning);
    let mirrored = bucket.volume("logs", Volume::new().file("a.log", "hello"));
    assert!(warned(&mirrored, "cleartext audit logs (from `logs`)"));
    let d = Auditbot::describe();
    assert!(
        d.classes
            .iter()
            .any(|c| c.pattern == "logs" && c.sensitivity == Sensitivity::Secret && c.exposes.contains("CLEARTEXT"))
    );
}
