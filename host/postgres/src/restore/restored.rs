//! A database that was built and not yet swapped in: the plan's SQL is run in it, verify looks into it.

use super::journal::{self, Journal, SCHEMA, Step};
use super::proof;
use super::scratch::Scratch;
use super::service;
use crate::connection::{Connection, Session};
use crate::dump::DatabaseFacts;
use crate::error::{Error, Result};
use crate::inspect::{Inspector, May, refuse_calls};
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
/// What may be altered: parts of this database. Databases and roles are the whole server's, the live database's too.
const ALTERABLE: &[&str] = &["TABLE", "SEQUENCE", "INDEX", "VIEW", "TYPE"];

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
    /// reads or changes data or definitions of this database; what would end the transaction, change the role or reach
    /// beyond the database is refused. `false`: they ran before the restore was stopped, and were not run again.
    pub async fn run_sql(&self, statements: &[String]) -> Result<bool> {
        for sql in statements {
            admissible(sql)?;
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
        for sql in statements {
            refuse_calls(&session, "a run-sql statement", sql, May::Mend).await?;
        }
        session.run("role", &role).await?;
        let ours = roles(&session).await?;
        for sql in statements {
            session
                .execute(sql.as_str(), &[])
                .await
                .map_err(|e| session.error("run-sql", &e))?;
            // A function of the database's own may have changed it. Returning ends the session, and with it the transaction.
            if roles(&session).await? != ours {
                return Err(Error::Invalid(
                    "a run-sql statement was refused: it changed the role it runs as; nothing of it was kept"
                        .to_owned(),
                ));
            }
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

/// Refuses what is not one statement of the kinds that a plan may run.
fn admissible(sql: &str) -> Result<()> {
    let invalid = |why: &str| Error::Invalid(format!("a run-sql statement was refused: {why}"));
    sqltext::closed(sql).map_err(invalid)?;
    let parsed = sqltext::statements(&format!("{sql}\n;")).map_err(|why| invalid(&why))?;
    let words = parsed.first().map(|s| s.words.as_slice()).unwrap_or_default();
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    if !RUNNABLE.contains(&word(0)) {
        return Err(invalid(&format!("it must begin with one of {}", RUNNABLE.join(", "))));
    }
    if word(0) == "ALTER" && !ALTERABLE.contains(&word(1)) {
        return Err(invalid(&format!("it may alter only {}", ALTERABLE.join(", "))));
    }
    let mut tokens = sqltext::Tokens::new(sql).flatten();
    if tokens.any(|t| sql.get(t.at).unwrap_or("").to_lowercase().contains("set_config")) {
        return Err(invalid("it names set_config"));
    }
    Ok(())
}

/// The role in force, the session's, and the one that was set.
async fn roles(session: &Session) -> Result<[String; 3]> {
    let row = session
        .query_one(
            "SELECT current_user::text, session_user::text, pg_catalog.current_setting('role')",
            &[],
        )
        .await
        .map_err(|e| session.error("role", &e))?;
    Ok([row.get(0), row.get(1), row.get(2)])
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
