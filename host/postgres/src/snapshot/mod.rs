//! The instant a backup is taken of: one exported snapshot per database, several of them as close as can be.
//!
//! A [`Snapshot`] is a session that sits in a REPEATABLE READ READ ONLY transaction and has exported it, so that any
//! number of workers can read the same instant. When that session is lost the backup has failed, whatever the workers
//! say. A [`SnapshotGroup`] takes snapshots of several databases so that none shows an effect without its cause, and
//! says how that was reached.

mod fence;
mod group;
mod standby;

pub use group::{Consistency, ConsistencyRequest, FenceTables, MemberInstant, Reached, SnapshotGroup};

use crate::connection::{Connection, Session};
use crate::error::Result;
use crate::inspect::{Cell, DatabaseInfo, Inspector, QueryLimits, RoleDangers, Rows, TableInfo};
use std::sync::Arc;

/// One database at one instant, for as long as this lives.
#[derive(Debug)]
pub struct Snapshot {
    label: String,
    holder: Session,
    id: String,
    visible: String,
    version: u32,
    inspector: Inspector,
}

impl Snapshot {
    pub(crate) async fn hold(label: &str, connection: &Connection, holder: Session, visible: String) -> Result<Self> {
        let row = holder
            .query_one(
                "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.current_setting('server_version_num')::int4",
                &[],
            )
            .await
            .map_err(|e| holder.error("export the snapshot", &e))?;
        let id: String = row.get(0);
        Ok(Snapshot {
            label: label.to_owned(),
            inspector: Inspector::at(connection.clone(), Some(id.clone())),
            version: u32::try_from(row.get::<_, i32>(1)).unwrap_or(0),
            holder,
            id,
            visible,
        })
    }

    /// The label under which the group was given this database.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The exported snapshot's id, for `SET TRANSACTION SNAPSHOT` and `pg_dump --snapshot`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `pg_current_snapshot()` as text: which transactions this instant sees.
    pub fn visible(&self) -> &str {
        &self.visible
    }

    /// `server_version_num`.
    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn connection(&self) -> &Connection {
        self.inspector.connection()
    }

    /// Looks into this instant.
    pub fn inspector(&self) -> &Inspector {
        &self.inspector
    }

    /// Looks into this instant by another connection to the same database: as somebody else, or by another way.
    pub fn inspector_by(&self, connection: &Connection) -> Inspector {
        Inspector::at(connection.clone(), Some(self.id.clone()))
    }

    pub async fn info(&self) -> Result<DatabaseInfo> {
        self.inspector.info().await
    }

    pub async fn tables(&self) -> Result<Vec<TableInfo>> {
        self.inspector.tables().await
    }

    pub async fn query(&self, sql: &str, params: Vec<Cell>, limits: &QueryLimits) -> Result<Rows> {
        self.inspector.query(sql, params, limits).await
    }

    pub async fn role_dangers(&self) -> Result<RoleDangers> {
        self.inspector.role_dangers().await
    }

    pub(crate) fn holder(&self) -> &Session {
        &self.holder
    }

    /// Another session at the same instant.
    pub(crate) async fn worker(&self) -> Result<Session> {
        self.holder.check("the snapshot's holder")?;
        self.inspector.session().await
    }

    /// Fails when the holder is gone: then nothing read since counts.
    pub async fn check(&self) -> Result<()> {
        self.holder.run("the snapshot's holder", "SELECT 1").await
    }

    /// Waits until the holder is gone and says why.
    pub fn lost(&self) -> impl Future<Output = Arc<str>> + Send + 'static {
        self.holder.lost()
    }
}
