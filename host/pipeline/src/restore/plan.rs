//! What a restore will do: each component's steps, held against its grants, the backup and the targets as they are.

use super::view::{self, Beside};
use super::{RestoreOptions, doubts, only, same, targets};
use crate::backup::plan::{note, severity};
use crate::body::{BackupBody, Note, Severity};
use crate::config::{DatabaseSource, Pipeline};
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::pace::Estimate;
use crate::policy::Permission;
use crate::world::{Database, Granted};
use crate::{instant, repo};
use essrun_artifact::{ArtifactRecord, BackupReader};
use essrun_postgres::restore as pg;
use essrun_postgres::{Connection, Inspector};
use essrun_repository::OpenBackup;
use essrun_sandbox::contract::restore as wit;
use essrun_volume::Volume;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// What the restore is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Restore,
    /// Into scratch; files go below this folder.
    Drill {
        folder: PathBuf,
        run: String,
    },
}

/// A whole plan.
pub struct Planned {
    pub id: String,
    pub body: BackupBody,
    pub backup: Arc<OpenBackup>,
    /// In the order they are restored.
    pub items: Vec<Item>,
    /// About the whole.
    pub notes: Vec<Note>,
    /// How long it may take, where a drill was measured.
    pub estimate: Option<Estimate>,
    /// What the policy says to it, where it is asked.
    pub permission: Option<Permission>,
    /// Whether what was done stays when it fails, to be gone on with.
    pub resumable: bool,
}

/// One component's part.
pub struct Item {
    pub loaded: Loaded,
    pub view: wit::BackupView,
    pub steps: Vec<Step>,
    pub notes: Vec<Note>,
    pub databases: BTreeMap<String, DatabaseTarget>,
    pub volumes: BTreeMap<String, VolumeTarget>,
    /// Peers and other databases only looked at, as they are now.
    pub peers: BTreeMap<String, Connection>,
    pub findings: Vec<Precondition>,
    /// Labels the backup holds that were not asked for: `verify` sees them as they are now.
    pub untouched: Vec<String>,
}

/// One step, checked.
#[derive(Debug, Clone)]
pub enum Step {
    Volume(String),
    Database(String),
    RunSql {
        label: String,
        sql: String,
        why: String,
    },
    SetOwner {
        label: String,
        path: String,
        uid: u32,
        gid: u32,
        why: String,
    },
}

/// Where a database goes.
pub enum DatabaseTarget {
    Postgres {
        target: Connection,
        options: Box<pg::RestoreOptions>,
        plan: Box<pg::RestorePlan>,
    },
    Sqlite {
        record: Box<ArtifactRecord>,
        path: PathBuf,
        replace: bool,
        /// The directory it is staged in, or the nearest above it that is there.
        staged_in: PathBuf,
    },
}

impl DatabaseTarget {
    /// Whether a restore that was stopped had put it in service.
    pub fn in_service(&self) -> bool {
        matches!(self, DatabaseTarget::Postgres { plan, .. } if plan.in_service.is_some())
    }

    /// Looks into a database that [`Self::in_service`] says is there.
    pub fn inspect_in_service(&self) -> Option<Inspector> {
        match self {
            DatabaseTarget::Postgres { target, plan, .. } if plan.in_service.is_some() => {
                Some(Inspector::new(target.with_database(&plan.database)))
            }
            _ => None,
        }
    }
}

/// Where a volume goes.
pub struct VolumeTarget {
    pub record: ArtifactRecord,
    pub path: PathBuf,
    pub options: essrun_volume::RestoreOptions,
    pub plan: essrun_volume::RestorePlan,
    /// A restore that was stopped had put it in service.
    pub in_place: bool,
}

/// Something that was checked before the first step.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Precondition {
    pub label: String,
    pub check: String,
    pub severity: Severity,
    pub message: String,
    pub remedy: String,
}

impl Item {
    /// Whether a restore that was stopped had put all of it in service.
    pub fn in_service(&self) -> bool {
        !self.databases.is_empty()
            && self.databases.values().all(DatabaseTarget::in_service)
            && self.volumes.values().all(|v| v.in_place)
    }

    /// What must not have changed when this part of a restore is gone on with.
    pub fn origin(&self) -> BTreeMap<String, String> {
        let hash = |text: String| blake3::hash(text.as_bytes()).to_hex().to_string();
        let config = &self.loaded.config;
        [
            ("component", format!("{} {}", self.loaded.name(), self.loaded.sha256)),
            ("settings", hash(format!("{:?}", config.settings))),
            ("plan", hash(format!("{:?}", self.steps))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

impl Planned {
    /// Plain bytes to be restored: of databases, of files.
    pub fn bytes(&self) -> (u64, u64) {
        let databases = self.items.iter().flat_map(|i| i.databases.values());
        let files = self.items.iter().flat_map(|i| i.volumes.values());
        let database_bytes = databases.map(|d| match d {
            DatabaseTarget::Postgres { plan, .. } => plan.bytes,
            DatabaseTarget::Sqlite { record, .. } => record.content.bytes,
        });
        let add = u64::saturating_add;
        (database_bytes.fold(0, add), files.map(|v| v.plan.bytes).fold(0, add))
    }

    pub fn blocked(&self) -> bool {
        self.permission.as_ref().is_some_and(|p| !p.allowed) || self.violated()
    }

    fn violated(&self) -> bool {
        self.items
            .iter()
            .flat_map(|i| &i.findings)
            .any(|f| f.severity == Severity::Error)
    }

    pub fn refuse_if_forbidden(&self) -> Result<(), PipelineError> {
        self.permission.as_ref().map_or(Ok(()), Permission::or_refuse)
    }

    pub fn refuse_if_blocked(&self) -> Result<(), PipelineError> {
        // First the policy: where it forbids, what stands in the way is not for this person to clear.
        self.refuse_if_forbidden()?;
        let stops: Vec<String> = self
            .items
            .iter()
            .flat_map(|i| i.findings.iter().map(move |f| (i.loaded.name(), f)))
            .filter(|(_, f)| f.severity == Severity::Error)
            .map(|(name, f)| format!("{name}/{} {}: {}; {}", f.label, f.check, f.message, f.remedy))
            .collect();
        if stops.is_empty() {
            return Ok(());
        }
        Err(PipelineError::refused(
            stops.join("\n  "),
            "nothing was changed; mend what is listed and start again",
        ))
    }
}

/// Plans all components that the pipeline and the backup both have.
pub async fn all(
    pipeline: &Pipeline,
    loaded: Vec<Loaded>,
    backup: Arc<OpenBackup>,
    options: &RestoreOptions,
    purpose: Purpose,
) -> Result<Planned, PipelineError> {
    let body = repo::body(backup.summary())?;
    let id = backup.summary().id.to_string();
    let mut notes = Vec::new();
    let mut items = Vec::new();
    same::named(&loaded, options)?;
    let beside = Beside::of(&loaded, &body, options)?;
    for missing in body
        .components
        .iter()
        .filter(|c| !loaded.iter().any(|l| l.name() == c.name))
    {
        if options.only.is_empty() {
            let text = format!(
                "the backup also holds component {} ({}), which {} does not name: it is not restored",
                missing.name,
                missing.system,
                pipeline.file.display()
            );
            notes.push(Note {
                severity: Severity::Warning,
                text,
            });
        }
    }
    for one in loaded {
        let name = one.name().to_owned();
        let absent = match body.component(&name) {
            None => Some("the backup does not hold it".to_owned()),
            Some(c) => c
                .failed
                .as_ref()
                .map(|why| format!("it failed when the backup was taken: {why}")),
        };
        if let Some(why) = absent {
            if options.components().contains(&name) {
                return Err(PipelineError::refused(
                    format!("component {name} cannot be restored from backup {id}: {why}"),
                    "`essrun list` shows which backups hold it",
                ));
            }
            notes.push(Note {
                severity: Severity::Warning,
                text: format!("component {name} is not restored: {why}"),
            });
            continue;
        }
        items.push(item(one, &body, &backup, options, &purpose, pipeline, &beside).await?);
    }
    crate::space::check(&mut items, options);
    if items.is_empty() {
        return Err(PipelineError::refused(
            format!("backup {id} holds nothing that {} names", pipeline.file.display()),
            "`essrun show` tells what it holds",
        ));
    }
    same::restored(&items, options)?;
    targets::refuse_strong(&items, &body).await?;
    if purpose == Purpose::Restore {
        same::places(&mut items).await;
    }
    Ok(Planned {
        id,
        body,
        backup,
        items,
        notes,
        estimate: None,
        permission: None,
        resumable: purpose == Purpose::Restore,
    })
}

async fn item(
    loaded: Loaded,
    body: &BackupBody,
    backup: &Arc<OpenBackup>,
    options: &RestoreOptions,
    purpose: &Purpose,
    pipeline: &Pipeline,
    beside: &Beside,
) -> Result<Item, PipelineError> {
    let name = loaded.name().to_owned();
    let mut view = view::of(&name, body, backup)?;
    view.facts.extend(beside.facts(&loaded, body).await?);
    let world = live_world(&loaded).await?;
    let plan = loaded
        .component
        .plan_restore(Arc::new(world), &view, &loaded.config.limits)
        .await
        .map_err(|e| PipelineError::component(&name, e))?;
    let mut item = Item {
        view,
        steps: Vec::new(),
        notes: Vec::new(),
        databases: BTreeMap::new(),
        volumes: BTreeMap::new(),
        peers: BTreeMap::new(),
        findings: Vec::new(),
        untouched: Vec::new(),
        loaded,
    };
    check_steps(&mut item, plan, backup)?;
    only::narrow(&mut item, options)?;
    let recorded = body
        .component(&name)
        .map(|c| c.component_version.clone())
        .unwrap_or_default();
    if recorded != item.loaded.description.version {
        let text = format!(
            "the backup was planned by version {recorded} of this component, the restore by {}",
            item.loaded.description.version
        );
        item.notes.push(Note {
            severity: Severity::Info,
            text,
        });
    }
    for step in item.steps.clone() {
        // A drill is there to find out.
        if *purpose == Purpose::Restore && doubts::damaged(&mut item, step.label(), backup) {
            continue;
        }
        match step {
            Step::Volume(label) => targets::volume(&mut item, &label, backup, options, purpose).await?,
            Step::Database(label) => targets::database(&mut item, &label, backup, options, purpose, pipeline).await?,
            Step::RunSql { .. } | Step::SetOwner { .. } => {}
        }
    }
    for (label, grant) in &item.loaded.config.databases {
        if !item.databases.contains_key(label)
            && let DatabaseSource::Postgres(secret) = &grant.source
        {
            item.peers.insert(label.clone(), instant::connection(secret)?);
        }
    }
    Ok(item)
}

/// The targets as they are, as far as they can be reached: in a disaster most cannot.
pub(crate) async fn live_world(loaded: &Loaded) -> Result<Granted, PipelineError> {
    let mut world = Granted::new(loaded.name(), &loaded.config.settings, &loaded.config.limits);
    for (label, grant) in &loaded.config.databases {
        match &grant.source {
            DatabaseSource::Postgres(secret) => {
                let inspector = Inspector::new(instant::connection(secret)?);
                match inspector.info().await {
                    Ok(_) => {
                        if loaded.third_party {
                            crate::backup::open::refuse_dangers(loaded.name(), label, &inspector).await?;
                        }
                        world.databases.insert(label.clone(), Database::Postgres(inspector));
                    }
                    Err(e) => tracing::info!("{}/{label} is not there now: {e}", loaded.name()),
                }
            }
            DatabaseSource::Sqlite(path) if path.exists() => match essrun_sqlite::Sqlite::open(path).await {
                Ok(sqlite) => {
                    world.databases.insert(label.clone(), Database::Sqlite(sqlite));
                }
                Err(e) => tracing::info!("{}/{label} cannot be looked at now: {e}", loaded.name()),
            },
            DatabaseSource::Sqlite(_) => {}
        }
    }
    for (label, grant) in &loaded.config.volumes {
        match Volume::open(&grant.path) {
            Ok(volume) => {
                world.volumes.insert(label.clone(), Arc::new(volume));
            }
            Err(e) => tracing::info!("{}/{label} is not there now: {e}", loaded.name()),
        }
    }
    Ok(world)
}

fn check_steps(item: &mut Item, plan: wit::Plan, backup: &OpenBackup) -> Result<(), PipelineError> {
    let name = item.loaded.name().to_owned();
    let refuse = |problem: String| Err(PipelineError::component(&name, problem));
    let held = |label: &str| {
        let exact = format!("{name}/{label}");
        let below = format!("{name}/{label}/");
        backup
            .artifacts()
            .iter()
            .any(|a| a.name.as_str() == exact || a.name.as_str().starts_with(&below))
    };
    let mut restored: BTreeSet<(bool, String)> = BTreeSet::new();
    for step in plan.steps {
        match step {
            wit::Step::RestoreVolume(label) => {
                if !item.loaded.config.volumes.contains_key(&label) || !item.loaded.owns(&label) {
                    return refuse(format!("its plan restores volume {label:?}, which it was not granted"));
                }
                if !held(&label) {
                    return refuse(format!(
                        "its plan restores volume {label:?}, which the backup does not hold"
                    ));
                }
                if !restored.insert((false, label.clone())) {
                    return refuse(format!("its plan restores volume {label:?} twice"));
                }
                item.steps.push(Step::Volume(label));
            }
            wit::Step::RestoreDatabase(label) => {
                if !item.loaded.config.databases.contains_key(&label) || !item.loaded.owns(&label) {
                    return refuse(format!(
                        "its plan restores database {label:?}, which it was not granted"
                    ));
                }
                if !held(&label) {
                    return refuse(format!(
                        "its plan restores database {label:?}, which the backup does not hold"
                    ));
                }
                if !restored.insert((true, label.clone())) {
                    return refuse(format!("its plan restores database {label:?} twice"));
                }
                item.steps.push(Step::Database(label));
            }
            wit::Step::RunSql(s) => {
                if !restored.contains(&(true, s.database.clone())) {
                    return refuse(format!("its plan runs SQL in {:?} before restoring it", s.database));
                }
                item.steps.push(Step::RunSql {
                    label: s.database,
                    sql: s.sql,
                    why: s.why,
                });
            }
            wit::Step::SetOwner(s) => {
                if !restored.contains(&(false, s.volume.clone())) {
                    return refuse(format!("its plan sets the owner of {:?} before restoring it", s.volume));
                }
                item.steps.push(Step::SetOwner {
                    label: s.volume,
                    path: s.path,
                    uid: s.uid,
                    gid: s.gid,
                    why: s.why,
                });
            }
            wit::Step::Note(n) => item.notes.push(note(n)),
        }
    }
    let unrestored = |kind: bool, labels: Vec<&String>| -> Vec<String> {
        labels
            .into_iter()
            .filter(|l| item.loaded.owns(l) && held(l) && !restored.contains(&(kind, (*l).clone())))
            .cloned()
            .collect()
    };
    let mut left = unrestored(true, item.loaded.config.databases.keys().collect());
    left.extend(unrestored(false, item.loaded.config.volumes.keys().collect()));
    for label in left {
        let text = format!("{label} is in the backup but not part of the plan: it is not restored");
        item.notes.push(Note {
            severity: Severity::Warning,
            text,
        });
    }
    Ok(())
}
/// A finding of a component as ours.
pub fn finding(component: &str, f: wit::Finding) -> crate::body::Finding {
    crate::body::Finding {
        component: component.to_owned(),
        check: f.check,
        severity: severity(f.severity),
        message: f.message,
        remedy: f.remedy,
    }
}
