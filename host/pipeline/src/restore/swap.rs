//! Puts what was verified in service: volumes first, databases after, so that no row points at a file not yet there; of
//! either in the order they were restored in. What would refuse any of them is looked for before the first one goes.

use super::plan::{DatabaseTarget, Item, Planned, Step};
use super::stage::Staged;
use super::{RestoreOptions, TO_RESUME};
use crate::error::PipelineError;
use crate::report::{Event, Reporter};
use essrun_postgres::restore as pg;

/// Swaps all. The first failure stops it and names what is in service already; nothing is taken back, since both states
/// are whole and the old one is kept.
pub async fn everything(
    planned: &Planned,
    staged: Staged,
    options: &RestoreOptions,
    reporter: &dyn Reporter,
) -> Result<(), PipelineError> {
    let mut done: Vec<String> = Vec::new();
    let mut rest = staged;
    let result = match ready(planned, &rest, options).await {
        Ok(()) => swap(planned, &mut rest, options, reporter, &mut done).await,
        refused => refused,
    };
    if let Err(e) = result {
        rest.leave().await;
        let state = if done.is_empty() {
            "nothing was put in service".to_owned()
        } else {
            format!("in service already: {}; the rest is as it was before", done.join(", "))
        };
        return Err(e.and_note(&format!("{state}\n  {TO_RESUME}")));
    }
    Ok(())
}

fn how(options: &RestoreOptions) -> pg::SwapOptions {
    pg::SwapOptions {
        replace: options.replace,
        terminate: options.disconnect,
    }
}

fn key(item: &Item, label: &str) -> (String, String) {
    (item.loaded.name().to_owned(), label.to_owned())
}

/// Refuses what a swap would refuse, before the first of them.
async fn ready(planned: &Planned, staged: &Staged, options: &RestoreOptions) -> Result<(), PipelineError> {
    for item in &planned.items {
        let what = |label: &str| format!("{}/{label}", item.loaded.name());
        for label in item.volumes.keys() {
            if let Some(tree) = staged.volumes.get(&key(item, label)) {
                tree.swap_ready()
                    .await
                    .map_err(|e| PipelineError::restoring(what(label), e))?;
            }
        }
        for (label, target) in &item.databases {
            let key = key(item, label);
            match target {
                DatabaseTarget::Postgres { target, .. } => {
                    if let Some(restored) = staged.postgres.get(&key) {
                        pg::swap_ready(target, restored, &how(options))
                            .await
                            .map_err(|e| PipelineError::restoring(what(label), e))?;
                    }
                }
                DatabaseTarget::Sqlite { .. } => {
                    if let Some(file) = staged.sqlite.get(&key) {
                        file.swap_ready()
                            .await
                            .map_err(|e| PipelineError::restoring(what(label), e))?;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn swap(
    planned: &Planned,
    staged: &mut Staged,
    options: &RestoreOptions,
    reporter: &dyn Reporter,
    done: &mut Vec<String>,
) -> Result<(), PipelineError> {
    let mut told = |component: &str, label: &str, kept: Option<String>| {
        reporter.event(Event::Swapped {
            component: component.to_owned(),
            label: label.to_owned(),
            kept,
        });
        done.push(format!("{component}/{label}"));
    };
    for item in &planned.items {
        let component = item.loaded.name();
        for step in &item.steps {
            let Step::Volume(label) = step else { continue };
            if let Some(tree) = staged.volumes.remove(&key(item, label)) {
                let swapped = tree
                    .swap()
                    .await
                    .map_err(|e| PipelineError::restoring(format!("{component}/{label}"), e))?;
                told(component, label, swapped.kept.map(|p| p.display().to_string()));
            }
        }
    }
    for item in &planned.items {
        let component = item.loaded.name();
        for step in &item.steps {
            let Step::Database(label) = step else { continue };
            let key = key(item, label);
            let what = || format!("{component}/{label}");
            match item.databases.get(label) {
                Some(DatabaseTarget::Postgres { target, .. }) => {
                    if let Some(restored) = staged.postgres.get_mut(&key) {
                        let swapped = pg::swap(target, restored, &how(options))
                            .await
                            .map_err(|e| PipelineError::restoring(what(), e))?;
                        // In service: no more to be dropped when something later fails.
                        staged.postgres.remove(&key);
                        told(component, label, swapped.old_kept_as);
                    }
                }
                Some(DatabaseTarget::Sqlite { .. }) => {
                    if let Some(file) = staged.sqlite.remove(&key) {
                        let swapped = file.swap().await.map_err(|e| PipelineError::restoring(what(), e))?;
                        told(component, label, swapped.kept.map(|p| p.display().to_string()));
                    }
                }
                None => {}
            }
        }
    }
    Ok(())
}
