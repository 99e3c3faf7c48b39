//! Findings: what a check found, said the same way by every component.
//!
//! A check has a stable name and always leaves a finding, also when it passes: a check that says nothing cannot be
//! told from one that never ran. A failure (severity `error`) stops a restore before the swap, so it must be certain;
//! what is only odd is a warning. Both say what to do.

use crate::{BackupView, Error, Finding, Severity, db};
use std::collections::BTreeMap;

/// A check by its stable name, waiting for its outcome.
#[must_use]
pub struct Check(String);

/// Begins a finding.
pub fn check(name: impl Into<String>) -> Check {
    Check(name.into())
}

impl Check {
    fn end(self, severity: Severity, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding {
            check: self.0,
            severity,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// It passed.
    pub fn pass(self, message: impl Into<String>) -> Finding {
        self.end(Severity::Info, message, "")
    }

    /// Usable, but somebody must look.
    pub fn warn(self, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.end(Severity::Warning, message, remedy)
    }

    /// Must not be used.
    pub fn fail(self, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.end(Severity::Error, message, remedy)
    }
}

/// Findings as they come.
#[derive(Debug, Clone, Default)]
pub struct Findings(Vec<Finding>);

impl From<Findings> for Vec<Finding> {
    fn from(findings: Findings) -> Self {
        findings.0
    }
}

/// Where a restored table can only differ from the dump through a fault of the restore.
const ROWS_REMEDY: &str = "do not use this restore: remove the target database and restore again into a fresh one; \
     if the difference stays, check the backup with `essrun check`";

/// Tables of up to so many rows are counted together.
const TOGETHER: u64 = 200_000;

impl Findings {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more.
    pub fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// All so far.
    pub fn all(&self) -> &[Finding] {
        &self.0
    }

    /// Compares the rows of tables with the facts of [`BackupPlan::rows`](crate::BackupPlan::rows).
    ///
    /// In PostgreSQL the facts come from the dump's own snapshot, so any difference is a fault. An SQLite file may
    /// have been written to between the look and the copy: there only a table that came back empty is one. Nothing is
    /// compared of a label that is not restored.
    pub fn rows_as_recorded(&mut self, backup: &BackupView, label: &str) -> Result<(), Error> {
        if !backup.holds(label) {
            return Ok(());
        }
        let engine = db::info(label)?.engine;
        let tables = db::tables(label)?;
        let (mut compared, mut wrong, mut odd) = (0, Vec::new(), Vec::new());
        for (name, expected) in backup.facts_below(&format!("rows/{label}/")) {
            compared += 1;
            let Some(table) = tables.iter().find(|t| t.full_name() == name) else {
                wrong.push(format!("{name} is missing ({expected} rows)"));
                continue;
            };
            let found = db::count_only(label, engine, table)?;
            if found.to_string() != expected {
                let said = format!("{name} has {found} rows, it had {expected}");
                match engine {
                    db::Engine::Sqlite if found > 0 => odd.push(said),
                    _ => wrong.push(said),
                }
            }
        }
        let check = check(format!("rows-as-recorded-{label}"));
        self.push(if !wrong.is_empty() {
            check.fail(listed(&wrong, 10), ROWS_REMEDY)
        } else if !odd.is_empty() {
            check.warn(
                listed(&odd, 10),
                "normal when the file was written to while it was being backed up; look closer if it was not",
            )
        } else {
            check.pass(format!(
                "{compared} tables hold the rows counted when the backup was taken"
            ))
        });
        Ok(())
    }

    /// Compares the rows of every table under `label` with the numbers of the backup.
    pub fn row_counts(&mut self, backup: &BackupView, label: &str) -> Result<(), Error> {
        self.row_counts_of(backup, label, |_| true)
    }

    /// Like [`row_counts`](Findings::row_counts), for the tables (`schema.name`) for which `which` is true.
    ///
    /// Counts with ONLY, as the dump did: a table others inherit from must not be counted with its children.
    pub fn row_counts_of(
        &mut self,
        backup: &BackupView,
        label: &str,
        which: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let tables = db::tables(label)?;
        let by_name: BTreeMap<String, &db::TableInfo> = tables.iter().map(|t| (t.artifact_name(), t)).collect();
        let mut wanted = Vec::new();
        let mut wrong = Vec::new();
        for (name, rows) in backup.tables(label).filter(|(n, _)| which(n)) {
            let Some(rows) = rows else { continue };
            match by_name.get(name) {
                Some(table) => wanted.push((*table, rows)),
                None => wrong.push(format!("{name} is missing ({rows} rows)")),
            }
        }
        let (mut total, mut tables) = (0u64, 0);
        let mut uncounted = Vec::new();
        let mut compare = |table: &db::TableInfo, found: i64, expected: u64| {
            tables += 1;
            total = total.saturating_add(expected);
            if u64::try_from(found) != Ok(expected) {
                wrong.push(format!("{} has {found} rows, the backup {expected}", table.full_name()));
            }
        };
        // Small tables many to a query, large ones each by itself, as far as the host's limits let them be counted.
        let (small, large): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, rows)| *rows <= TOGETHER);
        let counted = db::counts_only(label, &small.iter().map(|(t, _)| *t).collect::<Vec<_>>())?;
        for ((table, expected), found) in small.into_iter().zip(counted) {
            compare(table, found, expected);
        }
        for (table, expected) in large {
            match db::count_within_limits(label, &format!("SELECT count(*) FROM ONLY {}", table.sql_name()))? {
                Some(found) => compare(table, found, expected),
                None => uncounted.push(table.full_name()),
            }
        }
        let name = format!("row-counts-{label}");
        self.push(if !wrong.is_empty() {
            check(name).fail(listed(&wrong, 10), ROWS_REMEDY)
        } else if !uncounted.is_empty() {
            check(name).warn(
                format!(
                    "{tables} tables hold the {total} rows of the backup; too large to be counted here: {}",
                    listed(&uncounted, 10)
                ),
                "the restore compared the rows it loaded; to be sure, count these tables by hand",
            )
        } else {
            check(name).pass(format!("{tables} tables hold the {total} rows of the backup"))
        });
        Ok(())
    }
}

/// The first `most` of some texts, and how many more there are.
pub fn listed<T: AsRef<str>>(items: &[T], most: usize) -> String {
    let mut text = items
        .iter()
        .take(most)
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join("; ");
    if items.len() > most {
        text.push_str(&format!("; and {} more", items.len() - most));
    }
    text
}
