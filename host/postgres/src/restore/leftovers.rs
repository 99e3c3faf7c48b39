//! Scratch databases that nobody vouches for: found, and dropped.

use super::lock::{alive, locked, settled, unlock};
use super::scratch::{Marker, Purpose, drop_database, relations};
use crate::connection::{Connection, Session};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A scratch database whose maker is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    pub database: String,
    /// The run that made it, when it got to say so.
    pub run: Option<String>,
    pub purpose: Option<Purpose>,
    /// The name it was to have.
    pub of: Option<String>,
    /// Which database of the backup it is, as `component/label`.
    pub what: Option<String>,
    /// Whether the restore into it was finished.
    pub complete: bool,
}

/// Scratch databases on the target's server whose makers are gone.
pub async fn list_leftovers(target: &Connection, maintenance_database: &str) -> Result<Vec<Leftover>> {
    let admin = Session::open(&target.with_database(maintenance_database)).await?;
    settled(&admin, None).await?;
    let rows = admin
        .query(
            "SELECT datname::text, pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database \
             WHERE NOT datistemplate AND datallowconn ORDER BY datname",
            &[],
        )
        .await
        .map_err(|e| admin.error("list of databases", &e))?;
    let mut out = Vec::new();
    for row in rows {
        let (database, comment): (String, Option<String>) = (row.get(0), row.get(1));
        let marker = comment.as_deref().and_then(Marker::read);
        // Killed between making and marking: ours by name, unmarked, and nothing in it.
        let nameless = marker.is_none() && comment.is_none() && database.contains("_essrun_");
        if (marker.is_none() && !nameless) || alive(&admin, &database).await? {
            continue;
        }
        if nameless && !matches!(relations(&target.with_database(&database)).await, Ok(0)) {
            continue;
        }
        out.push(Leftover {
            database,
            run: marker.as_ref().map(|m| m.run.clone()),
            purpose: marker.as_ref().map(|m| m.purpose),
            of: marker.as_ref().map(|m| m.of.clone()),
            what: marker.as_ref().and_then(|m| m.what.clone()),
            complete: marker.is_some_and(|m| m.complete),
        });
    }
    Ok(out)
}

/// Drops one, after checking again that it is one.
pub async fn drop_leftover(target: &Connection, maintenance_database: &str, leftover: &Leftover) -> Result<()> {
    let admin = Session::open(&target.with_database(maintenance_database)).await?;
    let still = list_leftovers(target, maintenance_database).await?;
    if !still.contains(leftover) || !locked(&admin, &leftover.database).await? {
        return Err(Error::refused(
            format!("database `{}`", leftover.database),
            "it is no leftover any more",
            "list leftovers again",
        ));
    }
    let dropped = drop_database(&admin, &leftover.database).await;
    unlock(&admin, &leftover.database).await?;
    dropped
}
