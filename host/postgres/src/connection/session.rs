//! One live connection, watched.
//!
//! The driver's connection half runs as a task; when it ends, [`Session::lost`] says so, which is how a backup learns
//! that the transaction holding its snapshot is gone. Every session is given the same settings, so that what is read
//! does not depend on how the role or the database happens to be set up.

use super::tls::{self, Mode};
use super::{Connection, Sockets};
use crate::error::{Error, Result, chain};
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, NoTls, Socket};
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
    /// How TLS is made; absent where none is to be made.
    tls: Option<MakeRustlsConnect>,
    server: String,
}

impl Session {
    pub async fn open(connection: &Connection) -> Result<Session> {
        let mut config = connection.config()?;
        let server = connection.describe();
        let settings = tls::Settings::of(&connection.params)?;
        let mode = match connection.sockets() {
            Sockets::All => Mode::Disable,
            Sockets::Some | Sockets::None => settings.mode,
        };
        let tls = match mode {
            Mode::Disable => None,
            _ => Some(settings.connector()?),
        };
        let (tell, lost) = watch::channel(None);
        let mut first = None;
        for (n, ssl) in tries(mode).iter().enumerate() {
            config.ssl_mode(*ssl);
            let opened = match &tls {
                Some(tls) if *ssl != SslMode::Disable => start(&config, tls.clone(), tell.clone()).await,
                _ => start(&config, NoTls, tell.clone()).await,
            };
            match opened {
                Ok((client, task)) => {
                    let session = Session {
                        client,
                        task,
                        lost,
                        tls,
                        server,
                    };
                    session.run("session settings", SETTINGS).await?;
                    return Ok(session);
                }
                Err(e) => {
                    let other_way = may_go_the_other_way(&e);
                    // The way asked for first is the one to speak of.
                    let error = first.get_or_insert(e);
                    if n + 1 == tries(mode).len() || !other_way {
                        return Err(connect_error(&server, connection, error));
                    }
                }
            }
        }
        // `tries` is never empty.
        Err(Error::Connect {
            server,
            why: "no way to connect was tried".to_owned(),
            hint: "check `sslmode`".to_owned(),
        })
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
        let token = self.client.cancel_token();
        let _ = match &self.tls {
            Some(tls) => token.cancel_query(tls.clone()).await,
            None => token.cancel_query(NoTls).await,
        };
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
fn tries(mode: Mode) -> &'static [SslMode] {
    match mode {
        Mode::Disable => &[SslMode::Disable],
        Mode::Allow => &[SslMode::Disable, SslMode::Require],
        Mode::Prefer => &[SslMode::Prefer, SslMode::Disable],
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => &[SslMode::Require],
    }
}

/// Whether the next way may succeed where this one failed: the handshake did, or pg_hba.conf has no line for it.
fn may_go_the_other_way(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        Some(db) => *db.code() == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        None => tls::explain(error).is_some(),
    }
}

/// Connects, and watches the connection until it ends.
async fn start<T>(
    config: &Config,
    tls: T,
    tell: watch::Sender<Option<Arc<str>>>,
) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, driver) = config.connect(tls).await?;
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

fn connect_error(server: &str, connection: &Connection, error: &tokio_postgres::Error) -> Error {
    let (why, hint) = match error.as_db_error() {
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
