//! Where a restore puts things, and what must hold there before the first step. Nothing is made or changed here.

use super::plan::{DatabaseTarget, Item, Precondition, Purpose, VolumeTarget};
use super::{RestoreOptions, leftovers};
use crate::backup::open::refuse_role;
use crate::body::{BackupBody, Severity};
use crate::config::{DatabaseGrant, DatabaseSource, Pipeline};
use crate::error::PipelineError;
use crate::instant;
use crate::peers;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader};
use essrun_postgres::restore as pg;
use essrun_postgres::{Connection, Inspector};
use essrun_repository::OpenBackup;
use essrun_volume::{LeftoverState, VolumeError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A name nothing has, to plan with.
const AFTER_SWAP: &str = ".essrun-after-swap";

pub(super) async fn volume(
    item: &mut Item,
    label: &str,
    backup: &Arc<OpenBackup>,
    options: &RestoreOptions,
    purpose: &Purpose,
) -> Result<(), PipelineError> {
    let what = format!("{}/{label}", item.loaded.name());
    let record = record(backup, &what)?;
    let path = match purpose {
        Purpose::Drill { folder, .. } => folder.join(item.loaded.name()).join(label),
        Purpose::Restore => match item.loaded.config.volumes.get(label) {
            Some(grant) => options.place(&what, &grant.path)?,
            None => return Err(PipelineError::Internal(format!("{what} is not granted"))),
        },
    };
    let mut volume_options = essrun_volume::RestoreOptions {
        replace: options.replace,
        jobs: 2,
        resume: options.resume,
        keep_unfinished: *purpose == Purpose::Restore,
        origin: volume_origin(item, &record, &path)?,
        ..essrun_volume::RestoreOptions::default()
    };
    let left = match purpose {
        Purpose::Restore => leftovers::of_volume(&what, &path).await?,
        Purpose::Drill { .. } => Vec::new(),
    };
    let unfinished = left.iter().find(|l| l.state == LeftoverState::Swapping);
    let there = path.symlink_metadata().is_ok_and(|m| m.is_dir());
    let in_place = options.resume && there && unfinished.is_none() && {
        let reader: Arc<dyn BackupReader> = backup.clone();
        match essrun_volume::restore::in_place(reader, &record, &path).await {
            Ok(found) => found,
            // Told below, with the plan.
            Err(VolumeError::Destination { .. }) => false,
            Err(e) => return Err(PipelineError::restoring(what.clone(), e)),
        }
    };
    if in_place {
        item.findings.push(Precondition {
            label: label.to_owned(),
            check: "in-place".into(),
            severity: Severity::Info,
            message: format!("{} holds every file as the backup has it, and no other", path.display()),
            remedy: String::new(),
        });
        volume_options.replace = true;
    }
    for stopped in left
        .iter()
        .filter(|l| !options.resume && matches!(l.state, LeftoverState::Extracting | LeftoverState::Complete))
    {
        item.findings.push(Precondition {
            label: label.to_owned(),
            check: "leftover".into(),
            severity: Severity::Warning,
            message: format!(
                "{}, left by a restore that was stopped, is removed first",
                stopped.path.display()
            ),
            remedy: "the same command with --resume goes on with it instead".into(),
        });
    }
    // Nothing is made while planning: a path whose parents are not there is planned at the first one that will be made.
    let (mut plan_at, missing) = first_missing(&path);
    if let Some(left) = unfinished {
        item.findings.push(Precondition {
            label: label.to_owned(),
            check: "swap-unfinished".into(),
            severity: Severity::Info,
            message: format!(
                "a swap of {} that was cut short, see {}, is brought to its end first",
                path.display(),
                left.path.display()
            ),
            remedy: String::new(),
        });
        if !options.replace && !options.resume {
            item.findings.push(Precondition {
                label: label.to_owned(),
                check: "volume-destination".into(),
                severity: Severity::Error,
                message: format!("{}: is not empty once that swap is at its end", path.display()),
                remedy: elsewhere_or_replace(&what, "--resume ends it, and keeps what is as the backup has it".into()),
            });
            return Ok(());
        }
        // What is there until then says nothing of what will be; a name beside it has the same file system.
        plan_at = match there {
            true => path.join(AFTER_SWAP),
            false => path.with_file_name(AFTER_SWAP),
        };
    }
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
        Ok(plan) => essrun_volume::RestorePlan {
            replaces: plan.replaces || unfinished.is_some(),
            ..plan
        },
        Err(VolumeError::Destination { path, why, hint }) => {
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
    volume_options.planned_mount_point = Some(plan.mount_point);
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
            in_place,
        },
    );
    Ok(())
}

pub(super) async fn database(
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
                Purpose::Restore => options.place(&what, path)?,
            };
            let (plan_at, _) = first_missing(&path);
            let staged_in = match essrun_sqlite::plan_restore(&plan_at, true).await {
                Ok(staged_in) => staged_in,
                Err(essrun_sqlite::SqliteError::Destination { path, why, hint }) => {
                    item.findings.push(Precondition {
                        label: label.to_owned(),
                        check: "sqlite-destination".into(),
                        severity: Severity::Error,
                        message: format!("{path}: {why}"),
                        remedy: hint,
                    });
                    return Ok(());
                }
                Err(e) => return Err(PipelineError::restoring(what, e)),
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
                    staged_in,
                },
            );
        }
        DatabaseSource::Postgres(_) => {
            let (target, mut pg_options) = postgres_options(&what, &grant, backup, options, purpose, pipeline)?;
            pg_options.origin = item.origin();
            let reader: &dyn BackupReader = backup.as_ref();
            let plan = pg::plan(reader, &what, &target, &pg_options)
                .await
                .map_err(|e| PipelineError::restoring(what.clone(), e))?;
            if pg_options.clears {
                let told = leftovers::told(label, &target, &pg_options, &plan).await?;
                item.findings.extend(told);
            }
            // Of what stopped restores left it knows the name only.
            let own = |f: &&pg::Finding| f.check != "leftover";
            for f in plan.findings.iter().filter(own) {
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
                        "extension-drift" => format!("{} (--allow-drift)", f.remedy),
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

/// SQL of a plan runs, and verify looks, through the role that makes the new databases. For a component from elsewhere
/// it must reach no further than the role of its grant may: what it is set to can be set back.
pub(super) async fn refuse_strong(items: &[Item], body: &BackupBody) -> Result<(), PipelineError> {
    let again = peers::Restored::of(items.iter().map(|i| &i.loaded), body, |_, _| true)?;
    for item in items.iter().filter(|i| i.loaded.third_party) {
        for (label, target) in &item.databases {
            refuse_strong_one(item.loaded.name(), label, target).await?;
        }
        // Of a peer that is restored too it sees what was restored, through the role of whoever restores it.
        for (label, connection) in &item.peers {
            let restored = again.find(&item.loaded, label, connection, body).await;
            let Some((owner, theirs)) = restored.and_then(|name| name.split_once('/')) else {
                continue;
            };
            let owner = items.iter().find(|i| i.loaded.name() == owner);
            if let Some(target) = owner.and_then(|i| i.databases.get(theirs)) {
                refuse_strong_one(item.loaded.name(), label, target).await?;
            }
        }
    }
    Ok(())
}

async fn refuse_strong_one(component: &str, label: &str, target: &DatabaseTarget) -> Result<(), PipelineError> {
    let DatabaseTarget::Postgres { target, options, .. } = target else {
        return Ok(());
    };
    // A database that is there before the restore; the role's rights are the whole server's.
    refuse_restorer(component, label, target.with_database(&options.maintenance_database)).await
}

/// Of the role that a component's databases are restored by.
pub(crate) async fn refuse_restorer(component: &str, label: &str, role: Connection) -> Result<(), PipelineError> {
    let hint = "name in its `admin-url-env` or `admin-url-file` a role that is no superuser: one with CREATEDB that is a \
         member of the owner";
    refuse_role(component, &Inspector::new(role), (label, "that restores"), hint).await
}

/// The connection that creates and renames databases, and the database it maintains them from, where that was given.
pub(crate) fn postgres_target(
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
    pg_options.allow_drift = options.allow_drift;
    pg_options.resume = options.resume;
    pg_options.clears = *purpose == Purpose::Restore && !options.resume;
    pg_options.keep_unfinished = *purpose == Purpose::Restore;
    if let Some(maintenance) = maintenance {
        pg_options.maintenance_database = maintenance;
    }
    Ok((target, pg_options))
}

/// What a stopped restore of a volume must have been of to be gone on with.
fn volume_origin(item: &Item, record: &ArtifactRecord, path: &Path) -> Result<[u8; 32], PipelineError> {
    let whole = serde_json::to_vec(&(item.origin(), &item.view.id, record, path))
        .map_err(|e| PipelineError::Internal(e.to_string()))?;
    Ok(*blake3::hash(&whole).as_bytes())
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

pub(super) fn non_empty(path: &Path) -> bool {
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
