//! A restore that nobody agreed to yet changes nothing: not what is live, and not what stopped restores left, which may
//! be hours of work. One that was agreed to removes only what stands where it puts its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Kill, Outcome};
use essrun_testkit::site::{Site, tree};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const REFUSED: i32 = 4;

/// Takes about a second to verify, so that what is done as soon as that begins comes before the swap.
const SLOW: &str = "SELECT count(*) > 0 FROM generate_series(1, 3000) AS a, generate_series(1, 3000) AS b";

/// Answers a question on a terminal; prints what was shown on it.
const AT_A_TERMINAL: &str = r#"
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
shown, asked = b"", False
while True:
    try:
        more = os.read(fd, 4096)
    except OSError:
        break
    if not more:
        break
    shown += more
    if not asked and b"[y/N]" in shown:
        asked = True
        os.write(fd, sys.argv[1].encode() + b"\n")
sys.stdout.buffer.write(shown)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// Two components: `a` with a database and files, `b` with a database, an SQLite file and files.
fn site() -> Site {
    let mut site = Site::create();
    for name in ["one", "two"] {
        site.database(name);
        site.fill(
            name,
            "CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 1000)",
        );
    }
    let root = site.path().display().to_string();
    std::fs::write(site.folder("files").join("one.txt"), "one").unwrap();
    std::fs::write(site.folder("more").join("two.txt"), "two").unwrap();
    let make = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE t (a)'); c.commit()";
    let made = Command::new("python3")
        .args(["-c", make])
        .arg(site.folder("lite").join("b.sqlite"))
        .status();
    assert!(made.unwrap().success());
    // One role makes and drops the databases of both, as on a server somebody administers.
    let admin = format!(
        "host=127.0.0.1 port={} user=postgres password='super secret' dbname=postgres",
        site.cluster.port()
    );
    site.set_env("ADMIN_DB", &admin);
    let database = |name: &str| {
        format!(
            "{{ url-env = \"{}_DB\", admin-url-env = \"ADMIN_DB\", owner = \"{name}_user\" }}",
            name.to_uppercase()
        )
    };
    site.prepare(&format!(
        "[components.a]\nuse = \"generic\"\ndatabases.main = {}\n\
         volumes.files = {{ path = \"{root}/files\" }}\nsettings.must-be-true = {{ main = [\"{SLOW}\"] }}\n\
         [components.b]\nuse = \"generic\"\ndatabases.main = {}\n\
         databases.second = {{ sqlite = \"{root}/lite/b.sqlite\" }}\nvolumes.files = {{ path = \"{root}/more\" }}\n",
        database("one"),
        database("two")
    ));
    site.back_up().expect_success();
    site
}

fn lose(site: &Site) {
    for name in ["one", "two"] {
        site.sql("postgres", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
    }
    for gone in ["files", "lite", "more"] {
        let _ = std::fs::remove_dir_all(site.path().join(gone));
    }
}

fn restore<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let args = ["restore", "pipeline.toml", "--identity", "elsewhere/identity.txt"];
    args.into_iter().chain(more.iter().copied()).collect()
}

fn staging(site: &Site) -> Vec<PathBuf> {
    let entries = site.path().read_dir().unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<PathBuf> = entries
        .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(".essrun-restore-"))
        .collect();
    found.sort();
    found
}

/// What a stopped restore of `a` left: its scratch database, by number as well, and its staged tree.
fn left(site: &Site) -> (String, Vec<PathBuf>) {
    let scratch = "SELECT oid, datname FROM pg_database WHERE datname LIKE 'one_essrun_%' ORDER BY 1";
    (site.sql("postgres", scratch).trim().to_owned(), staging(site))
}

fn precondition(outcome: &Outcome, component: &str, label: &str, check: &str) -> Option<Value> {
    let plan = outcome
        .events_of("restore-plan")
        .next()
        .unwrap_or_else(|| panic!("{outcome}"));
    let components = plan["components"].as_array().unwrap();
    let of = components.iter().find(|c| c["component"] == component).unwrap();
    let found = of["preconditions"].as_array().unwrap();
    found
        .iter()
        .find(|p| p["label"] == label && p["check"] == check)
        .cloned()
}

/// Runs a command at a terminal and answers its question.
fn answered(site: &Site, answer: &str, args: &[&str]) -> (i32, String) {
    let essrun = site.essrun().command(args);
    let mut python = Command::new("python3");
    python.args(["-c", AT_A_TERMINAL, answer]).arg(essrun.get_program());
    python.args(essrun.get_args()).current_dir(site.path());
    for (key, value) in essrun.get_envs() {
        match value {
            Some(value) => python.env(key, value),
            None => python.env_remove(key),
        };
    }
    let output = python.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), shown)
}

#[test]
fn what_was_stopped_stays_until_a_restore_of_the_same_is_agreed_to() {
    let site = site();
    lose(&site);
    let begin = restore(&["--only", "a", "--yes"]);
    let stopped = site.essrun().run_and_kill(&begin, Kill::AtPhase("verify"));
    assert!(stopped.was_killed(), "{stopped}");
    let before = left(&site);
    assert!(before.0.contains("one_essrun_") && before.1.len() == 1, "{before:?}");
    let unchanged = |what: &str| assert_eq!(left(&site), before, "{what}");

    // Another component on the same server; the same component to another place.
    site.essrun()
        .run_json(&restore(&["--only", "b", "--yes"]))
        .expect_success();
    unchanged("a restore of another component");
    let elsewhere = ["--only", "a", "--yes", "--to", "a/main=copy", "--to", "a/files=copy"];
    site.essrun().run_json(&restore(&elsewhere)).expect_success();
    unchanged("a restore to another place");

    // Nobody there to be asked; somebody who says no. Both see what would go.
    for json in [false, true] {
        let args = restore(&["--only", "a"]);
        let refused = match json {
            true => site.essrun().run_json(&args),
            false => site.essrun().run(&args),
        };
        refused.expect_code(REFUSED).expect_stderr(&["not confirmed", "--yes"]);
        unchanged("a restore without a terminal");
    }
    let (code, shown) = answered(&site, "n", &restore(&["--only", "a"]));
    assert_eq!(code, REFUSED, "{shown}");
    for said in [
        "one_essrun_",
        "that was stopped, is dropped first",
        "--resume goes on with it instead",
        "[y/N]",
    ] {
        assert!(shown.contains(said), "{said:?} is not in {shown}");
    }
    unchanged("a restore that was declined");
    let planned = site
        .essrun()
        .run_json(&restore(&["--only", "a", "--dry-run"]))
        .expect_success();
    for label in ["main", "files"] {
        let found = precondition(&planned, "a", label, "leftover").unwrap_or_else(|| panic!("{planned}"));
        assert_eq!(found["severity"], "warning", "{found}");
    }
    unchanged("a dry run");

    // One that is refused.
    site.sql("postgres", "CREATE DATABASE one");
    site.sql("one", "CREATE TABLE somebodys (a int)");
    site.essrun()
        .run_json(&begin)
        .expect_code(REFUSED)
        .expect_stderr(&["target-not-empty"]);
    unchanged("a restore that was refused");
    site.drop_database("one");

    // And all of it is still good for what it was left for.
    let resumed = site
        .essrun()
        .run_json(&restore(&["--only", "a", "--yes", "--resume"]))
        .expect_success();
    let kept: Vec<&str> = resumed
        .events_of("kept")
        .map(|e| e["artifact"].as_str().unwrap())
        .collect();
    assert!(
        kept.iter().any(|k| k.starts_with("a/main")) && kept.contains(&"a/files"),
        "{resumed}"
    );
    assert_eq!(site.sql("one", "SELECT count(*) FROM t"), "1000");
    assert_eq!(left(&site), (String::new(), Vec::new()));

    // Agreed to, what stands in its own place goes, and no more is asked.
    site.drop_database("one");
    std::fs::remove_dir_all(site.path().join("files")).unwrap();
    assert!(site.essrun().run_and_kill(&begin, Kill::AtPhase("verify")).was_killed());
    let (code, shown) = answered(&site, "y", &restore(&["--only", "a"]));
    assert_eq!(code, 0, "{shown}");
    assert_eq!(left(&site), (String::new(), Vec::new()), "{shown}");
    assert_eq!(site.sql("one", "SELECT count(*) FROM t"), "1000");
}

#[test]
fn a_machine_that_reads_has_not_agreed() {
    let site = site();
    site.fill("one", "DELETE FROM t");
    let before = (site.databases(), tree(&site.path().join("files")));
    let refused = site.essrun().run_json(&restore(&["--replace"])).expect_code(REFUSED);
    let refused = refused.expect_stderr(&["not confirmed", "--yes"]);
    assert_eq!(refused.events_of("phase").count(), 0, "{refused}");
    assert_eq!((site.databases(), tree(&site.path().join("files"))), before);
    assert_eq!(site.sql("one", "SELECT count(*) FROM t"), "0");
}

#[test]
fn a_plan_is_the_dry_run_of_the_restore() {
    let site = site();
    for more in [
        &[][..],
        &["--replace"],
        &["--replace", "--only", "b"],
        &["--to", "a/main=copy", "--to", "a/files=copy", "--only", "a"],
        &["--to", "a/nothing=copy"],
        &["--only", "nobody"],
    ] {
        let restore = site.essrun().run_json(&restore(&[&["--dry-run"], more].concat()));
        let plan = [
            "plan",
            "pipeline.toml",
            "--restore",
            "--identity",
            "elsewhere/identity.txt",
        ];
        let plan = site.essrun().run_json(&[&plan[..], more].concat());
        assert_eq!(plan.code(), restore.code(), "{more:?}: {plan}\n{restore}");
        let of = |outcome: &Outcome| outcome.events_of("restore-plan").next().cloned();
        assert_eq!(of(&plan), of(&restore), "{more:?}");
        let expected = if more.is_empty() || more.iter().any(|m| m.contains("no")) {
            REFUSED
        } else {
            0
        };
        assert_eq!(plan.code(), Some(expected), "{more:?}: {plan}");
    }
    for args in [&["--replace"][..], &["--to", "a/main=x"], &["--disaster", "--resume"]] {
        let args = [&["plan", "pipeline.toml"], args].concat();
        site.essrun()
            .run(&args)
            .expect_code(REFUSED)
            .expect_stderr(&["is about a restore", "--restore"]);
    }
    let of_b = site
        .essrun()
        .run_json(&["plan", "pipeline.toml", "--only", "b"])
        .expect_success();
    let steps: Vec<&Value> = of_b.events_of("step").collect();
    assert!(
        !steps.is_empty() && steps.iter().all(|s| s["component"] == "b"),
        "{of_b}"
    );
}

/// Killed in the middle of exchanging two trees: a dry run says what the restore will do about it.
#[test]
fn a_swap_that_was_cut_short_is_told_and_ended_after_consent() {
    let site = site();
    let files = site.path().join("files");
    std::fs::write(files.join("later.txt"), "later").unwrap();
    let begin = restore(&["--only", "a", "--replace", "--yes"]);
    let stopped = site.essrun().run_and_kill(&begin, Kill::AtPhase("verify"));
    assert!(stopped.was_killed(), "{stopped}");
    // As the swap leaves it when it is killed after its first write.
    let staged = staging(&site).remove(0);
    let state = staged.join("state.json");
    let mut told: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    assert_eq!(told["step"], "complete", "{told}");
    let kept = site.path().join("files.before-then");
    told["step"] = "exchanging".into();
    told["kept"] = kept.to_str().unwrap().into();
    std::fs::write(&state, told.to_string()).unwrap();
    let before = left(&site);
    let live = tree(&files);

    let dry = site
        .essrun()
        .run_json(&restore(&["--only", "a", "--replace", "--dry-run"]))
        .expect_success();
    let found = precondition(&dry, "a", "files", "swap-unfinished").unwrap_or_else(|| panic!("{dry}"));
    assert_eq!(found["severity"], "info", "{found}");
    assert_eq!(precondition(&dry, "a", "files", "volume-destination"), None, "{dry}");
    // Without --replace what that swap puts there would be in the way: nothing is done.
    for more in [&["--dry-run"][..], &["--yes"]] {
        let refused = site.essrun().run_json(&restore(&[&["--only", "a"], more].concat()));
        let refused = refused
            .expect_code(REFUSED)
            .expect_stderr(&["volume-destination", "--replace"]);
        assert!(
            precondition(&refused, "a", "files", "swap-unfinished").is_some(),
            "{refused}"
        );
    }
    site.essrun()
        .run_json(&restore(&["--only", "a", "--replace"]))
        .expect_code(REFUSED);
    assert_eq!((left(&site), tree(&files)), (before, live), "nobody agreed yet");

    site.essrun().run_json(&begin).expect_success();
    assert_eq!(std::fs::read_to_string(kept.join("later.txt")).unwrap(), "later");
    assert_eq!(std::fs::read_to_string(files.join("one.txt")).unwrap(), "one");
    assert!(!files.join("later.txt").exists());
    assert_eq!(left(&site), (String::new(), Vec::new()));
}

/// What would refuse any swap is asked before the first of them, whatever it is.
#[test]
fn nothing_is_swapped_when_one_swap_would_be_refused() {
    let site = site();
    lose(&site);
    let all = restore(&["--yes"]);
    let lite = site.path().join("lite/b.sqlite");
    let (files, more) = (site.path().join("files"), site.path().join("more"));
    let nothing_in_service = |outcome: Outcome, in_the_way: &PathBuf| {
        let refused = outcome.expect_code(REFUSED).expect_stderr(&[
            in_the_way.to_str().unwrap(),
            "nothing was put in service",
            "--resume",
        ]);
        assert_eq!(refused.events_of("swapped").count(), 0, "{refused}");
        let databases = site.databases();
        assert!(!databases.contains(&"one".to_owned()) && !databases.contains(&"two".to_owned()));
        assert!(!files.exists());
    };
    // Somebody makes a file where the SQLite database goes, when all is staged already.
    let write = || std::fs::write(&lite, "somebody's").unwrap();
    let outcome = site.essrun().run_and(&all, Kill::AtPhase("verify"), write);
    nothing_in_service(outcome, &lite);
    std::fs::remove_file(&lite).unwrap();
    // Or a directory where the second of the volumes goes.
    let make = || {
        std::fs::create_dir(&more).unwrap();
        std::fs::write(more.join("somebodys"), "").unwrap();
    };
    let resume = restore(&["--yes", "--resume"]);
    let outcome = site.essrun().run_and(&resume, Kill::AtPhase("verify"), make);
    nothing_in_service(outcome, &more);
    assert!(!lite.exists());
    std::fs::remove_dir_all(&more).unwrap();
    site.essrun().run_json(&resume).expect_success();
    assert_eq!(site.sql("two", "SELECT count(*) FROM t"), "1000");
    assert!(lite.is_file() && files.join("one.txt").is_file() && more.join("two.txt").is_file());
}
