//! A component's plan, held against its grants. What comes out can be carried out as it stands.

use super::open::Opened;
use crate::body::{LeftOut, Note, Severity};
use crate::config::DatabaseSource;
use crate::error::PipelineError;
use crate::known;
use crate::load::Loaded;
use essrun_postgres::SnapshotGroup;
use essrun_postgres::dump::{self, DumpPlan, DumpRequest, RowFilter, TableRule};
use essrun_sandbox::contract::{backup, types};
use essrun_volume::{ArchiveRequest, PathRule};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The checked steps of one component.
#[derive(Default)]
pub struct ComponentPlan {
    /// What is asked of each dump, and the dump's own plan once the catalog was read.
    pub dumps: BTreeMap<String, DumpRequest>,
    pub dump_plans: BTreeMap<String, DumpPlan>,
    pub copies: BTreeSet<String>,
    pub archives: BTreeMap<String, ArchiveRequest>,
    pub facts: BTreeMap<String, String>,
    pub notes: Vec<Note>,
    pub left_out: Vec<LeftOut>,
}

impl ComponentPlan {
    /// The steps in words, with reasons; `in_full` with every table.
    pub fn words(&self, in_full: bool) -> Vec<(String, Option<String>)> {
        let mut words = Vec::new();
        for (label, plan) in &self.dump_plans {
            let all = plan.to_string();
            let told = if in_full {
                all.trim_end()
            } else {
                all.lines().next().unwrap_or_default()
            };
            words.push((format!("dump {label}: {told}"), None));
        }
        words.extend(self.copies.iter().map(|l| (format!("copy SQLite database {l}"), None)));
        words.extend(self.archives.keys().map(|l| (format!("archive volume {l}"), None)));
        let left_out = self
            .left_out
            .iter()
            .map(|l| (format!("leave out of {}: {}", l.label, l.what), Some(l.why.clone())));
        words.extend(left_out);
        words
    }
}

/// Asks a component for its plan, checks it, and plans the dumps in it.
pub async fn ask(one: &mut Opened, groups: &[SnapshotGroup], jobs: usize) -> Result<(), PipelineError> {
    let loaded = &one.loaded;
    let plan = loaded
        .component
        .plan_backup(Arc::new(one.world.clone()), &loaded.config.limits)
        .await
        // What it looked at may have been dropped under the snapshot as well.
        .map_err(|e| one.world.blame(e))?;
    let mut plan = check(loaded, plan, jobs)?;
    for (label, request) in &plan.dumps {
        let what = format!("{}/{label}", loaded.name());
        let snapshot = super::open::find(groups, loaded.name(), label)
            .ok_or_else(|| PipelineError::Internal(format!("{what} has no snapshot")))?;
        let failed = |e: essrun_postgres::Error| match e {
            essrun_postgres::Error::Changed { .. } => PipelineError::Changed {
                what: what.clone(),
                problem: e.to_string(),
            },
            e => PipelineError::source(what.clone(), e),
        };
        let mut dump = dump::plan(snapshot, request).await.map_err(failed)?;
        dump::hold(snapshot, &mut dump).await.map_err(failed)?;
        plan.dump_plans.insert(label.clone(), dump);
    }
    one.plan = plan;
    known::raise(one).await
}

pub(crate) fn check(loaded: &Loaded, plan: backup::Plan, jobs: usize) -> Result<ComponentPlan, PipelineError> {
    let name = loaded.name();
    let refuse = |problem: String| Err(PipelineError::component(name, problem));
    let mut checked = ComponentPlan::default();
    for step in plan.steps {
        match step {
            backup::Step::DumpDatabase(d) => {
                let label = d.database;
                match loaded.config.databases.get(&label).map(|g| &g.source) {
                    Some(DatabaseSource::Postgres(_)) if loaded.owns(&label) => {}
                    Some(DatabaseSource::Sqlite(_)) => {
                        return refuse(format!(
                            "its plan dumps {label:?}, which is SQLite: copy-sqlite is for that"
                        ));
                    }
                    _ => return refuse(format!("its plan dumps {label:?}, which it was not granted")),
                }
                if checked.dumps.contains_key(&label) {
                    return refuse(format!("its plan dumps {label:?} twice"));
                }
                for r in &d.leave_out_data {
                    checked
                        .left_out
                        .push(left_out(&label, format!("rows of {}", r.table), &r.why));
                }
                for f in &d.row_filters {
                    let what = format!("rows of {} except where {}", f.table, f.keep_where);
                    checked.left_out.push(left_out(&label, what, &f.why));
                }
                let request = DumpRequest {
                    leave_out_data: d
                        .leave_out_data
                        .into_iter()
                        .map(|r| TableRule {
                            table: r.table,
                            why: r.why,
                        })
                        .collect(),
                    row_filters: d
                        .row_filters
                        .into_iter()
                        .map(|f| RowFilter {
                            table: f.table,
                            keep_where: f.keep_where,
                            why: f.why,
                        })
                        .collect(),
                    jobs,
                    ..DumpRequest::default()
                };
                checked.dumps.insert(label, request);
            }
            backup::Step::CopySqlite(c) => {
                match loaded.config.databases.get(&c.database).map(|g| &g.source) {
                    Some(DatabaseSource::Sqlite(_)) if loaded.owns(&c.database) => {}
                    _ => {
                        return refuse(format!(
                            "its plan copies {:?}, which is no SQLite database granted to it",
                            c.database
                        ));
                    }
                }
                if !checked.copies.insert(c.database.clone()) {
                    return refuse(format!("its plan copies {:?} twice", c.database));
                }
            }
            backup::Step::ArchiveVolume(a) => {
                if !loaded.config.volumes.contains_key(&a.volume) || !loaded.owns(&a.volume) {
                    return refuse(format!("its plan archives {:?}, which it was not granted", a.volume));
                }
                if checked.archives.contains_key(&a.volume) {
                    return refuse(format!("its plan archives {:?} twice", a.volume));
                }
                for r in &a.leave_out {
                    checked.left_out.push(left_out(&a.volume, r.pattern.clone(), &r.why));
                }
                let rules = |rules: Vec<backup::PathRule>| {
                    rules
                        .into_iter()
                        .map(|r| PathRule {
                            pattern: r.pattern,
                            why: r.why,
                        })
                        .collect()
                };
                let request = ArchiveRequest {
                    take: rules(a.take),
                    leave_out: rules(a.leave_out),
                    ..ArchiveRequest::default()
                };
                checked.archives.insert(a.volume, request);
            }
            backup::Step::RecordFact(f) => {
                if f.key.is_empty() || f.key.len() > 512 || f.key.chars().any(char::is_control) {
                    return refuse(format!(
                        "its plan records a fact with an unfit name of {} bytes",
                        f.key.len()
                    ));
                }
                if checked.facts.contains_key(&f.key) {
                    return refuse(format!("its plan records the fact {:?} twice", f.key));
                }
                checked.facts.insert(f.key, f.value);
            }
            backup::Step::Note(n) => checked.notes.push(note(n)),
        }
    }
    for (label, grant) in &loaded.config.databases {
        let taken = checked.dumps.contains_key(label) || checked.copies.contains(label);
        if loaded.owns(label) && !taken {
            let text = format!(
                "database {label} ({}) is granted but not part of the plan",
                kind(&grant.source)
            );
            checked.notes.push(Note {
                severity: Severity::Warning,
                text,
            });
        }
    }
    for label in loaded.config.volumes.keys() {
        if loaded.owns(label) && !checked.archives.contains_key(label) {
            let text = format!("volume {label} is granted but not part of the plan");
            checked.notes.push(Note {
                severity: Severity::Warning,
                text,
            });
        }
    }
    Ok(checked)
}

fn kind(source: &DatabaseSource) -> &'static str {
    match source {
        DatabaseSource::Postgres(_) => "PostgreSQL",
        DatabaseSource::Sqlite(_) => "SQLite",
    }
}

fn left_out(label: &str, what: String, why: &str) -> LeftOut {
    LeftOut {
        label: label.to_owned(),
        what,
        why: why.to_owned(),
    }
}

/// A component's note as ours.
pub fn note(n: types::Note) -> Note {
    Note {
        severity: severity(n.severity),
        text: n.text,
    }
}

pub fn severity(s: types::Severity) -> Severity {
    match s {
        types::Severity::Info => Severity::Info,
        types::Severity::Warning => Severity::Warning,
        types::Severity::Error => Severity::Error,
    }
}
