//! What restores that were killed left behind: found and removed before the next one plans.
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
use std::path::{Path, PathBuf};

/// Removes the leftovers of these components' targets. A target that cannot be reached is left for the plan to report.
pub async fn clean(loaded: &[Loaded], options: &RestoreOptions) -> Result<(), PipelineError> {
    for one in loaded {
        for (label, grant) in &one.config.databases {
            let what = format!("{}/{label}", one.name());
            match &grant.source {
                _ if !one.owns(label) => {}
                DatabaseSource::Postgres(_) => {
                    let (target, maintenance) = postgres_target(&what, grant)?;
                    let which = |l: &pg::Leftover| !(options.resume && l.purpose == Some(pg::Purpose::Restore));
                    databases(&what, &target, maintenance.as_deref().unwrap_or("postgres"), which).await;
                }
                DatabaseSource::Sqlite(path) => {
                    files(
                        &what,
                        &options.targets.get(&what).map_or_else(|| path.clone(), PathBuf::from),
                    )
                    .await;
                }
            }
        }
        for (label, grant) in &one.config.volumes {
            let what = format!("{}/{label}", one.name());
            let path = options
                .targets
                .get(&what)
                .map_or_else(|| grant.path.clone(), PathBuf::from);
            if one.owns(label) && path.parent().is_some_and(Path::exists) {
                trees(&what, &path, options.resume).await?;
            }
        }
    }
    Ok(())
}

/// Drops scratch databases whose makers are gone, those that `which` picks.
pub(crate) async fn databases(
    what: &str,
    target: &essrun_postgres::Connection,
    maintenance: &str,
    which: impl Fn(&pg::Leftover) -> bool,
) {
    let found = match pg::list_leftovers(target, maintenance).await {
        Ok(found) => found,
        Err(e) => return tracing::info!("{what}: leftovers cannot be looked for: {e}"),
    };
    for leftover in found.into_iter().filter(|l| which(l)) {
        match pg::drop_leftover(target, maintenance, &leftover).await {
            Ok(()) => tracing::info!("{what}: dropped {}, left by a killed run", leftover.database),
            Err(e) => tracing::warn!("{what}: {} is left by a killed run: {e}", leftover.database),
        }
    }
}

async fn files(what: &str, path: &Path) {
    let found = match essrun_sqlite::list_leftovers(path).await {
        Ok(found) => found,
        Err(e) => return tracing::info!("{what}: leftovers cannot be looked for: {e}"),
    };
    for file in found {
        match tokio::fs::remove_file(&file).await {
            Ok(()) => tracing::info!("{what}: removed {}, left by a killed run", file.display()),
            Err(e) => tracing::warn!("{what}: {} is left by a killed run: {e}", file.display()),
        }
    }
}

async fn trees(what: &str, path: &Path, resume: bool) -> Result<(), PipelineError> {
    let failed = |e| PipelineError::source(what, e);
    for leftover in essrun_volume::restore::list_leftovers(path).await.map_err(failed)? {
        if leftover.state == LeftoverState::Swapping {
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
        return Ok(());
    }
    for dropped in essrun_volume::restore::drop_leftovers(path).await.map_err(failed)? {
        tracing::info!("{what}: removed {}, left by a killed run", dropped.path.display());
    }
    Ok(())
}
