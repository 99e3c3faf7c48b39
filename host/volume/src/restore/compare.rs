//! Compares a tree with an artifact, entry by entry, in one pass over both.

use super::Difference;
use crate::listing::Entries;
use crate::sys::{self, Root, Stat};
use crate::walk::{Met, Rules, Walker};
use crate::{Kind, ListedEntry, Patterns, TreePath, VolumeError};
use essrun_artifact::{ArtifactRecord, BackupReader};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::FileType;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use tokio::runtime::Handle;

const MOST: usize = 1000;

/// What is compared beside which entries there are, their kinds and lengths.
#[derive(Clone, Copy, Debug)]
pub(super) struct What {
    /// Owners, modes, times and attributes.
    pub metadata: bool,
    pub contents: bool,
}

/// The tree's entries, one by one, in the listing's order.
struct Tree {
    root: Arc<Root>,
    walker: Walker,
    directory: Vec<u8>,
    fd: Option<OwnedFd>,
    names: std::vec::IntoIter<(Vec<u8>, FileType)>,
}

impl Tree {
    fn next(&mut self) -> Result<Option<TreePath>, VolumeError> {
        loop {
            if let Some((name, _)) = self.names.next() {
                return Ok(Some(TreePath::of_entry(&self.directory, &name)));
            }
            match self.walker.next() {
                None => return Ok(None),
                Some(Met::Directory { path, names }) => {
                    let fd = self.root.directory(&path);
                    self.fd = Some(fd.map_err(|e| VolumeError::io("open the directory", &path, e))?);
                    self.directory = path;
                    self.names = names.into_iter();
                }
                Some(Met::Failed { path, error }) => {
                    return Err(VolumeError::io("read the directory", path, error));
                }
            }
        }
    }
}

pub(super) fn compare(
    runtime: &Handle,
    reader: &dyn BackupReader,
    record: &ArtifactRecord,
    root: Root,
    what: What,
) -> Result<Vec<Difference>, VolumeError> {
    let root = Arc::new(root);
    let mut entries = runtime.block_on(Entries::open(reader, record))?;
    // Compared is what the artifact was asked to hold.
    let meta = entries.meta().clone();
    let rules = Rules {
        take: Patterns::new(meta.take.iter().map(|r| r.pattern.as_str()))?,
        leave_out: Patterns::new(meta.leave_out.iter().map(|r| r.pattern.as_str()))?,
    };
    let mut tree = Tree {
        root: root.clone(),
        walker: Walker::new(root.clone(), Vec::new(), true, rules),
        directory: Vec::new(),
        fd: None,
        names: Vec::new().into_iter(),
    };
    let mut found = Vec::new();
    let mut differ = |path: &TreePath, what: String| {
        if found.len() < MOST {
            found.push(Difference {
                path: path.clone(),
                what,
            });
        }
    };
    let mut listed = runtime.block_on(entries.next())?;
    if let Some(entry) = &listed {
        let stat = sys::stat_fd(root.fd()).map_err(|e| VolumeError::io("look at", b"", e))?;
        if what.metadata {
            for what in metadata(entry, &stat) {
                differ(&entry.path, what);
            }
        }
        listed = runtime.block_on(entries.next())?;
    }
    let mut there = tree.next()?;
    loop {
        match (&listed, &there) {
            (None, None) => return Ok(found),
            (Some(entry), Some(path)) if entry.path == *path => {
                let name = path.split().map(|(_, name)| name).unwrap_or_default();
                if let Some(directory) = &tree.fd {
                    for what in entry_differences(runtime, reader, &root, directory, name, entry, what)? {
                        differ(path, what);
                    }
                }
                listed = runtime.block_on(entries.next())?;
                there = tree.next()?;
            }
            (Some(entry), there_is) if there_is.as_ref().is_none_or(|path| entry.path < *path) => {
                differ(&entry.path, "missing in the tree".into());
                listed = runtime.block_on(entries.next())?;
            }
            (_, Some(path)) => {
                differ(path, "not in the backup".into());
                there = tree.next()?;
            }
            (Some(_), None) => return Ok(found),
        }
    }
}

fn metadata(entry: &ListedEntry, stat: &Stat) -> Vec<String> {
    let mut found = Vec::new();
    // Linux gives every link mode 0777.
    if stat.mode != entry.mode && !matches!(entry.kind, Kind::Symlink { .. }) {
        found.push(format!("mode {:o}, in the backup {:o}", stat.mode, entry.mode));
    }
    if (stat.uid, stat.gid) != (entry.uid, entry.gid) {
        found.push(format!(
            "owner {}:{}, in the backup {}:{}",
            stat.uid, stat.gid, entry.uid, entry.gid
        ));
    }
    if stat.mtime != entry.mtime {
        found.push(format!(
            "modified {}.{:09}, in the backup {}.{:09}",
            stat.mtime.seconds, stat.mtime.nanoseconds, entry.mtime.seconds, entry.mtime.nanoseconds
        ));
    }
    found
}

fn entry_differences(
    runtime: &Handle,
    reader: &dyn BackupReader,
    root: &Root,
    directory: &OwnedFd,
    name: &[u8],
    entry: &ListedEntry,
    what: What,
) -> Result<Vec<String>, VolumeError> {
    let io = |action| move |e: rustix::io::Errno| VolumeError::io(action, entry.path.as_bytes(), e);
    let stat = sys::stat_at(directory.as_fd(), name).map_err(io("look at"))?;
    let mut found = match what.metadata {
        true => metadata(entry, &stat),
        false => Vec::new(),
    };
    match (&entry.kind, stat.kind) {
        (Kind::Directory, FileType::Directory) => {
            let fd = root.child(directory.as_fd(), name).map_err(io("open"))?;
            if what.metadata {
                found.extend(attributes(
                    entry,
                    sys::xattrs(fd.as_fd()).map_err(io("read the attributes of"))?,
                ));
            }
        }
        (Kind::Symlink { target }, FileType::Symlink) => {
            if sys::link_target(directory.as_fd(), name).map_err(io("read the link"))? != *target {
                found.push("leads elsewhere".into());
            }
        }
        (
            Kind::File {
                size,
                content,
                extents,
                hardlink,
                ..
            },
            FileType::RegularFile,
        ) => {
            if stat.size != *size {
                found.push(format!("length {}, in the backup {size}", stat.size));
                return Ok(found);
            }
            if let Some(first) = hardlink
                && let Some((first_parent, first_name)) = first.split()
            {
                let other = root
                    .directory(first_parent)
                    .and_then(|fd| sys::stat_at(fd.as_fd(), first_name));
                if other.map(|other| other.ino) != Ok(stat.ino) {
                    found.push(format!("is not the same file as {first}"));
                }
            }
            let fd = root.file(directory.as_fd(), name).map_err(io("open"))?;
            if what.metadata {
                found.extend(attributes(
                    entry,
                    sys::xattrs(fd.as_fd()).map_err(io("read the attributes of"))?,
                ));
            }
            if what.contents && !same_bytes(runtime, reader, &fd, *size, content, extents.as_deref(), entry)? {
                found.push("contents differ".into());
            }
        }
        (listed, _) => {
            let listed = match listed {
                Kind::Directory => "a directory",
                Kind::Symlink { .. } => "a link",
                Kind::File { .. } => "a file",
            };
            found.push(format!("is no longer {listed}"));
        }
    }
    Ok(found)
}

fn attributes(entry: &ListedEntry, there: Vec<(Vec<u8>, Vec<u8>)>) -> Option<String> {
    (there != entry.xattrs).then(|| "extended attributes differ".into())
}

fn same_bytes(
    runtime: &Handle,
    reader: &dyn BackupReader,
    fd: &OwnedFd,
    size: u64,
    content: &essrun_artifact::Content,
    extents: Option<&[(u64, u64)]>,
    entry: &ListedEntry,
) -> Result<bool, VolumeError> {
    let io = |e| VolumeError::io("read", entry.path.as_bytes(), e);
    if extents.is_none() {
        let mut file = fd.try_clone().map(std::fs::File::from).map_err(|e| {
            super::target::failed(
                "read",
                std::path::Path::new(std::ffi::OsStr::from_bytes(entry.path.as_bytes())),
            )(e)
        })?;
        return Ok(runtime.block_on(reader.same(content, &mut file))?);
    }
    let whole = [(0, size)];
    let ranges = extents.unwrap_or(&whole);
    let mut holes_from = 0;
    let mut stream = (content.bytes > 0)
        .then(|| runtime.block_on(reader.open(content)))
        .transpose()?;
    let mut have = bytes::Bytes::new();
    for &(offset, length) in ranges {
        if !zeros(fd, holes_from, offset).map_err(io)? {
            return Ok(false);
        }
        let mut at = offset;
        while at < offset + length {
            if have.is_empty() {
                let next = match &mut stream {
                    Some(stream) => runtime.block_on(stream.next())?,
                    None => None,
                };
                match next {
                    Some(next) => have = next,
                    None => return Ok(false),
                }
                continue;
            }
            let want = usize::try_from(offset + length - at)
                .unwrap_or(usize::MAX)
                .min(have.len());
            let expected = have.split_to(want);
            if sys::read_at(fd.as_fd(), at, want).map_err(io)? != expected {
                return Ok(false);
            }
            at += want as u64;
        }
        holes_from = offset + length;
    }
    zeros(fd, holes_from, size).map_err(io)
}

/// Whether a range holds only zeros; holes are not read.
fn zeros(fd: &OwnedFd, from: u64, to: u64) -> Result<bool, rustix::io::Errno> {
    let mut at = from;
    while at < to {
        match rustix::fs::seek(fd, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = at.max(data),
            Err(rustix::io::Errno::NXIO) => return Ok(true),
            Err(_) => {}
        }
        if at >= to {
            return Ok(true);
        }
        let want = usize::try_from(to - at).unwrap_or(usize::MAX).min(1 << 20);
        let bytes = sys::read_at(fd.as_fd(), at, want)?;
        if bytes.len() < want || bytes.iter().any(|b| *b != 0) {
            return Ok(false);
        }
        at += want as u64;
    }
    Ok(true)
}
