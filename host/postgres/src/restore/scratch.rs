//! Databases under construction: made, marked, found again, dropped.
//!
//! A scratch database carries a comment that says what it is, and its maker holds an advisory lock under its name for
//! as long as it lives. A kill takes the lock away and leaves the comment: that is a leftover, and anybody may drop it,
//! or take it up where it was left.

use super::journal::{self, Journal, SCHEMA, Settled, Step};
use super::plan::{RestoreOptions, RestorePlan};
use super::proof;
use crate::connection::{Connection, Session};
use crate::dump::DatabaseFacts;
use crate::error::{Error, Result};
use crate::inspect::Inspector;
use crate::names::{TableName, quote_ident, quote_literal};
use crate::sqltext;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What a scratch database is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To be swapped in.
    Restore,
    /// To be looked at and dropped.
    Drill,
}

/// First half of our advisory locks' keys: "essr".
const LOCK_CLASS: i32 = 0x6573_7372;
const MARK: &str = "essrun scratch ";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Marker {
    run: String,
    purpose: Purpose,
    /// The name it is to have in the end.
    of: String,
    /// Which database of the backup it is, as `component/label`.
    #[serde(default)]
    what: Option<String>,
    complete: bool,
    /// What is to be known when a complete one is taken up again.
    #[serde(default)]
    settled: Option<Settled>,
}

impl Marker {
    fn text(&self) -> String {
        format!("{MARK}{}", serde_json::to_string(self).unwrap_or_default())
    }

    fn read(comment: &str) -> Option<Marker> {
        serde_json::from_str(comment.strip_prefix(MARK)?).ok()
    }
}

/// Second half of the lock's key, from the database's name.
fn lock_key(name: &str) -> i32 {
    let hash = blake3::hash(name.as_bytes());
    let mut four = [0u8; 4];
    for (to, from) in four.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    i32::from_be_bytes(four)
}

/// A scratch database and the session that vouches for it.
#[derive(Debug)]
pub(super) struct Scratch {
    name: String,
    connection: Connection,
    keeper: Session,
    marker: Marker,
}

async fn locked(keeper: &Session, name: &str) -> Result<bool> {
    let row = keeper
        .query_one(
            "SELECT pg_catalog.pg_try_advisory_lock($1, $2)",
            &[&LOCK_CLASS, &lock_key(name)],
        )
        .await
        .map_err(|e| keeper.error("scratch lock", &e))?;
    Ok(row.get(0))
}

fn busy(name: &str) -> Error {
    Error::refused(
        format!("scratch database `{name}`"),
        "another restore of the same backup is at work",
        "wait for it",
    )
}

/// Lifts the lock by [`locked`].
async fn unlock(keeper: &Session, name: &str) -> Result<()> {
    keeper
        .query_one(
            "SELECT pg_catalog.pg_advisory_unlock($1, $2)",
            &[&LOCK_CLASS, &lock_key(name)],
        )
        .await
        .map_err(|e| keeper.error("scratch lock", &e))?;
    Ok(())
}

impl Scratch {
    pub async fn create(
        target: &Connection,
        options: &RestoreOptions,
        plan: &RestorePlan,
        owner: &str,
    ) -> Result<Scratch> {
        let marker = Marker {
            run: options.run.clone(),
            purpose: options.purpose,
            of: options.database.clone(),
            what: Some(plan.prefix.clone()),
            complete: false,
            settled: None,
        };
        Self::make(target, options, &plan.scratch, marker, &plan.facts, owner).await
    }

    /// A database beside it, to be dropped soon; a kill leaves it as a drill's leftover.
    pub async fn create_beside(
        &self,
        target: &Connection,
        options: &RestoreOptions,
        plan: &RestorePlan,
        owner: &str,
    ) -> Result<Scratch> {
        let now = jiff::Timestamp::now().as_millisecond();
        let name = super::plan::scratch_name(&options.database, &format!("definitions-{now:x}"))?;
        let marker = Marker {
            purpose: Purpose::Drill,
            ..self.marker.clone()
        };
        Self::make(target, options, &name, marker, &plan.facts, owner).await
    }

    async fn make(
        target: &Connection,
        options: &RestoreOptions,
        name: &str,
        marker: Marker,
        facts: &DatabaseFacts,
        owner: &str,
    ) -> Result<Scratch> {
        let keeper = Session::open(&target.with_database(&options.maintenance_database)).await?;
        let name = name.to_owned();
        // Advisory locks are the maintenance database's own; the name's lock is looked for in all of them.
        if alive(&keeper, &name).await? || !locked(&keeper, &name).await? {
            return Err(busy(&name));
        }
        let version = keeper.version().await?;
        let mut create = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {} OWNER {}",
            quote_ident(&name),
            quote_literal(&facts.encoding),
            quote_literal(&facts.collate),
            quote_literal(&facts.ctype),
            quote_ident(owner)
        );
        if version >= 150_000 {
            let icu = quote_literal(facts.icu_locale.as_deref().unwrap_or(""));
            match facts.locale_provider.as_str() {
                "i" => create.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {icu}")),
                "b" => create.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {icu}")),
                _ => create.push_str(" LOCALE_PROVIDER libc"),
            }
        }
        keeper.run(&format!("create database `{name}`"), &create).await?;
        let scratch = Scratch {
            connection: target.with_database(&name),
            keeper,
            marker,
            name,
        };
        let prepare = async {
            scratch.mark(&scratch.marker).await?;
            // Half-built and unverified: nobody else connects before the swap gives the recorded rights.
            let shut = format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", quote_ident(&scratch.name));
            scratch.keeper.run("shut the scratch database", &shut).await
        };
        match prepare.await {
            Ok(()) => Ok(scratch),
            Err(e) => {
                let _ = scratch.drop_database().await;
                Err(e)
            }
        }
    }

    /// Takes up what a restore of the same backup into the same place left; `None` when there is nothing.
    pub async fn take_up(target: &Connection, options: &RestoreOptions, plan: &RestorePlan) -> Result<Option<Scratch>> {
        let keeper = Session::open(&target.with_database(&options.maintenance_database)).await?;
        let name = plan.scratch.clone();
        let comment = "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database \
             WHERE datname = $1::text::name";
        let there = keeper
            .query_opt(comment, &[&name])
            .await
            .map_err(|e| keeper.error("look for a stopped restore", &e))?;
        if there.is_none() {
            return Ok(None);
        }
        if alive(&keeper, &name).await? || !locked(&keeper, &name).await? {
            return Err(busy(&name));
        }
        // Read again: only now is it ours.
        let mark = keeper
            .query_opt(comment, &[&name])
            .await
            .map_err(|e| keeper.error("look for a stopped restore", &e))?
            .and_then(|row| row.get::<_, Option<String>>(0));
        let Some(marker) = mark.as_deref().and_then(Marker::read) else {
            // Killed between making and marking: nothing is in it.
            if mark.is_none() && relations(&target.with_database(&name)).await? == 0 {
                drop_database(&keeper, &name).await?;
                unlock(&keeper, &name).await?;
                return Ok(None);
            }
            return Err(journal::foreign(&name, "its mark is gone"));
        };
        let same = marker.run == options.run
            && marker.purpose == options.purpose
            && marker.of == options.database
            && marker.what.as_deref() == Some(plan.prefix.as_str());
        if !same {
            return Err(journal::foreign(&name, "its mark is of another restore"));
        }
        Ok(Some(Scratch {
            connection: target.with_database(&name),
            keeper,
            marker,
            name,
        }))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its mark says when everything was in it.
    pub fn settled(&self) -> Option<&Settled> {
        self.marker.settled.as_ref().filter(|_| self.marker.complete)
    }

    /// Drops it, so that another can be made under its name at once.
    pub async fn give_up(self) -> Result<()> {
        self.drop_database().await?;
        unlock(&self.keeper, &self.name).await
    }

    fn comment(&self, marker: &Marker) -> String {
        format!(
            "COMMENT ON DATABASE {} IS {}",
            quote_ident(&self.name),
            quote_literal(&marker.text())
        )
    }

    async fn mark(&self, marker: &Marker) -> Result<()> {
        self.keeper
            .run("mark the scratch database", &self.comment(marker))
            .await
    }

    /// Says that all of the backup is in it, and drops the journal, in one transaction.
    async fn settle(&mut self) -> Result<()> {
        if self.marker.complete {
            return Ok(());
        }
        let session = Session::open(&self.connection).await?;
        let journal = Journal::read(&session)
            .await?
            .ok_or_else(|| journal::foreign(&self.name, "its journal is gone"))?;
        let marker = Marker {
            complete: true,
            settled: Some(journal.settle()),
            ..self.marker.clone()
        };
        let settle = format!("BEGIN; DROP SCHEMA {SCHEMA} CASCADE; {}; COMMIT", self.comment(&marker));
        session.run("settle the scratch database", &settle).await?;
        self.marker = marker;
        Ok(())
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    pub async fn drop_database(&self) -> Result<()> {
        drop_database(&self.keeper, &self.name).await
    }
}

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
        &self.scratch.name
    }

    pub fn report(&self) -> &RestoreReport {
        &self.report
    }

    pub(super) fn facts(&self) -> &DatabaseFacts {
        &self.facts
    }

    pub(super) fn keeper(&self) -> &Session {
        &self.scratch.keeper
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
                .ok_or_else(|| journal::foreign(&self.scratch.name, "its journal is gone"))?,
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

/// How many relations of its own a database holds.
pub(super) async fn relations(connection: &Connection) -> Result<i64> {
    let session = Session::open(connection).await?;
    let row = session
        .query_one(
            "SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
             ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
               AND d.objid = c.oid AND d.deptype = 'e')",
            &[],
        )
        .await
        .map_err(|e| session.error("count relations", &e))?;
    Ok(row.get(0))
}

/// Whether the maker of a scratch database lives: somebody, in any database, holds the lock of its name.
async fn alive(session: &Session, name: &str) -> Result<bool> {
    let row = session
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted \
             AND classid::int8 = $1::int8 AND objid::int8 = $2::int8 AND pid <> pg_catalog.pg_backend_pid())",
            &[
                &i64::from(LOCK_CLASS),
                &i64::from(u32::from_ne_bytes(lock_key(name).to_ne_bytes())),
            ],
        )
        .await
        .map_err(|e| session.error("scratch lock", &e))?;
    Ok(row.get(0))
}

/// A scratch database whose maker is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    pub database: String,
    /// The run that made it, when it got to say so.
    pub run: Option<String>,
    pub purpose: Option<Purpose>,
    /// The name it was to have.
    pub of: Option<String>,
    /// Which database of the backup it is, as `component/label`.
    pub what: Option<String>,
    /// Whether the restore into it was finished.
    pub complete: bool,
}

/// Scratch databases on the target's server whose makers are gone.
pub async fn list_leftovers(target: &Connection, maintenance_database: &str) -> Result<Vec<Leftover>> {
    let admin = Session::open(&target.with_database(maintenance_database)).await?;
    let rows = admin
        .query(
            "SELECT datname::text, pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database \
             WHERE NOT datistemplate AND datallowconn ORDER BY datname",
            &[],
        )
        .await
        .map_err(|e| admin.error("list of databases", &e))?;
    let mut out = Vec::new();
    for row in rows {
        let (database, comment): (String, Option<String>) = (row.get(0), row.get(1));
        let marker = comment.as_deref().and_then(Marker::read);
        // Killed between making and marking: ours by name, unmarked, and nothing in it.
        let nameless = marker.is_none() && comment.is_none() && database.contains("_essrun_");
        if (marker.is_none() && !nameless) || alive(&admin, &database).await? {
            continue;
        }
        if nameless && !matches!(relations(&target.with_database(&database)).await, Ok(0)) {
            continue;
        }
        out.push(Leftover {
            database,
            run: marker.as_ref().map(|m| m.run.clone()),
            purpose: marker.as_ref().map(|m| m.purpose),
            of: marker.as_ref().map(|m| m.of.clone()),
            what: marker.as_ref().and_then(|m| m.what.clone()),
            complete: marker.is_some_and(|m| m.complete),
        });
    }
    Ok(out)
}

/// Drops one, after checking again that it is one.
pub async fn drop_leftover(target: &Connection, maintenance_database: &str, leftover: &Leftover) -> Result<()> {
    let admin = Session::open(&target.with_database(maintenance_database)).await?;
    let still = list_leftovers(target, maintenance_database).await?;
    if !still.contains(leftover) || !locked(&admin, &leftover.database).await? {
        return Err(Error::refused(
            format!("database `{}`", leftover.database),
            "it is no leftover any more",
            "list leftovers again",
        ));
    }
    let dropped = drop_database(&admin, &leftover.database).await;
    unlock(&admin, &leftover.database).await?;
    dropped
}

/// Drops a database with whoever is connected to it. WITH (FORCE) is refused to a role that is no superuser when an
/// autovacuum worker is at work there, which belongs to a superuser; without FORCE the server sends such workers away by
/// itself, but leaves the sessions to us.
async fn drop_database(admin: &Session, name: &str) -> Result<()> {
    const DENIED: &str = "42501";
    let what = format!("drop database `{name}`");
    let drop = format!("DROP DATABASE IF EXISTS {}", quote_ident(name));
    match admin.run(&what, &format!("{drop} WITH (FORCE)")).await {
        Err(e) if e.code() == Some(DENIED) => {
            let ours = format!(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
                 WHERE datname = {} AND usename = current_user AND backend_type = 'client backend'",
                quote_literal(name)
            );
            admin.run(&what, &ours).await?;
            admin.run(&what, &drop).await
        }
        other => other,
    }
}
