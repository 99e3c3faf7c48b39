//! Carries the plans out: databases first, while their snapshots live, then SQLite copies, then volumes.

use super::BackupOptions;
use super::lanes::Orderly;
use super::open::{Opened, Sources};
use crate::body::{Note, Severity};
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::known;
use crate::load::{self, Loaded};
use crate::repo;
use crate::report::{Event, Reporter};
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, BackupWriter, Progress, Sensitivity};
use essrun_postgres::{Snapshot, dump};
use essrun_repository::{Backup, BackupSummary, Repository};
use essrun_volume::{Archive, ArchiveReport, Noted};
use std::sync::Arc;

/// Takes everything that was planned. A failing component is marked and the others go on; a failing repository ends all.
pub async fn everything(
    repository: &Repository,
    backup: &Arc<Backup>,
    sources: &mut Sources,
    options: &BackupOptions,
    pipeline: &Pipeline,
    reporter: &Arc<dyn Reporter>,
) -> Result<(), PipelineError> {
    let orderly = Arc::new(Orderly::new(backup.clone()));
    let writer: Arc<dyn BackupWriter> = orderly.clone();
    let progress: Arc<dyn Progress> = reporter.clone();
    reporter.event(Event::Phase { phase: "dump" });
    let Sources { components, groups, .. } = sources;
    for one in components.iter_mut().filter(|c| c.failed.is_none()) {
        for (label, plan) in std::mem::take(&mut one.plan.dump_plans) {
            let result = match super::open::find(groups, one.loaded.name(), &label) {
                Some(snapshot) => database(one, snapshot, &label, plan, &writer, &progress).await,
                None => Err(PipelineError::Internal(format!("{label} has no snapshot"))),
            };
            if let Err(e) = goes_on(result)? {
                one.fail(&e, reporter.as_ref());
                break;
            }
        }
    }
    // The instants have served; let the servers clean up while files are walked.
    groups.clear();

    reporter.event(Event::Phase { phase: "archive" });
    let previous = Previous::open(pipeline, repository).await;
    for one in components.iter_mut().filter(|c| c.failed.is_none()) {
        let result = files(one, &previous, &writer, options, pipeline, &progress).await;
        if let Err(e) = goes_on(result)? {
            one.fail(&e, reporter.as_ref());
        }
    }
    // What a failed component left half-way must be stored all the same before anything is committed.
    orderly.ended().await.map_err(PipelineError::repository)
}

/// What fails a component only; the repository's failure ends the run.
fn goes_on(result: Result<(), PipelineError>) -> Result<Result<(), PipelineError>, PipelineError> {
    match result {
        Err(e @ PipelineError::Repository { .. }) => Err(e),
        result => Ok(result),
    }
}

async fn database(
    one: &mut Opened,
    snapshot: &Snapshot,
    label: &str,
    plan: dump::DumpPlan,
    writer: &Arc<dyn BackupWriter>,
    progress: &Arc<dyn Progress>,
) -> Result<(), PipelineError> {
    let prefix = format!("{}/{label}", one.loaded.name());
    let classes = one.loaded.classes.clone();
    let classify: dump::Classify = Arc::new(move |name: &ArtifactName| load::sensitivity(&classes, rest(name)));
    let report = dump::execute(snapshot, plan, &prefix, writer.clone(), classify, progress.clone())
        .await
        .map_err(|e| PipelineError::taking(prefix, e))?;
    for table in &report.tables {
        one.plan
            .facts
            .entry(format!("dumped-rows/{label}/{}", table.table))
            .or_insert_with(|| table.rows.to_string());
    }
    one.artifacts += report.tables.len();
    Ok(())
}

/// What stands after `component/`.
fn rest(name: &ArtifactName) -> &str {
    name.as_str().split_once('/').map_or("", |(_, rest)| rest)
}

async fn files(
    one: &mut Opened,
    previous: &Previous,
    writer: &Arc<dyn BackupWriter>,
    options: &BackupOptions,
    pipeline: &Pipeline,
    progress: &Arc<dyn Progress>,
) -> Result<(), PipelineError> {
    for label in std::mem::take(&mut one.plan.copies) {
        let (name, sensitivity) = artifact(&one.loaded, &label)?;
        let Some(copy) = one.copies.remove(&label) else {
            return Err(PipelineError::Internal(format!("{name} has no copy")));
        };
        let report = copy
            .store(name.clone(), sensitivity, writer.clone(), progress.clone())
            .await
            .map_err(|e| PipelineError::taking(name.to_string(), e))?;
        one.artifacts += 1;
        let problems = report.meta.integrity_problems;
        if !problems.is_empty() {
            let text = format!(
                "{label}: SQLite finds the live database damaged ({} problem(s), first: {}); it was stored as it is. \
                 Restore an older backup or let its service rebuild it",
                problems.len(),
                problems.first().map(String::as_str).unwrap_or_default()
            );
            one.plan.notes.push(Note {
                severity: Severity::Error,
                text,
            });
        }
    }
    for (label, request) in std::mem::take(&mut one.plan.archives) {
        let (name, sensitivity) = artifact(&one.loaded, &label)?;
        let Some(volume) = one.volumes.get(&label).cloned() else {
            return Err(PipelineError::Internal(format!("{name} has no volume")));
        };
        let archive = Archive {
            previous: previous.record(&name),
            name: name.clone(),
            sensitivity,
            watch: known::watch(one, &label)?,
            rescan: options.rescan,
            jobs: pipeline.run.takers,
        };
        let report = essrun_volume::archive::execute(volume, request, archive, writer.clone(), progress.clone())
            .await
            .map_err(|e| PipelineError::taking(name.to_string(), e))?;
        one.artifacts += 1;
        if let Some((path, holds)) = report.known.first.first() {
            known::seen(one, &label, path, holds)?;
        }
        one.plan.notes.extend(remarks(&label, &report));
    }
    Ok(())
}

fn artifact(loaded: &Loaded, label: &str) -> Result<(ArtifactName, Sensitivity), PipelineError> {
    let name = ArtifactName::new(format!("{}/{label}", loaded.name()))
        .map_err(|e| PipelineError::component(loaded.name(), e))?;
    Ok((name, loaded.sensitivity(label)))
}

/// What a person should know about a walk.
fn remarks(label: &str, report: &ArchiveReport) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut say = |noted: &Noted, severity, what: &str| {
        if noted.count > 0 {
            let first: Vec<_> = noted
                .first
                .iter()
                .take(3)
                .map(|(path, why)| format!("{path} ({why})"))
                .collect();
            notes.push(Note {
                severity,
                text: format!("{label}: {} {what}, first: {}", noted.count, first.join(", ")),
            });
        }
    };
    say(
        &report.unstable,
        Severity::Warning,
        "file(s) changed while they were read, twice; their copies are mixtures",
    );
    say(&report.vanished, Severity::Info, "entries vanished during the walk");
    say(
        &report.skipped,
        Severity::Info,
        "entries are no files (sockets, other file systems) and were not taken",
    );
    say(
        &report.unreadable,
        Severity::Error,
        "entries could not be read and are NOT in the backup",
    );
    if report.forgotten_links > 0 {
        notes.push(Note {
            severity: Severity::Info,
            text: format!(
                "{label}: {} files have names outside of it, or too far apart: they are whole, but a name met late is \
                 restored as a file of its own",
                report.forgotten_links
            ),
        });
    }
    if let Some(why) = &report.previous_unusable {
        notes.push(Note {
            severity: Severity::Info,
            text: format!("{label}: nothing was taken over from the backup before, every file was read: {why}"),
        });
    }
    notes
}

/// The backup before, for taking over unchanged files.
struct Previous(Option<Arc<dyn BackupReader>>);

impl Previous {
    /// The newest backup that can be read here. None is no fault: everything is read anew.
    async fn open(pipeline: &Pipeline, repository: &Repository) -> Previous {
        let of_this = |b: &BackupSummary| repo::body(b).is_ok_and(|body| body.pipeline == pipeline.name);
        let newest = match repository.backups().await {
            // Other hosts and other pipelines may write here as well.
            Ok(mut backups) => {
                backups.retain(|b| b.body.is_some());
                let newest = backups.iter().rposition(of_this);
                let newest = newest.or(backups.len().checked_sub(1));
                newest.map(|at| backups.swap_remove(at))
            }
            Err(e) => {
                tracing::warn!("earlier backups cannot be listed, every file is read: {e}");
                None
            }
        };
        let Some(newest) = newest else { return Previous(None) };
        match repository.read(newest.id.as_str()).await {
            Ok(backup) => Previous(Some(Arc::new(backup))),
            Err(e) => {
                tracing::warn!("backup {} cannot be read, every file is read: {e}", newest.id);
                Previous(None)
            }
        }
    }

    fn record(&self, name: &ArtifactName) -> Option<(Arc<dyn BackupReader>, ArtifactRecord)> {
        let reader = self.0.clone()?;
        let record = reader.artifact(name)?.clone();
        Some((reader, record))
    }
}
