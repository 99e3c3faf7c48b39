//! Restores beside what is live, and lets each component verify what it sees there.

use super::plan::{DatabaseTarget, Item, Planned, Step, finding, live_world};
use crate::body::{Finding, Severity};
use crate::error::PipelineError;
use crate::pace::Pace;
use crate::peers;
use crate::report::{Event, Reporter};
use crate::world::{Database, Granted};
use essrun_artifact::{BackupReader, Progress};
use essrun_postgres::{Inspector, restore as pg};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Everything that was restored and is not yet in service, by component and label.
#[derive(Default)]
pub struct Staged {
    pub postgres: BTreeMap<(String, String), pg::Restored>,
    pub sqlite: BTreeMap<(String, String), essrun_sqlite::Staged>,
    pub volumes: BTreeMap<(String, String), essrun_volume::Staged>,
    /// How fast it went.
    pub pace: Pace,
}

impl Staged {
    /// Removes everything staged, or says where it is.
    pub async fn drop_or_keep(self, keep: bool) {
        if keep {
            for ((component, label), r) in &self.postgres {
                tracing::warn!("{component}/{label}: kept as database {}", r.scratch());
            }
            for ((component, label), s) in &self.volumes {
                tracing::warn!("{component}/{label}: kept in {}", s.root().display());
            }
            // An SQLite file removes itself when dropped: leak the guard, keep the file.
            for ((component, label), s) in self.sqlite {
                tracing::warn!("{component}/{label}: kept in {}", s.path().display());
                std::mem::forget(s);
            }
            return;
        }
        for problem in self.discard().await {
            tracing::warn!("{problem}; the next drill or restore removes it");
        }
    }

    /// Leaves everything staged for a resume. A staged SQLite file goes: it is restored in one piece.
    pub async fn leave(self) {
        for ((component, label), s) in self.sqlite {
            if let Err(e) = s.discard().await {
                tracing::warn!("{component}/{label}: a staged file is left behind: {e}; the next restore removes it");
            }
        }
    }

    /// Removes everything staged; answers what could not be removed.
    pub async fn discard(self) -> Vec<String> {
        let mut problems = Vec::new();
        for ((component, label), r) in self.postgres {
            let scratch = r.scratch().to_owned();
            if let Err(e) = r.drop_scratch().await {
                problems.push(format!("{component}/{label}: database {scratch} is left behind: {e}"));
            }
        }
        for ((component, label), s) in self.sqlite {
            if let Err(e) = s.discard().await {
                problems.push(format!("{component}/{label}: a staged file is left behind: {e}"));
            }
        }
        for ((component, label), s) in self.volumes {
            let root = s.root().display().to_string();
            if let Err(e) = s.discard().await {
                problems.push(format!("{component}/{label}: {root} is left behind: {e}"));
            }
        }
        problems
    }
}

/// Stages all components. The first failure ends it; what was staged stays for a restore to be gone on with, and is removed
/// by a drill.
pub async fn everything(planned: &Planned, reporter: &Arc<dyn Reporter>) -> Result<Staged, PipelineError> {
    let reader: Arc<dyn BackupReader> = planned.backup.clone();
    let mut staged = Staged::default();
    for item in &planned.items {
        if let Err(e) = one(item, &reader, &mut staged, reporter).await {
            return Err(given_up(planned, staged, e).await);
        }
    }
    let mut unsettled = None;
    for ((component, label), restored) in &mut staged.postgres {
        if let Err(e) = restored.settle().await {
            unsettled = Some(PipelineError::at_target(format!("{component}/{label}"), e));
            break;
        }
    }
    match unsettled {
        None => Ok(staged),
        Some(e) => Err(given_up(planned, staged, e).await),
    }
}

/// A restore that failed leaves what it did, a drill nothing.
async fn given_up(planned: &Planned, staged: Staged, error: PipelineError) -> PipelineError {
    if planned.resumable {
        staged.leave().await;
        return error.and_note(super::TO_RESUME);
    }
    staged.drop_or_keep(false).await;
    error
}

async fn one(
    item: &Item,
    reader: &Arc<dyn BackupReader>,
    staged: &mut Staged,
    reporter: &Arc<dyn Reporter>,
) -> Result<(), PipelineError> {
    let component = item.loaded.name().to_owned();
    let progress: Arc<dyn Progress> = reporter.clone();
    let mut steps = item.steps.iter().peekable();
    while let Some(step) = steps.next() {
        let began = Instant::now();
        match step {
            Step::Volume(label) => {
                let Some(target) = item.volumes.get(label) else {
                    return Err(unplanned(&component, label));
                };
                if target.in_place {
                    progress.kept(
                        target.record.name.as_str(),
                        "in service already; read back, and as the backup has it",
                    );
                    continue;
                }
                make_parents(&target.path)?;
                let tree = essrun_volume::restore::execute(
                    reader.clone(),
                    &target.record,
                    &target.path,
                    target.options,
                    progress.clone(),
                )
                .await
                .map_err(|e| PipelineError::restoring(format!("{component}/{label}"), e))?;
                staged.pace.add_files(target.plan.bytes, began.elapsed());
                staged.volumes.insert((component.clone(), label.clone()), tree);
            }
            Step::Database(label) => match item.databases.get(label) {
                Some(DatabaseTarget::Postgres { plan, .. }) if plan.in_service.is_some() => {
                    progress.kept(&plan.prefix, "in service already");
                }
                Some(DatabaseTarget::Postgres { target, options, plan }) => {
                    let restored = pg::execute(reader.clone(), plan, target, options, progress.clone())
                        .await
                        .map_err(|e| PipelineError::restoring(format!("{component}/{label}"), e))?;
                    staged.pace.add_database(plan.bytes, began.elapsed());
                    let done = restored.report();
                    if done.kept_tables > 0 {
                        reporter.event(Event::Kept {
                            artifact: plan.prefix.clone(),
                            why: format!(
                                "{} of {} tables loaded before; read back, and as the backup has them",
                                done.kept_tables, done.tables
                            ),
                        });
                    }
                    staged.postgres.insert((component.clone(), label.clone()), restored);
                }
                Some(DatabaseTarget::Sqlite {
                    record, path, replace, ..
                }) => {
                    let options = essrun_sqlite::RestoreOptions {
                        replace: *replace,
                        ..essrun_sqlite::RestoreOptions::default()
                    };
                    make_parents(path)?;
                    let file = essrun_sqlite::restore(reader.clone(), record, path, options, progress.clone())
                        .await
                        .map_err(|e| PipelineError::restoring(format!("{component}/{label}"), e))?;
                    staged.pace.add_database(record.content.bytes, began.elapsed());
                    staged.sqlite.insert((component.clone(), label.clone()), file);
                }
                None => return Err(unplanned(&component, label)),
            },
            Step::RunSql { label, sql, .. } => {
                let mut statements = vec![sql.clone()];
                while let Some(Step::RunSql { label: next, sql, .. }) = steps.peek()
                    && next == label
                {
                    statements.push(sql.clone());
                    steps.next();
                }
                let key = (component.clone(), label.clone());
                let what = format!("{component}/{label}: SQL of the plan");
                if item.databases.get(label).is_some_and(DatabaseTarget::in_service) {
                    progress.kept(&what, "it ran before the database was put in service");
                } else if let Some(restored) = staged.postgres.get(&key) {
                    let ran = restored.run_sql(&statements).await;
                    if !ran.map_err(|e| PipelineError::at_target(what.clone(), e))? {
                        reporter.event(Event::Kept {
                            artifact: what,
                            why: "it ran before".to_owned(),
                        });
                    }
                } else if let Some(file) = staged.sqlite.get(&key) {
                    file.run_sql(&statements)
                        .await
                        .map_err(|e| PipelineError::at_target(what, e))?;
                } else {
                    return Err(unplanned(&component, label));
                }
            }
            Step::SetOwner {
                label, path, uid, gid, ..
            } => {
                if item.volumes.get(label).is_some_and(|v| v.in_place) {
                    continue;
                }
                let Some(tree) = staged.volumes.get_mut(&(component.clone(), label.clone())) else {
                    return Err(unplanned(&component, label));
                };
                tree.set_owner(path, *uid, *gid)
                    .await
                    .map_err(|e| PipelineError::at_target(format!("{component}/{label}"), e))?;
            }
        }
    }
    Ok(())
}

/// On a new machine the directories above a destination are not there yet.
fn make_parents(destination: &Path) -> Result<(), PipelineError> {
    match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => std::fs::create_dir_all(parent)
            .map_err(|e| PipelineError::at_target(format!("{} cannot be made", parent.display()), e)),
        _ => Ok(()),
    }
}

fn unplanned(component: &str, label: &str) -> PipelineError {
    PipelineError::Internal(format!("{component}/{label} was to be restored without a target"))
}

/// Lets every component look at what was restored. All findings are told; errors among them are for the caller.
pub async fn verify(
    planned: &Planned,
    staged: &Staged,
    reporter: &dyn Reporter,
) -> Result<Vec<Finding>, PipelineError> {
    let mut findings = Vec::new();
    for item in &planned.items {
        let component = item.loaded.name();
        // It was verified before the swap, and may have been written to since.
        if item.in_service() {
            continue;
        }
        let world = restored_world(planned, item, staged).await?;
        let mut view = item.view.clone();
        // What is in service again may have been written to: it need not be any more what a component saw in the snapshot.
        if planned
            .items
            .iter()
            .any(|i| i.databases.values().any(DatabaseTarget::in_service))
        {
            view.facts.retain(|f| !peers::is_taken_as(&f.key));
        }
        let found = item
            .loaded
            .component
            .verify(Arc::new(world.clone()), &view, &item.loaded.config.limits)
            .await
            .map_err(|e| world.blame(e))?;
        let mut found: Vec<Finding> = found.into_iter().map(|f| finding(component, f)).collect();
        for (key, tree) in staged.volumes.iter().filter(|(key, _)| key.0 == component) {
            found.extend(tree.findings().iter().map(|f| Finding {
                component: component.to_owned(),
                check: f.check.to_owned(),
                severity: if f.fatal { Severity::Error } else { Severity::Warning },
                message: format!("{}: {}", key.1, f.message),
                remedy: f.remedy.clone(),
            }));
        }
        for (key, file) in staged.sqlite.iter().filter(|(key, _)| key.0 == component) {
            found.extend(file.warnings().iter().map(|w| Finding {
                component: component.to_owned(),
                check: "sqlite-restore".to_owned(),
                severity: Severity::Warning,
                message: format!("{}: {w}", key.1),
                remedy: String::new(),
            }));
        }
        for f in &found {
            reporter.event(Event::Finding { finding: f.clone() });
        }
        findings.extend(found);
    }
    Ok(findings)
}

/// What one component sees in verify: what was restored of its own, and of its peers where they were restored too; as it is
/// now what of its own was not asked for, and the peers that are not restored.
async fn restored_world(planned: &Planned, item: &Item, staged: &Staged) -> Result<Granted, PipelineError> {
    let component = item.loaded.name();
    let mut world = Granted::new(component, &item.loaded.config.settings, &item.loaded.config.limits);
    for ((owner, label), restored) in &staged.postgres {
        if owner == component {
            world
                .databases
                .insert(label.clone(), Database::Postgres(restored.inspector()));
        }
    }
    for ((owner, label), file) in &staged.sqlite {
        if owner == component {
            let sqlite = file
                .open()
                .await
                .map_err(|e| PipelineError::at_target(format!("{owner}/{label}"), e))?;
            world.databases.insert(label.clone(), Database::Sqlite(sqlite));
        }
    }
    for ((owner, label), tree) in &staged.volumes {
        if owner == component {
            let volume = tree
                .volume()
                .map_err(|e| PipelineError::at_target(format!("{owner}/{label}"), e))?;
            world.volumes.insert(label.clone(), Arc::new(volume));
        }
    }
    for (label, target) in item.volumes.iter().filter(|(_, target)| target.in_place) {
        let volume = essrun_volume::Volume::open(&target.path)
            .map_err(|e| PipelineError::source(format!("{component}/{label}"), e))?;
        world.volumes.insert(label.clone(), Arc::new(volume));
    }
    for (label, target) in &item.databases {
        if let Some(inspector) = target.inspect_in_service() {
            world.databases.insert(label.clone(), Database::Postgres(inspector));
        }
    }
    if !item.untouched.is_empty() {
        let mut live = live_world(&item.loaded).await?;
        for label in &item.untouched {
            if let Some(database) = live.databases.remove(label) {
                world.databases.insert(label.clone(), database);
            }
            if let Some(volume) = live.volumes.remove(label) {
                world.volumes.insert(label.clone(), volume);
            }
        }
    }
    let again = peers::Restored::of(planned.items.iter().map(|i| &i.loaded), &planned.body, |_, _| true)?;
    for (label, connection) in &item.peers {
        let restored = again
            .find(&item.loaded, label, connection, &planned.body)
            .await
            .and_then(|name| name.split_once('/'))
            .and_then(|(owner, theirs)| {
                let key = (owner.to_owned(), theirs.to_owned());
                let staged = staged.postgres.get(&key).map(pg::Restored::inspector);
                staged.or_else(|| {
                    let other = planned.items.iter().find(|i| i.loaded.name() == owner)?;
                    other.databases.get(theirs)?.inspect_in_service()
                })
            });
        let inspector = match restored {
            Some(restored) => restored,
            None => {
                let live = Inspector::new(connection.clone());
                if let Err(e) = live.info().await {
                    tracing::info!("{component}/{label} is not there now: {e}");
                    continue;
                }
                // It may have come up only since the restore was planned.
                if item.loaded.third_party {
                    crate::backup::open::refuse_dangers(component, label, &live).await?;
                }
                live
            }
        };
        world.databases.insert(label.clone(), Database::Postgres(inspector));
    }
    Ok(world)
}
