//! The walk, cut into batches, and joined with the earlier listing.

use super::{OTHER_FILE_SYSTEM, Shared};
use crate::listing::Entries;
use crate::walk::{Met, Walker};
use crate::{ListedEntry, TreePath, VolumeError, sys};
use essrun_artifact::{ArtifactRecord, BackupReader};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Entries of one batch. The first batches are small, so that a tree of a few large files is still shared out.
const LARGEST_BATCH: usize = 256;

/// Numbered entries on their way to a worker.
pub(super) struct Batch {
    pub number: u64,
    pub groups: Vec<Group>,
    pub problems: Vec<Problem>,
}

/// Names of one directory.
pub(super) struct Group {
    pub directory: Vec<u8>,
    pub names: Vec<Candidate>,
}

pub(super) struct Candidate {
    pub name: Vec<u8>,
    /// What the directory said it is.
    pub hint: FileType,
    /// What the earlier listing says of it.
    pub earlier: Option<Box<ListedEntry>>,
}

pub(super) struct Problem {
    pub what: Trouble,
    pub path: TreePath,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Vanished,
    Skipped,
    Unreadable,
    Unstable,
}

/// Walks the tree and sends batches.
pub(super) fn walk(shared: &Shared, mut walker: Walker, out: mpsc::Sender<Batch>) -> Result<(), VolumeError> {
    let mut batch = Batch {
        number: 0,
        groups: Vec::new(),
        problems: Vec::new(),
    };
    let mut held = 0;
    let mut size = 2;
    while let Some(met) = walker.next() {
        if shared.stopped() {
            return Ok(());
        }
        let (directory, names) = match met {
            Met::Directory { path, names } => (path, names),
            Met::Failed { path, error } if path.is_empty() => {
                return Err(VolumeError::io("read the root", path, error));
            }
            Met::Failed { path, error } => {
                batch.problems.push(failed_directory(path, error));
                continue;
            }
        };
        let mut names = names.into_iter();
        while names.len() > 0 {
            let part: Vec<Candidate> = names
                .by_ref()
                .take(size - held)
                .map(|(name, hint)| Candidate {
                    name,
                    hint,
                    earlier: None,
                })
                .collect();
            held += part.len();
            batch.groups.push(Group {
                directory: directory.clone(),
                names: part,
            });
            if held >= size {
                let next = Batch {
                    number: batch.number + 1,
                    groups: Vec::new(),
                    problems: Vec::new(),
                };
                if out.blocking_send(std::mem::replace(&mut batch, next)).is_err() {
                    return Ok(());
                }
                held = 0;
                size = (size * 2).min(LARGEST_BATCH);
            }
        }
    }
    // The receiver is gone only when all is stopped.
    let _ = out.blocking_send(batch);
    Ok(())
}

fn failed_directory(path: Vec<u8>, error: Errno) -> Problem {
    let (what, why) = match error {
        Errno::XDEV => (Trouble::Skipped, OTHER_FILE_SYSTEM.to_owned()),
        e if sys::is_gone(e) => (Trouble::Vanished, "the directory went away during the walk".to_owned()),
        e => (Trouble::Unreadable, e.to_string()),
    };
    Problem {
        what,
        path: TreePath::of_directory(path),
        why,
    }
}

/// Puts beside each name what the earlier listing says of it, and hands the batches to the workers. Both come in the
/// same order, so each is read once. A listing that cannot be used is no failure: all is read, and the reason returned.
pub(super) async fn join(
    shared: &Shared,
    previous: Option<(Arc<dyn BackupReader>, ArtifactRecord)>,
    rescan: bool,
    mut batches: mpsc::Receiver<Batch>,
    out: mpsc::Sender<Batch>,
) -> Option<String> {
    let mut unusable = None;
    let mut earlier = None;
    if let Some((reader, record)) = previous.as_ref().filter(|_| !rescan) {
        match Earlier::open(&**reader, record).await {
            Ok(opened) => earlier = Some(opened),
            Err(e) => unusable = Some(e.to_string()),
        }
    }
    while let Some(mut batch) = batches.recv().await {
        if let Some(listing) = &mut earlier
            && let Err(e) = listing.beside(&mut batch).await
        {
            unusable = Some(e.to_string());
            earlier = None;
        }
        let Ok(permit) = shared.window.acquire().await else {
            break;
        };
        // Given back by the collector when the batch is in the listing.
        permit.forget();
        if out.send(batch).await.is_err() {
            break;
        }
    }
    unusable
}

struct Earlier {
    entries: Entries,
    /// Read, but ordered after all names asked for so far.
    ahead: Option<ListedEntry>,
}

impl Earlier {
    async fn open(reader: &dyn BackupReader, record: &ArtifactRecord) -> Result<Self, VolumeError> {
        let mut entries = Entries::open(reader, record).await?;
        let ahead = entries.next().await?;
        Ok(Earlier { entries, ahead })
    }

    async fn beside(&mut self, batch: &mut Batch) -> Result<(), VolumeError> {
        for group in &mut batch.groups {
            for candidate in &mut group.names {
                if self.ahead.is_none() {
                    return Ok(());
                }
                let path = TreePath::of_entry(&group.directory, &candidate.name);
                while self.ahead.as_ref().is_some_and(|entry| entry.path < path) {
                    self.ahead = self.entries.next().await?;
                }
                if self.ahead.as_ref().is_some_and(|entry| entry.path == path) {
                    candidate.earlier = self.ahead.take().map(Box::new);
                    self.ahead = self.entries.next().await?;
                }
            }
        }
        Ok(())
    }
}
