//! Every rule of the component.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_sip::Sip;
use essrun_guest::Artifact;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;

fn world(config: &'static str, rows: u64) -> World {
    World::new()
        .database("main", Database::postgres().table("public.calls", &["id"], rows))
        .volume(
            "config",
            Volume::new()
                .file("sip.yaml", config)
                .file("registration.yaml", "as_token: a\nhs_token: b\n"),
        )
}

fn find(w: &World, name: &str) -> Severity {
    let artifact = |name: &str, kind: &str, n| Artifact {
        name: name.into(),
        kind: kind.into(),
        items: Some(n),
        size_bytes: 1,
    };
    let view = BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: vec![
            artifact("main/public.calls", "postgres-table", 2),
            artifact("config", "volume", 1),
        ],
    };
    w.run(|| Sip::verify(&view))
        .unwrap()
        .into_iter()
        .find(|f| f.check == name)
        .unwrap()
        .severity
}

#[test]
fn the_key_has_32_characters_and_rows_are_there() {
    let key = "encryption_key: 0123456789abcdef0123456789abcdef\n";
    for name in ["sip-encryption-key", "row-counts-main", "bridge-registration"] {
        assert_eq!(find(&world(key, 2), name), Severity::Info, "{name}");
    }
    assert_eq!(
        find(&world("encryption_key: short\n", 2), "sip-encryption-key"),
        Severity::Warning
    );
    assert_eq!(find(&world("x: 1\n", 2), "sip-encryption-key"), Severity::Warning);
    assert_eq!(find(&world(key, 1), "row-counts-main"), Severity::Error);
    let plan = world(key, 2).run(Sip::plan_backup).unwrap();
    assert!(plan.notes().any(|n| n.text.contains("/mnt/data/sipbridge-postgres")));
    let view = BackupView {
        id: String::new(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: vec![],
    };
    let plan = world(key, 2).run(|| Sip::plan_restore(&view)).unwrap();
    assert!(
        plan.notes()
            .any(|n| n.text.contains("postgres_data_path") && n.text.contains("999"))
    );
    let warned = |w: &World| {
        w.run(Sip::plan_backup)
            .unwrap()
            .notes()
            .any(|n| n.text.contains("encryption_key"))
    };
    assert!(!warned(&world(key, 2)) && warned(&world("x: 1\n", 2)) && warned(&world("encryption_key: short\n", 2)));
}
