//! Scratch databases that nobody vouches for: found, and dropped.

use super::lock::{alive, locked, settled, unlock};
use super::scratch::{Marker, Purpose, as_made, drop_database};
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
        let nameless = marker.is_none() && comment.is_none() && named_by_us(&database);
        if (marker.is_none() && !nameless) || alive(&admin, &database).await? {
            continue;
        }
        if nameless && !matches!(as_made(&target.with_database(&database)).await, Ok(true)) {
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

/// Whether a name ends as those of scratch databases do: `_essrun_` and a backup's id, a drill's, or the milliseconds at
/// which definitions were to be compared. Whoever else uses the word is not taken for us.
pub(super) fn named_by_us(database: &str) -> bool {
    let Some((_, run)) = database.rsplit_once("_essrun_") else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if let Some(drill) = run.strip_prefix("drill-") {
        return drill
            .split_once('-')
            .is_some_and(|(time, pid)| digits(time) && digits(pid));
    }
    if let Some(time) = run.strip_prefix("definitions-") {
        return hex(time);
    }
    // 20260131t041500z-9f3a01c2
    run.split_once('-').is_some_and(|(time, random)| {
        let time = time.strip_suffix('z').and_then(|t| t.split_once('t'));
        time.is_some_and(|(day, hour)| day.len() == 8 && hour.len() == 6 && digits(day) && digits(hour))
            && random.len() == 8
            && hex(random)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_we_make_are_ours() {
        for ours in [
            "synapse_essrun_20260131t041500z-9f3a01c2",
            "a_essrun_b_essrun_drill-1769832900-4711",
            "synapse_essrun_definitions-19c12ab45f0",
        ] {
            assert!(named_by_us(ours), "{ours}");
        }
        for theirs in [
            "app_essrun_test",
            "app_essrun_",
            "app_essrun_drill-",
            "app_essrun_drill-1-x",
            "app_essrun_drill-1",
            "app_essrun_definitions-",
            "app_essrun_definitions-old",
            "app_essrun_20260131t041500z-9f3a01c2_copy",
            "app_essrun_20260131t041500z-9f3a01",
            "app_essrun_20260131-9f3a01c2",
            "essrun_20260131t041500z-9f3a01c2",
        ] {
            assert!(!named_by_us(theirs), "{theirs}");
        }
    }
}
