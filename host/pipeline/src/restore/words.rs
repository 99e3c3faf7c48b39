//! A restore plan in words, for `--json`, and as the policy is told it.

use super::plan::{DatabaseTarget, Item, Planned, Precondition, Step};
use super::targets::non_empty;
use crate::body::{Note, Severity};
use crate::config::DatabaseSource;
use crate::pace::{self, Estimate};
use crate::policy::{Permission, input};
use crate::time::utc;
use serde::Serialize;

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
                    None => {
                        let source = self.loaded.config.databases.get(label).map(|grant| &grant.source);
                        let kind = match source {
                            Some(DatabaseSource::Sqlite(_)) => "sqlite",
                            _ => "postgres",
                        };
                        target(label, kind, String::new(), true)
                    }
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
                    "volume {label} → {} ({} entries, {} bytes{}{})",
                    v.path.display(),
                    v.plan.entries,
                    v.plan.bytes,
                    match self
                        .findings
                        .iter()
                        .any(|f| f.label == *label && f.check == "swap-unfinished")
                    {
                        true => "; an earlier swap there is brought to its end first",
                        false => "",
                    },
                    match (v.in_place, v.plan.replaces) {
                        (true, _) => "; in service already, as the backup has it",
                        (false, true) => "; what is there is kept under a dated name",
                        (false, false) => "",
                    }
                ),
                None => format!("volume {label}: see what stands in the way below"),
            },
            Step::Database(label) => match self.databases.get(label) {
                Some(DatabaseTarget::Postgres { plan, .. }) if plan.in_service.is_some() => {
                    format!("database {label} → {}; in service already", plan.database)
                }
                Some(DatabaseTarget::Postgres { plan, .. }) => format!(
                    "database {label} → new database {}, to become {} ({} tables, {} rows, {} bytes{})",
                    plan.scratch,
                    plan.database,
                    plan.tables.len(),
                    plan.rows,
                    plan.bytes,
                    match plan.findings.iter().any(|f| f.check == "resumed") {
                        true => "; gone on with where it was stopped",
                        false => "",
                    }
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
