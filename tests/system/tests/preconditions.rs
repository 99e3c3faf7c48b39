//! What stands in the way of a restore is said before the first step, each with what to do, and nothing is changed. And
//! the runbook, which is for the day when all of it does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Essrun, Outcome};
use essrun_testkit::mount::Mounted;
use essrun_testkit::postgres::Cluster;
use essrun_testkit::site::Site;
use essrun_testkit::suite::{Suite, tree_digest};
use serde_json::Value;
use std::path::Path;

const REFUSED: i32 = 4;
/// Of a tmpfs into which the medium does not fit.
const SMALL: &str = "size=64k";

fn suite() -> Suite {
    let suite = Suite::create();
    let server = suite.home.start();
    let alice = server
        .client()
        .register("alice", "password", false)
        .expect("registering");
    server
        .client()
        .upload(&alice.token, "medium", "text/plain", vec![b'x'; 200_000])
        .expect("a medium");
    server.stop();
    suite.prepare_backups();
    suite.essrun().run(&["init", "pipeline.toml"]).expect_success();
    suite.back_up().expect_success();
    suite
}

struct Tried<'a> {
    suite: &'a Suite,
    essrun: Essrun,
}

impl Tried<'_> {
    fn of(suite: &Suite) -> Tried<'_> {
        Tried {
            suite,
            essrun: suite.essrun(),
        }
    }

    /// With the database somewhere else.
    fn at<'a>(suite: &'a Suite, url: &str) -> Tried<'a> {
        Tried {
            suite,
            essrun: suite.essrun().env("SYNAPSE_DB", url),
        }
    }

    fn run(&self, verb: &[&str], more: &[&str]) -> Outcome {
        let identity = self.suite.identity();
        let identity = ["--identity", identity.to_str().unwrap()];
        let args: Vec<&str> = verb.iter().chain(&identity).chain(more).copied().collect();
        self.essrun.run_json(&args)
    }

    fn restore(&self, more: &[&str]) -> Outcome {
        self.run(&["restore", "pipeline.toml", "--yes"], more)
    }

    /// The plan's finding `check` about `label`; the plan itself never fails for what it finds.
    fn planned(&self, label: &str, check: &str, more: &[&str]) -> Value {
        let planned = self.run(&["restore", "pipeline.toml", "--dry-run"], more);
        let plan = planned
            .events_of("restore-plan")
            .next()
            .unwrap_or_else(|| panic!("no plan in {planned}"));
        plan["components"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|c| c["preconditions"].as_array().unwrap())
            .find(|p| p["label"] == label && p["check"] == check)
            .unwrap_or_else(|| panic!("no {check} of {label} in {planned}"))
            .clone()
    }

    /// Refused for `check`, in the plan and when it is tried; the error says what to do.
    fn refused(&self, label: &str, check: &str, more: &[&str]) {
        let before = state(self.suite);
        let planned = self.planned(label, check, more);
        assert_eq!(planned["severity"], "error", "{planned}");
        assert_ne!(planned["remedy"], "", "{planned}");
        self.restore(more).expect_code(REFUSED).expect_stderr(&[
            check,
            planned["message"].as_str().unwrap(),
            "nothing was changed",
        ]);
        assert_eq!(state(self.suite), before, "{check}: something was changed");
    }
}

fn state(suite: &Suite) -> String {
    let tree = std::process::Command::new("sh")
        .args(["-c", "find . -path ./run -prune -o -printf '%p %y %m %s %T@\\n' | sort"])
        .current_dir(&suite.home.root)
        .output()
        .expect("find");
    let databases = suite
        .cluster
        .psql("postgres", "SELECT oid, datname FROM pg_database ORDER BY 1")
        .unwrap();
    format!("{databases}\n{}", String::from_utf8(tree.stdout).unwrap())
}

fn role(cluster: &Cluster, role: &str) {
    cluster
        .psql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'pw' "))
        .unwrap();
}

fn url(cluster: &Cluster, role: &str, database: &str) -> String {
    format!("postgresql://{role}:pw@127.0.0.1:{}/{database}", cluster.port())
}

#[test]
fn each_one_violated() {
    let suite = suite();
    let live = Tried::of(&suite);

    // Targets that hold something; with --replace they are kept, which is only told.
    live.refused("main", "target-not-empty", &[]);
    live.refused("media", "volume-destination", &[]);
    let told = live.planned("main", "target-not-empty", &["--replace"]);
    assert_eq!(told["severity"], "info", "{told}");

    // Elsewhere: a label nobody knows, a directory that is not there yet, a file system without room.
    for unknown in ["synapse/nothing=x", "mas/main=x", "synapse=x", "synapse/main="] {
        live.restore(&["--to", unknown])
            .expect_code(REFUSED)
            .expect_stderr(&["--to", "hint:"]);
    }
    let elsewhere = suite.path().join("not/there/media");
    let to = format!("synapse/media={}", elsewhere.display());
    let told = live.planned("media", "parent-missing", &["--to", &to]);
    assert_eq!(told["severity"], "warning", "{told}");
    assert!(told["message"].as_str().unwrap().contains("not"), "{told}");
    assert!(!suite.path().join("not").exists(), "planning makes nothing");
    if let Some(small) = Mounted::tmpfs(&suite.path().join("small"), SMALL) {
        let to = format!("synapse/media={}/media", small.path().display());
        live.refused("media", "space-short", &["--to", &to, "--replace"]);
        let told = live.planned("media", "space-short", &["--to", &to]);
        assert!(told["remedy"].as_str().unwrap().contains("--force-space"), "{told}");
        let told = live.planned("media", "space-short", &["--to", &to, "--force-space"]);
        assert_eq!(told["severity"], "warning", "{told}");
    }
    // Who may not be told where the server keeps its data is told how much will be needed there.
    let told = live.planned("main", "space-unknown", &[]);
    assert_eq!(told["severity"], "warning", "{told}");
    assert!(
        told["message"].as_str().unwrap().contains("MiB will be needed"),
        "{told}"
    );

    // A place nobody may write to, whatever permissions say, and one with something mounted inside.
    if let Some(mounted) = Mounted::tmpfs(&suite.path().join("mounted"), SMALL) {
        let (inner, to) = (
            mounted.path().join("inner"),
            format!("synapse/media={}", mounted.path().display()),
        );
        let nested = Mounted::tmpfs(&inner, SMALL).expect("a mount in a mount");
        live.refused(
            "media",
            "volume-destination",
            &["--to", &to, "--replace", "--force-space"],
        );
        drop(nested);
        mounted.again("ro");
        let to = format!("synapse/media={}/media", mounted.path().display());
        live.refused("media", "volume-destination", &["--to", &to, "--force-space"]);
        let told = live.planned("media", "volume-destination", &["--to", &to]);
        assert!(told["message"].as_str().unwrap().contains("read-only"), "{told}");
    }

    // Keys: none at all, somebody else's, a file that is no key.
    suite
        .essrun()
        .run(&["restore", "pipeline.toml", "--yes"])
        .expect_code(6)
        .expect_stderr(&["identity"]);
    suite
        .essrun()
        .run(&["keygen", "identity", "--output", "other.txt"])
        .expect_success();
    let other = suite
        .essrun()
        .run(&["restore", "pipeline.toml", "--yes", "--identity", "other.txt"]);
    assert_eq!(other.code(), Some(6), "{other}");
    suite
        .essrun()
        .run(&["restore", "pipeline.toml", "--yes", "--identity", "pipeline.toml"])
        .expect_code(3);

    // A component the backup lacks, and one that failed when it was taken.
    let text = std::fs::read_to_string(suite.pipeline_file()).unwrap();
    let mas =
        "\n[components.mas]\nuse = \"mas\"\ndatabases = { main = { url = \"postgresql://nobody@127.0.0.1:1/mas\" } }\n";
    std::fs::write(suite.pipeline_file(), format!("{text}{mas}")).unwrap();
    live.restore(&["--only", "mas"]).expect_code(REFUSED).expect_stderr(&[
        "mas",
        "the backup does not hold it",
        "essrun list",
    ]);
    let plan = live.run(&["restore", "pipeline.toml", "--dry-run"], &[]);
    assert!(
        plan.stdout
            .contains("component mas is not restored: the backup does not hold it"),
        "{plan}"
    );
    suite.back_up().expect_code(9);
    live.restore(&["--only", "mas"])
        .expect_code(REFUSED)
        .expect_stderr(&["it failed when the backup was taken"]);
    let status = suite.essrun().run(&["status", "pipeline.toml"]).expect_success();
    assert!(
        status.stdout.contains("IN NO BACKUP") && status.stdout.contains("not in the newest backup"),
        "{status}"
    );
    live.restore(&["--only", "nobody"])
        .expect_code(REFUSED)
        .expect_stderr(&["nobody", "synapse"]);
    live.restore(&["--backup", "zzz"]).expect_code(6);
    std::fs::write(suite.pipeline_file(), &text).unwrap();

    // Roles: one that may not create databases, one that cannot give what it makes to the owner there was.
    role(&suite.cluster, "small");
    Tried::at(&suite, &url(&suite.cluster, "small", "synapse_small")).refused("main", "cannot-create-database", &[]);
    suite.cluster.psql("postgres", "ALTER ROLE small CREATEDB").unwrap();
    Tried::at(&suite, &url(&suite.cluster, "small", "synapse_small")).refused("main", "role-not-granted", &[]);

    // Another server, where the owner is nobody.
    let second = Cluster::builder().password("other").start().expect("a second server");
    role(&second, "small");
    second.psql("postgres", "ALTER ROLE small CREATEDB").unwrap();
    Tried::at(&suite, &url(&second, "small", "synapse")).refused("main", "role-missing", &[]);

    // No server at all.
    Tried::at(&suite, "postgresql://nobody@127.0.0.1:1/synapse")
        .restore(&[])
        .expect_code(5);
}

/// Somebody who is not root cannot give files to others, and is told so before the first step.
#[test]
fn a_restore_by_somebody_else() {
    let site = Site::create();
    let root = site.path().display().to_string();
    site.folder("files");
    std::fs::write(site.path().join("files/one"), "one").unwrap();
    site.prepare(&format!(
        "[components.any]\nuse = \"generic\"\nvolumes = {{ files = {{ path = \"{root}/files\" }} }}\n"
    ));
    site.back_up().expect_success();
    let somebody = site.give_to_somebody();
    let args = [
        "restore",
        "pipeline.toml",
        "--yes",
        "--identity",
        "elsewhere/identity.txt",
        "--replace",
    ];
    let planned = somebody
        .run_json(&[&args[..], &["--dry-run"]].concat())
        .expect_success();
    let plan = planned
        .events_of("restore-plan")
        .next()
        .unwrap_or_else(|| panic!("{planned}"));
    let found = plan["components"][0]["preconditions"].as_array().unwrap();
    let found = found
        .iter()
        .find(|p| p["check"] == "not-root")
        .unwrap_or_else(|| panic!("{planned}"));
    assert_eq!(
        (found["severity"].as_str(), found["label"].as_str()),
        (Some("warning"), Some("files")),
        "{found}"
    );
    assert!(found["remedy"].as_str().unwrap().contains("as root"), "{found}");
    // It is told, and goes on.
    somebody.run_json(&args).expect_success();
    assert_eq!(std::fs::read_to_string(site.path().join("files/one")).unwrap(), "one");
}

/// A locale that the server backed up had, and the server restored to has not.
#[test]
fn a_server_without_the_locale() {
    let dir = tempfile::tempdir().unwrap();
    let essrun = Essrun::in_dir(dir.path());
    let cluster = Cluster::builder()
        .setting("allow_system_table_mods", "on")
        .start()
        .expect("a server");
    let said = essrun
        .run(&["keygen", "identity", "--output", "identity.txt"])
        .expect_success();
    essrun
        .run(&["keygen", "writer", "--output", "writer.key"])
        .expect_success();
    let recipient = said.stdout.split_whitespace().find(|w| w.starts_with("age1")).unwrap();
    let pipeline = |database: &str| {
        format!(
            "version = 1\nname = \"x\"\n[repository]\nurl = \"repository\"\nrecipients = [\"{recipient}\"]\nwriter-key = \"writer.key\"\ncache = \"cache\"\n\
             [components.any]\nuse = \"generic\"\ndatabases = {{ main = {{ url = \"{}\" }} }}\n",
            cluster.uri_as("postgres", database)
        )
    };
    let locale = "C.UTF-8";
    cluster
        .psql(
            "postgres",
            &format!("CREATE DATABASE other TEMPLATE template0 ENCODING 'UTF8' LOCALE '{locale}'"),
        )
        .unwrap();
    cluster
        .psql("other", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .unwrap();
    std::fs::write(dir.path().join("pipeline.toml"), pipeline("other")).unwrap();
    essrun.run(&["init", "pipeline.toml"]).expect_success();
    essrun.run(&["pipeline.toml"]).expect_success();

    // The server forgets the locale, as one without its package does.
    cluster
        .psql(
            "postgres",
            &format!(
                "DELETE FROM pg_collation WHERE lower(replace(collcollate, '-', '')) = lower(replace('{locale}', '-', ''))"
            ),
        )
        .unwrap();
    essrun
        .run(&[
            "restore",
            "pipeline.toml",
            "--yes",
            "--identity",
            "identity.txt",
            "--to",
            "any/main=fresh",
        ])
        .expect_code(REFUSED)
        .expect_stderr(&["locale-missing", "C.UTF-8", "install the locale", "nothing was changed"]);
    let databases = cluster.psql("postgres", "SELECT datname FROM pg_database").unwrap();
    assert!(!databases.contains("fresh"), "{databases}");
}

/// A site of one `generic` component whose server lets its catalogs be edited.
struct Plain {
    cluster: Cluster,
    essrun: Essrun,
    dir: tempfile::TempDir,
}

impl Plain {
    /// With these databases, as pipeline.toml writes them.
    fn new(databases: impl Fn(&Cluster) -> String) -> Plain {
        let dir = tempfile::tempdir().unwrap();
        let essrun = Essrun::in_dir(dir.path());
        let cluster = Cluster::builder()
            .setting("allow_system_table_mods", "on")
            .start()
            .expect("a server");
        let said = essrun
            .run(&["keygen", "identity", "--output", "identity.txt"])
            .expect_success();
        essrun
            .run(&["keygen", "writer", "--output", "writer.key"])
            .expect_success();
        let recipient = said.stdout.split_whitespace().find(|w| w.starts_with("age1")).unwrap();
        let pipeline = format!(
            "version = 1\nname = \"x\"\n[repository]\nurl = \"repository\"\nrecipients = [\"{recipient}\"]\nwriter-key = \"writer.key\"\ncache = \"cache\"\n\
             [components.any]\nuse = \"generic\"\ndatabases = {{ {} }}\n",
            databases(&cluster)
        );
        std::fs::write(dir.path().join("pipeline.toml"), pipeline).unwrap();
        essrun.run(&["init", "pipeline.toml"]).expect_success();
        Plain { cluster, essrun, dir }
    }

    fn restore(&self, more: &[&str]) -> Outcome {
        let args = ["restore", "pipeline.toml", "--yes", "--identity", "identity.txt"];
        self.essrun.run_json(&[&args, more].concat())
    }

    fn planned(&self, check: &str, more: &[&str]) -> Value {
        let planned = self.restore(&[&["--dry-run"], more].concat());
        let plan = planned
            .events_of("restore-plan")
            .next()
            .unwrap_or_else(|| panic!("{planned}"));
        plan["components"][0]["preconditions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["check"] == check)
            .unwrap_or_else(|| panic!("no {check} in {planned}"))
            .clone()
    }
}

/// What the server has otherwise than the one backed up, and what is in the way there.
#[test]
fn a_server_that_differs() {
    let main = |cluster: &Cluster| format!("main = {{ url = \"{}\" }}", cluster.uri_as("postgres", "source"));
    let plain = Plain::new(main);
    let sql = |database: &str, sql: &str| plain.cluster.psql(database, sql).unwrap();
    sql(
        "postgres",
        "CREATE DATABASE source TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de'",
    );
    sql("source", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    // As if ICU, and an extension, had been others where the backup was taken.
    sql(
        "postgres",
        "UPDATE pg_database SET datcollversion = '0.1' WHERE datname = 'source'",
    );
    sql(
        "source",
        "UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'plpgsql'",
    );
    let drifted = plain.essrun.run_json(&["pipeline.toml"]).expect_success();
    sql(
        "source",
        "UPDATE pg_extension SET extname = 'nonesuch' WHERE extname = 'plpgsql'",
    );
    let lacking = plain.essrun.run_json(&["pipeline.toml"]).expect_success();
    let id = |outcome: &Outcome| {
        outcome.events_of("committed").next().unwrap()["backup"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (drifted, lacking) = (id(&drifted), id(&lacking));
    let databases = || sql("postgres", "SELECT datname FROM pg_database ORDER BY 1");
    let before = databases();

    fn of(backup: &str) -> [&str; 4] {
        ["--to", "any/main=fresh", "--backup", backup]
    }
    let found = plain.planned("collation-drift", &of(&drifted));
    assert_eq!(found["severity"], "warning", "{found}");
    assert!(found["message"].as_str().unwrap().contains("0.1"), "{found}");
    for (backup, check, words) in [
        (
            &drifted,
            "extension-drift",
            ["`plpgsql` is version 1.0 here, 0.9 in the backup", "--allow-drift"],
        ),
        (
            &lacking,
            "extension-missing",
            ["`nonesuch` is not installed", "install the extension"],
        ),
    ] {
        assert_eq!(plain.planned(check, &of(backup))["severity"], "error");
        let refused = plain.restore(&of(backup)).expect_code(REFUSED);
        refused.expect_stderr(&[check, words[0], words[1], "nothing was changed"]);
    }
    assert_eq!(databases(), before);

    // A database of the scratch name that no restore of ours made.
    let scratch = format!("fresh_essrun_{drifted}");
    sql("postgres", &format!("CREATE DATABASE \"{scratch}\""));
    sql(&scratch, "CREATE TABLE somebodys (a int)");
    let before = databases();
    let with_drift = [&of(&drifted)[..], &["--allow-drift"]].concat();
    plain
        .restore(&with_drift)
        .expect_code(REFUSED)
        .expect_stderr(&["scratch-exists", &scratch, "nothing was changed"]);
    assert_eq!(databases(), before);
    sql("postgres", &format!("DROP DATABASE \"{scratch}\""));

    // Allowed, drift is only told. Sessions on a database that is to be replaced are told at once, and refused at the swap.
    plain.restore(&with_drift).expect_success();
    assert_eq!(sql("fresh", "SELECT a FROM t"), "1");
    let mut psql = plain.cluster.client("psql");
    let mut session = psql
        .args(["-X", "-q", "-d", "fresh", "-c", "SELECT pg_sleep(600)"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql");
    while sql(
        "postgres",
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'fresh' AND state = 'active'",
    ) == "0"
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let replaced = [&with_drift[..], &["--replace"]].concat();
    let found = plain.planned("target-in-use", &replaced);
    assert_eq!(found["severity"], "warning", "{found}");
    let refused = plain.restore(&replaced);
    session.kill().unwrap();
    session.wait().unwrap();
    refused
        .expect_code(REFUSED)
        .expect_stderr(&["`fresh`", "other sessions", "psql"]);
    assert_eq!(sql("fresh", "SELECT a FROM t"), "1");
}

#[test]
fn an_sqlite_database_that_is_there() {
    let plain = Plain::new(|_| "main = { sqlite = \"data/live.sqlite\" }".to_owned());
    let data = plain.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let live = data.join("live.sqlite");
    let make = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE t (a)'); c.commit()";
    let made = std::process::Command::new("python3")
        .args(["-c", make])
        .arg(&live)
        .status();
    assert!(made.unwrap().success());
    plain.essrun.run(&["pipeline.toml"]).expect_success();
    let before = std::fs::read(&live).unwrap();
    assert_eq!(plain.planned("target-not-empty", &[])["severity"], "error");
    plain.restore(&[]).expect_code(REFUSED).expect_stderr(&[
        "target-not-empty",
        "--replace",
        "--to any/main=",
        "nothing was changed",
    ]);
    assert_eq!(std::fs::read(&live).unwrap(), before);
    assert_eq!(data.read_dir().unwrap().count(), 1, "nothing was staged");
    // Something that is no file of a database, with leave to replace and without.
    std::fs::remove_file(&live).unwrap();
    for make in [
        (|at: &Path| std::fs::create_dir(at)) as fn(&Path) -> std::io::Result<()>,
        |at: &Path| std::os::unix::fs::symlink("/dev/null", at),
    ] {
        make(&live).unwrap();
        for more in [&[][..], &["--replace"]] {
            let found = plain.planned("sqlite-destination", more);
            assert!(
                found["message"].as_str().unwrap().contains("no regular file"),
                "{found}"
            );
            plain.restore(more).expect_code(REFUSED).expect_stderr(&[
                "sqlite-destination",
                "move it away",
                "nothing was changed",
            ]);
        }
        assert_eq!(data.read_dir().unwrap().count(), 1, "nothing was staged");
        std::fs::remove_file(&live)
            .or_else(|_| std::fs::remove_dir(&live))
            .unwrap();
    }
    plain.restore(&[]).expect_success();
    assert!(live.is_file());
}

#[test]
fn the_runbook_says_all_and_gives_nothing_away() {
    let suite = suite();
    let text = std::fs::read_to_string(suite.pipeline_file()).unwrap();
    let secrets = [
        suite.database.password.clone(),
        suite.database.url(),
        std::fs::read_to_string(suite.home.signing_key())
            .unwrap()
            .trim()
            .to_owned(),
        suite.home.registration_secret.clone(),
        "AGE-SECRET-KEY-".to_owned(),
        std::fs::read_to_string(suite.writer_key())
            .unwrap()
            .lines()
            .last()
            .unwrap()
            .to_owned(),
    ];
    // A second component that failed, to be told apart; its password stands in the file itself.
    let mas = "\n[components.mas]\nuse = \"mas\"\ndatabases = { main = { url = \"postgresql://nobody:hunter2@127.0.0.1:1/mas\" } }\n";
    std::fs::write(suite.pipeline_file(), format!("{text}{mas}")).unwrap();
    suite.back_up().expect_code(9);

    let run = |args: &[&str]| {
        let args: Vec<&str> = ["plan", "pipeline.toml", "--disaster"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        suite.essrun().run(&args).expect_success()
    };
    let printed = run(&[]).stdout;
    run(&["--output", "runbook.md"]);
    run(&["--output", "runbook.html"]);
    let file = |name: &str| std::fs::read_to_string(suite.path().join(name)).unwrap();
    let html = file("runbook.html");
    assert!(html.starts_with("<!doctype html>"), "{html}");
    assert!(html.contains("<table>") && html.contains("@media print"), "{html}");
    for never in ["http-equiv", "<script", "<link", "<img", "src=", "url("] {
        assert!(
            !html.contains(never),
            "the page needs nothing from elsewhere, but has {never}"
        );
    }
    // One written a second later carries another time.
    let plain = |text: &str| {
        text.lines()
            .filter(|l| !l.starts_with("Written "))
            .map(str::trim)
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(plain(&printed).trim(), plain(&file("runbook.md")).trim());
    for (form, text) in [("text", &printed), ("md", &file("runbook.md")), ("html", &html)] {
        let mut at = 0;
        for said in [
            "# Recovery of example",
            "## Before anything else",
            "Stop the backup timer",
            "Keep every client out",
            "## What you need",
            suite.repository().to_str().unwrap(),
            "age1",
            "kept at: ____",
            "SYNAPSE_DB",
            "## What there is",
            "Never restored in a drill",
            "no estimate of the time yet",
            "| order | component |",
            "NOT IN THE BACKUP",
            "synapse (",
            "## The PostgreSQL servers",
            "or newer, encoding UTF8",
            "CREATE ROLE",
            "synapse_user",
            "## Commands, in order",
            "essrun check",
            "essrun list",
            "--restore --backup",
            "essrun restore",
            "--only synapse",
            "--resume",
            "## If a piece is missing",
            "the identity",
            "the writer key",
            "secrets.encryption",
            "signing key",
            "mas/config",
            "not granted in the pipeline file",
            "synapse/media",
            "artifact(s)",
            "## Afterwards",
        ] {
            // The page has its own marks for headings and tables.
            let said = match form {
                "html" => said.trim_matches(|c| "#| ".contains(c)).replace(" | ", "</th><th>"),
                _ => said.to_owned(),
            };
            let found = text[at..].find(&said);
            assert!(found.is_some(), "{form}: {said:?} is not where it should be in\n{text}");
            at += found.unwrap();
        }
        for secret in secrets.iter().map(String::as_str).chain(["hunter2"]) {
            assert!(!text.contains(secret), "{form} holds {secret:?}");
        }
    }
    everything_is_gone_but_the_repository_and_the_identity(&suite, &printed);
}

/// What stands in a fenced block of a language.
fn block(markdown: &str, language: &str) -> String {
    let (_, rest) = markdown
        .split_once(&format!("```{language}\n"))
        .unwrap_or_else(|| panic!("no {language} in {markdown}"));
    rest.split("```").next().unwrap().to_owned()
}

/// The day itself: a fresh server, and of the host that took the backups nothing. Every command the page prints is run as
/// it stands there; in between somebody's timer took another backup.
fn everything_is_gone_but_the_repository_and_the_identity(suite: &Suite, page: &str) {
    let media = tree_digest(&suite.home.media_store());
    let users = suite.sql("SELECT count(*) FROM users");
    suite.sql(&format!("SET ROLE {}; CREATE TABLE later (a int)", suite.database.user));
    suite.back_up().expect_code(9);
    suite.destroy();
    let admin = |sql: &str| suite.cluster.psql("postgres", sql).unwrap();
    admin(&format!("DROP ROLE {}", suite.database.user));
    std::fs::remove_file(suite.writer_key()).unwrap();
    for gone in [".state", "cache"] {
        std::fs::remove_dir_all(suite.path().join(gone)).unwrap();
    }

    // A page can still be written, of the same backup.
    let identity = suite.identity();
    let identity = identity.to_str().unwrap();
    let script = block(page, "sh");
    let named = script.lines().find_map(|l| l.strip_prefix("B=")).unwrap();
    let named = named.split_whitespace().next().unwrap();
    let args = [
        "plan",
        "pipeline.toml",
        "--disaster",
        "--backup",
        named,
        "--identity",
        identity,
    ];
    let again = suite.essrun().run(&args).expect_success().stdout;
    assert_eq!(block(&again, "sh"), script);
    // Lists say what there is with the identity, and without it that they cannot, not that nothing is there.
    let list = suite
        .essrun()
        .run(&["list", "pipeline.toml", "--identity", identity])
        .expect_success();
    assert_eq!(list.stdout.matches("synapse").count(), 3, "{list}");
    let status = suite
        .essrun()
        .run(&["status", "pipeline.toml", "--identity", identity])
        .expect_success();
    assert!(
        status.stdout.contains("synapse") && status.stdout.contains("newest"),
        "{status}"
    );
    suite
        .essrun()
        .run(&["status", "pipeline.toml"])
        .expect_code(REFUSED)
        .expect_stderr(&["no key here", "--identity"]);

    // As the page says: the roles, their passwords, the right to make databases.
    admin(&block(page, "sql"));
    admin(&format!(
        "ALTER ROLE {} CREATEDB PASSWORD '{}'",
        suite.database.user, suite.database.password
    ));
    let restores: Vec<&str> = script.lines().filter(|l| l.starts_with("essrun restore")).collect();
    assert!(!restores.is_empty(), "{script}");
    for line in script.lines().filter(|l| l.starts_with("essrun ")) {
        let names_it = line.contains("--backup \"$B\"");
        assert_eq!(
            names_it,
            !line.contains(" check ") && !line.contains(" list "),
            "{line}"
        );
    }
    let typed = script.replace("I=KEY-FILE", &format!("I='{identity}'"));
    // Nobody is at a terminal to say yes.
    let as_typed = "essrun() { case $1 in restore) set -- \"$@\" --yes;; esac; \"$ESSRUN\" \"$@\"; }";
    let essrun = suite.essrun().command(&[]);
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-e", "-c", &format!("{as_typed}\n{typed}")])
        .current_dir(suite.path())
        .env("ESSRUN", essrun.get_program());
    for (name, value) in essrun.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let day = shell.output().expect("sh");
    let (told, problems) = (
        String::from_utf8_lossy(&day.stdout),
        String::from_utf8_lossy(&day.stderr),
    );
    assert!(day.status.success(), "{typed}\n{told}\n{problems}");
    assert_eq!(suite.sql("SELECT count(*) FROM users"), users);
    assert_eq!(suite.sql("SELECT to_regclass('public.later') IS NULL"), "t");
    assert_eq!(tree_digest(&suite.home.media_store()), media);
    // What is told by name, and what only where all is told.
    for fact in ["schema-version/main = ", "signing-key/"] {
        assert!(told.contains(fact), "{fact} is not in {told}");
    }
    assert!(!told.contains("rows/main/"), "{told}");
}
