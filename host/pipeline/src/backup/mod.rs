//! A backup run: open, plan, take, commit.
//!
//! What it promises: nothing sensitive is read before there is a recipient for it; every component plans inside the very
//! snapshot it is backed up from; a step that was not granted is refused, not adapted; a component that fails takes only
//! itself out of the backup, and the manifest and the exit code say so. What it must never do: commit a backup in which
//! nothing succeeded, or call something done because its bytes were written: the commit object alone makes a backup.

mod lanes;
pub(crate) mod open;
pub(crate) mod plan;
pub(crate) mod prepare;
mod take;

use crate::body::{BODY_VERSION, BackupBody, ComponentBody, Fact, Tier};
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::policy::{Policy, Question, input};
use crate::report::{Event, Reporter};
use crate::standing::Standing;
use crate::{drill, keys, load, repo, time};
use essrun_repository::{Backup, BackupStart, Repository};
use std::sync::Arc;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct BackupOptions {
    /// Print the plan, take nothing.
    pub dry_run: bool,
    /// Read files also where they look unchanged.
    pub rescan: bool,
    /// Only these components; empty: all.
    pub only: Vec<String>,
}

/// Takes a backup, or prints its plan.
pub async fn run(
    pipeline: &Pipeline,
    options: BackupOptions,
    reporter: Arc<dyn Reporter>,
) -> Result<(), PipelineError> {
    let mut begun = None;
    let done = attempt(pipeline, options, reporter, &mut begun).await;
    // Waited for: the process may be about to end, and others would wait for the lease of what runs no more.
    if let (Err(_), Some(backup)) = (&done, begun) {
        backup.abandon().await;
    }
    done
}

async fn attempt(
    pipeline: &Pipeline,
    options: BackupOptions,
    reporter: Arc<dyn Reporter>,
    begun: &mut Option<Arc<Backup>>,
) -> Result<(), PipelineError> {
    let started_at = time::now();
    let engine = load::engine(pipeline)?;
    let policy = Policy::load(pipeline, &engine).await?;
    let (loaded, unloaded) = load::each(pipeline, &options.only, &engine, reporter.as_ref()).await?;
    let unloaded = not_loaded(&loaded, unloaded, reporter.as_ref())?;
    refuse_without_recipients(pipeline, &loaded)?;
    let asked = policy.as_ref().filter(|p| p.answers(Question::MayRun));
    let repository = match (options.dry_run, asked) {
        (true, None) => None,
        _ => Some(repo::open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?),
    };
    if let (Some(policy), Some(repository)) = (asked, &repository) {
        let input = input::may_run(pipeline, &loaded, repository, options.dry_run).await?;
        policy.may_run(&input, reporter.as_ref()).await?.or_refuse()?;
    }

    if !options.dry_run {
        drill::clean(pipeline, &loaded).await;
    }
    reporter.event(Event::Phase { phase: "open" });
    let mut opened = prepare::all(pipeline, loaded, reporter.as_ref()).await?;
    reporter.event(Event::Phase { phase: "plan" });
    for one in &opened.components {
        one.tell(options.dry_run, reporter.as_ref());
    }
    let (false, Some(repository)) = (options.dry_run, repository) else {
        return opened.into_error(&unloaded);
    };

    let start = BackupStart {
        sensitivity: essrun_artifact::Sensitivity::Secret,
    };
    let backup = Arc::new(repository.begin(start).await.map_err(PipelineError::repository)?);
    *begun = Some(backup.clone());
    take::everything(&repository, &backup, &mut opened, &options, pipeline, &reporter).await?;

    if opened.components.iter().all(|c| c.failed.is_some()) {
        // Nothing to commit. What was stored is found again by the next run.
        return opened.into_error(&unloaded);
    }
    let mut body = BackupBody {
        version: BODY_VERSION,
        pipeline: pipeline.name.clone(),
        host: host(pipeline),
        essrun: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        finished_at: time::now(),
        components: opened.components.iter().map(component_body).chain(unloaded).collect(),
        instants: opened.instants.clone(),
        judgement: None,
    };
    if let Some(policy) = policy.as_ref().filter(|p| p.answers(Question::JudgeResult)) {
        let input = judged_on(pipeline, &body, &backup, &repository).await;
        body.judgement = Some(policy.judge(input, reporter.as_ref()).await);
    }
    reporter.event(Event::Phase { phase: "commit" });
    let missing = body.missing();
    let suspect = body.judgement.clone().filter(|j| j.suspect);
    let body = serde_json::to_value(body).map_err(|e| PipelineError::Internal(e.to_string()))?;
    let summary = backup.commit(body).await.map_err(PipelineError::repository)?;
    reporter.event(Event::Committed {
        backup: summary.id.to_string(),
        artifacts: opened.components.iter().map(|c| c.artifacts).sum(),
        bytes: summary.stats.bytes_read + summary.stats.bytes_adopted,
        new_bytes: summary.stats.bytes_new,
        stored_bytes: summary.stats.bytes_stored,
    });
    match (missing.is_empty(), suspect) {
        (true, None) => Ok(()),
        (true, Some(judgement)) => Err(PipelineError::Suspect {
            backup: summary.id.to_string(),
            reasons: judgement.words(),
        }),
        (false, _) => Err(PipelineError::Incomplete {
            backup: summary.id.to_string(),
            failed: missing,
        }),
    }
}

/// What the policy is told of a result that is not committed yet.
async fn judged_on(
    pipeline: &Pipeline,
    body: &BackupBody,
    backup: &Backup,
    repository: &Repository,
) -> Result<input::JudgeResult, PipelineError> {
    let id = backup.id().to_string();
    let standing = Standing::of_result(body.clone());
    Ok(input::JudgeResult {
        common: input::Common::new(pipeline),
        asked: body.components.iter().map(|c| c.name.clone()).collect(),
        previous: input::previous(repository, &id).await?,
        result: input::Backup::of(id, body.started_at, backup.stats(), &standing).with_artifacts(&backup.recorded()),
    })
}

/// Components that could not be loaded, as they stand in the backup: they took nothing, and the others go on. When none
/// could be loaded the first error is the run's.
fn not_loaded(
    loaded: &[load::Loaded],
    unloaded: Vec<load::Unloaded>,
    reporter: &dyn Reporter,
) -> Result<Vec<ComponentBody>, PipelineError> {
    let mut bodies = Vec::new();
    for load::Unloaded { config, error } in unloaded {
        if loaded.is_empty() {
            return Err(error);
        }
        let problem = match error {
            PipelineError::Component { problem, .. } => problem,
            other => other.to_string(),
        };
        reporter.event(Event::Failed {
            component: config.name.clone(),
            problem: problem.clone(),
        });
        bodies.push(ComponentBody {
            name: config.name,
            system: "not loaded".to_owned(),
            tier: Tier::Feature,
            loss: String::new(),
            component_version: String::new(),
            wasm_sha256: String::new(),
            failed: Some(problem),
            taken_at: time::now(),
            facts: Vec::new(),
            notes: Vec::new(),
            left_out: Vec::new(),
            sources: Default::default(),
            classes: Vec::new(),
        });
    }
    Ok(bodies)
}

/// Before anything is opened: contents that could hurt somebody are written for a recipient or not at all.
fn refuse_without_recipients(pipeline: &Pipeline, loaded: &[load::Loaded]) -> Result<(), PipelineError> {
    if !keys::recipients(pipeline)?.is_empty() {
        return Ok(());
    }
    match loaded
        .iter()
        .find(|l| l.greatest_sensitivity() > essrun_artifact::Sensitivity::Internal)
    {
        None => Ok(()),
        Some(one) => Err(PipelineError::refused(
            format!(
                "component {} ({}) takes sensitive data, and {} names no recipients to encrypt it for",
                one.name(),
                one.description.system,
                pipeline.file.display()
            ),
            "make an identity on another machine (`essrun keygen identity`) and put its age1… under recipients",
        )),
    }
}

fn component_body(c: &open::Opened) -> ComponentBody {
    ComponentBody {
        name: c.loaded.name().to_owned(),
        system: c.loaded.description.system.clone(),
        tier: c.loaded.tier(),
        loss: c.loaded.description.loss.clone(),
        component_version: c.loaded.description.version.clone(),
        wasm_sha256: c.loaded.sha256.clone(),
        failed: c.failed.clone(),
        taken_at: c.taken_at,
        facts: c
            .plan
            .facts
            .iter()
            .map(|(key, value)| Fact {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        notes: c.plan.notes.clone(),
        left_out: c.plan.left_out.clone(),
        sources: c.sources.clone(),
        classes: c.loaded.classes.clone(),
    }
}

/// The machine's name, as backups and policies are told it.
pub(crate) fn host(pipeline: &Pipeline) -> String {
    pipeline.run.host.clone().unwrap_or_else(hostname)
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".to_owned(), |h| h.trim().to_owned())
}
