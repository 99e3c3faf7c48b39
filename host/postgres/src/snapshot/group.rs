//! Snapshots of several databases that agree.
//!
//! Three ways, best first. *Same instant*: databases of one server share their transaction ids, so equal
//! `pg_current_snapshot()` texts mean the same instant; open all, compare, repeat until equal. On a standby the text is
//! not all of a snapshot, so there it must be proved as well that nothing was replayed meanwhile ([`standby`]). *Fenced*:
//! databases of different servers agree while SHARE locks keep the tables that matter from changing. *Ordered*: one after
//! the other, in the order given, with the gap measured; only when asked for.

use super::{Snapshot, fence, standby};
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
    /// How long writers of the fenced tables had to wait for the try that counted.
    pub hold_ms: Option<f64>,
    /// The same over all tries, those that came to nothing too; absent where no fence was tried, and in backups that are
    /// older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_ms: Option<f64>,
}

impl Reached {
    /// In words, for people.
    pub fn in_words(&self) -> String {
        let (n, gap) = (self.members.len(), self.gap_ms);
        let tries = match self.tries {
            1 => "1 try".to_owned(),
            more => format!("{more} tries"),
        };
        // What one fence took is said already; more than that only where there were more.
        let hold = self.hold_ms.unwrap_or_default();
        let waited = match self.fenced_ms.filter(|all| *all > hold) {
            Some(all) => format!("; writers waited {all:.1} ms over all tries"),
            None => String::new(),
        };
        match self.how {
            Consistency::Single => "one database, one snapshot".to_owned(),
            Consistency::SameInstant => {
                format!("{n} databases at the same instant ({tries}, {:.1} ms)", self.took_ms)
            }
            Consistency::Fenced => format!(
                "{n} databases behind a lock fence held for {hold:.1} ms, snapshots {gap:.1} ms apart ({tries}{waited})"
            ),
            Consistency::Ordered => format!(
                "{n} databases one after the other, {gap:.1} ms apart ({tries}{waited}): {}",
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

/// What was spent on the way, whatever came of it.
#[derive(Debug, Default)]
pub(super) struct Spent {
    pub tries: u32,
    /// How long locks were asked for or held.
    pub fenced: Duration,
}

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
        let mut spent = Spent::default();
        let (how, taken, hold) = if sessions.len() == 1 {
            spent.tries = 1;
            (Consistency::Single, take_in_order(&sessions).await?, None)
        } else if let Some(server) = one_server(&sessions).await? {
            match same_instant(&sessions, server, began + request.give_up, &mut spent).await? {
                Some(taken) => (Consistency::SameInstant, taken, None),
                None => {
                    let why = match server {
                        Server::Primary => "the server commits too fast",
                        Server::Standby => {
                            "their server is a standby, where that is only known while it has replayed all it received, \
                             and there was no such moment"
                        }
                    };
                    Self::otherwise(&databases, &sessions, request, &mut spent, why).await?
                }
            }
        } else {
            Self::otherwise(
                &databases,
                &sessions,
                request,
                &mut spent,
                "they are on different servers",
            )
            .await?
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
                tries: spent.tries,
                took_ms: ms(took),
                gap_ms: ms(last.duration_since(first)),
                hold_ms: hold.map(ms),
                fenced_ms: (!spent.fenced.is_zero()).then(|| ms(spent.fenced)),
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
        spent: &mut Spent,
        why: &str,
    ) -> Result<(Consistency, Vec<Taken>, Option<Duration>)> {
        let named = databases
            .iter()
            .all(|(label, _)| request.fence.iter().any(|f| &f.label == label && !f.tables.is_empty()));
        let mut why = why.to_owned();
        if named {
            match fence::take(databases, sessions, request, spent).await {
                Ok((taken, hold)) => return Ok((Consistency::Fenced, taken, Some(hold))),
                Err(e) if request.allow_ordered => tracing::warn!(error = %e, "no lock fence, going in order"),
                Err(Error::Refused { why: more, .. }) => why = format!("{why}, and {more}"),
                Err(e) => return Err(e),
            }
        }
        if request.allow_ordered {
            // Behind a fence that fell, some may have a snapshot already: of that moment, not of this order.
            end_all(sessions).await?;
            spent.tries += 1;
            return Ok((Consistency::Ordered, take_in_order(sessions).await?, None));
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

/// What kind of server all databases are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Primary,
    /// In recovery.
    Standby,
}

/// What tells one running server from another, and what kind it is.
async fn identity(session: &Session) -> Result<Option<(String, Server)>> {
    let answer = session
        .simple_query(
            "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text || ' ' || \
             pg_catalog.pg_postmaster_start_time()::text, pg_catalog.pg_is_in_recovery()::text",
        )
        .await
        .map_err(|e| session.error("identify the server", &e))?;
    Ok(answer.iter().find_map(|m| match m {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let server = if row.get(1)? == "true" {
                Server::Standby
            } else {
                Server::Primary
            };
            Some((row.get(0)?.to_owned(), server))
        }
        _ => None,
    }))
}

/// The one running server all sessions are on: same system, same start, none a standby of another. `None`: several.
async fn one_server(sessions: &[Session]) -> Result<Option<Server>> {
    let mut first = None;
    for session in sessions {
        match (identity(session).await, &first) {
            (Ok(Some(id)), None) => first = Some(id),
            (Ok(Some(id)), Some(first)) if &id == first => {}
            (Ok(_), _) => return Ok(None),
            // Not allowed to know: treated as different servers, which is never wrong, only dearer.
            (Err(Error::Server { code, .. }), _) if code == "42501" => return Ok(None),
            (Err(e), _) => return Err(e),
        }
    }
    Ok(first.map(|(_, server)| server))
}

/// Ends what transactions are open; where none is, nothing happens.
async fn end_all(sessions: &[Session]) -> Result<()> {
    try_join_all(sessions.iter().map(|s| s.run("end a snapshot", "ROLLBACK"))).await?;
    Ok(())
}

/// Tries until all snapshots are equal or time is up; then the sessions are left without a transaction.
async fn same_instant(
    sessions: &[Session],
    server: Server,
    until: Instant,
    spent: &mut Spent,
) -> Result<Option<Vec<Taken>>> {
    loop {
        spent.tries += 1;
        let before = match (server, sessions.first()) {
            (Server::Standby, Some(first)) => standby::replay(first).await?,
            _ => None,
        };
        let taken = try_join_all(sessions.iter().map(take)).await?;
        let alike = taken.windows(2).all(|w| match w {
            [a, b] => a.visible == b.visible,
            _ => true,
        });
        let alike = match (before, sessions.first()) {
            (Some(before), Some(first)) if alike => before.stood_still(standby::replay(first).await?),
            _ => alike,
        };
        if alike {
            return Ok(Some(taken));
        }
        end_all(sessions).await?;
        if Instant::now() >= until {
            return Ok(None);
        }
    }
}
