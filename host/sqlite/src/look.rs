//! Guarded, read-only looks.
//!
//! Each query has a connection and a thread of its own, which works only while a page is asked for and ends when the
//! [`Rows`] are dropped. Time is counted while it works, by SQLite's progress handler, so a caller's thinking costs the
//! guest nothing and an endless query is ended.

use crate::SqliteError;
use crate::guard::{self, failed, show};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

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
    /// Bytes of one page's cells; a page ends with the row that reaches it.
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
    path: PathBuf,
}

type Page = Result<Vec<Vec<Cell>>, SqliteError>;

/// The rows of a query, read in pages. Dropping it ends the query.
#[derive(Debug)]
pub struct Rows {
    columns: Vec<String>,
    ask: mpsc::Sender<u32>,
    pages: mpsc::Receiver<Page>,
    clock: Arc<Clock>,
    ended: bool,
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.clock.ended.store(true, Ordering::Relaxed);
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SqliteError> + Send + 'static,
) -> Result<T, SqliteError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| SqliteError::Internal(format!("a worker died: {e}")))?
}

impl Sqlite {
    /// Opens a database read-only and checks that it is one.
    pub async fn open(path: &Path) -> Result<Sqlite, SqliteError> {
        let path = path.to_owned();
        blocking(move || {
            let connection = guard::open_read_only(&path)?;
            connection
                .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
                .map_err(|e| failed(&path, "read", &e))?;
            Ok(Sqlite { path })
        })
        .await
    }

    /// Facts about the whole database.
    pub async fn info(&self) -> Result<DatabaseInfo, SqliteError> {
        let path = self.path.clone();
        blocking(move || {
            let connection = guard::open_read_only(&path)?;
            info(&connection).map_err(|e| failed(&path, "read", &e))
        })
        .await
    }

    /// Tables and views, without SQLite's own, ordered by name.
    pub async fn tables(&self) -> Result<Vec<TableInfo>, SqliteError> {
        let path = self.path.clone();
        blocking(move || {
            let connection = guard::open_read_only(&path)?;
            tables(&connection).map_err(|e| failed(&path, "read", &e))
        })
        .await
    }

    /// Runs one query, as `SELECT * FROM (<sql>)`, with parameters `?1`, `?2`, …
    pub async fn query(&self, sql: &str, params: Vec<Cell>, limits: Limits) -> Result<Rows, SqliteError> {
        if sql.contains('\0') {
            return Err(invalid("the query contains a NUL character"));
        }
        let wrapped = format!("SELECT * FROM (\n{sql}\n)");
        let (ask, asked) = mpsc::channel(1);
        let (give, mut pages) = mpsc::channel(1);
        let (opened, columns) = tokio::sync::oneshot::channel();
        let clock = Arc::new(Clock::new(limits.time));
        let query = Query {
            path: self.path.clone(),
            sql: wrapped,
            params,
            limits,
            clock: clock.clone(),
        };
        std::thread::Builder::new()
            .name("sqlite-look".into())
            .spawn(move || query.run(opened, asked, give))
            .map_err(|source| SqliteError::Io {
                action: "start a thread for",
                path: show(&self.path),
                source,
            })?;
        match columns.await {
            Ok(columns) => Ok(Rows {
                columns,
                ask,
                pages,
                clock,
                ended: false,
            }),
            // It failed before it had columns, and says why.
            Err(_) => match pages.recv().await {
                Some(Err(e)) => Err(e),
                _ => Err(SqliteError::Internal("a query died".into())),
            },
        }
    }
}

impl Rows {
    /// Column names in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The next rows, at most `max_rows` and never more than the page limits; empty at the end.
    pub async fn next(&mut self, max_rows: u32) -> Result<Vec<Vec<Cell>>, SqliteError> {
        if self.ended {
            return Ok(Vec::new());
        }
        if self.ask.send(max_rows.max(1)).await.is_err() {
            self.ended = true;
        }
        match self.pages.recv().await {
            Some(Ok(rows)) => {
                self.ended = rows.is_empty();
                Ok(rows)
            }
            Some(Err(e)) => {
                self.ended = true;
                Err(e)
            }
            None => {
                self.ended = true;
                Err(SqliteError::Internal("a query died".into()))
            }
        }
    }
}

fn invalid(why: impl Into<String>) -> SqliteError {
    SqliteError::Invalid {
        what: "query".into(),
        why: why.into(),
    }
}

/// Counts working time, readable from SQLite's progress handler.
#[derive(Debug)]
struct Clock {
    start: Instant,
    limit: Duration,
    /// Until when the present page may work, in microseconds after `start`.
    until: AtomicU64,
    used: AtomicU64,
    ended: AtomicBool,
}

impl Clock {
    fn new(limit: Duration) -> Self {
        Clock {
            start: Instant::now(),
            limit,
            until: AtomicU64::new(0),
            used: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn working<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = self.now();
        let limit = u64::try_from(self.limit.as_micros()).unwrap_or(u64::MAX);
        let left = limit.saturating_sub(self.used.load(Ordering::Relaxed));
        self.until.store(begun.saturating_add(left), Ordering::Relaxed);
        let result = work();
        self.used.fetch_add(self.now().saturating_sub(begun), Ordering::Relaxed);
        result
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.now() > self.until.load(Ordering::Relaxed)
    }
}

struct Query {
    path: PathBuf,
    sql: String,
    params: Vec<Cell>,
    limits: Limits,
    clock: Arc<Clock>,
}

impl Query {
    fn run(
        self,
        opened: tokio::sync::oneshot::Sender<Vec<String>>,
        asked: mpsc::Receiver<u32>,
        give: mpsc::Sender<Page>,
    ) {
        if let Err(e) = self.pages(opened, asked, &give) {
            // Nobody listening is fine: the rows were dropped.
            let _ = give.blocking_send(Err(e));
        }
    }

    fn explain(&self, error: rusqlite::Error) -> SqliteError {
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => {
                SqliteError::Slow(format!("the query ran longer than {} ms", self.limits.time.as_millis()))
            }
            Some(ErrorCode::AuthorizationForStatementDenied) => {
                invalid("it does something a look may not: only reading, and functions without effects, are allowed")
            }
            Some(ErrorCode::TooBig) => SqliteError::Limit("a value longer than 64 MiB".into()),
            Some(ErrorCode::Unknown) => invalid(error.to_string()),
            None => invalid(error.to_string()),
            Some(_) => failed(&self.path, "run the query", &error),
        }
    }

    fn pages(
        &self,
        opened: tokio::sync::oneshot::Sender<Vec<String>>,
        mut asked: mpsc::Receiver<u32>,
        give: &mpsc::Sender<Page>,
    ) -> Result<(), SqliteError> {
        let mut connection = guard::open_read_only(&self.path)?;
        guard::confine(&mut connection).map_err(|e| self.explain(e))?;
        let clock = self.clock.clone();
        connection
            .progress_handler(1000, Some(move || clock.is_over()))
            .map_err(|e| self.explain(e))?;
        let mut statement = self
            .clock
            .working(|| connection.prepare(&self.sql))
            .map_err(|e| self.explain(e))?;
        if !statement.readonly() {
            return Err(invalid("it writes"));
        }
        if statement.parameter_count() != self.params.len() {
            return Err(invalid(format!(
                "it has {} parameters, {} were given",
                statement.parameter_count(),
                self.params.len()
            )));
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let width = columns.len();
        if opened.send(columns).is_err() {
            return Ok(());
        }
        let values = self.params.iter().map(value);
        let mut rows = statement
            .query(rusqlite::params_from_iter(values))
            .map_err(|e| self.explain(e))?;
        let (mut all_rows, mut all_bytes) = (0u64, 0u64);
        while let Some(max) = asked.blocking_recv() {
            let most = max.min(self.limits.page_rows.max(1)) as usize;
            let page = self.clock.working(|| {
                let mut page = Vec::new();
                let mut bytes = 0;
                while page.len() < most && bytes < self.limits.page_bytes {
                    let Some(row) = rows.next().map_err(|e| self.explain(e))? else {
                        break;
                    };
                    let mut cells = Vec::with_capacity(width);
                    for column in 0..width {
                        let cell = cell(row.get_ref(column).map_err(|e| self.explain(e))?)?;
                        bytes += size(&cell);
                        cells.push(cell);
                    }
                    all_rows += 1;
                    if all_rows > self.limits.rows {
                        return Err(SqliteError::Limit(format!("more than {} rows", self.limits.rows)));
                    }
                    if all_bytes + bytes > self.limits.bytes {
                        return Err(SqliteError::Limit(format!("more than {} bytes", self.limits.bytes)));
                    }
                    page.push(cells);
                }
                all_bytes += bytes;
                Ok(page)
            })?;
            let end = page.is_empty();
            if give.blocking_send(Ok(page)).is_err() || end {
                break;
            }
        }
        Ok(())
    }
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Boolean(b) => Value::Integer(i64::from(*b)),
        Cell::Integer(i) => Value::Integer(*i),
        Cell::Real(r) => Value::Real(*r),
        Cell::Text(t) => Value::Text(t.clone()),
        Cell::Bytes(b) => Value::Blob(b.clone()),
    }
}

fn cell(value: ValueRef<'_>) -> Result<Cell, SqliteError> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(i) => Cell::Integer(i),
        ValueRef::Real(r) => Cell::Real(r),
        ValueRef::Text(t) => Cell::Text(
            String::from_utf8(t.to_vec()).map_err(|_| invalid("a text is not UTF-8; CAST it AS BLOB in the query"))?,
        ),
        ValueRef::Blob(b) => Cell::Bytes(b.to_vec()),
    })
}

fn size(cell: &Cell) -> u64 {
    let bytes = match cell {
        Cell::Null | Cell::Boolean(_) => 1,
        Cell::Integer(_) | Cell::Real(_) => 8,
        Cell::Text(t) => t.len(),
        Cell::Bytes(b) => b.len(),
    };
    bytes as u64
}

pub(crate) fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

pub(crate) fn info(connection: &Connection) -> rusqlite::Result<DatabaseInfo> {
    let pages: i64 = pragma(connection, "page_count")?;
    let page_size: i64 = pragma(connection, "page_size")?;
    Ok(DatabaseInfo {
        server_version_number: u32::try_from(rusqlite::version_number()).unwrap_or_default(),
        encoding: pragma(connection, "encoding")?,
        size_bytes: u64::try_from(pages.saturating_mul(page_size)).unwrap_or_default(),
        user_version: pragma(connection, "user_version")?,
        application_id: pragma(connection, "application_id")?,
        journal_mode: pragma(connection, "journal_mode")?,
    })
}

pub(crate) fn tables(connection: &Connection) -> rusqlite::Result<Vec<TableInfo>> {
    let mut statement = connection.prepare(
        "SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         ORDER BY name",
    )?;
    let found: Vec<(String, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let analysed = connection
        .query_row(
            "SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_stat1'",
            [],
            |_| Ok(()),
        )
        .optional()?
        .is_some();
    let mut tables = Vec::new();
    for (name, kind) in found {
        let columns = connection
            .prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?
            .query_map([&name], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut estimated_rows = None;
        if analysed {
            let stat: Option<Option<String>> = connection
                .query_row("SELECT stat FROM sqlite_stat1 WHERE tbl = ?1 LIMIT 1", [&name], |row| {
                    row.get(0)
                })
                .optional()?;
            estimated_rows = stat.flatten().and_then(|s| s.split(' ').next()?.parse().ok());
        }
        tables.push(TableInfo {
            name,
            kind: if kind == "view" {
                TableKind::View
            } else {
                TableKind::Table
            },
            estimated_rows,
            columns,
        });
    }
    Ok(tables)
}
