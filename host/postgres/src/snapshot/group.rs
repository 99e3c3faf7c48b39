//! Snapshots of several databases that agree.
//!
//! Three ways, best first. *Same instant*: databases of one server share their transaction ids, so equal
//! `pg_current_snapshot()` texts mean the same instant; open all, compare, repeat until equal. *Fenced*: databases of
//! different servers agree while SHARE locks keep the tables that matter from changing. *Ordered*: one after the other,
//! in the order given, with the gap measured; only when asked for.

use super::{Snapshot, fence};
use crate::connection::{Connection, Session};
use crate::error::{Error, Result};
use crate::names::TableName;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The tables of one database to be held still when databases of different servers must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceTables {
    /// The label of the database in the group.
    pub label: String,
    pub tables: Vec<TableName>,
}

/// What is asked of a group.
#[derive(Debug, Clone)]
pub struct ConsistencyRequest {
    /// Needed only when the databases are on different servers. Every database of the group must be named.
    pub fence: Vec<FenceTables>,
    /// Whether snapshots one after the other, in the order given, will do when nothing better is reached.
    pub allow_ordered: bool,
    /// How long one try may wait for a lock.
    pub lock_timeout: Duration,
    /// How long to try in all.
    pub give_up: Duration,
}

impl Default for ConsistencyRequest {
    fn default() -> Self {
        ConsistencyRequest {
            fence: Vec::new(),
            allow_ordered: false,
            lock_timeout: Duration::from_millis(250),
            give_up: Duration::from_secs(30),
        }
    }
}

/// How the snapshots of a group agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// There is only one database.
    Single,
    /// One server, equal snapshots.
    SameInstant,
    /// Taken while locks held the named tables still.
    Fenced,
    /// One after the other.
    Ordered,
}

/// One database's part in a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberInstant {
    pub label: String,
    /// `host:port/database`.
    pub server: String,
    /// `pg_current_snapshot()`: `xmin:xmax:running,…`.
    pub snapshot: String,
    /// This host's clock when the snapshot was there.
    pub taken_at_unix_ms: u64,
}

/// What a group reached, for the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    pub how: Consistency,
    pub members: Vec<MemberInstant>,
    pub tries: u32,
    /// From the first try to the end.
    pub took_ms: f64,
    /// Between the first and the last snapshot of the try that counted.
    pub gap_ms: f64,
    /// How long writers of the fenced tables had to wait.
    pub hold_ms: Option<f64>,
}

impl Reached {
    /// In words, for people.
    pub fn in_words(&self) -> String {
        match self.how {
            Consistency::Single => "one database, one snapshot".to_owned(),
            Consistency::SameInstant => format!(
                "{} databases at the same instant ({} {}, {:.1} ms)",
                self.members.len(),
                self.tries,
                if self.tries == 1 { "try" } else { "tries" },
                self.took_ms
            ),
            Consistency::Fenced => format!(
                "{} databases behind a lock fence held for {:.1} ms ({} {})",
                self.members.len(),
                self.hold_ms.unwrap_or_default(),
                self.tries,
                if self.tries == 1 { "try" } else { "tries" }
            ),
            Consistency::Ordered => format!(
                "{} databases one after the other, {:.1} ms apart: {}",
                self.members.len(),
                self.gap_ms,
                self.members
                    .iter()
                    .map(|m| m.label.as_str())
                    .collect::<Vec<_>>()
                    .join(", then ")
            ),
        }
    }
}

/// Snapshots that belong together.
#[derive(Debug)]
pub struct SnapshotGroup {
    snapshots: Vec<Snapshot>,
    reached: Reached,
}

/// Opens a transaction, takes its snapshot and shows it, in one round trip.
const OPEN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_catalog.pg_current_snapshot()::text";

pub(super) struct Taken {
    pub visible: String,
    pub at: Instant,
    pub clock: SystemTime,
}

pub(super) async fn take(session: &Session) -> Result<Taken> {
    let answer = session
        .simple_query(OPEN)
        .await
        .map_err(|e| session.error("open a snapshot", &e))?;
    let visible = answer.iter().find_map(|m| match m {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(Taken {
        visible: visible.ok_or_else(|| Error::Lost {
            what: format!("{}: open a snapshot", session.server()),
            why: "the server gave no snapshot".to_owned(),
        })?,
        at: Instant::now(),
        clock: SystemTime::now(),
    })
}

impl SnapshotGroup {
    /// Takes the snapshots. `databases` in the order in which they are to be taken when they cannot be taken at once.
    pub async fn open(databases: Vec<(String, Connection)>, request: &ConsistencyRequest) -> Result<SnapshotGroup> {
        if databases.is_empty() {
            return Err(Error::refused(
                "snapshot group",
                "names no database",
                "name at least one",
            ));
        }
        let sessions = try_join_all(databases.iter().map(|(_, c)| Session::open(c))).await?;
        let began = Instant::now();
        let (how, taken, tries, hold) = if sessions.len() == 1 {
            (Consistency::Single, take_in_order(&sessions).await?, 1, None)
        } else if same_server(&sessions).await? {
            let until = began + request.give_up;
            match same_instant(&sessions, until).await? {
                (Some(taken), tries) => (Consistency::SameInstant, taken, tries, None),
                (None, tries) => {
                    Self::otherwise(&databases, &sessions, request, tries, "the server commits too fast").await?
                }
            }
        } else {
            Self::otherwise(&databases, &sessions, request, 0, "they are on different servers").await?
        };
        let took = began.elapsed();
        let first = taken.iter().map(|t| t.at).min().unwrap_or(began);
        let last = taken.iter().map(|t| t.at).max().unwrap_or(began);
        let mut members = Vec::new();
        let mut holders = Vec::new();
        for (((label, connection), session), taken) in databases.iter().zip(sessions).zip(taken) {
            members.push(MemberInstant {
                label: label.clone(),
                server: connection.describe(),
                snapshot: taken.visible.clone(),
                taken_at_unix_ms: taken
                    .clock
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            });
            holders.push(Snapshot::hold(label, connection, session, taken.visible));
        }
        Ok(SnapshotGroup {
            snapshots: try_join_all(holders).await?,
            reached: Reached {
                how,
                members,
                tries,
                took_ms: ms(took),
                gap_ms: ms(last.duration_since(first)),
                hold_ms: hold.map(ms),
            },
        })
    }

    /// One database, for those that belong to no group.
    pub async fn single(label: &str, connection: &Connection) -> Result<SnapshotGroup> {
        Self::open(
            vec![(label.to_owned(), connection.clone())],
            &ConsistencyRequest::default(),
        )
        .await
    }

    /// Fence if tables are named, else in order if allowed, else an error that says what to do.
    async fn otherwise(
        databases: &[(String, Connection)],
        sessions: &[Session],
        request: &ConsistencyRequest,
        tries: u32,
        why: &str,
    ) -> Result<(Consistency, Vec<Taken>, u32, Option<Duration>)> {
        let named = databases
            .iter()
            .all(|(label, _)| request.fence.iter().any(|f| &f.label == label && !f.tables.is_empty()));
        let mut why = why.to_owned();
        if named {
            match fence::take(databases, sessions, request).await {
                Ok((taken, more, hold)) => return Ok((Consistency::Fenced, taken, tries + more, Some(hold))),
                Err(e) if request.allow_ordered => tracing::warn!(error = %e, "no lock fence, going in order"),
                Err(Error::Refused { why: more, .. }) => why = format!("{why}, and {more}"),
                Err(e) => return Err(e),
            }
        }
        if request.allow_ordered {
            return Ok((Consistency::Ordered, take_in_order(sessions).await?, tries + 1, None));
        }
        let labels: Vec<&str> = databases.iter().map(|(label, _)| label.as_str()).collect();
        Err(Error::refused(
            format!("databases {}", labels.join(", ")),
            format!("no instant common to all was reached: {why}"),
            "try at a quieter time, let the role lock the tables the components name, or allow ordered snapshots",
        ))
    }

    pub fn reached(&self) -> &Reached {
        &self.reached
    }

    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    pub fn get(&self, label: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.label() == label)
    }

    /// Fails when any holder is gone.
    pub async fn check(&self) -> Result<()> {
        for snapshot in &self.snapshots {
            snapshot.check().await?;
        }
        Ok(())
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

async fn take_in_order(sessions: &[Session]) -> Result<Vec<Taken>> {
    let mut taken = Vec::new();
    for session in sessions {
        taken.push(take(session).await?);
    }
    Ok(taken)
}

/// What tells one running server from another.
async fn identity(session: &Session) -> Result<Option<String>> {
    let answer = session
        .simple_query(
            "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text || ' ' || \
             pg_catalog.pg_postmaster_start_time()::text || ' ' || pg_catalog.pg_is_in_recovery()::text",
        )
        .await
        .map_err(|e| session.error("identify the server", &e))?;
    Ok(answer.iter().find_map(|m| match m {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Whether all sessions are on one running server: same system, same start, none a standby of another.
async fn same_server(sessions: &[Session]) -> Result<bool> {
    let mut first = None;
    for session in sessions {
        match (identity(session).await, &first) {
            (Ok(Some(id)), None) => first = Some(id),
            (Ok(Some(id)), Some(first)) if &id == first => {}
            (Ok(_), _) => return Ok(false),
            // Not allowed to know: treated as different servers, which is never wrong, only dearer.
            (Err(Error::Server { code, .. }), _) if code == "42501" => return Ok(false),
            (Err(e), _) => return Err(e),
        }
    }
    Ok(true)
}

/// Tries until all snapshots are equal or time is up; then the sessions are left without a transaction.
async fn same_instant(sessions: &[Session], until: Instant) -> Result<(Option<Vec<Taken>>, u32)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let taken = try_join_all(sessions.iter().map(take)).await?;
        if taken.windows(2).all(|w| match w {
            [a, b] => a.visible == b.visible,
            _ => true,
        }) {
            return Ok((Some(taken), tries));
        }
        try_join_all(sessions.iter().map(|s| s.run("end a snapshot", "ROLLBACK"))).await?;
        if Instant::now() >= until {
            return Ok((None, tries));
        }
    }
}
