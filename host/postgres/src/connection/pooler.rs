//! Whether a session of ours is one session of the server.
//!
//! Exported snapshots, advisory locks and settings live in a server's session. A pooler that gives each transaction, or
//! each statement, another one takes them away without a word, and hands our settings to whoever comes next. So it is
//! looked for before anything is set, once for each database, role and place that this process connects to.

use super::reach::Place;
use super::{Connection, Session};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::SimpleQueryMessage;

/// How long a pool may take to give a second session; one that has none to give is no reason to wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// Others may use the pool meanwhile and be given the session we look for.
const TRIES: u32 = 3;

/// Where no such pooler was found. Held while one is looked for, so that nobody sets anything before.
static LOOKED: Mutex<Option<HashSet<String>>> = Mutex::const_new(None);

/// Refuses a pooler that does not keep sessions. `another` opens a second connection the same way; without one nothing
/// can be told.
pub(super) async fn refuse(
    connection: &Connection,
    place: &Place,
    session: &Session,
    another: impl Future<Output = Option<Session>>,
) -> Result<()> {
    let place = format!("{} {} {place:?}", connection.user(), connection.database());
    let mut looked = LOOKED.lock().await;
    let looked = looked.get_or_insert_default();
    if looked.contains(&place) {
        return Ok(());
    }
    let shared = async {
        match another.await {
            Some(another) => shared(session, &another).await,
            None => Ok(false),
        }
    };
    // A pool in session mode that has but one session to give keeps the second waiting.
    if tokio::time::timeout(PATIENCE, shared).await.unwrap_or(Ok(false))? {
        return Err(Error::Connect {
            server: connection.describe(),
            why: "a pooler is in between that gives each transaction another session of the server".to_owned(),
            hint: "name the server itself, or a pool with `pool_mode = session`: essrun exports snapshots and holds locks, \
                   which need a session of their own"
                .to_owned(),
        });
    }
    looked.insert(place);
    Ok(())
}

/// Whether two connections that are open at once take turns at one session of the server, or one of them changes it.
async fn shared(one: &Session, other: &Session) -> Result<bool> {
    let first = backend(one).await?;
    for _ in 0..TRIES {
        if backend(other).await? == first || backend(one).await? != first {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The server's process. By the simple protocol, which a pooler always takes.
async fn backend(session: &Session) -> Result<String> {
    let answer = session
        .simple_query("SELECT pg_catalog.pg_backend_pid()")
        .await
        .map_err(|e| session.error("which session of the server it is", &e))?;
    let pid = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    pid.ok_or_else(|| Error::Lost {
        what: format!("{}: which session of the server it is", session.server()),
        why: "it did not answer".to_owned(),
    })
}
