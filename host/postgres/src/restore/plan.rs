//! What must hold before a restore begins, and what it will do.
//!
//! Every precondition is a finding with a stable name, so that a dry run prints the same list a real run stops at.

use super::scratch::Purpose;
use crate::connection::Connection;
use crate::dump::{DatabaseFacts, TableMeta};
use crate::error::{Error, Result};
use essrun_artifact::BackupReader;
use serde::{Deserialize, Serialize};

/// How a restore is to go.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Which run this is: the backup's id or a drill's; letters, digits and dashes. Part of the scratch name.
    pub run: String,
    /// The name the database has in the end.
    pub database: String,
    pub purpose: Purpose,
    /// Who is to own everything; `None`: the owners recorded in the backup.
    pub owner: Option<String>,
    /// Leave out GRANT and REVOKE; implied by `owner`.
    pub no_privileges: bool,
    /// Sessions that load rows and build indexes at once.
    pub jobs: usize,
    /// Let extension and collation versions differ: findings become warnings.
    pub allow_drift: bool,
    /// Let a live database with tables in it be replaced at the swap.
    pub replace: bool,
    /// The database to be connected to while databases are created and renamed.
    pub maintenance_database: String,
    /// `maintenance_work_mem` of each session, in MiB.
    pub index_memory_mib: u32,
}

impl RestoreOptions {
    pub fn new(run: impl Into<String>, database: impl Into<String>, purpose: Purpose) -> Self {
        RestoreOptions {
            run: run.into(),
            database: database.into(),
            purpose,
            owner: None,
            no_privileges: false,
            jobs: std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8),
            allow_drift: false,
            replace: false,
            maintenance_database: "postgres".to_owned(),
            index_memory_mib: 128,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    /// The restore must not begin.
    Error,
}

/// One precondition, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `target-not-empty`, `locale-missing`, …
    pub check: String,
    pub severity: Severity,
    pub message: String,
    /// What to do; empty when nothing.
    pub remedy: String,
}

/// One table that will be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreTable {
    pub table: String,
    pub rows: u64,
    pub bytes: u64,
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// `component/label`.
    pub prefix: String,
    /// The name in the end.
    pub database: String,
    /// The name until the swap.
    pub scratch: String,
    /// `host:port/database`.
    pub target: String,
    pub findings: Vec<Finding>,
    /// Largest first.
    pub tables: Vec<RestoreTable>,
    pub rows: u64,
    pub bytes: u64,
    pub jobs: usize,
    pub facts: DatabaseFacts,
}

impl RestorePlan {
    /// Whether a finding forbids the restore.
    pub fn blocked(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Error)
    }
}

/// Checks what must hold. Changes nothing.
pub async fn plan(
    reader: &dyn BackupReader,
    prefix: &str,
    target: &Connection,
    options: &RestoreOptions,
) -> Result<RestorePlan> {
    let _ = (reader, prefix, target, options, TableMeta::of);
    Err(Error::refused(
        "restore",
        "is being written",
        "wait for the next commit",
    ))
}
