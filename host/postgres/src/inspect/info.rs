//! Facts about a database, its relations, and the role we have in it.

use crate::connection::Session;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// Facts about a whole database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseInfo {
    pub name: String,
    /// `server_version_num`: 150018.
    pub server_version_number: u32,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    pub size_bytes: u64,
}

/// What a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    Table,
    Partitioned,
    View,
    MaterializedView,
    Sequence,
    Foreign,
}

/// One relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableInfo {
    pub schema: String,
    pub name: String,
    pub kind: TableKind,
    /// `None` where it was never analysed.
    pub estimated_rows: Option<u64>,
    /// With TOAST, without indexes.
    pub size_bytes: u64,
    pub columns: Vec<String>,
}

/// What a role could do beyond reading the database it was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleDangers {
    pub role: String,
    /// Each in words; empty for a role that may be lent to components from elsewhere.
    pub dangers: Vec<String>,
}

pub(super) async fn info(session: &Session) -> Result<DatabaseInfo> {
    let row = session
        .query_one(
            "SELECT datname::text, pg_catalog.current_setting('server_version_num')::int4, \
             pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, \
             pg_catalog.pg_database_size(oid) \
             FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(|e| session.error("database facts", &e))?;
    Ok(DatabaseInfo {
        name: row.get(0),
        server_version_number: u32::try_from(row.get::<_, i32>(1)).unwrap_or(0),
        encoding: row.get(2),
        collate: row.get(3),
        ctype: row.get(4),
        size_bytes: u64::try_from(row.get::<_, i64>(5)).unwrap_or(0),
    })
}

pub(super) async fn tables(session: &Session) -> Result<Vec<TableInfo>> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text, c.relkind::text, \
               CASE WHEN c.reltuples >= 0 THEN c.reltuples::int8 END, \
               CASE WHEN c.relkind IN ('r', 'm') THEN pg_catalog.pg_table_size(c.oid) ELSE 0 END, \
               ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname !~ '^pg_' \
               AND n.nspname <> 'information_schema' \
             ORDER BY n.nspname::text COLLATE \"C\", c.relname::text COLLATE \"C\"",
            &[],
        )
        .await
        .map_err(|e| session.error("list of tables", &e))?;
    Ok(rows
        .iter()
        .map(|row| TableInfo {
            schema: row.get(0),
            name: row.get(1),
            kind: match row.get::<_, &str>(2) {
                "p" => TableKind::Partitioned,
                "v" => TableKind::View,
                "m" => TableKind::MaterializedView,
                "S" => TableKind::Sequence,
                "f" => TableKind::Foreign,
                _ => TableKind::Table,
            },
            estimated_rows: row.get::<_, Option<i64>>(3).and_then(|n| u64::try_from(n).ok()),
            size_bytes: row
                .get::<_, Option<i64>>(4)
                .and_then(|n| u64::try_from(n).ok())
                .unwrap_or(0),
            columns: row.get(5),
        })
        .collect())
}

pub(super) async fn role_dangers(session: &Session) -> Result<RoleDangers> {
    // What the role may become counts as what it is: set_config('role', …) is an ordinary function.
    let rows = session
        .query(
            "SELECT session_user::text, \
               CASE WHEN r.rolname = session_user THEN 'is a superuser' \
               WHEN r.rolsuper THEN 'may become the superuser ' || r.rolname ELSE 'is a member of ' || r.rolname END \
             FROM pg_catalog.pg_roles r \
             WHERE (r.rolsuper OR r.rolname IN ('pg_read_server_files', 'pg_write_server_files', \
                    'pg_execute_server_program')) \
               AND pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER') \
               AND NOT (r.rolname <> session_user AND \
                 (SELECT s.rolsuper FROM pg_catalog.pg_roles s WHERE s.rolname = session_user)) \
             ORDER BY 2",
            &[],
        )
        .await;
    let rows = match rows {
        Ok(rows) => rows,
        Err(e) => return Err(session.error("rights of the role", &e)),
    };
    let role = session
        .query_one("SELECT session_user::text", &[])
        .await
        .map_err(|e| session.error("rights of the role", &e))?
        .get(0);
    Ok(RoleDangers {
        role,
        dangers: rows.iter().map(|row| row.get(1)).collect(),
    })
}
