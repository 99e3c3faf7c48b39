//! One live connection, watched.
//!
//! The driver's connection half runs as a task; when it ends, [`Session::lost`] says so, which is how a backup learns
//! that the transaction holding its snapshot is gone. Every session is given the same settings, so that what is read
//! does not depend on how the role or the database happens to be set up.

use super::pooler;
use super::reach::{self, Failed, Place, Through, Timing, Way, reach};
use super::tap::{Batch, Form, Tap};
use super::tls::{self, Mode};
use super::{Connection, Sockets};
use crate::error::{Error, Result, chain};
use futures_channel::mpsc;
use futures_util::{StreamExt, TryStreamExt};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, CopyOutStream};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Settings that fix the meaning of what is read and written, and take away time limits that would end a long dump.
const SETTINGS: &str = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; \
     SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
     SET standard_conforming_strings = on; SET row_security = off; SET synchronize_seqscans = off; \
     SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
     SET client_min_messages = warning; SET jit = off; SELECT pg_catalog.set_config('search_path', '', false); \
     SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
      WHERE name IN ('transaction_timeout', 'idle_session_timeout')";

/// A connection in use. Dropping it ends it, and with it whatever statement was running.
pub struct Session {
    client: Client,
    task: JoinHandle<()>,
    lost: watch::Receiver<Option<Arc<str>>>,
    tap: Tap,
    reach: Reach,
    server: String,
}

/// How the server was reached.
struct Reach {
    place: Place,
    /// How TLS is made; absent where none is to be made.
    tls: Option<MakeRustlsConnect>,
    mode: Mode,
    timing: Timing,
}

/// The rows of a COPY under way.
pub(crate) struct Rows<'a> {
    session: &'a Session,
    what: String,
    batches: mpsc::Receiver<Result<Batch, &'static str>>,
    /// The driver's side of it: its end, or its error. Absent once it has ended.
    copied: Option<Pin<Box<CopyOutStream>>>,
    closed: bool,
}

impl Rows<'_> {
    /// The next rows; `None` once the server has said that these were all.
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            let Some(copied) = &mut self.copied else {
                // Whatever was on its way when the end was seen.
                return match self.batches.next().await {
                    Some(batch) => self.checked(batch).map(Some),
                    None => Ok(None),
                };
            };
            let ended = tokio::select! {
                biased;
                batch = self.batches.next() => match batch {
                    Some(batch) => return self.checked(batch).map(Some),
                    None => Err("COPY lost its reader"),
                },
                ended = copied.try_next() => match ended {
                    Ok(None) => Ok(()),
                    Ok(Some(_)) => Err("COPY sent rows past their reader"),
                    Err(e) => return Err(self.fail(&e)),
                },
            };
            ended.map_err(|why| self.broken(why))?;
            self.copied = None;
            self.closed = true;
            if !self.session.tap.close() {
                return Err(self.broken("COPY ended without its end mark"));
            }
        }
    }

    fn checked(&self, batch: Result<Batch, &'static str>) -> Result<Batch> {
        batch.map_err(|why| self.broken(why))
    }

    fn broken(&self, why: &str) -> Error {
        Error::Lost {
            what: format!("{}: {}", self.session.server(), self.what),
            why: why.to_owned(),
        }
    }

    /// An error of the server's ends the COPY; any other leaves it where it is.
    fn fail(&mut self, error: &tokio_postgres::Error) -> Error {
        if error.as_db_error().is_some() {
            self.closed = true;
            self.session.tap.close();
        }
        self.session.error(&self.what, error)
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        if !self.closed {
            self.session.tap.leave();
        }
    }
}

impl Session {
    pub async fn open(connection: &Connection) -> Result<Session> {
        let config = connection.config()?;
        let settings = tls::Settings::of(&connection.params)?;
        let mode = match connection.sockets() {
            Sockets::All => Mode::Disable,
            Sockets::Some | Sockets::None => settings.mode,
        };
        let tls = match mode {
            Mode::Disable => None,
            _ => Some(settings.connector()?),
        };
        let timing = connection.timing()?;
        let mut last = None;
        for place in connection.places()? {
            match Self::open_at(connection, &config, &place, timing, mode, tls.as_ref()).await {
                Ok(session) => {
                    let another = Self::open_at(connection, &config, &place, timing, mode, tls.as_ref());
                    pooler::refuse(connection, &place, &session, async { another.await.ok() }).await?;
                    session.run("session settings", SETTINGS).await?;
                    match session.is_wanted(config.get_target_session_attrs()).await? {
                        true => return Ok(session),
                        false => last = Some(Failed::Unwanted),
                    }
                }
                Err(e) => last = Some(e),
            }
        }
        // There is at least one place.
        let error = last.unwrap_or(Failed::NoTls);
        Err(connect_error(&connection.describe(), connection, &error))
    }

    async fn open_at(
        connection: &Connection,
        config: &Config,
        place: &Place,
        timing: Timing,
        mode: Mode,
        tls: Option<&MakeRustlsConnect>,
    ) -> Result<Session, Failed> {
        let ways = match (tls, place) {
            (Some(tls), Place::Host { .. }) => ways(mode, tls),
            _ => vec![Way::Plain],
        };
        let mut first = None;
        for way in ways {
            let (tap, (tell, lost)) = (Tap::default(), watch::channel(None));
            match start(config, place, way, timing, &tap, tell).await {
                Ok((client, task)) => {
                    return Ok(Session {
                        client,
                        task,
                        lost,
                        tap,
                        reach: Reach {
                            place: place.clone(),
                            tls: tls.cloned(),
                            mode,
                            timing,
                        },
                        server: connection.describe(),
                    });
                }
                Err(e) => {
                    let other_way = may_go_the_other_way(&e);
                    // The way asked for first is the one to speak of.
                    let error = first.get_or_insert(e);
                    if !other_way {
                        return Err(std::mem::replace(error, Failed::NoTls));
                    }
                }
            }
        }
        // There is at least one way.
        Err(first.unwrap_or(Failed::NoTls))
    }

    /// Whether it may write, where that was asked for.
    async fn is_wanted(&self, attributes: TargetSessionAttrs) -> Result<bool> {
        let read_only = match attributes {
            TargetSessionAttrs::ReadWrite => "off",
            TargetSessionAttrs::ReadOnly => "on",
            _ => return Ok(true),
        };
        let sql = "SELECT pg_catalog.current_setting('transaction_read_only')";
        let row = self.client.query_one(sql, &[]).await;
        let row = row.map_err(|e| self.error("whether it may write", &e))?;
        Ok(row.try_get::<_, &str>(0).is_ok_and(|is| is == read_only))
    }

    /// Runs a `COPY … TO STDOUT` and takes its rows past the driver.
    pub(crate) async fn rows(&self, what: &str, statement: &str, form: Form) -> Result<Rows<'_>> {
        let Some(batches) = self.tap.open(form) else {
            return Err(Error::Lost {
                what: format!("{}: {what}", self.server),
                why: "the session was left in the middle of a COPY".to_owned(),
            });
        };
        let mut rows = Rows {
            session: self,
            what: what.to_owned(),
            batches,
            copied: None,
            closed: false,
        };
        match self.client.copy_out(statement).await {
            Ok(copied) => rows.copied = Some(Box::pin(copied)),
            Err(e) => return Err(rows.fail(&e)),
        }
        Ok(rows)
    }

    /// `host:port/database`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Runs statements without parameters, results ignored. `what` is for the error.
    pub async fn run(&self, what: &str, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(|e| self.error(what, &e))
    }

    pub(crate) fn error(&self, what: &str, error: &tokio_postgres::Error) -> Error {
        match Error::sql(format!("{}: {what}", self.server), error) {
            Error::Lost { what, why } => Error::Lost {
                what,
                why: self.lost.borrow().as_deref().map_or(why, str::to_owned),
            },
            other => other,
        }
    }

    /// Fails when the connection is gone.
    pub fn check(&self, what: &str) -> Result<()> {
        match &*self.lost.borrow() {
            None => Ok(()),
            Some(why) => Err(Error::Lost {
                what: format!("{}: {what}", self.server),
                why: why.to_string(),
            }),
        }
    }

    /// Waits until the connection is gone and says why. Does not borrow the session.
    pub fn lost(&self) -> impl Future<Output = Arc<str>> + Send + 'static {
        let mut lost = self.lost.clone();
        async move {
            match lost.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or_else(|| "it was closed".into()),
                Err(_) => "it was closed".into(),
            }
        }
    }

    /// Asks the server to stop what this session is doing; best effort.
    pub async fn cancel(&self) {
        let Reach {
            place,
            tls,
            mode,
            timing,
        } = &self.reach;
        let ways = match tls {
            Some(tls) => ways(*mode, tls),
            None => vec![Way::Plain],
        };
        for way in ways {
            if let Ok(stream) = reach(place, way, *timing, &Tap::default()).await {
                let _ = self.client.cancel_token().cancel_query_raw(stream, Through).await;
                return;
            }
        }
    }

    /// `server_version_num`.
    pub async fn version(&self) -> Result<u32> {
        let row = self
            .client
            .query_one("SELECT pg_catalog.current_setting('server_version_num')::int4", &[])
            .await
            .map_err(|e| self.error("server version", &e))?;
        Ok(u32::try_from(row.get::<_, i32>(0)).unwrap_or(0))
    }
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Without this the task would first wait for the answer of a statement nobody reads.
        self.task.abort();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({})", self.server)
    }
}

/// The ways of libpq's modes, in their order. Where TLS is only preferred, a server that has none is no failure at all.
fn ways(mode: Mode, tls: &MakeRustlsConnect) -> Vec<Way<'_>> {
    match mode {
        Mode::Disable => vec![Way::Plain],
        Mode::Allow => vec![Way::Plain, Way::Tls(tls)],
        Mode::Prefer => vec![Way::MayTls(tls), Way::Plain],
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => vec![Way::Tls(tls)],
    }
}

/// Whether the next way may succeed where this one failed: the handshake did, or pg_hba.conf has no line for it.
fn may_go_the_other_way(error: &Failed) -> bool {
    match error.driver().and_then(tokio_postgres::Error::as_db_error) {
        Some(db) => *db.code() == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        None => tls::explain(error).is_some(),
    }
}

/// Connects, and watches the connection until it ends.
async fn start(
    config: &Config,
    place: &Place,
    way: Way<'_>,
    timing: Timing,
    tap: &Tap,
    tell: watch::Sender<Option<Arc<str>>>,
) -> Result<(Client, JoinHandle<()>), Failed> {
    let stream = reach(place, way, timing, tap).await?;
    let (client, driver) = reach::in_time(timing, async { Ok(config.connect_raw(stream, Through).await?) }).await?;
    let task = tokio::spawn(async move {
        let why: Arc<str> = match driver.await {
            Ok(()) => "it was closed".into(),
            Err(e) => match e.as_db_error() {
                Some(db) => db.message().into(),
                None => chain(&e).into(),
            },
        };
        let _ = tell.send(Some(why));
    });
    Ok((client, task))
}

fn connect_error(server: &str, connection: &Connection, error: &Failed) -> Error {
    let (why, hint) = match error.driver().and_then(tokio_postgres::Error::as_db_error) {
        Some(db) => {
            let hint = match db.code().code() {
                "28000" if db.message().contains("valid client certificate") => {
                    "name a certificate that the server's ssl_ca_file signed, and its key, in `sslcert` and `sslkey`"
                }
                "28P01" | "28000" => "check user, password, `sslmode` and pg_hba.conf",
                "3D000" => "check the database's name",
                "53300" => "the server has no connection left: raise max_connections or lower `jobs`",
                "57P03" => "the server is starting or stopping: try again",
                _ => "check the connection in the pipeline",
            };
            (db.message().to_owned(), hint.to_owned())
        }
        None => tls::explain(error).unwrap_or_else(|| {
            (
                chain(error),
                format!(
                    "check that the server runs and that role `{}` may connect",
                    connection.user()
                ),
            )
        }),
    };
    Error::Connect {
        server: server.to_owned(),
        why,
        hint,
    }
}
