//! Looks into a live tree, for components that inspect before they plan or verify after a restore.

use crate::{Stamp, TreePath, VolumeError};
use rustix::fd::OwnedFd;
use std::path::Path;

/// An open root. All looks start from its descriptor.
#[derive(Debug)]
pub struct Volume {
    _root: OwnedFd,
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
#[derive(Debug)]
pub struct Walk {}

impl Walk {
    /// The next entries, at most `max`; empty at the end. Entries that vanish meanwhile are passed over; a directory that
    /// cannot be read fails the page.
    pub fn next_page(&mut self, max: usize) -> Result<Vec<Entry>, VolumeError> {
        let _ = max;
        Err(VolumeError::Internal("not built yet".into()))
    }
}

impl Volume {
    /// Opens a root. It must be a directory; the path itself is the administrator's and may go through links.
    pub fn open(root: &Path) -> Result<Volume, VolumeError> {
        let _ = root;
        Err(VolumeError::Internal("not built yet".into()))
    }

    /// Lists `directory` (empty: the root), with `recursive` the whole tree below it. The walk keeps the root open.
    pub fn walk(&self, directory: &str, recursive: bool) -> Result<Walk, VolumeError> {
        let _ = (directory, recursive);
        Err(VolumeError::Internal("not built yet".into()))
    }

    /// Looks at single paths; `None` for each that is not there (or lies behind a link or on another device).
    pub fn look(&self, paths: &[String]) -> Result<Vec<Option<Entry>>, VolumeError> {
        let _ = paths;
        Err(VolumeError::Internal("not built yet".into()))
    }

    /// Reads a whole small regular file; one longer than `max_bytes` is [`VolumeError::Limit`].
    pub fn read(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>, VolumeError> {
        let _ = (path, max_bytes);
        Err(VolumeError::Internal("not built yet".into()))
    }

    /// Digests files by streaming; `None` for each that is not there or no regular file. `go_on` is asked between reads,
    /// so that a caller's time limit ends it.
    pub fn digest(&self, paths: &[String], go_on: &dyn Fn() -> bool) -> Result<Vec<Option<FileDigest>>, VolumeError> {
        let _ = (paths, go_on);
        Err(VolumeError::Internal("not built yet".into()))
    }
}
