//! The world a component sees: its labels, bound to real databases and volumes at one moment.
//!
//! One [`Granted`] serves one component in one phase: before a backup its databases are snapshots, in `verify` they are
//! what was just restored, before a restore the live targets as far as they exist. A label that is not bound is denied
//! whatever the reason. Nothing here writes, and no text that leaves here carries an address or secret.

use crate::error::{Blame, Blamed, PipelineError};
use async_trait::async_trait;
use essrun_postgres::{Inspector, QueryLimits};
use essrun_sandbox::contract::inspect::{
    Cell, DatabaseInfo, Engine, Entry, EntryKind, FileDigest, Level, TableInfo, TableKind,
};
use essrun_sandbox::contract::types;
use essrun_sandbox::{Limits, ListingSource, LookError, RowSource, SandboxError, World};
use essrun_sqlite::Sqlite;
use essrun_volume::{Volume, Walk};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a database label stands for.
#[derive(Clone)]
pub enum Database {
    Postgres(Inspector),
    Sqlite(Sqlite),
}

/// One component's labels.
#[derive(Clone, Default)]
pub struct Granted {
    pub component: String,
    pub settings: serde_json::Map<String, serde_json::Value>,
    pub databases: BTreeMap<String, Database>,
    pub volumes: BTreeMap<String, Arc<Volume>>,
    limits: Limits,
    faults: Faults,
}

impl Granted {
    pub fn new(component: &str, settings: &serde_json::Map<String, serde_json::Value>, limits: &Limits) -> Self {
        Granted {
            component: component.to_owned(),
            settings: settings.clone(),
            limits: limits.clone(),
            ..Granted::default()
        }
    }

    /// The run's error for a call of the component that failed in this world: the source's, where it was the source that
    /// failed the component.
    pub fn blame(&self, error: SandboxError) -> PipelineError {
        let what = self.component.clone();
        match (error, self.faults.last()) {
            (
                SandboxError::Guest {
                    error: types::Error::Inspect(problem),
                    ..
                },
                Some(fault),
            ) => match fault {
                Fault::Gone => PipelineError::Changed { what, problem },
                Fault::Source => PipelineError::Source { what, problem },
                Fault::Circumstances => PipelineError::GaveOut { what, problem },
            },
            (error, _) => PipelineError::component(&what, error),
        }
    }

    fn database(&self, label: &str) -> Result<&Database, LookError> {
        self.databases
            .get(label)
            .ok_or_else(|| LookError::Denied(format!("database {label}")))
    }

    fn volume(&self, label: &str) -> Result<Arc<Volume>, LookError> {
        self.volumes
            .get(label)
            .cloned()
            .ok_or_else(|| LookError::Denied(format!("volume {label}")))
    }
}

/// Why a look failed, where that was not the component's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// What it named is not there, or not any more.
    Gone,
    /// The source's fault.
    Source,
    /// The source gave out: see [`PipelineError::GaveOut`].
    Circumstances,
}

/// Tells a component why a look failed, and keeps whose fault the last one was: the text that comes back is the
/// component's own, and says nothing reliable.
#[derive(Clone, Default)]
struct Faults(Arc<Mutex<Option<Fault>>>);

impl Faults {
    fn last(&self) -> Option<Fault> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, fault: Option<Fault>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    fn failed(&self, e: &impl Blame) -> LookError {
        self.keep(Some(match e.blame() {
            Blamed::Circumstances => Fault::Circumstances,
            _ => Fault::Source,
        }));
        LookError::Failed(e.to_string())
    }

    /// The component's own doing, or what its limits do not allow.
    fn its_own(&self, told: LookError) -> LookError {
        self.keep(None);
        told
    }

    fn volume(&self, e: essrun_volume::VolumeError) -> LookError {
        use essrun_volume::VolumeError;
        match e {
            VolumeError::Denied { path } => self.its_own(LookError::Denied(path)),
            VolumeError::Invalid { .. } => self.its_own(LookError::Invalid(e.to_string())),
            VolumeError::Limit { .. } => self.its_own(LookError::Limit(e.to_string())),
            _ => self.failed(&e),
        }
    }

    fn sqlite(&self, e: essrun_sqlite::SqliteError) -> LookError {
        use essrun_sqlite::SqliteError;
        match e {
            SqliteError::Invalid { .. } => self.its_own(LookError::Invalid(e.to_string())),
            SqliteError::Limit { .. } => self.its_own(LookError::Limit(e.to_string())),
            SqliteError::Slow(_) => self.its_own(too_slow(&e)),
            _ => self.failed(&e),
        }
    }

    fn postgres(&self, e: essrun_postgres::Error) -> LookError {
        use essrun_postgres::Error;
        match e {
            Error::Invalid(_) => self.its_own(LookError::Invalid(e.to_string())),
            Error::Gone(_) => {
                self.keep(Some(Fault::Gone));
                LookError::Invalid(e.to_string())
            }
            Error::Limit(_) => self.its_own(LookError::Limit(e.to_string())),
            Error::Slow(_) => self.its_own(too_slow(&e)),
            _ => self.failed(&e),
        }
    }
}

fn too_slow(e: &dyn std::fmt::Display) -> LookError {
    LookError::Limit(format!("{e}; raise `query` of its limits if it has reason to"))
}

#[async_trait]
impl World for Granted {
    async fn info(&self, label: &str) -> Result<DatabaseInfo, LookError> {
        match self.database(label)? {
            Database::Postgres(inspector) => {
                let info = inspector.info().await.map_err(|e| self.faults.postgres(e))?;
                Ok(DatabaseInfo {
                    engine: Engine::Postgres,
                    server_version_number: info.server_version_number,
                    encoding: info.encoding,
                    collate: info.collate,
                    ctype: info.ctype,
                    size_bytes: info.size_bytes,
                })
            }
            Database::Sqlite(sqlite) => {
                let info = sqlite.info().await.map_err(|e| self.faults.sqlite(e))?;
                Ok(DatabaseInfo {
                    engine: Engine::Sqlite,
                    server_version_number: info.server_version_number,
                    encoding: info.encoding,
                    collate: String::new(),
                    ctype: String::new(),
                    size_bytes: info.size_bytes,
                })
            }
        }
    }

    async fn tables(&self, label: &str) -> Result<Vec<TableInfo>, LookError> {
        match self.database(label)? {
            Database::Postgres(inspector) => {
                let tables = inspector.tables().await.map_err(|e| self.faults.postgres(e))?;
                Ok(tables
                    .into_iter()
                    .map(|t| TableInfo {
                        schema: t.schema,
                        name: t.name,
                        kind: match t.kind {
                            essrun_postgres::TableKind::Table => TableKind::Table,
                            essrun_postgres::TableKind::Partitioned => TableKind::Partitioned,
                            essrun_postgres::TableKind::View => TableKind::View,
                            essrun_postgres::TableKind::MaterializedView => TableKind::MaterializedView,
                            essrun_postgres::TableKind::Sequence => TableKind::Sequence,
                            essrun_postgres::TableKind::Foreign => TableKind::Foreign,
                        },
                        estimated_rows: t.estimated_rows,
                        size_bytes: t.size_bytes,
                        columns: t.columns,
                    })
                    .collect())
            }
            Database::Sqlite(sqlite) => {
                let tables = sqlite.tables().await.map_err(|e| self.faults.sqlite(e))?;
                Ok(tables
                    .into_iter()
                    .map(|t| TableInfo {
                        schema: "main".to_owned(),
                        name: t.name,
                        kind: match t.kind {
                            essrun_sqlite::TableKind::Table => TableKind::Table,
                            essrun_sqlite::TableKind::View => TableKind::View,
                        },
                        estimated_rows: t.estimated_rows,
                        size_bytes: 0,
                        columns: t.columns,
                    })
                    .collect())
            }
        }
    }

    async fn query(&self, label: &str, sql: &str, params: Vec<Cell>) -> Result<Box<dyn RowSource>, LookError> {
        match self.database(label)? {
            Database::Postgres(inspector) => {
                let params = params.into_iter().map(to_postgres).collect();
                // The sandbox counts all queries of a call together, by its own measure, and comes first. What is given here
                // holds when it fails.
                let limits = QueryLimits {
                    max_rows: self.limits.rows.saturating_add(1),
                    max_bytes: self.limits.looked_at.saturating_add(self.limits.page),
                    max_page_rows: self.limits.page_rows,
                    max_page_bytes: usize::try_from(self.limits.page).unwrap_or(usize::MAX),
                    timeout: self.limits.query,
                    ..QueryLimits::default()
                };
                let rows = inspector
                    .query(sql, params, &limits)
                    .await
                    .map_err(|e| self.faults.postgres(e))?;
                let faults = self.faults.clone();
                Ok(Box::new(PostgresRows {
                    rows,
                    faults,
                    held: Held::default(),
                }))
            }
            Database::Sqlite(sqlite) => {
                let params = params.into_iter().map(to_sqlite).collect();
                let limits = essrun_sqlite::Limits {
                    page_rows: self.limits.page_rows,
                    page_bytes: self.limits.page,
                    rows: self.limits.rows.saturating_add(1),
                    bytes: self.limits.looked_at.saturating_add(self.limits.page),
                    time: self.limits.query,
                };
                let rows = sqlite
                    .query(sql, params, limits)
                    .await
                    .map_err(|e| self.faults.sqlite(e))?;
                let faults = self.faults.clone();
                Ok(Box::new(SqliteRows {
                    rows,
                    faults,
                    held: Held::default(),
                }))
            }
        }
    }

    async fn walk(&self, label: &str, directory: &str, recursive: bool) -> Result<Box<dyn ListingSource>, LookError> {
        let volume = self.volume(label)?;
        let directory = directory.to_owned();
        let walk = blocking(&self.faults, move || volume.walk(&directory, recursive)).await?;
        Ok(Box::new(VolumeListing {
            walk: Some(walk),
            faults: self.faults.clone(),
            held: Vec::new(),
        }))
    }

    async fn look(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<Entry>>, LookError> {
        let volume = self.volume(label)?;
        let found = blocking(&self.faults, move || volume.look(&paths)).await?;
        Ok(found.into_iter().map(|e| e.map(entry)).collect())
    }

    async fn read(&self, label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, LookError> {
        let volume = self.volume(label)?;
        let path = path.to_owned();
        blocking(&self.faults, move || volume.read(&path, u64::from(max_bytes))).await
    }

    async fn digest(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError> {
        let volume = self.volume(label)?;
        // The call may be given up by a timeout; the thread must then stop reading.
        let flag = Arc::new(AtomicBool::new(true));
        let _stop = StopOnDrop(flag.clone());
        let found = blocking(&self.faults, move || {
            volume.digest(&paths, &|| flag.load(Ordering::Relaxed))
        })
        .await?;
        Ok(found
            .into_iter()
            .map(|d| {
                d.map(|d| FileDigest {
                    size_bytes: d.size_bytes,
                    sha256: d.sha256,
                })
            })
            .collect())
    }

    fn settings(&self) -> String {
        serde_json::Value::Object(self.settings.clone()).to_string()
    }

    fn log(&self, level: Level, line: &str) {
        let component = self.component.as_str();
        match level {
            Level::Debug => tracing::debug!(component, "{line}"),
            Level::Info => tracing::info!(component, "{line}"),
            Level::Warn => tracing::warn!(component, "{line}"),
            Level::Error => tracing::error!(component, "{line}"),
        }
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Rows read but not yet given: a page is cut by the bytes of its rows, as the sandbox counts them.
#[derive(Default)]
struct Held(VecDeque<Vec<Cell>>);

impl Held {
    /// The next page of what is held; empty when nothing is.
    fn page(&mut self, max_rows: u32, max_bytes: u64) -> Vec<Vec<Cell>> {
        let (mut page, mut bytes) = (Vec::new(), 0u64);
        while page.len() < max_rows as usize
            && bytes < max_bytes
            && let Some(row) = self.0.pop_front()
        {
            bytes = bytes.saturating_add(essrun_sandbox::row_bytes(&row));
            page.push(row);
        }
        page
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|row| essrun_sandbox::row_bytes(row)).sum()
    }
}

struct PostgresRows {
    rows: essrun_postgres::Rows,
    held: Held,
    faults: Faults,
}

#[async_trait]
impl RowSource for PostgresRows {
    fn columns(&self) -> Vec<String> {
        self.rows.columns().to_vec()
    }

    async fn next(&mut self, max_rows: u32, max_bytes: u64) -> Result<Vec<Vec<Cell>>, LookError> {
        if self.held.0.is_empty() {
            let page = self.rows.next(max_rows).await.map_err(|e| self.faults.postgres(e))?;
            let rows = page.into_iter().map(|row| row.into_iter().map(from_postgres).collect());
            self.held.0.extend(rows);
        }
        Ok(self.held.page(max_rows, max_bytes))
    }

    fn held_bytes(&self) -> u64 {
        self.held.bytes()
    }
}

struct SqliteRows {
    rows: essrun_sqlite::Rows,
    held: Held,
    faults: Faults,
}

#[async_trait]
impl RowSource for SqliteRows {
    fn columns(&self) -> Vec<String> {
        self.rows.columns().to_vec()
    }

    async fn next(&mut self, max_rows: u32, max_bytes: u64) -> Result<Vec<Vec<Cell>>, LookError> {
        if self.held.0.is_empty() {
            let page = self.rows.next(max_rows).await.map_err(|e| self.faults.sqlite(e))?;
            let rows = page.into_iter().map(|row| row.into_iter().map(from_sqlite).collect());
            self.held.0.extend(rows);
        }
        Ok(self.held.page(max_rows, max_bytes))
    }

    fn held_bytes(&self) -> u64 {
        self.held.bytes()
    }
}

struct VolumeListing {
    walk: Option<Walk>,
    /// Entries read but not yet given: a page is cut by the bytes of its paths.
    held: Vec<Entry>,
    faults: Faults,
}

#[async_trait]
impl ListingSource for VolumeListing {
    async fn next(&mut self, max_entries: u32, max_bytes: u64) -> Result<Vec<Entry>, LookError> {
        if self.held.is_empty() {
            let Some(mut walk) = self.walk.take() else {
                return Ok(Vec::new());
            };
            let wanted = usize::try_from(max_entries).unwrap_or(usize::MAX).clamp(1, 10_000);
            let (walk, page) = blocking(&self.faults, move || {
                let page = walk.next_page(wanted)?;
                Ok((walk, page))
            })
            .await?;
            self.walk = Some(walk);
            self.held = page.into_iter().rev().map(entry).collect();
        }
        let (mut given, mut bytes) = (Vec::new(), 0u64);
        while let Some(next) = self.held.pop() {
            bytes = bytes.saturating_add(next.path.len() as u64 + 64);
            given.push(next);
            if bytes >= max_bytes || given.len() as u64 >= u64::from(max_entries) {
                break;
            }
        }
        Ok(given)
    }

    fn held_bytes(&self) -> u64 {
        self.held.iter().map(|e| e.path.len() as u64 + 64).sum()
    }
}

async fn blocking<T: Send + 'static>(
    faults: &Faults,
    work: impl FnOnce() -> Result<T, essrun_volume::VolumeError> + Send + 'static,
) -> Result<T, LookError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| faults.volume(e)),
        Err(e) => Err(LookError::Failed(format!("a worker thread ended: {e}"))),
    }
}

fn entry(e: essrun_volume::Entry) -> Entry {
    Entry {
        path: e.path.to_string(),
        kind: match e.kind {
            essrun_volume::EntryKind::File => EntryKind::File,
            essrun_volume::EntryKind::Directory => EntryKind::Directory,
            essrun_volume::EntryKind::Symlink => EntryKind::Symlink,
            essrun_volume::EntryKind::Special => EntryKind::Special,
        },
        size_bytes: e.size_bytes,
        mode: e.mode,
        uid: e.uid,
        gid: e.gid,
        modified_unix_seconds: e.modified.seconds,
    }
}

fn to_postgres(cell: Cell) -> essrun_postgres::Cell {
    use essrun_postgres::Cell as To;
    match cell {
        Cell::Null => To::Null,
        Cell::Boolean(b) => To::Boolean(b),
        Cell::Integer(i) => To::Integer(i),
        Cell::Real(r) => To::Real(r),
        Cell::Text(t) => To::Text(t),
        Cell::Bytes(b) => To::Bytes(b),
    }
}

fn from_postgres(cell: essrun_postgres::Cell) -> Cell {
    use essrun_postgres::Cell as From;
    match cell {
        From::Null => Cell::Null,
        From::Boolean(b) => Cell::Boolean(b),
        From::Integer(i) => Cell::Integer(i),
        From::Real(r) => Cell::Real(r),
        From::Text(t) => Cell::Text(t),
        From::Bytes(b) => Cell::Bytes(b),
    }
}

fn to_sqlite(cell: Cell) -> essrun_sqlite::Cell {
    use essrun_sqlite::Cell as To;
    match cell {
        Cell::Null => To::Null,
        Cell::Boolean(b) => To::Boolean(b),
        Cell::Integer(i) => To::Integer(i),
        Cell::Real(r) => To::Real(r),
        Cell::Text(t) => To::Text(t),
        Cell::Bytes(b) => To::Bytes(b),
    }
}

fn from_sqlite(cell: essrun_sqlite::Cell) -> Cell {
    use essrun_sqlite::Cell as From;
    match cell {
        From::Null => Cell::Null,
        From::Boolean(b) => Cell::Boolean(b),
        From::Integer(i) => Cell::Integer(i),
        From::Real(r) => Cell::Real(r),
        From::Text(t) => Cell::Text(t),
        From::Bytes(b) => Cell::Bytes(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_by_bytes_and_rows_and_none_is_lost() {
        let row = |n: i64| vec![Cell::Integer(n), Cell::Text("x".repeat(40))];
        let of_one = essrun_sandbox::row_bytes(&row(0));
        let mut held = Held((0..10).map(row).collect());
        assert_eq!(held.bytes(), 10 * of_one);
        // A page ends with the row that comes to its limit; one row is always given.
        assert_eq!(held.page(100, 2 * of_one).len(), 2);
        assert_eq!(held.page(100, 2 * of_one + 1).len(), 3);
        assert_eq!(held.page(100, 1).len(), 1);
        assert_eq!(held.page(1, u64::MAX).len(), 1);
        assert_eq!(held.page(100, u64::MAX), [row(7), row(8), row(9)]);
        assert!(held.page(100, u64::MAX).is_empty());
    }

    #[test]
    fn whose_fault_a_failed_look_was_is_known() {
        let guest = |text: &str| SandboxError::Guest {
            component: "c".into(),
            call: "plan-backup",
            error: types::Error::Inspect(text.into()),
        };
        let blame = |e: Option<essrun_postgres::Error>| {
            let world = Granted::new("c", &serde_json::Map::new(), &Limits::default());
            // The sandbox's own limits come from no source.
            if let Some(e) = e {
                world.faults.postgres(e);
            }
            world.clone().blame(guest("said"))
        };
        use essrun_postgres::Error;
        let server = |code: &str| Error::Server {
            what: "s".into(),
            code: code.into(),
            why: "w".into(),
        };
        assert!(matches!(blame(None), PipelineError::Component { .. }));
        for its_own in [
            Error::Limit("l".into()),
            Error::Invalid("i".into()),
            Error::Slow("s".into()),
        ] {
            assert!(matches!(blame(Some(its_own)), PipelineError::Component { .. }));
        }
        assert!(matches!(
            blame(Some(Error::Gone("g".into()))),
            PipelineError::Changed { .. }
        ));
        assert!(matches!(blame(Some(server("XX000"))), PipelineError::Source { .. }));
        assert!(matches!(blame(Some(server("53100"))), PipelineError::GaveOut { .. }));
        // The last one counts: the component went on after the others.
        let world = Granted::default();
        world.faults.postgres(Error::Gone("g".into()));
        world.faults.postgres(Error::Limit("l".into()));
        assert!(matches!(world.blame(guest("said")), PipelineError::Component { .. }));
        assert_eq!(
            world.faults.postgres(Error::Slow("it took long".into())).to_string(),
            LookError::Limit("it took long; raise `query` of its limits if it has reason to".into()).to_string()
        );
    }
}
