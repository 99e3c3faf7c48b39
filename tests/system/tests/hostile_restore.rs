//! A stranger who behaved when the backup was taken, and does not when it is restored or after a leak: the plan is
//! refused, the culprit named, and nothing live is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::plugins;
use essrun_testkit::sha256_hex;
use essrun_testkit::site::{Site, tree};

/// A deed in `plan-restore` or `verify`, the exit code, and what is said.
const BACK: &[(&str, i32, &str)] = &[
    (
        "back-ungranted",
        7,
        "its plan restores database \"other\", which it was not granted",
    ),
    (
        "back-volume-ungranted",
        7,
        "its plan restores volume \"root\", which it was not granted",
    ),
    (
        "back-volume-as-database",
        7,
        "its plan restores database \"files\", which it was not granted",
    ),
    ("back-twice", 7, "its plan restores database \"main\" twice"),
    ("back-path", 7, "the label \"../files\""),
    (
        "back-nothing-held",
        7,
        "its plan restores volume \"more\", which it was not granted",
    ),
    (
        "back-sql-elsewhere",
        7,
        "its plan runs SQL in \"other\" before restoring it",
    ),
    ("back-sql-two", 5, "run-sql"),
    ("back-sql-commit", 5, "run-sql"),
    ("back-sql-role", 5, "run-sql"),
    ("back-sql-config", 5, "it names set_config"),
    ("back-sql-program", 5, "run-sql"),
    ("back-sql-file", 5, "it calls pg_read_file()"),
    ("back-sql-unicode", 5, "by code points"),
    ("back-sql-text", 5, "it calls query_to_xml()"),
    ("back-sql-database", 5, "it may alter only TABLE"),
    ("back-sql-rename", 5, "it may alter only TABLE"),
    ("back-sql-password", 5, "it may alter only TABLE"),
    ("back-sql-notify", 5, "it calls pg_notify()"),
    ("back-sql-block", 5, "run-sql"),
    ("back-owner-above", 5, ".."),
    ("back-owner-root", 5, "/etc/passwd"),
    ("back-owner-link", 5, "link"),
    (
        "back-owner-elsewhere",
        7,
        "sets the owner of \"main\" before restoring it",
    ),
    ("back-steps-many", 7, "more than 100000 items"),
    ("back-panic", 7, "it panicked"),
    ("verify-panic", 7, "it panicked"),
    ("verify-many", 7, "more than 100000 items"),
    ("verify-long", 7, "more than 8.0 MiB"),
    ("verify-longer", 7, "it handed the host more than 16.0 MiB in one call"),
    ("verify-writes", 7, "denied"),
];

/// A deed in `respond`, the exit code with `--apply`, and what is said.
const LEAKS: &[(&str, i32, &str)] = &[
    (
        "leak-ungranted",
        7,
        "its plan changes \"other\", which it was not granted",
    ),
    ("leak-two", 5, "multiple commands"),
    ("leak-drop", 5, "a statement that begins with \"drop\" is not run"),
    ("leak-program", 5, "a statement that begins with \"copy\" is not run"),
    ("leak-block", 5, "a statement that begins with \"do\" is not run"),
    (
        "leak-more-than-counted",
        5,
        "it touches 100 rows, and its own count says 1",
    ),
    ("leak-count-writes", 0, "skipped"),
    ("leak-count-calls", 0, "skipped"),
    ("leak-panic", 7, "it panicked"),
];

fn site() -> Site {
    let wasm = std::fs::read(plugins::hostile()).unwrap();
    let mut site = Site::create();
    site.database("shop");
    site.fill(
        "shop",
        "CREATE TABLE item (id bigserial PRIMARY KEY, title text);
         INSERT INTO item (title) SELECT 'item ' || n FROM generate_series(1, 100) n;",
    );
    let files = site.folder("files");
    std::fs::write(files.join("a.txt"), "a").unwrap();
    std::os::unix::fs::symlink("/etc", files.join("link")).unwrap();
    std::fs::write(site.path().join("stranger.wasm"), &wasm).unwrap();
    site.prepare(&format!(
        "[components.stranger]\nuse = {{ path = \"stranger.wasm\", sha256 = \"{}\" }}\n\
         databases.main = {{ url-env = \"SHOP_DB\" }}\nvolumes.files = {{ path = \"files\" }}\n\
         settings.deed = \"lie\"\n",
        sha256_hex(&wasm)
    ));
    site.back_up().expect_success();
    site
}

fn now_does(site: &Site, deed: &str) {
    let file = site.path().join("pipeline.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, _) = text.split_once("settings.deed").unwrap();
    std::fs::write(&file, format!("{before}settings.deed = \"{deed}\"\n")).unwrap();
}

/// What is live: rows, the sequence, the database's settings, files.
fn live(site: &Site) -> (String, String) {
    let rows = site.sql(
        "shop",
        "SELECT count(*), min(id), (SELECT last_value FROM item_id_seq), (SELECT count(*) FROM pg_db_role_setting) FROM item",
    );
    (rows, tree(&site.path().join("files")))
}

#[test]
fn plans_and_findings_of_a_restore_reach_nothing_live() {
    let site = site();
    let before = (live(&site), site.databases());
    now_does(&site, "back-escape");
    let told = site
        .essrun()
        .run(&[
            "restore",
            "pipeline.toml",
            "--dry-run",
            "--replace",
            "--identity",
            "elsewhere/identity.txt",
        ])
        .expect_success()
        .to_string();
    for bad in ['\u{1b}', '\u{7}', '\u{202e}'] {
        assert!(!told.contains(bad), "{bad:?} reached the terminal: {told:?}");
    }
    let mut wrong = Vec::new();
    for (deed, code, says) in BACK {
        now_does(&site, deed);
        let outcome = site.with_identity("restore", &["--replace", "--yes"]);
        if outcome.code() != Some(*code) || !outcome.stderr.contains(says) || !outcome.stderr.contains("stranger") {
            wrong.push(format!("{deed}: should end with {code} and say {says:?}:\n{outcome}"));
        }
        let now = (live(&site), site.databases());
        // A restore that fails keeps what it made beside, to be gone on with, and the next one removes it.
        let kept: Vec<_> = now.1.iter().filter(|d| !before.1.contains(d)).collect();
        assert!(
            now.0 == before.0 && kept.len() <= 1,
            "{deed} changed what is live: {now:?}"
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!std::path::Path::new("/etc/owned").exists());

    // In the end an honest one.
    now_does(&site, "behave");
    site.fill("shop", "DELETE FROM item");
    site.with_identity("restore", &["--replace", "--yes"]).expect_success();
    assert_eq!(live(&site).0, before.0.0);
}

#[test]
fn answers_to_a_leak_change_what_they_say_or_nothing() {
    let site = site();
    let before = live(&site);
    let mut wrong = Vec::new();
    for (deed, code, says) in LEAKS {
        now_does(&site, deed);
        let outcome = site
            .essrun()
            .run_json(&["incident", "pipeline.toml", "latest", "--apply", "--yes"]);
        if outcome.code() != Some(*code) || !outcome.stderr.contains(says) || !outcome.stderr.contains("stranger") {
            wrong.push(format!("{deed}: should end with {code} and say {says:?}:\n{outcome}"));
        }
        assert_eq!(live(&site), before, "{deed} changed what is live");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
