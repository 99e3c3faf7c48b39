//! Every rule of the component, on a small bridge made of answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_whatsapp::Whatsapp;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, db::Cell};

fn world(config: &'static str, owner: &'static str, bad_keys: i64, sessions: u64) -> World {
    let database = Database::postgres()
        .table("public.whatsmeow_device", COLUMNS, 1)
        .table("public.whatsmeow_sessions", &["session"], sessions)
        .table("public.portal", &["id"], 3)
        .table("public.user", &["mxid"], 2)
        .table("public.crypto_account", &["account"], 1)
        .table("public.database_owner", &["owner"], 1)
        .answer("SELECT owner", &[&[owner.into()]])
        .answer("length(noise_key)", &[&[Cell::Integer(bad_keys)]]);
    World::new().database("main", database).volume(
        "config",
        Volume::new()
            .file("config.yaml", config)
            .file("registration.yaml", "as_token: a\nhs_token: b\n"),
    )
}

const COLUMNS: &[&str] = &[
    "jid",
    "noise_key",
    "identity_key",
    "signed_pre_key",
    "signed_pre_key_id",
    "signed_pre_key_sig",
    "adv_key",
    "adv_details",
    "adv_account_sig",
    "adv_account_sig_key",
    "adv_device_sig",
];

const CONFIG: &str = "bridge:\n  x: 1\nencryption:\n  allow: true\n  pickle_key: abc # ours\n";

fn find(w: &World, name: &str) -> Severity {
    let table = |name: &str, n| Artifact {
        name: format!("main/public.{name}"),
        kind: "postgres-table".into(),
        items: Some(n),
        size_bytes: 1,
    };
    let view = BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: vec![
            table("user", 2),
            table("whatsmeow_sessions", 9),
            Artifact {
                name: "config".into(),
                kind: "volume".into(),
                items: None,
                size_bytes: 1,
            },
        ],
    };
    w.run(|| Whatsapp::verify(&view))
        .unwrap()
        .into_iter()
        .find(|f| f.check == name)
        .unwrap()
        .severity
}

#[test]
fn rules() {
    let good = world(CONFIG, "mautrix-whatsapp", 0, 9);
    for name in [
        "mautrix-pickle-key",
        "mautrix-database-owner",
        "whatsapp-device-keys",
        "row-counts-main",
        "bridge-registration",
    ] {
        assert_eq!(find(&good, name), Severity::Info, "{name}");
    }
    // Said always: no restore can help it.
    assert_eq!(find(&good, "whatsapp-ratchets"), Severity::Warning);
    assert_eq!(
        find(
            &world("encryption:\n  allow: true\n", "mautrix-whatsapp", 0, 9),
            "mautrix-pickle-key"
        ),
        Severity::Warning
    );
    assert_eq!(
        find(&world(CONFIG, "synapse", 0, 9), "mautrix-database-owner"),
        Severity::Error
    );
    assert_eq!(
        find(&world(CONFIG, "mautrix-whatsapp", 1, 9), "whatsapp-device-keys"),
        Severity::Error
    );
    assert_eq!(
        find(&world(CONFIG, "mautrix-whatsapp", 0, 8), "row-counts-main"),
        Severity::Error
    );
}

#[test]
fn a_device_is_all_of_its_keys_and_signatures() {
    let good = world(CONFIG, "mautrix-whatsapp", 0, 9);
    find(&good, "whatsapp-device-keys");
    let queries = good.queries();
    let (_, sql) = queries
        .iter()
        .find(|(_, sql)| sql.contains("length(noise_key)"))
        .unwrap();
    for wrong in [
        "length(noise_key) <> 32",
        "length(identity_key) <> 32",
        "length(signed_pre_key) <> 32",
        "length(signed_pre_key_sig) <> 64",
        "adv_key IS NULL",
        "adv_details IS NULL",
        "length(adv_account_sig) <> 64",
        "length(adv_account_sig_key) <> 32",
        "length(adv_device_sig) <> 64",
    ] {
        assert!(sql.contains(wrong), "{wrong} is not in {sql}");
    }
    // A column an older version does not have is not asked for.
    let old = World::new().database(
        "main",
        Database::postgres()
            .table(
                "public.whatsmeow_device",
                &["jid", "noise_key", "identity_key", "adv_key"],
                1,
            )
            .table("public.whatsmeow_sessions", &["session"], 9)
            .table("public.portal", &["id"], 3)
            .table("public.user", &["mxid"], 2)
            .answer("length(noise_key)", &[&[Cell::Integer(0)]]),
    );
    assert_eq!(find(&old, "whatsapp-device-keys"), Severity::Info);
    assert!(old.queries().iter().all(|(_, sql)| !sql.contains("adv_device_sig")));
}

#[test]
fn the_ratchets_are_in_the_plan() {
    let w = world(CONFIG, "mautrix-whatsapp", 0, 9);
    let view = BackupView {
        id: String::new(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: vec![],
    };
    let plan = w.run(|| Whatsapp::plan_restore(&view)).unwrap();
    assert!(
        plan.notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains("ratchets"))
    );
    for said in [
        "resets its encryption store",
        "as_token is fatal",
        "the pickled object is too new",
    ] {
        assert!(plan.notes().any(|n| n.text.contains(said)), "{said}");
    }
    assert!(
        w.run(Whatsapp::plan_backup)
            .unwrap()
            .facts()
            .any(|f| f.key == "rows/main/public.user" && f.value == "2")
    );
}
