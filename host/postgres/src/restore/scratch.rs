//! Databases under construction.

use super::plan::{RestoreOptions, RestorePlan};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::inspect::Inspector;
use essrun_artifact::{BackupReader, Progress};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a scratch database is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To be swapped in.
    Restore,
    /// To be looked at and dropped.
    Drill,
}

/// A restore that got this far: all of the backup is in a scratch database.
#[derive(Debug)]
pub struct Restored {
    scratch: String,
    connection: Connection,
    report: RestoreReport,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    pub database: String,
    pub scratch: String,
    pub tables: u64,
    pub rows: u64,
    pub bytes: u64,
    pub indexes: u64,
    pub seconds: f64,
    /// Seconds by phase: `definitions`, `rows-and-indexes`, `constraints`, `rest`.
    pub phases: Vec<(String, f64)>,
}

impl Restored {
    /// The name of the scratch database.
    pub fn scratch(&self) -> &str {
        &self.scratch
    }

    pub fn report(&self) -> &RestoreReport {
        &self.report
    }

    /// Looks into the restored database, for verify.
    pub fn inspector(&self) -> Inspector {
        Inspector::new(self.connection.clone())
    }

    /// Runs statements in the restored database, as its owner, in one transaction.
    pub async fn run_sql(&self, statements: &[String]) -> Result<()> {
        let _ = statements;
        Err(Error::refused(
            "restore",
            "is being written",
            "wait for the next commit",
        ))
    }

    /// Drops the scratch database.
    pub async fn drop_scratch(self) -> Result<()> {
        Err(Error::refused(
            "restore",
            "is being written",
            "wait for the next commit",
        ))
    }
}

/// Builds the scratch database. On an error it is dropped again.
pub async fn execute(
    reader: Arc<dyn BackupReader>,
    plan: &RestorePlan,
    target: &Connection,
    options: &RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Restored> {
    let _ = (reader, plan, target, options, progress);
    Err(Error::refused(
        "restore",
        "is being written",
        "wait for the next commit",
    ))
}

/// A scratch database whose maker is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    pub database: String,
    /// The run that made it, when it got to say so.
    pub run: Option<String>,
    pub purpose: Option<Purpose>,
    /// Whether the restore into it was finished.
    pub complete: bool,
    pub size_bytes: u64,
}

/// Scratch databases on the target's server whose makers are gone.
pub async fn list_leftovers(target: &Connection, maintenance_database: &str) -> Result<Vec<Leftover>> {
    let _ = (target, maintenance_database);
    Err(Error::refused(
        "restore",
        "is being written",
        "wait for the next commit",
    ))
}

/// Drops one, after checking again that its maker is gone.
pub async fn drop_leftover(target: &Connection, maintenance_database: &str, leftover: &Leftover) -> Result<()> {
    let _ = (target, maintenance_database, leftover);
    Err(Error::refused(
        "restore",
        "is being written",
        "wait for the next commit",
    ))
}
