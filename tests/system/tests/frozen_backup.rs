//! A backup that essrun once took of real things, kept in tests/frozen/backup: whatever essrun is by now, it hands out
//! every artifact byte for byte, and puts everything back as it was.
//!
//! `make_frozen_backup` took it, and refuses to write over one: a frozen backup that is made anew proves nothing
//! (`cargo nextest run --workspace -E 'binary(frozen_backup)' --run-ignored only`). The keys in it are for nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::sha256_hex;
use essrun_testkit::site::Site;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ARTIFACTS: [&str; 9] = [
    "other/main/database",
    "other/main/ddl-pre-data",
    "other/main/ddl-post-data",
    "other/main/sequences",
    "other/main/large-objects",
    "other/main/public.notes",
    "other/main/public.wide",
    "other/second",
    "other/files",
];

/// What must be the same before and after, by SQL.
const QUERIES: [&str; 5] = [
    "SELECT count(*) || md5(string_agg(n::text, '|' ORDER BY id)) FROM notes n",
    "SELECT count(*) || md5(string_agg(w::text, '|' ORDER BY id)) FROM wide w",
    "SELECT string_agg(md5(lo_get(oid)), ' ' ORDER BY oid) FROM pg_largeobject_metadata",
    "SELECT string_agg(format('%s %s %s %s', relname, relkind, relowner::regrole, pg_get_indexdef(oid)), E'\\n' ORDER BY relname) \
     FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "SELECT string_agg(conname || pg_get_constraintdef(oid), E'\\n' ORDER BY conname) FROM pg_constraint \
     WHERE connamespace = 'public'::regnamespace",
];

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../frozen/backup")
}

fn components(site: &Site) -> String {
    let root = site.path().display();
    format!(
        "[components.other]\nuse = \"generic\"\n\
         databases = {{ main = {{ url-env = \"FROZEN_DB\" }}, second = {{ sqlite = \"{root}/second.db\" }} }}\n\
         volumes = {{ files = {{ path = \"{root}/files\" }} }}\n"
    )
}

fn sqlite(site: &Site, program: &str) -> String {
    let file = site.path().join("second.db");
    let script = format!("import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\n{program}\n");
    let output = Command::new("python3")
        .args(["-c", &script])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// All that can be seen of the tree but its owner, which only root can give back.
fn listing(dir: &Path) -> String {
    let script = "find . -printf '%P %y %m %T@ %l %n %s\\n' | LC_ALL=C sort; \
                  find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success());
    // The root's own time is that of the folder it is put into.
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter(|l| !l.starts_with(" d "))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What is there, as it was and as it must be again.
fn state(site: &Site) -> Value {
    let sql: Vec<String> = QUERIES.iter().map(|q| site.sql("frozen", q)).collect();
    json!({
        "sql": sql,
        "sqlite": sqlite(site, "print('\\n'.join(c.iterdump()), c.execute('PRAGMA user_version').fetchone())"),
        "files": listing(&site.path().join("files")),
    })
}

/// Each artifact's hash, as `extract` hands it out.
fn extracted(site: &Site) -> BTreeMap<String, String> {
    let extract = |artifact: &str| {
        let output = site.path().join("extracted");
        let out = output.to_str().unwrap();
        site.with_identity("extract", &[artifact, "--output", out])
            .expect_success();
        let hash = match output.is_dir() {
            true => {
                let hash = sha256_hex(listing(&output).as_bytes());
                std::fs::remove_dir_all(&output).unwrap();
                hash
            }
            false => {
                let hash = sha256_hex(&std::fs::read(&output).unwrap());
                std::fs::remove_file(&output).unwrap();
                hash
            }
        };
        (artifact.to_owned(), hash)
    };
    ARTIFACTS.iter().map(|a| extract(a)).collect()
}

fn tar(arguments: &[&str]) {
    let done = Command::new("tar").args(arguments).status().unwrap();
    assert!(done.success(), "tar {arguments:?}");
}

#[test]
fn a_backup_of_once_is_handed_out_and_put_back_as_it_was() {
    let mut site = Site::create();
    site.database("frozen");
    site.drop_database("frozen");
    // The keys and the repository of once, in a folder of today.
    let root = site.path().to_owned();
    tar(&[
        "--zstd",
        "-xf",
        frozen().join("backup.tar.zst").to_str().unwrap(),
        "-C",
        root.to_str().unwrap(),
    ]);
    let text = std::fs::read_to_string(frozen().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let pipeline = format!(
        "version = 1\nname = \"site\"\n\n[repository]\nurl = \"repository\"\nrecipients = [{}]\nwriter-key = \"writer.key\"\n\
         cache = \"cache\"\nstate = \"state\"\n\n{}",
        expected["recipient"],
        components(&site)
    );
    std::fs::write(root.join("pipeline.toml"), pipeline).unwrap();
    let listed = site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    assert_eq!(listed.events.len(), 1);
    assert_eq!(listed.events[0]["id"], expected["backup"]);
    site.with_identity("check", &[]).expect_success();
    assert_eq!(json!(extracted(&site)), expected["artifacts"]);

    site.with_identity("restore", &["--yes"]).expect_success();
    assert_eq!(state(&site), expected["state"]);
    // And it is gone on from: the next backup relies on it.
    site.back_up().expect_success();
    let shown = site.essrun().run_json(&["show", "pipeline.toml"]).expect_success();
    let stats = &shown.events[0]["summary"]["stats"];
    assert!(stats["chunks_reused"].as_u64().unwrap() > 0, "{stats}");
}

#[test]
#[ignore = "writes tests/frozen/backup; run once for a format version"]
fn make_frozen_backup() {
    let to = frozen();
    assert!(!to.exists(), "{} is frozen already", to.display());
    let mut site = Site::create();
    site.database("frozen");
    site.fill(
        "frozen",
        "CREATE TABLE notes (id serial PRIMARY KEY, at timestamptz NOT NULL, tag char(1), n numeric, raw bytea);
         INSERT INTO notes (at, tag, n, raw) SELECT '2026-01-31 04:15:00+00'::timestamptz + n * interval '1 hour',
           chr(65 + n % 26), n / 7.0, decode(to_hex(n % 16) || '0', 'hex') FROM generate_series(1, 500) n;
         INSERT INTO notes (at) VALUES ('-infinity');
         CREATE TABLE wide (id bigint PRIMARY KEY REFERENCES notes (id), a text, b text);
         INSERT INTO wide SELECT n, repeat(md5(n::text), 6) || E'\\t\\\\ünï', repeat('abc', 50) FROM generate_series(1, 60) n;
         INSERT INTO wide VALUES (61, NULL, '');
         CREATE INDEX wide_b ON wide (b text_pattern_ops);
         SELECT lo_from_bytea(0, decode(repeat(md5('x'), 5000), 'hex'));
         ANALYZE;",
    );
    let deep = site.folder("files/deep/er");
    std::fs::write(deep.join("plain"), vec![7u8; 40_000]).unwrap();
    std::fs::write(deep.join("empty"), b"").unwrap();
    std::fs::write(deep.join("\u{fc}ml\u{e4}ut and a\ttab"), b"odd").unwrap();
    std::fs::hard_link(deep.join("plain"), deep.join("twin")).unwrap();
    std::os::unix::fs::symlink("plain", deep.join("link")).unwrap();
    let sparse = std::fs::File::create(deep.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 1 << 20).unwrap();
    drop(sparse);
    sqlite(
        &site,
        "c.executescript(\"CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, b BLOB, s TEXT); \
         INSERT INTO t (b, s) VALUES (x'00ff', 'one'), (NULL, 'two'); CREATE INDEX i ON t (s); PRAGMA user_version = 3\")",
    );
    site.prepare(&components(&site));
    site.back_up().expect_success();
    let listed = site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    let text = std::fs::read_to_string(site.path().join("pipeline.toml")).unwrap();
    let recipient = text.split('"').find(|w| w.starts_with("age1")).unwrap();
    let expected = json!({
        "backup": listed.events[0]["id"],
        "recipient": recipient,
        "artifacts": extracted(&site),
        "state": state(&site),
    });
    for (table, binary) in [("notes", false), ("wide", true)] {
        let out = site.path().join("rows");
        let artifact = format!("other/main/public.{table}");
        site.with_identity("extract", &[&artifact, "--output", out.to_str().unwrap()])
            .expect_success();
        assert_eq!(std::fs::read(&out).unwrap().starts_with(b"PGCOPY"), binary, "{table}");
        std::fs::remove_file(&out).unwrap();
    }
    std::fs::create_dir(&to).unwrap();
    std::fs::write(
        to.join("expected.json"),
        serde_json::to_string_pretty(&expected).unwrap() + "\n",
    )
    .unwrap();
    let (root, archive) = (site.path().to_str().unwrap(), to.join("backup.tar.zst"));
    let archive = archive.to_str().unwrap();
    tar(&[
        "--zstd",
        "--owner=0",
        "--group=0",
        "--sort=name",
        "-cf",
        archive,
        "-C",
        root,
        "repository",
        "writer.key",
        "elsewhere/identity.txt",
    ]);
    let size = std::fs::metadata(archive).unwrap().len();
    assert!(size < 200 << 10, "{size} bytes");
}
