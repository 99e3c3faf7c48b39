//! Every rule of the component.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use essrun_component_host_secrets::HostSecrets;
use essrun_guest::Artifact;
use essrun_guest::mock::{Volume, World};
use essrun_guest::prelude::*;
use serde_json::json;

const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";

fn secret(version: &str) -> String {
    let key = STANDARD.encode(format!("ed25519 {version} {SEED}\n"));
    format!(
        "apiVersion: v1\nitems:\n- data:\n    MAS_ENCRYPTION_SECRET: c2VjcmV0\n    SYNAPSE_SIGNING_KEY: {key}\n  kind: Secret\n"
    )
}

const MARKER: &str = "kind: ConfigMap\ndata:\n  MATRIX_STACK_MSC3861: delegated_auth\n";

fn world(files: &[(&str, &str)], kubernetes: &[(&str, &str)]) -> World {
    let volume = |all: &[(&str, &str)]| all.iter().fold(Volume::new(), |v, (path, text)| v.file(path, text));
    World::new()
        .volume("files", volume(files))
        .volume("kubernetes", volume(kubernetes))
}

fn backup(w: &World) -> BackupPlan {
    w.run(HostSecrets::plan_backup).unwrap()
}

fn view(w: &World) -> BackupView {
    BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: backup(w).facts().cloned().collect(),
        artifacts: ["files", "kubernetes"]
            .map(|n| Artifact {
                name: n.into(),
                kind: "volume".into(),
                items: None,
                size_bytes: 1,
            })
            .to_vec(),
    }
}

#[test]
fn names_are_recorded_and_values_never() {
    let s = secret("1");
    let w = world(
        &[("cluster.yml", "passwordsSeed: hidden\n")],
        &[("secret.yaml", &s), ("cm.yaml", MARKER)],
    );
    let view = view(&w);
    assert_eq!(view.fact("deployment-marker"), Some("delegated_auth"));
    assert_eq!(view.fact("secret/kubernetes/MAS_ENCRYPTION_SECRET"), Some("present"));
    assert_eq!(
        view.fact("signing-key/kubernetes/ed25519:1"),
        Some("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo")
    );
    for fact in &view.facts {
        for hidden in [SEED, "c2VjcmV0", "hidden"] {
            assert!(!fact.value.contains(hidden) && !fact.key.contains(hidden));
        }
    }
    assert!(
        backup(&w).notes().all(|n| n.severity == Severity::Info),
        "{:#?}",
        backup(&w)
    );
    let findings = w.run(|| HostSecrets::verify(&view)).unwrap();
    assert!(
        findings.iter().all(|f| f.severity == Severity::Info) && findings.len() == 3,
        "{findings:#?}"
    );
}

#[test]
fn json_is_understood_too() {
    let key = STANDARD.encode(format!("ed25519 1 {SEED}"));
    let json = format!(
        "{{\n  \"data\": {{\n    \"SYNAPSE_SIGNING_KEY\": \"{key}\",\n    \"MAS_ENCRYPTION_SECRET\": \"eA==\"\n  }}\n}}\n"
    );
    let w = world(&[], &[("s.json", &json), ("cm.yaml", MARKER)]);
    assert!(view(&w).fact("signing-key/kubernetes/ed25519:1").is_some());
}

/// As a pod sees a mounted Secret and ConfigMap.
#[test]
fn one_file_a_key_is_understood_too() {
    let key = format!("ed25519 1 {SEED}\n");
    let w = world(
        &[],
        &[
            ("generated/SYNAPSE_SIGNING_KEY", &key),
            ("generated/MAS_ENCRYPTION_SECRET", "hidden"),
            ("markers/MATRIX_STACK_MSC3861", "delegated_auth\n"),
        ],
    );
    let view = view(&w);
    assert_eq!(view.fact("deployment-marker"), Some("delegated_auth"));
    assert_eq!(view.fact("secret/kubernetes/MAS_ENCRYPTION_SECRET"), Some("present"));
    assert!(view.fact("signing-key/kubernetes/ed25519:1").is_some());
    assert!(view.facts.iter().all(|f| !f.value.contains("hidden")), "{view:#?}");
    assert!(
        backup(&w).notes().all(|n| n.severity == Severity::Info),
        "{:#?}",
        backup(&w)
    );
}

#[test]
fn the_weak_generation_is_a_finding() {
    for w in [
        world(&[], &[("secret.yaml", &secret("0")), ("cm.yaml", MARKER)]),
        world(
            &[("example.org.signing.key", &format!("ed25519 0 {SEED}\n"))],
            &[("s", &secret("1")), ("cm", MARKER)],
        ),
    ] {
        assert!(
            backup(&w)
                .notes()
                .any(|n| n.severity == Severity::Warning && n.text.contains("CVE-2026-24044"))
        );
        let findings = w.run(|| HostSecrets::verify(&view(&w))).unwrap();
        assert!(
            findings
                .iter()
                .any(|f| f.check == "host-secrets-signing-key-generation" && f.severity == Severity::Warning)
        );
    }
}

#[test]
fn what_is_missing_is_said_or_refused() {
    let w = world(&[("a", "x")], &[("b", "x")]);
    let plan = backup(&w);
    for text in ["MATRIX_STACK_MSC3861", "SYNAPSE_SIGNING_KEY", "MAS_ENCRYPTION_SECRET"] {
        assert!(
            plan.notes()
                .any(|n| n.severity == Severity::Warning && n.text.contains(text)),
            "{text}"
        );
    }
    let w = w.setting("required", json!(["a", "secrets.yml"]));
    assert!(
        w.run(HostSecrets::plan_backup)
            .unwrap_err()
            .text()
            .contains("secrets.yml")
    );
    assert!(
        World::new()
            .run(HostSecrets::plan_backup)
            .unwrap_err()
            .text()
            .contains("nothing to take")
    );
    // A forged marker does not become a fact.
    let w = world(&[], &[("cm", "MATRIX_STACK_MSC3861: <script>\n"), ("s", &secret("1"))]);
    assert_eq!(view(&w).fact("deployment-marker"), None);
}

#[test]
fn what_was_lost_is_found() {
    let s = secret("1");
    let v = view(&world(
        &[("cluster.yml", "x")],
        &[("secret.yaml", &s), ("cm.yaml", MARKER)],
    ));
    let bad = |w: World, name: &str| {
        let findings = w.run(|| HostSecrets::verify(&v)).unwrap();
        assert!(
            findings
                .iter()
                .any(|f| f.check == name && f.severity == Severity::Error),
            "{name}: {findings:#?}"
        );
    };
    bad(
        world(&[("other", "x")], &[("secret.yaml", &s), ("cm.yaml", MARKER)]),
        "host-secrets-files",
    );
    bad(
        world(
            &[("cluster.yml", "x")],
            &[("secret.yaml", "data:\n"), ("cm.yaml", MARKER)],
        ),
        "host-secrets-kubernetes",
    );
    let other = s.replace(
        &STANDARD.encode(format!("ed25519 1 {SEED}\n")),
        &STANDARD.encode("ed25519 1 TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs"),
    );
    bad(
        world(&[("cluster.yml", "x")], &[("secret.yaml", &other), ("cm.yaml", MARKER)]),
        "host-secrets-signing-key",
    );
}

#[test]
fn the_order_is_in_the_plan() {
    let w = world(&[("a", "x")], &[("s", &secret("1")), ("cm", MARKER)]);
    let plan = w.run(|| HostSecrets::plan_restore(&view(&w))).unwrap();
    assert!(plan.notes().any(|n| n.text.contains("BEFORE the chart is installed")));
    assert_eq!(HostSecrets::describe().tier, Tier::Critical);
}
