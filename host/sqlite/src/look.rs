//! Guarded, read-only looks.

use crate::SqliteError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    /// Only as a parameter; SQLite has no boolean, so it is bound as 0 or 1.
    Boolean(bool),
    Integer(i64),
    Real(f64),
    Text(String),
    Bytes(Vec<u8>),
}

/// Bounds of one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of one page, whatever is asked for.
    pub page_rows: u32,
    /// Bytes of one page's cells.
    pub page_bytes: u64,
    /// Rows in all.
    pub rows: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Time spent running it, in all.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            page_rows: 10_000,
            page_bytes: 4 << 20,
            rows: 10_000_000,
            bytes: 1 << 30,
            time: Duration::from_secs(60),
        }
    }
}

/// Facts about a whole database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseInfo {
    /// `sqlite3_libversion_number`, such as 3050004.
    pub server_version_number: u32,
    /// `UTF-8`, `UTF-16le` or `UTF-16be`.
    pub encoding: String,
    /// Pages times page size.
    pub size_bytes: u64,
    pub user_version: i64,
    pub application_id: i64,
    pub journal_mode: String,
}

/// What a relation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableKind {
    Table,
    View,
}

/// One relation; its schema is always `main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    pub name: String,
    pub kind: TableKind,
    /// From `ANALYZE`, where it was ever run.
    pub estimated_rows: Option<u64>,
    pub columns: Vec<String>,
}

/// A database opened for looks.
#[derive(Clone, Debug)]
pub struct Sqlite {
    _path: PathBuf,
}

/// The rows of a query, read in pages. Dropping it ends the query.
#[derive(Debug)]
pub struct Rows {
    columns: Vec<String>,
}

impl Sqlite {
    /// Opens a database read-only and checks that it is one.
    pub async fn open(path: &Path) -> Result<Sqlite, SqliteError> {
        Ok(Sqlite { _path: path.to_owned() })
    }

    /// Facts about the whole database.
    pub async fn info(&self) -> Result<DatabaseInfo, SqliteError> {
        Err(SqliteError::Internal("not built yet".into()))
    }

    /// Tables and views, without SQLite's own, ordered by name.
    pub async fn tables(&self) -> Result<Vec<TableInfo>, SqliteError> {
        Err(SqliteError::Internal("not built yet".into()))
    }

    /// Runs one query, as `SELECT * FROM (<sql>)`, with parameters `?1`, `?2`, …
    pub async fn query(&self, sql: &str, params: Vec<Cell>, limits: Limits) -> Result<Rows, SqliteError> {
        let _ = (sql, params, limits);
        Err(SqliteError::Internal("not built yet".into()))
    }
}

impl Rows {
    /// Column names in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The next rows, at most `max_rows` and never more than the page limits; empty at the end.
    pub async fn next(&mut self, max_rows: u32) -> Result<Vec<Vec<Cell>>, SqliteError> {
        let _ = max_rows;
        Err(SqliteError::Internal("not built yet".into()))
    }
}
