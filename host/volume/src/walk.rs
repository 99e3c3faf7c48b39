//! The walk: directory after directory, each one's names at once and sorted, depth first.
//!
//! The order is that of listings (see [`crate::TreePath`]): all entries of a directory, then its subdirectories one after
//! the other. Held in memory are the names of one directory and, for each level above, the subdirectories still to
//! come; descriptors of deep levels are closed and opened anew from the root when they are needed again, so neither
//! depth nor width runs into the limit of open files.

use crate::path::join_bytes;
use crate::pattern::{Patterns, Within};
use crate::sys::{self, Root};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::sync::Arc;

/// Levels whose descriptors are kept open.
const OPEN_LEVELS: usize = 32;

pub(crate) struct Walker {
    root: Arc<Root>,
    rules: Rules,
    recursive: bool,
    /// Where the walk begins, until it has begun.
    start: Option<Vec<u8>>,
    levels: Vec<Level>,
}

/// What a walk takes. An empty `take` takes all.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    pub take: Patterns,
    pub leave_out: Patterns,
}

struct Level {
    path: Vec<u8>,
    fd: Option<OwnedFd>,
    subdirectories: std::vec::IntoIter<Subdirectory>,
}

struct Subdirectory {
    name: Vec<u8>,
    standing: Standing,
}

#[derive(Clone)]
struct Standing {
    take: Within,
    leave_out: Within,
}

/// What the walk meets next.
pub(crate) enum Met {
    /// A directory's names that are taken, sorted, with what the directory says they are.
    Directory {
        path: Vec<u8>,
        names: Vec<(Vec<u8>, FileType)>,
    },
    /// A directory that could not be opened or read.
    Failed { path: Vec<u8>, error: Errno },
}

impl Walker {
    pub fn new(root: Arc<Root>, start: Vec<u8>, recursive: bool, rules: Rules) -> Self {
        Walker {
            root,
            rules,
            recursive,
            start: Some(start),
            levels: Vec::new(),
        }
    }

    pub fn next(&mut self) -> Option<Met> {
        if let Some(start) = self.start.take() {
            let standing = self.rules.at(&start);
            return Some(match self.root.directory(&start) {
                Ok(fd) => self.enter(start, fd, standing),
                Err(error) => Met::Failed { path: start, error },
            });
        }
        loop {
            let level = self.levels.last_mut()?;
            let Some(sub) = level.subdirectories.next() else {
                self.levels.pop();
                continue;
            };
            let path = join_bytes(&level.path, &sub.name);
            let opened = match &level.fd {
                Some(fd) => self.root.child(fd.as_fd(), &sub.name),
                None => self.root.directory(&path),
            };
            return Some(match opened {
                Ok(fd) => self.enter(path, fd, sub.standing),
                Err(error) => Met::Failed { path, error },
            });
        }
    }

    fn enter(&mut self, path: Vec<u8>, fd: OwnedFd, standing: Standing) -> Met {
        let mut names = match sys::names(fd.as_fd()) {
            Ok(names) => names,
            Err(error) => return Met::Failed { path, error },
        };
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut subdirectories = Vec::new();
        let at_root = path.is_empty();
        names.retain_mut(|(name, kind)| {
            if *kind == FileType::Unknown
                && let Ok(stat) = sys::stat_at(fd.as_fd(), name)
            {
                *kind = stat.kind;
            }
            let below = self.rules.enter(&standing, name);
            let directory = *kind == FileType::Directory;
            if !self.rules.takes(&below, directory) || (at_root && is_own(name)) {
                return false;
            }
            if directory && self.recursive {
                subdirectories.push(Subdirectory {
                    name: name.clone(),
                    standing: below,
                });
            }
            true
        });
        if !subdirectories.is_empty() {
            self.levels.push(Level {
                path: path.clone(),
                fd: Some(fd),
                subdirectories: subdirectories.into_iter(),
            });
            // The levels above the deepest ones wait long; they can be opened again from the root.
            if let Some(above) = self.levels.len().checked_sub(OPEN_LEVELS + 1)
                && let Some(level) = self.levels.get_mut(above)
            {
                level.fd = None;
            }
        }
        Met::Directory { path, names }
    }
}

/// What a restore of ours leaves at the root of a mount point; it is no part of the volume.
pub(crate) fn is_own(name: &[u8]) -> bool {
    name.starts_with(crate::restore::STAGING_PREFIX.as_bytes())
        || name.starts_with(crate::restore::KEPT_PREFIX.as_bytes())
}

impl Rules {
    fn at(&self, path: &[u8]) -> Standing {
        let mut standing = Standing {
            take: self.take.root(),
            leave_out: self.leave_out.root(),
        };
        for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
            standing = self.enter(&standing, name);
        }
        standing
    }

    fn enter(&self, directory: &Standing, name: &[u8]) -> Standing {
        Standing {
            take: self.take.enter(&directory.take, name),
            leave_out: self.leave_out.enter(&directory.leave_out, name),
        }
    }

    fn takes(&self, standing: &Standing, directory: bool) -> bool {
        if standing.leave_out.covered() {
            return false;
        }
        self.take.is_empty() || standing.take.covered() || (directory && standing.take.may_match_below())
    }
}
