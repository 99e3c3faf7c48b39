//! Every rule of the component, on a small Synapse made of answers: first that a whole one passes, then that each
//! violation is found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_synapse::Synapse;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep, IncidentStep, InspectError, NeedKind, PathRule, db::Cell, db::TableKind};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The RFC 8032 test vector 1: seed and public key.
const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo";
/// SHA-256 of `hello media`.
const HELLO: &str = "d28d2954ff97ac68052c4beff8c84ad0960d1408540fc486256cdd7cd68dd1fe";

/// What a test may change about the small Synapse.
#[derive(Clone)]
struct Small {
    rows: BTreeMap<&'static str, u64>,
    /// sequence → (last, numbers in the order of its tables and position)
    streams: BTreeMap<&'static str, Vec<i64>>,
    foreign_keys: Vec<(&'static str, &'static str)>,
    versions: (i64, i64),
    locale: [&'static str; 3],
    media: Vec<(&'static str, Option<i64>, Option<&'static str>, bool)>,
    files: Vec<(&'static str, &'static [u8])>,
    key_file: String,
    settings: Vec<(&'static str, serde_json::Value)>,
    without: Vec<&'static str>,
    grant_config: bool,
    grant_media: bool,
    media_owner: (u32, u32),
    /// Files that belong to somebody else.
    owners: Vec<(&'static str, (u32, u32))>,
    /// Without the signing key's file.
    no_key_file: bool,
    homeserver: &'static str,
    /// More files in `config`.
    config: Vec<&'static str>,
    server: u32,
    users: Vec<&'static str>,
    /// Names in stream_positions beside the usual.
    positions: Vec<&'static str>,
}

const HOMESERVER: &str = "# server_name: no\nserver_name: \"example.org\" # ours\nfoo: 1\n";

impl Small {
    fn new() -> Self {
        let mut rows = BTreeMap::new();
        for (table, n) in [
            ("events", 200),
            ("users", 3),
            ("e2e_one_time_keys_json", 0),
            ("e2e_fallback_keys_json", 4),
            ("device_inbox", 7),
            ("state_groups", 9),
            ("state_groups_state", 40),
            ("room_memberships", 5),
            ("current_state_events", 6),
            ("local_current_membership", 3),
            ("event_search", 50),
            ("user_directory", 2),
            ("cache_invalidation_stream_by_instance", 10),
            ("worker_locks", 1),
            ("local_media_repository", 3),
            ("local_media_repository_url_cache", 1),
            ("sliding_sync_connections", 2),
            ("sliding_sync_connection_positions", 2),
            ("presence_stream", 1),
        ] {
            rows.insert(table, n);
        }
        Small {
            rows,
            streams: BTreeMap::from([
                ("events_stream_seq", vec![266, 266, 266]),
                ("device_inbox_sequence", vec![12, 12, 12]),
                ("events_backfill_stream_seq", vec![5, 5, 5]),
            ]),
            foreign_keys: vec![
                (
                    "public.sliding_sync_connection_positions",
                    "public.sliding_sync_connections",
                ),
                ("public.room_memberships", "public.events"),
            ],
            versions: (94, 84),
            locale: ["UTF8", "C", "C"],
            media: vec![
                ("fOjiaJVgPwoL", Some(11), Some(HELLO), true),
                ("ikHunVLhUApJ", Some(3), None, true),
                ("pendingAAAAA", None, None, true),
            ],
            files: vec![
                ("local_content/fO/ji/aJVgPwoL", b"hello media"),
                ("local_content/ik/Hu/nVLhUApJ", b"png"),
                ("local_thumbnails/ik/Hu/nVLhUApJ/32-32-image-png-crop", b"t"),
                ("remote_content/x/y", b"r"),
            ],
            key_file: format!("ed25519 a_GQJb {SEED}\n"),
            settings: Vec::new(),
            without: Vec::new(),
            grant_config: true,
            grant_media: true,
            media_owner: (10991, 10991),
            owners: Vec::new(),
            no_key_file: false,
            homeserver: HOMESERVER,
            config: Vec::new(),
            server: 150_018,
            users: vec!["@alice:example.org", "@bob:example.org", "@7:example.org"],
            positions: Vec::new(),
        }
    }

    fn world(&self) -> World {
        let mut database =
            Database::postgres()
                .version(self.server)
                .locale(self.locale[0], self.locale[1], self.locale[2]);
        for (table, rows) in &self.rows {
            let columns: &[&str] = match *table {
                "events" => &["event_id", "stream_ordering"],
                "local_media_repository" => &["media_id", "media_length", "url_cache", "sha256", "quarantined_by"],
                "device_inbox" => &["stream_id", "message_json"],
                "users" => &["name", "is_guest"],
                _ => &["id"],
            };
            database = database.table(&format!("public.{table}"), columns, *rows);
        }
        for table in [
            "schema_version",
            "schema_compat_version",
            "event_push_summary_stream_ordering",
        ] {
            if !self.without.contains(&table) {
                let rows = self.rows.get(table).copied().unwrap_or(1);
                database = database.table(&format!("public.{table}"), &["lock", "x"], rows);
            }
        }
        database = database.table(
            "public.stream_positions",
            &["stream_name", "instance_name", "stream_id"],
            2,
        );
        for sequence in self.streams.keys() {
            database = database.relation(&format!("public.{sequence}"), TableKind::Sequence, &["last_value"], 1);
        }
        for table in &self.without {
            // A table the restore lost; the builder knows no removal, so it becomes a view.
            if self.rows.contains_key(table) {
                panic!("{table}: remove it from rows instead");
            }
        }
        let streams = self.streams.clone();
        let foreign_keys = self.foreign_keys.clone();
        let media = self.media.clone();
        let (positions, users, known) = (self.positions.clone(), self.users.clone(), self.media.clone());
        let (version, compat) = self.versions;
        let counts: BTreeMap<&str, u64> = self.rows.clone();
        let keys = counts.clone();
        let int = Cell::Integer;
        database = database
            .answer("SELECT version FROM public.schema_version", &[&[int(version)]])
            .answer("SELECT compat_version FROM", &[&[int(compat)]])
            .answer(
                "SELECT stream_name, instance_name, stream_id",
                &[
                    &["events".into(), "master".into(), int(266)],
                    &["to_device".into(), "master".into(), int(12)],
                ],
            )
            .answer_with(move |sql, _| {
                let positions = ["events", "to_device"].iter().chain(&positions);
                sql.starts_with("SELECT DISTINCT stream_name")
                    .then(|| Ok(positions.map(|p| vec![(*p).into()]).collect()))
            })
            .answer_with(move |sql, _| {
                let of = sql.strip_prefix(
                    "SELECT count(*) AS n, min(name) AS example FROM public.users WHERE right(name, length(':",
                )?;
                let of = format!(":{}", of.split('\'').next()?);
                let foreign: Vec<&&str> = users.iter().filter(|u| !u.ends_with(&of)).collect();
                let example = foreign.first().map(|u| (**u).to_owned());
                Some(Ok(vec![vec![Cell::Integer(foreign.len() as i64), example.into()]]))
            })
            .answer_with(move |sql, _| {
                if !sql.contains("CASE WHEN is_called") {
                    return None;
                }
                let rows = sql.split(" UNION ALL ").map(|part| {
                    let (name, values) = streams
                        .iter()
                        .find(|(s, _)| part.contains(&format!("FROM public.{s})")))
                        .unwrap_or_else(|| panic!("of an unknown sequence: {part}"));
                    // As many columns as were asked for.
                    let asked = part.matches("::bigint AS ").count();
                    assert!(values.len() < asked, "{name}: {part}");
                    let index = part.strip_prefix("SELECT ").unwrap().split_once("::").unwrap().0;
                    let mut row = vec![Cell::Integer(index.parse().unwrap())];
                    row.extend(values.iter().map(|v| Cell::Integer(*v)));
                    row.resize(asked, Cell::Integer(0));
                    row
                });
                Some(Ok(rows.collect()))
            })
            .answer_with(move |sql, _| {
                sql.contains("pg_constraint").then(|| {
                    Ok(foreign_keys
                        .iter()
                        .map(|(c, p)| vec![(*c).into(), (*p).into()])
                        .collect())
                })
            })
            .answer(
                "indisunique",
                &[&["public.device_inbox".into()], &["public.state_groups_state".into()]],
            )
            .answer_with(move |sql, _| {
                let tables = sql.strip_prefix("SELECT EXISTS (SELECT 1 FROM public.")?;
                let tables = tables.split("EXISTS (SELECT 1 FROM public.");
                let names = tables.map(|rest| rest.split(')').next().unwrap());
                let there = |name: &str| Cell::Boolean(counts.get(name).is_some_and(|n| *n > 0));
                Some(Ok(vec![names.map(there).collect()]))
            })
            .answer_with(move |sql, _| {
                let of = |table: &str| Cell::Integer(keys.get(table).copied().unwrap_or(0) as i64);
                sql.contains("AS one_time, ")
                    .then(|| Ok(vec![vec![of("e2e_one_time_keys_json"), of("e2e_fallback_keys_json")]]))
            });
        let rows = media.clone();
        database = database
            .answer_with(move |sql, params| {
                let Some(Cell::Text(ids)) = params
                    .first()
                    .filter(|_| sql.contains("string_to_array($1::text, ',')"))
                else {
                    return None;
                };
                let unknown = ids.split(',').filter(|id| !known.iter().any(|(known, ..)| known == id));
                Some(Ok(unknown.map(|id| vec![id.into()]).collect()))
            })
            .answer_with(move |sql, _| {
                sql.contains("quarantined_by IS NULL AS free").then(|| {
                    Ok(rows
                        .iter()
                        .map(|(id, length, sha, free)| {
                            vec![(*id).into(), (*length).into(), (*sha).into(), Cell::Boolean(*free)]
                        })
                        .collect())
                })
            })
            .answer_with(move |sql, _| {
                (sql.starts_with("SELECT count(*)") && sql.contains("url_cache IS NULL"))
                    .then(|| Ok(vec![vec![Cell::Integer(media.len() as i64)]]))
            });

        let mut world = World::new().database("main", database);
        if self.grant_media {
            let mut volume = Volume::new().owner(self.media_owner.0, self.media_owner.1);
            for (path, (uid, gid)) in &self.owners {
                volume = volume.owner_of(path, *uid, *gid);
            }
            for (path, bytes) in &self.files {
                volume = volume.file(path, bytes);
            }
            world = world.volume("media", volume);
        }
        if self.grant_config {
            let mut volume = Volume::new()
                .file("homeserver.yaml", self.homeserver)
                .file("bridges/irc.yaml", "as_token: x\n");
            if !self.no_key_file {
                volume = volume.file("keys/example.org.signing.key", &self.key_file);
            }
            for file in &self.config {
                volume = volume.file(file, "x");
            }
            world = world.volume("config", volume);
        }
        for (name, value) in &self.settings {
            world = world.setting(name, value.clone());
        }
        world
    }

    fn backup(&self) -> BackupPlan {
        self.world().run(Synapse::plan_backup).unwrap()
    }

    /// The backup as the host would show it afterwards.
    fn view(&self) -> BackupView {
        let plan = self.backup();
        let left_out: Vec<String> = dump(&plan).leave_out_data.iter().map(|r| r.table.clone()).collect();
        let mut artifacts = Vec::new();
        let mut add = |name: String, kind: &str, items| {
            artifacts.push(Artifact {
                name,
                kind: kind.into(),
                items,
                size_bytes: 1,
            });
        };
        for (table, rows) in &self.rows {
            if !left_out.contains(&format!("public.{table}")) {
                add(format!("main/public.{table}"), "postgres-table", Some(*rows));
            }
        }
        add("main/ddl".into(), "postgres-ddl", None);
        if self.grant_media {
            add("media".into(), "volume", Some(3));
        }
        if self.grant_config {
            add("config".into(), "volume", Some(3));
        }
        BackupView {
            id: "b1".into(),
            taken_at_unix_seconds: 1_700_000_000,
            component_version: "0.1.0".into(),
            facts: plan.facts().cloned().collect(),
            artifacts,
        }
    }

    /// What was left out is empty after the restore.
    fn restored(&self) -> Small {
        let mut small = self.clone();
        for rule in dump(&self.backup()).leave_out_data {
            let short: &'static str = Box::leak(rule.table.trim_start_matches("public.").to_owned().into_boxed_str());
            small.rows.insert(short, 0);
        }
        small
    }

    fn verify(&self, view: &BackupView) -> Vec<Finding> {
        self.world().run(|| Synapse::verify(view)).unwrap()
    }
}

fn dump(plan: &BackupPlan) -> DumpDatabase {
    let dumps: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|s| match s {
            BackupStep::DumpDatabase(d) => Some(d.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(dumps.len(), 1);
    dumps[0].clone()
}

fn left_out(small: &Small) -> Vec<String> {
    dump(&small.backup())
        .leave_out_data
        .into_iter()
        .map(|r| r.table)
        .collect()
}

/// Damages the restored Synapse, and expects exactly this check to complain.
fn damaged(check: &str, severity: Severity, damage: impl FnOnce(&mut Small)) -> Finding {
    let before = Small::new();
    let view = before.view();
    let mut after = before.restored();
    damage(&mut after);
    let findings = after.verify(&view);
    let bad: Vec<&Finding> = findings.iter().filter(|f| f.severity != Severity::Info).collect();
    let found = bad
        .iter()
        .find(|f| f.check == check)
        .unwrap_or_else(|| panic!("{check} found nothing: {bad:#?}"));
    assert_eq!(found.severity, severity, "{found:?}");
    assert!(!found.remedy.is_empty(), "{found:?}");
    (*found).clone()
}

#[test]
fn a_whole_restore_passes_every_check() {
    let before = Small::new();
    let findings = before.restored().verify(&before.view());
    let bad: Vec<&Finding> = findings.iter().filter(|f| f.severity != Severity::Info).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let names: Vec<&str> = findings.iter().map(|f| f.check.as_str()).collect();
    for name in [
        "synapse-locale-main",
        "synapse-versions-main",
        "synapse-one-time-keys-empty",
        "synapse-fallback-keys",
        "synapse-single-rows-main",
        "synapse-streams-main",
        "row-counts-main",
        "synapse-membership-tables",
        "synapse-media-files",
        "synapse-media-contents",
        "synapse-media-orphans",
        "synapse-media-case",
        "synapse-media-owner",
        "synapse-signing-key",
        "synapse-server-main",
        "synapse-server-name",
    ] {
        assert!(names.contains(&name), "{name} did not run: {names:?}");
    }
}

#[test]
fn describe_is_complete() {
    let d = World::new().run(Synapse::describe);
    assert_eq!(d.tier, Tier::Critical);
    for setting in &d.settings {
        serde_json::from_str::<serde_json::Value>(&setting.default_json).unwrap();
        assert!(!setting.purpose.is_empty());
    }
    for class in &d.classes {
        assert!(!class.exposes.is_empty());
        let label = class.pattern.split('/').next().unwrap();
        assert!(d.needs_label(label), "{}", class.pattern);
    }
    let secret = |name: &str| {
        d.classes
            .iter()
            .filter(|c| essrun_guest::matches(&c.pattern, name))
            .map(|c| c.sensitivity as u8)
            .max()
            .unwrap_or(Sensitivity::Secret as u8)
            == Sensitivity::Secret as u8
    };
    for table in [
        "access_tokens",
        "refresh_tokens",
        "users",
        "pushers",
        "e2e_room_keys",
        "account_data",
    ] {
        assert!(secret(&format!("main/public.{table}")), "{table}");
    }
    assert!(secret("config"));
    let of_config = d.classes.iter().find(|c| c.pattern == "config").unwrap();
    assert!(
        of_config
            .on_leak
            .iter()
            .any(|step| step.contains("derives it from the signing key"))
    );
    for fence in &d.fences {
        assert!(d.needs_label(&fence.database) && !fence.tables.is_empty());
    }
    // Every database of a group on several servers must be named.
    let databases = d.needs.iter().filter(|n| n.kind == NeedKind::Database);
    let unfenced: Vec<&str> = databases
        .map(|n| n.label.as_str())
        .filter(|label| !d.fences.iter().any(|f| f.database == *label))
        .collect();
    assert!(unfenced.is_empty(), "{unfenced:?}");
    assert!(!secret("main/public.events") && !secret("media") && !secret("main/ddl"));
}

#[test]
fn one_time_keys_are_never_dumped_whatever_the_setting() {
    for setting in [
        None,
        Some(serde_json::json!([])),
        Some(serde_json::json!(["e2e_one_time_keys_json"])),
    ] {
        let mut small = Small::new();
        small.settings.extend(setting.map(|s| ("leave-out", s)));
        let tables = left_out(&small);
        assert_eq!(
            tables.iter().filter(|t| *t == "public.e2e_one_time_keys_json").count(),
            1
        );
        assert!(!tables.contains(&"public.e2e_fallback_keys_json".to_owned()));
    }
}

#[test]
fn by_default_only_what_costs_nothing_is_left_out() {
    assert_eq!(
        left_out(&Small::new()),
        [
            "public.e2e_one_time_keys_json",
            "public.cache_invalidation_stream_by_instance",
            "public.local_media_repository_url_cache",
            "public.worker_locks"
        ]
    );
}

#[test]
fn groups_and_tables_can_be_chosen_and_followers_come_along() {
    let mut small = Small::new();
    small.settings = vec![(
        "leave-out",
        serde_json::json!(["search-index", "public.sliding_sync_connections"]),
    )];
    let tables = left_out(&small);
    assert_eq!(
        tables,
        [
            "public.e2e_one_time_keys_json",
            "public.event_search",
            "public.sliding_sync_connection_positions",
            "public.sliding_sync_connections"
        ]
    );
    assert!(small.view().fact("left-out/search-index").is_some());
    let plan = small.world().run(|| Synapse::plan_restore(&small.view())).unwrap();
    assert!(plan.notes().any(|n| n.text.contains("nothing rebuilds it")));
}

#[test]
fn harmful_tables_are_refused_with_the_reason() {
    for (table, reason) in [
        ("device_inbox", "room keys"),
        ("public.federation_inbound_events_staging", "acknowledged"),
        ("event_push_summary_stream_ordering", "exactly one row"),
        ("e2e_fallback_keys_json", "encryption working"),
        ("users", "not known to be safe"),
        ("no-such-thing", "no group"),
        ("state_groups_state", "any tool"),
    ] {
        let mut small = Small::new();
        small.settings = vec![("leave-out", serde_json::json!([table]))];
        let error = small.world().run(Synapse::plan_backup).unwrap_err();
        assert!(matches!(error, Error::InvalidSetting(_)), "{error:?}");
        assert!(
            error.text().contains(reason) && error.text().contains("leave-out"),
            "{}",
            error.text()
        );
    }
}

#[test]
fn a_kept_table_may_not_point_at_an_emptied_one() {
    let mut small = Small::new();
    small.foreign_keys.push(("public.users", "public.event_search"));
    small.settings = vec![("leave-out", serde_json::json!(["search-index"]))];
    let error = small.world().run(Synapse::plan_backup).unwrap_err();
    assert!(error.text().contains("public.users points at it"), "{}", error.text());

    // By default nobody asked for it: it is kept, and said.
    let mut small = Small::new();
    small.foreign_keys.push(("public.users", "public.worker_locks"));
    let plan = small.backup();
    assert!(!left_out(&small).contains(&"public.worker_locks".to_owned()));
    assert!(plan.notes().any(|n| n.text.contains("public.worker_locks is kept")));

    let mut small = Small::new();
    small
        .foreign_keys
        .push(("public.users", "public.e2e_one_time_keys_json"));
    assert!(matches!(
        small.world().run(Synapse::plan_backup),
        Err(Error::Unsupported(_))
    ));
}

#[test]
fn wrong_settings_are_named() {
    for (name, value) in [
        ("thumbnails", serde_json::json!("yes")),
        ("leave-out", serde_json::json!("all")),
        ("digest-media-files", serde_json::json!(-1)),
        ("signing-key-file", serde_json::json!("../x")),
        ("homeserver-file", serde_json::json!("")),
        ("version", serde_json::json!("1.163.2 (b=x)")),
    ] {
        let mut small = Small::new();
        small.settings = vec![(name, value)];
        let error = small.world().run(Synapse::plan_backup).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidSetting(t) if t.contains(name)),
            "{error:?}"
        );
    }
}

#[test]
fn foreign_databases_are_refused() {
    let world = World::new().database("main", Database::postgres().table("public.pages", &["id"], 1));
    assert!(matches!(world.run(Synapse::plan_backup), Err(Error::Unsupported(t)) if t.contains("public.events")));
    let world = World::new().database("main", Database::sqlite());
    assert!(matches!(world.run(Synapse::plan_backup), Err(Error::Unsupported(t)) if t.contains("SQLite")));
    let mut small = Small::new();
    small.rows.remove("state_groups");
    assert!(matches!(small.world().run(Synapse::plan_backup), Err(Error::Unsupported(t)) if t.contains("`state`")));
}

#[test]
fn media_are_taken_by_directory() {
    let archive = |small: &Small| {
        let plan = small.backup();
        let mut rules: Vec<PathRule> = Vec::new();
        for step in plan.steps {
            if let BackupStep::ArchiveVolume(a) = step
                && a.volume == "media"
            {
                assert!(a.take.is_empty(), "directories we do not know are taken too");
                rules = a.leave_out;
            }
        }
        rules.into_iter().map(|r| r.pattern).collect::<Vec<_>>()
    };
    let mut small = Small::new();
    assert_eq!(
        archive(&small),
        [
            "url_cache",
            "url_cache_thumbnails",
            "remote_content",
            "remote_thumbnail",
            "remote_thumbnails"
        ]
    );
    small.settings = vec![("thumbnails", false.into()), ("remote-media", true.into())];
    assert_eq!(
        archive(&small),
        ["url_cache", "url_cache_thumbnails", "local_thumbnails"]
    );
}

#[test]
fn what_is_not_granted_is_said_loudly() {
    let mut small = Small::new();
    small.grant_config = false;
    small.grant_media = false;
    let plan = small.backup();
    let warned = |text: &str| {
        plan.notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains(text))
    };
    assert!(warned("SIGNING KEY") && warned("files users uploaded"));
    let view = small.view();
    let restore = small.world().run(|| Synapse::plan_restore(&view)).unwrap();
    assert!(restore.notes().any(|n| n.text.contains("signing key in place")));
    let findings = small.restored().verify(&view);
    for check in ["synapse-signing-key", "synapse-media-files"] {
        assert!(
            findings
                .iter()
                .any(|f| f.check == check && f.severity == Severity::Warning)
        );
    }
}

#[test]
fn facts_hold_what_verify_needs() {
    let view = Small::new().view();
    for (key, value) in [
        ("schema-version/main", "94"),
        ("schema-compat-version/main", "84"),
        ("locale/main", "UTF8 C C"),
        ("server-name", "example.org"),
        ("rows/main/public.users", "3"),
        ("single-row/main/public.event_push_summary_stream_ordering", "1"),
        ("sequence/main/events_stream_seq", "266"),
        ("stream-position/main/events/master", "266"),
        ("signing-key/keys/example.org.signing.key/ed25519:a_GQJb", PUBLIC),
        ("media/rows", "2"),
        ("media/missing", "0"),
        ("media/owner", "10991:10991"),
        ("media/of-others", "0"),
        ("server-version/main", "150018"),
        ("users/of-other-servers", "0"),
    ] {
        assert_eq!(view.fact(key), Some(value), "{key}");
    }
    // No secret may be among them.
    assert!(view.facts.iter().all(|f| !f.value.contains(SEED)));
}

#[test]
fn the_weak_generation_of_signing_keys_is_flagged() {
    let mut small = Small::new();
    small.key_file = format!("ed25519 0 {SEED}\n");
    assert!(
        small
            .backup()
            .notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains("CVE-2026-24044"))
    );
    let findings = small.restored().verify(&small.view());
    assert!(
        findings
            .iter()
            .any(|f| f.check == "synapse-signing-key-generation" && f.severity == Severity::Warning)
    );
}

#[test]
fn unreadable_key_files_are_said_and_never_shown() {
    for text in [
        "",
        "rsa 1 x",
        "ed25519 a",
        "ed25519 a c2hvcnQ",
        "ed25519 a SECRETSECRET extra",
    ] {
        let mut small = Small::new();
        small.key_file = text.into();
        let plan = small.backup();
        let said: Vec<_> = plan
            .notes()
            .filter(|n| n.text.contains("no signing key Synapse could read"))
            .collect();
        assert_eq!(said.len(), 1, "{text:?}");
        assert!(!said[0].text.contains("SECRET") && !said[0].text.contains("c2hvcnQ"));
    }
}

#[test]
fn restore_puts_files_first_and_empties_the_one_time_keys() {
    let small = Small::new();
    let view = small.view();
    let plan = small.world().run(|| Synapse::plan_restore(&view)).unwrap();
    let order: Vec<String> = plan
        .steps
        .iter()
        .filter_map(|s| match s {
            RestoreStep::RestoreVolume(l) | RestoreStep::RestoreDatabase(l) => Some(l.clone()),
            RestoreStep::RunSql(r) => Some(r.sql.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        order,
        ["media", "config", "main", "TRUNCATE public.e2e_one_time_keys_json"]
    );
    for text in [
        "ingress",
        "restart every bridge",
        "revoked tokens",
        "key backup",
        "/sync",
    ] {
        assert!(plan.notes().any(|n| n.text.contains(text)), "{text}");
    }
}

#[test]
fn a_sequence_behind_is_recorded_warned_of_and_raised_by_the_restore() {
    let mut small = Small::new();
    small.streams.insert("events_stream_seq", vec![100, 266, 298]);
    let plan = small.backup();
    assert!(
        plan.notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains("events_stream_seq stands at 100"))
    );
    let view = small.view();
    assert_eq!(view.fact("sequence-behind/main/events_stream_seq"), Some("298"));
    let restore = small.world().run(|| Synapse::plan_restore(&view)).unwrap();
    let raised = restore.steps.iter().any(
        |s| matches!(s, RestoreStep::RunSql(r) if r.sql.contains("setval('public.events_stream_seq', GREATEST(298,")),
    );
    assert!(raised);

    // A forged fact cannot become SQL.
    let mut view = view;
    view.facts.push(Fact {
        key: "sequence-behind/main/x', 1); DROP TABLE y; --".into(),
        value: "1".into(),
    });
    let restore = small.world().run(|| Synapse::plan_restore(&view)).unwrap();
    assert!(
        !restore
            .steps
            .iter()
            .any(|s| matches!(s, RestoreStep::RunSql(r) if r.sql.contains("DROP")))
    );
}

#[test]
fn wrong_locale() {
    damaged("synapse-locale-main", Severity::Error, |s| {
        s.locale = ["UTF8", "C.UTF-8", "C.UTF-8"]
    });
    damaged("synapse-locale-main", Severity::Error, |s| {
        s.locale = ["SQL_ASCII", "C", "C"]
    });
    // A site that was so already knows, and is only reminded.
    let mut before = Small::new();
    before.locale = ["UTF8", "en_US.utf8", "en_US.utf8"];
    let findings = before.restored().verify(&before.view());
    assert!(
        findings
            .iter()
            .any(|f| f.check == "synapse-locale-main" && f.severity == Severity::Warning)
    );
}

#[test]
fn wrong_versions() {
    damaged("synapse-versions-main", Severity::Error, |s| s.versions = (93, 84));
    damaged("synapse-versions-main", Severity::Error, |s| s.versions = (94, 83));
}

#[test]
fn the_version_that_was_running_is_kept_and_told() {
    let mut small = Small::new();
    assert_eq!(small.view().fact("version"), None);
    small.settings = vec![("version", "1.163.2".into())];
    let view = small.view();
    assert_eq!(view.fact("version"), Some("1.163.2"));
    let findings = small.restored().verify(&view);
    let f = findings.iter().find(|f| f.check == "synapse-versions-main").unwrap();
    assert!(
        f.message.contains("best start Synapse 1.163.2, which was running"),
        "{f:?}"
    );
    assert!(f.message.contains("refuses to start"), "{f:?}");
}

#[test]
fn a_server_too_old_for_synapse() {
    let f = damaged("synapse-server-main", Severity::Error, |s| s.server = 130_014);
    assert!(
        f.message.contains("PostgreSQL 13, the backup is of PostgreSQL 15"),
        "{f:?}"
    );
    // Where it ran on one before, it may again.
    let mut before = Small::new();
    before.server = 120_001;
    let mut after = before.restored();
    after.server = 130_014;
    let findings = after.verify(&before.view());
    let f = findings.iter().find(|f| f.check == "synapse-server-main").unwrap();
    assert_eq!(f.severity, Severity::Warning);
}

#[test]
fn another_server_name() {
    let f = damaged("synapse-server-name", Severity::Error, |s| {
        s.homeserver = "server_name: matrix.example.org\n"
    });
    assert!(
        f.message.contains("\"matrix.example.org\", it was \"example.org\""),
        "{f:?}"
    );
    let f = damaged("synapse-server-name", Severity::Error, |s| {
        s.users.push("@carol:other.org")
    });
    assert!(
        f.message
            .contains("1 users do not belong to \"example.org\", such as \"@carol:other.org\""),
        "{f:?}"
    );
    damaged("synapse-server-name", Severity::Warning, |s| s.homeserver = "foo: 1\n");
    // It was so before.
    let mut before = Small::new();
    before.users.push("@carol:other.org");
    let findings = before.restored().verify(&before.view());
    let f = findings.iter().find(|f| f.check == "synapse-server-name").unwrap();
    assert_eq!(f.severity, Severity::Warning, "{f:?}");
}

#[test]
fn the_registration_secrets_file_is_made_anew_as_silently_as_the_key() {
    let mut small = Small::new();
    small.homeserver = "server_name: example.org\nregistration_shared_secret_path: /data/secrets/registration\n";
    let plan = small.backup();
    let said = plan
        .notes()
        .find(|n| n.text.contains("registration_shared_secret_path"))
        .unwrap();
    assert!(
        said.severity == Severity::Warning && said.text.contains("without a word"),
        "{said:?}"
    );
    small.config = vec!["secrets/registration"];
    assert!(
        !small
            .backup()
            .notes()
            .any(|n| n.text.contains("registration_shared_secret_path"))
    );
    let view = small.view();
    let found = |small: &Small| {
        let findings = small.restored().verify(&view);
        findings
            .into_iter()
            .find(|f| f.check == "synapse-registration-secret")
            .unwrap()
    };
    assert_eq!(found(&small).severity, Severity::Info);
    small.config.clear();
    assert_eq!(found(&small).severity, Severity::Warning);
    // Without any configuration both are said.
    small.grant_config = false;
    let plan = small.backup();
    assert!(
        plan.notes()
            .any(|n| n.text.contains("SIGNING KEY") && n.text.contains("registration_shared_secret_path"))
    );
}

#[test]
fn one_time_keys_left() {
    let f = damaged("synapse-one-time-keys-empty", Severity::Error, |s| {
        s.rows.insert("e2e_one_time_keys_json", 2);
    });
    assert!(f.message.contains('2') && f.remedy.contains("TRUNCATE"));
}

#[test]
fn fallback_keys_lost() {
    damaged("synapse-fallback-keys", Severity::Error, |s| {
        s.rows.insert("e2e_fallback_keys_json", 0);
    });
}

#[test]
fn single_rows_lost_or_doubled() {
    damaged("synapse-single-rows-main", Severity::Error, |s| {
        s.rows.insert("event_push_summary_stream_ordering", 0);
    });
    damaged("synapse-single-rows-main", Severity::Error, |s| {
        s.rows.insert("schema_compat_version", 2);
    });
    let f = damaged("synapse-single-rows-main", Severity::Error, |s| {
        s.without.push("event_push_summary_stream_ordering");
    });
    assert!(f.message.contains("missing"));
}

#[test]
fn streams_ahead_of_their_sequence() {
    let f = damaged("synapse-streams-main", Severity::Error, |s| {
        s.streams.insert("events_stream_seq", vec![100, 266, 0]);
    });
    assert!(f.message.contains("public.events.stream_ordering at 266") && f.remedy.contains("setval"));
    let f = damaged("synapse-streams-main", Severity::Error, |s| {
        s.streams.insert("device_inbox_sequence", vec![12, 12, 44]);
    });
    assert!(f.message.contains("stream_positions of `to_device` at 44"));
    damaged("synapse-streams-main", Severity::Error, |s| {
        s.streams.insert("events_backfill_stream_seq", vec![4, 5]);
    });
    // What else one may meet is said where it can be that.
    assert!(
        f.remedy.contains("second works") && f.remedy.contains("SEQ_LOG_VALS"),
        "{f:?}"
    );
    let f = damaged("synapse-streams-main", Severity::Error, |s| {
        s.streams.insert("device_inbox_sequence", vec![12, 12, 45]);
    });
    assert!(
        f.remedy.contains("second works") && !f.remedy.contains("SEQ_LOG_VALS"),
        "{f:?}"
    );
}

#[test]
fn guests_are_called_by_numbers() {
    let mut before = Small::new();
    before.streams.insert("user_id_seq", vec![7, 7]);
    let view = before.view();
    assert_eq!(view.fact("sequence/main/user_id_seq"), Some("7"));
    let mut after = before.restored();
    after.streams.insert("user_id_seq", vec![3, 7]);
    let findings = after.verify(&view);
    let f = findings.iter().find(|f| f.check == "synapse-streams-main").unwrap();
    assert_eq!(f.severity, Severity::Error);
    assert!(
        f.message
            .contains("user_id_seq stands at 3, public.users.name of guests at 7"),
        "{f:?}"
    );
    // Only numbers of guests count: administrators and bridges may call users by any.
    let world = after.world();
    world.run(|| Synapse::verify(&view)).unwrap();
    let asked = world.queries();
    let (_, sql) = asked
        .iter()
        .find(|(_, sql)| sql.contains("FROM public.user_id_seq)"))
        .unwrap();
    assert!(sql.contains("is_guest = 1"), "{sql}");
}

#[test]
fn streams_and_sequences_that_are_not_known_are_said() {
    let quiet = Small::new();
    let all = quiet.restored().verify(&quiet.view());
    assert!(!all.iter().any(|f| f.check == "synapse-streams-unknown-main"));
    let mut small = Small::new();
    small.streams.insert("brand_new_seq", vec![5]);
    small.positions = vec!["brand_new"];
    assert!(small.backup().notes().any(|n| n.text.contains("brand_new_seq")));
    let findings = small.restored().verify(&small.view());
    let f = findings
        .iter()
        .find(|f| f.check == "synapse-streams-unknown-main")
        .unwrap();
    assert_eq!(f.severity, Severity::Warning);
    assert_eq!(
        f.message,
        "sequences not known here: brand_new_seq, streams not known here: brand_new"
    );
}

#[test]
fn rows_doubled_or_lost() {
    for n in [14, 6, 0] {
        let f = damaged("row-counts-main", Severity::Error, |s| {
            s.rows.insert("device_inbox", n);
        });
        assert!(
            f.message
                .contains(&format!("public.device_inbox has {n} rows, the backup 7"))
        );
    }
    damaged("row-counts-main", Severity::Error, |s| {
        s.rows.remove("device_inbox");
        s.streams.insert("device_inbox_sequence", vec![12]);
    });
}

#[test]
fn the_data_only_trap() {
    for table in ["room_memberships", "current_state_events", "local_current_membership"] {
        let f = damaged("synapse-membership-tables", Severity::Error, |s| {
            s.rows.insert(table, 0);
        });
        assert!(f.message.contains(table));
    }
}

#[test]
fn media_missing_different_or_shortened() {
    let f = damaged("synapse-media-files", Severity::Warning, |s| {
        s.files.remove(0);
    });
    assert!(f.message.contains("local_content/fO/ji/aJVgPwoL"));
    damaged("synapse-media-files", Severity::Error, |s| {
        s.files.remove(0);
        s.settings = vec![("tolerated-media-faults", 0.into())];
    });
    let f = damaged("synapse-media-contents", Severity::Error, |s| {
        s.files[0].1 = b"hello MEDIA";
        s.settings = vec![("tolerated-media-faults", 0.into())];
    });
    assert!(f.message.contains("SHA-256"));
    let f = damaged("synapse-media-contents", Severity::Warning, |s| s.files[1].1 = b"pn");
    assert!(f.message.contains("2 bytes, expected 3"));
}

#[test]
fn media_not_needed_is_not_missed_and_orphans_are_counted() {
    let mut small = Small::new();
    small.media.push(("quarantinedAA", Some(3), None, false));
    small.files.push(("local_content/or/ph/an", b"x"));
    let findings = small.restored().verify(&small.view());
    let find = |name: &str| findings.iter().find(|f| f.check == name).unwrap();
    assert_eq!(find("synapse-media-files").severity, Severity::Info);
    assert_eq!(
        find("synapse-media-orphans").message,
        "3 files, 1 of them not known to the database: local_content/or/ph/an"
    );
}

#[test]
fn orphans_are_named_up_to_five() {
    let mut small = Small::new();
    small.files.push(("local_content/lost+found", b"x"));
    let message = |small: &Small| {
        let findings = small.restored().verify(&small.view());
        let f = findings
            .into_iter()
            .find(|f| f.check == "synapse-media-orphans")
            .unwrap();
        assert_eq!(f.severity, Severity::Info);
        f.message
    };
    assert!(message(&small).ends_with("1 of them not known to the database: local_content/lost+found"));
    for i in 0..6 {
        let path: &'static str = Box::leak(format!("local_content/or/ph/an{i}").into_boxed_str());
        small.files.push((path, b"x"));
    }
    let said = message(&small);
    assert!(said.contains("7 of them") && said.ends_with("; and more"), "{said}");
    assert_eq!(said.matches("local_content/").count(), 5, "{said}");
}

#[test]
fn media_missing_at_the_source_are_no_fault_of_the_restore() {
    let mut small = Small::new();
    small.settings = vec![("tolerated-media-faults", 0.into())];
    small.files.remove(0);
    assert!(
        small
            .backup()
            .notes()
            .any(|n| n.text.contains("1 of 2 media have no file"))
    );
    let findings = small.restored().verify(&small.view());
    let finding = findings.iter().find(|f| f.check == "synapse-media-files").unwrap();
    assert_eq!(finding.severity, Severity::Warning);
}

#[test]
fn hostile_media_ids_never_become_paths() {
    let f = damaged("synapse-media-ids", Severity::Warning, |s| {
        s.media.insert(0, ("../../../etc/passwd", Some(1), None, true))
    });
    assert!(f.message.contains("passwd"));
}

#[test]
fn a_file_system_without_case() {
    damaged("synapse-media-case", Severity::Error, |s| {
        s.files.push(("local_content/Fo/JI/AjvGpWOl", b"hello media"));
    });
}

#[test]
fn wrong_owner_of_media() {
    let f = damaged("synapse-media-owner", Severity::Warning, |s| s.media_owner = (0, 0));
    assert!(f.message.contains("0:0, it was 10991:10991"));
    // The directory is right, a file in it is not.
    let f = damaged("synapse-media-owner", Severity::Warning, |s| {
        s.owners.push(("local_content/ik/Hu/nVLhUApJ", (0, 0)));
    });
    assert!(
        f.message.contains("1 of 2 media do not belong to 10991:10991") && f.message.contains("nVLhUApJ 0:0"),
        "{f:?}"
    );
    // As it was.
    let mut before = Small::new();
    before.owners.push(("local_content/ik/Hu/nVLhUApJ", (0, 0)));
    let findings = before.restored().verify(&before.view());
    let f = findings.iter().find(|f| f.check == "synapse-media-owner").unwrap();
    assert_eq!(f.severity, Severity::Info, "{f:?}");
}

#[test]
fn signing_key_missing_or_another() {
    let f = damaged("synapse-signing-key", Severity::Error, |s| {
        s.key_file = "ed25519 a_GQJb TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs\n".into();
    });
    assert!(
        f.message.contains("PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw"),
        "{}",
        f.message
    );
    assert!(!f.message.contains("TM0Imyj"));
    damaged("synapse-signing-key", Severity::Error, |s| {
        s.key_file = format!("ed25519 other {SEED}\n")
    });
    damaged("synapse-signing-key", Severity::Error, |s| {
        s.key_file = "nonsense".into()
    });
    let f = damaged("synapse-signing-key", Severity::Error, |s| s.no_key_file = true);
    assert!(f.message.contains("keys/example.org.signing.key is missing"), "{f:?}");
    // It was not there when the backup was taken either.
    let mut before = Small::new();
    before.no_key_file = true;
    let plan = before.backup();
    assert!(
        plan.notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains("signing key is not known to be"))
    );
    let findings = before.restored().verify(&before.view());
    let f = findings.iter().find(|f| f.check == "synapse-signing-key").unwrap();
    assert_eq!(f.severity, Severity::Warning, "{f:?}");
}

#[test]
fn large_media_are_sampled_evenly() {
    let mut small = Small::new();
    small.media.clear();
    small.files.clear();
    for i in 0..50 {
        let id: &'static str = Box::leak(format!("mediaXX{i:05}").into_boxed_str());
        let path: &'static str = Box::leak(format!("local_content/me/di/{}", &id[4..]).into_boxed_str());
        small.media.push((id, Some(11), Some(HELLO), true));
        small.files.push((path, b"hello media"));
    }
    small.settings = vec![("digest-media-files", 10.into())];
    let view = small.view();
    let message = |s: &Small| {
        let findings = s.restored().verify(&view);
        findings
            .into_iter()
            .find(|f| f.check == "synapse-media-contents")
            .unwrap()
            .message
    };
    assert_eq!(message(&small), "10 media compared by SHA-256, all by length");
    small.settings = vec![("digest-media-files", 0.into())];
    assert_eq!(message(&small), "0 media compared by SHA-256, all by length");
    small.settings = vec![];
    assert_eq!(message(&small), "50 media compared by SHA-256, all by length");
}

#[test]
fn after_a_leak_sessions_end_softly_and_every_statement_counts_its_rows() {
    let small = Small::new();
    let view = small.view();
    let plan = small.world().run(|| Synapse::respond(&view)).unwrap();
    let mut statements = 0;
    for step in &plan.steps {
        if let IncidentStep::RunSql(s) = step {
            statements += 1;
            assert!(s.count_sql.starts_with("SELECT count(*) FROM public."));
            assert!(!s.sql.contains(';') && !s.why.is_empty() && !s.artifacts.is_empty());
            // Deleting an access token would make clients delete their keys.
            assert!(!s.sql.contains("DELETE FROM public.access_tokens"));
        }
    }
    assert_eq!(statements, 4);
    let advised = |text: &str| {
        plan.steps
            .iter()
            .any(|s| matches!(s, IncidentStep::Advise(a) if a.text.contains(text)))
    };
    assert!(advised("old_signing_keys") && advised("restart Synapse") && advised("as_token"));
}

#[test]
fn a_failing_look_is_told_not_swallowed() {
    let asked = Rc::new(RefCell::new(0));
    let seen = asked.clone();
    let small = Small::new();
    let database = Database::postgres()
        .table("public.events", &["stream_ordering"], 1)
        .table("public.users", &[], 1)
        .table("public.schema_version", &["lock"], 1)
        .table("public.e2e_one_time_keys_json", &[], 0)
        .table("public.state_groups", &[], 1)
        .answer_with(move |sql, _| {
            *seen.borrow_mut() += 1;
            sql.contains("pg_constraint")
                .then(|| Err(InspectError::Failed("connection lost".into())))
        });
    let error = World::new()
        .database("main", database)
        .run(Synapse::plan_backup)
        .unwrap_err();
    assert!(error.text().contains("connection lost") && *asked.borrow() > 0);
    drop(small);
}
