//! What restores that were killed left behind: told with the plan, and removed when the next one begins.
//!
//! Telling changes nothing. Removing comes only after somebody agreed to the restore, and takes only what stands where
//! this one puts its own: scratch databases made for this very label and target, unmarked ones of the very name, staged
//! trees and files of this very destination. What another component's restore left is gone on with or removed by that
//! one. A swap of a volume that was cut short is brought to its end, since both trees are there and whole. A restore that
//! is to be gone on with finds its scratch databases and staged trees untouched.

use super::plan::{DatabaseTarget, Planned, Precondition};
use crate::body::Severity;
use crate::error::PipelineError;
use essrun_postgres::restore as pg;
use essrun_volume::{LeftoverState, VolumeError};
use std::path::Path;

/// Where a database is to go.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// `component/label`.
    what: &'a str,
    database: &'a str,
    scratch: &'a str,
}

impl<'a> Place<'a> {
    fn of(plan: &'a pg::RestorePlan) -> Place<'a> {
        Place {
            what: &plan.prefix,
            database: &plan.database,
            scratch: &plan.scratch,
        }
    }

    /// Whether a scratch database that was left stands there, and may go.
    fn clears(&self, leftover: &pg::Leftover, resume: bool) -> bool {
        match leftover.purpose {
            // Killed between making and marking: empty, and nobody's but by its name.
            None => leftover.database == self.scratch,
            Some(pg::Purpose::Restore) if resume => false,
            // Older ones do not say what they are of.
            Some(_) => {
                let of_this = leftover.what.as_deref().is_none_or(|what| what == self.what);
                of_this && leftover.of.as_deref() == Some(self.database)
            }
        }
    }
}

/// What is told of a server's scratch databases with the plan of a restore that begins anew.
pub(super) async fn told(
    label: &str,
    target: &essrun_postgres::Connection,
    options: &pg::RestoreOptions,
    plan: &pg::RestorePlan,
) -> Result<Vec<Precondition>, PipelineError> {
    let found = pg::list_leftovers(target, &options.maintenance_database)
        .await
        .map_err(|e| PipelineError::restoring(plan.prefix.clone(), e))?;
    let mut told = Vec::new();
    for leftover in found {
        let (database, run) = (&leftover.database, leftover.run.as_deref().unwrap_or("?"));
        if Place::of(plan).clears(&leftover, false) {
            let restore = leftover.purpose == Some(pg::Purpose::Restore);
            told.push(Precondition {
                label: label.to_owned(),
                check: "leftover".into(),
                severity: if restore { Severity::Warning } else { Severity::Info },
                message: match restore {
                    true => {
                        format!("`{database}`, left by a restore of backup {run} that was stopped, is dropped first")
                    }
                    false => format!("`{database}`, left by a run that was killed, is dropped first"),
                },
                remedy: match restore {
                    true => format!("--backup {run} --resume goes on with it instead"),
                    false => String::new(),
                },
            });
        } else if database == &plan.scratch {
            let (what, of) = (
                leftover.what.as_deref().unwrap_or("?"),
                leftover.of.as_deref().unwrap_or("?"),
            );
            told.push(Precondition {
                label: label.to_owned(),
                check: "scratch-exists".into(),
                severity: Severity::Error,
                message: format!("`{database}` is what a restore of {what} into `{of}` left that was stopped"),
                remedy: "go on with that one (--resume), or drop the database".into(),
            });
        }
    }
    Ok(told)
}

/// What stopped restores left at a volume's destination; nothing where the destination itself is in the way.
pub(super) async fn of_volume(what: &str, path: &Path) -> Result<Vec<essrun_volume::Leftover>, PipelineError> {
    if !path.parent().is_some_and(Path::exists) {
        return Ok(Vec::new());
    }
    match essrun_volume::restore::list_leftovers(path).await {
        Ok(found) => Ok(found),
        // Told by the plan itself.
        Err(VolumeError::Destination { .. }) => Ok(Vec::new()),
        Err(e) => Err(PipelineError::source(what, e)),
    }
}

/// Removes what is in the way of this plan, and says whether there was anything. A server that cannot be reached is left
/// for the restore to report.
pub(super) async fn clean(planned: &Planned, resume: bool) -> Result<bool, PipelineError> {
    let mut found = false;
    for item in &planned.items {
        for (label, target) in &item.databases {
            match target {
                DatabaseTarget::Postgres { target, options, plan } => {
                    let which = |l: &pg::Leftover| Place::of(plan).clears(l, resume);
                    found |= databases(&plan.prefix, target, &options.maintenance_database, which).await;
                }
                DatabaseTarget::Sqlite { path, .. } => {
                    found |= files(&format!("{}/{label}", item.loaded.name()), path).await;
                }
            }
        }
        for (label, target) in &item.volumes {
            found |= trees(&format!("{}/{label}", item.loaded.name()), &target.path, resume).await?;
        }
    }
    Ok(found)
}

/// Drops scratch databases whose makers are gone, those that `which` picks; says whether there were any.
pub(crate) async fn databases(
    what: &str,
    target: &essrun_postgres::Connection,
    maintenance: &str,
    which: impl Fn(&pg::Leftover) -> bool,
) -> bool {
    let mut found = match pg::list_leftovers(target, maintenance).await {
        Ok(found) => found,
        Err(e) => {
            tracing::info!("{what}: leftovers cannot be looked for: {e}");
            return false;
        }
    };
    found.retain(which);
    let any = !found.is_empty();
    for leftover in found {
        match pg::drop_leftover(target, maintenance, &leftover).await {
            Ok(()) => tracing::info!("{what}: dropped {}, left by a killed run", leftover.database),
            Err(e) => tracing::warn!("{what}: {} is left by a killed run: {e}", leftover.database),
        }
    }
    any
}

async fn files(what: &str, path: &Path) -> bool {
    let found = match essrun_sqlite::list_leftovers(path).await {
        Ok(found) => found,
        Err(e) => {
            tracing::info!("{what}: leftovers cannot be looked for: {e}");
            return false;
        }
    };
    let any = !found.is_empty();
    for file in found {
        match tokio::fs::remove_file(&file).await {
            Ok(()) => tracing::info!("{what}: removed {}, left by a killed run", file.display()),
            Err(e) => tracing::warn!("{what}: {} is left by a killed run: {e}", file.display()),
        }
    }
    any
}

async fn trees(what: &str, path: &Path, resume: bool) -> Result<bool, PipelineError> {
    let failed = |e| PipelineError::source(what, e);
    let mut any = false;
    for leftover in of_volume(what, path).await? {
        if leftover.state == LeftoverState::Swapping {
            any = true;
            let swapped = essrun_volume::restore::resume_swap(&leftover).await.map_err(failed)?;
            tracing::warn!(
                "{what}: a swap that was cut short is done now: {} is in place{}",
                swapped.destination.display(),
                swapped
                    .kept
                    .map(|k| format!(", the old tree is kept as {}", k.display()))
                    .unwrap_or_default()
            );
        }
    }
    if resume || !path.parent().is_some_and(Path::exists) {
        return Ok(any);
    }
    for dropped in essrun_volume::restore::drop_leftovers(path).await.map_err(failed)? {
        any = true;
        tracing::info!("{what}: removed {}, left by a killed run", dropped.path.display());
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(database: &str, purpose: Option<pg::Purpose>, what: Option<&str>, of: Option<&str>) -> pg::Leftover {
        pg::Leftover {
            database: database.into(),
            run: purpose.map(|_| "1".into()),
            purpose,
            of: of.map(str::to_owned),
            what: what.map(str::to_owned),
            complete: false,
        }
    }

    #[test]
    fn only_what_stands_in_this_ones_place_goes() {
        use pg::Purpose::{Drill, Restore};
        let place = Place {
            what: "a/main",
            database: "copy",
            scratch: "copy_essrun_1",
        };
        let (a, b) = (Some("a/main"), Some("b/main"));
        let (copy, other) = (Some("copy"), Some("other"));
        for (leftover, goes_anew, goes_resumed) in [
            (left("copy_essrun_1", Some(Restore), a, copy), true, false),
            (left("copy_essrun_0", Some(Restore), a, copy), true, false),
            (left("copy_essrun_0", Some(Restore), None, copy), true, false),
            (left("copy_essrun_d", Some(Drill), a, copy), true, true),
            // Another target, another component: also where the name is the same.
            (left("other_essrun_1", Some(Restore), a, other), false, false),
            (left("copy_essrun_1", Some(Restore), b, copy), false, false),
            (left("b_essrun_1", Some(Restore), b, Some("b")), false, false),
            (left("b_essrun_d", Some(Drill), b, Some("b")), false, false),
            // Never marked.
            (left("copy_essrun_1", None, None, None), true, true),
            (left("b_essrun_1", None, None, None), false, false),
        ] {
            assert_eq!(place.clears(&leftover, false), goes_anew, "{leftover:?}");
            assert_eq!(place.clears(&leftover, true), goes_resumed, "{leftover:?}");
        }
    }
}
