//! Every rule of the component, on a small Sydent made of answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use essrun_component_sydent::Sydent;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep, db::Cell};
use sha2::{Digest, Sha256};

#[derive(Clone)]
struct Small {
    version: i64,
    sequence: i64,
    tokens: u64,
    pepper: Option<&'static str>,
    hash: Option<String>,
    conf: &'static str,
}

const CONF: &str = "[crypto]\ned25519.signingkey = ed25519 0 nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A\n";

impl Small {
    fn new() -> Self {
        Small {
            version: 5,
            sequence: 9,
            tokens: 3,
            pepper: Some("pep"),
            hash: Some(URL_SAFE_NO_PAD.encode(Sha256::digest("a@b.c email pep"))),
            conf: CONF,
        }
    }

    fn world(&self) -> World {
        let pepper: Cell = self.pepper.into();
        let database = Database::sqlite()
            .table("main.local_threepid_associations", &["address"], 1)
            .table("main.hashing_metadata", &["lookup_pepper"], 1)
            .table("main.tokens", &["token"], self.tokens)
            .answer("main.sqlite_schema", &[&[1i64.into()]])
            .answer("pragma_user_version", &[&[self.version.into()]])
            .answer(
                "FROM main.sqlite_sequence",
                &[&["local_threepid_associations".into(), self.sequence.into()]],
            )
            .answer("SELECT lookup_pepper", &[&[pepper]])
            .answer(
                "SELECT address",
                &[&["a@b.c".into(), "email".into(), self.hash.clone().into()]],
            );
        World::new()
            .database("main", database)
            .volume("config", Volume::new().file("sydent.conf", self.conf))
    }

    fn view(&self) -> BackupView {
        let artifact = |name: &str, kind: &str| Artifact {
            name: name.into(),
            kind: kind.into(),
            items: None,
            size_bytes: 1,
        };
        BackupView {
            id: "b".into(),
            taken_at_unix_seconds: 0,
            component_version: String::new(),
            facts: self
                .world()
                .run(Sydent::plan_backup)
                .unwrap()
                .facts()
                .cloned()
                .collect(),
            artifacts: vec![artifact("main", "sqlite"), artifact("config", "volume")],
        }
    }
}

fn damaged(check: &str, damage: impl FnOnce(&mut Small)) -> Finding {
    let mut small = Small::new();
    let view = small.view();
    damage(&mut small);
    let findings = small.world().run(|| Sydent::verify(&view)).unwrap();
    let found = findings
        .iter()
        .find(|f| f.check == check)
        .unwrap_or_else(|| panic!("{check}: {findings:#?}"));
    assert!(
        found.severity == Severity::Error && !found.remedy.is_empty(),
        "{found:?}"
    );
    found.clone()
}

#[test]
fn a_whole_restore_passes_and_the_file_is_copied_not_dumped() {
    let small = Small::new();
    let plan = small.world().run(Sydent::plan_backup).unwrap();
    assert!(plan.steps.iter().any(|s| matches!(s, BackupStep::CopySqlite(_))));
    assert!(!plan.steps.iter().any(|s| matches!(s, BackupStep::DumpDatabase(_))));
    let findings = small.world().run(|| Sydent::verify(&small.view())).unwrap();
    assert!(findings.iter().all(|f| f.severity == Severity::Info), "{findings:#?}");
    assert!(findings.len() >= 5);
}

#[test]
fn a_dump_style_copy_is_found() {
    // What loading `.dump` leaves behind: no user_version, no hashes.
    damaged("sydent-user-version", |s| s.version = 0);
    damaged("sydent-lookup-hashes", |s| s.hash = None);
    // And refused as a source.
    let mut small = Small::new();
    small.version = 0;
    let error = small.world().run(Sydent::plan_backup).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(t) if t.contains("user_version")));
}

#[test]
fn other_violations() {
    damaged("sydent-sequences", |s| s.sequence = 8);
    damaged("sydent-lookup-hashes", |s| s.pepper = Some("other"));
    damaged("sydent-lookup-hashes", |s| s.pepper = None);
    damaged("rows-as-recorded-main", |s| s.tokens = 0);
    damaged("sydent-signing-key", |s| s.conf = "[crypto]\ned25519.signingkey =\n");
    let f = damaged("sydent-signing-key", |s| {
        s.conf = "ed25519.signingkey = ed25519 0 TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs";
    });
    assert!(!f.message.contains("TM0Imyj"));
}

#[test]
fn an_empty_key_is_said_before_it_is_too_late() {
    let mut small = Small::new();
    small.conf = "[crypto]\ned25519.signingkey =\n";
    let plan = small.world().run(Sydent::plan_backup).unwrap();
    assert!(plan.notes().any(|n| n.text.contains("has no ed25519.signingkey")));
}

#[test]
fn postgres_is_dumped_and_tokens_end_after_a_leak() {
    let database = ["local_threepid_associations", "hashing_metadata", "tokens"]
        .iter()
        .fold(Database::postgres(), |d, t| d.table(&format!("public.{t}"), &["x"], 1));
    let plan = World::new()
        .database("main", database)
        .run(Sydent::plan_backup)
        .unwrap();
    assert!(plan.steps.iter().any(|s| matches!(s, BackupStep::DumpDatabase(_))));
    let small = Small::new();
    let plan = small.world().run(|| Sydent::respond(&small.view())).unwrap();
    assert!(matches!(&plan.steps[0], IncidentStep::RunSql(s) if s.sql.starts_with("DELETE FROM main.tokens")));
}
