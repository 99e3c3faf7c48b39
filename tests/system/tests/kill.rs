//! kill -9 at many moments: of a backup, the repository stays good and the next run completes; of a restore, what is
//! live stays as it was until the swap, and each piece is whole after it.
//!
//! Moments are swept twice: over the time a run takes, and over the events it prints, so that slow and fast phases are
//! both hit. A run that ended before its moment came counts as completed, and its result is checked just the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Outcome, moments};
use essrun_testkit::suite::{Suite, tree_digest};
use essrun_testkit::synapse::{Filled, fill};
use std::time::Duration;

/// A filled suite whose Synapse is stopped, with keys and pipeline.toml.
fn suite() -> (Suite, Filled) {
    let suite = Suite::create();
    let server = suite.home.start();
    let filled = fill(&server.client());
    server.stop();
    suite.prepare_backups();
    suite.essrun().run(&["init", "pipeline.toml"]).expect_success();
    (suite, filled)
}

fn backups(suite: &Suite) -> usize {
    let listed = suite.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    listed.stdout.matches("\"taken-at\"").count()
}

#[test]
fn a_backup_killed_at_any_moment() {
    let (suite, filled) = suite();
    let empty = suite.path().join("empty-repository");
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(suite.repository())
            .arg(&empty)
            .status()
            .unwrap()
            .success()
    );
    let sample = suite.back_up().expect_success();
    assert_eq!(backups(&suite), 1);

    // Into an empty repository each time: nothing to lean on.
    let mut killed = 0;
    for kill in moments(&sample, 8, 8) {
        std::fs::remove_dir_all(suite.repository()).unwrap();
        // What the host remembers and what it knows belong to the repository that is gone.
        for gone in ["cache", ".state"] {
            std::fs::remove_dir_all(suite.path().join(gone)).ok();
        }
        assert!(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(&empty)
                .arg(suite.repository())
                .status()
                .unwrap()
                .success()
        );
        let outcome = suite.essrun().run_and_kill(&["pipeline.toml"], kill);
        killed += usize::from(outcome.was_killed());
        assert!(outcome.was_killed() || outcome.code() == Some(0), "{kill:?}: {outcome}");
        let checked = suite.essrun().run(&["check", "pipeline.toml"]);
        assert_eq!(checked.code(), Some(0), "{kill:?}: {checked}");
        let there = backups(&suite);
        assert!(
            there <= 1 && (outcome.was_killed() || there == 1),
            "{kill:?}: {there} backups"
        );
    }
    assert!(
        killed >= 8,
        "only {killed} runs were still going when their moment came"
    );

    // One after the other into the same repository, so that leavings of interrupted runs pile up.
    let before = backups(&suite);
    let mut completed = 0;
    for kill in moments(&sample, 6, 6) {
        let outcome = suite.essrun().run_and_kill(&["pipeline.toml"], kill);
        completed += usize::from(!outcome.was_killed());
        assert!(outcome.was_killed() || outcome.code() == Some(0), "{kill:?}: {outcome}");
    }
    let last = suite.back_up().expect_success();
    assert_eq!(last.events_of("committed").count(), 1, "{last}");
    let there = backups(&suite);
    assert!(
        there > before + completed,
        "{there} backups after {completed} complete runs and one more"
    );
    let identity = suite.identity();
    suite
        .essrun()
        .run(&["check", "pipeline.toml", "--identity", identity.to_str().unwrap()])
        .expect_success();

    suite.destroy();
    suite.restore().expect_success();
    let server = suite.home.start();
    filled.assert_all_there(&server.client());
    server.stop();
}

#[test]
fn a_restore_killed_at_any_moment() {
    let (suite, filled) = suite();
    suite.back_up().expect_success();

    // What is live goes on after the backup: rows and files the backup does not have.
    let server = suite.home.start();
    let room = &filled.rooms[0].id;
    let later = server
        .client()
        .send_text(filled.token(0), room, "after the backup")
        .expect("a message");
    let medium = server
        .client()
        .upload(filled.token(0), "later", "text/plain", b"later".to_vec())
        .expect("an upload");
    server.stop();
    std::fs::write(suite.home.config().join("later.yaml"), "later: true\n").unwrap();

    let digests = |suite: &Suite| {
        [
            suite.database_digest("synapse"),
            tree_digest(&suite.home.media_store()),
            tree_digest(&suite.home.config()),
        ]
    };
    let live = digests(&suite);
    let identity = suite.identity();
    let args = [
        "restore",
        "pipeline.toml",
        "--identity",
        identity.to_str().unwrap(),
        "--yes",
        "--replace",
    ];

    // How long one takes, on a copy of the state: then put the live state back.
    let keep = suite.path().join("keep");
    std::fs::create_dir(&keep).unwrap();
    let save = |suite: &Suite| {
        assert!(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(&suite.home.root)
                .arg(keep.join("synapse"))
                .status()
                .unwrap()
                .success()
        );
        suite
            .cluster
            .psql(
                "postgres",
                "CREATE DATABASE keep_live TEMPLATE synapse OWNER synapse_user",
            )
            .expect("a copy");
    };
    let put_back = |suite: &Suite| {
        for name in suite.databases() {
            if name != "postgres" && name != "keep_live" {
                suite
                    .cluster
                    .psql("postgres", &format!("DROP DATABASE \"{name}\" WITH (FORCE)"))
                    .expect("dropping");
            }
        }
        suite
            .cluster
            .psql(
                "postgres",
                "CREATE DATABASE synapse TEMPLATE keep_live OWNER synapse_user",
            )
            .expect("a copy");
        std::fs::remove_dir_all(&suite.home.root).unwrap();
        assert!(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(keep.join("synapse"))
                .arg(&suite.home.root)
                .status()
                .unwrap()
                .success()
        );
    };
    save(&suite);
    let sample = suite.essrun().run_json(&args).expect_success();
    let restored = digests(&suite);
    assert!(
        live.iter().zip(&restored).all(|(a, b)| a != b),
        "the backup and what is live differ in every piece"
    );
    put_back(&suite);
    assert_eq!(digests(&suite), live, "the test puts the live state back exactly");

    let mut killed_before_the_swap = 0;
    for kill in moments(&sample, 8, 10) {
        let outcome = suite.essrun().run_and_kill(&args, kill);
        assert!(outcome.was_killed() || outcome.code() == Some(0), "{kill:?}: {outcome}");
        let now = digests(&suite);
        let swapping = outcome
            .events
            .iter()
            .any(|e| e["event"] == "phase" && e["phase"] == "swap");
        if !swapping {
            assert!(
                outcome.was_killed(),
                "{kill:?}: a restore ended well without a swap: {outcome}"
            );
            assert_eq!(
                now, live,
                "{kill:?}: something live was touched before the swap: {outcome}"
            );
            killed_before_the_swap += 1;
        } else {
            for ((now, live), restored) in now.iter().zip(&live).zip(&restored) {
                assert!(
                    now == live || now == restored,
                    "{kill:?}: a piece is neither the old nor the new one: {outcome}"
                );
            }
            put_back(&suite);
        }
    }
    assert!(
        killed_before_the_swap >= 6,
        "only {killed_before_the_swap} restores were killed before the swap"
    );
    let server = suite.home.start();
    server
        .client()
        .event(filled.token(0), room, &later)
        .expect("the live server has its last message");
    server
        .client()
        .download(filled.token(0), &medium)
        .expect("and its last medium");
    filled.assert_all_there(&server.client());
    server.stop();

    put_back(&suite);
    suite.essrun().run_json(&args).expect_success();
    assert_eq!(digests(&suite), restored);
    let server = suite.home.start();
    filled.assert_all_there(&server.client());
    server.stop();
}

/// The moments really are spread: the sweep itself must not degenerate into one point.
#[test]
fn moments_are_spread() {
    let sample = Outcome {
        command: String::new(),
        status: std::os::unix::process::ExitStatusExt::from_raw(0),
        stdout: String::new(),
        stderr: String::new(),
        events: vec![serde_json::Value::Null; 40],
        begun: std::time::Instant::now(),
        took: Duration::from_millis(800),
    };
    let text = format!("{:?}", moments(&sample, 4, 4));
    assert_eq!(
        text,
        "[After(0ns), After(200ms), After(400ms), After(600ms), AtEvent(1), AtEvent(11), AtEvent(21), AtEvent(31)]"
    );
}
