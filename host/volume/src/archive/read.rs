//! One worker: looks at entries, takes unchanged files over, reads the others.
//!
//! A file counts as unchanged when size, mtime, ctime and inode are those of the earlier listing. Two traps are seen to:
//! a file that changed so shortly before we read it that a further change could fall into the same tick of the file
//! system's clock is marked *fresh* and read again by the next run; and times are taken before and after reading, from
//! the open file, so that a change under our hands is noticed.

use super::scan::{Batch, Candidate, Problem, Trouble};
use super::{OTHER_FILE_SYSTEM, Shared, special};
use crate::sys::{self, Stat};
use crate::{Kind, ListedEntry, Stamp, TreePath, VolumeError};
use bytes::Bytes;
use essrun_artifact::{Content, Lane, LaneSpec};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Bytes read and handed over at once.
const BUFFER: u64 = 1 << 20;

/// A batch whose entries are ready for the listing, or nearly so.
pub(super) struct Done {
    pub number: u64,
    pub made: Vec<Made>,
    pub problems: Vec<Problem>,
    pub taken_over: (u64, u64),
    pub read_bytes: u64,
}

pub(super) enum Made {
    Entry(ListedEntry),
    /// A file with several names: the collector knows which comes first.
    Shared {
        directory: Vec<u8>,
        candidate: Candidate,
        stat: Stat,
    },
}

/// What became of an entry.
pub(super) enum Outcome {
    Entry(ListedEntry),
    TakenOver(ListedEntry),
    Trouble(Trouble, String),
    /// Stored all the same, but its content is a mixture.
    Unstable(ListedEntry),
}

pub(super) fn work(
    shared: &Shared,
    batches: &Mutex<mpsc::Receiver<Batch>>,
    done: &mpsc::Sender<Done>,
) -> Result<(), VolumeError> {
    let mut reader = Reader::new(shared);
    loop {
        // Whoever holds the lock waits for the next batch; the others wait for the lock.
        let batch = batches.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(batch) = batch else { break };
        if shared.stopped() {
            return Ok(());
        }
        let Some(result) = reader.batch(batch)? else {
            return Ok(());
        };
        if done.blocking_send(result).is_err() {
            return Ok(());
        }
    }
    reader.close()
}

/// Reads files into a lane, which is opened when first needed.
pub(super) struct Reader<'a> {
    shared: &'a Shared,
    lane: Option<Box<dyn Lane>>,
    pub read_bytes: u64,
}

impl<'a> Reader<'a> {
    pub fn new(shared: &'a Shared) -> Self {
        Reader {
            shared,
            lane: None,
            read_bytes: 0,
        }
    }

    pub fn close(self) -> Result<(), VolumeError> {
        // After a failure elsewhere the backup is lost anyway, and storing the rest would only delay saying so.
        match self.lane {
            Some(lane) if !self.shared.stopped() => Ok(self.shared.runtime.block_on(lane.close())?),
            _ => Ok(()),
        }
    }

    fn batch(&mut self, batch: Batch) -> Result<Option<Done>, VolumeError> {
        let mut done = Done {
            number: batch.number,
            made: Vec::new(),
            problems: batch.problems,
            taken_over: (0, 0),
            read_bytes: 0,
        };
        self.read_bytes = 0;
        for group in batch.groups {
            let directory = match self.shared.root.directory(&group.directory) {
                Ok(fd) => fd,
                Err(e) => {
                    for candidate in group.names {
                        done.problems.push(lost(&group.directory, &candidate.name, e));
                    }
                    continue;
                }
            };
            for candidate in group.names {
                if self.shared.stopped() {
                    return Ok(None);
                }
                let path = TreePath::of_entry(&group.directory, &candidate.name);
                let stat = match sys::stat_at(directory.as_fd(), &candidate.name) {
                    Ok(stat) => stat,
                    Err(e) => {
                        done.problems.push(lost(&group.directory, &candidate.name, e));
                        continue;
                    }
                };
                if stat.kind == FileType::Directory
                    && !matches!(candidate.hint, FileType::Directory | FileType::Unknown)
                {
                    // The walk did not enter it, so an entry would claim that it is empty.
                    done.problems.push(Problem {
                        what: Trouble::Vanished,
                        path,
                        why: "became a directory during the walk".into(),
                    });
                    continue;
                }
                if stat.kind == FileType::RegularFile && stat.links > 1 {
                    done.made.push(Made::Shared {
                        directory: group.directory.clone(),
                        candidate,
                        stat,
                    });
                    continue;
                }
                let outcome = self.entry(directory.as_fd(), path.clone(), candidate, stat)?;
                match outcome {
                    Outcome::Entry(entry) => done.made.push(Made::Entry(entry)),
                    Outcome::TakenOver(entry) => {
                        done.taken_over.0 += 1;
                        done.taken_over.1 += stat.size;
                        done.made.push(Made::Entry(entry));
                    }
                    Outcome::Unstable(entry) => {
                        done.made.push(Made::Entry(entry));
                        done.problems.push(Problem {
                            what: Trouble::Unstable,
                            path,
                            why: CHANGED.into(),
                        });
                    }
                    Outcome::Trouble(what, why) => done.problems.push(Problem { what, path, why }),
                }
            }
        }
        done.read_bytes = self.read_bytes;
        Ok(Some(done))
    }

    /// Makes the listing's entry of one name.
    pub fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        path: TreePath,
        candidate: Candidate,
        stat: Stat,
    ) -> Result<Outcome, VolumeError> {
        let before = now();
        let earlier = candidate.earlier.filter(|e| same_inode(e, &stat));
        let mut entry = ListedEntry {
            path,
            kind: Kind::Directory,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            ctime: stat.ctime,
            ino: stat.ino,
            fresh: false,
            xattrs: Vec::new(),
        };
        match stat.kind {
            FileType::RegularFile if stat.mount_root => {
                return Ok(Outcome::Trouble(Trouble::Skipped, OTHER_FILE_SYSTEM.into()));
            }
            FileType::RegularFile => return self.file(directory, entry, &candidate.name, earlier),
            FileType::Directory => {
                entry.fresh = is_fresh(stat.ctime, before);
                // An inode with the same ctime has the same attributes.
                if let Some(earlier) = earlier.filter(|e| !e.fresh) {
                    entry.xattrs = earlier.xattrs;
                    return Ok(Outcome::Entry(entry));
                }
                let opened = self.shared.root.child(directory, &candidate.name);
                match opened.and_then(|fd| sys::xattrs(fd.as_fd())) {
                    Ok(xattrs) => entry.xattrs = xattrs,
                    // Named by the walk, which cannot enter it either. Its mode and owner are still worth keeping.
                    Err(Errno::XDEV | Errno::ACCESS | Errno::PERM) => {}
                    Err(e) => return Ok(trouble(e)),
                }
            }
            FileType::Symlink => match sys::link_target(directory, &candidate.name) {
                Ok(target) => entry.kind = Kind::Symlink { target },
                // It is no link any more.
                Err(Errno::INVAL) => return Ok(trouble(Errno::NOENT)),
                Err(e) => return Ok(trouble(e)),
            },
            other => return Ok(Outcome::Trouble(Trouble::Skipped, special(other).into())),
        }
        self.shared.progress.advanced(&self.shared.name, 0, 1);
        Ok(Outcome::Entry(entry))
    }

    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        mut entry: ListedEntry,
        name: &[u8],
        earlier: Option<Box<ListedEntry>>,
    ) -> Result<Outcome, VolumeError> {
        if let Some(earlier) = earlier.filter(|e| !e.fresh)
            && let Kind::File {
                size,
                content,
                extents,
                unstable: false,
                ..
            } = &earlier.kind
            && (content.bytes == 0 || self.adopt(content)?)
        {
            self.shared.progress.advanced(&self.shared.name, *size, 1);
            entry.kind = Kind::File {
                size: *size,
                content: content.clone(),
                extents: extents.clone(),
                hardlink: None,
                unstable: false,
            };
            entry.xattrs = earlier.xattrs;
            return Ok(Outcome::TakenOver(entry));
        }
        let mut last = false;
        loop {
            let before = now();
            let fd = match self.shared.root.file(directory, name) {
                Ok(fd) => fd,
                Err(e) => return Ok(trouble(e)),
            };
            let (stat, xattrs) = match sys::stat_fd(&fd).and_then(|stat| Ok((stat, sys::xattrs(fd.as_fd())?))) {
                Ok(found) => found,
                Err(e) => return Ok(trouble(e)),
            };
            if stat.kind != FileType::RegularFile {
                return Ok(Outcome::Trouble(
                    Trouble::Vanished,
                    "another entry took its place".into(),
                ));
            }
            let (content, extents, size) = match self.contents(fd.as_fd(), &stat)? {
                Ok(read) => read,
                Err(e) => return Ok(trouble(e)),
            };
            let after = match sys::stat_fd(&fd) {
                Ok(after) => after,
                Err(e) => return Ok(trouble(e)),
            };
            // Being renamed or linked changes ctime too; reading once more is the price of knowing.
            let stable = stat.size == after.size && stat.mtime == after.mtime && stat.ctime == after.ctime;
            if !stable && !last {
                last = true;
                continue;
            }
            entry.mode = stat.mode;
            entry.uid = stat.uid;
            entry.gid = stat.gid;
            entry.mtime = stat.mtime;
            entry.ctime = stat.ctime;
            entry.ino = stat.ino;
            entry.fresh = is_fresh(stat.ctime, before);
            entry.xattrs = xattrs;
            entry.kind = Kind::File {
                size,
                content,
                extents,
                hardlink: None,
                unstable: !stable,
            };
            self.shared.progress.advanced(&self.shared.name, 0, 1);
            return Ok(if stable {
                Outcome::Entry(entry)
            } else {
                Outcome::Unstable(entry)
            });
        }
    }

    fn adopt(&self, content: &Content) -> Result<bool, VolumeError> {
        Ok(self.shared.runtime.block_on(self.shared.writer.adopt(content))?)
    }

    /// Reads a file's data into the lane. The inner error is the file's, the outer one the keeper's.
    #[allow(clippy::type_complexity)]
    fn contents(
        &mut self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
    ) -> Result<Result<(Content, Option<Vec<(u64, u64)>>, u64), Errno>, VolumeError> {
        let sparse = (stat.allocated < stat.size)
            .then(|| sys::extents(fd, stat.size))
            .flatten();
        let ranges = sparse.clone().unwrap_or_else(|| vec![(0, stat.size)]);
        let mut extents = Vec::new();
        let mut total = 0;
        'ranges: for (offset, length) in ranges {
            let mut at = 0;
            while at < length {
                if self.shared.stopped() {
                    return Err(VolumeError::Internal("stopped".into()));
                }
                let want = (length - at).min(BUFFER);
                let bytes = match sys::read_at(fd, offset + at, usize::try_from(want).unwrap_or(usize::MAX)) {
                    Ok(bytes) => bytes,
                    Err(e) => {
                        // What was written stays in the lane: end the piece, or it would open the next file's.
                        self.cut()?;
                        return Ok(Err(e));
                    }
                };
                let got = bytes.len() as u64;
                if got > 0 {
                    self.write(Bytes::from(bytes))?;
                    self.shared.progress.advanced(&self.shared.name, got, 0);
                    self.read_bytes += got;
                    at += got;
                }
                if got < want {
                    // Shorter than a moment ago: what follows is gone too.
                    total += at;
                    extents.extend((at > 0).then_some((offset, at)));
                    break 'ranges;
                }
            }
            if at == length && at > 0 {
                total += at;
                extents.push((offset, at));
            }
        }
        let content = if total > 0 { self.cut()? } else { Content::empty() };
        if content.bytes != total {
            return Err(VolumeError::Internal(format!(
                "the keeper took {} bytes of a piece of {total}",
                content.bytes
            )));
        }
        Ok(Ok(match sparse {
            Some(_) => (content, Some(extents), stat.size),
            None => (content, None, total),
        }))
    }

    fn write(&mut self, bytes: Bytes) -> Result<(), VolumeError> {
        let lane = match &mut self.lane {
            Some(lane) => lane,
            none => none.insert(self.shared.writer.lane(LaneSpec::FILES)?),
        };
        Ok(self.shared.runtime.block_on(lane.write(bytes))?)
    }

    fn cut(&mut self) -> Result<Content, VolumeError> {
        match &mut self.lane {
            Some(lane) => Ok(self.shared.runtime.block_on(lane.cut())?),
            None => Ok(Content::empty()),
        }
    }
}

pub(super) const CHANGED: &str = "changed while it was read, twice";

/// Whether the earlier listing speaks of this very inode in this very state.
fn same_inode(earlier: &ListedEntry, stat: &Stat) -> bool {
    let same_kind = match &earlier.kind {
        Kind::File { size, .. } => stat.kind == FileType::RegularFile && *size == stat.size,
        Kind::Directory => stat.kind == FileType::Directory,
        Kind::Symlink { .. } => false,
    };
    same_kind && earlier.ino == stat.ino && earlier.mtime == stat.mtime && earlier.ctime == stat.ctime
}

fn now() -> Stamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Stamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        // A clock before 1970: everything looks fresh, nothing is taken over.
        Err(_) => Stamp {
            seconds: i64::MIN,
            nanoseconds: 0,
        },
    }
}

/// Whether a change after `read_at` could leave the same ctime. File systems that keep nanoseconds tick every few
/// milliseconds, others every one or two seconds; a time without nanoseconds tells the others. A ctime in the future
/// (another machine's clock) is fresh as well.
fn is_fresh(ctime: Stamp, read_at: Stamp) -> bool {
    let margin = if ctime.nanoseconds == 0 { 3 } else { 1 };
    ctime.seconds.saturating_add(margin) >= read_at.seconds
}

fn lost(directory: &[u8], name: &[u8], error: Errno) -> Problem {
    let path = TreePath::of_entry(directory, name);
    match trouble(error) {
        Outcome::Trouble(what, why) => Problem { what, path, why },
        _ => Problem {
            what: Trouble::Unreadable,
            path,
            why: error.to_string(),
        },
    }
}

fn trouble(error: Errno) -> Outcome {
    match error {
        Errno::XDEV => Outcome::Trouble(Trouble::Skipped, OTHER_FILE_SYSTEM.into()),
        e if sys::is_gone(e) => Outcome::Trouble(Trouble::Vanished, "went away, or became something else".into()),
        e => Outcome::Trouble(Trouble::Unreadable, e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness() {
        let at = |seconds, nanoseconds| Stamp { seconds, nanoseconds };
        assert!(is_fresh(at(100, 5), at(100, 9)));
        assert!(is_fresh(at(100, 5), at(101, 9)), "the second may just have turned");
        assert!(!is_fresh(at(100, 5), at(102, 0)));
        assert!(is_fresh(at(100, 0), at(102, 0)), "a coarse clock");
        assert!(!is_fresh(at(100, 0), at(104, 0)));
        assert!(is_fresh(at(200, 5), at(100, 0)), "from the future");
        assert!(is_fresh(at(i64::MAX, 5), at(100, 0)));
        assert!(
            is_fresh(at(0, 5), at(i64::MIN, 0)),
            "a clock before 1970 trusts nothing"
        );
    }
}
