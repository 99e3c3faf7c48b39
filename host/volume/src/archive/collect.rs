//! The collector: batches back into order, files with several names, the listing.

use super::links::{Links, MOST};
use super::read::{CHANGED, Done, Made, Outcome, Reader};
use super::scan::{Candidate, Problem, Trouble};
use super::{ArchiveReport, Shared};
use crate::path::DirectoryPath;
use crate::sys::{self, Stat};
use crate::{Kind, ListedEntry, TreePath, VolumeError};
use bytes::Bytes;
use essrun_artifact::{Content, Lane, LaneSpec};
use rustix::fd::AsFd;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;

/// Bytes of the listing handed over at once.
const BUFFER: usize = 256 * 1024;

struct Collector<'a> {
    shared: &'a Shared,
    reader: Reader<'a>,
    listing: Box<dyn Lane>,
    buffer: Vec<u8>,
    links: Links,
    parents: Parents,
    report: ArchiveReport,
}

/// The directories listed so far whose own entries are still to come. In a living tree a directory can be missing when
/// it is looked at and be back when what is below it is read; listing that would make a listing that cannot be restored.
#[derive(Default)]
struct Parents {
    here: Vec<u8>,
    to_come: BTreeSet<DirectoryPath>,
}

impl Parents {
    /// Whether the entry's directory is listed. Entries come in the listing's order, so directories passed over are
    /// forgotten.
    fn admit(&mut self, entry: &ListedEntry) -> bool {
        let Some((parent, _)) = entry.path.split() else {
            return true;
        };
        if parent != self.here.as_slice() {
            let parent = DirectoryPath(parent.to_vec());
            self.to_come = self.to_come.split_off(&parent);
            if !self.to_come.remove(&parent) {
                return false;
            }
            self.here = parent.0;
        }
        if entry.kind == Kind::Directory {
            self.to_come.insert(DirectoryPath(entry.path.as_bytes().to_vec()));
        }
        true
    }
}

/// Writes the listing of all batches in order. Ends when the workers end, with what they made.
pub(super) fn collect(
    shared: &Shared,
    mut done: mpsc::Receiver<Done>,
) -> Result<(ArchiveReport, Content), VolumeError> {
    let mut collector = Collector {
        shared,
        reader: Reader::new(shared),
        listing: shared.writer.lane(LaneSpec::LISTING)?,
        buffer: Vec::with_capacity(BUFFER + 4096),
        links: Links::new(MOST),
        parents: Parents::default(),
        report: ArchiveReport::default(),
    };
    collector.root()?;
    let mut early: BTreeMap<u64, Done> = BTreeMap::new();
    let mut next = 0;
    while let Some(batch) = done.blocking_recv() {
        early.insert(batch.number, batch);
        while let Some(batch) = early.remove(&next) {
            collector.batch(batch)?;
            shared.window.add_permits(1);
            next += 1;
        }
        if shared.stopped() {
            break;
        }
    }
    if shared.stopped() || !early.is_empty() {
        return Err(VolumeError::Internal("the archive was stopped before its end".into()));
    }
    collector.end()
}

impl Collector<'_> {
    fn root(&mut self) -> Result<(), VolumeError> {
        let root = &self.shared.root;
        let read = sys::stat_fd(root.fd()).and_then(|stat| Ok((stat, sys::xattrs(root.fd())?)));
        let (stat, xattrs) = read.map_err(|e| VolumeError::io("look at", b"", e))?;
        self.write(&ListedEntry {
            path: TreePath::root(),
            kind: Kind::Directory,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            ctime: stat.ctime,
            ino: stat.ino,
            fresh: false,
            xattrs,
        })
    }

    fn batch(&mut self, batch: Done) -> Result<(), VolumeError> {
        self.report.taken_over_files += batch.taken_over.0;
        self.report.taken_over_bytes += batch.taken_over.1;
        self.report.read_bytes += batch.read_bytes;
        for problem in batch.problems {
            self.note(problem);
        }
        for made in batch.made {
            match made {
                Made::Entry(entry) => self.write(&entry)?,
                Made::Shared {
                    directory,
                    candidate,
                    stat,
                } => self.several(&directory, candidate, stat)?,
            }
        }
        Ok(())
    }

    fn note(&mut self, problem: Problem) {
        let noted = match problem.what {
            Trouble::Vanished => &mut self.report.vanished,
            Trouble::Skipped => &mut self.report.skipped,
            Trouble::Unreadable => &mut self.report.unreadable,
            Trouble::Unstable => &mut self.report.unstable,
        };
        noted.note(problem.path, problem.why);
    }

    /// One name of a file that has several: the first carries it, later ones refer to it (and name its content again, so
    /// that each can be had by itself).
    fn several(&mut self, directory: &[u8], candidate: Candidate, stat: Stat) -> Result<(), VolumeError> {
        let path = TreePath::of_entry(directory, &candidate.name);
        let inode = (stat.device, stat.ino);
        if let Some(mut entry) = self.links.meet(inode) {
            if let Kind::File { hardlink, .. } = &mut entry.kind {
                *hardlink = Some(entry.path);
            }
            entry.path = path;
            return self.write(&entry);
        }
        let fd = match self.shared.root.directory(directory) {
            Ok(fd) => fd,
            Err(e) => {
                let what = if sys::is_gone(e) {
                    Trouble::Vanished
                } else {
                    Trouble::Unreadable
                };
                self.note(Problem {
                    what,
                    path,
                    why: e.to_string(),
                });
                return Ok(());
            }
        };
        let read_before = self.reader.read_bytes;
        let outcome = self.reader.entry(fd.as_fd(), path.clone(), candidate, stat)?;
        self.report.read_bytes += self.reader.read_bytes - read_before;
        let entry = match outcome {
            Outcome::Entry(entry) => entry,
            Outcome::TakenOver(entry) => {
                self.report.taken_over_files += 1;
                self.report.taken_over_bytes += stat.size;
                entry
            }
            Outcome::Unstable(entry) => {
                self.note(Problem {
                    what: Trouble::Unstable,
                    path,
                    why: CHANGED.into(),
                });
                entry
            }
            Outcome::Trouble(what, why) => {
                self.note(Problem { what, path, why });
                return Ok(());
            }
        };
        self.write(&entry)?;
        // By the inode that was read: another file may have taken the name since the look.
        let inode = (stat.device, entry.ino);
        self.links.remember(inode, entry, stat.links.saturating_sub(1));
        Ok(())
    }

    fn write(&mut self, entry: &ListedEntry) -> Result<(), VolumeError> {
        if !self.parents.admit(entry) {
            self.note(Problem {
                what: Trouble::Vanished,
                path: entry.path.clone(),
                why: "its directory was not there when we looked at it, and came back later".into(),
            });
            return Ok(());
        }
        match &entry.kind {
            Kind::Directory => self.report.directories += 1,
            Kind::Symlink { .. } => self.report.symlinks += 1,
            Kind::File { size, hardlink, .. } => {
                self.report.files += 1;
                if let Some(holds) = self.shared.watch.as_ref().and_then(|watch| watch(&entry.path)) {
                    self.report.known.note(entry.path.clone(), holds);
                }
                match hardlink {
                    Some(_) => self.report.hardlinks += 1,
                    None => self.report.bytes += size,
                }
            }
        }
        entry
            .encode(&mut self.buffer)
            .map_err(|e| VolumeError::Internal(format!("cannot write the listing: {e}")))?;
        if self.buffer.len() >= BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), VolumeError> {
        let bytes = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER + 4096));
        Ok(self.shared.runtime.block_on(self.listing.write(Bytes::from(bytes)))?)
    }

    fn end(mut self) -> Result<(ArchiveReport, Content), VolumeError> {
        if !self.buffer.is_empty() {
            self.flush()?;
        }
        let content = self.shared.runtime.block_on(self.listing.cut())?;
        self.shared.runtime.block_on(self.listing.close())?;
        self.reader.close()?;
        self.report.forgotten_links = self.links.forgotten;
        Ok((self.report, content))
    }
}
