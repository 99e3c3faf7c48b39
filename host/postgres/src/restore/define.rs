//! Runs the definitions of a backup: each as the role that may make it, those that follow the rows with their note in the
//! journal, foreign keys beside each other.
//!
//! What is run was read and filtered by `definitions`; nothing here decides what a database gets.

use super::definitions::{self, Filter, PostData};
use super::journal::{Journal, Step};
use crate::connection::{Connection, Session};
use crate::error::{Error, Result};
use crate::names::{TableName, quote_ident};
use crate::sqltext::Statement;
use std::collections::HashSet;
use tokio::task::JoinSet;

/// How sessions of this restore are set up.
#[derive(Clone)]
pub(super) struct Setup {
    pub connection: Connection,
    pub settings: String,
    pub role: Option<String>,
}

impl Setup {
    /// With the settings at the head of what comes after the rows.
    pub fn with(self, post: &PostData) -> Setup {
        Setup {
            settings: std::iter::once(self.settings.as_str())
                .chain(post.settings.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("; "),
            ..self
        }
    }

    pub async fn session(&self) -> Result<Session> {
        let session = Session::open(&self.connection).await?;
        session.run("session settings", &self.settings).await?;
        if let Some(role) = &self.role {
            session.run("role", &format!("SET ROLE {}", quote_ident(role))).await?;
        }
        Ok(session)
    }
}

/// Settings hold for the session, so they are made again in each.
pub(super) fn is_setting(sql: &str) -> bool {
    sql.starts_with("SET ") || (sql.starts_with("SELECT") && sql.contains("pg_catalog.set_config("))
}

/// Settings this server knows; a newer `pg_dump` sets some that an older server does not.
pub(super) async fn known_settings(session: &Session) -> Result<HashSet<String>> {
    let rows = session
        .query("SELECT pg_catalog.lower(name) FROM pg_catalog.pg_settings", &[])
        .await
        .map_err(|e| session.error("settings of the server", &e))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// How many definitions go in one transaction: each locks what it makes until its end, and a server holds 6 400 locks
/// where nothing else is set (64 for each of 100 connections).
const TOGETHER: usize = 100;

/// What comes before the rows. Definitions that follow each other go together, in one transaction each time, as
/// `psql -1` would run them; where one fails they are run one by one, as `psql` would, and the failure tells which.
pub(super) async fn define(session: &Session, statements: &[Statement], setup: &Setup) -> Result<()> {
    let alone = |s: &Statement| setup.role.is_some() && by_admin(&s.sql);
    for run in statements.chunk_by(|a, b| !alone(a) && !alone(b)) {
        for some in run.chunks(TOGETHER) {
            let together: Vec<&str> = some.iter().map(|s| s.sql.as_str()).collect();
            // One message of several statements is one transaction.
            let all = together.join("\n;\n");
            if some.len() > 1 && session.run("definitions", &all).await.is_ok() {
                continue;
            }
            for s in some {
                admin_or(session, &s.sql, setup, None).await?;
            }
        }
    }
    Ok(())
}

/// Whether only the connecting role may make it, whoever is to own the rest.
fn by_admin(sql: &str) -> bool {
    let upper = sql.get(..40.min(sql.len())).unwrap_or(sql).to_ascii_uppercase();
    [
        "CREATE EXTENSION",
        "COMMENT ON EXTENSION",
        "CREATE EVENT TRIGGER",
        "CREATE LANGUAGE",
        "CREATE CAST",
    ]
    .iter()
    .any(|w| upper.starts_with(w))
}

/// Runs a definition; those only the connecting role may make are made by it, whoever is to own the rest. With a step
/// it is written into the journal by the same transaction.
pub(super) async fn admin_or(session: &Session, sql: &str, setup: &Setup, step: Option<&Step>) -> Result<()> {
    let what = || {
        let line: String = sql
            .chars()
            .take(100)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("definition `{line}`")
    };
    let (reset, set) = match &setup.role {
        Some(role) if by_admin(sql) => ("RESET ROLE".to_owned(), format!("SET ROLE {}", quote_ident(role))),
        _ => (String::new(), String::new()),
    };
    let whole = match step {
        // Alone, so that it runs outside of a transaction as `psql` would run it.
        None if reset.is_empty() => sql.to_owned(),
        None => {
            session.run("role", &reset).await?;
            session.run(&what(), sql).await?;
            return session.run("role", &set).await;
        }
        Some(step) => format!("BEGIN; {reset}; {sql}\n; {set}; {}; COMMIT", step.note()),
    };
    session.run(&what(), &whole).await
}

/// Positions of sequences: only calls of setval are accepted.
pub(super) async fn positions(session: &Session, script: &[u8]) -> Result<()> {
    let all = HashSet::new();
    let filter = Filter {
        owners: true,
        privileges: true,
        settings: &all,
    };
    let statements = definitions::script("sequences", script, &filter)?;
    for some in statements.chunks(100) {
        if some.iter().any(|s| !s.sql.starts_with("SELECT pg_catalog.setval(")) {
            return Err(Error::damaged(
                "sequences",
                "it holds something else than calls of setval",
            ));
        }
        let batch: Vec<&str> = some.iter().map(|s| s.sql.as_str()).collect();
        session.run("positions of sequences", &batch.join("; ")).await?;
    }
    Ok(())
}

/// Foreign keys beside each other, never two that share a table: they would wait for each other's locks.
pub(super) async fn foreign_keys(
    setup: &Setup,
    place: usize,
    keys: &[(String, HashSet<TableName>)],
    journal: &Journal,
    jobs: usize,
) -> Result<()> {
    let keys: Vec<&(String, HashSet<TableName>)> = keys
        .iter()
        .filter(|(sql, _)| !journal.has(&Step::later(place, sql)))
        .collect();
    let jobs = jobs.min(keys.len()).max(1);
    let mut sessions = Vec::new();
    for _ in 0..jobs {
        sessions.push(setup.session().await?);
    }
    let mut waiting: Vec<(String, HashSet<TableName>)> = keys
        .into_iter()
        .map(|(sql, tables)| {
            let note = Step::later(place, sql).note();
            (format!("BEGIN; {sql}\n; {note}; COMMIT"), tables.clone())
        })
        .collect();
    let mut running: JoinSet<(Result<()>, Session, HashSet<TableName>)> = JoinSet::new();
    let mut busy: HashSet<TableName> = HashSet::new();
    loop {
        while !sessions.is_empty() {
            let Some(at) = waiting.iter().position(|(_, tables)| tables.is_disjoint(&busy)) else {
                break;
            };
            let Some(session) = sessions.pop() else { break };
            let (sql, tables) = waiting.remove(at);
            busy.extend(tables.iter().cloned());
            running.spawn(async move {
                let mut result = session.run("foreign key", &sql).await;
                // Partitions are locked with their parents, which we do not see; the server resolves that by refusing one.
                for _ in 0..5 {
                    match &result {
                        Err(e) if e.code() == Some("40P01") => {
                            result = match session.run("foreign key", "ROLLBACK").await {
                                Ok(()) => session.run("foreign key", &sql).await,
                                lost => lost,
                            }
                        }
                        _ => break,
                    }
                }
                (result, session, tables)
            });
        }
        match running.join_next().await {
            None => break,
            Some(Err(e)) => {
                return Err(Error::Lost {
                    what: "a restore worker".to_owned(),
                    why: e.to_string(),
                });
            }
            Some(Ok((result, session, tables))) => {
                result?;
                busy.retain(|t| !tables.contains(t));
                sessions.push(session);
            }
        }
    }
    Ok(())
}

/// Statistics over partitioned tables as wholes, which nobody else gathers.
pub(super) async fn partitioned(session: &Session) -> Result<()> {
    let rows = session
        .query(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'p' AND NOT c.relispartition",
            &[],
        )
        .await
        .map_err(|e| session.error("list of partitioned tables", &e))?;
    for row in rows {
        session
            .run("ANALYZE", &format!("ANALYZE {}", row.get::<_, &str>(0)))
            .await?;
    }
    Ok(())
}
