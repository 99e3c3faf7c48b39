//! An artifact becomes a database again: staged, checked, then renamed into place.

use crate::{Sqlite, SqliteError};
use essrun_artifact::{ArtifactRecord, BackupReader, Progress};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whose the restored file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Owner {
    /// The numeric owner of the backup; when it cannot be set, [`Staged::warnings`] says so.
    #[default]
    Recorded,
    /// Whoever restores.
    Current,
    /// This one.
    Numeric { uid: u32, gid: u32 },
}

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Swap out a database that is there, keeping it under a dated name. Without it a non-empty file is refused.
    pub replace: bool,
    pub owner: Owner,
}

/// A restored and checked database that is not yet in place. Dropped without a swap, its file is removed.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    warnings: Vec<String>,
}

/// What the swap did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    pub destination: PathBuf,
    /// Where the database that was there before is kept, with its `-wal` and `-journal` beside it.
    pub kept: Option<PathBuf>,
}

/// Writes the artifact to a file beside `destination` and has SQLite check it.
pub async fn restore(
    reader: Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    destination: &Path,
    options: RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Staged, SqliteError> {
    let _ = (reader, record, destination, options, progress);
    Err(SqliteError::Internal("not built yet".into()))
}

impl Staged {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the restored database for looks.
    pub async fn open(&self) -> Result<Sqlite, SqliteError> {
        Sqlite::open(&self.path).await
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Runs statements of a restore plan in one transaction.
    pub async fn run_sql(&self, statements: &[String]) -> Result<(), SqliteError> {
        let _ = statements;
        Err(SqliteError::Internal("not built yet".into()))
    }

    /// Puts the database in place; what was there is kept under a dated name.
    pub async fn swap(self) -> Result<Swapped, SqliteError> {
        Err(SqliteError::Internal("not built yet".into()))
    }

    /// Removes the staged file.
    pub async fn discard(self) -> Result<(), SqliteError> {
        Err(SqliteError::Internal("not built yet".into()))
    }
}

/// Staged files that interrupted restores to `destination` left behind; each is safe to remove.
pub async fn list_leftovers(destination: &Path) -> Result<Vec<PathBuf>, SqliteError> {
    let _ = destination;
    Err(SqliteError::Internal("not built yet".into()))
}
