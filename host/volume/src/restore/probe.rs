//! What can be known of a destination before anything is staged there, by looking alone.
//!
//! A plan makes nothing, so nothing is tried here by writing: the permissions are asked for, and whether names that
//! differ in case are one is read from the kind of file system, the directory's flags and the names that are there.
//! Staging and swap try the same in earnest, and have the last word.

use super::target::{Target, failed, refuse};
use crate::VolumeError;
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Refuses a destination that could not be written to, now or at the swap.
pub(super) fn refuse_unwritable(target: &Target) -> Result<(), VolumeError> {
    writable(target.staging_in(), Access::WRITE_OK | Access::EXEC_OK)?;
    if target.there && !target.mount_point && !target.empty {
        // A directory that goes below another one is written to: it names its parent.
        writable(&target.path, Access::WRITE_OK)?;
    }
    Ok(())
}

fn writable(directory: &Path, access: Access) -> Result<(), VolumeError> {
    match rustix::fs::accessat(CWD, directory, access, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => Err(refuse(
            directory,
            "may not be written to by this user",
            "run essrun as a user who may, as root for the owners of the backup",
        )),
        Err(Errno::ROFS) => Err(refuse(
            directory,
            "is on a file system that is mounted read-only",
            "mount it writable",
        )),
        Err(e) => Err(VolumeError::io("look at", directory.as_os_str().as_bytes(), e)),
    }
}

/// Whether names that differ in case are one in this directory, as far as looking tells.
pub(super) fn looks_case_insensitive(directory: &Path) -> Result<bool, VolumeError> {
    let io = |e: Errno| VolumeError::io("look at", directory.as_os_str().as_bytes(), e);
    let kind = rustix::fs::statfs(directory).map_err(io)?.f_type;
    if folds(u64::try_from(kind).unwrap_or_default()) {
        return Ok(true);
    }
    let open = std::fs::File::open(directory).map_err(failed("open", directory))?;
    // Not every file system has flags.
    if rustix::fs::ioctl_getflags(&open).is_ok_and(|flags| flags.bits() & FOLDED != 0) {
        return Ok(true);
    }
    let mut names = Vec::new();
    for entry in directory.read_dir().map_err(failed("read the directory", directory))? {
        names.push(entry.map_err(failed("read the directory", directory))?.file_name());
        if names.len() == NAMES {
            break;
        }
    }
    let inode = |name: &OsStr| {
        let found = directory.join(name).symlink_metadata();
        found.ok().map(|found| (found.dev(), found.ino()))
    };
    Ok(one_by_two_names(&names, inode))
}

/// `FS_CASEFOLD_FL`: ext4 and f2fs fold the names in such a directory.
const FOLDED: u32 = 0x4000_0000;

/// Names looked at; one that has letters is enough.
const NAMES: usize = 1000;

/// Kinds of file systems that fold always, or unless they are told otherwise: vfat, exfat, smb and cifs, hfs and hfs+.
fn folds(kind: u64) -> bool {
    const FOLDING: [u64; 6] = [0x4d44, 0x2011_bab0, 0xff53_4d42, 0xfe53_4d42, 0x4244, 0x482b];
    // Some of these have their highest bit set, and the field is signed on some machines.
    FOLDING.contains(&(kind & 0xffff_ffff))
}

/// Whether a name in other letters, which is not there itself, leads to the same file.
fn one_by_two_names<I: PartialEq>(names: &[OsString], inode: impl Fn(&OsStr) -> Option<I>) -> bool {
    names.iter().any(|name| {
        let swapped = OsString::from_vec(name.as_bytes().iter().map(|b| swap_case(*b)).collect());
        let found = (swapped != *name && !names.contains(&swapped)).then(|| inode(&swapped));
        found.flatten().is_some_and(|found| inode(name) == Some(found))
    })
}

fn swap_case(b: u8) -> u8 {
    match b.is_ascii_alphabetic() {
        true => b ^ 0x20,
        false => b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_by_two_names_is_seen() {
        let names = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
        let plain =
            |there: &'static [&'static str]| move |name: &OsStr| there.iter().position(|n| OsStr::new(n) == name);
        let folded = |there: &'static [&'static str]| {
            move |name: &OsStr| there.iter().position(|n| name.eq_ignore_ascii_case(n))
        };
        assert!(one_by_two_names(&names(&["1", "aB"]), folded(&["1", "aB"])));
        assert!(!one_by_two_names(&names(&["1", "aB"]), plain(&["1", "aB"])));
        assert!(
            !one_by_two_names(&names(&["1", "_"]), folded(&["1", "_"])),
            "nothing is known"
        );
        // Two names of one file, both there: whatever they are, the file system tells them apart.
        assert!(!one_by_two_names(&names(&["a", "A"]), |_: &OsStr| Some(7)));
        assert!(!one_by_two_names::<u64>(&[], |_: &OsStr| None));
    }

    #[test]
    fn kinds_that_fold() {
        for kind in [0x4d44, 0xff53_4d42, u64::MAX << 32 | 0xff53_4d42] {
            assert!(folds(kind), "{kind:x}");
        }
        // ext4, tmpfs, xfs, btrfs, nfs
        for kind in [0xef53, 0x0102_1994, 0x5846_5342, 0x9123_683e, 0x6969] {
            assert!(!folds(kind), "{kind:x}");
        }
        let here = tempfile::tempdir().unwrap();
        std::fs::write(here.path().join("Name"), "").unwrap();
        assert!(!looks_case_insensitive(here.path()).unwrap());
    }
}
