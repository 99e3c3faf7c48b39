//! The world a component sees: its labels, bound to real databases and volumes at one moment.
//!
//! One [`Granted`] serves one component in one phase: before a backup its databases are snapshots, in `verify` they are
//! what was just restored, before a restore the live targets as far as they exist. A label that is not bound is denied
//! whatever the reason. Nothing here writes, and no text that leaves here carries an address or secret.

use async_trait::async_trait;
use essrun_postgres::{Inspector, QueryLimits};
use essrun_sandbox::contract::inspect::{
    Cell, DatabaseInfo, Engine, Entry, EntryKind, FileDigest, Level, TableInfo, TableKind,
};
use essrun_sandbox::{ListingSource, LookError, RowSource, World};
use essrun_sqlite::Sqlite;
use essrun_volume::{Volume, Walk};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
}

impl Granted {
    pub fn new(component: &str, settings: &serde_json::Map<String, serde_json::Value>) -> Self {
        Granted {
            component: component.to_owned(),
            settings: settings.clone(),
            ..Granted::default()
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

#[async_trait]
impl World for Granted {
    async fn info(&self, label: &str) -> Result<DatabaseInfo, LookError> {
        match self.database(label)? {
            Database::Postgres(inspector) => {
                let info = inspector.info().await.map_err(postgres_error)?;
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
                let info = sqlite.info().await.map_err(sqlite_error)?;
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
                let tables = inspector.tables().await.map_err(postgres_error)?;
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
                let tables = sqlite.tables().await.map_err(sqlite_error)?;
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
                let rows = inspector
                    .query(sql, params, &QueryLimits::default())
                    .await
                    .map_err(postgres_error)?;
                Ok(Box::new(PostgresRows { rows }))
            }
            Database::Sqlite(sqlite) => {
                let params = params.into_iter().map(to_sqlite).collect();
                let rows = sqlite
                    .query(sql, params, essrun_sqlite::Limits::default())
                    .await
                    .map_err(sqlite_error)?;
                Ok(Box::new(SqliteRows { rows }))
            }
        }
    }

    async fn walk(&self, label: &str, directory: &str, recursive: bool) -> Result<Box<dyn ListingSource>, LookError> {
        let volume = self.volume(label)?;
        let directory = directory.to_owned();
        let walk = blocking(move || volume.walk(&directory, recursive)).await?;
        Ok(Box::new(VolumeListing {
            walk: Some(walk),
            held: Vec::new(),
        }))
    }

    async fn look(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<Entry>>, LookError> {
        let volume = self.volume(label)?;
        let found = blocking(move || volume.look(&paths)).await?;
        Ok(found.into_iter().map(|e| e.map(entry)).collect())
    }

    async fn read(&self, label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, LookError> {
        let volume = self.volume(label)?;
        let path = path.to_owned();
        blocking(move || volume.read(&path, u64::from(max_bytes))).await
    }

    async fn digest(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError> {
        let volume = self.volume(label)?;
        // The call may be given up by a timeout; the thread must then stop reading.
        let flag = Arc::new(AtomicBool::new(true));
        let _stop = StopOnDrop(flag.clone());
        let found = blocking(move || volume.digest(&paths, &|| flag.load(Ordering::Relaxed))).await?;
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

struct PostgresRows {
    rows: essrun_postgres::Rows,
}

#[async_trait]
impl RowSource for PostgresRows {
    fn columns(&self) -> Vec<String> {
        self.rows.columns().to_vec()
    }

    async fn next(&mut self, max_rows: u32, _: u64) -> Result<Vec<Vec<Cell>>, LookError> {
        let page = self.rows.next(max_rows).await.map_err(postgres_error)?;
        Ok(page
            .into_iter()
            .map(|row| row.into_iter().map(from_postgres).collect())
            .collect())
    }

    fn held_bytes(&self) -> u64 {
        0
    }
}

struct SqliteRows {
    rows: essrun_sqlite::Rows,
}

#[async_trait]
impl RowSource for SqliteRows {
    fn columns(&self) -> Vec<String> {
        self.rows.columns().to_vec()
    }

    async fn next(&mut self, max_rows: u32, _: u64) -> Result<Vec<Vec<Cell>>, LookError> {
        let page = self.rows.next(max_rows).await.map_err(sqlite_error)?;
        Ok(page
            .into_iter()
            .map(|row| row.into_iter().map(from_sqlite).collect())
            .collect())
    }

    fn held_bytes(&self) -> u64 {
        0
    }
}

struct VolumeListing {
    walk: Option<Walk>,
    /// Entries read but not yet given: a page is cut by the bytes of its paths.
    held: Vec<Entry>,
}

#[async_trait]
impl ListingSource for VolumeListing {
    async fn next(&mut self, max_entries: u32, max_bytes: u64) -> Result<Vec<Entry>, LookError> {
        if self.held.is_empty() {
            let Some(mut walk) = self.walk.take() else {
                return Ok(Vec::new());
            };
            let wanted = usize::try_from(max_entries).unwrap_or(usize::MAX).clamp(1, 10_000);
            let (walk, page) = blocking(move || {
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
    work: impl FnOnce() -> Result<T, essrun_volume::VolumeError> + Send + 'static,
) -> Result<T, LookError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(volume_error),
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

fn volume_error(e: essrun_volume::VolumeError) -> LookError {
    use essrun_volume::VolumeError;
    match e {
        VolumeError::Denied { path } => LookError::Denied(path),
        VolumeError::Invalid { .. } => LookError::Invalid(e.to_string()),
        VolumeError::Limit { .. } => LookError::Limit(e.to_string()),
        _ => LookError::Failed(e.to_string()),
    }
}

fn sqlite_error(e: essrun_sqlite::SqliteError) -> LookError {
    use essrun_sqlite::SqliteError;
    match e {
        SqliteError::Invalid { .. } => LookError::Invalid(e.to_string()),
        SqliteError::Limit { .. } => LookError::Limit(e.to_string()),
        _ => LookError::Failed(e.to_string()),
    }
}

fn postgres_error(e: essrun_postgres::Error) -> LookError {
    use essrun_postgres::Error;
    match e {
        Error::Invalid(_) => LookError::Invalid(e.to_string()),
        Error::Limit(_) => LookError::Limit(e.to_string()),
        _ => LookError::Failed(e.to_string()),
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
