//! Drills on a real Synapse's backup: what a good one, a bad one and a killed one leave, which is nothing but its result.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Kill, Outcome};
use essrun_testkit::suite::Suite;
use std::path::{Path, PathBuf};

/// A Synapse with a user, a room and a medium, stopped, and one backup of it.
fn suite() -> Suite {
    let suite = Suite::create();
    let server = suite.home.start();
    let client = server.client();
    let alice = client.register("alice", "password", false).expect("registering");
    let room = client
        .create_room(&alice.token, &serde_json::json!({}))
        .expect("a room");
    client
        .send_text(&alice.token, &room, "Quittenschnaps")
        .expect("a message");
    let noise: Vec<u8> = (0..300_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    client
        .upload(&alice.token, "noise", "application/octet-stream", noise)
        .expect("a medium");
    server.stop();
    suite.prepare_backups();
    suite.essrun().run(&["init", "pipeline.toml"]).expect_success();
    suite.back_up().expect_success();
    suite
}

fn drill_args(suite: &Suite) -> [String; 4] {
    let identity = suite.identity().to_str().unwrap().to_owned();
    ["drill".into(), "pipeline.toml".into(), "--identity".into(), identity]
}

fn drill(suite: &Suite) -> Outcome {
    suite
        .essrun()
        .run_json(&drill_args(suite).each_ref().map(String::as_str))
}

/// What a drill could leave behind.
fn left(suite: &Suite) -> (Vec<String>, Vec<PathBuf>) {
    let scratch = suite.path().join("cache/scratch");
    let folders = match std::fs::read_dir(&scratch) {
        Ok(entries) => entries.map(|e| e.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    (suite.databases(), folders)
}

fn nothing_left(suite: &Suite) {
    let (databases, folders) = left(suite);
    assert_eq!(databases, ["postgres", "synapse"]);
    assert!(folders.is_empty(), "{folders:?}");
}

fn live(suite: &Suite) -> String {
    let volumes = std::process::Command::new("sh")
        .args(["-c", "find config media_store -printf '%p %y %m %s %T@\\n' | sort"])
        .current_dir(&suite.home.root)
        .output()
        .expect("find");
    format!(
        "{} {}",
        suite.sql("SELECT oid, (SELECT count(*) FROM events), (SELECT string_agg(name, ',' ORDER BY name) FROM users) FROM pg_database WHERE datname = 'synapse'"),
        String::from_utf8(volumes.stdout).unwrap()
    )
}

fn listed(suite: &Suite) -> Vec<serde_json::Value> {
    suite
        .essrun()
        .run_json(&["list", "pipeline.toml"])
        .expect_success()
        .events
}

fn packs(dir: &Path, found: &mut Vec<(u64, PathBuf)>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            packs(&path, found);
        } else if path.to_string_lossy().contains("/data/") {
            found.push((entry.metadata().unwrap().len(), path));
        }
    }
}

#[test]
fn a_good_one_and_bad_ones() {
    let suite = suite();
    let before = live(&suite);
    let identity = suite.identity();
    let plan = [
        "plan",
        "pipeline.toml",
        "--restore",
        "--replace",
        "--identity",
        identity.to_str().unwrap(),
    ];
    let planned = suite.essrun().run(&plan).expect_success();
    assert!(planned.stdout.contains("no estimate of the time yet"), "{planned}");
    let shown = suite.essrun().run(&["show", "pipeline.toml"]).expect_success();
    assert!(shown.stdout.contains("never restored in a drill"), "{shown}");

    let good = drill(&suite).expect_success();
    let result = good.events_of("drill").next().expect("a result");
    assert_eq!(result["passed"], true, "{good}");
    assert_eq!(result["recorded"], true, "{good}");
    assert_eq!(result["left-behind"], serde_json::json!([]), "{good}");
    assert_eq!(result["components"], serde_json::json!(["synapse"]));
    assert!(result["findings"].as_array().unwrap().len() > 5, "{good}");
    nothing_left(&suite);
    assert_eq!(live(&suite), before);

    // Kept with the backup: list, show and status say it, the plan estimates with it.
    let note = listed(&suite)[0]["drill"].clone();
    assert_eq!(note["passed"], true, "{note}");
    assert!(
        note["pace"]["database-bytes"].as_u64().unwrap() > 0 && note["pace"]["file-bytes"].as_u64().unwrap() >= 300_000,
        "{note}"
    );
    let shown = suite.essrun().run(&["show", "pipeline.toml"]).expect_success();
    assert!(
        shown.stdout.contains("restored in a drill") && shown.stdout.contains("passed"),
        "{shown}"
    );
    let list = suite.essrun().run(&["list", "pipeline.toml"]).expect_success();
    assert!(list.stdout.contains("restored in a drill"), "{list}");
    let planned = suite.essrun().run(&plan).expect_success();
    assert!(planned.stdout.contains("estimated time: "), "{planned}");
    let status = suite.essrun().run(&["status", "pipeline.toml"]).expect_success();
    assert!(
        status.stdout.contains("1 backup(s)") && status.stdout.contains("passed"),
        "{status}"
    );

    // `[status]`: a second is over at once, a year is not.
    let text = std::fs::read_to_string(suite.pipeline_file()).unwrap();
    let with = |status: &str| std::fs::write(suite.pipeline_file(), format!("{text}\n[status]\n{status}\n")).unwrap();
    with("max-age = \"365d\"\nmax-drill-age = \"365d\"");
    suite.essrun().run(&["status", "pipeline.toml"]).expect_success();
    std::thread::sleep(std::time::Duration::from_secs(2));
    with("max-age = \"1s\"");
    let old = suite.essrun().run(&["status", "pipeline.toml"]).expect_code(8);
    assert!(old.stdout.contains("PROBLEM synapse: its newest backup is"), "{old}");
    with("max-age = \"yesterday\"");
    suite
        .essrun()
        .run(&["status", "pipeline.toml"])
        .expect_code(3)
        .expect_stderr(&["length of time"]);
    std::fs::write(suite.pipeline_file(), &text).unwrap();

    // A backup that restores, and that verification finds wanting: Synapse would build its schema over the existing one.
    suite.sql("DELETE FROM schema_version");
    suite.back_up().expect_success();
    let failed = drill(&suite).expect_code(8);
    assert_eq!(failed.events_of("drill").next().unwrap()["passed"], false, "{failed}");
    nothing_left(&suite);
    let notes = listed(&suite);
    assert_eq!(notes[0]["drill"]["passed"], true, "the other backup's result stays");
    assert_eq!(notes[1]["drill"]["passed"], false, "{:?}", notes[1]);
    assert!(notes[1]["drill"]["errors"].as_u64().unwrap() > 0);
    let list = suite.essrun().run(&["list", "pipeline.toml"]).expect_success();
    assert!(list.stdout.contains("DRILL FAILED"), "{list}");
    let shown = suite.essrun().run(&["show", "pipeline.toml"]).expect_success();
    assert!(shown.stdout.contains("FAILED with"), "{shown}");

    // An object with a flipped bit: the repository is at fault, which is noted too, and nothing is touched or left.
    let before = live(&suite);
    let mut found = Vec::new();
    packs(&suite.repository(), &mut found);
    found.sort();
    let (_, pack) = found.last().expect("packs");
    let good = std::fs::read(pack).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::remove_file(pack).unwrap();
    std::fs::write(pack, &bad).unwrap();
    // Results are told apart by the second.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let broken = drill(&suite).expect_code(6);
    assert!(
        broken.stderr.contains("synapse/") && broken.stderr.contains("run `check`"),
        "{broken}"
    );
    nothing_left(&suite);
    assert_eq!(live(&suite), before);
    let note = listed(&suite)[1]["drill"].clone();
    assert_eq!(note["passed"], false);
    assert_ne!(note["why"], serde_json::Value::Null, "{note}");

    // A restore of the same tells the same, and swaps nothing. What it did stays, to be gone on with.
    let failed = suite
        .essrun()
        .run_json(&[
            "restore",
            "pipeline.toml",
            "--yes",
            "--replace",
            "--identity",
            identity.to_str().unwrap(),
        ])
        .expect_code(6);
    assert_eq!(live(&suite), before);
    assert!(failed.stderr.contains("--resume"), "{failed}");
    let databases = suite.databases();
    let (scratch, others): (Vec<_>, Vec<_>) = databases.iter().partition(|d| d.starts_with("synapse_essrun_"));
    assert!(scratch.len() <= 1 && others == ["postgres", "synapse"], "{databases:?}");
}

#[test]
fn killed_at_any_moment() {
    let suite = suite();
    let before = live(&suite);
    let sample = drill(&suite).expect_success();
    nothing_left(&suite);
    let args = drill_args(&suite);
    let args = args.each_ref().map(String::as_str);
    let events = sample.events.len();
    assert!(events >= 12, "{sample}");
    let by_time = (0..7_u32).map(|n| Kill::After(sample.took.mul_f64(f64::from(n) / 7.0)));
    let by_event = (0..7).map(|n| Kill::AtEvent(1 + n * events / 7));
    let (mut killed, mut left_something) = (0, 0);
    for kill in by_time.chain(by_event) {
        let outcome = suite.essrun().run_and_kill(&args, kill);
        assert!(outcome.was_killed() || outcome.code() == Some(0), "{kill:?}: {outcome}");
        killed += usize::from(outcome.was_killed());
        let (databases, folders) = left(&suite);
        left_something += usize::from(databases.len() > 2 || !folders.is_empty());
        assert_eq!(live(&suite), before, "{kill:?}: something live was touched");
    }
    assert!(
        killed >= 8,
        "only {killed} drills were still going when their moment came"
    );
    assert!(
        left_something >= 4,
        "only {left_something} killed drills left anything: the moments are badly chosen"
    );
    drill(&suite).expect_success();
    nothing_left(&suite);
    assert_eq!(live(&suite), before);
}
