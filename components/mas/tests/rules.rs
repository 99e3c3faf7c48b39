//! Every rule of the component, on a small MAS made of answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::Aead};
use essrun_component_mas::Mas;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep, db::Cell};

const KEY: [u8; 32] = [7; 32];

fn sealed(key: [u8; 32], text: &str) -> String {
    let nonce = [9u8; 12];
    let mut all = nonce.to_vec();
    all.extend(
        ChaCha20Poly1305::new(&key.into())
            .encrypt(&nonce.into(), text.as_bytes())
            .unwrap(),
    );
    STANDARD.encode(all)
}

/// Users, and devices of users.
type Side = (Vec<&'static str>, Vec<(&'static str, &'static str)>);

#[derive(Clone)]
struct Small {
    migrations: (i64, i64, i64),
    queue: Vec<(&'static str, i64)>,
    client_secrets: Vec<String>,
    config: Option<String>,
    mas: Side,
    synapse: Option<Side>,
    users: u64,
    providers: Vec<&'static str>,
    settings: Vec<(&'static str, serde_json::Value)>,
}

/// One id as config.yaml and as the database write it.
const ULID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
const UUID: &str = "01563e3a-b5d3-d676-4c61-efb99302bd5b";

impl Small {
    fn new() -> Self {
        let users = vec!["alice", "bob"];
        let devices = vec![("alice", "AAA"), ("bob", "BBB")];
        Small {
            migrations: (167, 20_260_801_000_000, 0),
            queue: vec![
                ("cleanup-queue-jobs", 1),
                ("deactivate-user", 2),
                ("send-account-recovery-email", 1),
            ],
            client_secrets: vec![sealed(KEY, "s1"), sealed(KEY, "s2")],
            config: Some(format!(
                "secrets:\n  encryption: \"{}\"\nupstream_oauth2:\n  providers:\n    - id: {ULID}\n      scope: openid\n",
                hex::encode(KEY)
            )),
            providers: vec![UUID],
            mas: (users.clone(), devices.clone()),
            synapse: Some((users, devices)),
            users: 2,
            settings: vec![],
        }
    }

    fn world(&self) -> World {
        let rows = |keys: Vec<(&'static str, &'static str)>| -> Vec<Vec<Cell>> {
            keys.into_iter().map(|(a, b)| vec![a.into(), b.into()]).collect()
        };
        let users = |names: &[&'static str]| rows(names.iter().map(|n| (*n, "")).collect());
        let mut main = Database::postgres().locale("UTF8", "en_US.utf8", "en_US.utf8");
        for table in [
            "user_sessions",
            "compat_sessions",
            "oauth2_sessions",
            "_sqlx_migrations",
            "queue_jobs",
            "queue_leader",
        ] {
            main = main.table(&format!("public.{table}"), &["id"], 1);
        }
        let (count, newest, failed) = self.migrations;
        let (queue, secrets) = (self.queue.clone(), self.client_secrets.clone());
        let providers: Vec<Vec<Cell>> = self.providers.iter().map(|id| vec![(*id).into()]).collect();
        let (mas_users, mas_devices) = (users(&self.mas.0), rows(self.mas.1.clone()));
        main = main
            .table("public.users", &["user_id", "username"], self.users)
            .table(
                "public.oauth2_clients",
                &["encrypted_client_secret"],
                self.client_secrets.len() as u64,
            )
            .table(
                "public.upstream_oauth_providers",
                &["upstream_oauth_provider_id"],
                self.providers.len() as u64,
            )
            .answer_with(move |sql, _| {
                sql.starts_with("SELECT upstream_oauth_provider_id::text")
                    .then(|| Ok(providers.clone()))
            })
            .answer(
                "_sqlx_migrations",
                &[&[Cell::Integer(count), Cell::Integer(newest), Cell::Integer(failed)]],
            )
            .answer_with(move |sql, _| {
                sql.starts_with("SELECT queue_name").then(|| {
                    Ok(queue
                        .iter()
                        .map(|(q, n)| vec![(*q).into(), Cell::Integer(*n)])
                        .collect())
                })
            })
            .answer_with(move |sql, _| {
                sql.starts_with("SELECT encrypted_client_secret")
                    .then(|| Ok(secrets.iter().map(|s| vec![s.as_str().into()]).collect()))
            })
            .answer_with(move |sql, _| {
                sql.contains("(SELECT username AS localpart")
                    .then(|| Ok(mas_users.clone()))
            })
            .answer_with(move |sql, _| {
                sql.contains("(SELECT u.username AS localpart")
                    .then(|| Ok(mas_devices.clone()))
            })
            .answer(
                "count(*) FROM ONLY \"public\".\"_sqlx_migrations\"",
                &[&[Cell::Integer(0), Cell::Integer(1)]],
            );
        let mut world = World::new().database("main", main);
        if let Some((names, devices)) = &self.synapse {
            let (names, devices) = (users(names), rows(devices.clone()));
            let mut synapse = Database::postgres();
            for table in ["users", "devices", "dehydrated_devices"] {
                synapse = synapse.table(&format!("public.{table}"), &["id"], 1);
            }
            world = world.database(
                "synapse",
                synapse
                    .answer_with(move |sql, _| {
                        sql.contains("(SELECT split_part(substr(name")
                            .then(|| Ok(names.clone()))
                    })
                    .answer_with(move |sql, _| {
                        sql.contains("(SELECT split_part(substr(d.user_id")
                            .then(|| Ok(devices.clone()))
                    }),
            );
        }
        if let Some(text) = &self.config {
            world = world.volume(
                "config",
                Volume::new().file("config.yaml", text).file("key", hex::encode(KEY)),
            );
        }
        for (name, value) in &self.settings {
            world = world.setting(name, value.clone());
        }
        world
    }

    fn backup(&self) -> BackupPlan {
        self.world().run(Mas::plan_backup).unwrap()
    }

    fn view(&self) -> BackupView {
        let table = |name: &str, n| Artifact {
            name: format!("main/public.{name}"),
            kind: "postgres-table".into(),
            items: Some(n),
            size_bytes: 1,
        };
        let mut artifacts = vec![table("users", self.users), table("user_sessions", 1)];
        if self.config.is_some() {
            artifacts.push(Artifact {
                name: "config".into(),
                kind: "volume".into(),
                items: Some(1),
                size_bytes: 1,
            });
        }
        BackupView {
            id: "b".into(),
            taken_at_unix_seconds: 0,
            component_version: "0.1.0".into(),
            facts: self.backup().facts().cloned().collect(),
            artifacts,
        }
    }

    fn verify(&self, view: &BackupView) -> Vec<Finding> {
        self.world().run(|| Mas::verify(view)).unwrap()
    }
}

fn damaged(check: &str, severity: Severity, damage: impl FnOnce(&mut Small)) -> Finding {
    let small = Small::new();
    let view = small.view();
    let mut after = small;
    damage(&mut after);
    let findings = after.verify(&view);
    let found = findings
        .iter()
        .find(|f| f.check == check)
        .unwrap_or_else(|| panic!("{check}: {findings:#?}"));
    assert_eq!(found.severity, severity, "{found:?}");
    assert!(!found.remedy.is_empty());
    found.clone()
}

#[test]
fn a_whole_restore_passes() {
    let small = Small::new();
    let findings = small.verify(&small.view());
    assert!(findings.iter().all(|f| f.severity == Severity::Info), "{findings:#?}");
    assert!(findings.len() >= 8);
}

#[test]
fn the_unlogged_lease_is_left_out_and_nothing_else() {
    let plan = Small::new().backup();
    let dump = plan.steps.iter().find_map(|s| match s {
        BackupStep::DumpDatabase(d) => Some(d.clone()),
        _ => None,
    });
    let tables: Vec<String> = dump.unwrap().leave_out_data.into_iter().map(|r| r.table).collect();
    assert_eq!(tables, ["public.queue_leader"]);
}

#[test]
fn migrations_lost_or_others() {
    damaged("mas-migrations", Severity::Error, |s| s.migrations = (0, 0, 0));
    damaged("mas-migrations", Severity::Error, |s| s.migrations.1 += 1);
    damaged("mas-migrations", Severity::Warning, |s| s.migrations.2 = 1);
}

#[test]
fn rows_lost() {
    damaged("row-counts-main", Severity::Error, |s| s.users = 1);
}

#[test]
fn the_encryption_secret_must_open_what_it_should() {
    damaged("mas-encryption-secret", Severity::Error, |s| {
        s.config = Some(format!("secrets:\n  encryption: {}\n", hex::encode([8u8; 32])));
    });
    let f = damaged("mas-encryption-secret", Severity::Warning, |s| {
        s.config = Some("secrets:\n  encryption: short\n".into())
    });
    assert!(f.message.contains("32 bytes") && !f.message.contains("short"));
    damaged("mas-encryption-secret", Severity::Warning, |s| s.config = None);
    damaged("mas-encryption-secret", Severity::Error, |s| {
        s.client_secrets[1] = "not base64 %".into()
    });
    // In a file of its own.
    let mut small = Small::new();
    small.config = Some("secrets:\n  encryption_file: /x\n".into());
    small.settings = vec![("encryption-file", "key".into())];
    assert_eq!(small.view().fact("encryption"), Some("opens 2"));
    // What did not open before is no fault of the restore.
    let mut small = Small::new();
    small.client_secrets.push(sealed([1; 32], "x"));
    let plan = small.backup();
    assert!(plan.notes().any(|n| n.text.contains("does not open 1 of 3")));
    let findings = small.verify(&small.view());
    assert!(
        findings
            .iter()
            .any(|f| f.check == "mas-encryption-secret" && f.severity == Severity::Warning)
    );
    // Nothing it opened is recorded.
    assert!(
        small
            .view()
            .facts
            .iter()
            .all(|f| !f.value.contains(&hex::encode(KEY)) && f.value != "s1")
    );
}

#[test]
fn waiting_jobs_are_shown_and_can_be_held_back() {
    let mut small = Small::new();
    let view = small.view();
    assert_eq!(view.fact("queue/deactivate-user"), Some("2"));
    let plan = small.world().run(|| Mas::plan_restore(&view)).unwrap();
    let note = plan.notes().find(|n| n.text.contains("deactivate-user")).unwrap();
    assert_eq!(note.severity, Severity::Warning);
    assert!(note.text.contains("hold-back"));
    assert!(!plan.steps.iter().any(|s| matches!(s, RestoreStep::RunSql(_))));

    small.settings = vec![("hold-back", serde_json::json!(["send-*", "deactivate-user"]))];
    let plan = small.world().run(|| Mas::plan_restore(&view)).unwrap();
    let sql: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|s| match s {
            RestoreStep::RunSql(r) => Some(r.sql.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(sql.len(), 2);
    assert!(sql[0].ends_with("queue_name LIKE 'send-%'") && sql[1].ends_with("queue_name LIKE 'deactivate-user'"));
    let restored = plan
        .steps
        .iter()
        .position(|s| matches!(s, RestoreStep::RestoreDatabase(_)));
    let first_sql = plan.steps.iter().position(|s| matches!(s, RestoreStep::RunSql(_)));
    assert!(restored < first_sql);
}

#[test]
fn hostile_settings_do_not_become_sql() {
    for value in ["x'; DROP TABLE users; --", "", "A", "a_b%"] {
        let mut small = Small::new();
        small.settings = vec![("hold-back", serde_json::json!([value]))];
        let error = small.world().run(Mas::plan_backup).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidSetting(t) if t.contains("hold-back")),
            "{error:?}"
        );
    }
}

#[test]
fn users_on_one_side_only() {
    let f = damaged("mas-synapse-users-missing-in-mas", Severity::Warning, |s| {
        s.synapse.as_mut().unwrap().0.push("carol");
    });
    assert!(f.message.contains("1 (carol)") && f.message.contains("was 0"));
    let f = damaged("mas-synapse-users-missing-in-synapse", Severity::Warning, |s| {
        s.synapse.as_mut().unwrap().0.remove(0);
    });
    assert!(f.message.contains("alice") && f.remedy.contains("provision-all-users"));
}

#[test]
fn devices_the_next_sync_would_delete_are_counted() {
    let f = damaged("mas-synapse-devices-to-be-deleted", Severity::Warning, |s| {
        let devices = &mut s.synapse.as_mut().unwrap().1;
        devices.insert(1, ("alice", "NEW"));
        devices.insert(0, ("aaron", "X"));
    });
    assert!(f.message.contains("2 (aaron X, alice NEW)"), "{}", f.message);
    damaged("mas-synapse-devices-missing-in-synapse", Severity::Warning, |s| {
        s.synapse.as_mut().unwrap().1.pop();
    });
}

#[test]
fn the_gap_between_the_two_is_said_with_what_to_do() {
    let small = Small::new();
    let found = |how: &str, ms: i64| {
        let mut view = small.view();
        for (key, value) in [("how", how.to_owned()), ("gap-ms", ms.to_string())] {
            view.facts.push(Fact {
                key: format!("instant/synapse/{key}"),
                value,
            });
        }
        let plan = small.world().run(|| Mas::plan_restore(&view)).unwrap();
        let found = small.verify(&view);
        let gap = found.iter().find(|f| f.check == "mas-synapse-gap").unwrap().clone();
        let note = plan.notes().find(|n| n.text.starts_with(&gap.message)).unwrap();
        assert_eq!(
            (note.severity, note.text.contains("mas-cli")),
            (gap.severity, !gap.remedy.is_empty())
        );
        gap
    };
    for how in ["same-instant", "fenced"] {
        let gap = found(how, 3);
        assert_eq!((gap.severity, gap.remedy.as_str()), (Severity::Info, ""));
    }
    for (how, ms, said, to_do) in [
        (
            "ordered",
            412,
            "412 ms after Synapse's",
            "mas-cli manage provision-all-users",
        ),
        ("apart", 3_930_000, "65 min after Synapse's", "consistent"),
        ("ordered", -61_700, "61.7 s BEFORE Synapse's", "hold-back"),
        (
            "live",
            -180_000_000,
            "2 d older than Synapse's",
            "mas-cli manage register-user",
        ),
    ] {
        let gap = found(how, ms);
        assert_eq!(gap.severity, Severity::Warning);
        assert!(gap.message.contains(said) && gap.remedy.contains(to_do), "{gap:?}");
    }
    assert!(!small.verify(&small.view()).iter().any(|f| f.check == "mas-synapse-gap"));
}

/// What the host adds about a pair that was seen in the snapshots it is restored from.
fn restored_together(mut view: BackupView, how: &str) -> BackupView {
    for (key, value) in [("how", how), ("gap-ms", "0"), ("taken-as", "synapse/main")] {
        view.facts.push(Fact {
            key: format!("instant/synapse/{key}"),
            value: value.into(),
        });
    }
    view
}

#[test]
fn a_pair_of_one_instant_must_differ_as_it_did() {
    let mut small = Small::new();
    small.synapse.as_mut().unwrap().1.push(("bob", "OLD"));
    let found = |after: &Small, view: &BackupView, check: &str| {
        let findings = after.verify(view);
        findings.into_iter().find(|f| f.check == check).unwrap()
    };
    for how in ["same-instant", "fenced"] {
        let view = restored_together(small.view(), how);
        let as_it_was = found(&small, &view, "mas-synapse-devices-to-be-deleted");
        assert_eq!(as_it_was.severity, Severity::Warning, "{as_it_was:?}");
        // One device more, one less, a user on one side: each a fault of the restore.
        let mut more = small.clone();
        more.synapse.as_mut().unwrap().1.push(("bob", "ZZZ"));
        let f = found(&more, &view, "mas-synapse-devices-to-be-deleted");
        assert_eq!(f.severity, Severity::Error);
        assert!(
            f.message.contains("2 (bob OLD, bob ZZZ); it was 1") && f.remedy.contains("restore both again"),
            "{f:?}"
        );
        let mut less = small.clone();
        less.synapse.as_mut().unwrap().1.pop();
        let f = found(&less, &view, "mas-synapse-devices-to-be-deleted");
        assert_eq!(f.severity, Severity::Error);
        assert!(f.message.contains("none; it was 1"), "{f:?}");
        let mut user = small.clone();
        user.mas.0.push("carol");
        let f = found(&user, &view, "mas-synapse-users-missing-in-synapse");
        assert_eq!(f.severity, Severity::Error);
        // Where it was not counted in these snapshots, or they are not of one instant, it can only be told.
        let mut unsure = view.clone();
        unsure.facts.retain(|f| !f.key.ends_with("/taken-as"));
        for view in [unsure, restored_together(small.view(), "ordered")] {
            let f = found(&more, &view, "mas-synapse-devices-to-be-deleted");
            assert_eq!(f.severity, Severity::Warning, "{f:?}");
        }
    }
}

#[test]
fn a_synapse_that_is_not_there_is_not_called_ungranted() {
    let mut small = Small::new();
    small.synapse = None;
    let mut view = small.view();
    view.facts.push(Fact {
        key: "instant/synapse/how".into(),
        value: "absent".into(),
    });
    let findings = small.verify(&view);
    for (check, said) in [
        ("mas-synapse-gap", "neither restored with this one nor there"),
        ("mas-synapse-pair", "Synapse's database is not there"),
    ] {
        let f = findings.iter().find(|f| f.check == check).unwrap();
        assert_eq!(f.severity, Severity::Warning);
        assert!(f.message.contains(said) && !f.message.contains("granted"), "{f:?}");
    }
    let plan = small.world().run(|| Mas::plan_restore(&view)).unwrap();
    assert!(
        plan.notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains("nor there: restore both"))
    );
}

#[test]
fn providers_the_database_does_not_know() {
    let f = damaged("mas-upstream-providers", Severity::Warning, |s| s.providers.clear());
    assert!(
        f.message.contains(ULID) && f.remedy.contains("upstream_oauth2"),
        "{f:?}"
    );
    let f = damaged("mas-upstream-providers", Severity::Warning, |s| {
        s.config = s.config.take().map(|text| text.replace(ULID, "nonsense"));
    });
    assert!(f.message.contains("nonsense"));
}

#[test]
fn the_version_is_kept_and_told() {
    let mut small = Small::new();
    assert_eq!(small.view().fact("version"), None);
    small.settings = vec![("version", "1.22.0".into())];
    let view = small.view();
    assert_eq!(view.fact("version"), Some("1.22.0"));
    let findings = small.verify(&view);
    let f = findings.iter().find(|f| f.check == "mas-migrations").unwrap();
    assert!(f.message.contains("start MAS 1.22.0, which was running"), "{f:?}");
    small.settings = vec![("version", "1.22\n0".into())];
    let error = small.world().run(Mas::plan_backup).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidSetting(t) if t.contains("version")),
        "{error:?}"
    );
}

#[test]
fn rows_out_of_order_are_an_error_not_nonsense() {
    let small = Small::new();
    let view = small.view();
    let mut wrong = small;
    wrong.synapse.as_mut().unwrap().0 = vec!["bob", "alice"];
    let error = wrong.world().run(|| Mas::verify(&view)).unwrap_err();
    assert!(error.text().contains("out of order"));
}

#[test]
fn without_the_peer_it_is_said_that_nothing_was_compared() {
    let mut small = Small::new();
    small.synapse = None;
    let findings = small.verify(&small.view());
    assert!(
        findings
            .iter()
            .any(|f| f.check == "mas-synapse-pair" && f.severity == Severity::Warning)
    );
}

#[test]
fn foreign_databases_are_refused() {
    let world = World::new().database("main", Database::postgres().table("public.users", &["id"], 1));
    assert!(matches!(world.run(Mas::plan_backup), Err(Error::Unsupported(_))));
}

#[test]
fn a_leak_revokes_tokens_and_ends_no_session() {
    let small = Small::new();
    let plan = small.world().run(|| Mas::respond(&small.view())).unwrap();
    let mut n = 0;
    for step in &plan.steps {
        if let IncidentStep::RunSql(s) = step {
            n += 1;
            assert!(!s.sql.contains("finished_at") && s.count_sql.starts_with("SELECT count(*) FROM public."));
        }
    }
    assert_eq!(n, 5);
    assert!(
        plan.steps
            .iter()
            .any(|s| matches!(s, IncidentStep::Advise(a) if a.text.contains("matrix.secret")))
    );
}
