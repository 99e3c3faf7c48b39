//! Synapse and MAS as one group: backed up while writers commit to Synapse's database and then to MAS's, lost, restored,
//! and compared. On one server, on two, what is refused, and what is said where they are no group. And a Synapse of two
//! databases, which are a group by themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Kill, Outcome};
use essrun_testkit::pair::{LOOKED_AT, Pair};
use essrun_testkit::postgres::Cluster;
use essrun_testkit::suite::Suite;
use essrun_testkit::synapse::Database;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const WRITERS: usize = 3;

/// Writers that commit a user with a device to Synapse's database, then to MAS's, without pause.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    fn start(pair: &Pair, round: usize) -> Writers {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..WRITERS)
            .map(|who| {
                let (stop, written) = (stop.clone(), written.clone());
                let (synapse, mas) = (pair.suite.database.url(), pair.mas.database.url());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime.block_on(write(round, who, &synapse, &mas, &stop, &written));
                })
            })
            .collect();
        let writers = Writers { stop, written, threads };
        writers.wait_for_more();
        writers
    }

    fn wait_for_more(&self) {
        let before = self.written.load(Ordering::Relaxed);
        while self.written.load(Ordering::Relaxed) < before + 20 {
            assert!(self.threads.iter().all(|t| !t.is_finished()), "a writer has failed");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a writer has failed");
        }
        self.written.load(Ordering::Relaxed)
    }
}

async fn write(round: usize, who: usize, synapse: &str, mas: &str, stop: &AtomicBool, written: &AtomicU64) {
    let synapse = connect(synapse).await;
    let mas = connect(mas).await;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (user, device) = (format!("w{round}x{who}x{n}"), format!("D{round}X{who}X{n}"));
        synapse
            .batch_execute(&format!(
                "BEGIN; INSERT INTO users (name, creation_ts) VALUES ('@{user}:example.org', 1); \
                 INSERT INTO devices (user_id, device_id, hidden) VALUES ('@{user}:example.org', '{device}', false); COMMIT"
            ))
            .await
            .expect("writing to Synapse's database");
        mas.batch_execute(&format!(
            "BEGIN; INSERT INTO users (user_id, username, created_at) VALUES (gen_random_uuid(), '{user}', now()); \
             INSERT INTO compat_sessions (compat_session_id, user_id, device_id, created_at) \
             SELECT gen_random_uuid(), user_id, '{device}', now() FROM users WHERE username = '{user}'; COMMIT"
        ))
        .await
        .expect("writing to MAS's database");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .expect("connecting");
    tokio::spawn(connection);
    client
}

fn finding<'a>(outcome: &'a Outcome, check: &str) -> &'a serde_json::Value {
    outcome
        .events_of("finding")
        .find(|f| f["check"] == check)
        .unwrap_or_else(|| panic!("no finding {check} in\n{outcome}"))
}

/// Backups under load, each restored after everything was lost: no effect without its cause.
fn never_an_effect_without_its_cause(pair: &Pair, how: &str, words: &str, taken: &str) {
    let schema = pair.schema_of_mas();
    for round in 0..2 {
        let writers = Writers::start(pair, round);
        let backup = pair.essrun().run_json(&["pipeline.toml"]).expect_success();
        writers.wait_for_more();
        let written = writers.stop();
        let instant = backup.events_of("instant").next().expect("an instant");
        assert_eq!(instant["group"], "core");
        assert_eq!(instant["databases"], serde_json::json!(["synapse/main", "mas/main"]));
        assert_eq!(instant["reached"]["how"], how, "{backup}");
        let shown = pair.run(&["show", "pipeline.toml"]).expect_success();
        let reached = &instant["reached"];
        let number = |name: &str| reached[name].as_f64().unwrap();
        let tries = match number("tries") {
            1.0 => "1 try".to_owned(),
            more => format!("{more} tries"),
        };
        let words = words
            .replace(
                "HOLD",
                &format!("{:.1} ms", reached["hold_ms"].as_f64().unwrap_or_default()),
            )
            .replace("GAP", &format!("{:.1} ms", number("gap_ms")))
            .replace("TRIES", &tries);
        assert!(shown.stdout.contains(&words), "{words}: {shown}");

        let live = pair.synapse_devices();
        pair.destroy();
        let restored = pair
            .run_with_identity(&["restore", "pipeline.toml", "--yes"])
            .expect_success();
        // MAS looks at Synapse, so Synapse comes first, although "mas" does by name.
        let plan = restored.events_of("restore-plan").next().expect("a plan");
        let order: Vec<_> = plan["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| &c["component"])
            .collect();
        assert_eq!(order, ["synapse", "mas"], "{restored}");
        let swapped: Vec<_> = restored
            .events_of("swapped")
            .map(|e| format!("{}/{}", e["component"].as_str().unwrap(), e["label"].as_str().unwrap()))
            .collect();
        assert_eq!(
            swapped,
            [
                "synapse/media",
                "synapse/config",
                "mas/config",
                "synapse/main",
                "mas/main"
            ],
            "{restored}"
        );
        let (causes, effects) = (pair.synapse_devices(), pair.mas_devices());
        let without: Vec<_> = effects.difference(&causes).collect();
        assert!(without.is_empty(), "MAS knows what Synapse does not: {without:?}");
        let under_way: Vec<_> = causes.difference(&effects).collect();
        let ours = format!("D{round}X");
        let of_this_round = under_way.iter().filter(|(_, device)| device.starts_with(&ours)).count();
        assert!(
            of_this_round <= WRITERS,
            "{under_way:?} were under way, of {WRITERS} writers"
        );
        assert!(
            causes.len() > 3 && causes.is_subset(&live),
            "{} devices, {written} written",
            causes.len()
        );
        assert!(
            causes.len() < live.len(),
            "what was written after the backup is not in it"
        );
        // The components came to the same result in what was restored.
        for check in [
            "mas-synapse-users-missing-in-synapse",
            "mas-synapse-devices-missing-in-synapse",
        ] {
            assert_eq!(finding(&restored, check)["severity"], "info", "{restored}");
        }
        let gap = finding(&restored, "mas-synapse-gap");
        assert_eq!(gap["severity"], "info", "{gap}");
        assert!(gap["message"].as_str().unwrap().contains(taken), "{gap}");
        let said = finding(&restored, "mas-synapse-pair")["message"]
            .as_str()
            .unwrap()
            .to_owned();
        let both = causes.len() - under_way.len();
        assert!(
            said.contains(&format!("{both} devices are on both sides")),
            "{both}: {said}"
        );
        assert_eq!(
            finding(&restored, "mas-encryption-secret")["severity"],
            "info",
            "{restored}"
        );
    }
    // MAS's database as a whole: tables, keys, triggers, and an UNLOGGED table that comes back empty.
    assert_eq!(pair.schema_of_mas(), schema);
    assert_eq!(
        pair.mas_sql("SELECT count(*) FILTER (WHERE relname <> '_sqlx_migrations'), count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"),
        "33|34"
    );
    assert_eq!(
        pair.mas_sql(
            "SELECT relpersistence, (SELECT count(*) FROM queue_leader) FROM pg_class WHERE relname = 'queue_leader'"
        ),
        "u|0"
    );
    assert_eq!(
        pair.mas_sql("SELECT count(*), count(*) FILTER (WHERE success) FROM _sqlx_migrations"),
        "167|167"
    );
    let server = pair.suite.home.start();
    server.client().login("alice", "password").expect("Synapse works");
    server.stop();
}

#[test]
fn on_one_server_at_the_same_instant() {
    let pair = Pair::new(false);
    never_an_effect_without_its_cause(
        &pair,
        "same-instant",
        "2 databases at the same instant (TRIES",
        "at the same instant",
    );

    // What the checks find when the two do not fit, with names, and how it was when the backup was taken.
    pair.run(&["pipeline.toml"]).expect_success();
    pair.suite
        .sql("INSERT INTO devices (user_id, device_id, hidden) VALUES ('@alice:example.org', 'LATER', false)");
    pair.suite
        .sql("INSERT INTO users (name, creation_ts) VALUES ('@onlysynapse:example.org', 1)");
    pair.mas_sql("INSERT INTO users (user_id, username, created_at) VALUES (gen_random_uuid(), 'onlymas', now())");
    pair.mas_sql("INSERT INTO compat_sessions (compat_session_id, user_id, device_id, created_at) SELECT gen_random_uuid(), user_id, 'NOWHERE', now() FROM users WHERE username = 'bob'");
    let expected = [
        ("mas-synapse-devices-to-be-deleted", "alice LATER"),
        ("mas-synapse-users-missing-in-mas", "onlysynapse"),
        ("mas-synapse-users-missing-in-synapse", "onlymas"),
        ("mas-synapse-devices-missing-in-synapse", "bob NOWHERE"),
    ];
    // MAS alone from the backup before, beside the live Synapse: only what Synapse has more is told, as new.
    let older = pair
        .run_with_identity(&[
            "restore",
            "pipeline.toml",
            "--yes",
            "--only",
            "mas",
            "--to",
            "mas/main=mas_copy",
            "--to",
            "mas/config=mas-copy",
        ])
        .expect_success();
    let told = finding(&older, expected[0].0);
    assert_eq!(told["severity"], "warning", "{older}");
    assert!(told["message"].as_str().unwrap().contains("alice LATER"), "{told}");
    assert!(told["remedy"].as_str().unwrap().contains("same instant"), "{told}");
    assert_eq!(finding(&older, expected[2].0)["severity"], "info", "{older}");
    let gap = finding(&older, "mas-synapse-gap");
    assert_eq!(gap["severity"], "warning", "{gap}");
    assert!(
        gap["message"].as_str().unwrap().contains("not restored with it"),
        "{gap}"
    );
    assert!(gap["remedy"].as_str().unwrap().contains("mas-cli manage"), "{gap}");

    let backup = pair.run(&["pipeline.toml"]).expect_success();
    assert!(
        backup
            .stderr
            .contains("the next device sync of these users deletes them"),
        "{backup}"
    );
    let drilled = pair.run_with_identity(&["drill", "pipeline.toml"]).expect_success();
    for (check, name) in expected {
        let f = finding(&drilled, check);
        assert_eq!(f["severity"], "warning", "{f}");
        let message = f["message"].as_str().unwrap();
        assert!(
            message.contains(name) && message.contains("when the backup was taken"),
            "{f}"
        );
        assert_ne!(f["remedy"], "", "{f}");
    }

    // Jobs that would run again are shown before anything is done, and can be held back.
    let identity = pair.suite.identity();
    let plan = [
        "plan",
        "pipeline.toml",
        "--restore",
        "--replace",
        "--identity",
        identity.to_str().unwrap(),
    ];
    let planned = pair.run(&plan).expect_success();
    for job in ["send-account-recovery-email", "deactivate-user"] {
        assert!(
            planned
                .stdout
                .contains(&format!("1 waiting jobs of `{job}` run when MAS starts")),
            "{planned}"
        );
    }
    let text = std::fs::read_to_string(pair.suite.pipeline_file()).unwrap();
    std::fs::write(
        pair.suite.pipeline_file(),
        format!("{text}\n[components.mas.settings]\nhold-back = [\"deactivate-*\"]\n"),
    )
    .unwrap();
    pair.destroy();
    pair.run_with_identity(&["restore", "pipeline.toml", "--yes"])
        .expect_success();
    assert_eq!(
        pair.mas_sql("SELECT queue_name, status FROM queue_jobs ORDER BY 1"),
        "deactivate-user|failed\nsend-account-recovery-email|available"
    );
}

#[test]
fn on_two_servers_behind_a_fence() {
    let pair = Pair::new(true);
    never_an_effect_without_its_cause(
        &pair,
        "fenced",
        "2 databases behind a lock fence held for HOLD, snapshots GAP apart (TRIES",
        "behind one lock fence",
    );

    // One instant cannot be had over two servers: refused before anything is taken.
    pair.accept("instant");
    let before = pair.run(&["list", "pipeline.toml"]).expect_success().stdout;
    let refused = pair.run(&["pipeline.toml"]);
    assert_eq!(refused.code(), Some(5), "{refused}");
    let refused = refused.expect_stderr(&["core", "different servers", "accept", "fence", "ordered"]);
    assert!(!refused.stderr.contains(&pair.mas.database.password));
    assert_eq!(pair.run(&["list", "pipeline.toml"]).expect_success().stdout, before);

    // In order, when nothing better can be had: MAS's tables are in somebody's hands.
    pair.accept("ordered");
    let mut psql = pair.mas_cluster().client("psql");
    let mut holder = psql
        .args([
            "-X",
            "-q",
            "-d",
            "mas",
            "-c",
            "BEGIN; LOCK TABLE users IN ROW EXCLUSIVE MODE; SELECT pg_sleep(600)",
        ])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql");
    while pair.mas_sql("SELECT count(*) FROM pg_locks WHERE relation = 'users'::regclass AND mode = 'RowExclusiveLock'")
        == "0"
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let backup = pair.essrun().run_json(&["pipeline.toml"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let backup = backup.expect_success();
    let reached = &backup.events_of("instant").next().expect("an instant")["reached"];
    assert_eq!(reached["how"], "ordered", "{backup}");
    assert!(reached["gap_ms"].as_f64().is_some_and(|gap| gap > 0.0), "{reached}");
    let taken = |n: usize| reached["members"][n]["taken_at_unix_ms"].as_u64().unwrap();
    assert_eq!(
        reached["members"][0]["label"], "synapse/main",
        "Synapse first: an older MAS deletes devices"
    );
    assert!(taken(0) <= taken(1), "{reached}");
    let shown = pair.run(&["show", "pipeline.toml"]).expect_success();
    assert!(
        shown.stdout.contains("one after the other") && shown.stdout.contains("synapse/main, then mas/main"),
        "{shown}"
    );
    // Every fence that came to nothing held Synapse's tables while it waited for MAS's.
    let tries = reached["tries"].as_u64().unwrap();
    let (gap, waited) = (
        reached["gap_ms"].as_f64().unwrap(),
        reached["fenced_ms"].as_f64().unwrap(),
    );
    assert!(tries > 2 && waited > 0.0 && reached["hold_ms"].is_null(), "{reached}");
    let words = format!("{gap:.1} ms apart ({tries} tries; writers waited {waited:.1} ms over all tries)");
    assert!(shown.stdout.contains(&words), "{words}: {shown}");

    // The gap is told before a restore and found after it, with what to do.
    let drilled = pair.run_with_identity(&["drill", "pipeline.toml"]).expect_success();
    let gap = finding(&drilled, "mas-synapse-gap");
    assert_eq!(gap["severity"], "warning", "{gap}");
    assert!(gap["message"].as_str().unwrap().contains("after Synapse's"), "{gap}");
    assert!(
        gap["remedy"]
            .as_str()
            .unwrap()
            .contains("mas-cli manage provision-all-users"),
        "{gap}"
    );
    let planned = pair
        .run_with_identity(&["plan", "pipeline.toml", "--restore", "--replace"])
        .expect_success();
    assert!(
        planned.stdout.contains("taken") && planned.stdout.contains("after Synapse's"),
        "{planned}"
    );
}

#[test]
fn what_is_taken_apart_is_said() {
    let pair = Pair::new(false);
    pair.write("");
    let lines = "    [groups.core]\n    consistent = [\"synapse\", \"mas\"]";
    let said = pair.run(&["validate", "pipeline.toml"]).expect_success();
    assert!(
        said.stdout
            .contains("mas/main and synapse/main, which it looks at as `synapse`, are not taken at one instant")
            && said.stdout.contains(lines),
        "{said}"
    );
    let backup = pair.run(&["pipeline.toml"]).expect_success();
    assert!(backup.stderr.contains(lines), "{backup}");
    // Those lines are all it takes; and a group there is gets one more.
    pair.write("[groups.core]\nconsistent = [\"synapse\"]\n");
    let said = pair.run(&["validate", "pipeline.toml"]).expect_success();
    assert!(said.stdout.contains(lines), "{said}");
    pair.write(lines);
    let said = pair.run(&["validate", "pipeline.toml"]).expect_success();
    assert!(!said.stdout.contains("not taken at one instant"), "{said}");
    assert!(
        !said.stdout.contains("no database that a component here backs up"),
        "{said}"
    );

    // A peer that is none of these databases: it is another, however alike.
    pair.suite
        .cluster
        .psql("postgres", "CREATE DATABASE other TEMPLATE synapse")
        .expect("another database");
    let other = Database {
        name: "other".to_owned(),
        ..pair.looked_at.clone()
    };
    let elsewhere = pair.essrun().env(LOOKED_AT, other.url());
    let said = elsewhere.run(&["validate", "pipeline.toml"]).expect_success();
    let words = format!(
        "synapse (localhost:{}/other) is no database that a component here backs up",
        other.port
    );
    assert!(said.stdout.contains(&words), "{said}");

    // Everything is lost and MAS alone comes back: nothing is claimed of a Synapse that is not there.
    pair.run(&["pipeline.toml"]).expect_success();
    pair.destroy();
    let restored = pair
        .run_with_identity(&["restore", "pipeline.toml", "--yes", "--only", "mas"])
        .expect_success();
    for (check, words) in [
        ("mas-synapse-gap", "neither restored with this one nor there"),
        ("mas-synapse-pair", "Synapse's database is not there"),
    ] {
        let f = finding(&restored, check);
        assert_eq!(f["severity"], "warning", "{f}");
        assert!(f["message"].as_str().unwrap().contains(words), "{f}");
    }
}

/// Splits a Synapse that was never started over two databases.
fn split(suite: &Suite, state: &Database) {
    let file = suite.home.config_file();
    let text = std::fs::read_to_string(&file).unwrap();
    let args = text
        .lines()
        .find(|line| line.starts_with("  args: "))
        .expect("how main is reached");
    let whole = format!("database:\n  name: psycopg2\n{args}\n");
    assert!(text.contains(&whole), "{text}");
    let of_state = format!(
        "  args: {{user: '{}', password: '{}', dbname: '{}', host: '{}', port: {}, cp_min: 1, cp_max: 5}}",
        state.user, state.password, state.name, state.host, state.port
    );
    let two = format!(
        "databases:\n  main:\n    name: psycopg2\n    data_stores: [main]\n  {args}\n\
         \x20 state:\n    name: psycopg2\n    data_stores: [state]\n  {of_state}\n"
    );
    std::fs::write(&file, text.replace(&whole, &two)).unwrap();
}

#[test]
fn a_synapse_of_two_databases_on_two_servers() {
    let suite = Suite::create();
    let second = Cluster::builder().password("other").start().expect("a second server");
    let state = Database {
        port: second.port(),
        user: "state_user".to_owned(),
        name: "synapse_state".to_owned(),
        ..suite.database.clone()
    };
    for sql in [
        format!("CREATE ROLE state_user LOGIN CREATEDB PASSWORD '{}'", state.password),
        "CREATE DATABASE synapse_state OWNER state_user ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0".to_owned(),
    ] {
        second.psql("postgres", &sql).expect("a database of state groups");
    }
    split(&suite, &state);
    let server = suite.home.start();
    let client = server.client();
    let alice = client.register("alice", "password", false).expect("registering");
    let room = client
        .create_room(&alice.token, &json!({"name": "the room", "preset": "public_chat"}))
        .expect("a room");
    let event = client.send_text(&alice.token, &room, "before").expect("a message");
    let groups = "SELECT count(*) > 0 FROM state_groups";
    assert_eq!(second.psql("synapse_state", groups).unwrap(), "t");
    assert_eq!(suite.sql("SELECT to_regclass('public.state_groups') IS NULL"), "t");

    // Nothing is stopped. Without the second database nothing is taken either.
    suite.prepare_backups();
    let essrun = suite.essrun().env("STATE_DB", state.url());
    essrun.run(&["init", "pipeline.toml"]).expect_success();
    let refused = essrun.run(&["pipeline.toml"]);
    assert_ne!(refused.code(), Some(0), "{refused}");
    refused.expect_stderr(&["grant it as `state`"]);
    let text = std::fs::read_to_string(suite.pipeline_file()).unwrap();
    let main = "main = { url-env = \"SYNAPSE_DB\" }";
    assert!(text.contains(main), "{text}");
    let both = text.replace(main, &format!("{main}, state = {{ url-env = \"STATE_DB\" }}"));
    let told = format!("{both}\n[components.synapse.settings]\nversion = \"1.163.2\"\n");
    std::fs::write(suite.pipeline_file(), told).unwrap();
    let backup = essrun.run_json(&["pipeline.toml"]).expect_success();
    let instant = backup.events_of("instant").next().expect("an instant");
    assert_eq!(
        instant["databases"],
        json!(["synapse/main", "synapse/state"]),
        "{instant}"
    );
    assert_eq!(instant["reached"]["how"], "fenced", "{instant}");
    client.send_text(&alice.token, &room, "after").expect("a message");
    server.stop();
    let shown = essrun.run(&["show", "pipeline.toml"]).expect_success();
    assert!(shown.stdout.contains("  version = 1.163.2\n"), "{shown}");

    suite.destroy();
    second
        .psql("postgres", "DROP DATABASE synapse_state WITH (FORCE)")
        .expect("dropping the database");
    let identity = suite.identity();
    let restored = essrun
        .run_json(&[
            "restore",
            "pipeline.toml",
            "--identity",
            identity.to_str().unwrap(),
            "--yes",
        ])
        .expect_success();
    for check in [
        "synapse-locale-state",
        "synapse-versions-state",
        "synapse-single-rows-state",
        "synapse-streams-state",
        "row-counts-state",
        "row-counts-main",
        "synapse-membership-tables",
        "synapse-server-name",
    ] {
        assert_eq!(finding(&restored, check)["severity"], "info", "{restored}");
    }
    let versions = finding(&restored, "synapse-versions-main")["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(versions.contains("best start Synapse 1.163.2"), "{versions}");
    // Every sequence and stream of this Synapse is known.
    let unknown = |e: &serde_json::Value| e["check"].as_str().unwrap().starts_with("synapse-streams-unknown");
    assert!(!restored.events_of("finding").any(unknown), "{restored}");
    let server = suite.home.start();
    let client = server.client();
    let alice = client.login("alice", "password").expect("logging in");
    let found = client.event(&alice.token, &room, &event).expect("the message");
    assert_eq!(found["content"]["body"], "before");
    // State is read and made again.
    let name = client.state(&alice.token, &room, "m.room.name").expect("the state");
    assert_eq!(name["name"], "the room");
    client
        .set_state(&alice.token, &room, "m.room.topic", &json!({"topic": "again"}))
        .expect("new state");
    client.send_text(&alice.token, &room, "again").expect("a message");
    server.stop();
}

/// Synapse is in service when the kill comes, and used: what was counted before is no measure of the pair any more.
#[test]
fn a_synapse_in_service_may_have_more_than_it_had() {
    let pair = Pair::new(false);
    let file = pair.suite.pipeline_file();
    // Databases only, and Synapse's first in the order of names.
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("volumes = "));
    let text: Vec<String> = lines
        .map(|line| match line {
            "[components.synapse]" => "[components.homeserver]".to_owned(),
            line => line.replace("[\"mas\", \"synapse\"]", "[\"mas\", \"homeserver\"]"),
        })
        .collect();
    std::fs::write(&file, text.join("\n")).unwrap();
    pair.run(&["pipeline.toml"]).expect_success();

    // Somebody's open transaction makes the second swap wait.
    let mut psql = pair.suite.cluster.client("psql");
    let mut waited_for = psql
        .args(["-X", "-q", "-d", "postgres", "-c"])
        .arg("BEGIN; COMMENT ON DATABASE mas IS 'locked'; SELECT pg_sleep(600)")
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql");
    let sql = |sql: &str| pair.suite.cluster.psql("postgres", sql).expect("a query");
    while sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "0" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let identity = pair.suite.identity();
    let restore = [
        "restore",
        "pipeline.toml",
        "--yes",
        "--identity",
        identity.to_str().unwrap(),
    ];
    let stopped = pair
        .essrun()
        .run_and_kill(&[&restore[..], &["--replace"]].concat(), Kill::AtKind("swapped"));
    assert!(stopped.was_killed(), "{stopped}");
    // The killed one's session waits still, and must not be the one that swaps.
    sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%RENAME TO%' AND pid <> pg_backend_pid()",
    );
    sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
    let _ = waited_for.kill();
    waited_for.wait().unwrap();

    pair.suite
        .sql("INSERT INTO devices (user_id, device_id, hidden) VALUES ('@alice:example.org', 'LATER', false)");
    sql("DROP DATABASE mas WITH (FORCE)");
    let resumed = pair
        .essrun()
        .run_json(&[&restore[..], &["--resume"]].concat())
        .expect_success();
    let swapped: Vec<_> = resumed.events_of("swapped").map(|e| e["component"].clone()).collect();
    assert_eq!(swapped, [json!("mas")], "{resumed}");
    let told = finding(&resumed, "mas-synapse-devices-to-be-deleted");
    assert_eq!(told["severity"], "warning", "{told}");
    assert!(told["message"].as_str().unwrap().contains("alice LATER"), "{told}");
}
