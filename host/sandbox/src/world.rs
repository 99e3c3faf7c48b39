//! What a guest looks at: the seam between the sandbox and the rooms that hold databases and volumes.
//!
//! Whoever implements [`World`] answers for *what* is granted: it knows the labels of one component and refuses all
//! others with [`LookError::Denied`], for "not granted" and "not there" alike. The sandbox answers for *how much*: it
//! counts calls, handles, rows and bytes around these traits, so an implementation need not. Two duties stay with the
//! implementation because only it can keep them: a source must not read far beyond the `max_bytes` it was asked for,
//! and a future dropped half-way (a timeout) must leave nothing behind.

use crate::contract::inspect::{Cell, DatabaseInfo, Entry, FileDigest, Level, TableInfo};
use async_trait::async_trait;

/// Why a look failed, as the guest is told.
pub use crate::contract::inspect::Error as LookError;

/// The granted world of one component, at one moment (the backup's snapshot, what was just restored, the live system).
#[async_trait]
pub trait World: Send + Sync {
    /// Facts about a database.
    async fn info(&self, label: &str) -> Result<DatabaseInfo, LookError>;
    /// All its relations, ordered by schema and name.
    async fn tables(&self, label: &str) -> Result<Vec<TableInfo>, LookError>;
    /// Begins one query, read-only, as `SELECT … FROM (<sql>)`.
    async fn query(&self, label: &str, sql: &str, params: Vec<Cell>) -> Result<Box<dyn RowSource>, LookError>;
    /// Begins a listing below `directory` (empty: the root).
    async fn walk(&self, label: &str, directory: &str, recursive: bool) -> Result<Box<dyn ListingSource>, LookError>;
    /// Looks at single paths, one answer for each.
    async fn look(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<Entry>>, LookError>;
    /// Reads a whole file of at most `max_bytes`; a longer one is [`LookError::Limit`].
    async fn read(&self, label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, LookError>;
    /// Digests files, one answer for each path.
    async fn digest(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError>;
    /// The component's settings, a JSON object.
    fn settings(&self) -> String;
    /// One line of the component's log, already bounded and free of control characters. Must not block.
    fn log(&self, level: Level, line: &str);
}

/// The rows of a query. Dropped when the guest drops them, or when the call ends in whatever way.
#[async_trait]
pub trait RowSource: Send {
    /// Column names in order.
    fn columns(&self) -> Vec<String>;
    /// The next rows, at most `max_rows`; stops early once they come to `max_bytes`. Empty at the end only.
    async fn next(&mut self, max_rows: u32, max_bytes: u64) -> Result<Vec<Vec<Cell>>, LookError>;
    /// Bytes held in the host for this source right now, beyond a few hundred.
    fn held_bytes(&self) -> u64;
}

/// The entries of a listing.
#[async_trait]
pub trait ListingSource: Send {
    /// The next entries, at most `max_entries`; stops early once their paths come to `max_bytes`. Empty at the end only.
    async fn next(&mut self, max_entries: u32, max_bytes: u64) -> Result<Vec<Entry>, LookError>;
    /// Bytes held in the host for this source right now, beyond a few hundred.
    fn held_bytes(&self) -> u64;
}

/// A world in which nothing is granted, for `describe` and for inspecting a plugin.
pub struct NoWorld;

fn denied<T>(label: &str) -> Result<T, LookError> {
    Err(LookError::Denied(label.to_owned()))
}

#[async_trait]
impl World for NoWorld {
    async fn info(&self, label: &str) -> Result<DatabaseInfo, LookError> {
        denied(label)
    }
    async fn tables(&self, label: &str) -> Result<Vec<TableInfo>, LookError> {
        denied(label)
    }
    async fn query(&self, label: &str, _: &str, _: Vec<Cell>) -> Result<Box<dyn RowSource>, LookError> {
        denied(label)
    }
    async fn walk(&self, label: &str, _: &str, _: bool) -> Result<Box<dyn ListingSource>, LookError> {
        denied(label)
    }
    async fn look(&self, label: &str, _: Vec<String>) -> Result<Vec<Option<Entry>>, LookError> {
        denied(label)
    }
    async fn read(&self, label: &str, _: &str, _: u32) -> Result<Vec<u8>, LookError> {
        denied(label)
    }
    async fn digest(&self, label: &str, _: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError> {
        denied(label)
    }
    fn settings(&self) -> String {
        "{}".to_owned()
    }
    fn log(&self, level: Level, line: &str) {
        tracing::debug!(?level, line, "said while nothing was granted");
    }
}
