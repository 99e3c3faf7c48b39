//! Databases made by somebody who wants the restore to fall over, or to leave something behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_artifact::memory::MemoryBackup;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, BackupWriter, LaneSpec, NoProgress, Sensitivity};
use essrun_sqlite::{RestoreOptions, SqliteError, backup, plan_restore, restore};
use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn name() -> ArtifactName {
    ArtifactName::new("any/db").unwrap()
}

async fn record_of(source: &Path, directory: &Path) -> ArtifactRecord {
    let store = MemoryBackup::new();
    let writer: Arc<dyn BackupWriter> = Arc::new(store.clone());
    backup(
        source,
        directory,
        name(),
        Sensitivity::Secret,
        writer,
        Arc::new(NoProgress),
    )
    .await
    .unwrap();
    store.commit().unwrap().artifacts()[0].clone()
}

/// A backup whose bytes are these, described as `like`.
async fn forged(bytes: &[u8], like: &ArtifactRecord) -> (Arc<dyn BackupReader>, ArtifactRecord) {
    let store = MemoryBackup::new();
    let mut lane = store.lane(LaneSpec::TABLE).unwrap();
    lane.write(bytes::Bytes::copy_from_slice(bytes)).await.unwrap();
    let content = lane.cut().await.unwrap();
    lane.close().await.unwrap();
    let mut record = like.clone();
    record.meta["bytes"] = content.bytes.into();
    record.content = content;
    store.record(record.clone()).await.unwrap();
    (Arc::new(store.commit().unwrap()), record)
}

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
fn whatever_the_bytes_nothing_falls_over_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (source, place) = (dir.path().join("db"), dir.path().join("place"));
    std::fs::create_dir(&place).unwrap();
    let goal = place.join("goal");
    let db = Connection::open(&source).unwrap();
    db.execute_batch("CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('one'), ('two'); CREATE INDEX i ON t(a)")
        .unwrap();
    drop(db);
    let good = std::fs::read(&source).unwrap();
    runtime().block_on(async {
        let like = record_of(&source, dir.path()).await;
        let mut cases: Vec<Vec<u8>> = vec![Vec::new(), b"SQLite format 3\0".to_vec(), vec![0; 4096]];
        cases.extend([good.len() / 2, 1000, 99].map(|end| good[..end].to_vec()));
        // Each byte of the header (a log is announced there, pages are counted, freed ones are listed), and of the schema.
        for at in (0..200).chain(good.len().min(4096) - 200..good.len().min(4096)) {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            cases.push(bad);
        }
        for version in [0u8, 2, 3] {
            let mut bad = good.clone();
            (bad[18], bad[19]) = (version, version);
            cases.push(bad);
        }
        let mut refused = 0;
        for bytes in &cases {
            let (reader, record) = forged(bytes, &like).await;
            match restore(reader, &record, &goal, RestoreOptions::default(), Arc::new(NoProgress)).await {
                // Dropped without a swap.
                Ok(staged) => drop(staged),
                Err(e) => {
                    assert!(!matches!(e, SqliteError::Internal(_)), "{e}");
                    refused += 1;
                }
            }
            assert_eq!(names(&place), [""; 0], "{:?}", &bytes[..bytes.len().min(100)]);
        }
        assert!(refused > 20, "only {refused} of {} were refused", cases.len());
    });
}

#[test]
fn a_schema_does_nothing_when_it_is_checked_or_mended() {
    let dir = tempfile::tempdir().unwrap();
    let (source, place) = (dir.path().join("db"), dir.path().join("place"));
    std::fs::create_dir(&place).unwrap();
    let goal = place.join("goal");
    let db = Connection::open(&source).unwrap();
    // A trigger and a view that run what a schema may not, once somebody writes or looks.
    db.execute_batch(
        "CREATE TABLE t (a TEXT); CREATE TABLE log (a TEXT);
         CREATE TRIGGER on_insert AFTER INSERT ON t BEGIN INSERT INTO log VALUES (load_extension('/tmp/x')); END;
         CREATE VIEW v AS SELECT load_extension('/tmp/x') AS a;
         INSERT INTO log VALUES ('kept')",
    )
    .unwrap();
    drop(db);
    runtime().block_on(async {
        let store = MemoryBackup::new();
        let writer: Arc<dyn BackupWriter> = Arc::new(store.clone());
        backup(
            &source,
            dir.path(),
            name(),
            Sensitivity::Secret,
            writer,
            Arc::new(NoProgress),
        )
        .await
        .unwrap();
        let reader: Arc<dyn BackupReader> = Arc::new(store.commit().unwrap());
        let record = reader.artifacts()[0].clone();
        let staged = restore(reader, &record, &goal, RestoreOptions::default(), Arc::new(NoProgress))
            .await
            .unwrap();
        for sql in ["INSERT INTO t VALUES ('x')", "INSERT INTO log SELECT a FROM v"] {
            let e = staged.run_sql(&[sql.to_owned()]).await.unwrap_err();
            assert!(matches!(e, SqliteError::Invalid { .. }), "{sql}: {e}");
        }
        staged.run_sql(&["DELETE FROM t".to_owned()]).await.unwrap();
        staged.swap().await.unwrap();
        let db = Connection::open(&goal).unwrap();
        let rows: i64 = db.query_row("SELECT count(*) FROM log", [], |r| r.get(0)).unwrap();
        assert_eq!(rows, 1, "what failed left something");
    });
}

#[test]
fn a_place_that_cannot_be_restored_to_is_known_before() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("folder")).unwrap();
    std::fs::write(at("full"), "x").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    std::os::unix::fs::symlink("full", at("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let before = names(dir.path());
    runtime().block_on(async {
        for (name, replace, says) in [
            ("folder", true, "no regular file"),
            ("link", true, "no regular file"),
            ("dangling", true, "no regular file"),
            ("fifo", true, "no regular file"),
            ("full/db", true, "is not there"),
            ("absent/db", true, "is not there"),
            ("full", false, "not empty"),
        ] {
            let e = plan_restore(&at(name), replace).await.unwrap_err();
            assert!(
                matches!(e, SqliteError::Destination { .. }) && e.to_string().contains(says),
                "{name}: {e}"
            );
        }
        for (name, replace) in [("full", true), ("empty", false), ("new", false)] {
            assert_eq!(plan_restore(&at(name), replace).await.unwrap(), dir.path(), "{name}");
        }
        // Root may write anywhere.
        if !rustix::process::geteuid().is_root() {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
            let e = plan_restore(&at("new"), false).await.unwrap_err();
            assert!(e.to_string().contains("may not be written to"), "{e}");
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
    });
    assert_eq!(names(dir.path()), before, "planning makes nothing");
}
