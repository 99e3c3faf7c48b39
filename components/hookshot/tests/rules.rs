//! Every rule of the component.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_hookshot::Hookshot;
use essrun_guest::mock::{Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep};

fn world(key: &'static str) -> World {
    World::new()
        .volume(
            "config",
            Volume::new()
                .file("passkey.pem", key)
                .file("registration.yml", "as_token: a\nhs_token: b\n"),
        )
        .volume("data", Volume::new().file("crypto/store", "x"))
}

#[test]
fn the_passkey_must_be_there() {
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\n";
    let view = BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: ["config", "data"]
            .map(|n| Artifact {
                name: n.into(),
                kind: "volume".into(),
                items: None,
                size_bytes: 1,
            })
            .to_vec(),
    };
    let find = |w: &World, name: &str| {
        w.run(|| Hookshot::verify(&view))
            .unwrap()
            .into_iter()
            .find(|f| f.check == name)
            .unwrap()
            .severity
    };
    assert_eq!(find(&world(KEY), "hookshot-passkey"), Severity::Info);
    assert_eq!(find(&world("nothing"), "hookshot-passkey"), Severity::Error);
    assert_eq!(find(&world(KEY), "bridge-registration"), Severity::Warning);
    assert_eq!(
        find(
            &world(KEY).setting("registration-file", "registration.yml"),
            "bridge-registration"
        ),
        Severity::Info
    );
    let plan = world("nothing").run(Hookshot::plan_backup).unwrap();
    assert!(plan.notes().any(|n| n.text.contains("no passkey.pem")));
    assert_eq!(
        plan.steps
            .iter()
            .filter(|s| matches!(s, BackupStep::ArchiveVolume(_)))
            .count(),
        2
    );
    let plan = world(KEY).run(|| Hookshot::plan_restore(&view)).unwrap();
    assert!(plan.notes().any(|n| n.text.contains("Redis")));
    assert!(!Hookshot::describe().needs_label("main"));
}
