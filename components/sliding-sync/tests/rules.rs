//! Every rule of the component, on a small proxy made of answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aes_gcm::{Aes256Gcm, KeyInit, aead::Aead};
use essrun_component_sliding_sync::SlidingSync;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, db::Cell};
use sha2::{Digest, Sha256};

fn sealed(secret: &str, token: &str) -> String {
    let key: [u8; 32] = Sha256::digest(secret).into();
    let nonce = [3u8; 12];
    let text = Aes256Gcm::new(&key.into())
        .encrypt(&nonce.into(), token.as_bytes())
        .unwrap();
    format!("{} {}", hex::encode(nonce), hex::encode(text))
}

fn world(env: &'static str, tokens: Vec<String>, messages: u64) -> World {
    let database = Database::postgres()
        .table("public.syncv3_events", &["event_nid"], 5)
        .table("public.syncv3_sync2_tokens", &["token_encrypted"], tokens.len() as u64)
        .table("public.syncv3_to_device_messages", &["position"], messages)
        .answer_with(move |sql, _| {
            sql.starts_with("SELECT token_encrypted")
                .then(|| Ok(tokens.iter().map(|t| vec![Cell::Text(t.clone())]).collect()))
        });
    World::new()
        .database("main", database)
        .volume("config", Volume::new().file("proxy.env", env).file("other", "x=1"))
}

fn view(world: &World) -> BackupView {
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
        facts: world.run(SlidingSync::plan_backup).unwrap().facts().cloned().collect(),
        artifacts: vec![table("syncv3_to_device_messages", 4)],
    }
}

const ENV: &str = "SYNCV3_SERVER=x\nexport SYNCV3_SECRET=\"s3cret\"\n";

#[test]
fn the_secret_must_open_the_tokens() {
    let tokens = vec![sealed("s3cret", "t1"), sealed("s3cret", "t2")];
    let good = world(ENV, tokens.clone(), 4);
    let view = view(&good);
    assert_eq!(view.fact("secret"), Some("opens 2 of 2"));
    let find = |w: &World, name: &str| {
        w.run(|| SlidingSync::verify(&view))
            .unwrap()
            .into_iter()
            .find(|f| f.check == name)
            .unwrap()
    };
    assert_eq!(find(&good, "sliding-sync-secret").severity, Severity::Info);
    assert_eq!(find(&good, "row-counts-main").severity, Severity::Info);

    let wrong = world("SYNCV3_SECRET=other\n", tokens.clone(), 4);
    let f = find(&wrong, "sliding-sync-secret");
    assert!(f.severity == Severity::Error && f.message.contains("0 of 2") && f.remedy.contains("old SYNCV3_SECRET"));
    assert_eq!(
        find(&world("nothing here", tokens.clone(), 4), "sliding-sync-secret").severity,
        Severity::Warning
    );
    assert_eq!(
        find(&world(ENV, vec!["zz".into(), "00 11".into()], 4), "sliding-sync-secret").severity,
        Severity::Error
    );
    assert_eq!(
        find(&world(ENV, vec![], 4), "sliding-sync-secret").severity,
        Severity::Info
    );
    // Undelivered room keys lost.
    assert_eq!(
        find(&world(ENV, tokens, 3), "row-counts-main").severity,
        Severity::Error
    );
}

#[test]
fn the_to_device_caveat_is_in_the_plan() {
    let good = world(ENV, vec![], 4);
    let plan = good.run(|| SlidingSync::plan_restore(&view(&good))).unwrap();
    assert!(
        plan.notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains("to-device messages"))
    );
}

#[test]
fn a_wrong_secret_is_said_at_backup_time() {
    let plan = world("SYNCV3_SECRET=other", vec![sealed("s3cret", "t")], 4)
        .run(SlidingSync::plan_backup)
        .unwrap();
    assert!(plan.notes().any(|n| n.text.contains("opens only 0 of 1")));
    assert!(plan.facts().all(|f| !f.value.contains("other")));
}

#[test]
fn a_secret_in_a_file_of_its_own() {
    let world = world("s3cret\n", vec![sealed("s3cret", "t")], 4).setting("secret-file", "proxy.env");
    assert_eq!(view(&world).fact("secret"), Some("opens 1 of 1"));
}

#[test]
fn foreign_databases_are_refused() {
    let w = World::new().database("main", Database::postgres().table("public.x", &["a"], 1));
    assert!(matches!(w.run(SlidingSync::plan_backup), Err(Error::Unsupported(_))));
}
