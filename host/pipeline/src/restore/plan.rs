//! What a restore will do: each component's steps, held against its grants, the backup and the targets as they are.

use super::RestoreOptions;
use crate::backup::plan::{note, severity};
use crate::body::{BackupBody, Note, Severity};
use crate::config::{DatabaseGrant, DatabaseSource, Pipeline};
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::pace::{self, Estimate};
use crate::policy::{Permission, input};
use crate::time::utc;
use crate::world::{Database, Granted};
use crate::{instant, repo};
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader};
use essrun_postgres::restore as pg;
use essrun_postgres::{Connection, Inspector};
use essrun_repository::OpenBackup;
use essrun_sandbox::contract::{restore as wit, types};
use essrun_volume::Volume;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
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
    },
}

/// Where a volume goes.
pub struct VolumeTarget {
    pub record: ArtifactRecord,
    pub path: PathBuf,
    pub options: essrun_volume::RestoreOptions,
    pub plan: essrun_volume::RestorePlan,
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
    for target in options.targets.keys() {
        let known = loaded.iter().any(|l| {
            target.split_once('/').is_some_and(|(c, label)| {
                l.name() == c && (l.config.databases.contains_key(label) || l.config.volumes.contains_key(label))
            })
        });
        if !known {
            return Err(PipelineError::refused(
                format!("--to names {target:?}, which this restore does not have"),
                "name a component and one of its labels, as `essrun validate` lists them",
            ));
        }
    }
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
            if options.only.contains(&name) {
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
        items.push(item(one, &body, &backup, options, &purpose, pipeline).await?);
    }
    if items.is_empty() {
        return Err(PipelineError::refused(
            format!("backup {id} holds nothing that {} names", pipeline.file.display()),
            "`essrun show` tells what it holds",
        ));
    }
    Ok(Planned {
        id,
        body,
        backup,
        items,
        notes,
        estimate: None,
        permission: None,
    })
}

async fn item(
    loaded: Loaded,
    body: &BackupBody,
    backup: &Arc<OpenBackup>,
    options: &RestoreOptions,
    purpose: &Purpose,
    pipeline: &Pipeline,
) -> Result<Item, PipelineError> {
    let name = loaded.name().to_owned();
    let view = view(&name, body, backup)?;
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
        loaded,
    };
    check_steps(&mut item, plan, backup)?;
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
        match step {
            Step::Volume(label) => volume_target(&mut item, &label, backup, options, purpose).await?,
            Step::Database(label) => database_target(&mut item, &label, backup, options, purpose, pipeline).await?,
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

/// The backup as the component sees it.
pub(crate) fn view(name: &str, body: &BackupBody, backup: &OpenBackup) -> Result<wit::BackupView, PipelineError> {
    let Some(component) = body.component(name) else {
        return Err(PipelineError::Internal(format!(
            "component {name} is not in the backup"
        )));
    };
    let prefix = format!("{name}/");
    let artifacts = backup
        .artifacts()
        .iter()
        .filter_map(|a| {
            let rest = a.name.as_str().strip_prefix(&prefix)?;
            Some(wit::Artifact {
                name: rest.to_owned(),
                kind: a.kind.clone(),
                items: repo::items(a),
                size_bytes: repo::size(a),
            })
        })
        .collect();
    Ok(wit::BackupView {
        id: backup.summary().id.to_string(),
        taken_at_unix_seconds: component.taken_at,
        component_version: component.component_version.clone(),
        facts: component
            .facts
            .iter()
            .map(|f| types::Fact {
                key: f.key.clone(),
                value: f.value.clone(),
            })
            .collect(),
        artifacts,
    })
}

/// The targets as they are, as far as they can be reached: in a disaster most cannot.
pub(crate) async fn live_world(loaded: &Loaded) -> Result<Granted, PipelineError> {
    let mut world = Granted::new(loaded.name(), &loaded.config.settings);
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

async fn volume_target(
    item: &mut Item,
    label: &str,
    backup: &OpenBackup,
    options: &RestoreOptions,
    purpose: &Purpose,
) -> Result<(), PipelineError> {
    let what = format!("{}/{label}", item.loaded.name());
    let record = record(backup, &what)?;
    let path = match purpose {
        Purpose::Drill { folder, .. } => folder.join(item.loaded.name()).join(label),
        Purpose::Restore => match (options.targets.get(&what), item.loaded.config.volumes.get(label)) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(grant)) => grant.path.clone(),
            (None, None) => return Err(PipelineError::Internal(format!("{what} is not granted"))),
        },
    };
    let volume_options = essrun_volume::RestoreOptions {
        replace: options.replace,
        jobs: 2,
        ..essrun_volume::RestoreOptions::default()
    };
    // Nothing is made while planning: a path whose parents are not there is planned at the first one that will be made.
    let (plan_at, missing) = first_missing(&path);
    if missing && *purpose == Purpose::Restore {
        item.findings.push(Precondition {
            label: label.to_owned(),
            check: "parent-missing".into(),
            severity: Severity::Warning,
            message: format!("{} is not there and will be made", plan_at.display()),
            remedy: "if it should be a mounted volume, mount it first".into(),
        });
    }
    let planned = essrun_volume::restore::plan(&record, &plan_at, volume_options).await;
    let plan = match planned {
        Ok(plan) => plan,
        Err(essrun_volume::VolumeError::Destination { path, why, hint }) => {
            item.findings.push(Precondition {
                label: label.to_owned(),
                check: "volume-destination".into(),
                severity: Severity::Error,
                message: format!("{path}: {why}"),
                remedy: elsewhere_or_replace(&what, hint),
            });
            return Ok(());
        }
        Err(e) => return Err(PipelineError::restoring(what, e)),
    };
    for f in &plan.findings {
        item.findings.push(Precondition {
            label: label.to_owned(),
            check: f.check.to_owned(),
            severity: if f.fatal { Severity::Error } else { Severity::Warning },
            message: f.message.clone(),
            remedy: f.remedy.clone(),
        });
    }
    item.volumes.insert(
        label.to_owned(),
        VolumeTarget {
            record,
            path,
            options: volume_options,
            plan,
        },
    );
    Ok(())
}

async fn database_target(
    item: &mut Item,
    label: &str,
    backup: &Arc<OpenBackup>,
    options: &RestoreOptions,
    purpose: &Purpose,
    pipeline: &Pipeline,
) -> Result<(), PipelineError> {
    let what = format!("{}/{label}", item.loaded.name());
    let Some(grant) = item.loaded.config.databases.get(label).cloned() else {
        return Err(PipelineError::Internal(format!("{what} is not granted")));
    };
    match &grant.source {
        DatabaseSource::Sqlite(path) => {
            let path = match purpose {
                Purpose::Drill { folder, .. } => folder.join(item.loaded.name()).join(format!("{label}.sqlite")),
                Purpose::Restore => options.targets.get(&what).map_or_else(|| path.clone(), PathBuf::from),
            };
            if !options.replace && non_empty(&path) {
                item.findings.push(Precondition {
                    label: label.to_owned(),
                    check: "target-not-empty".into(),
                    severity: Severity::Error,
                    message: format!("{} is there and not empty", path.display()),
                    remedy: elsewhere_or_replace(&what, String::new()),
                });
            }
            let record = Box::new(record(backup, &what)?);
            item.databases.insert(
                label.to_owned(),
                DatabaseTarget::Sqlite {
                    record,
                    path,
                    replace: options.replace,
                },
            );
        }
        DatabaseSource::Postgres(_) => {
            let (target, pg_options) = postgres_options(&what, &grant, backup, options, purpose, pipeline)?;
            let reader: &dyn BackupReader = backup.as_ref();
            let plan = pg::plan(reader, &what, &target, &pg_options)
                .await
                .map_err(|e| PipelineError::restoring(what.clone(), e))?;
            for f in &plan.findings {
                item.findings.push(Precondition {
                    label: label.to_owned(),
                    check: f.check.clone(),
                    severity: match f.severity {
                        pg::Severity::Info => Severity::Info,
                        pg::Severity::Warning => Severity::Warning,
                        pg::Severity::Error => Severity::Error,
                    },
                    message: f.message.clone(),
                    remedy: match f.check.as_str() {
                        "target-not-empty" => elsewhere_or_replace(&what, f.remedy.clone()),
                        _ => f.remedy.clone(),
                    },
                });
            }
            let (options, plan) = (Box::new(pg_options), Box::new(plan));
            item.databases
                .insert(label.to_owned(), DatabaseTarget::Postgres { target, options, plan });
        }
    }
    Ok(())
}

/// The connection that creates and renames databases, and the database it maintains them from, where that was given.
pub(super) fn postgres_target(
    what: &str,
    grant: &DatabaseGrant,
) -> Result<(Connection, Option<String>), PipelineError> {
    match (&grant.admin, &grant.source) {
        (Some(admin), _) => {
            let admin = instant::connection(admin)?;
            let maintenance = admin.database().to_owned();
            Ok((admin, Some(maintenance)))
        }
        (None, DatabaseSource::Postgres(secret)) => Ok((instant::connection(secret)?, None)),
        (None, DatabaseSource::Sqlite(_)) => Err(PipelineError::Internal(format!("{what} is no PostgreSQL database"))),
    }
}

fn postgres_options(
    what: &str,
    grant: &DatabaseGrant,
    backup: &OpenBackup,
    options: &RestoreOptions,
    purpose: &Purpose,
    pipeline: &Pipeline,
) -> Result<(Connection, pg::RestoreOptions), PipelineError> {
    let (target, maintenance) = postgres_target(what, grant)?;
    let database = match (options.targets.get(what), &grant.source) {
        (Some(name), _) => name.clone(),
        (None, DatabaseSource::Postgres(secret)) => instant::connection(secret)?.database().to_owned(),
        (None, DatabaseSource::Sqlite(_)) => return Err(PipelineError::Internal(format!("{what} is SQLite"))),
    };
    let (run, pg_purpose) = match purpose {
        Purpose::Restore => (backup.summary().id.to_string(), pg::Purpose::Restore),
        Purpose::Drill { run, .. } => (run.clone(), pg::Purpose::Drill),
    };
    let mut pg_options = pg::RestoreOptions::new(run, database, pg_purpose);
    pg_options.owner = grant.owner.clone();
    pg_options.jobs = pipeline.run.jobs;
    pg_options.replace = options.replace;
    if let Some(maintenance) = maintenance {
        pg_options.maintenance_database = maintenance;
    }
    Ok((target, pg_options))
}

/// What to do about a target that holds something, in the words of the command line.
fn elsewhere_or_replace(what: &str, otherwise: String) -> String {
    let way = format!("--replace puts it aside under a dated name, --to {what}=TARGET restores elsewhere");
    if otherwise.is_empty() {
        way
    } else {
        format!("{way} ({otherwise})")
    }
}

/// The path itself when its parent is there; else the outermost of its parents that is not, and `true`.
fn first_missing(path: &Path) -> (PathBuf, bool) {
    let mut at = path;
    while let Some(parent) = at.parent() {
        if parent.as_os_str().is_empty() || parent.exists() {
            break;
        }
        at = parent;
    }
    (at.to_owned(), at != path)
}

fn non_empty(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.len() > 0)
}

fn record(backup: &OpenBackup, name: &str) -> Result<ArtifactRecord, PipelineError> {
    let name = ArtifactName::new(name).map_err(|e| PipelineError::Internal(e.to_string()))?;
    backup.artifact(&name).cloned().ok_or_else(|| {
        PipelineError::refused(
            format!("the backup holds no artifact {name}"),
            "`essrun show --artifacts` lists them",
        )
    })
}

/// One line of a plan, for `--json`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    event: &'static str,
    backup: String,
    blocked: bool,
    /// `null` as long as no drill was measured.
    estimate: Option<Estimate>,
    /// `null` where the policy does not decide on restores.
    policy: Option<Permission>,
    notes: Vec<Note>,
    components: Vec<ItemSummary>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ItemSummary {
    component: String,
    tier: crate::body::Tier,
    steps: Vec<String>,
    notes: Vec<Note>,
    preconditions: Vec<Precondition>,
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
        (database_bytes.sum(), files.map(|v| v.plan.bytes).sum())
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

    /// What is written, as the policy is told it.
    pub fn targets(&self) -> Vec<input::Target> {
        self.items.iter().flat_map(Item::targets).collect()
    }

    /// The plan, as the policy is told it.
    pub fn steps(&self) -> Vec<input::Step> {
        let of = |i: &Item, s: &Step| input::Step {
            component: i.loaded.name().to_owned(),
            step: i.step_words(s),
        };
        self.items
            .iter()
            .flat_map(|i| i.steps.iter().map(move |s| of(i, s)))
            .collect()
    }

    pub fn refuse_if_blocked(&self) -> Result<(), PipelineError> {
        let stops: Vec<String> = self
            .items
            .iter()
            .flat_map(|i| i.findings.iter().map(move |f| (i.loaded.name(), f)))
            .filter(|(_, f)| f.severity == Severity::Error)
            .map(|(name, f)| format!("{name}/{} {}: {}; {}", f.label, f.check, f.message, f.remedy))
            .collect();
        if stops.is_empty() {
            return self.permission.as_ref().map_or(Ok(()), Permission::or_refuse);
        }
        Err(PipelineError::refused(
            stops.join("\n  "),
            "nothing was changed; mend what is listed and start again",
        ))
    }

    pub fn summary(&self) -> Summary {
        Summary {
            event: "restore-plan",
            backup: self.id.clone(),
            blocked: self.blocked(),
            estimate: self.estimate.clone(),
            policy: self.permission.clone(),
            notes: self.notes.clone(),
            components: self
                .items
                .iter()
                .map(|i| ItemSummary {
                    component: i.loaded.name().to_owned(),
                    tier: i.loaded.tier(),
                    steps: i.steps.iter().map(|s| i.step_words(s)).collect(),
                    notes: i.notes.clone(),
                    preconditions: i.findings.clone(),
                })
                .collect(),
        }
    }

    /// In words.
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let mut t = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(
            t,
            "restore of backup {}, taken {} UTC on {} by pipeline {:?}",
            self.id,
            utc(self.body.started_at),
            self.body.host,
            self.body.pipeline
        );
        let _ = writeln!(t, "{}", pace::in_words(self.estimate.as_ref()));
        for n in &self.notes {
            let _ = writeln!(t, "{}: {}", n.severity, n.text);
        }
        match &self.permission {
            None => {}
            Some(p) if p.allowed => t.push_str("the policy allows it\n"),
            Some(p) => {
                let _ = writeln!(t, "ERROR: the policy says no: {}", p.why());
            }
        }
        for i in &self.items {
            let _ = writeln!(
                t,
                "\n{} ({}, {})",
                i.loaded.name(),
                i.loaded.description.system,
                i.loaded.tier()
            );
            for (number, step) in i.steps.iter().enumerate() {
                let _ = writeln!(t, "  {}. {}", number + 1, i.step_words(step));
            }
            let _ = writeln!(
                t,
                "  {}. verify, then put in service when every component is good",
                i.steps.len() + 1
            );
            for f in i.findings.iter().filter(|f| f.severity > Severity::Info) {
                let _ = writeln!(t, "  {} {} {}: {}", f.severity, f.label, f.check, f.message);
                if !f.remedy.is_empty() {
                    let _ = writeln!(t, "      to do: {}", f.remedy);
                }
            }
            for n in &i.notes {
                let _ = writeln!(
                    t,
                    "  {}: {}",
                    if n.severity == Severity::Info {
                        "note".into()
                    } else {
                        n.severity.to_string()
                    },
                    n.text
                );
            }
        }
        t
    }
}

impl Item {
    fn targets(&self) -> Vec<input::Target> {
        let holds = |label: &str, check: &str| self.findings.iter().any(|f| f.label == label && f.check == check);
        let target = |label: &str, kind, place: String, live| input::Target {
            component: self.loaded.name().to_owned(),
            label: label.to_owned(),
            kind,
            place,
            live,
        };
        let mut targets = Vec::new();
        for step in &self.steps {
            match step {
                Step::Volume(label) => targets.push(match self.volumes.get(label) {
                    Some(v) => target(label, "volume", v.path.display().to_string(), v.plan.replaces),
                    // Not planned further, because something is in the way there.
                    None => target(label, "volume", String::new(), true),
                }),
                Step::Database(label) => targets.push(match self.databases.get(label) {
                    Some(DatabaseTarget::Postgres { plan, .. }) => {
                        let server = plan.target.split('/').next().unwrap_or_default();
                        let place = format!("{server}/{}", plan.database);
                        target(label, "postgres", place, holds(label, "target-not-empty"))
                    }
                    Some(DatabaseTarget::Sqlite { path, .. }) => {
                        target(label, "sqlite", path.display().to_string(), non_empty(path))
                    }
                    None => target(label, "postgres", String::new(), true),
                }),
                Step::RunSql { .. } | Step::SetOwner { .. } => {}
            }
        }
        targets
    }

    fn step_words(&self, step: &Step) -> String {
        match step {
            Step::Volume(label) => match self.volumes.get(label) {
                Some(v) => format!(
                    "volume {label} → {} ({} entries, {} bytes{})",
                    v.path.display(),
                    v.plan.entries,
                    v.plan.bytes,
                    if v.plan.replaces {
                        "; what is there is kept under a dated name"
                    } else {
                        ""
                    }
                ),
                None => format!("volume {label}: see what stands in the way below"),
            },
            Step::Database(label) => match self.databases.get(label) {
                Some(DatabaseTarget::Postgres { plan, .. }) => format!(
                    "database {label} → new database {}, to become {} ({} tables, {} rows, {} bytes)",
                    plan.scratch,
                    plan.database,
                    plan.tables.len(),
                    plan.rows,
                    plan.bytes
                ),
                Some(DatabaseTarget::Sqlite { path, record, .. }) => {
                    format!(
                        "SQLite database {label} → {} ({} bytes)",
                        path.display(),
                        record.content.bytes
                    )
                }
                None => format!("database {label}: see what stands in the way below"),
            },
            Step::RunSql { label, sql, why } => format!("in {label}: {sql}  ({why})"),
            Step::SetOwner {
                label,
                path,
                uid,
                gid,
                why,
            } => {
                let path = if path.is_empty() { "all of it" } else { path };
                format!("owner of {label}, {path}: {uid}:{gid}  ({why})")
            }
        }
    }
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
