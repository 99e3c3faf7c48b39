//! What of a restore is done: rows in the scratch database itself, each written by the transaction that did the work,
//! so that neither a kill nor a crash of the server can part the two.
//!
//! The journal says what need not be done again, never that it is right: rows are read back and compared with the
//! backup, and the definitions with those of an empty database made from the same backup ([`super::proof`]). When
//! everything is in, the journal is dropped and what must be known of it goes into the mark of the scratch database.

use crate::connection::Session;
use crate::error::{Error, Result};
use crate::names::{TableName, quote_ident, quote_literal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Our schema in the scratch database; it is gone before anybody verifies.
pub(super) const SCHEMA: &str = "essrun_restore";

/// What the restore was made for, by name: backup, target, plan. A resume must be for the same.
pub type Origin = BTreeMap<String, String>;

/// A step, as the journal names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step(String);

impl Step {
    pub fn definitions() -> Step {
        Step("definitions".into())
    }

    pub fn rows(table: &TableName) -> Step {
        Step(format!("rows {}", hash(&table.quoted())))
    }

    /// A statement that makes an index or constraint of a table.
    pub fn of_table(table: &TableName, sql: &str) -> Step {
        Step(format!("table {} {}", hash(&table.quoted()), hash(sql)))
    }

    /// The statement at this place of what comes after all rows.
    pub fn later(place: usize, sql: &str) -> Step {
        Step(format!("{LATER}{place} {}", hash(sql)))
    }

    pub fn sql(statements: &[String]) -> Step {
        Step(format!("sql {}", hash(&statements.join("\0"))))
    }

    /// Writes it down; to be run in the transaction that did the work.
    pub fn note(&self) -> String {
        note(&self.0, "")
    }
}

const ORIGIN: &str = "origin";
const CHANGED: &str = "changed ";
const SHAPE: &str = "shape";
const LATER: &str = "later ";

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn note(step: &str, said: &str) -> String {
    format!(
        "INSERT INTO {SCHEMA}.done (step, said) VALUES ({}, {}) ON CONFLICT (step) DO UPDATE SET said = excluded.said",
        quote_literal(step),
        quote_literal(said)
    )
}

/// Says that SQL of the plan left this table with these contents.
pub(super) fn note_changed(table: &TableName, digest: &str) -> String {
    note(&format!("{CHANGED}{}", table.quoted()), digest)
}

/// Says that SQL of the plan left the definitions so.
pub(super) fn note_shape(digest: &str) -> String {
    note(SHAPE, digest)
}

/// What a journal holds; empty for a new restore.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal {
    pub origin: Origin,
    steps: BTreeSet<Step>,
    /// Contents of tables that SQL of the plan changed, by quoted name.
    pub changed: BTreeMap<String, String>,
    /// The definitions as SQL of the plan left them, where it could change any.
    pub shape: Option<String>,
    /// Everything is in: the journal itself is gone, and this is from the mark.
    pub settled: bool,
}

/// What the mark of a scratch database keeps of its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settled {
    pub origin: Origin,
    sql: BTreeSet<String>,
    changed: BTreeMap<String, String>,
    shape: Option<String>,
}

impl Journal {
    /// Makes an empty one. Sessions that work as `role` may write in it.
    pub async fn begin(session: &Session, role: Option<&str>, origin: &Origin) -> Result<()> {
        let text = serde_json::to_string(origin).unwrap_or_default();
        let mut sql = format!(
            "BEGIN; CREATE SCHEMA {SCHEMA}; CREATE TABLE {SCHEMA}.done (step text PRIMARY KEY, said text NOT NULL); {}",
            note(ORIGIN, &text)
        );
        if let Some(role) = role {
            let role = quote_ident(role);
            sql.push_str(&format!(
                "; GRANT USAGE ON SCHEMA {SCHEMA} TO {role}; GRANT SELECT, INSERT, UPDATE ON {SCHEMA}.done TO {role}"
            ));
        }
        sql.push_str("; COMMIT");
        session.run("begin the restore's journal", &sql).await
    }

    /// Reads it; `None` when the restore was stopped before all definitions were there.
    pub async fn read(session: &Session) -> Result<Option<Journal>> {
        let fail = |e: tokio_postgres::Error| session.error("read the restore's journal", &e);
        let there = session
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1::text::name AND c.relname = 'done' AND c.relkind = 'r')",
                &[&SCHEMA],
            )
            .await
            .map_err(fail)?;
        if !there.get::<_, bool>(0) {
            return Ok(None);
        }
        let rows = session
            .query(&format!("SELECT step::text, said::text FROM {SCHEMA}.done"), &[])
            .await
            .map_err(fail)?;
        Ok(Journal::of_rows(rows.iter().map(|row| (row.get(0), row.get(1)))))
    }

    /// What its rows say, a step and what is said of it each.
    pub fn of_rows(rows: impl IntoIterator<Item = (String, String)>) -> Option<Journal> {
        let mut journal = Journal::default();
        for (step, said) in rows {
            if step == ORIGIN {
                journal.origin = serde_json::from_str(&said).unwrap_or_default();
            } else if step == SHAPE {
                journal.shape = Some(said);
            } else if let Some(table) = step.strip_prefix(CHANGED) {
                journal.changed.insert(table.to_owned(), said);
            } else {
                journal.steps.insert(Step(step));
            }
        }
        journal.steps.contains(&Step::definitions()).then_some(journal)
    }

    pub fn of_mark(settled: &Settled) -> Journal {
        Journal {
            origin: settled.origin.clone(),
            steps: settled.sql.iter().cloned().map(Step).collect(),
            changed: settled.changed.clone(),
            shape: settled.shape.clone(),
            settled: true,
        }
    }

    pub fn settle(&self) -> Settled {
        Settled {
            origin: self.origin.clone(),
            sql: self
                .steps
                .iter()
                .filter(|s| s.0.starts_with("sql "))
                .map(|s| s.0.clone())
                .collect(),
            changed: self.changed.clone(),
            shape: self.shape.clone(),
        }
    }

    pub fn has(&self, step: &Step) -> bool {
        (self.settled && !step.0.starts_with("sql ")) || self.steps.contains(step)
    }

    /// Whether SQL of the plan ran.
    pub fn mended(&self) -> bool {
        self.steps.iter().any(|s| s.0.starts_with("sql "))
    }

    /// Whether foreign keys, triggers and the like are there, so that no table can be filled again by itself.
    pub fn past_rows(&self) -> bool {
        self.settled || self.mended() || self.steps.iter().any(|s| s.0.starts_with(LATER))
    }

    /// Refuses to go on for something else than what was begun.
    pub fn fits(&self, scratch: &str, now: &Origin) -> Result<()> {
        let names: BTreeSet<&String> = self.origin.keys().chain(now.keys()).collect();
        let differ: Vec<&str> = names
            .into_iter()
            .filter(|name| self.origin.get(*name) != now.get(*name))
            .map(String::as_str)
            .collect();
        if differ.is_empty() {
            return Ok(());
        }
        Err(Error::refused(
            format!("database `{scratch}`"),
            format!("it was begun for something else: {} changed since", differ.join(", ")),
            "go on with the backup, pipeline and targets of then, or start again without --resume, which removes it",
        ))
    }
}

/// Refused: the scratch database is not what its restore left.
pub(super) fn foreign(scratch: &str, why: impl std::fmt::Display) -> Error {
    Error::refused(
        format!("database `{scratch}`"),
        format!("somebody changed it since the restore into it was stopped: {why}"),
        "start again without --resume, which removes it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_plan_is_named() {
        let origin = |backup: &str| Origin::from([("backup".into(), backup.into()), ("target".into(), "x".into())]);
        let journal = Journal {
            origin: origin("a"),
            ..Journal::default()
        };
        journal.fits("s", &origin("a")).unwrap();
        let refused = journal.fits("s", &origin("b")).unwrap_err().to_string();
        assert!(refused.contains(": backup changed since"), "{refused}");
        let mut more = origin("a");
        more.insert("plan".into(), "p".into());
        assert!(journal.fits("s", &more).is_err() && Journal::default().fits("s", &origin("a")).is_err());
    }

    #[test]
    fn what_is_settled_is_all_there_but_for_sql() {
        let statements = vec!["UPDATE t SET a = 1".to_owned()];
        let mut journal = Journal::default();
        assert!(!journal.past_rows() && !journal.has(&Step::definitions()));
        journal.steps.insert(Step::sql(&statements));
        let settled = Journal::of_mark(&journal.settle());
        assert!(settled.has(&Step::sql(&statements)) && settled.has(&Step::definitions()) && settled.past_rows());
        assert!(!settled.has(&Step::sql(&["other".to_owned()])));
    }
}
