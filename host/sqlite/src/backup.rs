//! A database becomes an artifact.
//!
//! The copy is made by SQLite's online backup. With a write-ahead log, in one go within a read transaction: one instant,
//! and no writer waits. With a rollback journal, in pieces, so that writers get their turn between them; each of their
//! commits makes the copy begin anew, so after a few beginnings it is made in one go, and writers wait for it.

use crate::guard::{self, failed, io};
use crate::look::{blocking, info, pragma};
use crate::{Sqlite, SqliteError};
use bytes::Bytes;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupWriter, LaneSpec, Progress, Sensitivity};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The version of the artifact's format, in `meta.format`.
pub(crate) const FORMAT: u32 = 1;

/// The `meta` of an `sqlite` artifact. Its content is the database file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqliteMeta {
    pub format: u32,
    pub sqlite_version: String,
    pub user_version: i64,
    pub application_id: i64,
    pub journal_mode: String,
    pub encoding: String,
    pub page_size: u64,
    pub page_count: u64,
    pub bytes: u64,
    /// `sqlite_sequence`: table and the last id it gave out.
    pub sequences: Vec<(String, i64)>,
    /// Lines of `PRAGMA integrity_check` other than `ok`, at most 100.
    pub integrity_problems: Vec<String>,
    /// Rows `PRAGMA foreign_key_check` names.
    pub foreign_key_violations: u64,
    /// Numeric owner and permission bits of the database file.
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// What was backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupReport {
    pub meta: SqliteMeta,
    /// How often a writer made the copy begin anew.
    pub restarts: u32,
}

/// A private copy of a database, taken at one instant: looks before a backup go into it, and the backup is made of it.
/// The file is removed when this is dropped.
#[derive(Debug)]
pub struct Copy {
    path: PathBuf,
    meta: SqliteMeta,
    restarts: u32,
    _remove: Remove,
}

/// Removes a database file with what SQLite puts beside it.
#[derive(Debug)]
pub(crate) struct Remove(pub PathBuf);

/// What SQLite puts beside a database.
pub(crate) const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Remove {
    pub fn now(&self) -> std::io::Result<()> {
        for suffix in BESIDE {
            let _ = std::fs::remove_file(beside(&self.0, suffix));
        }
        match std::fs::remove_file(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for Remove {
    fn drop(&mut self) {
        if let Err(error) = self.now() {
            tracing::warn!(%error, path = %self.0.display(), "a temporary database could not be removed");
        }
    }
}

/// Bytes copied before writers get their turn.
const PIECE: i64 = 4 << 20;
/// Beginnings before the copy is made in one go.
const PATIENCE: u32 = 3;
/// How long a lock may keep us from going on.
const BLOCKED: Duration = Duration::from_secs(60);

impl Copy {
    /// Copies the database at `source` by SQLite's online backup into a new file (mode 0600) in `directory`.
    pub async fn take(source: &Path, directory: &Path) -> Result<Copy, SqliteError> {
        let (source, directory) = (source.to_owned(), directory.to_owned());
        blocking(move || take(&source, &directory)).await
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn meta(&self) -> &SqliteMeta {
        &self.meta
    }

    /// Opens the copy for looks.
    pub async fn open(&self) -> Result<Sqlite, SqliteError> {
        Sqlite::open(&self.path).await
    }

    /// Stores the copy as an artifact. A damaged database is stored all the same (better than nothing), and the report
    /// says so: see [`SqliteMeta::integrity_problems`].
    pub async fn store(
        self,
        name: ArtifactName,
        sensitivity: Sensitivity,
        writer: Arc<dyn BackupWriter>,
        progress: Arc<dyn Progress>,
    ) -> Result<BackupReport, SqliteError> {
        let what = name.to_string();
        progress.started(&what, Some(self.meta.bytes));
        let mut lane = writer.lane(LaneSpec::TABLE)?;
        let mut file = std::fs::File::open(&self.path).map_err(io("open", &self.path))?;
        let mut sum = 0;
        loop {
            let path = self.path.clone();
            let (back, piece) = blocking(move || {
                let mut piece = Vec::with_capacity(1 << 20);
                (&mut file)
                    .take(1 << 20)
                    .read_to_end(&mut piece)
                    .map_err(io("read", &path))?;
                Ok((file, piece))
            })
            .await?;
            file = back;
            if piece.is_empty() {
                break;
            }
            sum += piece.len() as u64;
            progress.advanced(&what, piece.len() as u64, 0);
            lane.write(Bytes::from(piece)).await?;
        }
        let content = lane.cut().await?;
        lane.close().await?;
        if sum != self.meta.bytes || content.bytes != sum {
            return Err(SqliteError::Internal(format!(
                "the copy has {} bytes, {sum} were read and {} kept",
                self.meta.bytes, content.bytes
            )));
        }
        let meta = serde_json::to_value(&self.meta).map_err(|e| SqliteError::Internal(e.to_string()))?;
        writer
            .record(ArtifactRecord {
                name,
                kind: crate::KIND.into(),
                sensitivity,
                meta,
                content,
            })
            .await?;
        progress.finished(&what);
        Ok(BackupReport {
            meta: self.meta.clone(),
            restarts: self.restarts,
        })
    }
}

fn take(source: &Path, directory: &Path) -> Result<Copy, SqliteError> {
    let found = source.metadata();
    let from = guard::open_read_only(source)?;
    let found = found.map_err(io("look at", source))?;
    let path = directory.join(format!("essrun-{}.sqlite", hex_id()));
    std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(io("create", &path))?;
    let remove = Remove(path.clone());
    let mut to = guard::open_own(&path)?;
    let restarts = copy(source, &from, &mut to)?;
    let of_copy = |e: rusqlite::Error| failed(source, "check the copy of", &e);
    let journal_mode = pragma(&from, "journal_mode").map_err(|e| failed(source, "read", &e))?;
    drop(from);
    let mut meta = describe(&to).map_err(of_copy)?;
    // Closed, so that no `-wal` of the copy holds what the file should.
    to.close().map_err(|(_, e)| of_copy(e))?;
    meta.journal_mode = journal_mode;
    meta.uid = found.uid();
    meta.gid = found.gid();
    meta.mode = found.mode() & 0o777;
    meta.bytes = path.metadata().map_err(io("look at", &path))?.len();
    Ok(Copy {
        path,
        meta,
        restarts,
        _remove: remove,
    })
}

pub(crate) fn hex_id() -> String {
    rand::random::<[u8; 8]>().iter().map(|b| format!("{b:02x}")).collect()
}

/// Copies all pages; says how often writers made it begin anew.
fn copy(source: &Path, from: &Connection, to: &mut Connection) -> Result<u32, SqliteError> {
    let failed = |e: rusqlite::Error| failed(source, "copy", &e);
    let mode: String = pragma(from, "journal_mode").map_err(failed)?;
    let page_size: i64 = pragma(from, "page_size").map_err(failed)?;
    let log = mode.eq_ignore_ascii_case("wal");
    if log {
        // The read pins the snapshot; without it the transaction would begin later.
        from.execute_batch("BEGIN").map_err(failed)?;
        from.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
            .map_err(failed)?;
    }
    let piece = i32::try_from(PIECE / page_size.max(512)).unwrap_or(i32::MAX).max(1);
    let backup = Backup::new(from, to).map_err(failed)?;
    let mut restarts = 0;
    let mut left = i32::MAX;
    let mut moved = Instant::now();
    loop {
        let at_once = log || restarts >= PATIENCE;
        match backup.step(if at_once { -1 } else { piece }).map_err(failed)? {
            StepResult::Done => break,
            StepResult::More => {
                let now = backup.progress().remaining;
                // A writer's commit makes SQLite copy from the first page again.
                if now >= left {
                    restarts += 1;
                }
                left = now;
                moved = Instant::now();
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => {
                if moved.elapsed() > BLOCKED {
                    return Err(SqliteError::Failed {
                        path: guard::show(source),
                        action: "copy",
                        why: format!("it was locked for {} seconds", BLOCKED.as_secs()),
                        hint: "another process holds a write lock; try again when it is idle",
                    });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    drop(backup);
    if log {
        from.execute_batch("COMMIT").map_err(failed)?;
    }
    Ok(restarts)
}

/// What a database says of itself; the file's own facts are left to the caller.
pub(crate) fn describe(connection: &Connection) -> rusqlite::Result<SqliteMeta> {
    let facts = info(connection)?;
    let pages: i64 = pragma(connection, "page_count")?;
    let page_size: i64 = pragma(connection, "page_size")?;
    let mut integrity_problems: Vec<String> = connection
        .prepare("PRAGMA integrity_check(100)")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    integrity_problems.retain(|line| line != "ok");
    let mut foreign_key_violations = 0;
    {
        let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {
            foreign_key_violations += 1;
        }
    }
    Ok(SqliteMeta {
        format: FORMAT,
        sqlite_version: rusqlite::version().into(),
        user_version: facts.user_version,
        application_id: facts.application_id,
        journal_mode: facts.journal_mode,
        encoding: facts.encoding,
        page_size: u64::try_from(page_size).unwrap_or_default(),
        page_count: u64::try_from(pages).unwrap_or_default(),
        bytes: facts.size_bytes,
        sequences: sequences(connection)?,
        integrity_problems,
        foreign_key_violations,
        uid: 0,
        gid: 0,
        mode: 0o600,
    })
}

fn sequences(connection: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    let there: i64 = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_sequence'",
        [],
        |row| row.get(0),
    )?;
    if there == 0 {
        return Ok(Vec::new());
    }
    connection
        .prepare("SELECT name, seq FROM sqlite_sequence WHERE typeof(seq) = 'integer' ORDER BY name, seq")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// [`Copy::take`] and [`Copy::store`] in one.
pub async fn backup(
    source: &Path,
    directory: &Path,
    name: ArtifactName,
    sensitivity: Sensitivity,
    writer: Arc<dyn BackupWriter>,
    progress: Arc<dyn Progress>,
) -> Result<BackupReport, SqliteError> {
    Copy::take(source, directory)
        .await?
        .store(name, sensitivity, writer, progress)
        .await
}
