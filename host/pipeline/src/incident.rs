//! A backup leaked: what it gives away, what to do, in order, and on request the steps the host can do.
//!
//! What it promises: every artifact of the backup is accounted for; the exact SQL and the number of rows it touches are
//! shown before anything runs; each statement runs in a transaction of its own, and nothing runs without being asked for.
//! It changes live servers as a restore does, so the policy is asked the same question; the plan itself is never kept
//! back, since nobody is safer for not knowing what leaked.
//! Where two statements touch the same rows, of one component or of several that share a database, it is said how many:
//! the numbers of a plan are those of each step alone, and a step that comes later is counted again when its turn comes.

use crate::body::Class;
use crate::config::{DatabaseSource, Pipeline};
use crate::error::PipelineError;
use crate::load::{self, Loaded, matches};
use crate::policy::{Permission, Policy, Question, input};
use crate::report::Reporter;
use crate::restore::plan::live_world;
use crate::restore::view;
use crate::time::utc;
use crate::world::{Database, Granted};
use crate::{instant, repo};
use essrun_artifact::{BackupReader, Sensitivity};
use essrun_postgres::respond::{self, Target};
use essrun_postgres::{Cell, Connection, Inspector, QueryLimits};
use essrun_repository::OpenBackup;
use essrun_sandbox::Engine;
use essrun_sandbox::contract::incident as wit;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct IncidentOptions {
    pub backup: String,
    pub identities: Vec<PathBuf>,
    pub only: Vec<String>,
    /// Statements are to be run afterwards, not only shown.
    pub apply: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Incident {
    pub event: &'static str,
    pub backup: String,
    pub taken_at: i64,
    /// What the policy says to the statements; `null` where it does not decide on restores.
    pub policy: Option<Permission>,
    pub components: Vec<ComponentIncident>,
    /// Whether the policy was asked about running them, not only about showing.
    #[serde(skip)]
    to_apply: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ComponentIncident {
    pub component: String,
    /// Gravest first.
    pub exposures: Vec<Exposure>,
    pub steps: Vec<Step>,
}

/// Artifacts that give away the same.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exposure {
    pub sensitivity: Sensitivity,
    pub exposes: String,
    pub on_leak: Vec<String>,
    pub artifacts: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Step {
    Advice {
        text: String,
    },
    Statement {
        database: String,
        sql: String,
        why: String,
        /// Rows it will touch now; absent where the live database cannot be asked.
        rows: Option<i64>,
        /// Why there is no number.
        unknown: Option<String>,
        /// The earlier steps that touch some of the same rows.
        #[serde(skip_serializing_if = "Option::is_none")]
        shared: Option<Shared>,
        /// What counts the rows.
        #[serde(skip)]
        count_sql: String,
    },
}

/// Rows that earlier steps touch as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shared {
    /// How many of the step's rows; absent where it cannot be told.
    pub rows: Option<i64>,
    /// `component 3`: whose step, and its number there.
    pub with: Vec<String>,
}

/// What was done with one statement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Applied {
    pub event: &'static str,
    pub component: String,
    pub database: String,
    pub sql: String,
    pub rows: u64,
}

/// Works out the answer to a leak of one backup. Changes nothing.
pub async fn plan(
    pipeline: &Pipeline,
    options: &IncidentOptions,
    reporter: Arc<dyn Reporter>,
) -> Result<Incident, PipelineError> {
    let engine = load::engine(pipeline)?;
    let policy = Policy::load(pipeline, &engine).await?;
    let repository = repo::open_to_read(pipeline, &options.identities).await?;
    let backup = repo::read(pipeline, &repository, &options.backup).await?;
    let mut incident = draft(pipeline, options, &engine, &backup, reporter.as_ref()).await?;
    if let Some(policy) = policy.filter(|p| p.answers(Question::MayRestore)) {
        let input = input::may_restore(pipeline, &repository, &backup, incident.asked(pipeline)).await?;
        incident.policy = Some(policy.may_restore(&input, reporter.as_ref()).await?);
    }
    Ok(incident)
}

/// The plan before anybody was asked.
pub(crate) async fn draft(
    pipeline: &Pipeline,
    options: &IncidentOptions,
    engine: &Engine,
    backup: &OpenBackup,
    reporter: &dyn Reporter,
) -> Result<Incident, PipelineError> {
    let mut loaded = load::all(pipeline, &options.only, engine, reporter).await?;
    let body = repo::body(backup.summary())?;
    // What a component had finished before it failed is in the backup, and leaked with it.
    loaded.retain(|l| {
        let held = body.component(l.name());
        held.is_some_and(|c| c.failed.is_none() || !rests(l.name(), backup).is_empty())
    });
    let mut components = Vec::new();
    let mut touched = Vec::new();
    for one in &loaded {
        let name = one.name();
        let world = live_world(one).await?;
        let answer = one
            .component
            .respond(
                Arc::new(world.clone()),
                &view::of(name, &body, backup)?,
                &one.config.limits,
            )
            .await
            .map_err(|e| PipelineError::component(name, e))?;
        // The classes of then: what the backup holds was classed when it was taken.
        let classes = body.component(name).map(|c| c.classes.clone()).unwrap_or_default();
        components.push(ComponentIncident {
            component: name.to_owned(),
            exposures: exposures(name, &classes, backup),
            steps: steps(one, &world, answer, backup, &mut touched).await?,
        });
    }
    Ok(Incident {
        event: "incident",
        backup: backup.summary().id.to_string(),
        taken_at: body.started_at,
        policy: None,
        components,
        to_apply: options.apply,
    })
}

/// Names after `component/` of a component's artifacts.
fn rests<'a>(name: &str, backup: &'a OpenBackup) -> Vec<&'a str> {
    let prefix = format!("{name}/");
    backup
        .artifacts()
        .iter()
        .filter_map(|a| a.name.as_str().strip_prefix(&prefix))
        .collect()
}

fn exposures(name: &str, classes: &[Class], backup: &OpenBackup) -> Vec<Exposure> {
    let rests = rests(name, backup);
    let mut exposures: Vec<Exposure> = classes
        .iter()
        .map(|class| Exposure {
            sensitivity: class.sensitivity,
            exposes: class.exposes.clone(),
            on_leak: class.on_leak.clone(),
            artifacts: rests
                .iter()
                .filter(|r| matches(&class.pattern, r))
                .map(|r| (*r).to_owned())
                .collect(),
        })
        .filter(|e| !e.artifacts.is_empty())
        .collect();
    let unclassed: Vec<String> = rests
        .iter()
        .filter(|r| !classes.iter().any(|c| matches(&c.pattern, r)))
        .map(|r| (*r).to_owned())
        .collect();
    if !unclassed.is_empty() {
        exposures.push(Exposure {
            sensitivity: Sensitivity::Secret,
            exposes: "not classed by the component: take it for a secret".to_owned(),
            on_leak: Vec::new(),
            artifacts: unclassed,
        });
    }
    exposures.sort_by_key(|e| std::cmp::Reverse(e.sensitivity));
    exposures
}

/// What an earlier step touches, and where.
struct Touched {
    /// Of the database itself, by whatever label and role it is reached.
    database: String,
    target: Option<Target>,
    /// `component 3`
    step: String,
}

async fn steps(
    one: &Loaded,
    world: &Granted,
    answer: wit::Plan,
    backup: &OpenBackup,
    touched: &mut Vec<Touched>,
) -> Result<Vec<Step>, PipelineError> {
    let rests = rests(one.name(), backup);
    let needed =
        |patterns: &[String]| patterns.is_empty() || patterns.iter().any(|p| rests.iter().any(|r| matches(p, r)));
    let mut steps = Vec::new();
    for step in answer.steps {
        match step {
            wit::Step::Advise(a) if needed(&a.artifacts) => steps.push(Step::Advice { text: a.text }),
            wit::Step::RunSql(s) if needed(&s.artifacts) => {
                // Also a peer: a bot's sessions are in Synapse's database. The pipeline granted it for this, and the
                // statement is shown before it runs.
                if !one.config.databases.contains_key(&s.database) {
                    return Err(PipelineError::component(
                        one.name(),
                        format!("its plan changes {:?}, which it was not granted", s.database),
                    ));
                }
                let (rows, unknown) = match count(world, &s.database, &s.count_sql).await {
                    Ok(rows) => (Some(rows), None),
                    Err(why) => (None, Some(why)),
                };
                let shared = match rows {
                    Some(_) => {
                        let step = format!("{} {}", one.name(), steps.len() + 1);
                        shared(world, &s.database, &s.sql, step, touched)
                            .await
                            .map_err(|e| PipelineError::source(format!("{}/{}", one.name(), s.database), e))?
                    }
                    None => None,
                };
                steps.push(Step::Statement {
                    database: s.database,
                    sql: s.sql,
                    why: s.why,
                    rows,
                    unknown,
                    shared,
                    count_sql: s.count_sql,
                });
            }
            _ => {}
        }
    }
    Ok(steps)
}

/// The rows of a step that earlier steps touch as well; the step is added to those.
async fn shared(
    world: &Granted,
    label: &str,
    sql: &str,
    step: String,
    touched: &mut Vec<Touched>,
) -> Result<Option<Shared>, essrun_postgres::Error> {
    let Some(Database::Postgres(inspector)) = world.databases.get(label) else {
        return Ok(None);
    };
    let (database, target) = (inspector.identity().await?, Target::of(sql));
    // One whose target cannot be told may touch anything in its database.
    let mut with: Vec<&Touched> = touched
        .iter()
        .filter(|t| t.database == database)
        .filter(|t| match (&t.target, &target) {
            (Some(a), Some(b)) => a.table == b.table,
            _ => true,
        })
        .collect();
    let others: Option<Vec<Target>> = with.iter().map(|t| t.target.clone()).collect();
    let rows = match (&target, others) {
        (Some(target), Some(others)) if !others.is_empty() => {
            let mut exact = Vec::new();
            for (touched, other) in with.iter().zip(&others) {
                if !matches!(
                    count(world, label, &target.shared(std::slice::from_ref(other))).await,
                    Ok(0)
                ) {
                    exact.push(*touched);
                }
            }
            with = exact;
            // A condition that cannot be counted beside another is no reason to say nothing.
            count(world, label, &target.shared(&others)).await.ok()
        }
        _ => None,
    };
    let found = (!with.is_empty()).then(|| Shared {
        rows,
        with: with.iter().map(|t| t.step.clone()).collect(),
    });
    touched.push(Touched { database, target, step });
    Ok(found)
}

/// How many rows a statement will touch, by the component's own count.
async fn count(world: &Granted, label: &str, sql: &str) -> Result<i64, String> {
    let Some(Database::Postgres(inspector)) = world.databases.get(label) else {
        return Err("the live database is not a PostgreSQL database that can be reached".to_owned());
    };
    number(inspector, sql).await
}

async fn number(inspector: &Inspector, sql: &str) -> Result<i64, String> {
    let rows = inspector
        .query(sql, Vec::new(), &QueryLimits::default())
        .await
        .map_err(|e| e.to_string())?;
    let all = rows.all().await.map_err(|e| e.to_string())?;
    match all.first().and_then(|row| row.first()) {
        Some(Cell::Integer(n)) => Ok(*n),
        _ => Err("the count gave no number".to_owned()),
    }
}

/// Where a statement of the plan is run.
fn connection(pipeline: &Pipeline, component: &str, database: &str) -> Result<Connection, PipelineError> {
    let source = pipeline
        .component(component)
        .and_then(|c| c.databases.get(database))
        .map(|g| &g.source);
    match source {
        Some(DatabaseSource::Postgres(secret)) => instant::connection(secret),
        _ => Err(PipelineError::refused(
            format!("{component}/{database} is no PostgreSQL database: essrun does not write to a live SQLite file"),
            "stop its service and run the statement with sqlite3",
        )),
    }
}

/// How many rows a statement of the plan touches now, after whatever was done since the plan.
pub async fn recount(pipeline: &Pipeline, component: &str, step: &Step) -> Result<Option<u64>, PipelineError> {
    let Step::Statement {
        database, count_sql, ..
    } = step
    else {
        return Ok(None);
    };
    let inspector = Inspector::new(connection(pipeline, component, database)?);
    let rows = number(&inspector, count_sql)
        .await
        .map_err(|why| PipelineError::component(component, why))?;
    Ok(Some(u64::try_from(rows).unwrap_or(0)))
}

/// Runs one statement of the plan in the live database, counted in the same transaction.
pub async fn apply(
    pipeline: &Pipeline,
    incident: &Incident,
    component: &str,
    step: &Step,
) -> Result<Option<Applied>, PipelineError> {
    incident.refuse_if_forbidden()?;
    let Step::Statement {
        database,
        sql,
        count_sql,
        ..
    } = step
    else {
        return Ok(None);
    };
    let rows = respond::apply(&connection(pipeline, component, database)?, sql, count_sql)
        .await
        .map_err(|e| PipelineError::source(format!("{component}/{database}"), e))?;
    Ok(Some(Applied {
        event: "applied",
        component: component.to_owned(),
        database: database.clone(),
        sql: sql.clone(),
        rows,
    }))
}

impl Shared {
    /// In words.
    pub fn text(&self) -> String {
        let with = self.with.join(", ");
        match self.rows {
            Some(rows) => format!("{rows} of these rows are also in step {with}, which comes before"),
            None => format!("some of these rows may also be in step {with}, which comes before"),
        }
    }
}

impl Incident {
    /// What the policy is asked: as of a restore that replaces what is live, since the statements change it.
    pub(crate) fn asked(&self, pipeline: &Pipeline) -> input::Asked {
        let mut targets: Vec<input::Target> = Vec::new();
        let mut steps = Vec::new();
        for c in &self.components {
            for step in &c.steps {
                let words = match step {
                    Step::Advice { text } => text.clone(),
                    Step::Statement { database, sql, why, .. } => {
                        if !targets
                            .iter()
                            .any(|t| t.component == c.component && t.label == *database)
                        {
                            targets.push(input::Target {
                                component: c.component.clone(),
                                label: database.clone(),
                                kind: "postgres",
                                // What cannot be reached has no place; `apply` says why.
                                place: connection(pipeline, &c.component, database)
                                    .map_or_else(|_| String::new(), |c| c.describe()),
                                live: true,
                            });
                        }
                        format!("in {database}: {sql}  ({why})")
                    }
                };
                steps.push(input::Step {
                    component: c.component.clone(),
                    step: words,
                });
            }
        }
        input::Asked {
            verb: input::Verb::Incident,
            dry_run: !self.to_apply,
            replace: true,
            targets,
            steps,
            ..input::Asked::default()
        }
    }

    /// Fails where the policy forbids the statements, or was asked about showing them only.
    pub fn refuse_if_forbidden(&self) -> Result<(), PipelineError> {
        if !self.to_apply {
            return Err(PipelineError::Internal(
                "statements were planned to be shown only".to_owned(),
            ));
        }
        self.policy.as_ref().map_or(Ok(()), Permission::or_refuse)
    }

    /// In words.
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let mut t = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(
            t,
            "if backup {} (taken {} UTC) leaked together with a key that opens it:",
            self.backup,
            utc(self.taken_at)
        );
        match &self.policy {
            None => {}
            Some(p) if p.allowed => t.push_str("the policy allows what --apply does\n"),
            Some(p) => {
                let _ = writeln!(t, "the policy forbids what --apply does: {}", p.why());
            }
        }
        for c in &self.components {
            let _ = writeln!(t, "\n{}\n  what it gives away", c.component);
            for e in &c.exposures {
                let word = match e.sensitivity {
                    Sensitivity::Secret => "SECRET",
                    Sensitivity::Personal => "personal",
                    Sensitivity::Internal => "internal",
                };
                let _ = writeln!(t, "    {word}: {}", e.exposes);
                let shown: Vec<_> = e.artifacts.iter().take(6).map(String::as_str).collect();
                let more = e.artifacts.len().saturating_sub(shown.len());
                let _ = writeln!(
                    t,
                    "        in {}{}",
                    shown.join(", "),
                    if more > 0 {
                        format!(" and {more} more")
                    } else {
                        String::new()
                    }
                );
            }
            let _ = writeln!(t, "  what to do, in order");
            for (n, step) in c.steps.iter().enumerate() {
                match step {
                    Step::Advice { text } => {
                        let _ = writeln!(t, "    {}. {text}", n + 1);
                    }
                    Step::Statement {
                        database,
                        sql,
                        why,
                        rows,
                        unknown,
                        shared,
                        ..
                    } => {
                        let count = match (rows, unknown) {
                            (Some(rows), _) => format!("{rows} rows now"),
                            (None, Some(why)) => format!("rows unknown: {why}"),
                            (None, None) => "rows unknown".to_owned(),
                        };
                        let _ = writeln!(
                            t,
                            "    {}. {why}\n        with --apply, in {database} ({count}): {sql}",
                            n + 1
                        );
                        if let Some(shared) = shared {
                            let _ = writeln!(t, "        {}", shared.text());
                        }
                    }
                }
            }
        }
        t
    }
}
