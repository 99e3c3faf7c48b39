//! Plans, built by chaining.

use crate::{
    ArchiveVolume, BackupPlan, BackupStep, CopySqlite, DumpDatabase, Fact, Note, PathRule, RestorePlan, RestoreStep,
    RowFilter, RunSql, SetOwner, Severity, TableRule,
};
use std::fmt;

impl Note {
    /// A remark.
    pub fn new(severity: Severity, text: impl Into<String>) -> Self {
        Note {
            severity,
            text: text.into(),
        }
    }
}

impl Default for BackupPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl BackupPlan {
    /// No steps.
    pub fn new() -> Self {
        BackupPlan { steps: Vec::new() }
    }

    /// Dump a PostgreSQL database.
    pub fn dump(mut self, dump: DumpDatabase) -> Self {
        self.steps.push(BackupStep::DumpDatabase(dump));
        self
    }

    /// Copy an SQLite database.
    pub fn copy_sqlite(mut self, copy: CopySqlite) -> Self {
        self.steps.push(BackupStep::CopySqlite(copy));
        self
    }

    /// Archive a volume.
    pub fn archive(mut self, archive: ArchiveVolume) -> Self {
        self.steps.push(BackupStep::ArchiveVolume(archive));
        self
    }

    /// Keep a fact with the backup.
    pub fn fact(mut self, key: impl Into<String>, value: impl fmt::Display) -> Self {
        self.steps.push(BackupStep::RecordFact(Fact {
            key: key.into(),
            value: value.to_string(),
        }));
        self
    }

    /// Say something good to know.
    pub fn note(self, text: impl Into<String>) -> Self {
        self.remark(Severity::Info, text)
    }

    /// Say something somebody must look at.
    pub fn warn(self, text: impl Into<String>) -> Self {
        self.remark(Severity::Warning, text)
    }

    fn remark(mut self, severity: Severity, text: impl Into<String>) -> Self {
        self.steps.push(BackupStep::Note(Note::new(severity, text)));
        self
    }

    /// Keeps the exact row counts of some tables (by name, in any schema) as facts `rows/LABEL/SCHEMA.TABLE`; those
    /// that do not exist are passed over. [`Findings::rows_as_recorded`](crate::Findings::rows_as_recorded) compares.
    pub fn rows(mut self, label: &str, names: &[&str]) -> Result<Self, crate::Error> {
        let engine = crate::db::info(label)?.engine;
        for table in crate::db::tables(label)? {
            if table.kind == crate::db::TableKind::Table && names.contains(&table.name.as_str()) {
                let rows = crate::db::count_only(label, engine, &table)?;
                self = self.fact(format!("rows/{label}/{}", table.full_name()), rows);
            }
        }
        Ok(self)
    }

    /// The facts of the plan.
    pub fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.steps.iter().filter_map(|s| match s {
            BackupStep::RecordFact(f) => Some(f),
            _ => None,
        })
    }

    /// The notes of the plan.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.steps.iter().filter_map(|s| match s {
            BackupStep::Note(n) => Some(n),
            _ => None,
        })
    }
}

impl DumpDatabase {
    /// All data of all tables.
    pub fn all(label: &str) -> Self {
        DumpDatabase {
            database: label.into(),
            leave_out_data: Vec::new(),
            row_filters: Vec::new(),
        }
    }

    /// Leaves out the data of tables (a pattern over `schema.name`); their definition is kept.
    pub fn leave_out(mut self, table: impl Into<String>, why: impl Into<String>) -> Self {
        self.leave_out_data.push(TableRule {
            table: table.into(),
            why: why.into(),
        });
        self
    }

    /// Keeps only the rows of a table for which the condition is true.
    pub fn keep_where(mut self, table: &str, condition: &str, why: &str) -> Self {
        self.row_filters.push(RowFilter {
            table: table.into(),
            keep_where: condition.into(),
            why: why.into(),
        });
        self
    }
}

impl ArchiveVolume {
    /// Everything.
    pub fn all(label: &str) -> Self {
        ArchiveVolume {
            volume: label.into(),
            take: Vec::new(),
            leave_out: Vec::new(),
        }
    }

    /// Takes only what some such rule names.
    pub fn take(mut self, pattern: &str, why: &str) -> Self {
        self.take.push(PathRule {
            pattern: pattern.into(),
            why: why.into(),
        });
        self
    }

    /// Leaves out of that what the rule names.
    pub fn leave_out(mut self, pattern: &str, why: &str) -> Self {
        self.leave_out.push(PathRule {
            pattern: pattern.into(),
            why: why.into(),
        });
        self
    }
}

impl Default for RestorePlan {
    fn default() -> Self {
        Self::new()
    }
}

impl RestorePlan {
    /// No steps.
    pub fn new() -> Self {
        RestorePlan { steps: Vec::new() }
    }

    /// Put back a volume.
    pub fn volume(mut self, label: &str) -> Self {
        self.steps.push(RestoreStep::RestoreVolume(label.into()));
        self
    }

    /// Put back a database into a fresh one.
    pub fn database(mut self, label: &str) -> Self {
        self.steps.push(RestoreStep::RestoreDatabase(label.into()));
        self
    }

    /// Run one statement in a database restored by an earlier step.
    pub fn run_sql(mut self, label: &str, sql: impl Into<String>, why: &str) -> Self {
        self.steps.push(RestoreStep::RunSql(RunSql {
            database: label.into(),
            sql: sql.into(),
            why: why.into(),
        }));
        self
    }

    /// Give restored files a numeric owner.
    pub fn set_owner(mut self, label: &str, path: &str, uid: u32, gid: u32, why: &str) -> Self {
        self.steps.push(RestoreStep::SetOwner(SetOwner {
            volume: label.into(),
            path: path.into(),
            uid,
            gid,
            why: why.into(),
        }));
        self
    }

    /// Say something good to know.
    pub fn note(self, text: impl Into<String>) -> Self {
        self.remark(Severity::Info, text)
    }

    /// Say something somebody must look at.
    pub fn warn(self, text: impl Into<String>) -> Self {
        self.remark(Severity::Warning, text)
    }

    fn remark(mut self, severity: Severity, text: impl Into<String>) -> Self {
        self.steps.push(RestoreStep::Note(Note::new(severity, text)));
        self
    }

    /// The notes of the plan.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.steps.iter().filter_map(|s| match s {
            RestoreStep::Note(n) => Some(n),
            _ => None,
        })
    }
}
