//! What does not fit where it goes: a file system too small for it, the disk of this machine's PostgreSQL, one that takes two
//! names for one. Said before the first step where looking shows it, and nothing is changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::mount::Mounted;
use essrun_testkit::postgres::Cluster;
use essrun_testkit::site::Site;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

const REFUSED: i32 = 4;

/// What the plan of a restore with these arguments finds under this name.
fn planned(site: &Site, check: &str, args: &[&str]) -> Option<Value> {
    let planned = site.with_identity("restore", &[&["--replace", "--dry-run"], args].concat());
    let plan = planned
        .events_of("restore-plan")
        .next()
        .unwrap_or_else(|| panic!("{planned}"));
    let found = plan["components"][0]["preconditions"].as_array().unwrap().clone();
    found.into_iter().find(|p| p["check"] == check)
}

fn says(found: &Value, words: &[&str]) {
    for word in words {
        assert!(found["message"].as_str().unwrap().contains(word), "{word}: {found}");
    }
}

/// Each part fits where it goes, all of them do not.
#[test]
fn what_does_not_fit_together() {
    let mut site = Site::create();
    site.database("plain");
    let root = site.path().display().to_string();
    for folder in ["files", "config"] {
        std::fs::write(site.folder(folder).join("file"), vec![b'x'; 40_000]).unwrap();
    }
    let make = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE t (a)'); \
                c.execute('INSERT INTO t VALUES (zeroblob(40000))'); c.commit()";
    let made = std::process::Command::new("python3")
        .args(["-c", make])
        .arg(site.path().join("lite.sqlite"))
        .status();
    assert!(made.unwrap().success());
    site.prepare(&format!(
        "[components.any]\nuse = \"generic\"\ndatabases = {{ main = {{ sqlite = \"{root}/lite.sqlite\" }} }}\n\
         volumes = {{ files = {{ path = \"{root}/files\" }}, config = {{ path = \"{root}/config\" }} }}\n"
    ));
    site.back_up().expect_success();
    let Some(small) = Mounted::tmpfs(&site.path().join("small"), "size=64k") else {
        return;
    };
    let to = |what: &str| format!("any/{what}={}/{what}", small.path().display());
    let planned = |parts: &[&str], more: &[&str]| {
        let to: Vec<String> = parts.iter().map(|part| to(part)).collect();
        let to = to.iter().flat_map(|to| ["--to", to.as_str()]);
        let args: Vec<&str> = to.chain(more.iter().copied()).collect();
        planned(&site, "space-short", &args)
    };
    for part in ["files", "config", "main"] {
        assert_eq!(planned(&[part], &[]), None, "{part} fits");
    }
    for parts in [["files", "config"], ["files", "main"]] {
        let found = planned(&parts, &[]).unwrap_or_else(|| panic!("{parts:?} do not fit"));
        assert_eq!(found["severity"], "error", "{found}");
        for part in parts {
            says(&found, &[&format!("any/{part}")]);
        }
        assert_eq!(planned(&parts, &["--force-space"]).unwrap()["severity"], "warning");
    }
}

/// A PostgreSQL whose data directory can be looked at: what a database needs is held against the room there, together with
/// the files that go there too.
#[test]
fn a_database_that_does_not_fit_on_its_server() {
    let dir = tempfile::tempdir().unwrap();
    // The server is another user.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let Some(disk) = Mounted::tmpfs(&dir.path().join("disk"), "size=256m") else {
        return;
    };
    let cluster = Cluster::builder()
        .within(disk.path())
        .password("super secret")
        .setting("min_wal_size", "32MB")
        .setting("max_wal_size", "32MB");
    let mut site = Site::on(cluster.start().expect("a server on a small disk"));
    site.database("plain");
    site.fill(
        "plain",
        "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 32) AS v FROM generate_series(1, 20000) n",
    );
    site.sql("postgres", "GRANT pg_read_all_settings TO plain_user");
    let root = site.path().display().to_string();
    std::fs::write(site.folder("files").join("file"), vec![b'x'; 20 << 20]).unwrap();
    site.prepare(&format!(
        "[components.any]\nuse = \"generic\"\ndatabases = {{ main = {{ url-env = \"PLAIN_DB\" }} }}\n\
         volumes = {{ files = {{ path = \"{root}/files\" }} }}\n"
    ));
    site.back_up().expect_success();
    assert_eq!(planned(&site, "space-unknown", &[]), None, "the role may be told");

    // So much is left, whatever the server takes meanwhile, within a few of its segments.
    let leave = |bytes: u64| {
        let filler = disk.path().join("filler");
        let _ = std::fs::remove_file(&filler);
        let space = rustix::fs::statvfs(disk.path()).unwrap();
        let free = space.f_bavail * space.f_frsize;
        std::fs::write(&filler, vec![0; usize::try_from(free - bytes).unwrap()]).unwrap();
    };
    leave(32 << 20);
    let beside = format!("any/files={}/files", disk.path().display());
    assert_eq!(planned(&site, "space-short", &[]), None, "the database fits");
    let together = planned(&site, "space-short", &["--to", &beside]).expect("the files as well do not");
    says(&together, &["any/main", "any/files", "are free"]);

    leave(8 << 20);
    let short = planned(&site, "space-short", &[]).expect("it does not fit any more");
    assert_eq!((&short["severity"], &short["label"]), (&"error".into(), &"main".into()));
    says(&short, &["any/main", disk.path().to_str().unwrap()]);
    let before = site.databases();
    let refused = site.with_identity("restore", &["--yes", "--replace"]);
    refused
        .expect_code(REFUSED)
        .expect_stderr(&["space-short", "any/main", "--force-space", "nothing was changed"]);
    assert_eq!(site.databases(), before);
    let forced = planned(&site, "space-short", &["--force-space"]).expect("it still does not fit");
    assert_eq!(forced["severity"], "warning", "{forced}");

    std::fs::remove_file(disk.path().join("filler")).unwrap();
    site.with_identity("restore", &["--yes", "--replace"]).expect_success();
    assert_eq!(site.sql("plain", "SELECT count(*) FROM t"), "20000");
}

/// Of two media whose names differ in case the second would take the place of the first.
#[test]
fn a_file_system_that_takes_two_names_for_one() {
    let site = Site::create();
    let root = site.path().display().to_string();
    let files = site.folder("files");
    for name in ["aB", "Ab"] {
        std::fs::write(files.join(name), name).unwrap();
    }
    site.prepare(&format!(
        "[components.any]\nuse = \"generic\"\nvolumes = {{ files = {{ path = \"{root}/files\" }} }}\n"
    ));
    site.back_up().expect_success();
    let Some(folding) = Mounted::folding(&site.path().join("folding")) else {
        return;
    };
    let check = "case-insensitive-destination";
    let to = format!("any/files={}/files", folding.path().display());
    let to = ["--to", to.as_str()];

    // Nothing is there to tell by: it is found out where the files are staged, before the first of them.
    assert_eq!(planned(&site, check, &to), None);
    let refused = site.with_identity("restore", &[&["--yes"], &to[..]].concat());
    refused
        .expect_code(REFUSED)
        .expect_stderr(&["names that differ in case for one", "upper case"]);
    assert_eq!(folding.path().read_dir().unwrap().count(), 0, "nothing is left there");

    // A name that is there tells.
    std::fs::create_dir(folding.path().join("Something")).unwrap();
    let found = planned(&site, check, &to).expect("it is seen by looking");
    assert_eq!(found["severity"], "error", "{found}");
    let refused = site.with_identity("restore", &[&["--yes"], &to[..]].concat());
    refused
        .expect_code(REFUSED)
        .expect_stderr(&[check, "upper case", "nothing was changed"]);
    assert_eq!(folding.path().read_dir().unwrap().count(), 1);
}
