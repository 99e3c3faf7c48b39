//! A database becomes an artifact.

use crate::{Sqlite, SqliteError};
use essrun_artifact::{ArtifactName, BackupWriter, Progress, Sensitivity};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
}

impl Copy {
    /// Copies the database at `source` by SQLite's online backup into a new file (mode 0600) in `directory`.
    pub async fn take(source: &Path, directory: &Path) -> Result<Copy, SqliteError> {
        let _ = (source, directory);
        Err(SqliteError::Internal("not built yet".into()))
    }

    pub fn path(&self) -> &Path {
        &self.path
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
        let _ = (name, sensitivity, writer, progress);
        Err(SqliteError::Internal("not built yet".into()))
    }
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
