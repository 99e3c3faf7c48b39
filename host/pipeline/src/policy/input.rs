//! What a policy is told: the inputs of docs/POLICY.md, built from what essrun knows.
//!
//! Everything here is a shape and a way to fill it; nothing is fetched but from the repository. Inputs hold no secret:
//! no connection strings, no contents, of keys only recipients.

use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::standing::{Standing, State};
use crate::{keys, repo, time};
use essrun_artifact::{ArtifactRecord, BackupReader, Sensitivity};
use essrun_repository::{BackupStats, BackupSummary, OpenBackup, Recipients, Repository};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What every input has.
#[derive(Debug, Serialize)]
pub struct Common {
    pub now: Instant,
    pub settings: Map<String, Value>,
    pub pipeline: String,
    pub host: String,
    /// Who asks, by the name of the user essrun was started by.
    pub person: String,
}

impl Common {
    pub fn new(pipeline: &Pipeline) -> Common {
        Common {
            now: Instant::at(time::now()),
            settings: pipeline.policy.as_ref().map(|p| p.settings.clone()).unwrap_or_default(),
            pipeline: pipeline.name.clone(),
            host: crate::backup::host(pipeline),
            person: super::person::asking(),
        }
    }
}

/// A time, as a number and as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instant {
    pub unix_seconds: i64,
    pub rfc3339: String,
}

impl Instant {
    pub fn at(unix_seconds: i64) -> Instant {
        Instant {
            unix_seconds,
            rfc3339: rfc3339(unix_seconds),
        }
    }
}

fn rfc3339(unix_seconds: i64) -> String {
    // What is outside of any calendar has only its number.
    jiff::Timestamp::from_second(unix_seconds).map_or_else(|_| String::new(), |t| t.to_string())
}

/// May this run start?
#[derive(Debug, Serialize)]
pub struct MayRun {
    #[serde(flatten)]
    pub common: Common,
    pub dry_run: bool,
    pub recipients: Vec<Recipient>,
    pub components: Vec<Component>,
    pub groups: Vec<Group>,
    pub backups: Vec<Backup>,
}

/// Fills the question whether a run may start.
pub async fn may_run(
    pipeline: &Pipeline,
    loaded: &[Loaded],
    repository: &Repository,
    dry_run: bool,
) -> Result<MayRun, PipelineError> {
    Ok(MayRun {
        common: Common::new(pipeline),
        dry_run,
        recipients: recipients(pipeline, &keys::recipients(pipeline)?),
        components: loaded.iter().map(Component::of).collect(),
        groups: groups(pipeline),
        backups: backups(repository).await?,
    })
}

/// Somebody contents are encrypted for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recipient {
    pub id: String,
    pub kind: &'static str,
    pub offline: bool,
}

/// The recipients as a policy sees them.
fn recipients(pipeline: &Pipeline, recipients: &Recipients) -> Vec<Recipient> {
    recipients
        .texts()
        .map(|id| Recipient {
            kind: kind(id),
            offline: pipeline.repository.offline.contains(id),
            id: id.to_owned(),
        })
        .collect()
}

/// A plugin's recipient is `age1name1…`; the part after a native one's first `1` has no other.
fn kind(recipient: &str) -> &'static str {
    match recipient.strip_prefix("age1") {
        None => "ssh",
        Some(rest) if rest.contains('1') => "plugin",
        Some(_) => "x25519",
    }
}

/// A component of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    pub name: String,
    pub system: String,
    pub version: String,
    pub tier: crate::body::Tier,
    pub third_party: bool,
    /// Of what it makes, as its classes say; what no class covers counts as secret.
    pub highest_sensitivity: Sensitivity,
    pub classes: Vec<Class>,
    pub databases: Vec<String>,
    pub volumes: Vec<String>,
}

/// How sensitive artifacts of some names are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Class {
    pub pattern: String,
    pub sensitivity: Sensitivity,
}

impl Component {
    pub fn of(loaded: &Loaded) -> Component {
        Component {
            name: loaded.name().to_owned(),
            system: loaded.description.system.clone(),
            version: loaded.description.version.clone(),
            tier: loaded.tier(),
            third_party: loaded.third_party,
            highest_sensitivity: highest(&loaded.classes),
            classes: loaded
                .classes
                .iter()
                .map(|c| Class {
                    pattern: c.pattern.clone(),
                    sensitivity: c.sensitivity,
                })
                .collect(),
            databases: loaded.config.databases.keys().cloned().collect(),
            volumes: loaded.config.volumes.keys().cloned().collect(),
        }
    }
}

/// The highest class, where the classes are known to cover everything.
fn highest(classes: &[crate::body::Class]) -> Sensitivity {
    let covered = classes.iter().any(|c| c.pattern == "*");
    classes
        .iter()
        .map(|c| c.sensitivity)
        .max()
        .filter(|_| covered)
        .unwrap_or(Sensitivity::Secret)
}

/// Components taken at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    pub name: String,
    pub components: Vec<String>,
    pub accept: &'static str,
}

fn groups(pipeline: &Pipeline) -> Vec<Group> {
    pipeline
        .groups
        .iter()
        .map(|g| Group {
            name: g.name.clone(),
            components: g.components.clone(),
            accept: match g.accept {
                crate::config::Accept::Instant => "instant",
                crate::config::Accept::Fence => "fence",
                crate::config::Accept::Ordered => "ordered",
            },
        })
        .collect()
}

/// A backup in the repository.
#[derive(Debug, Clone, Serialize)]
pub struct Backup {
    pub id: String,
    pub taken_at_unix_seconds: i64,
    pub taken_at: String,
    pub pipeline: Option<String>,
    pub host: Option<String>,
    pub state: State,
    pub suspect: Vec<String>,
    pub verified_at_unix_seconds: Option<i64>,
    pub last_drill: Option<Drill>,
    pub bytes: u64,
    pub stored_bytes: u64,
    /// Those that are in it.
    pub components: BTreeMap<String, Held>,
    /// Those that were asked for and failed, and why.
    pub missing: BTreeMap<String, String>,
}

/// The newest drill of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drill {
    pub at_unix_seconds: i64,
    pub passed: bool,
    pub errors: usize,
    pub warnings: usize,
}

/// One component in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    pub system: String,
    pub version: String,
    pub tier: crate::body::Tier,
    pub taken_at_unix_seconds: i64,
    /// By their names after `component/`; only where a question is about contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<BTreeMap<String, Artifact>>,
}

/// One artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    pub kind: String,
    pub sensitivity: Sensitivity,
    pub bytes: u64,
    /// Rows of a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Entries of a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
}

impl Artifact {
    fn of(record: &ArtifactRecord) -> Artifact {
        let number = |key: &str| record.meta.get(key).and_then(Value::as_u64);
        Artifact {
            kind: record.kind.clone(),
            sensitivity: record.sensitivity,
            bytes: repo::size(record),
            rows: number("rows"),
            entries: number("entries"),
        }
    }
}

impl Backup {
    /// With the artifacts of each component that is in it.
    pub fn with_artifacts(mut self, records: &[ArtifactRecord]) -> Backup {
        for (name, held) in &mut self.components {
            let prefix = format!("{name}/");
            let own = records
                .iter()
                .filter_map(|r| Some((r.name.as_str().strip_prefix(&prefix)?.to_owned(), Artifact::of(r))));
            held.artifacts = Some(own.collect());
        }
        self
    }

    /// One that is in the repository.
    pub fn known(summary: &BackupSummary, standing: &Standing) -> Backup {
        Backup::of(summary.id.to_string(), summary.created_at, summary.stats, standing)
    }

    pub fn of(id: String, created_at: i64, stats: BackupStats, standing: &Standing) -> Backup {
        let body = standing.body.as_ref();
        let taken_at = body.map_or(created_at, |b| b.started_at);
        let components = || body.into_iter().flat_map(|b| &b.components);
        Backup {
            id,
            taken_at_unix_seconds: taken_at,
            taken_at: rfc3339(taken_at),
            pipeline: body.map(|b| b.pipeline.clone()),
            host: body.map(|b| b.host.clone()),
            state: standing.state,
            suspect: standing.suspect.clone(),
            verified_at_unix_seconds: standing.verified_at(),
            last_drill: standing.drill.as_ref().map(|d| Drill {
                at_unix_seconds: d.at,
                passed: d.passed,
                errors: d.errors,
                warnings: d.warnings,
            }),
            bytes: stats.bytes_read.saturating_add(stats.bytes_adopted),
            stored_bytes: stats.bytes_stored,
            components: components()
                .filter(|c| c.failed.is_none())
                .map(|c| {
                    let held = Held {
                        system: c.system.clone(),
                        version: c.component_version.clone(),
                        tier: c.tier,
                        taken_at_unix_seconds: c.taken_at,
                        artifacts: None,
                    };
                    (c.name.clone(), held)
                })
                .collect(),
            missing: components()
                .filter_map(|c| c.failed.clone().map(|why| (c.name.clone(), why)))
                .collect(),
        }
    }
}

/// Is this result normal?
#[derive(Debug, Serialize)]
pub struct JudgeResult {
    #[serde(flatten)]
    pub common: Common,
    /// The components this run was asked for.
    pub asked: Vec<String>,
    pub result: Backup,
    pub previous: Vec<Backup>,
}

/// Earlier backups a result is held against.
const PREVIOUS: usize = 10;

/// The newest backups with their artifacts, newest first, without `except` and what is newer. The newest normal one is
/// among them however many odd ones came after it.
pub async fn previous(repository: &Repository, except: &str) -> Result<Vec<Backup>, PipelineError> {
    let mut all = backups(repository).await?;
    if let Some(at) = all.iter().position(|b| b.id == except) {
        all.drain(..=at);
    }
    let normal = all.iter().position(|b| b.state == State::Normal);
    let mut picked = Vec::new();
    for (place, backup) in all.into_iter().enumerate() {
        if place < PREVIOUS || Some(place) == normal {
            let open = repository.read(&backup.id).await.map_err(PipelineError::repository)?;
            picked.push(backup.with_artifacts(open.artifacts()));
        }
    }
    Ok(picked)
}

/// Which backups are kept?
#[derive(Debug, Serialize)]
pub struct Retention {
    #[serde(flatten)]
    pub common: Common,
    pub backups: Vec<Backup>,
}

/// May this restore go ahead?
#[derive(Debug, Serialize)]
pub struct MayRestore {
    #[serde(flatten)]
    pub common: Common,
    /// Which verb asks.
    pub verb: Verb,
    pub drill: bool,
    pub dry_run: bool,
    pub replace: bool,
    /// What `extract` hands out, and how sensitive it is; of the others `None`.
    pub artifact: Option<String>,
    pub sensitivity: Option<Sensitivity>,
    pub backup: Backup,
    pub targets: Vec<Target>,
    pub steps: Vec<Step>,
    pub approvals: Vec<super::approvals::Approval>,
}

/// Who asks whether a restore may go ahead: what puts data of a backup somewhere, or answers its leak in live servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    #[default]
    Restore,
    Drill,
    Extract,
    Incident,
}

/// What is asked for. A policy that was written before `verb` was there reads the other fields as of a restore, so each
/// verb fills them with what a restore doing the same would: `extract` writes where nothing is yet, `incident` changes
/// what is live.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub verb: Verb,
    pub dry_run: bool,
    pub replace: bool,
    pub artifact: Option<String>,
    pub sensitivity: Option<Sensitivity>,
    pub targets: Vec<Target>,
    pub steps: Vec<Step>,
}

/// Fills the question whether a restore may go ahead.
pub async fn may_restore(
    pipeline: &Pipeline,
    repository: &Repository,
    backup: &OpenBackup,
    asked: Asked,
) -> Result<MayRestore, PipelineError> {
    let standing = Standing::of(repository, backup.summary()).await?;
    Ok(MayRestore {
        common: Common::new(pipeline),
        verb: asked.verb,
        drill: asked.verb == Verb::Drill,
        dry_run: asked.dry_run,
        replace: asked.replace,
        artifact: asked.artifact,
        sensitivity: asked.sensitivity,
        backup: Backup::known(backup.summary(), &standing).with_artifacts(backup.artifacts()),
        targets: asked.targets,
        steps: asked.steps,
        approvals: super::approvals::read(pipeline)?,
    })
}

/// Something a restore writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    pub component: String,
    pub label: String,
    /// `postgres`, `sqlite` or `volume`; of `extract` also `file` or `stdout`.
    pub kind: &'static str,
    /// `host:port/database`, or a path.
    pub place: String,
    /// Something is there that would be replaced or changed.
    pub live: bool,
}

/// One step of the plan, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub component: String,
    pub step: String,
}

/// All backups, newest first.
pub async fn backups(repository: &Repository) -> Result<Vec<Backup>, PipelineError> {
    let mut all = Vec::new();
    let backups = repository.backups_annotated().await;
    for (summary, notes) in backups.map_err(PipelineError::repository)? {
        all.push(Backup::known(&summary, &Standing::with(&summary, &notes)?));
    }
    newest_first(&mut all);
    Ok(all)
}

/// The order of every list of backups.
pub fn newest_first(backups: &mut [Backup]) {
    backups.sort_by(|a, b| (b.taken_at_unix_seconds, &b.id).cmp(&(a.taken_at_unix_seconds, &a.id)));
}

#[cfg(test)]
mod tests;
