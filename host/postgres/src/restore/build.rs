//! Builds the scratch database: definitions, then rows and indexes from one pool, then the rest.
//!
//! Each piece is written into the journal as it is done. A stopped restore is gone on with by doing the same again,
//! leaving out what the journal has; then what is there is proved against the backup. A restore stopped before its
//! definitions were complete has nothing worth keeping, and is begun anew.

use super::define::{Setup, admin_or, define, foreign_keys, is_setting, known_settings, partitioned, positions};
use super::definitions::{self, Filter, Later, PostData};
use super::journal::{self, Journal, Origin, Step};
use super::plan::{self, RestoreOptions, RestorePlan, Severity, read_small, table_artifacts};
use super::restored::{RestoreReport, Restored};
use super::scratch::Scratch;
use super::{load, pool, proof};
use crate::connection::{Connection, Session};
use crate::dump::{KIND_LARGE_OBJECTS, LARGE_OBJECT_RIGHTS, TableMeta};
use crate::error::{Error, Result};
use crate::names::TableName;
use crate::sqltext::Statement;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, Progress};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

/// Builds the scratch database, or goes on building it. On an error it is dropped, unless what was done is to be kept.
pub async fn execute(
    reader: Arc<dyn BackupReader>,
    plan: &RestorePlan,
    target: &Connection,
    options: &RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Restored> {
    if let Some(finding) = plan.findings.iter().find(|f| f.severity == Severity::Error) {
        return Err(Error::refused(
            format!("restore of {} into {}", plan.prefix, plan.target),
            finding.message.clone(),
            finding.remedy.clone(),
        ));
    }
    if let Some(since) = &plan.in_service {
        return Err(Error::refused(
            format!("restore of {} into {}", plan.prefix, plan.target),
            format!("it was put in service at {since}"),
            "leave it as it is, or restore without --resume",
        ));
    }
    let owner = options.owner.clone().unwrap_or_else(|| plan.facts.owner.clone());
    let origin = plan::origin(reader.as_ref(), (&plan.prefix, &plan.target), options, &owner)?;
    let taken = match options.resume {
        true => take_up(reader.as_ref(), plan, target, options, &origin).await?,
        false => None,
    };
    let (scratch, journal) = match taken {
        Some((scratch, journal)) => (scratch, Some(journal)),
        None => (Scratch::create(target, options, plan, &owner).await?, None),
    };
    let work = Fill {
        reader,
        plan,
        target,
        options,
        owner: &owner,
        origin: &origin,
        scratch: &scratch,
        progress,
    };
    match work.fill(journal).await {
        Ok(report) => Ok(Restored::new(scratch, report, plan.facts.clone(), owner)),
        Err(e) if options.keep_unfinished => {
            tracing::warn!("{}: what was done stays in database {}", plan.prefix, plan.scratch);
            Err(e)
        }
        Err(e) => {
            if let Err(left) = scratch.drop_database().await {
                tracing::warn!(error = %left, "the scratch database stays until leftovers are dropped");
            }
            Err(e)
        }
    }
}

/// What a stopped restore left, when it is of use.
async fn take_up(
    reader: &dyn BackupReader,
    plan: &RestorePlan,
    target: &Connection,
    options: &RestoreOptions,
    origin: &Origin,
) -> Result<Option<(Scratch, Journal)>> {
    let Some(scratch) = Scratch::take_up(target, options, plan).await? else {
        return Ok(None);
    };
    let journal = match scratch.settled() {
        Some(settled) => Some(Journal::of_mark(settled)),
        None => Journal::read(&Session::open(scratch.connection()).await?).await?,
    };
    let mut why = "it was stopped before its definitions were complete";
    if let Some(journal) = journal {
        journal.fits(scratch.name(), origin)?;
        // Ours cannot be told from the rows that the extension's own script made.
        let mixed = table_artifacts(reader, &plan.prefix)?.into_iter().any(|(_, meta)| {
            let rows = Step::rows(&TableName::new(&meta.schema, &meta.table));
            meta.of_extension && meta.rows > 0 && journal.has(&rows)
        });
        if !mixed {
            return Ok(Some((scratch, journal)));
        }
        why = "it holds tables of extensions, whose rows cannot be proved";
    }
    tracing::info!("{}: the restore that was stopped is begun anew: {why}", plan.prefix);
    scratch.give_up().await?;
    Ok(None)
}

/// One restore at work.
struct Fill<'a> {
    reader: Arc<dyn BackupReader>,
    plan: &'a RestorePlan,
    target: &'a Connection,
    options: &'a RestoreOptions,
    owner: &'a str,
    origin: &'a Origin,
    scratch: &'a Scratch,
    progress: Arc<dyn Progress>,
}

/// What the definitions become.
struct Definitions {
    pre: Vec<Statement>,
    post: PostData,
}

impl Fill<'_> {
    fn setup(&self, scratch: &Scratch) -> Setup {
        Setup {
            connection: scratch.connection().clone(),
            settings: format!(
                "SET synchronous_commit = off; SET maintenance_work_mem = '{}MB'; SET check_function_bodies = off; \
                 SET max_parallel_maintenance_workers = 0",
                self.options.index_memory_mib.clamp(1, 16 << 10)
            ),
            role: self.options.owner.clone(),
        }
    }

    async fn small(&self, rest: &str) -> Result<Vec<u8>> {
        let name = ArtifactName::new(format!("{}/{rest}", self.plan.prefix))?;
        read_small(self.reader.as_ref(), &name).await
    }

    /// What of the definitions is left out, with the settings that the server knows.
    fn filter<'a>(&self, settings: &'a HashSet<String>) -> Filter<'a> {
        Filter {
            owners: self.options.owner.is_none(),
            privileges: self.options.owner.is_none() && !self.options.no_privileges,
            settings,
        }
    }

    async fn definitions(&self, session: &Session, tables: &HashSet<TableName>) -> Result<Definitions> {
        let known = known_settings(session).await?;
        let filter = self.filter(&known);
        let pre = definitions::script("ddl-pre-data", &self.small("ddl-pre-data").await?, &filter)?;
        let post = definitions::script("ddl-post-data", &self.small("ddl-post-data").await?, &filter)?;
        Ok(Definitions {
            pre,
            post: definitions::post_data(post, tables),
        })
    }

    async fn fill(&self, journal: Option<Journal>) -> Result<RestoreReport> {
        let began = Instant::now();
        let mut phases = Vec::new();
        let mut phase = |name: &str, since: Instant| phases.push((name.to_owned(), since.elapsed().as_secs_f64()));
        let setup = self.setup(self.scratch);
        let resumed = journal.is_some();
        let reader = &self.reader;

        let since = Instant::now();
        let records = table_artifacts(reader.as_ref(), &self.plan.prefix)?;
        let tables: HashSet<TableName> = records
            .iter()
            .map(|(_, m)| TableName::new(&m.schema, &m.table))
            .collect();
        if journal.is_none() {
            let own = Session::open(&setup.connection).await?;
            Journal::begin(&own, setup.role.as_deref(), self.origin).await?;
        }
        let main = setup.session().await?;
        let defined = self.definitions(&main, &tables).await?;
        let post = &defined.post;
        match &journal {
            None => {
                define(&main, &defined.pre, &setup).await?;
                main.run("note in the journal", &Step::definitions().note()).await?;
            }
            Some(journal) => self.nothing_else(&main, journal, &tables).await?,
        }
        let journal = Arc::new(journal.unwrap_or_default());
        phase("definitions", since);

        let since = Instant::now();
        let setup = setup.with(post);
        let jobs = self.options.jobs.clamp(1, 64);
        let records: Vec<(ArtifactRecord, TableMeta)> = records.into_iter().map(|(r, m)| (r.clone(), m)).collect();
        let mut sessions = Vec::new();
        for _ in 0..jobs {
            sessions.push(setup.session().await?);
        }
        let work = pool::Work {
            reader,
            progress: &self.progress,
            post,
            journal: &journal,
            resumed,
            scratch: self.scratch.name(),
        };
        let done = pool::run(sessions, records, work).await?;
        phase("rows-and-indexes", since);

        let since = Instant::now();
        // Once SQL of the plan ran, these are as it left them.
        if !journal.mended() {
            positions(&main, &self.small("sequences").await?).await?;
            if let Some(record) = reader
                .artifact(&ArtifactName::new(format!("{}/large-objects", self.plan.prefix))?)
                .filter(|r| r.kind == KIND_LARGE_OBJECTS)
            {
                let rights = ArtifactName::new(format!("{}/{LARGE_OBJECT_RIGHTS}", self.plan.prefix))?;
                let all = reader.artifact(&rights).is_some();
                load::large_objects(&main, reader.as_ref(), record, (resumed, all), self.progress.as_ref()).await?;
                if all {
                    let none = HashSet::new();
                    let bytes = self.small(LARGE_OBJECT_RIGHTS).await?;
                    load::large_object_rights(&main, &bytes, &self.filter(&none)).await?;
                }
            }
        }
        main.run("session settings", &setup.settings).await?;
        for (place, later) in post.later.iter().enumerate() {
            match later {
                Later::One(sql) if is_setting(sql) => admin_or(&main, sql, &setup, None).await?,
                Later::One(sql) => {
                    let step = Step::later(place, sql);
                    if !journal.has(&step) {
                        admin_or(&main, sql, &setup, Some(&step)).await?;
                    }
                }
                Later::ForeignKeys(keys) => foreign_keys(&setup, place, keys, &journal, jobs).await?,
            }
        }
        partitioned(&main).await?;
        phase("constraints-and-rest", since);

        if resumed {
            let since = Instant::now();
            self.prove_definitions(&main, &journal, &defined).await?;
            phase("proof", since);
        }
        Ok(RestoreReport {
            database: self.plan.database.clone(),
            scratch: self.plan.scratch.clone(),
            tables: tables.len() as u64,
            rows: done.rows,
            bytes: done.bytes,
            kept_tables: done.kept,
            indexes: done.indexes,
            seconds: began.elapsed().as_secs_f64(),
            phases,
        })
    }

    /// Tables that get no rows from the backup have none, but for those that SQL of the plan filled.
    async fn nothing_else(&self, session: &Session, journal: &Journal, tables: &HashSet<TableName>) -> Result<()> {
        let recorded: BTreeSet<TableName> = tables.iter().cloned().collect();
        for table in proof::unexpected(session, &recorded).await? {
            let ours = match journal.changed.get(&table.quoted()) {
                Some(digest) => &proof::digest(session, &table).await? == digest,
                None => false,
            };
            if !ours {
                let why = format!("{table} has rows, and none in the backup");
                return Err(journal::foreign(self.scratch.name(), why));
            }
        }
        Ok(())
    }

    /// The definitions are those of an empty database made from the same backup.
    async fn prove_definitions(&self, session: &Session, journal: &Journal, defined: &Definitions) -> Result<()> {
        let here = proof::shape(session).await?;
        if let Some(digest) = &journal.shape {
            return match &proof::digest_of(&here) == digest {
                true => Ok(()),
                false => Err(journal::foreign(self.scratch.name(), "its definitions differ")),
            };
        }
        let beside = self
            .scratch
            .create_beside(self.target, self.options, self.plan, self.owner)
            .await?;
        let made = self.empty(&beside, defined).await;
        beside.drop_database().await?;
        match proof::differences(&here, &made?) {
            differ if differ.is_empty() => Ok(()),
            differ => Err(journal::foreign(
                self.scratch.name(),
                format!("its definitions differ: {}", differ.join(", ")),
            )),
        }
    }

    /// Makes everything but rows, and looks at it.
    async fn empty(&self, beside: &Scratch, defined: &Definitions) -> Result<proof::Shape> {
        let setup = self.setup(beside);
        let session = setup.session().await?;
        define(&session, &defined.pre, &setup).await?;
        let setup = setup.with(&defined.post);
        session.run("session settings", &setup.settings).await?;
        for after in defined.post.after.values() {
            for build in after.builds.iter().chain(&after.finish) {
                if let Some(tablespace) = &build.tablespace {
                    session.run("default_tablespace", tablespace).await?;
                }
                session.run("index or constraint", &build.sql).await?;
            }
        }
        for later in &defined.post.later {
            match later {
                Later::One(sql) => admin_or(&session, sql, &setup, None).await?,
                Later::ForeignKeys(keys) => {
                    for (sql, _) in keys {
                        session.run("foreign key", sql).await?;
                    }
                }
            }
        }
        proof::shape(&session).await
    }
}
