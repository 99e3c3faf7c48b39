//! Whether what is to be restored fits where it goes, file system by file system.
//!
//! Each part may fit alone and all of them not; and a scratch database or a staged tree that fills the disk of what is
//! live stops it. What is needed at least is known from the backup: the bytes of files, and of databases the smaller of
//! their rows and the size they had. So where it does not fit by that, it does not fit, but for files with holes: the
//! person may say otherwise (`--force-space`), and so may a resume, whose part is there already.

use crate::body::Severity;
use crate::restore::RestoreOptions;
use crate::restore::plan::{DatabaseTarget, Item, Precondition};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What goes to one file system.
struct Share {
    free: u64,
    /// A directory on it.
    place: PathBuf,
    parts: Vec<Part>,
}

struct Part {
    item: usize,
    label: String,
    /// At least so many.
    bytes: u64,
}

/// Adds a finding for each file system that is too small.
pub(crate) fn check(items: &mut [Item], options: &RestoreOptions) {
    let mut shares: BTreeMap<u64, Share> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (index, item) in items.iter().enumerate() {
        for (label, place, bytes) in parts(item) {
            let part = Part {
                item: index,
                label: label.to_owned(),
                bytes,
            };
            match room(place) {
                Ok((device, free)) => {
                    let share = shares.entry(device).or_insert_with(|| Share {
                        free,
                        place: place.to_owned(),
                        parts: Vec::new(),
                    });
                    share.parts.push(part);
                }
                Err(e) => unknown.push((part, format!("{}: how much is free is not known: {e}", place.display()))),
            }
        }
    }
    for (part, message) in unknown {
        let remedy = format!("at least {} are needed there", bytesize::ByteSize(part.bytes));
        add(items, &part, "space-unknown", Severity::Warning, message, remedy);
    }
    for share in shares.into_values() {
        let needed: u64 = share.parts.iter().map(|p| p.bytes).fold(0, u64::saturating_add);
        let Some(largest) = share.parts.iter().max_by_key(|p| p.bytes) else {
            continue;
        };
        if needed <= share.free {
            continue;
        }
        let names: Vec<String> = share
            .parts
            .iter()
            .filter_map(|p| Some(format!("{}/{}", items.get(p.item)?.loaded.name(), p.label)))
            .collect();
        let message = format!(
            "{} are to be restored to the file system of {} ({}), where {} are free",
            bytesize::ByteSize(needed),
            share.place.display(),
            names.join(", "),
            bytesize::ByteSize(share.free)
        );
        let severity = match options.force_space || options.resume {
            true => Severity::Warning,
            false => Severity::Error,
        };
        let remedy = "free some space (what is replaced is kept, and needs its own), or restore elsewhere: --to, or \
                      --scratch for the files of a drill; --force-space tries all the same";
        add(items, largest, "space-short", severity, message, remedy.to_owned());
    }
}

/// What of a component goes where, and at least how many bytes of it.
fn parts(item: &Item) -> Vec<(&str, &Path, u64)> {
    let mut parts = Vec::new();
    for (label, target) in &item.volumes {
        if !target.in_place {
            parts.push((label.as_str(), target.plan.staging_in.as_path(), target.plan.bytes));
        }
    }
    for (label, target) in &item.databases {
        match target {
            DatabaseTarget::Sqlite { record, staged_in, .. } => {
                parts.push((label.as_str(), staged_in.as_path(), record.content.bytes));
            }
            DatabaseTarget::Postgres { plan, .. } if plan.in_service.is_none() => {
                if let Some(directory) = &plan.data_directory {
                    parts.push((
                        label.as_str(),
                        directory.as_path(),
                        plan.bytes.min(plan.facts.size_bytes),
                    ));
                }
            }
            DatabaseTarget::Postgres { .. } => {}
        }
    }
    parts
}

/// The device of a directory, and the bytes this user may still write there.
fn room(directory: &Path) -> std::io::Result<(u64, u64)> {
    let space = rustix::fs::statvfs(directory)?;
    if space.f_blocks == 0 {
        // Some file systems over a network or in user space do not tell.
        return Err(std::io::Error::other("the file system does not say"));
    }
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    Ok((directory.metadata()?.dev(), free))
}

fn add(items: &mut [Item], part: &Part, check: &str, severity: Severity, message: String, remedy: String) {
    if let Some(item) = items.get_mut(part.item) {
        item.findings.push(Precondition {
            label: part.label.clone(),
            check: check.to_owned(),
            severity,
            message,
            remedy,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_does_not_tell_is_not_taken_for_full() {
        assert!(room(Path::new("/proc")).is_err());
        assert!(room(Path::new("/nowhere")).is_err());
        let here = tempfile::tempdir().unwrap();
        let (device, _) = room(here.path()).unwrap();
        assert_eq!(device, here.path().metadata().unwrap().dev());
    }
}
