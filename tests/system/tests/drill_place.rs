//! Drills whose place gives out, and what killed ones leave: neither says anything about a backup, and both are cleaned up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Essrun, Kill, Outcome};
use essrun_testkit::mount::Mounted;
use essrun_testkit::site::Site;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A database of some tables and a volume, one of whose directories nobody may write to; one backup.
fn site() -> Site {
    let mut site = Site::create();
    site.database("plain");
    site.fill(
        "plain",
        "CREATE TABLE a (n int PRIMARY KEY, t text); INSERT INTO a SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n;\n\
         CREATE TABLE b (n int PRIMARY KEY); INSERT INTO b SELECT generate_series(1, 5000);\n\
         CREATE TABLE c (n int PRIMARY KEY); INSERT INTO c SELECT generate_series(1, 5000);",
    );
    let files = site.folder("files/closed");
    std::fs::write(files.join("file"), vec![b'x'; 100_000]).unwrap();
    std::fs::set_permissions(&files, std::fs::Permissions::from_mode(0o500)).unwrap();
    let root = site.path().display().to_string();
    site.prepare(&format!(
        "[components.any]\nuse = \"generic\"\ndatabases = {{ main = {{ url-env = \"PLAIN_DB\" }} }}\n\
         volumes = {{ files = {{ path = \"{root}/files\" }} }}\n"
    ));
    site.back_up().expect_success();
    site
}

fn drill_with(essrun: &Essrun, more: &[&str]) -> Outcome {
    let args = ["drill", "pipeline.toml", "--identity", "elsewhere/identity.txt"];
    essrun.run_json(&[&args[..], more].concat())
}

fn noted(site: &Site) -> serde_json::Value {
    let listed = site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    listed.events[0]["drill"].clone()
}

fn left(site: &Site) -> (Vec<String>, Vec<PathBuf>) {
    let folders = match std::fs::read_dir(site.path().join("cache/scratch")) {
        Ok(entries) => entries.map(|e| e.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    let mut databases = site.databases();
    databases.retain(|d| d != "postgres" && d != "plain");
    (databases, folders)
}

#[test]
fn a_place_that_gives_out_takes_no_result_back() {
    let site = site();
    drill_with(&site.essrun(), &[]).expect_success();
    let passed = noted(&site);
    assert_eq!(passed["passed"], true, "{passed}");
    // Results are told apart by the second.
    std::thread::sleep(std::time::Duration::from_millis(1_100));

    // No room for the files: said before anything is done; or, where that is overruled, met on the way.
    if let Some(small) = Mounted::tmpfs(&site.path().join("small"), "size=64k") {
        let scratch = ["--scratch", small.path().to_str().unwrap()];
        drill_with(&site.essrun(), &scratch).expect_code(4).expect_stderr(&[
            "space-short",
            "--scratch",
            "--force-space",
        ]);
        let forced = [&scratch[..], &["--force-space"]].concat();
        drill_with(&site.essrun(), &forced)
            .expect_code(5)
            .expect_stderr(&["any/files", "says nothing about the backup"]);
        assert_eq!(noted(&site), passed);
        assert_eq!(
            small.path().read_dir().unwrap().count(),
            0,
            "the files that did fit are gone"
        );
    }

    // A server that lets nobody in any more.
    site.sql("postgres", "ALTER ROLE plain_user CONNECTION LIMIT 2");
    drill_with(&site.essrun(), &[]).expect_code(5).expect_stderr(&[
        "any/main",
        "too many connections",
        "says nothing about the backup",
    ]);
    assert_eq!(noted(&site), passed);
    site.sql("postgres", "ALTER ROLE plain_user CONNECTION LIMIT -1");

    drill_with(&site.essrun(), &[]).expect_success();
    assert_eq!(left(&site), (vec![], vec![]));
}

#[test]
fn a_backup_removes_what_a_killed_drill_left() {
    let site = site();
    let sample = drill_with(&site.essrun(), &[]).expect_success();
    let args = ["drill", "pipeline.toml", "--identity", "elsewhere/identity.txt"];
    let (mut databases, mut folders) = (0, 0);
    for n in 1..=sample.events.len() {
        site.essrun().run_and_kill(&args, Kill::AtEvent(n));
        let (of_database, of_folder) = left(&site);
        (databases, folders) = (databases.max(of_database.len()), folders.max(of_folder.len()));
        if databases > 0 && folders > 0 {
            break;
        }
    }
    assert!(databases > 0 && folders > 0, "no killed drill left anything");
    // A plan changes nothing; a backup cleans up.
    let before = left(&site);
    site.essrun().run_json(&["pipeline.toml", "--dry-run"]).expect_success();
    assert_eq!(left(&site), before);
    site.back_up().expect_success();
    assert_eq!(left(&site), (vec![], vec![]));
}

/// Who is not root cannot remove what is in a directory that may not be written to, unless it is opened first.
#[test]
fn somebody_else_removes_what_may_not_be_written_to() {
    let site = site();
    // As a killed drill leaves it, with what it had restored.
    let dead = site.path().join("cache/scratch/essrun-drill-x");
    let closed = dead.join("any/.essrun-restore-0/tree/closed");
    std::fs::create_dir_all(&closed).unwrap();
    std::fs::write(closed.join("file"), "x").unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    std::fs::write(site.path().join("cache/scratch/essrun-drill-x.lock"), "").unwrap();
    let somebody = site.give_to_somebody();
    let drilled = drill_with(&somebody, &[]).expect_success();
    let result = drilled.events_of("drill").next().expect("a result");
    assert_eq!(result["left-behind"], serde_json::json!([]), "{drilled}");
    assert_eq!(left(&site), (vec![], vec![]), "{drilled}");
}
