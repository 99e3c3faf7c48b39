//! Opens what the pipeline grants: snapshots of all groups, copies of SQLite files, volumes. Reads nothing else.

use super::plan::ComponentPlan;
use crate::body::{ComponentBody, Instant, Note};
use crate::config::{DatabaseSource, Pipeline};
use crate::error::PipelineError;
use crate::instant;
use crate::load::Loaded;
use crate::peers;
use crate::report::{Event, Reporter};
use crate::time;
use crate::world::{Database, Granted};
use essrun_postgres::{Snapshot, SnapshotGroup};
use essrun_volume::Volume;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A component with its sources open.
pub struct Opened {
    pub loaded: Loaded,
    pub world: Granted,
    /// SQLite databases this component owns: a private copy each.
    pub copies: BTreeMap<String, essrun_sqlite::Copy>,
    pub volumes: BTreeMap<String, Arc<Volume>>,
    /// Where each label comes from, without secrets.
    pub sources: BTreeMap<String, String>,
    /// Databases it only looks at: which of those the pipeline backs up each is, as COMPONENT/LABEL.
    pub peers: BTreeMap<String, Option<String>>,
    pub plan: ComponentPlan,
    pub failed: Option<String>,
    /// The component itself is at fault, not what it was to read.
    pub at_fault: bool,
    pub taken_at: i64,
    pub artifacts: usize,
}

impl Opened {
    pub fn fail(&mut self, error: &PipelineError, reporter: &dyn Reporter) {
        let problem = match error {
            PipelineError::Component { problem, .. } => problem.clone(),
            other => other.to_string(),
        };
        reporter.event(Event::Failed {
            component: self.loaded.name().to_owned(),
            problem: problem.clone(),
        });
        self.at_fault = matches!(error, PipelineError::Component { .. });
        self.failed = Some(problem);
    }

    /// Tells the plan, step by step; in full, table by table, where the plan is all that was asked for.
    pub fn tell(&self, in_full: bool, reporter: &dyn Reporter) {
        let component = self.loaded.name().to_owned();
        for (step, why) in self.plan.words(in_full) {
            reporter.event(Event::Step {
                component: component.clone(),
                step,
                why,
            });
        }
        for Note { severity, text } in &self.plan.notes {
            reporter.event(Event::Note {
                component: component.clone(),
                severity: *severity,
                text: text.clone(),
            });
        }
    }
}

/// Everything a run reads from. Dropping it ends the snapshots.
pub struct Sources {
    pub components: Vec<Opened>,
    pub groups: Vec<SnapshotGroup>,
    pub instants: Vec<Instant>,
}

impl Sources {
    /// An error when some component failed or was never loaded: of the component where all that failed are themselves
    /// to blame.
    pub fn into_error(self, unloaded: &[ComponentBody]) -> Result<(), PipelineError> {
        let opened = self
            .components
            .iter()
            .filter_map(|c| Some((c.loaded.name(), c.failed.as_ref()?, c.at_fault)));
        let unloaded = unloaded
            .iter()
            .filter_map(|c| Some((c.name.as_str(), c.failed.as_ref()?, true)));
        let failed: Vec<(&str, &String, bool)> = opened.chain(unloaded).collect();
        let lines = || {
            let each = failed.iter().map(|(name, why, _)| format!("{name}: {why}"));
            each.collect::<Vec<_>>().join("\n  ")
        };
        match failed.as_slice() {
            [] => Ok(()),
            [(_, first, _), ..] if failed.iter().all(|(_, _, at_fault)| *at_fault) => {
                let names: Vec<&str> = failed.iter().map(|(name, _, _)| *name).collect();
                let problem = if names.len() == 1 { (*first).clone() } else { lines() };
                Err(PipelineError::component(
                    &names.join(", "),
                    format!("{problem}\n  nothing was backed up"),
                ))
            }
            _ => Err(PipelineError::Source {
                what: "nothing was backed up".to_owned(),
                problem: lines(),
            }),
        }
    }
}

pub fn find<'a>(groups: &'a [SnapshotGroup], component: &str, label: &str) -> Option<&'a Snapshot> {
    let wanted = format!("{component}/{label}");
    groups.iter().flat_map(|g| g.snapshots()).find(|s| s.label() == wanted)
}

/// Opens the sources of all components. A source that cannot be opened fails its component (or its whole group).
pub async fn sources(
    pipeline: &Pipeline,
    loaded: Vec<Loaded>,
    reporter: &dyn Reporter,
) -> Result<Sources, PipelineError> {
    let planned = instant::plan(pipeline, &loaded).await?;
    let scratch = scratch(pipeline)?;
    let mut components: Vec<Opened> = loaded
        .into_iter()
        .map(|loaded| Opened {
            world: Granted::new(loaded.name(), &loaded.config.settings, &loaded.config.limits),
            copies: BTreeMap::new(),
            volumes: BTreeMap::new(),
            sources: BTreeMap::new(),
            peers: BTreeMap::new(),
            plan: ComponentPlan::default(),
            failed: None,
            at_fault: false,
            taken_at: time::now(),
            artifacts: 0,
            loaded,
        })
        .collect();

    let (mut groups, mut instants) = (Vec::new(), Vec::new());
    for plan in &planned {
        match instant::open(plan).await {
            Ok(group) => {
                let record = instant::record(plan, group.reached())?;
                reporter.event(Event::Instant {
                    group: record.group.clone(),
                    databases: record.databases.clone(),
                    reached: record.reached.clone(),
                });
                instants.push(record);
                groups.push(group);
            }
            Err(e) => {
                for one in &mut components {
                    if plan.members.iter().any(|(c, _, _)| c == one.loaded.name()) {
                        one.fail(&e, reporter);
                    }
                }
            }
        }
    }
    let snapshots = peers::Snapshots::of(&groups, &components).await;
    for one in &mut components {
        if one.failed.is_none()
            && let Err(e) = bind(one, &groups, &snapshots, &scratch).await
        {
            one.fail(&e, reporter);
        }
    }
    Ok(Sources {
        components,
        groups,
        instants,
    })
}

/// Binds a component's labels to what was opened.
async fn bind(
    one: &mut Opened,
    groups: &[SnapshotGroup],
    snapshots: &peers::Snapshots<'_>,
    scratch: &Path,
) -> Result<(), PipelineError> {
    let name = one.loaded.name().to_owned();
    one.taken_at = time::now();
    let config = one.loaded.config.clone();
    for (label, grant) in &config.databases {
        match &grant.source {
            DatabaseSource::Postgres(secret) => {
                let inspector = match find(groups, &name, label) {
                    Some(snapshot) => snapshot.inspector().clone(),
                    // A peer: looked at, backed up by another component. As its own role, in that one's snapshot.
                    None => {
                        let connection = instant::connection(secret)?;
                        let same = snapshots.find(&connection).await;
                        one.peers.insert(label.clone(), same.map(|s| s.label().to_owned()));
                        match same {
                            Some(snapshot) => snapshot.inspector_by(&connection),
                            None => essrun_postgres::Inspector::new(connection),
                        }
                    }
                };
                if one.loaded.third_party {
                    refuse_dangers(&name, label, &inspector).await?;
                }
                one.sources.insert(label.clone(), inspector.connection().describe());
                one.world.databases.insert(label.clone(), Database::Postgres(inspector));
            }
            DatabaseSource::Sqlite(path) => {
                let copy = essrun_sqlite::Copy::take(path, scratch)
                    .await
                    .map_err(|e| PipelineError::source(format!("{name}/{label}"), e))?;
                let look = copy
                    .open()
                    .await
                    .map_err(|e| PipelineError::source(format!("{name}/{label}"), e))?;
                one.sources.insert(label.clone(), path.display().to_string());
                one.world.databases.insert(label.clone(), Database::Sqlite(look));
                one.copies.insert(label.clone(), copy);
            }
        }
    }
    for (label, grant) in &config.volumes {
        let volume = Volume::open(&grant.path)
            .map_err(|e| PipelineError::source(format!("{name}/{label}"), e))
            .map(Arc::new)?;
        one.sources.insert(label.clone(), grant.path.display().to_string());
        one.world.volumes.insert(label.clone(), volume.clone());
        one.volumes.insert(label.clone(), volume);
    }
    Ok(())
}

/// A component from elsewhere may not look through a role that reaches beyond its database.
pub async fn refuse_dangers(
    component: &str,
    label: &str,
    inspector: &essrun_postgres::Inspector,
) -> Result<(), PipelineError> {
    let hint = "give the component's database a role of its own that only reads it";
    refuse_role(component, inspector, (label, "of"), hint).await
}

/// Of a role and a label, with what the one is to the other.
pub async fn refuse_role(
    component: &str,
    inspector: &essrun_postgres::Inspector,
    (label, is): (&str, &str),
    hint: &str,
) -> Result<(), PipelineError> {
    let found = inspector
        .role_dangers()
        .await
        .map_err(|e| PipelineError::source(format!("{component}/{label}"), e))?;
    if found.dangers.is_empty() {
        return Ok(());
    }
    Err(PipelineError::refused(
        format!(
            "component {component} comes from elsewhere, and the role {} {is} {label} {}",
            found.role,
            found.dangers.join(", ")
        ),
        hint,
    ))
}

/// A private directory for copies.
pub fn scratch(pipeline: &Pipeline) -> Result<PathBuf, PipelineError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let dir = pipeline.repository.cache.join("scratch");
    let failed = |e: std::io::Error| PipelineError::source(dir.display().to_string(), format!("cannot be made: {e}"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(failed)?;
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    Ok(dir)
}
