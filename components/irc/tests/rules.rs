//! Every rule of the component, on a small IRC bridge made of answers, with real RSA keys made here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use essrun_component_irc::Irc;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, db::Cell};
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rsa::rand_core::{CryptoRng, Error as RandError, RngCore, impls};
use rsa::{Oaep, RsaPrivateKey};
use sha1_digest10::Sha1;

/// Numbers that are the same in every run: this is a test, and its keys protect nothing.
struct Counted(u64);

impl RngCore for Counted {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }
    fn next_u64(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ (self.0 >> 29)
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        impls::fill_bytes_via_next(self, dest);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), RandError> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for Counted {}

fn key(seed: u64) -> RsaPrivateKey {
    RsaPrivateKey::new(&mut Counted(seed), 1024).unwrap()
}

fn sealed(key: &RsaPrivateKey, text: &str) -> String {
    STANDARD.encode(
        key.to_public_key()
            .encrypt(&mut Counted(1), Oaep::new::<Sha1>(), text.as_bytes())
            .unwrap(),
    )
}

fn world(pem: Option<String>, passwords: Vec<String>) -> World {
    let database = Database::postgres()
        .table("public.rooms", &["id"], 2)
        .table("public.matrix_users", &["id"], 2)
        .table("public.client_config", &["password"], passwords.len() as u64)
        .answer_with(move |sql, _| {
            sql.starts_with("SELECT password")
                .then(|| Ok(passwords.iter().map(|p| vec![Cell::Text(p.clone())]).collect()))
        });
    let mut volume = Volume::new().file(
        "appservice-registration-irc.yaml",
        "id: irc\nas_token: a\nhs_token: \"b\"\n",
    );
    if let Some(pem) = pem {
        volume = volume.file("keys/passkey.pem", pem);
    }
    World::new().database("main", database).volume("config", volume)
}

fn view() -> BackupView {
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
        facts: vec![],
        artifacts: vec![
            artifact("main/public.client_config", "postgres-table"),
            artifact("main/public.provisioner_sessions", "postgres-table"),
            artifact("config", "volume"),
        ],
    }
}

fn passkey(world: &World) -> Finding {
    world
        .run(|| Irc::verify(&view()))
        .unwrap()
        .into_iter()
        .find(|f| f.check == "irc-passkey")
        .unwrap()
}

#[test]
fn every_stored_password_must_open() {
    let (good, other) = (key(11), key(12));
    let pem = good.to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
    let stored = vec![sealed(&good, "salt pässword"), sealed(&good, "salt two words")];

    let finding = passkey(&world(Some(pem.clone()), stored.clone()));
    assert!(
        finding.severity == Severity::Info && finding.message.contains("opens 2 of 2"),
        "{finding:?}"
    );
    let old = good.to_pkcs1_pem(LineEnding::LF).unwrap().to_string();
    assert_eq!(passkey(&world(Some(old), stored.clone())).severity, Severity::Info);

    let wrong = other.to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
    for bad in [
        passkey(&world(Some(wrong), stored.clone())),
        passkey(&world(Some("no pem".into()), stored.clone())),
        passkey(&world(None, stored.clone())),
        passkey(&world(
            Some(pem.clone()),
            vec![stored[0].clone(), sealed(&other, "salt x")],
        )),
        passkey(&world(Some(pem.clone()), vec![stored[0].clone(), "c2hvcnQ=".into()])),
        passkey(&world(Some(pem.clone()), vec!["not base64 %".into()])),
    ] {
        assert!(
            bad.severity == Severity::Error && bad.message.contains("refuses to start"),
            "{bad:?}"
        );
        assert!(!bad.message.contains("pässword"));
    }
    assert_eq!(passkey(&world(None, vec![])).severity, Severity::Info);

    // Only some are opened, all are measured: the bridge will open all, so that is no pass.
    let limited = passkey(&world(Some(pem.clone()), stored.clone()).setting("passwords-opened", 1));
    assert!(
        limited.severity == Severity::Warning
            && limited.message.contains("opens 1 of 2")
            && limited.remedy.contains("passwords-opened = 2"),
        "{limited:?}"
    );
    let short = vec![stored[0].clone(), "c2hvcnQ=".into()];
    let limited = world(Some(pem), short).setting("passwords-opened", 1);
    assert_eq!(passkey(&limited).severity, Severity::Error);
}

#[test]
fn what_does_not_open_is_said_at_backup_time() {
    let pem = key(12).to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
    let plan = world(Some(pem), vec![sealed(&key(11), "s p")])
        .run(Irc::plan_backup)
        .unwrap();
    assert!(
        plan.notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains("does not open 1 of 1"))
    );
}

#[test]
fn the_registration_is_looked_for() {
    let find = |w: &World| {
        let findings = w.run(|| Irc::verify(&view())).unwrap();
        findings
            .into_iter()
            .find(|f| f.check == "bridge-registration")
            .unwrap()
            .severity
    };
    assert_eq!(find(&world(None, vec![])), Severity::Info);
    assert_eq!(
        find(&world(None, vec![]).setting("registration-file", "nothing.yaml")),
        Severity::Warning
    );
}

#[test]
fn addresses_given_twice_and_passwords_after_a_leak_are_spoken_of() {
    let w = world(None, vec![]);
    let plan = w.run(|| Irc::plan_restore(&view())).unwrap();
    assert!(plan.notes().any(|n| n.text.contains("ipv6_counter")));
    let plan = w.run(|| Irc::respond(&view())).unwrap();
    let sql: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|s| match s {
            IncidentStep::RunSql(s) => Some(s.sql.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        sql,
        [
            "UPDATE public.client_config SET password = NULL WHERE password IS NOT NULL",
            "DELETE FROM public.provisioner_sessions WHERE TRUE"
        ]
    );
}
