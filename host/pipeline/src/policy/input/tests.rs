use super::*;
use crate::body::{BackupBody, ComponentBody, Judgement, Tier};
use essrun_artifact::{ArtifactName, ChunkList, Content};
use serde_json::json;
use std::path::Path;

fn component(name: &str, failed: Option<&str>) -> ComponentBody {
    ComponentBody {
        name: name.into(),
        system: "Synapse".into(),
        tier: Tier::Critical,
        loss: String::new(),
        component_version: "0.1.0".into(),
        wasm_sha256: String::new(),
        failed: failed.map(str::to_owned),
        taken_at: 1_767_225_601,
        facts: vec![],
        notes: vec![],
        left_out: vec![],
        sources: BTreeMap::from([("main".to_owned(), "db1:5432/synapse".to_owned())]),
        classes: vec![],
    }
}

fn body() -> BackupBody {
    BackupBody {
        version: 1,
        pipeline: "ess".into(),
        host: "backup1".into(),
        essrun: "0.1.0".into(),
        started_at: 1_767_225_600,
        finished_at: 1_767_225_700,
        components: vec![
            component("synapse", None),
            component("mas", Some("its server was down")),
        ],
        instants: vec![],
        judgement: None,
    }
}

fn record(name: &str, kind: &str, sensitivity: Sensitivity, meta: Value) -> ArtifactRecord {
    ArtifactRecord {
        name: ArtifactName::new(name).unwrap(),
        kind: kind.into(),
        sensitivity,
        meta,
        content: Content {
            bytes: 7,
            chunks: ChunkList::Inline(vec![]),
        },
    }
}

fn backup() -> Backup {
    let stats = BackupStats {
        bytes_read: 3,
        bytes_adopted: 4,
        bytes_stored: 5,
        ..BackupStats::default()
    };
    Backup::of("b1".into(), 0, stats, &Standing::of_result(body()))
}

#[test]
fn a_backup_says_what_the_documentation_says() {
    let records = [
        record(
            "synapse/main/public.users",
            essrun_postgres::dump::KIND_TABLE,
            Sensitivity::Secret,
            json!({"rows": 1200, "bytes": 96000}),
        ),
        record(
            "synapse/media",
            essrun_volume::KIND,
            Sensitivity::Personal,
            json!({"entries": 40, "bytes": 1_048_576}),
        ),
        record("mas/main/public.users", "x", Sensitivity::Secret, json!({})),
        record("synapse2/main/public.users", "x", Sensitivity::Secret, json!({})),
    ];
    assert_eq!(
        serde_json::to_value(backup().with_artifacts(&records)).unwrap(),
        json!({
            "id": "b1",
            "taken_at_unix_seconds": 1_767_225_600,
            "taken_at": "2026-01-01T00:00:00Z",
            "pipeline": "ess",
            "host": "backup1",
            "state": "incomplete",
            "suspect": [],
            "verified_at_unix_seconds": null,
            "last_drill": null,
            "bytes": 7,
            "stored_bytes": 5,
            "components": {"synapse": {
                "system": "Synapse", "version": "0.1.0", "tier": "critical", "taken_at_unix_seconds": 1_767_225_601,
                "artifacts": {
                    "main/public.users": {"kind": "postgres-table", "rows": 1200, "bytes": 96000, "sensitivity": "secret"},
                    "media": {"kind": "volume", "entries": 40, "bytes": 1_048_576, "sensitivity": "personal"},
                },
            }},
            "missing": {"mas": "its server was down"},
        })
    );
    let without = serde_json::to_value(backup()).unwrap();
    assert_eq!(without["components"]["synapse"].get("artifacts"), None);
}

/// Every field of every input stands in docs/POLICY.md, so that none is there that nobody was told of.
#[test]
fn every_field_is_documented() {
    fn fields(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    into.push(key.clone());
                    fields(value, into);
                }
            }
            Value::Array(list) => list.iter().for_each(|v| fields(v, into)),
            _ => {}
        }
    }
    let text = "version = 1\nname = \"ess\"\n[repository]\nurl = \"r\"\n[components.x]\nuse = \"generic\"\n\
                [groups.core]\nconsistent = [\"x\"]\n[policy]\nfiles = [\"x.rego\"]\n";
    let pipeline = Pipeline::parse(Path::new("p.toml"), text).unwrap();
    let common = || Common::new(&pipeline);
    let mut proved = backup();
    proved.last_drill = Some(Drill {
        at_unix_seconds: 1,
        passed: true,
        errors: 0,
        warnings: 1,
    });
    proved.missing.clear();
    let records = [record(
        "synapse/a",
        "x",
        Sensitivity::Secret,
        json!({"rows": 1, "entries": 1}),
    )];
    let proved = proved.with_artifacts(&records);
    let inputs = [
        serde_json::to_value(MayRun {
            common: common(),
            dry_run: false,
            recipients: vec![Recipient {
                id: "age1x".into(),
                kind: kind("age1x"),
                offline: true,
            }],
            components: vec![Component {
                name: "x".into(),
                system: "X".into(),
                version: "1".into(),
                tier: Tier::Bridge,
                third_party: true,
                highest_sensitivity: Sensitivity::Internal,
                classes: vec![Class {
                    pattern: "*".into(),
                    sensitivity: Sensitivity::Internal,
                }],
                databases: vec![],
                volumes: vec![],
            }],
            groups: groups(&pipeline),
            backups: vec![],
        }),
        serde_json::to_value(JudgeResult {
            common: common(),
            asked: vec![],
            result: proved.clone(),
            previous: vec![],
        }),
        serde_json::to_value(Retention {
            common: common(),
            backups: vec![],
        }),
        serde_json::to_value(MayRestore {
            common: common(),
            verb: Verb::Restore,
            drill: false,
            dry_run: false,
            replace: false,
            artifact: None,
            sensitivity: None,
            backup: proved,
            targets: vec![Target {
                component: "x".into(),
                label: "main".into(),
                kind: "volume",
                place: "/x".into(),
                live: true,
            }],
            steps: vec![Step {
                component: "x".into(),
                step: "x".into(),
            }],
            approvals: vec![crate::policy::approvals::Approval {
                name: "x".into(),
                owner: "x".into(),
                text: "x".into(),
                modified_unix_seconds: 1,
            }],
        }),
    ];
    let documentation = include_str!("../../../../../docs/POLICY.md");
    let mut names = Vec::new();
    for input in inputs {
        fields(&input.unwrap(), &mut names);
    }
    assert!(names.len() > 60);
    for name in names {
        // Names of components and artifacts are the fixture's own.
        if !["synapse", "a"].contains(&name.as_str()) {
            let quoted = ["\"NAME\"", ".NAME`", "`NAME`", "`NAME."].map(|q| q.replace("NAME", &name));
            assert!(
                quoted.iter().any(|q| documentation.contains(q)),
                "{name} is not documented"
            );
        }
    }
}

#[test]
fn recipients_are_told_apart() {
    for (text, is) in [
        (
            "age1qqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9ccrydpk8qarc0jqgfzyv",
            "x25519",
        ),
        (
            "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t",
            "plugin",
        ),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI ada@example", "ssh"),
    ] {
        assert_eq!(kind(text), is, "{text}");
    }
}

#[test]
fn what_no_class_covers_is_secret() {
    let class = |pattern: &str, sensitivity| crate::body::Class {
        pattern: pattern.into(),
        sensitivity,
        exposes: String::new(),
        on_leak: vec![],
    };
    let some = [class("main/*", Sensitivity::Internal)];
    assert_eq!(highest(&some), Sensitivity::Secret);
    let all = [
        class("*", Sensitivity::Internal),
        class("main/*", Sensitivity::Personal),
    ];
    assert_eq!(highest(&all), Sensitivity::Personal);
    assert_eq!(highest(&[]), Sensitivity::Secret);
}

#[test]
fn newest_first_whatever_order_they_come_in() {
    let at = |id: &str, taken_at_unix_seconds| Backup {
        id: id.into(),
        taken_at_unix_seconds,
        ..backup()
    };
    let mut all = [at("b", 1), at("c", 2), at("a", 1)];
    newest_first(&mut all);
    assert_eq!(all.map(|b| b.id), ["c", "b", "a"]);
}

#[test]
fn a_judgement_without_words_still_says_something() {
    let judgement = |reasons: &[&str], failure: Option<&str>| Judgement {
        suspect: true,
        reasons: reasons.iter().map(|r| (*r).to_owned()).collect(),
        failure: failure.map(str::to_owned),
    };
    assert_eq!(judgement(&["a"], None).words(), ["a"]);
    assert_eq!(judgement(&[], None).words().len(), 1);
    assert!(judgement(&["a"], Some("it trapped")).words()[0].contains("it trapped"));
}
