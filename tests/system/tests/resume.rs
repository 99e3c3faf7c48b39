//! Restores that were killed at any moment and are gone on with: the result is the source, what was finished is not done
//! again, and what is found is believed only where it is as the backup has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Kill, Outcome, moments};
use essrun_testkit::site::Site;
use essrun_testkit::suite::{Suite, tree_digest};
use essrun_testkit::synapse::{Filled, fill};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn suite() -> (Suite, Filled) {
    let suite = Suite::create();
    let server = suite.home.start();
    let filled = fill(&server.client());
    server.stop();
    suite.prepare_backups();
    suite.essrun().run(&["init", "pipeline.toml"]).expect_success();
    suite.back_up().expect_success();
    // What a backup leaves out is not in what these tests compare with: the source is itself a restored one.
    lose(&suite);
    let identity = suite.identity();
    suite
        .essrun()
        .run_json(&args(identity.to_str().unwrap(), &[]))
        .expect_success();
    suite.back_up().expect_success();
    (suite, filled)
}

fn digests(suite: &Suite) -> [String; 3] {
    [
        suite.database_digest("synapse"),
        tree_digest(&suite.home.media_store()),
        tree_digest(&suite.home.config()),
    ]
}

fn args<'a>(identity: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let first = ["restore", "pipeline.toml", "--yes", "--identity", identity];
    first.into_iter().chain(more.iter().copied()).collect()
}

/// As [`Suite::destroy`], from any state a killed restore leaves.
fn lose(suite: &Suite) {
    for name in suite.databases().iter().filter(|name| *name != "postgres") {
        let drop = format!("DROP DATABASE \"{name}\" WITH (FORCE)");
        suite.cluster.psql("postgres", &drop).expect("dropping");
    }
    for entry in suite.home.root.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path == suite.home.media_store() || path == suite.home.config() || is_staging(&path) {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

fn is_staging(path: &Path) -> bool {
    path.file_name()
        .unwrap()
        .to_string_lossy()
        .starts_with(".essrun-restore-")
}

fn staging(suite: &Suite) -> Vec<PathBuf> {
    let entries = suite.home.root.read_dir().unwrap();
    entries.map(|e| e.unwrap().path()).filter(|p| is_staging(p)).collect()
}

/// Names of artifacts with this event.
fn named<'a>(outcome: &'a Outcome, event: &'a str) -> BTreeSet<&'a str> {
    outcome
        .events_of(event)
        .map(|e| e["artifact"].as_str().unwrap())
        .collect()
}

fn all_there(suite: &Suite) -> bool {
    suite.databases().contains(&"synapse".to_owned())
        && suite.home.media_store().is_dir()
        && suite.home.config().is_dir()
}

#[test]
fn killed_at_any_moment_and_gone_on_with() {
    let (suite, filled) = suite();
    let source = digests(&suite);
    let identity = suite.identity();
    let identity = identity.to_str().unwrap();
    let begin = args(identity, &[]);
    let resume = args(identity, &["--resume"]);

    // Nothing there to go on with: everything is restored.
    lose(&suite);
    let sample = suite.essrun().run_json(&resume).expect_success();
    assert_eq!(sample.events_of("kept").count(), 0, "{sample}");
    assert_eq!(digests(&suite), source);

    let (mut killed, mut with_tables, mut with_files) = (0, 0, 0);
    for kill in moments(&sample, 8, 12) {
        lose(&suite);
        let stopped = suite.essrun().run_and_kill(&begin, kill);
        assert!(stopped.was_killed() || stopped.code() == Some(0), "{kill:?}: {stopped}");
        killed += usize::from(stopped.was_killed());
        if all_there(&suite) {
            // It came to its end before its moment did.
            assert_eq!(digests(&suite), source, "{kill:?}: {stopped}");
            continue;
        }
        let resumed = suite.essrun().run_json(&resume).expect_success();
        assert_eq!(digests(&suite), source, "{kill:?}: {stopped}\n{resumed}");

        let (done, again) = (named(&stopped, "finished"), named(&resumed, "started"));
        let kept = named(&resumed, "kept");
        let is_table = |name: &&&str| name.starts_with("synapse/main/public.");
        for table in done.iter().filter(is_table) {
            assert!(
                !again.contains(table),
                "{kill:?}: {table} was loaded twice: {stopped}\n{resumed}"
            );
        }
        let with_rows = |table: &&str| {
            let sql = format!("SELECT count(*) FROM {}", table.trim_start_matches("synapse/main/"));
            suite.sql(&sql) != "0"
        };
        if let Some(table) = done.iter().filter(is_table).find(|t| with_rows(t)) {
            assert!(
                kept.contains(table),
                "{kill:?}: {table} is not said to be kept: {resumed}"
            );
            with_tables += 1;
        }
        if done.contains("synapse/media") {
            assert!(kept.contains("synapse/media"), "{kill:?}: {stopped}\n{resumed}");
            let loaded = resumed.events_of("finished").find(|e| e["artifact"] == "synapse/media");
            assert!(
                loaded.is_none_or(|e| e["bytes"] == 0),
                "media were fetched again: {resumed}"
            );
            with_files += 1;
        }
        let findings = resumed.events_of("finding").count();
        assert_eq!(
            findings,
            sample.events_of("finding").count(),
            "verification is done in full: {resumed}"
        );
        assert_eq!(suite.databases(), ["postgres", "synapse"], "{kill:?}: {resumed}");
        assert_eq!(staging(&suite), [] as [PathBuf; 0], "{kill:?}: {resumed}");
    }
    assert!(
        killed >= 12 && with_tables >= 4 && with_files >= 4,
        "{killed} killed, {with_tables} with tables, {with_files} with media"
    );
    let server = suite.home.start();
    filled.assert_all_there(&server.client());
    server.stop();
}

#[test]
fn only_the_same_and_only_what_is_right() {
    let (suite, _) = suite();
    let source = digests(&suite);
    let identity = suite.identity();
    let identity = identity.to_str().unwrap();
    let begin = args(identity, &[]);
    let resume = args(identity, &["--resume"]);
    lose(&suite);
    let sample = suite.essrun().run_json(&begin).expect_success();
    let verify = sample.events.iter().position(|e| e["phase"] == "verify").unwrap();
    let stop = || {
        lose(&suite);
        let stopped = suite.essrun().run_and_kill(&begin, Kill::AtEvent(verify + 1));
        assert!(stopped.was_killed() && !all_there(&suite), "{stopped}");
        let scratch = suite
            .databases()
            .into_iter()
            .find(|name| name.starts_with("synapse_essrun_"));
        scratch.expect("a scratch database")
    };

    // Files: what is not as it should be is restored anew, what does not belong there goes.
    stop();
    let mut tampered = 0;
    for tree in staging(&suite).iter().map(|path| path.join("tree")) {
        std::fs::write(tree.join("planted"), "planted").unwrap();
        let found = std::process::Command::new("find")
            .arg(&tree)
            .args(["-type", "f"])
            .output()
            .unwrap();
        for file in String::from_utf8(found.stdout)
            .unwrap()
            .lines()
            .filter(|f| !f.ends_with("planted"))
            .take(2)
        {
            let mut bytes = std::fs::read(file).unwrap();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
                std::fs::write(file, bytes).unwrap();
                tampered += 1;
            }
        }
    }
    assert!(tampered >= 2);
    suite.essrun().run_json(&resume).expect_success();
    assert_eq!(digests(&suite), source);

    // Rows of a finished database.
    let scratch = stop();
    suite
        .cluster
        .psql(&scratch, "UPDATE users SET admin = 1")
        .expect("tampering");
    let refused = suite.essrun().run_json(&resume).expect_code(4);
    refused.expect_stderr(&["somebody changed it", "public.users", "without --resume"]);
    assert!(!all_there(&suite));

    // Another target, another pipeline, another backup: each says what differs.
    stop();
    let elsewhere = [&resume[..], &["--to", "synapse/main=other"]].concat();
    suite
        .essrun()
        .run_json(&elsewhere)
        .expect_code(4)
        .expect_stderr(&["resume-other-target", "`synapse`"]);
    let pipeline = std::fs::read_to_string(suite.pipeline_file()).unwrap();
    let more = "\n[components.synapse.settings]\nleave-out = [\"public.user_ips\"]\n";
    std::fs::write(suite.pipeline_file(), format!("{pipeline}{more}")).unwrap();
    let changed = suite.essrun().run_json(&resume);
    assert!(changed.code() == Some(4), "{changed}");
    let changed = changed.expect_stderr(&["changed since", "without --resume"]);
    assert!(!all_there(&suite), "{changed}");
    std::fs::write(suite.pipeline_file(), &pipeline).unwrap();
    // The stopped one is still there, and can still be gone on with.
    let dry = [&resume[..], &["--dry-run"]].concat();
    let dry = suite.essrun().run(&dry).expect_success();
    assert!(dry.stdout.contains("gone on with where it was stopped"), "{dry}");
    suite.essrun().run_json(&resume).expect_success();
    assert_eq!(digests(&suite), source);
    suite.back_up().expect_success();
    lose(&suite);
    let first = sample.events_of("restore-plan").next().unwrap()["backup"]
        .as_str()
        .unwrap();
    let of_first = [&begin[..], &["--backup", first]].concat();
    let stopped = suite.essrun().run_and_kill(&of_first, Kill::AtEvent(verify + 1));
    assert!(stopped.was_killed(), "{stopped}");
    let other = suite.essrun().run_json(&resume).expect_code(4);
    other.expect_stderr(&["resume-other-backup", first]);

    // Without --resume it is begun anew, and what the stopped one left is gone.
    let anew = suite.essrun().run_json(&begin).expect_success();
    assert_eq!(anew.events_of("kept").count(), 0, "{anew}");
    assert_eq!(digests(&suite), source);
    assert_eq!(suite.databases(), ["postgres", "synapse"]);
    assert_eq!(staging(&suite), [] as [PathBuf; 0]);
}

/// A database that somebody uses stops the swap before anything is in service; the rest need not be done again.
#[test]
fn a_swap_that_was_refused() {
    let (suite, _) = suite();
    let source = digests(&suite);
    let identity = suite.identity();
    let identity = identity.to_str().unwrap();
    std::fs::write(suite.home.config().join("later.yaml"), "later: true\n").unwrap();
    suite.sql("INSERT INTO users (name, creation_ts) VALUES ('@later:example.org', 1)");
    let live = digests(&suite);
    let mut psql = suite.cluster.client("psql");
    let mut session = psql
        .args(["-X", "-q", "-d", "synapse", "-c", "SELECT pg_sleep(600)"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql");
    let active = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'synapse' AND state = 'active' AND pid <> pg_backend_pid()";
    while suite.sql(active) == "0" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let refused = suite.essrun().run_json(&args(identity, &["--replace"])).expect_code(4);
    let refused = refused.expect_stderr(&[
        "other sessions",
        "psql",
        "nothing was put in service",
        "--resume goes on",
    ]);
    // A backend that sleeps does not see its client go.
    suite.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'");
    let _ = session.kill();
    session.wait().unwrap();
    while suite.sql(active) != "0" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(digests(&suite), live, "{refused}");
    let resumed = suite
        .essrun()
        .run_json(&args(identity, &["--replace", "--resume"]))
        .expect_success();
    assert!(
        !named(&resumed, "started")
            .iter()
            .any(|name| name.starts_with("synapse/main/")),
        "{resumed}"
    );
    assert_eq!(digests(&suite), source);
}

/// Of two databases one is in service when the kill comes: it is not restored again, and what was written since stays.
#[test]
fn killed_between_two_swaps() {
    let mut site = Site::create();
    for name in ["one", "two"] {
        site.database(name);
        site.fill(name, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    }
    site.prepare(
        "[components.a]\nuse = \"generic\"\ndatabases = { main = { url-env = \"ONE_DB\" } }\n\
         [components.b]\nuse = \"generic\"\ndatabases = { main = { url-env = \"TWO_DB\" } }\n",
    );
    site.back_up().expect_success();
    let taken = site.databases();
    // Somebody's open transaction makes the second swap wait.
    let mut psql = site.cluster.client("psql");
    let mut waited_for = psql
        .args(["-X", "-q", "-d", "postgres", "-c"])
        .arg("BEGIN; COMMENT ON DATABASE two IS 'locked'; SELECT pg_sleep(600)")
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql");
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    while site.sql("postgres", asleep) == "0" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let identity = site.identity();
    let begin = args(identity.to_str().unwrap(), &["--replace"]);
    let stopped = site.essrun().run_and_kill(&begin, Kill::AtKind("swapped"));
    assert!(stopped.was_killed(), "{stopped}");
    // The killed one's session waits still, and must not be the one that swaps.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%RENAME TO%' AND pid <> pg_backend_pid()";
    site.sql("postgres", end);
    site.sql(
        "postgres",
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
    );
    let _ = waited_for.kill();
    waited_for.wait().unwrap();
    let before = |name: &str| {
        let began = format!("{name}_before_");
        site.databases().iter().filter(|d| d.starts_with(&began)).count()
    };
    assert_eq!((before("one"), before("two")), (1, 0), "{stopped}");

    site.fill("one", "INSERT INTO t VALUES (2)");
    site.drop_database("two");
    let resume = args(identity.to_str().unwrap(), &["--resume"]);
    let plan = site
        .essrun()
        .run(&[&resume[..], &["--dry-run"]].concat())
        .expect_success();
    assert!(plan.stdout.contains("in service already"), "{plan}");
    let resumed = site.essrun().run_json(&resume).expect_success();
    assert!(named(&resumed, "kept").contains("a/main"), "{resumed}");
    assert!(
        !named(&resumed, "started").iter().any(|name| name.starts_with("a/")),
        "{resumed}"
    );
    let swapped: Vec<_> = resumed
        .events_of("swapped")
        .map(|e| e["component"].as_str().unwrap())
        .collect();
    assert_eq!(swapped, ["b"], "{resumed}");
    assert_eq!(
        site.sql("one", "SELECT string_agg(a::text, ',' ORDER BY a) FROM t"),
        "1,2"
    );
    assert_eq!(site.sql("two", "SELECT a FROM t"), "1");
    assert_eq!((before("one"), before("two")), (1, 0));
    assert_eq!(site.databases().len(), taken.len() + 1);

    // Without --resume it is as any database that is there; and another restore is another.
    let again = args(identity.to_str().unwrap(), &[]);
    let again = site.essrun().run_json(&again).expect_code(4);
    again.expect_stderr(&["target-not-empty"]);
    site.back_up().expect_success();
    let other = site.essrun().run_json(&resume).expect_code(4);
    other.expect_stderr(&["target-not-empty"]);
}
