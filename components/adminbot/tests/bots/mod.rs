//! The rules Adminbot and Auditbot share (`essrun_guest::bot`), held against either, on a small volume.

use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep};

pub fn world(owner: u32, config: &'static str) -> World {
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

/// What the check `BOT-NAME` of a bot says of a world.
pub fn find<Bot: Component>(w: &World, name: &str) -> Severity {
    let findings = w.run(|| Bot::verify(&view(&["data", "config"]))).unwrap();
    findings
        .into_iter()
        .find(|f| f.check == name)
        .unwrap_or_else(|| panic!("{name}"))
        .severity
}

pub const CONFIG: &str = "bot_backup_phrase: 'words'\n";

pub fn files_belong_to_the_bots_numeric_user<Bot: Component>(bot: &str) {
    let owner = |w: &World| find::<Bot>(w, &format!("{bot}-owner"));
    let w = world(10006, CONFIG);
    assert_eq!(owner(&w), Severity::Info);
    assert_eq!(owner(&world(0, CONFIG)), Severity::Warning);
    assert_eq!(
        owner(&world(4711, CONFIG).setting("uid", 4711).setting("gid", 4711)),
        Severity::Info
    );
    let plan = w.run(|| Bot::plan_restore(&view(&["data"]))).unwrap();
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, RestoreStep::SetOwner(o) if (o.uid, o.gid) == (10006, 10006) && o.volume == "data"))
    );
    assert!(plan.notes().any(|n| n.text.contains("must not be older than Synapse")));
    assert!(plan.notes().any(|n| n.text.contains("does not make it leave")));
}

pub fn an_empty_volume_is_an_error_and_the_passphrase_is_looked_for<Bot: Component>(bot: &str) {
    let passphrase = |config| find::<Bot>(&world(10006, config), &format!("{bot}-passphrase"));
    let empty = World::new().volume("data", Volume::new());
    assert_eq!(find::<Bot>(&empty, &format!("{bot}-data")), Severity::Error);
    assert!(
        empty
            .run(Bot::plan_backup)
            .unwrap()
            .notes()
            .any(|n| n.text.contains("empty"))
    );
    assert_eq!(passphrase(CONFIG), Severity::Info);
    assert_eq!(passphrase("x: 1\n"), Severity::Warning);
    let plan = world(10006, CONFIG).run(Bot::plan_backup).unwrap();
    assert!(plan.facts().all(|f| !f.value.contains("words")));
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, BackupStep::ArchiveVolume(a) if a.volume == "data"))
    );
}

pub fn after_a_leak_only_the_bots_sessions_end<Bot: Component>() {
    let w = world(10006, CONFIG).setting("user-id", "@bot:example.org");
    let plan = w.run(|| Bot::respond(&view(&["data", "config"]))).unwrap();
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
    let plan = world(10006, CONFIG).run(|| Bot::respond(&view(&["data"]))).unwrap();
    assert!(plan.steps.iter().all(|s| matches!(s, IncidentStep::Advise(_))));
    for bad in ["bot", "@bot", "@:x", "@a:b' OR 'x'='x"] {
        let error = world(10006, CONFIG)
            .setting("user-id", bad)
            .run(Bot::plan_backup)
            .unwrap_err();
        assert!(matches!(error, Error::InvalidSetting(_)), "{bad}");
    }
}
