//! The one trait an author implements, and what its defaults do.
//!
//! The defaults take everything the component owns and was granted, put everything back in the order that is right
//! almost always (files before databases, because rows point at files), and compare row counts. A component overrides
//! a function where its system needs more, and may still build on the defaults through [`granted_data`] and
//! [`artifacts_back`].

use crate::{
    ArchiveVolume, BackupPlan, BackupView, CopySqlite, Description, DumpDatabase, Error, Finding, Findings,
    IncidentPlan, NeedKind, NeedRole, RestorePlan, db, incident, volume,
};

/// A component for one system.
pub trait Component {
    /// What it is and needs. Called without any grant; must not look at anything.
    fn describe() -> Description;

    /// What to take. Default: all of every owned database and volume that was granted.
    fn plan_backup() -> Result<BackupPlan, Error> {
        granted_data(&Self::describe())
    }

    /// How to put a backup back. Default: the volumes, then the databases it holds.
    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(artifacts_back(&Self::describe(), backup))
    }

    /// Checks what was restored. Default: every table has as many rows as the backup says.
    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let mut findings = Findings::new();
        for need in Self::describe().needs {
            if need.kind == NeedKind::Database && need.role == NeedRole::Owned && db::granted(&need.label)?.is_some() {
                findings.row_counts(backup, &need.label)?;
            }
        }
        Ok(findings.into())
    }

    /// What to do after a leak. Default: what [`describe`](Component::describe) says for each class, gravest first.
    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::from_classes(&Self::describe(), backup))
    }
}

/// A plan that takes all of every owned database and volume that was granted.
pub fn granted_data(description: &Description) -> Result<BackupPlan, Error> {
    let mut plan = BackupPlan::new();
    for need in description.needs.iter().filter(|n| n.role == NeedRole::Owned) {
        match need.kind {
            NeedKind::Database => match db::granted(&need.label)?.map(|i| i.engine) {
                Some(db::Engine::Postgres) => plan = plan.dump(DumpDatabase::all(&need.label)),
                Some(db::Engine::Sqlite) => {
                    plan = plan.copy_sqlite(CopySqlite {
                        database: need.label.clone(),
                    })
                }
                None => {}
            },
            NeedKind::Volume => {
                if volume::granted(&need.label)? {
                    plan = plan.archive(ArchiveVolume::all(&need.label));
                }
            }
        }
    }
    Ok(plan)
}

/// A plan that puts back what the backup holds of the needs described: volumes first, databases after.
pub fn artifacts_back(description: &Description, backup: &BackupView) -> RestorePlan {
    let mut plan = RestorePlan::new();
    let owned = || description.needs.iter().filter(|n| n.role == NeedRole::Owned);
    for need in owned().filter(|n| n.kind == NeedKind::Volume) {
        if backup.holds(&need.label) {
            plan = plan.volume(&need.label);
        }
    }
    for need in owned().filter(|n| n.kind == NeedKind::Database) {
        if backup.holds(&need.label) {
            plan = plan.database(&need.label);
        }
    }
    plan
}
