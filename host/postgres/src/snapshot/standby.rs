//! Whether a standby replayed anything while snapshots were taken on it.
//!
//! A snapshot of a standby keeps the transactions still running in its list of subtransactions, which
//! `pg_current_snapshot()` does not print: two can read alike and differ in a commit between their xmin and xmax. So their
//! text proves nothing, and instead it must be known that no record was applied from before the first to after the last.
//!
//! That the replayed position did not move is not enough: it is set after a record took effect, so one may have done so
//! already. When all that was received is replayed as well there can be no such record.

use crate::connection::Session;
use crate::error::Result;
use tokio_postgres::SimpleQueryMessage;

/// How far a standby is.
pub(super) struct Replay {
    replayed: String,
    /// Absent where it does not stream from its primary: then nothing is known.
    received: Option<String>,
}

/// Where the server is now; `None` when it is no standby (any more).
pub(super) async fn replay(session: &Session) -> Result<Option<Replay>> {
    let answer = session
        .simple_query(
            "SELECT pg_catalog.pg_last_wal_replay_lsn()::text, pg_catalog.pg_last_wal_receive_lsn()::text \
             WHERE pg_catalog.pg_is_in_recovery()",
        )
        .await
        .map_err(|e| session.error("ask how far the standby is", &e))?;
    Ok(answer.iter().find_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some(Replay {
            replayed: row.get(0)?.to_owned(),
            received: row.get(1).map(str::to_owned),
        }),
        _ => None,
    }))
}

impl Replay {
    /// Whether nothing was replayed from this one until `after`, in which time the server must have stayed a standby.
    pub fn stood_still(&self, after: Option<Replay>) -> bool {
        after.is_some_and(|after| after.replayed == self.replayed && after.received.as_ref() == Some(&after.replayed))
    }
}

#[cfg(test)]
mod tests {
    use super::Replay;

    #[test]
    fn only_a_standby_that_had_nothing_left_to_replay_stood_still() {
        let at = |replayed: &str, received: Option<&str>| Replay {
            replayed: replayed.to_owned(),
            received: received.map(str::to_owned),
        };
        let before = at("0/3000060", Some("0/3000060"));
        assert!(before.stood_still(Some(at("0/3000060", Some("0/3000060")))));
        // Replayed something; has something to replay, which may have taken effect; does not stream; was promoted.
        for after in [
            Some(at("0/3000098", Some("0/3000098"))),
            Some(at("0/3000060", Some("0/3000098"))),
            Some(at("0/3000060", None)),
            None,
        ] {
            assert!(!before.stood_still(after));
        }
    }
}
