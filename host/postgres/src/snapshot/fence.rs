//! A lock fence: while SHARE locks are held on the named tables of every database, no transaction that changed them is
//! open and none can commit, so snapshots taken meanwhile agree about them, even on different servers.
//!
//! The fence is rude to writers, so it is short: locks are asked for with a timeout, all are let go when one is not
//! given, and the pause before the next try grows. The time writers had to wait is measured and kept, that of tries
//! that came to nothing too. A standby gives no such locks.

use super::group::{ConsistencyRequest, Spent, Taken, take as take_snapshot};
use crate::connection::{Connection, Session};
use crate::error::{Error, Result};
use futures_util::future::{join_all, try_join_all};
use std::time::{Duration, Instant};

/// Takes one snapshot per session while the fence stands. Gives the snapshots and how long this fence was held.
pub(super) async fn take(
    databases: &[(String, Connection)],
    sessions: &[Session],
    request: &ConsistencyRequest,
    spent: &mut Spent,
) -> Result<(Vec<Taken>, Duration)> {
    let mut fences = Vec::new();
    for (label, connection) in databases {
        let mut tables: Vec<String> = request
            .fence
            .iter()
            .filter(|f| &f.label == label)
            .flat_map(|f| f.tables.iter().map(|t| t.quoted()))
            .collect();
        // One order everywhere, so that two backups at once do not block each other crosswise.
        tables.sort();
        tables.dedup();
        let lock = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; LOCK TABLE {} IN SHARE MODE",
            request.lock_timeout.as_millis().max(1),
            tables.join(", ")
        );
        let session = Session::open(connection).await?;
        if in_recovery(&session).await? {
            return Err(Error::refused(
                "lock fence",
                format!("{} is a standby, where no table can be locked", session.server()),
                "name the primaries in pipeline.toml, or both databases of one standby, or allow ordered snapshots",
            ));
        }
        fences.push((session, lock));
    }
    let until = Instant::now() + request.give_up;
    let mut pause = Duration::from_millis(20);
    let mut tries = 0;
    loop {
        tries += 1;
        spent.tries += 1;
        let held = Instant::now();
        let mut failed = None;
        // In order, not at once: a lock already held makes writers wait, so the next is asked for only then.
        for (session, lock) in &fences {
            if let Err(e) = session.run("lock the fence's tables", lock).await {
                failed = Some(e);
                break;
            }
        }
        let taken = match &failed {
            None => Some(try_join_all(sessions.iter().map(take_snapshot)).await),
            Some(_) => None,
        };
        let released = join_all(fences.iter().map(|(s, _)| s.run("release the fence", "ROLLBACK"))).await;
        let hold = held.elapsed();
        spent.fenced += hold;
        match (taken, failed) {
            (Some(taken), _) => {
                let taken = taken?;
                // A fence that fell before the snapshots were taken is no fence.
                released.into_iter().collect::<Result<Vec<()>>>()?;
                return Ok((taken, hold));
            }
            // Not available in time, or a deadlock the server resolved against us: somebody works there; again later.
            (None, Some(e)) if matches!(e.code(), Some("55P03" | "40P01")) => {
                if Instant::now() + pause >= until {
                    return Err(Error::refused(
                        "lock fence",
                        format!("the tables could not be locked in {tries} tries"),
                        "try at a quieter time or raise the lock timeout",
                    ));
                }
            }
            (None, Some(e)) if e.code() == Some("42501") => {
                return Err(Error::refused(
                    "lock fence",
                    "the role may not lock the tables the components name",
                    "grant it UPDATE on them (SHARE locks need it)",
                ));
            }
            (None, Some(e)) => return Err(e),
            (None, None) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn in_recovery(session: &Session) -> Result<bool> {
    let row = session.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
    Ok(row
        .map_err(|e| session.error("ask whether it is a standby", &e))?
        .get(0))
}
