//! What restores that were killed left behind: found and removed before the next one makes anything of its own.
//!
//! Only what a maker that is gone had made itself is removed: scratch databases, staging directories, staged files. A
//! swap of a volume that was cut short is brought to its end, since both trees are there and whole. A restore that is to
//! be gone on with finds its scratch databases and staged trees untouched.

use super::RestoreOptions;
use super::targets::postgres_target;
use crate::config::DatabaseSource;
use crate::error::PipelineError;
use crate::load::Loaded;
use essrun_postgres::restore as pg;
use essrun_volume::LeftoverState;
use std::path::Path;

/// Removes the leftovers of these components' targets, and says whether there were any. A target that cannot be reached
/// is left for the plan to report.
pub async fn clean(loaded: &[Loaded], options: &RestoreOptions) -> Result<bool, PipelineError> {
    let mut found = false;
    for one in loaded {
        for (label, grant) in &one.config.databases {
            let what = format!("{}/{label}", one.name());
            match &grant.source {
                _ if !one.owns(label) => {}
                DatabaseSource::Postgres(_) => {
                    let (target, maintenance) = postgres_target(&what, grant)?;
                    let which = |l: &pg::Leftover| !(options.resume && l.purpose == Some(pg::Purpose::Restore));
                    found |= databases(&what, &target, maintenance.as_deref().unwrap_or("postgres"), which).await;
                }
                DatabaseSource::Sqlite(path) => {
                    found |= files(&what, &options.place(&what, path)?).await;
                }
            }
        }
        for (label, grant) in &one.config.volumes {
            let what = format!("{}/{label}", one.name());
            let path = options.place(&what, &grant.path)?;
            if one.owns(label) && path.parent().is_some_and(Path::exists) {
                found |= trees(&what, &path, options.resume).await?;
            }
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
    for leftover in essrun_volume::restore::list_leftovers(path).await.map_err(failed)? {
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
    if resume {
        return Ok(any);
    }
    for dropped in essrun_volume::restore::drop_leftovers(path).await.map_err(failed)? {
        any = true;
        tracing::info!("{what}: removed {}, left by a killed run", dropped.path.display());
    }
    Ok(any)
}
