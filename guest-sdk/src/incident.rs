//! Plans for after a leak.

use crate::{Advice, BackupView, Description, IncidentPlan, IncidentStep, Sensitivity, Statement, matches};

impl Default for IncidentPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl IncidentPlan {
    /// No steps.
    pub fn new() -> Self {
        IncidentPlan { steps: Vec::new() }
    }

    /// Something for a person to do when one of these artifacts leaked.
    pub fn advise(mut self, artifacts: &[&str], text: impl Into<String>) -> Self {
        self.steps.push(IncidentStep::Advise(Advice {
            artifacts: artifacts.iter().map(|a| (*a).into()).collect(),
            text: text.into(),
        }));
        self
    }

    /// Something the host can do in the live database when told to.
    pub fn run_sql(mut self, statement: Statement) -> Self {
        self.steps.push(IncidentStep::RunSql(statement));
        self
    }

    /// Appends another plan.
    pub fn then(mut self, mut other: IncidentPlan) -> Self {
        self.steps.append(&mut other.steps);
        self
    }
}

impl Statement {
    /// `DELETE FROM table WHERE condition`, counted by the same condition.
    pub fn delete(artifacts: &[&str], label: &str, table: &str, condition: &str, why: &str) -> Self {
        Statement {
            artifacts: artifacts.iter().map(|a| (*a).into()).collect(),
            database: label.into(),
            sql: format!("DELETE FROM {table} WHERE {condition}"),
            count_sql: format!("SELECT count(*) FROM {table} WHERE {condition}"),
            why: why.into(),
        }
    }

    /// `UPDATE table SET changes WHERE condition`, counted by the same condition.
    pub fn update(artifacts: &[&str], label: &str, table: &str, changes: &str, condition: &str, why: &str) -> Self {
        Statement {
            artifacts: artifacts.iter().map(|a| (*a).into()).collect(),
            database: label.into(),
            sql: format!("UPDATE {table} SET {changes} WHERE {condition}"),
            count_sql: format!("SELECT count(*) FROM {table} WHERE {condition}"),
            why: why.into(),
        }
    }
}

/// The advice a description gives for the artifacts this backup holds, gravest class first.
pub fn from_classes(description: &Description, backup: &BackupView) -> IncidentPlan {
    let mut plan = IncidentPlan::new();
    for sensitivity in [Sensitivity::Secret, Sensitivity::Personal, Sensitivity::Internal] {
        for class in description.classes.iter().filter(|c| c.sensitivity == sensitivity) {
            if backup.artifacts.iter().any(|a| matches(&class.pattern, &a.name)) {
                for text in &class.on_leak {
                    plan = plan.advise(&[&class.pattern], format!("{} ({})", text, class.exposes));
                }
            }
        }
    }
    plan
}
