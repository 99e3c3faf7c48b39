//! Bounded, read-only looks into a database, for components and for ourselves.
//!
//! An [`Inspector`] looks either into a snapshot or at a database as it is now. A guest's SQL runs in a connection of
//! its own that is thrown away afterwards, so nothing it does to its session can outlive it; see [`query`] for the
//! rest of the guard. It never writes.

mod cell;
mod effects;
mod info;
mod query;

pub use cell::Cell;
pub(crate) use effects::{May, refuse as refuse_calls};
pub use info::{DatabaseInfo, RoleDangers, TableInfo, TableKind};
pub use query::{QueryLimits, Rows};
pub(crate) use query::{counted, refuse_filter};

use crate::connection::{Connection, Session};
use crate::error::Result;
use crate::names::quote_literal;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Looks into one database.
#[derive(Debug, Clone)]
pub struct Inspector {
    connection: Connection,
    snapshot: Option<String>,
    /// How many guest queries may be open at once; each costs the server a connection.
    open: Arc<Semaphore>,
    known: Arc<effects::Known>,
}

impl Inspector {
    /// Looks at the database as it is now.
    pub fn new(connection: Connection) -> Self {
        Self::at(connection, None)
    }

    pub(crate) fn at(connection: Connection, snapshot: Option<String>) -> Self {
        Inspector {
            connection,
            snapshot,
            open: Arc::new(Semaphore::new(8)),
            known: Arc::default(),
        }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A session in a read-only transaction at the instant looked at.
    pub(crate) async fn session(&self) -> Result<Session> {
        let session = Session::open(&self.connection).await?;
        let mut begin = "SET lock_timeout = '10s'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned();
        if let Some(id) = &self.snapshot {
            begin.push_str("; SET TRANSACTION SNAPSHOT ");
            begin.push_str(&quote_literal(id));
        }
        session.run("begin at the snapshot", &begin).await?;
        Ok(session)
    }

    /// What tells this database from every other, however it is reached: two that are alike are one.
    pub async fn identity(&self) -> Result<String> {
        let session = self.session().await?;
        let row = session
            .query_one(
                "SELECT pg_catalog.pg_postmaster_start_time()::text || ' ' || d.oid::text || ' ' || \
                   COALESCE((SELECT system_identifier FROM pg_catalog.pg_control_system())::text, '') \
                 FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
                &[],
            )
            .await
            .map_err(|e| session.error("which database it is", &e))?;
        Ok(row.get(0))
    }

    pub async fn info(&self) -> Result<DatabaseInfo> {
        info::info(&self.session().await?).await
    }

    /// All relations outside the system schemas, ordered by schema and name.
    pub async fn tables(&self) -> Result<Vec<TableInfo>> {
        info::tables(&self.session().await?).await
    }

    /// What the role could do beyond reading this database.
    pub async fn role_dangers(&self) -> Result<RoleDangers> {
        info::role_dangers(&self.session().await?).await
    }

    /// Runs a guest's query; see [`query`].
    pub async fn query(&self, sql: &str, params: Vec<Cell>, limits: &QueryLimits) -> Result<Rows> {
        query::run(self, sql, params, limits).await
    }
}
