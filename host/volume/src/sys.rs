//! The system calls, confined.
//!
//! Everything is opened relative to a descriptor, never through a symbolic link, never onto another mount or device.
//! With `openat2` the kernel sees to it in one call; where that is missing (old kernels, some sandboxes) each component
//! is opened by itself and its device compared.

use crate::listing::Attribute;
use crate::{Stamp, VolumeError};
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The root everything below is reached from.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    device: (u32, u32),
}

/// What we ask of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Bytes on disk.
    pub allocated: u64,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub ino: u64,
    pub device: (u32, u32),
    pub links: u32,
    /// Something else is mounted here.
    pub mount_root: bool,
}

/// `openat2` is there (until shown otherwise).
static OPENAT2: AtomicBool = AtomicBool::new(true);

/// Paths handed to the kernel in one piece stay below its limit of 4096 bytes.
const PIECE: usize = 3500;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
// Opening a FIFO that took a file's place must not wait for its other end.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

pub(crate) fn stat_of(x: rustix::fs::Statx) -> Stat {
    let stamp = |t: rustix::fs::StatxTimestamp| Stamp {
        seconds: t.tv_sec,
        nanoseconds: t.tv_nsec,
    };
    Stat {
        kind: FileType::from_raw_mode(u32::from(x.stx_mode)),
        mode: u32::from(x.stx_mode) & 0o7777,
        uid: x.stx_uid,
        gid: x.stx_gid,
        size: x.stx_size,
        allocated: x.stx_blocks.saturating_mul(512),
        mtime: stamp(x.stx_mtime),
        ctime: stamp(x.stx_ctime),
        ino: x.stx_ino,
        device: (x.stx_dev_major, x.stx_dev_minor),
        links: x.stx_nlink,
        mount_root: x.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
            && x.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    }
}

pub(crate) fn stat_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS).map(stat_of)
}

pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Stat, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(stat_of)
}

impl Root {
    pub fn open(path: &Path) -> Result<Root, VolumeError> {
        // The path is the administrator's: links in it are theirs to place.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| VolumeError::io("open the directory", path.as_os_str().as_bytes(), e))?;
        let stat = stat_fd(&fd).map_err(|e| VolumeError::io("look at", path.as_os_str().as_bytes(), e))?;
        Ok(Root {
            fd,
            device: stat.device,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a directory below the root; `path` is relative and checked, empty for the root itself.
    pub fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut here: Option<OwnedFd> = None;
        let mut rest = path;
        while !rest.is_empty() {
            let piece = match rest.get(..PIECE) {
                None => rest,
                // A name is at most 255 bytes, so there is a slash.
                Some(window) => match window.iter().rposition(|b| *b == b'/') {
                    Some(at) => rest.get(..at).unwrap_or(rest),
                    None => return Err(Errno::NAMETOOLONG),
                },
            };
            let from = here.as_ref().map_or(self.fd(), |fd| fd.as_fd());
            let next = self.open_below(from, piece, DIRECTORY)?;
            here = Some(next);
            rest = rest.get(piece.len() + 1..).unwrap_or_default();
        }
        match here {
            Some(fd) => Ok(fd),
            None => rustix::fs::openat(self.fd(), c".", DIRECTORY, Mode::empty()),
        }
    }

    /// Opens the directory `name` in `directory`.
    pub fn child(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_below(directory, name, DIRECTORY)
    }

    /// Opens the file `name` in `directory` for reading. The caller checks what it is.
    pub fn file(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        // Reading for a backup is not access; only owners may say so.
        match self.open_below(directory, name, FILE | OFlags::NOATIME) {
            Err(Errno::PERM) => self.open_below(directory, name, FILE),
            other => other,
        }
    }

    fn open_below(&self, from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        if OPENAT2.load(Ordering::Relaxed) {
            match rustix::fs::openat2(from, path, flags, Mode::empty(), resolve) {
                // A rename meanwhile made the kernel unsure; our way below is sure.
                Err(Errno::AGAIN) => {}
                Err(Errno::NOSYS) => OPENAT2.store(false, Ordering::Relaxed),
                other => return other,
            }
        }
        self.open_stepwise(from, path, flags)
    }

    fn open_stepwise(&self, from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut here: Option<OwnedFd> = None;
        let mut names = path.split(|b| *b == b'/').peekable();
        while let Some(name) = names.next() {
            let flags = if names.peek().is_some() { DIRECTORY } else { flags };
            let at = here.as_ref().map_or(from, |fd| fd.as_fd());
            let fd = rustix::fs::openat(at, name, flags, Mode::empty())?;
            let stat = stat_fd(&fd)?;
            // Overlay file systems give files devices of their own, so only directories tell.
            if stat.kind == FileType::Directory && stat.device != self.device {
                return Err(Errno::XDEV);
            }
            here = Some(fd);
        }
        here.ok_or(Errno::NOENT)
    }
}

/// These say the same to whoever looks: there is no such entry within the volume.
pub(crate) fn is_denied(e: Errno) -> bool {
    matches!(
        e,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG
    )
}

/// An entry that was there a moment ago and is not, or is something else, any more.
pub(crate) fn is_gone(e: Errno) -> bool {
    matches!(e, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

/// All names in a directory, in no order, with what the directory says they are (often, not always).
pub(crate) fn names(directory: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut raw = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(names)
}

pub(crate) fn link_target(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    rustix::fs::readlinkat(directory, name, Vec::new()).map(|target| target.into_bytes())
}

/// Reads up to `length` bytes at `offset`; fewer only at the end of the file.
pub(crate) fn read_at(fd: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(fd, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    // An allocator may give more than asked for; what was read beyond is not ours.
    bytes.truncate(length);
    Ok(bytes)
}

/// At most this many separate ranges of a sparse file are kept apart; the rest is taken as one range.
const MOST_EXTENTS: usize = 4096;

/// The ranges of a file that hold data, or `None` where it has no holes or the file system cannot say.
pub(crate) fn extents(fd: BorrowedFd<'_>, size: u64) -> Option<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) if start >= size => break,
            Ok(start) => start,
            // No data from here on.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        if ranges.len() + 1 >= MOST_EXTENTS {
            ranges.push((start, size - start));
            return Some(ranges);
        }
        let end = rustix::fs::seek(fd, SeekFrom::Hole(start)).ok()?.min(size);
        if end <= start {
            return None;
        }
        ranges.push((start, end - start));
        at = end;
    }
    (ranges.as_slice() != [(0, size)].as_slice()).then_some(ranges)
}

/// Extended attributes that belong to the file and not to the machine it lies on.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || matches!(
            name,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

/// The extended attributes of an open file or directory, ordered by name. SELinux labels, IMA and EVM signatures are
/// the target machine's affair and left out.
pub(crate) fn xattrs(fd: BorrowedFd<'_>) -> Result<Vec<Attribute>, Errno> {
    let mut list = [0u8; 1024];
    let used = match rustix::fs::flistxattr(fd, &mut list) {
        Ok(used) => list.get(..used).unwrap_or_default().to_vec(),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            // The kernel's limit for a list.
            let mut long = vec![0u8; 65536];
            let used = rustix::fs::flistxattr(fd, long.as_mut_slice())?;
            long.truncate(used);
            long
        }
        Err(e) => return Err(e),
    };
    let mut kept = Vec::new();
    for name in used.split(|b| *b == 0).filter(|n| is_kept(n)) {
        // The kernel's limit for a value.
        let mut value = vec![0u8; 65536];
        match rustix::fs::fgetxattr(fd, name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                kept.push((name.to_vec(), value));
            }
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    kept.sort();
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Both ways to open must refuse the same.
    #[test]
    fn stepwise_is_as_strict_as_openat2() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        std::fs::create_dir_all(at.join("a/b")).unwrap();
        std::fs::write(at.join("a/b/f"), b"x").unwrap();
        symlink("a", at.join("link")).unwrap();
        symlink("/etc", at.join("out")).unwrap();
        symlink("f", at.join("a/b/g")).unwrap();
        let root = Root::open(at).unwrap();
        for (path, flags, good) in [
            ("a/b", DIRECTORY, true),
            ("a/b/f", FILE, true),
            ("a/b/f", DIRECTORY, false),
            ("link/b", DIRECTORY, false),
            ("link", DIRECTORY, false),
            ("out/passwd", FILE, false),
            ("a/b/g", FILE, false),
            ("a/x", FILE, false),
        ] {
            assert_eq!(
                root.open_stepwise(root.fd(), path.as_bytes(), flags).is_ok(),
                good,
                "stepwise {path}"
            );
            assert_eq!(
                root.open_below(root.fd(), path.as_bytes(), flags).is_ok(),
                good,
                "{path}"
            );
        }
    }

    #[test]
    fn another_device_is_not_entered() {
        // /proc is a file system of its own below /.
        let root = Root::open(Path::new("/")).unwrap();
        assert_eq!(
            root.open_stepwise(root.fd(), b"proc", DIRECTORY).unwrap_err(),
            Errno::XDEV
        );
        assert_eq!(root.directory(b"proc").unwrap_err(), Errno::XDEV);
    }
}
