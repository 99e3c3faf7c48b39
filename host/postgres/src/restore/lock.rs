//! Whose a scratch database is: its maker holds an advisory lock under its name for as long as it lives.
//!
//! The lock is a session's, so a kill takes it away without anybody's doing; but only when the server is done with
//! what that session was last asked for, and making a database takes seconds. [`settled`] waits for that.

use crate::connection::Session;
use crate::error::Result;
use std::time::{Duration, Instant};

/// First half of our advisory locks' keys: "essr".
const LOCK_CLASS: i32 = 0x6573_7372;
/// How long a killed maker's last statement is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at it. A session whose client is gone ends well within, unless it is at work.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Second half of the lock's key, from the database's name.
fn lock_key(name: &str) -> i32 {
    let hash = blake3::hash(name.as_bytes());
    let mut four = [0u8; 4];
    for (to, from) in four.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    i32::from_be_bytes(four)
}

/// Takes the lock of a name; `false`: another holds it.
pub(super) async fn locked(keeper: &Session, name: &str) -> Result<bool> {
    let row = keeper
        .query_one(
            "SELECT pg_catalog.pg_try_advisory_lock($1, $2)",
            &[&LOCK_CLASS, &lock_key(name)],
        )
        .await
        .map_err(|e| keeper.error("scratch lock", &e))?;
    Ok(row.get(0))
}

/// Lifts the lock by [`locked`].
pub(super) async fn unlock(keeper: &Session, name: &str) -> Result<()> {
    keeper
        .query_one(
            "SELECT pg_catalog.pg_advisory_unlock($1, $2)",
            &[&LOCK_CLASS, &lock_key(name)],
        )
        .await
        .map_err(|e| keeper.error("scratch lock", &e))?;
    Ok(())
}

/// Whether the maker of a scratch database lives: somebody, in any database, holds the lock of its name.
pub(super) async fn alive(session: &Session, name: &str) -> Result<bool> {
    let row = session
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted \
             AND classid::int8 = $1::int8 AND objid::int8 = $2::int8 AND pid <> pg_catalog.pg_backend_pid())",
            &[
                &i64::from(LOCK_CLASS),
                &i64::from(u32::from_ne_bytes(lock_key(name).to_ne_bytes())),
            ],
        )
        .await
        .map_err(|e| session.error("scratch lock", &e))?;
    Ok(row.get(0))
}

/// Waits while a session that holds the lock of this name, or of any, is at work in the server: its client may have
/// been killed long since. One that lives sits idle beside the sessions that do its work, and is not waited for.
pub(super) async fn settled(session: &Session, name: Option<&str>) -> Result<()> {
    let key = name.map(|name| i64::from(u32::from_ne_bytes(lock_key(name).to_ne_bytes())));
    let began = Instant::now();
    let mut idle = 0;
    while began.elapsed() < PATIENCE {
        let row = session
            .query_one(
                "SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE a.state = 'active') \
                 FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
                 WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.classid::int8 = $1::int8 \
                   AND ($2::int8 IS NULL OR l.objid::int8 = $2) AND l.pid <> pg_catalog.pg_backend_pid()",
                &[&i64::from(LOCK_CLASS), &key],
            )
            .await
            .map_err(|e| session.error("scratch lock", &e))?;
        let (held, at_work): (i64, i64) = (row.get(0), row.get(1));
        idle = if at_work == 0 { idle + 1 } else { 0 };
        // Looked at twice: one that was killed between two statements is idle for a moment.
        if held == 0 || idle == 2 {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
