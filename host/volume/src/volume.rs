//! Looks into a live tree, for components that inspect before they plan or verify after a restore.
//!
//! Paths come from guests: each is checked, then opened from the root's descriptor. "Not there", "behind a symbolic
//! link" and "on another device" are one answer.

use crate::sys::{self, Root, Stat};
use crate::walk::{Met, Rules, Walker};
use crate::{Stamp, TreePath, VolumeError};
use rustix::fd::AsFd;
use rustix::fs::FileType;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// An open root. All looks start from its descriptor.
#[derive(Debug)]
pub struct Volume {
    root: Arc<Root>,
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    /// A socket, FIFO or device.
    Special,
}

/// One entry below a volume's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: TreePath,
    pub kind: EntryKind,
    /// Length in bytes of a file; 0 otherwise.
    pub size_bytes: u64,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: Stamp,
}

/// A file's length and SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    pub size_bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A walk in progress, read in pages.
pub struct Walk {
    root: Arc<Root>,
    walker: Walker,
    /// The directory being handed out and its names still to come.
    directory: Vec<u8>,
    names: std::vec::IntoIter<(Vec<u8>, FileType)>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Bytes read at once.
const BUFFER: usize = 1 << 20;

impl Walk {
    /// The next entries, at most `max`; empty at the end. Entries that vanish meanwhile are passed over, other file
    /// systems mounted below are named but not entered; a directory that cannot be read fails the page.
    pub fn next_page(&mut self, max: usize) -> Result<Vec<Entry>, VolumeError> {
        let mut page = Vec::new();
        let mut opened = None;
        while page.len() < max {
            let Some((name, _)) = self.names.next() else {
                opened = None;
                match self.walker.next() {
                    None => break,
                    Some(Met::Directory { path, names }) => {
                        self.directory = path;
                        self.names = names.into_iter();
                    }
                    Some(Met::Failed { error, .. }) if sys::is_gone(error) || error == Errno::XDEV => {}
                    Some(Met::Failed { path, error }) => {
                        return Err(VolumeError::io("read the directory", path, error));
                    }
                }
                continue;
            };
            let fd = match opened.take() {
                Some(fd) => fd,
                None => match self.root.directory(&self.directory) {
                    Ok(fd) => fd,
                    Err(e) if sys::is_denied(e) => {
                        self.names = Vec::new().into_iter();
                        continue;
                    }
                    Err(e) => return Err(VolumeError::io("open the directory", &self.directory, e)),
                },
            };
            let path = TreePath::of_entry(&self.directory, &name);
            match sys::stat_at(fd.as_fd(), &name) {
                Ok(stat) => page.push(entry(path, &stat)),
                Err(e) if sys::is_gone(e) => {}
                Err(e) => return Err(VolumeError::io("look at", path.as_bytes(), e)),
            }
            opened = Some(fd);
        }
        Ok(page)
    }
}

fn entry(path: TreePath, stat: &Stat) -> Entry {
    let kind = match stat.kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        _ => EntryKind::Special,
    };
    Entry {
        path,
        kind,
        size_bytes: if kind == EntryKind::File { stat.size } else { 0 },
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        modified: stat.mtime,
    }
}

/// "Not there" is an answer; other failures are failures.
fn there<T>(result: Result<T, Errno>, action: &'static str, path: &TreePath) -> Result<Option<T>, VolumeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if sys::is_denied(e) => Ok(None),
        Err(e) => Err(VolumeError::io(action, path.as_bytes(), e)),
    }
}

impl Volume {
    /// Opens a root. It must be a directory; the path itself is the administrator's and may go through links.
    pub fn open(root: &Path) -> Result<Volume, VolumeError> {
        Ok(Volume {
            root: Arc::new(Root::open(root)?),
        })
    }

    pub(crate) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// Lists `directory` (empty: the root), with `recursive` the whole tree below it. The walk keeps the root open.
    pub fn walk(&self, directory: &str, recursive: bool) -> Result<Walk, VolumeError> {
        let directory = TreePath::new(directory)?;
        if there(
            self.root.directory(directory.as_bytes()),
            "open the directory",
            &directory,
        )?
        .is_none()
        {
            return Err(VolumeError::Denied {
                path: directory.to_string(),
            });
        }
        let start = directory.as_bytes().to_vec();
        Ok(Walk {
            root: self.root.clone(),
            walker: Walker::new(self.root.clone(), start, recursive, Rules::default()),
            directory: Vec::new(),
            names: Vec::new().into_iter(),
        })
    }

    /// Looks at single paths; `None` for each that is not there (or lies behind a link or on another device).
    pub fn look(&self, paths: &[String]) -> Result<Vec<Option<Entry>>, VolumeError> {
        let paths = checked(paths)?;
        paths.into_iter().map(|path| self.look_at(path)).collect()
    }

    fn look_at(&self, path: TreePath) -> Result<Option<Entry>, VolumeError> {
        let Some((parent, name)) = path.split() else {
            let stat = sys::stat_fd(self.root.fd()).map_err(|e| VolumeError::io("look at", b"", e))?;
            return Ok(Some(entry(path, &stat)));
        };
        let Some(directory) = there(self.root.directory(parent), "open the directory of", &path)? else {
            return Ok(None);
        };
        let stat = there(sys::stat_at(directory.as_fd(), name), "look at", &path)?;
        Ok(stat.map(|stat| entry(path.clone(), &stat)))
    }

    /// Opens a regular file for reading.
    fn file(&self, path: &TreePath) -> Result<Option<(rustix::fd::OwnedFd, Stat)>, VolumeError> {
        let Some((parent, name)) = path.split() else {
            return Ok(None);
        };
        let Some(directory) = there(self.root.directory(parent), "open the directory of", path)? else {
            return Ok(None);
        };
        // Look before opening: opening a device can do things.
        match there(sys::stat_at(directory.as_fd(), name), "look at", path)? {
            Some(stat) if stat.kind == FileType::RegularFile => {}
            _ => return Ok(None),
        }
        let Some(fd) = there(self.root.file(directory.as_fd(), name), "open", path)? else {
            return Ok(None);
        };
        let stat = sys::stat_fd(&fd).map_err(|e| VolumeError::io("look at", path.as_bytes(), e))?;
        Ok((stat.kind == FileType::RegularFile).then_some((fd, stat)))
    }

    /// Reads a whole small regular file; one longer than `max_bytes` is [`VolumeError::Limit`].
    pub fn read(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>, VolumeError> {
        let path = TreePath::new(path)?;
        let Some((fd, stat)) = self.file(&path)? else {
            return Err(VolumeError::Denied { path: path.to_string() });
        };
        let too_long = || VolumeError::Limit {
            what: path.to_string(),
            limit: max_bytes,
        };
        if stat.size > max_bytes {
            return Err(too_long());
        }
        // Files in /proc and growing files are longer than they say.
        let mut bytes = Vec::new();
        loop {
            let more = sys::read_at(fd.as_fd(), bytes.len() as u64, 64 * 1024)
                .map_err(|e| VolumeError::io("read", path.as_bytes(), e))?;
            if more.is_empty() {
                return Ok(bytes);
            }
            if bytes.len() as u64 + more.len() as u64 > max_bytes {
                return Err(too_long());
            }
            bytes.extend_from_slice(&more);
        }
    }

    /// Digests files by streaming; `None` for each that is not there or no regular file. `go_on` is asked between reads,
    /// so that a caller's time limit ends it.
    pub fn digest(&self, paths: &[String], go_on: &dyn Fn() -> bool) -> Result<Vec<Option<FileDigest>>, VolumeError> {
        let paths = checked(paths)?;
        paths.iter().map(|path| self.digest_one(path, go_on)).collect()
    }

    fn digest_one(&self, path: &TreePath, go_on: &dyn Fn() -> bool) -> Result<Option<FileDigest>, VolumeError> {
        let Some((fd, stat)) = self.file(path)? else {
            return Ok(None);
        };
        let mut sha = Sha256::new();
        let mut at = 0u64;
        let piece = usize::try_from(stat.size).unwrap_or(BUFFER).clamp(4096, BUFFER);
        loop {
            if !go_on() {
                return Err(VolumeError::Invalid {
                    what: path.to_string(),
                    why: "digesting it was given up by the caller".into(),
                });
            }
            let bytes = sys::read_at(fd.as_fd(), at, piece).map_err(|e| VolumeError::io("read", path.as_bytes(), e))?;
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
            sha.update(&bytes);
        }
        Ok(Some(FileDigest {
            size_bytes: at,
            sha256: hex::encode(sha.finalize()),
        }))
    }
}

fn checked(paths: &[String]) -> Result<Vec<TreePath>, VolumeError> {
    paths.iter().map(|path| TreePath::new(path.as_str())).collect()
}
