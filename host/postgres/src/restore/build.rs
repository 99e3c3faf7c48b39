//! Builds the scratch database: definitions, then rows and indexes from one pool, then the rest.
//!
//! The pool takes the heaviest work first: a table's rows, then its indexes beside each other, then what needs the
//! table alone. The first failure stops everybody, and the scratch database is dropped.

use super::definitions::{self, After, Build, Filter, Later, PostData};
use super::load;
use super::plan::{RestoreOptions, RestorePlan, Severity, read_small, table_artifacts};
use super::scratch::{RestoreReport, Restored, Scratch};
use crate::connection::{Connection, Session};
use crate::dump::{KIND_LARGE_OBJECTS, TableMeta};
use crate::error::{Error, Result};
use crate::names::{TableName, quote_ident};
use crate::sqltext::Statement;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, Progress};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Builds the scratch database. On an error it is dropped again.
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
    let owner = options.owner.clone().unwrap_or_else(|| plan.facts.owner.clone());
    let scratch = Scratch::create(target, options, plan, &owner).await?;
    match fill(reader, plan, &scratch, options, progress).await {
        Ok(report) => {
            scratch.complete().await?;
            Ok(Restored::new(scratch, report, plan.facts.clone(), owner))
        }
        Err(e) => {
            if let Err(left) = scratch.drop_database().await {
                tracing::warn!(error = %left, "the scratch database stays until leftovers are dropped");
            }
            Err(e)
        }
    }
}

/// How sessions of this restore are set up.
#[derive(Clone)]
struct Setup {
    connection: Connection,
    settings: String,
    role: Option<String>,
}

impl Setup {
    async fn session(&self) -> Result<Session> {
        let session = Session::open(&self.connection).await?;
        session.run("session settings", &self.settings).await?;
        if let Some(role) = &self.role {
            session.run("role", &format!("SET ROLE {}", quote_ident(role))).await?;
        }
        Ok(session)
    }
}

async fn fill(
    reader: Arc<dyn BackupReader>,
    plan: &RestorePlan,
    scratch: &Scratch,
    options: &RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<RestoreReport> {
    let began = Instant::now();
    let mut phases = Vec::new();
    let mut phase = |name: &str, since: Instant| phases.push((name.to_owned(), since.elapsed().as_secs_f64()));
    let setup = Setup {
        connection: scratch.connection().clone(),
        settings: format!(
            "SET synchronous_commit = off; SET maintenance_work_mem = '{}MB'; SET check_function_bodies = off; \
             SET max_parallel_maintenance_workers = 0",
            options.index_memory_mib.clamp(1, 16 << 10)
        ),
        role: options.owner.clone(),
    };
    let name = |rest: &str| ArtifactName::new(format!("{}/{rest}", plan.prefix));
    let main = setup.session().await?;

    let since = Instant::now();
    let known = known_settings(&main).await?;
    let filter = Filter {
        owners: options.owner.is_none(),
        privileges: options.owner.is_none() && !options.no_privileges,
        settings: &known,
    };
    let pre = read_small(reader.as_ref(), &name("ddl-pre-data")?).await?;
    let pre = definitions::script("ddl-pre-data", &pre, &filter)?;
    define(&main, &pre, &setup).await?;
    let records = table_artifacts(reader.as_ref(), &plan.prefix)?;
    let tables: HashSet<TableName> = records
        .iter()
        .map(|(_, m)| TableName::new(&m.schema, &m.table))
        .collect();
    let post = read_small(reader.as_ref(), &name("ddl-post-data")?).await?;
    let post = definitions::post_data(definitions::script("ddl-post-data", &post, &filter)?, &tables);
    phase("definitions", since);

    let since = Instant::now();
    let setup = Setup {
        settings: std::iter::once(setup.settings.as_str())
            .chain(post.settings.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join("; "),
        ..setup
    };
    let jobs = options.jobs.clamp(1, 64);
    let records: Vec<(ArtifactRecord, TableMeta)> = records.into_iter().map(|(r, m)| (r.clone(), m)).collect();
    let (indexes, rows, bytes) = pool(&setup, &reader, records, &post, jobs, &progress).await?;
    phase("rows-and-indexes", since);

    let since = Instant::now();
    positions(&main, &read_small(reader.as_ref(), &name("sequences")?).await?).await?;
    if let Some(record) = reader
        .artifact(&name("large-objects")?)
        .filter(|r| r.kind == KIND_LARGE_OBJECTS)
    {
        load::large_objects(&main, reader.as_ref(), record, progress.as_ref()).await?;
    }
    main.run("session settings", &setup.settings).await?;
    for later in &post.later {
        match later {
            Later::One(sql) => admin_or(&main, sql, &setup).await?,
            Later::ForeignKeys(keys) => foreign_keys(&setup, keys, jobs).await?,
        }
    }
    partitioned(&main).await?;
    phase("constraints-and-rest", since);
    Ok(RestoreReport {
        database: plan.database.clone(),
        scratch: plan.scratch.clone(),
        tables: tables.len() as u64,
        rows,
        bytes,
        indexes,
        seconds: began.elapsed().as_secs_f64(),
        phases,
    })
}

/// Settings this server knows; a newer `pg_dump` sets some that an older server does not.
async fn known_settings(session: &Session) -> Result<HashSet<String>> {
    let rows = session
        .query("SELECT pg_catalog.lower(name) FROM pg_catalog.pg_settings", &[])
        .await
        .map_err(|e| session.error("settings of the server", &e))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

async fn define(session: &Session, statements: &[Statement], setup: &Setup) -> Result<()> {
    for s in statements {
        admin_or(session, &s.sql, setup).await?;
    }
    Ok(())
}

/// Runs a definition; those only the connecting role may make are made by it, whoever is to own the rest.
async fn admin_or(session: &Session, sql: &str, setup: &Setup) -> Result<()> {
    let what = || {
        let line: String = sql
            .chars()
            .take(100)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("definition `{line}`")
    };
    let upper = sql.get(..40.min(sql.len())).unwrap_or(sql).to_ascii_uppercase();
    let admins = [
        "CREATE EXTENSION",
        "COMMENT ON EXTENSION",
        "CREATE EVENT TRIGGER",
        "CREATE LANGUAGE",
        "CREATE CAST",
    ]
    .iter()
    .any(|w| upper.starts_with(w));
    match &setup.role {
        Some(role) if admins => {
            session.run("role", "RESET ROLE").await?;
            session.run(&what(), sql).await?;
            session.run("role", &format!("SET ROLE {}", quote_ident(role))).await
        }
        _ => session.run(&what(), sql).await,
    }
}

/// What the pool does, heaviest first.
enum Job {
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

    fn done(&self, job: &Job) {
        let mut state = self.locked();
        state.running -= 1;
        match job {
            Job::Load(t) => {
                let builds = self
                    .tables
                    .get(*t)
                    .map(|table| table.after.builds.clone())
                    .unwrap_or_default();
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
}

/// Loads all rows and builds what each table gets after them. Gives (indexes, rows, bytes).
async fn pool(
    setup: &Setup,
    reader: &Arc<dyn BackupReader>,
    records: Vec<(ArtifactRecord, TableMeta)>,
    post: &PostData,
    jobs: usize,
    progress: &Arc<dyn Progress>,
) -> Result<(u64, u64, u64)> {
    let tables: Vec<Table> = records
        .into_iter()
        .map(|(record, meta)| {
            let name = TableName::new(&meta.schema, &meta.table);
            let after = post.after.get(&name).cloned().unwrap_or_default();
            Table {
                record,
                meta,
                name,
                after,
            }
        })
        .collect();
    let indexes = tables.iter().map(|t| t.after.builds.len() as u64).sum();
    let rows = tables.iter().map(|t| t.meta.rows).sum();
    let bytes = tables.iter().map(|t| t.meta.bytes).sum();
    let pool = Arc::new(Pool {
        tables,
        state: Mutex::new(State::default()),
        changed: Notify::new(),
    });
    {
        let mut state = pool.locked();
        for t in 0..pool.tables.len() {
            pool.push(&mut state, t, Job::Load(t));
        }
    }
    let mut workers = JoinSet::new();
    for _ in 0..jobs {
        let session = setup.session().await?;
        let (pool, reader, progress) = (pool.clone(), reader.clone(), progress.clone());
        workers.spawn(async move {
            let result = worker(&pool, &session, reader.as_ref(), progress.as_ref()).await;
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
    Ok((indexes, rows, bytes))
}

async fn worker(pool: &Pool, session: &Session, reader: &dyn BackupReader, progress: &dyn Progress) -> Result<()> {
    while let Some(job) = pool.take().await {
        match &job {
            Job::Load(t) => {
                if let Some(table) = pool.tables.get(*t) {
                    load::table(session, reader, &table.record, &table.meta, progress).await?;
                }
            }
            Job::Build(t, build) => {
                if let Some(table) = pool.tables.get(*t) {
                    build_one(session, &table.name, build).await?;
                }
            }
            Job::Finish(t) => {
                if let Some(table) = pool.tables.get(*t) {
                    for step in &table.after.finish {
                        build_one(session, &table.name, step).await?;
                    }
                    if table.meta.rows > 0 {
                        session
                            .run(
                                &format!("ANALYZE {}", table.name),
                                &format!("ANALYZE {}", table.name.quoted()),
                            )
                            .await?;
                    }
                }
            }
        }
        pool.done(&job);
    }
    Ok(())
}

async fn build_one(session: &Session, table: &TableName, build: &Build) -> Result<()> {
    if let Some(tablespace) = &build.tablespace {
        session.run("default_tablespace", tablespace).await?;
    }
    session
        .run(&format!("index or constraint of {table}"), &build.sql)
        .await
}

/// Positions of sequences: only calls of setval are accepted.
async fn positions(session: &Session, script: &[u8]) -> Result<()> {
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
async fn foreign_keys(setup: &Setup, keys: &[(String, HashSet<TableName>)], jobs: usize) -> Result<()> {
    let jobs = jobs.min(keys.len()).max(1);
    let mut sessions = Vec::new();
    for _ in 0..jobs {
        sessions.push(setup.session().await?);
    }
    let mut waiting: Vec<(String, HashSet<TableName>)> = keys.to_vec();
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
                        Err(e) if e.code() == Some("40P01") => result = session.run("foreign key", &sql).await,
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
async fn partitioned(session: &Session) -> Result<()> {
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
