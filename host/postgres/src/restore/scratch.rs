//! Databases under construction: made, marked, found again, dropped.
//!
//! A scratch database carries a comment that says what it is, and its maker holds an advisory lock under its name for
//! as long as it lives. A kill takes the lock away and leaves the comment: that is a leftover, and anybody may drop it,
//! or take it up where it was left.

use super::journal::{self, Journal, SCHEMA, Settled};
use super::lock::{alive, locked, settled, unlock};
use super::plan::{RestoreOptions, RestorePlan};
use crate::connection::{Connection, Session};
use crate::dump::DatabaseFacts;
use crate::error::{Error, Result};
use crate::names::{quote_ident, quote_literal};
use serde::{Deserialize, Serialize};

/// What a scratch database is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To be swapped in.
    Restore,
    /// To be looked at and dropped.
    Drill,
}

const MARK: &str = "essrun scratch ";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Marker {
    pub run: String,
    pub purpose: Purpose,
    /// The name it is to have in the end.
    pub of: String,
    /// Which database of the backup it is, as `component/label`.
    #[serde(default)]
    pub what: Option<String>,
    pub complete: bool,
    /// What is to be known when a complete one is taken up again.
    #[serde(default)]
    pub settled: Option<Settled>,
}

impl Marker {
    pub fn text(&self) -> String {
        format!("{MARK}{}", serde_json::to_string(self).unwrap_or_default())
    }

    pub fn read(comment: &str) -> Option<Marker> {
        serde_json::from_str(comment.strip_prefix(MARK)?).ok()
    }
}

/// A scratch database and the session that vouches for it.
#[derive(Debug)]
pub(super) struct Scratch {
    name: String,
    connection: Connection,
    keeper: Session,
    marker: Marker,
}

/// What a database's comment says, if it has one; `None`: there is no such database.
pub(super) async fn comment(session: &Session, database: &str) -> Result<Option<Option<String>>> {
    let row = session
        .query_opt(
            "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database \
             WHERE datname = $1::text::name",
            &[&database],
        )
        .await
        .map_err(|e| session.error("look for a database", &e))?;
    Ok(row.map(|row| row.get(0)))
}

fn busy(name: &str) -> Error {
    Error::refused(
        format!("scratch database `{name}`"),
        "another restore of the same backup is at work",
        "wait for it",
    )
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
        settled(&keeper, Some(&name)).await?;
        // Advisory locks are the maintenance database's own; the name's lock is looked for in all of them.
        if alive(&keeper, &name).await? || !locked(&keeper, &name).await? {
            return Err(busy(&name));
        }
        let version = keeper.version().await?;
        let create = create_statement(&name, facts, owner, version);
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
        settled(&keeper, Some(&name)).await?;
        if alive(&keeper, &name).await? || !locked(&keeper, &name).await? {
            return Err(busy(&name));
        }
        // Looked at only now that it is ours: a killed maker's last statement may have made or marked it just before.
        let Some(mark) = comment(&keeper, &name).await? else {
            unlock(&keeper, &name).await?;
            return Ok(None);
        };
        let Some(marker) = mark.as_deref().and_then(Marker::read) else {
            // Killed between making and marking: nothing is in it.
            if mark.is_none() && as_made(&target.with_database(&name)).await? {
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

    /// The run that makes it, and which database of the backup it is.
    pub fn of(&self) -> (&str, &str) {
        (&self.marker.run, self.marker.what.as_deref().unwrap_or_default())
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
    pub async fn settle(&mut self) -> Result<()> {
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

    /// The session that vouches for it.
    pub fn keeper(&self) -> &Session {
        &self.keeper
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    pub async fn drop_database(&self) -> Result<()> {
        drop_database(&self.keeper, &self.name).await
    }
}

/// Makes a database as the recorded one was made. What was recorded comes from a backup, so none of it is but a literal,
/// a name or a choice.
pub(super) fn create_statement(name: &str, facts: &DatabaseFacts, owner: &str, version: u32) -> String {
    let mut create = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {} OWNER {}",
        quote_ident(name),
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
    create
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

/// Whether a database is as it was made: no schema, relation, function, type, extension or large object was added.
pub(super) async fn as_made(connection: &Connection) -> Result<bool> {
    let session = Session::open(connection).await?;
    let row = session
        .query_one(
            "WITH theirs AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema') \
             SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN theirs t ON t.oid = n.oid WHERE n.nspname <> 'public') \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN theirs t ON t.oid = c.relnamespace) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN theirs t ON t.oid = p.pronamespace) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_type y JOIN theirs t ON t.oid = y.typnamespace) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_operator o JOIN theirs t ON t.oid = o.oprnamespace) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname <> 'plpgsql') \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)",
            &[],
        )
        .await
        .map_err(|e| session.error("look whether the database is empty", &e))?;
    Ok(row.get(0))
}

/// Drops a database with whoever is connected to it. WITH (FORCE) is refused to a role that is no superuser when an
/// autovacuum worker is at work there, which belongs to a superuser; without FORCE the server sends such workers away by
/// itself, but leaves the sessions to us.
pub(super) async fn drop_database(admin: &Session, name: &str) -> Result<()> {
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
