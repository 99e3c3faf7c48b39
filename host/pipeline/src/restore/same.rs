//! Targets that are looked at together: each must be something this restore restores, and no two may be one place.
//!
//! Two that collide would be found out only when the first is in service already, or would push each other aside.

use super::RestoreOptions;
use super::plan::{DatabaseTarget, Item, Precondition, Step};
use crate::body::Severity;
use crate::error::PipelineError;
use crate::load::Loaded;
use essrun_postgres::{Connection, Inspector};
use std::path::{Component, Path, PathBuf};

/// Refuses a `--to` that names nothing a component has, or only looks at.
pub(super) fn named(loaded: &[Loaded], options: &RestoreOptions) -> Result<(), PipelineError> {
    for target in options.targets.keys() {
        let granted = target.split_once('/').and_then(|(component, label)| {
            let one = loaded.iter().find(|l| l.name() == component)?;
            let has = one.config.databases.contains_key(label) || one.config.volumes.contains_key(label);
            has.then(|| one.owns(label))
        });
        match granted {
            Some(true) => {}
            Some(false) => {
                return Err(PipelineError::refused(
                    format!("--to names {target:?}, which is only looked at and belongs to another component"),
                    "name the component that backs it up",
                ));
            }
            None => {
                return Err(PipelineError::refused(
                    format!("--to names {target:?}, which this restore does not have"),
                    "name a component and one of its labels, as `essrun validate` lists them",
                ));
            }
        }
    }
    Ok(())
}

/// Refuses a `--to` for something that is not restored.
pub(super) fn restored(items: &[Item], options: &RestoreOptions) -> Result<(), PipelineError> {
    for target in options.targets.keys() {
        let planned = |i: &Item| {
            let label = target.strip_prefix(i.loaded.name()).and_then(|r| r.strip_prefix('/'));
            i.steps
                .iter()
                .any(|s| matches!(s, Step::Volume(_) | Step::Database(_)) && Some(s.label()) == label)
        };
        if !items.iter().any(planned) {
            return Err(PipelineError::refused(
                format!("--to names {target:?}, of which nothing is restored"),
                "the backup does not hold it, or --only leaves it out; leave this --to away, or name another backup",
            ));
        }
    }
    Ok(())
}

/// Something that is written, and where.
struct Place<'a> {
    item: usize,
    component: &'a str,
    label: &'a str,
    at: At<'a>,
}

enum At<'a> {
    Postgres {
        target: &'a Connection,
        maintenance: &'a str,
        /// The name in the end, and until then.
        names: [&'a str; 2],
    },
    /// A volume or an SQLite file, without links.
    Path(PathBuf),
}

/// Finds places that are the same, or one inside the other.
pub(super) async fn places(items: &mut [Item]) {
    let mut places = Vec::new();
    for (number, item) in items.iter().enumerate() {
        let component = item.loaded.name();
        for (label, target) in &item.databases {
            let at = match target {
                DatabaseTarget::Postgres { target, options, plan } => At::Postgres {
                    target,
                    maintenance: &options.maintenance_database,
                    names: [&plan.database, &plan.scratch],
                },
                DatabaseTarget::Sqlite { path, .. } => At::Path(without_links(path)),
            };
            places.push(Place {
                item: number,
                component,
                label,
                at,
            });
        }
        for (label, target) in &item.volumes {
            places.push(Place {
                item: number,
                component,
                label,
                at: At::Path(without_links(&target.path)),
            });
        }
    }
    let mut found = Vec::new();
    let mut before: Vec<&Place<'_>> = Vec::new();
    for place in &places {
        for other in &before {
            if let Some(how) = meet(&other.at, &place.at).await {
                let precondition = Precondition {
                    label: place.label.to_owned(),
                    check: "same-target".into(),
                    severity: Severity::Error,
                    message: format!("it would go {how} of {}/{}", other.component, other.label),
                    remedy: format!(
                        "give them places apart, as with --to {}/{}=TARGET, or restore one after the other with --only",
                        place.component, place.label
                    ),
                };
                found.push((place.item, precondition));
            }
        }
        before.push(place);
    }
    for (number, precondition) in found {
        if let Some(item) = items.get_mut(number) {
            item.findings.push(precondition);
        }
    }
}

async fn meet(one: &At<'_>, other: &At<'_>) -> Option<String> {
    match (one, other) {
        (At::Path(one), At::Path(other)) => nested(one, other),
        (
            At::Postgres {
                target,
                maintenance,
                names,
            },
            At::Postgres {
                target: to,
                names: others,
                ..
            },
        ) => {
            let shared = names.iter().find(|name| others.contains(*name))?;
            let same = same_server((*target, *maintenance), to).await;
            same.then(|| format!("into the database `{shared}`"))
        }
        _ => None,
    }
}

fn nested(one: &Path, other: &Path) -> Option<String> {
    if one == other {
        Some(format!("to the place, {},", one.display()))
    } else if other.starts_with(one) {
        Some(format!("into the place, {},", one.display()))
    } else if one.starts_with(other) {
        Some(format!("around the place, {},", one.display()))
    } else {
        None
    }
}

/// Whether two ways lead to one server: by name, or because both reach the very same database there.
async fn same_server((one, maintenance): (&Connection, &str), other: &Connection) -> bool {
    if (one.host(), one.port()) == (other.host(), other.port()) {
        return true;
    }
    let identity = |c: &Connection| {
        let inspector = Inspector::new(c.with_database(maintenance));
        async move { inspector.identity().await }
    };
    match (identity(one).await, identity(other).await) {
        (Ok(one), Ok(other)) => one == other,
        // A role that may not connect there says nothing; the swap refuses what is in its way all the same.
        (Err(e), _) | (_, Err(e)) => {
            tracing::info!("whether two targets are on one server is not known: {e}");
            false
        }
    }
}

/// The path as the file system means it, as far as it is there. Its own last name is kept: a restore follows no link there.
fn without_links(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        match part {
            Component::ParentDir => {
                real.pop();
            }
            part => real.push(part),
        }
        if parts.peek().is_some()
            && let Ok(found) = real.canonicalize()
        {
            real = found;
        }
    }
    real
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_as_the_file_system_means_them() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("a/b")).unwrap();
        std::os::unix::fs::symlink(real.join("a"), real.join("link")).unwrap();
        assert_eq!(without_links(&real.join("link/x/y")), real.join("a/x/y"));
        assert_eq!(without_links(&real.join("link")), real.join("link"));
        assert_eq!(without_links(Path::new("/")), Path::new("/"));
        let meets = |one: &str, other: &str| {
            nested(&without_links(&real.join(one)), &without_links(&real.join(other))).is_some()
        };
        assert!(meets("a/b", "link/b") && meets("link/b", "a/b/c/d") && meets("a/x", "link/x/../x"));
        assert!(meets("a/b/c", "a/b"));
        assert!(!meets("a/b", "a/bc") && !meets("a/b", "a/c"));
    }
}
