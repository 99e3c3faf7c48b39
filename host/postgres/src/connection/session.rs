//! One live connection, watched.
//!
//! The driver's connection half runs as a task; when it ends, [`Session::lost`] says so, which is how a backup learns
//! that the transaction holding its snapshot is gone. Every session is given the same settings, so that what is read
//! does not depend on how the role or the database happens to be set up.

use super::Connection;
use crate::error::{Error, Result, chain};
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

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
    server: String,
}

impl Session {
    pub async fn open(connection: &Connection) -> Result<Session> {
        let config = connection.config()?;
        let server = connection.describe();
        let (client, driver) = config
            .connect(NoTls)
            .await
            .map_err(|e| connect_error(&server, connection, &e))?;
        let (tell, lost) = watch::channel(None);
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
        let session = Session {
            client,
            task,
            lost,
            server,
        };
        session.run("session settings", SETTINGS).await?;
        Ok(session)
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
        let _ = self.client.cancel_token().cancel_query(NoTls).await;
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

fn connect_error(server: &str, connection: &Connection, error: &tokio_postgres::Error) -> Error {
    let (why, hint) = match error.as_db_error() {
        Some(db) => {
            let hint = match db.code().code() {
                "28P01" | "28000" => "check user, password and pg_hba.conf",
                "3D000" => "check the database's name",
                "53300" => "the server has no connection left: raise max_connections or lower `jobs`",
                "57P03" => "the server is starting or stopping: try again",
                _ => "check the connection in the pipeline",
            };
            (db.message().to_owned(), hint.to_owned())
        }
        None => (
            chain(error),
            format!(
                "check that the server runs and that role `{}` may connect",
                connection.user()
            ),
        ),
    };
    Error::Connect {
        server: server.to_owned(),
        why,
        hint,
    }
}
