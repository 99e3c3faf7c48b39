//! A database that was built and not yet swapped in: the plan's SQL is run in it, verify looks into it.

use super::journal::{self, Journal, SCHEMA, Step};
use super::proof;
use super::scratch::Scratch;
use super::service;
use crate::connection::{Connection, Session};
use crate::dump::DatabaseFacts;
use crate::error::{Error, Result};
use crate::inspect::Inspector;
use crate::names::{TableName, quote_ident};
use crate::sqltext;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A restore that got this far: all of the backup is in a scratch database, which nobody else may connect to yet.
#[derive(Debug)]
pub struct Restored {
    scratch: Scratch,
    report: RestoreReport,
    facts: DatabaseFacts,
    owner: String,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    pub database: String,
    pub scratch: String,
    pub tables: u64,
    pub rows: u64,
    pub bytes: u64,
    /// Of the tables, those that a stopped restore had loaded and that were not loaded again.
    #[serde(default)]
    pub kept_tables: u64,
    /// Built by this run.
    pub indexes: u64,
    pub seconds: f64,
    /// Seconds by phase: `definitions`, `rows-and-indexes`, `constraints-and-rest`.
    pub phases: Vec<(String, f64)>,
}

/// What a `run-sql` step may begin with.
const RUNNABLE: &[&str] = &[
    "SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "ALTER", "REFRESH", "ANALYZE",
];

impl Restored {
    pub(super) fn new(scratch: Scratch, report: RestoreReport, facts: DatabaseFacts, owner: String) -> Self {
        Restored {
            scratch,
            report,
            facts,
            owner,
        }
    }

    /// The name of the scratch database.
    pub fn scratch(&self) -> &str {
        self.scratch.name()
    }

    pub fn report(&self) -> &RestoreReport {
        &self.report
    }

    pub(super) fn facts(&self) -> &DatabaseFacts {
        &self.facts
    }

    /// What the database says of itself once it is in service.
    pub(super) fn mark_in_service(&self) -> service::Marker {
        let (run, what) = self.scratch.of();
        let origin = self.scratch.settled().map(|s| s.origin.clone()).unwrap_or_default();
        service::Marker::of(run, what, &origin)
    }

    pub(super) fn keeper(&self) -> &Session {
        self.scratch.keeper()
    }

    /// How the scratch database is reached.
    pub fn connection(&self) -> &Connection {
        self.scratch.connection()
    }

    /// Looks into the restored database, for verify.
    pub fn inspector(&self) -> Inspector {
        Inspector::new(self.scratch.connection().clone())
    }

    /// Runs statements in the restored database, as its owner, in one transaction. Each must be one statement that
    /// reads or changes data or definitions; what would end the transaction or change the role is refused. `false`:
    /// they ran before the restore was stopped, and were not run again.
    pub async fn run_sql(&self, statements: &[String]) -> Result<bool> {
        for sql in statements {
            let invalid = |why: &str| Error::Invalid(format!("a run-sql statement was refused: {why}"));
            sqltext::closed(sql).map_err(invalid)?;
            let parsed = sqltext::statements(&format!("{sql}\n;")).map_err(|why| invalid(&why))?;
            let word = parsed
                .first()
                .and_then(|s| s.words.first())
                .cloned()
                .unwrap_or_default();
            if !RUNNABLE.contains(&word.as_str()) {
                return Err(invalid(&format!("it must begin with one of {}", RUNNABLE.join(", "))));
            }
            let tokens = sqltext::Tokens::new(sql).flatten();
            if tokens
                .into_iter()
                .any(|t| sql.get(t.at).unwrap_or("").to_lowercase().contains("set_config"))
            {
                return Err(invalid("it names set_config"));
            }
        }
        let session = Session::open(self.scratch.connection()).await?;
        let step = Step::sql(statements);
        let known = match self.scratch.settled() {
            Some(settled) => Journal::of_mark(settled),
            None => Journal::read(&session)
                .await?
                .ok_or_else(|| journal::foreign(self.scratch.name(), "its journal is gone"))?,
        };
        if known.has(&step) {
            return Ok(false);
        }
        session.run("begin", "BEGIN").await?;
        let before = storage(&session).await?;
        let role = format!("SET LOCAL ROLE {}", quote_ident(&self.owner));
        session.run("role", &role).await?;
        for sql in statements {
            session
                .execute(sql.as_str(), &[])
                .await
                .map_err(|e| session.error("run-sql", &e))?;
        }
        session.run("role", "RESET ROLE").await?;
        let mut notes = vec![step.note()];
        for table in changed(&session, &before).await? {
            let digest = proof::digest(&session, &table).await?;
            notes.push(journal::note_changed(&table, &digest));
        }
        if statements
            .iter()
            .any(|sql| sql.trim_start().to_ascii_uppercase().starts_with("ALTER"))
        {
            let shape = proof::shape(&session).await?;
            notes.push(journal::note_shape(&proof::digest_of(&shape)));
        }
        if self.scratch.settled().is_none() {
            session.run("note in the journal", &notes.join("; ")).await?;
        }
        session.run("commit", "COMMIT").await?;
        Ok(true)
    }

    /// Ends the restore into the scratch database: what was kept to go on after a stop is put away. To be called when
    /// all statements ran and before anybody verifies; [`super::swap`] insists on it.
    pub async fn settle(&mut self) -> Result<()> {
        self.scratch.settle().await
    }

    /// Drops the scratch database.
    pub async fn drop_scratch(self) -> Result<()> {
        self.scratch.drop_database().await
    }
}

/// Where each table's rows are stored: another place after a TRUNCATE or a rewrite.
async fn storage(session: &Session) -> Result<HashMap<(String, String), i64>> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_relation_filenode(c.oid)::int8 \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
               AND n.nspname NOT IN ('information_schema', $1::text::name)",
            &[&SCHEMA],
        )
        .await
        .map_err(|e| session.error("list of tables", &e))?;
    Ok(rows.iter().map(|r| ((r.get(0), r.get(1)), r.get(2))).collect())
}

/// Tables whose rows the open transaction changed.
async fn changed(session: &Session, before: &HashMap<(String, String), i64>) -> Result<Vec<TableName>> {
    let rows = session
        .query(
            "SELECT schemaname::text, relname::text FROM pg_catalog.pg_stat_xact_user_tables \
             WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND schemaname <> $1::text::name",
            &[&SCHEMA],
        )
        .await
        .map_err(|e| session.error("look for changed tables", &e))?;
    let mut names: std::collections::BTreeSet<(String, String)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    let now = storage(session).await?;
    names.extend(
        now.iter()
            .filter(|(name, at)| before.get(name) != Some(at))
            .map(|(name, _)| name.clone()),
    );
    Ok(names
        .into_iter()
        .map(|(schema, name)| TableName::new(schema, name))
        .collect())
}
