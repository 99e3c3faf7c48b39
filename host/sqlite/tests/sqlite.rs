//! Real databases, real writers, stock `sqlite3` where it is installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_artifact::memory::MemoryBackup;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, BackupWriter, NoProgress, Sensitivity};
use essrun_sqlite::{
    Cell, Copy, Limits, Owner, RestoreOptions, Sqlite, SqliteError, TableKind, backup, list_leftovers, restore,
};
use rusqlite::Connection;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Shaped like Sydent's: a version in user_version, ids that are never given out again, a view, an index.
fn sydent(at: &Path, journal: &str) -> Connection {
    let db = Connection::open(at).unwrap();
    db.pragma_update(None, "journal_mode", journal).unwrap();
    db.execute_batch(
        "PRAGMA user_version = 5; PRAGMA application_id = 77;
         CREATE TABLE peers (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL);
         CREATE TABLE local_threepid_associations (id INTEGER PRIMARY KEY AUTOINCREMENT, address TEXT, lookup_hash TEXT,
           ts REAL, raw BLOB, peer INTEGER REFERENCES peers(id));
         CREATE INDEX by_hash ON local_threepid_associations(lookup_hash);
         CREATE TABLE norowidpk (a TEXT);
         CREATE VIEW hashes AS SELECT lookup_hash FROM local_threepid_associations;
         INSERT INTO peers(name) VALUES ('a'), ('b'), ('gone');
         DELETE FROM peers WHERE name = 'gone';",
    )
    .unwrap();
    for i in 0..500 {
        db.execute(
            "INSERT INTO local_threepid_associations(address, lookup_hash, ts, raw, peer) VALUES (?1, ?2, ?3, ?4, 1)",
            rusqlite::params![
                format!("user{i}@example.org"),
                format!("hash{i}"),
                f64::from(i) / 3.0,
                vec![0u8, 255, i as u8]
            ],
        )
        .unwrap();
    }
    // Rowids with gaps, which VACUUM would close.
    db.execute_batch("INSERT INTO norowidpk VALUES ('x'), ('y'), ('z'); DELETE FROM norowidpk WHERE a = 'y'; ANALYZE;")
        .unwrap();
    db
}

fn all(db: &Connection) -> Vec<String> {
    let mut lines = Vec::new();
    for table in [
        "peers",
        "local_threepid_associations",
        "norowidpk",
        "sqlite_sequence",
        "sqlite_schema",
    ] {
        let mut statement = db
            .prepare(&format!("SELECT rowid, * FROM {table} ORDER BY rowid"))
            .unwrap();
        let width = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cells: Vec<_> = (0..width).map(|i| format!("{:?}", row.get_ref(i).unwrap())).collect();
            lines.push(format!("{table} {}", cells.join("|")));
        }
    }
    for pragma in ["user_version", "application_id", "encoding", "page_size", "auto_vacuum"] {
        let value: rusqlite::types::Value = db.pragma_query_value(None, pragma, |r| r.get(0)).unwrap();
        lines.push(format!("{pragma} {value:?}"));
    }
    lines
}

async fn take(source: &Path, directory: &Path) -> (essrun_sqlite::BackupReport, Arc<dyn BackupReader>, ArtifactRecord) {
    let store = MemoryBackup::new();
    let writer: Arc<dyn BackupWriter> = Arc::new(store.clone());
    let name = ArtifactName::new("sydent/db").unwrap();
    let report = backup(
        source,
        directory,
        name,
        Sensitivity::Secret,
        writer,
        Arc::new(NoProgress),
    )
    .await
    .unwrap();
    let reader = store.commit().unwrap();
    let record = reader.artifacts()[0].clone();
    (report, Arc::new(reader), record)
}

const PLAIN: RestoreOptions = RestoreOptions {
    replace: false,
    owner: Owner::Recorded,
};
const REPLACE: RestoreOptions = RestoreOptions {
    replace: true,
    owner: Owner::Recorded,
};

fn names(at: &Path) -> Vec<String> {
    let mut names: Vec<String> = at
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn comes_back_whole() {
    for journal in ["delete", "wal"] {
        let dir = tempfile::tempdir().unwrap();
        let (temporary, target) = (dir.path().join("tmp"), dir.path().join("target"));
        std::fs::create_dir(&temporary).unwrap();
        std::fs::create_dir(&target).unwrap();
        let source = dir.path().join("sydent.db");
        // The writer stays open: in WAL mode its last commits are in the log only.
        let live = sydent(&source, journal);
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o640)).unwrap();
        runtime().block_on(async {
            let (report, reader, record) = take(&source, &temporary).await;
            assert_eq!(names(&temporary), [""; 0], "the copy is removed");
            let meta = &report.meta;
            assert_eq!(
                (meta.user_version, meta.application_id, meta.journal_mode.as_str()),
                (5, 77, journal)
            );
            assert_eq!(
                meta.sequences,
                [("local_threepid_associations".into(), 500), ("peers".into(), 3)]
            );
            assert_eq!((meta.integrity_problems.len(), meta.foreign_key_violations), (0, 0));
            assert_eq!(meta.bytes, meta.page_size * meta.page_count);
            let goal = target.join("db");
            let staged = restore(reader.clone(), &record, &goal, PLAIN, Arc::new(NoProgress))
                .await
                .unwrap();
            assert!(!goal.exists());
            assert_eq!(staged.warnings(), [""; 0]);
            assert_eq!(staged.open().await.unwrap().info().await.unwrap().user_version, 5);
            staged
                .run_sql(&[
                    "DELETE FROM norowidpk WHERE a = 'x'".into(),
                    "INSERT INTO norowidpk VALUES ('x2')".into(),
                ])
                .await
                .unwrap();
            staged
                .run_sql(&[
                    "UPDATE norowidpk SET a = 'x' WHERE a = 'x2'".into(),
                    "UPDATE norowidpk SET rowid = 1 WHERE a = 'x'".into(),
                ])
                .await
                .unwrap();
            let swapped = staged.swap().await.unwrap();
            assert_eq!(swapped.kept, None);
            assert_eq!(names(&target), ["db"]);
            assert_eq!(goal.metadata().unwrap().mode() & 0o7777, 0o640);
            assert_eq!(all(&Connection::open(&goal).unwrap()), all(&live), "{journal}");
        });
    }
}

/// The trap: SQL text, as `.dump` or Python's iterdump write it, knows no user_version.
#[test]
fn a_dump_loses_user_version_and_ours_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("sydent.db");
    drop(sydent(&source, "delete"));
    let loaded = dir.path().join("loaded.db");
    let script = "import sqlite3,sys\ns=sqlite3.connect(sys.argv[1]);d=sqlite3.connect(sys.argv[2])\n\
                  d.executescript('\\n'.join(l for l in s.iterdump() if 'sqlite_stat' not in l))\n";
    let done = Command::new("python3")
        .args(["-c", script])
        .args([&source, &loaded])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let version = |path: &Path| -> i64 {
        Connection::open(path)
            .unwrap()
            .pragma_query_value(None, "user_version", |r| r.get(0))
            .unwrap()
    };
    let rows = |path: &Path| -> i64 {
        Connection::open(path)
            .unwrap()
            .query_row("SELECT count(*) FROM local_threepid_associations", [], |r| r.get(0))
            .unwrap()
    };
    assert_eq!(
        (rows(&loaded), version(&loaded)),
        (500, 0),
        "the rows came, the version did not"
    );
    runtime().block_on(async {
        let (_, reader, record) = take(&source, dir.path()).await;
        let goal = dir.path().join("goal.db");
        restore(reader, &record, &goal, PLAIN, Arc::new(NoProgress))
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!((rows(&goal), version(&goal)), (500, 5));
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another process writes pairs that must be seen together, as fast as it can.
fn writer(at: &Path, journal: &str) -> Killed {
    let script = format!(
        "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=60,isolation_level=None)\n\
         c.execute('PRAGMA journal_mode={journal}')\n\
         c.execute('CREATE TABLE IF NOT EXISTS pair(n INTEGER, side TEXT, filler TEXT)')\n\
         for n in range(10**9):\n c.execute('BEGIN IMMEDIATE')\n\
         \x20c.execute('INSERT INTO pair VALUES(?,?,?)',(n,'left','x'*900))\n\
         \x20c.execute('INSERT INTO pair VALUES(?,?,?)',(n,'right','y'*900))\n c.execute('COMMIT')\n\
         \x20if n==50: print('ready',flush=True)\n"
    );
    let mut child = Command::new("python3")
        .args(["-c", &script])
        .arg(at)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line.trim(), "ready");
    Killed(child)
}

#[test]
fn a_writer_in_another_process_does_not_matter() {
    for journal in ["delete", "wal"] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("db");
        {
            // Several pieces, so that commits fall between them.
            let db = Connection::open(&source).unwrap();
            db.execute_batch("CREATE TABLE ballast(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                INSERT INTO ballast SELECT zeroblob(1000) FROM n").unwrap();
        }
        let writing = writer(&source, journal);
        let count = |db: &Connection, side: &str| -> i64 {
            db.query_row("SELECT count(*) FROM pair WHERE side = ?1", [side], |r| r.get(0))
                .unwrap()
        };
        runtime().block_on(async {
            let mut seen = 0;
            for round in 0..4 {
                let (report, reader, record) = take(&source, dir.path()).await;
                assert_eq!(report.meta.integrity_problems, [""; 0]);
                let goal = dir.path().join(format!("goal{round}"));
                restore(reader, &record, &goal, PLAIN, Arc::new(NoProgress))
                    .await
                    .unwrap()
                    .swap()
                    .await
                    .unwrap();
                let db = Connection::open(&goal).unwrap();
                let (left, right) = (count(&db, "left"), count(&db, "right"));
                assert_eq!(left, right, "one instant ({journal})");
                assert!(left >= seen.max(51));
                seen = left;
                std::thread::sleep(Duration::from_millis(30));
            }
            drop(writing);
            let live = Connection::open(&source).unwrap();
            assert!(count(&live, "left") > 51, "it really wrote meanwhile ({journal})");
        });
    }
}

#[test]
fn what_was_live_is_kept_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.db");
    drop(sydent(&source, "delete"));
    let place = dir.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let goal = place.join("db");
    // A live database whose last commit is only in the log, as a crash leaves it.
    {
        let db = Connection::open(place.join("origin")).unwrap();
        db.execute_batch("PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(x); INSERT INTO t VALUES ('only in the log')").unwrap();
        std::fs::copy(place.join("origin"), &goal).unwrap();
        std::fs::copy(place.join("origin-wal"), place.join("db-wal")).unwrap();
    }
    std::fs::remove_file(place.join("origin")).unwrap();
    runtime().block_on(async {
        let (_, reader, record) = take(&source, dir.path()).await;
        let go = async |options| restore(reader.clone(), &record, &goal, options, Arc::new(NoProgress)).await;
        let e = go(PLAIN).await.unwrap_err();
        assert!(
            matches!(e, SqliteError::Destination { .. }) && e.to_string().contains("not empty"),
            "{e}"
        );
        assert_eq!(names(&place), ["db", "db-wal"]);
        let staged = go(REPLACE).await.unwrap();
        let killed = place.join(".db.essrun-restore-0000");
        std::fs::copy(staged.path(), &killed).unwrap();
        let beside = go(REPLACE).await.unwrap();
        assert!(list_leftovers(&goal).await.unwrap().is_empty(), "somebody is at work");
        drop(beside);
        assert!(list_leftovers(&goal).await.unwrap().is_empty(), "and still is");
        drop(staged);
        assert_eq!(list_leftovers(&goal).await.unwrap(), [killed.as_path()]);
        std::fs::remove_file(&killed).unwrap();
        assert_eq!(names(&place), ["db", "db-wal"], "dropped, nothing happened");
        let kept = go(REPLACE).await.unwrap().swap().await.unwrap().kept.unwrap();
        // No log stands beside the new one…
        assert!(!place.join("db-wal").exists());
        let fresh = Connection::open(&goal).unwrap();
        assert_eq!(
            fresh
                .query_row("SELECT count(*) FROM peers", [], |r| r.get::<_, i64>(0))
                .unwrap(),
            2
        );
        // …and the old one still has its last commit.
        let old = Connection::open(&kept).unwrap();
        assert_eq!(
            old.query_row("SELECT x FROM t", [], |r| r.get::<_, String>(0)).unwrap(),
            "only in the log"
        );
        // A log left without a database is moved away as well.
        drop(fresh);
        std::fs::remove_file(&goal).unwrap();
        std::fs::write(place.join("db-journal"), b"somebody's").unwrap();
        let kept = go(PLAIN).await.unwrap().swap().await.unwrap().kept.unwrap();
        assert!(!place.join("db-journal").exists());
        assert_eq!(
            std::fs::read(PathBuf::from(format!("{}-journal", kept.display()))).unwrap(),
            b"somebody's"
        );
    });
}

#[test]
fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("db");
    drop(sydent(&source, "delete"));
    runtime().block_on(async {
        let (_, reader, record) = take(&source, dir.path()).await;
        // Descriptions that do not fit the content.
        for (member, value) in [
            ("user_version", 4.into()),
            ("format", 9.into()),
            ("bytes", 1.into()),
            ("sequences", serde_json::json!([])),
        ] {
            let mut bad = record.clone();
            bad.meta[member] = value;
            assert!(
                restore(reader.clone(), &bad, &dir.path().join("x"), PLAIN, Arc::new(NoProgress))
                    .await
                    .is_err(),
                "{member}"
            );
        }
        let mut bad = record.clone();
        bad.kind = "volume".into();
        assert!(
            restore(reader, &bad, &dir.path().join("x"), PLAIN, Arc::new(NoProgress))
                .await
                .is_err()
        );

        // Pages overwritten in the live file: backed up all the same, and said.
        let bytes = std::fs::read(&source).unwrap();
        let mut broken = bytes.clone();
        let at = bytes.windows(7).rposition(|w| w == b"hash250").unwrap();
        broken[at..at + 4].copy_from_slice(b"HASH");
        std::fs::write(&source, &broken).unwrap();
        let (report, reader, record) = take(&source, dir.path()).await;
        assert!(!report.meta.integrity_problems.is_empty());
        let staged = restore(reader, &record, &dir.path().join("x"), PLAIN, Arc::new(NoProgress))
            .await
            .unwrap();
        assert!(staged.warnings()[0].contains("damaged already"));
        drop(staged);
        // The same bytes, claimed to be sound.
        let mut claimed = record.clone();
        claimed.meta["integrity_problems"] = serde_json::json!([]);
        let (_, reader, _) = take(&source, dir.path()).await;
        let e = restore(reader, &claimed, &dir.path().join("x"), PLAIN, Arc::new(NoProgress))
            .await
            .unwrap_err();
        assert!(matches!(e, SqliteError::Damaged { .. }), "{e}");
        assert_eq!(names(dir.path()), ["db"], "nothing stays behind");

        std::fs::write(
            dir.path().join("text"),
            b"this is not a database, but long enough to be read as one. ".repeat(100),
        )
        .unwrap();
        let e = Copy::take(&dir.path().join("text"), dir.path()).await.unwrap_err();
        assert!(e.to_string().contains("name an SQLite database"), "{e}");
        assert!(matches!(
            Copy::take(&dir.path().join("absent"), dir.path()).await,
            Err(SqliteError::Absent { .. })
        ));
        assert!(matches!(
            Sqlite::open(dir.path()).await,
            Err(SqliteError::Invalid { .. })
        ));
        assert_eq!(names(dir.path()), ["db", "text"]);
    });
}

#[test]
fn looks_are_read_only_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("db");
    drop(sydent(&source, "delete"));
    let before = std::fs::read(&source).unwrap();
    runtime().block_on(async {
        let copy = Copy::take(&source, dir.path()).await.unwrap();
        assert_eq!(copy.path().metadata().unwrap().mode() & 0o7777, 0o600);
        let db = copy.open().await.unwrap();
        let info = db.info().await.unwrap();
        assert_eq!((info.user_version, info.encoding.as_str()), (5, "UTF-8"));
        let tables = db.tables().await.unwrap();
        let listed: Vec<_> = tables.iter().map(|t| (t.name.as_str(), t.kind)).collect();
        assert_eq!(
            listed,
            [
                ("hashes", TableKind::View),
                ("local_threepid_associations", TableKind::Table),
                ("norowidpk", TableKind::Table),
                ("peers", TableKind::Table),
            ]
        );
        assert_eq!(
            (tables[1].estimated_rows, tables[1].columns[1].as_str()),
            (Some(500), "address")
        );

        let rows = async |sql: &str, params: Vec<Cell>| -> Result<Vec<Vec<Cell>>, SqliteError> {
            let mut rows = db.query(sql, params, Limits::default()).await?;
            let mut all = Vec::new();
            loop {
                let page = rows.next(7).await?;
                assert!(page.len() <= 7);
                if page.is_empty() {
                    return Ok(all);
                }
                all.extend(page);
            }
        };
        assert_eq!(
            rows(
                "SELECT id, address, ts, raw, NULL FROM local_threepid_associations WHERE id = ?1 -- a comment",
                vec![Cell::Integer(2)]
            )
            .await
            .unwrap(),
            [vec![
                Cell::Integer(2),
                Cell::Text("user1@example.org".into()),
                Cell::Real(1.0 / 3.0),
                Cell::Bytes(vec![0, 255, 1]),
                Cell::Null
            ]]
        );
        assert_eq!(rows("SELECT lookup_hash FROM hashes", vec![]).await.unwrap().len(), 500);
        assert_eq!(
            rows("VALUES (?1), (?2)", vec![Cell::Boolean(true), Cell::Null])
                .await
                .unwrap(),
            [[Cell::Integer(1)], [Cell::Null]]
        );
        assert_eq!(
            rows("SELECT user_version FROM pragma_user_version", vec![])
                .await
                .unwrap(),
            [[Cell::Integer(5)]]
        );
        assert_eq!(
            rows("WITH x AS (SELECT 1 AS a) SELECT a FROM x", vec![]).await.unwrap(),
            [[Cell::Integer(1)]]
        );
        let mut q = db
            .query("SELECT 1 AS one, 2 AS two", vec![], Limits::default())
            .await
            .unwrap();
        assert_eq!(q.columns(), ["one", "two"]);
        assert_eq!(q.next(0).await.unwrap().len(), 1);
        assert!(q.next(5).await.unwrap().is_empty());
        assert!(q.next(5).await.unwrap().is_empty(), "the end stays the end");

        for hostile in [
            "DELETE FROM peers",
            "DELETE FROM peers RETURNING *",
            "SELECT 1) ; DELETE FROM peers; --",
            "SELECT 1); SELECT (1",
            "SELECT 1; SELECT 2",
            "PRAGMA user_version = 6",
            "SELECT * FROM pragma_user_version(6)",
            "SELECT * FROM pragma_journal_mode('wal')",
            "SELECT * FROM pragma_database_list",
            "ATTACH '/tmp/x' AS y",
            "SELECT load_extension('/tmp/evil.so')",
            "SELECT writefile('/tmp/x', 'y')",
            "SELECT fts3_tokenizer('simple')",
            "SELECT randomblob(10)",
            "SELECT sqlite_compileoption_get(1)",
            "CREATE TABLE evil(x)",
            "BEGIN",
            "SELECT 1 /*",
            "SELECT '\0'",
            "",
            ")",
            "SELECT ?1",
            "nonsense",
        ] {
            let e = rows(hostile, vec![]).await;
            assert!(matches!(e, Err(SqliteError::Invalid { .. })), "{hostile:?}: {e:?}");
        }
        // Text that is no text.
        assert!(matches!(
            rows("SELECT CAST(x'ff' AS TEXT)", vec![]).await,
            Err(SqliteError::Invalid { .. })
        ));

        let small = Limits {
            rows: 10,
            ..Limits::default()
        };
        let mut q = db.query("SELECT * FROM hashes", vec![], small).await.unwrap();
        assert_eq!(q.next(10).await.unwrap().len(), 10);
        assert!(matches!(q.next(1).await, Err(SqliteError::Limit(_))));
        let small = Limits {
            bytes: 1000,
            ..Limits::default()
        };
        let mut q = db
            .query("SELECT printf('%.500c', 'x') FROM hashes", vec![], small)
            .await
            .unwrap();
        assert_eq!(q.next(2).await.unwrap().len(), 2);
        assert!(matches!(q.next(2).await, Err(SqliteError::Limit(_))));
        let small = Limits {
            page_bytes: 10,
            ..Limits::default()
        };
        let mut q = db.query("SELECT lookup_hash FROM hashes", vec![], small).await.unwrap();
        assert_eq!(
            q.next(100).await.unwrap().len(),
            2,
            "a page ends with the row that reaches its limit"
        );
        // It would never end.
        let short = Limits {
            time: Duration::from_millis(200),
            ..Limits::default()
        };
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let mut q = db.query(endless, vec![], short).await.unwrap();
        assert!(matches!(q.next(1).await, Err(SqliteError::Slow(_))));
        // Dropped in the middle: the copy can be stored and removed all the same.
        let mut q = db
            .query("SELECT * FROM hashes", vec![], Limits::default())
            .await
            .unwrap();
        q.next(1).await.unwrap();
        drop(q);
        drop(copy);
        // A thread that ends a moment later leaves nothing either.
        for _ in 0..100 {
            if names(dir.path()) == ["db"] {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(names(dir.path()), ["db"]);
    });
    assert_eq!(
        std::fs::read(&source).unwrap(),
        before,
        "not a byte of the source changed"
    );
}

#[test]
fn mending_sql_stays_in_its_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("db");
    drop(sydent(&source, "delete"));
    runtime().block_on(async {
        let (_, reader, record) = take(&source, dir.path()).await;
        let staged = restore(reader, &record, &dir.path().join("x"), PLAIN, Arc::new(NoProgress))
            .await
            .unwrap();
        for bad in [
            "COMMIT",
            "ROLLBACK",
            "ATTACH '/tmp/evil.db' AS e",
            "VACUUM INTO '/tmp/evil.db'",
            "PRAGMA journal_mode = off",
            "PRAGMA writable_schema = 1",
            "SELECT load_extension('x')",
            "SAVEPOINT s",
            "nonsense",
            "DELETE FROM norowidpk; COMMIT",
        ] {
            let e = staged.run_sql(&["DELETE FROM norowidpk".into(), bad.into()]).await;
            assert!(e.is_err(), "{bad}");
        }
        let count = async || {
            let mut rows = staged
                .open()
                .await
                .unwrap()
                .query("SELECT count(*) FROM norowidpk", vec![], Limits::default())
                .await
                .unwrap();
            rows.next(1).await.unwrap()
        };
        assert_eq!(count().await, [[Cell::Integer(2)]], "the failed ones left nothing");
        staged
            .run_sql(&["DELETE FROM norowidpk".into(), "PRAGMA user_version = 6".into()])
            .await
            .unwrap();
        assert_eq!(count().await, [[Cell::Integer(0)]]);
        assert!(!Path::new("/tmp/evil.db").exists());
        staged.discard().await.unwrap();
    });
}
