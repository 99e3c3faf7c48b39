//! The destination: what is there, and whether it can be restored to.

use crate::{VolumeError, sys};
use rustix::fs::CWD;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A destination that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Absolute, its parent without links.
    pub path: PathBuf,
    pub parent: PathBuf,
    pub name: OsString,
    pub there: bool,
    /// Absent, or without entries of its own.
    pub empty: bool,
    pub mount_point: bool,
}

pub(super) fn refuse(path: &Path, why: impl Into<String>, hint: impl Into<String>) -> VolumeError {
    VolumeError::Destination {
        path: crate::path::show(path.as_os_str().as_bytes()),
        why: why.into(),
        hint: hint.into(),
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError {
    let path = path.as_os_str().as_bytes().to_vec();
    move |e| VolumeError::io(action, path, e)
}

impl Target {
    pub fn look(destination: &Path) -> Result<Target, VolumeError> {
        let absolute = std::path::absolute(destination).map_err(failed("find", destination))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(refuse(
                &absolute,
                "has no name of its own",
                "name a directory below the root of the file system",
            ));
        };
        let parent = match parent.canonicalize() {
            Ok(parent) => parent,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(refuse(
                    parent,
                    "is not there",
                    "create it, with the owner it should have",
                ));
            }
            Err(e) => return Err(failed("find", parent)(e)),
        };
        let path = parent.join(name);
        let mut target = Target {
            name: name.to_owned(),
            there: false,
            empty: true,
            mount_point: false,
            path,
            parent,
        };
        let found = match target.path.symlink_metadata() {
            Ok(found) => found,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(target),
            Err(e) => return Err(failed("look at", &target.path)(e)),
        };
        if found.is_symlink() {
            return Err(refuse(
                &target.path,
                "is a symbolic link",
                "name the directory it leads to",
            ));
        }
        if !found.is_dir() {
            return Err(refuse(
                &target.path,
                "is no directory",
                "move it away or name another destination",
            ));
        }
        target.there = true;
        let stat = |path: &Path| {
            rustix::fs::statx(
                CWD,
                path,
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                rustix::fs::StatxFlags::BASIC_STATS,
            )
            .map(sys::stat_of)
            .map_err(|e| VolumeError::io("look at", path.as_os_str().as_bytes(), e))
        };
        let (own, above) = (stat(&target.path)?, stat(&target.parent)?);
        target.mount_point = own.mount_root || own.device != above.device;
        let children = target
            .path
            .read_dir()
            .map_err(failed("read the directory", &target.path))?;
        for child in children {
            let name = child.map_err(failed("read the directory", &target.path))?.file_name();
            if !(target.mount_point && stays(name.as_bytes())) {
                target.empty = false;
                break;
            }
        }
        Ok(target)
    }

    /// The directory staging goes into: it must be on the destination's own file system.
    pub fn staging_in(&self) -> &Path {
        if self.mount_point { &self.path } else { &self.parent }
    }
}

/// What does not count as content of a mount point and is left where it is by a swap: our own staging and kept
/// directories, and what `mkfs` made.
pub(super) fn stays(name: &[u8]) -> bool {
    crate::walk::is_own(name) || name == b"lost+found"
}
