//! Rows and what each table gets after them, from one pool of workers, the heaviest work first: a table's rows, then
//! its indexes beside each other, then what needs the table alone. The first failure stops everybody.
//!
//! Every piece is written into the journal by the transaction that did it. What a stopped restore did already is not
//! done again: rows are read back first, and loaded again where they are not the recorded ones.

use super::definitions::{After, Build, PostData};
use super::journal::{self, Journal, Step};
use super::{load, proof};
use crate::connection::Session;
use crate::dump::TableMeta;
use crate::error::{Error, Result};
use crate::names::TableName;
use essrun_artifact::{ArtifactRecord, BackupReader, Progress};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What the pool does, heaviest first.
enum Job {
    /// Are the rows there already?
    Check(usize),
    Load(usize),
    Build(usize, Build),
    Finish(usize),
}

struct Table {
    record: ArtifactRecord,
    meta: TableMeta,
    name: TableName,
    after: After,
}

struct Pool {
    tables: Vec<Table>,
    journal: Arc<Journal>,
    scratch: String,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// By weight, then age.
    ready: BTreeMap<(std::cmp::Reverse<u64>, u64), Job>,
    next: u64,
    /// Builds outstanding by table.
    building: HashMap<usize, usize>,
    running: usize,
    failed: bool,
    indexes: u64,
    kept: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub indexes: u64,
    pub rows: u64,
    pub bytes: u64,
    /// Tables with rows that were there already.
    pub kept: u64,
}

impl Pool {
    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, state: &mut State, table: usize, job: Job) {
        let weight = self.tables.get(table).map_or(0, |t| t.meta.bytes);
        state.next += 1;
        let age = state.next;
        state.ready.insert((std::cmp::Reverse(weight), age), job);
    }

    /// The next job; `None` when all is done or somebody failed.
    async fn take(&self) -> Option<Job> {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Registered before looking, so that no change is missed.
            changed.as_mut().enable();
            {
                let mut state = self.locked();
                if state.failed {
                    return None;
                }
                if let Some((_, job)) = state.ready.pop_first() {
                    state.running += 1;
                    return Some(job);
                }
                if state.running == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Puts what follows a job in line. `there`: the rows are in.
    fn done(&self, job: &Job, there: bool) {
        let mut state = self.locked();
        state.running -= 1;
        match job {
            Job::Check(t) if !there => self.push(&mut state, *t, Job::Load(*t)),
            Job::Check(t) | Job::Load(t) => {
                let builds: Vec<Build> = self.tables.get(*t).map_or_else(Vec::new, |table| {
                    let missing = |b: &&Build| !self.journal.has(&Step::of_table(&table.name, &b.sql));
                    table.after.builds.iter().filter(missing).cloned().collect()
                });
                if matches!(job, Job::Check(_)) && self.tables.get(*t).is_some_and(|table| table.meta.rows > 0) {
                    state.kept += 1;
                }
                state.indexes += builds.len() as u64;
                if builds.is_empty() {
                    self.push(&mut state, *t, Job::Finish(*t));
                } else {
                    state.building.insert(*t, builds.len());
                    for build in builds {
                        self.push(&mut state, *t, Job::Build(*t, build));
                    }
                }
            }
            Job::Build(t, _) => {
                let left = state.building.get_mut(t).map_or(0, |n| {
                    *n -= 1;
                    *n
                });
                if left == 0 {
                    self.push(&mut state, *t, Job::Finish(*t));
                }
            }
            Job::Finish(_) => {}
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn fail(&self) {
        self.locked().failed = true;
        self.changed.notify_waiters();
    }

    async fn worker(&self, session: &Session, reader: &dyn BackupReader, progress: &dyn Progress) -> Result<()> {
        while let Some(job) = self.take().await {
            let (Job::Check(t) | Job::Load(t) | Job::Build(t, _) | Job::Finish(t)) = &job;
            let mut there = true;
            if let Some(table) = self.tables.get(*t) {
                match &job {
                    Job::Check(_) => there = self.check(session, table, progress).await?,
                    Job::Load(_) => load::table(session, reader, &table.record, &table.meta, progress).await?,
                    Job::Build(_, build) => build_one(session, &table.name, build).await?,
                    Job::Finish(_) => self.finish(session, table).await?,
                }
            }
            self.done(&job, there);
        }
        Ok(())
    }

    async fn check(&self, session: &Session, table: &Table, progress: &dyn Progress) -> Result<bool> {
        // Its rows are the extension's own: with rows of ours the restore would have been begun anew.
        if table.meta.of_extension {
            return Ok(true);
        }
        let same = match self.journal.changed.get(&table.name.quoted()) {
            Some(digest) => &proof::digest(session, &table.name).await? == digest,
            None => proof::rows_as_recorded(session, &table.meta).await?,
        };
        let name = table.record.name.as_str();
        if same {
            if table.meta.rows > 0 {
                progress.kept(name, "loaded before; read back, and as the backup has it");
            }
            return Ok(true);
        }
        // With foreign keys and triggers in place a table cannot be filled again by itself.
        if self.journal.past_rows() || table.meta.rows == 0 {
            return Err(journal::foreign(
                &self.scratch,
                format!("the rows of {} are not those of the backup", table.name),
            ));
        }
        tracing::warn!("{name}: loaded before, but its rows are not those of the backup: it is loaded again");
        Ok(false)
    }

    async fn finish(&self, session: &Session, table: &Table) -> Result<()> {
        for step in &table.after.finish {
            if !self.journal.has(&Step::of_table(&table.name, &step.sql)) {
                build_one(session, &table.name, step).await?;
            }
        }
        if table.meta.rows > 0 && !self.journal.settled {
            session
                .run(
                    &format!("ANALYZE {}", table.name),
                    &format!("ANALYZE {}", table.name.quoted()),
                )
                .await?;
        }
        Ok(())
    }
}

/// What the pool works with.
pub(super) struct Work<'a> {
    pub reader: &'a Arc<dyn BackupReader>,
    pub progress: &'a Arc<dyn Progress>,
    pub post: &'a PostData,
    pub journal: &'a Arc<Journal>,
    pub resumed: bool,
    pub scratch: &'a str,
}

/// Loads all rows and builds what each table gets after them.
pub(super) async fn run(
    sessions: Vec<Session>,
    records: Vec<(ArtifactRecord, TableMeta)>,
    work: Work<'_>,
) -> Result<Done> {
    let tables: Vec<Table> = records
        .into_iter()
        .map(|(record, meta)| {
            let name = TableName::new(&meta.schema, &meta.table);
            let after = work.post.after.get(&name).cloned().unwrap_or_default();
            Table {
                record,
                meta,
                name,
                after,
            }
        })
        .collect();
    let mut done = Done {
        rows: tables.iter().map(|t| t.meta.rows).sum(),
        bytes: tables.iter().map(|t| t.meta.bytes).sum(),
        ..Done::default()
    };
    let pool = Arc::new(Pool {
        tables,
        journal: work.journal.clone(),
        scratch: work.scratch.to_owned(),
        state: Mutex::new(State::default()),
        changed: Notify::new(),
    });
    {
        let mut state = pool.locked();
        for (t, table) in pool.tables.iter().enumerate() {
            // One that is to stay empty is never written to, so somebody else may have.
            let there = pool.journal.has(&Step::rows(&table.name)) || (work.resumed && table.meta.rows == 0);
            let job = if there { Job::Check(t) } else { Job::Load(t) };
            pool.push(&mut state, t, job);
        }
    }
    let mut workers = JoinSet::new();
    for session in sessions {
        let (pool, reader, progress) = (pool.clone(), work.reader.clone(), work.progress.clone());
        workers.spawn(async move {
            let result = pool.worker(&session, reader.as_ref(), progress.as_ref()).await;
            if result.is_err() {
                pool.fail();
            }
            result
        });
    }
    while let Some(done) = workers.join_next().await {
        let done = done.map_err(|e| Error::Lost {
            what: "a restore worker".to_owned(),
            why: e.to_string(),
        });
        // Returning drops the set, and with it the others' sessions.
        done??;
    }
    let state = pool.locked();
    (done.indexes, done.kept) = (state.indexes, state.kept);
    Ok(done)
}

/// One message, since a small site has more indexes than it has rows in most of its tables.
async fn build_one(session: &Session, table: &TableName, build: &Build) -> Result<()> {
    let tablespace = build.tablespace.as_ref().map_or_else(String::new, |t| format!("{t}; "));
    let note = Step::of_table(table, &build.sql).note();
    session
        .run(
            &format!("index or constraint of {table}"),
            &format!("{tablespace}BEGIN; {}\n; {note}; COMMIT", build.sql),
        )
        .await
        .map_err(damaged_index)
}

/// The backup holds the rows as they were: a key that is there twice was there twice already, and the index that should
/// have kept it out was damaged.
fn damaged_index(error: Error) -> Error {
    match error {
        Error::Server { what, code, why } if code == "23505" => Error::Server {
            what,
            code,
            why: format!(
                "{why}; these rows were in the database when the backup was taken, so its index was damaged then: most often \
                 by an upgrade of the operating system whose C library sorts texts in another way. Remove the duplicates \
                 there, REINDEX, and take another backup; or restore an older one"
            ),
        },
        other => other,
    }
}
