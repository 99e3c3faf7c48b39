//! The swap: the staged tree takes the place of the live one, which is kept under a dated name.
//!
//! A directory is exchanged in one rename. A mount point cannot be renamed, so its children are moved out and the new
//! ones in, one rename each; `state.json` says which of the two was under way, and [`resume`] goes on from there.

use super::staging::{KEPT_BESIDE, Staging, Step};
use super::target::{Target, failed, refuse, stays};
use super::{KEPT_PREFIX, Swapped};
use crate::VolumeError;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) fn swap(mut staging: Staging, replace: bool) -> Result<Swapped, VolumeError> {
    let target = ready(&staging.state.destination(), staging.state.mount_point, replace)?;
    let kept = (!target.empty).then(|| kept_name(&target));
    if let Some(kept) = &kept {
        staging.state.keep_as(kept);
    }
    if target.mount_point {
        staging.enter(Step::MovingOld)?;
    } else {
        staging.state.closed = closed(&staging.tree())?;
        staging.enter(Step::Exchanging)?;
    }
    carry_on(staging)
}

/// Looks at the destination of what was staged for a mount point or not, and refuses what cannot be swapped.
pub(super) fn ready(destination: &Path, mount_point: bool, replace: bool) -> Result<Target, VolumeError> {
    let target = Target::look(destination)?;
    if target.mount_point != mount_point {
        return Err(mount_changed(destination));
    }
    if !target.empty && !replace {
        return Err(not_empty(&target));
    }
    refuse_nested_mounts(&target)?;
    Ok(target)
}

pub(super) fn mount_changed(destination: &Path) -> VolumeError {
    refuse(
        destination,
        "was mounted or unmounted since the restore began",
        "restore again",
    )
}

pub(super) fn not_empty(target: &Target) -> VolumeError {
    refuse(
        &target.path,
        "is not empty",
        "give leave to replace it (what is there will be kept under a dated name), or name another destination",
    )
}

/// Ends an interrupted swap.
pub(super) fn resume(path: &Path) -> Result<Swapped, VolumeError> {
    let Some(staging) = Staging::take_up(path)? else {
        return Err(refuse(path, "is in use by another restore", "wait for its end"));
    };
    match staging.state.step {
        Step::Exchanging | Step::MovingOld | Step::MovingNew => carry_on(staging),
        Step::Extracting | Step::Complete => {
            Err(refuse(path, "no swap was under way in it", "drop it and restore again"))
        }
    }
}

/// Does what is left of the steps noted in the state. Every step can be repeated.
fn carry_on(mut staging: Staging) -> Result<Swapped, VolumeError> {
    let destination = staging.state.destination();
    let kept = staging.state.kept();
    match staging.state.step {
        Step::Exchanging => {
            if let Err(e) = exchange(&staging, &destination, kept.as_deref()) {
                // Nothing was moved: what is staged is just a staged tree again, and may be dropped.
                let new = Some(staging.state.tree_inode);
                if inode(&staging.tree())? == new && inode(&destination)? != new {
                    staging.enter(Step::Complete)?;
                }
                return Err(e);
            }
            if let Some(mode) = staging.state.closed {
                set_mode(&destination, mode)?;
            }
        }
        Step::MovingOld => {
            move_old(&destination, kept.as_deref())?;
            staging.enter(Step::MovingNew)?;
            move_new(&staging, &destination)?;
        }
        Step::MovingNew => move_new(&staging, &destination)?,
        Step::Extracting | Step::Complete => {}
    }
    sync_directory(&destination)?;
    sync_directory(destination.parent().unwrap_or(&destination))?;
    staging.remove()?;
    Ok(Swapped { destination, kept })
}

/// Renames below another parent. A directory of ours that may not be written to is opened for the moment.
fn move_child(from: &Path, to: &Path) -> Result<(), VolumeError> {
    let directory = from.symlink_metadata().map_err(failed("look at", from))?.is_dir();
    let Some(mode) = (if directory { closed(from)? } else { None }) else {
        return rename_new(from, to);
    };
    set_mode(from, mode | 0o200)?;
    let moved = rename_new(from, to);
    set_mode(if moved.is_ok() { to } else { from }, mode)?;
    moved
}

/// The mode of a directory that who is not root could not move below another parent, since it may not be written to.
fn closed(directory: &Path) -> Result<Option<u32>, VolumeError> {
    let mode = directory
        .symlink_metadata()
        .map_err(failed("look at", directory))?
        .mode()
        & 0o7777;
    Ok((mode & 0o200 == 0 && !rustix::process::geteuid().is_root()).then_some(mode))
}

fn set_mode(directory: &Path, mode: u32) -> Result<(), VolumeError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
        .map_err(failed("set the mode of", directory))
}

fn inode(path: &Path) -> Result<Option<u64>, VolumeError> {
    match path.symlink_metadata() {
        Ok(found) => Ok(Some(found.ino())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("look at", path)(e)),
    }
}

fn exchange(staging: &Staging, destination: &Path, kept: Option<&Path>) -> Result<(), VolumeError> {
    let tree = staging.tree();
    let new = Some(staging.state.tree_inode);
    if inode(destination)? != new {
        if let Some(mode) = staging.state.closed {
            set_mode(&tree, mode | 0o200)?;
        }
        match kept {
            // Nothing worth keeping: absent, or empty, which rename replaces and checks by itself.
            None => rename(&tree, destination)?,
            Some(kept) if inode(destination)?.is_none() => {
                // The two-step way was interrupted in the middle, or somebody moved the live tree away.
                tracing::warn!(kept = %kept.display(), "the live tree is not in its place any more");
                rename_new(&tree, destination)?;
            }
            Some(kept) => match rustix::fs::renameat_with(CWD, &tree, CWD, destination, RenameFlags::EXCHANGE) {
                Ok(()) => {}
                // Not every file system can exchange: two renames, and back again when the second fails.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    rename_new(destination, kept)?;
                    if let Err(e) = rename_new(&tree, destination) {
                        rename_new(kept, destination)?;
                        return Err(e);
                    }
                }
                Err(e) => return Err(VolumeError::io("put in place", destination.as_os_str().as_bytes(), e)),
            },
        }
    }
    // After an exchange the old tree stands in staging, which is removed next.
    match kept {
        _ if inode(&tree)?.is_none() => Ok(()),
        Some(kept) => rename_new(&tree, kept),
        None => Err(refuse(
            &tree,
            "is there beside the restored tree, and state.json does not say where it is to be kept",
            "it may be what was live: move it away by hand",
        )),
    }
}

/// Moves what was extracted to a destination that is not there: the tree, or the single entry in it.
pub(super) fn place_extracted(tree: &Path, single: Option<&[u8]>, target: &Target) -> Result<(), VolumeError> {
    let from = match single {
        Some(name) => tree.join(std::ffi::OsStr::from_bytes(name)),
        None => tree.to_owned(),
    };
    rename_new(&from, &target.path)?;
    sync_directory(&target.parent)
}

fn rename(from: &Path, to: &Path) -> Result<(), VolumeError> {
    std::fs::rename(from, to).map_err(failed("put in place", to))
}

/// Renames without replacing anything.
fn rename_new(from: &Path, to: &Path) -> Result<(), VolumeError> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if inode(to)?.is_some() {
                return Err(VolumeError::io("rename to", to.as_os_str().as_bytes(), Errno::EXIST));
            }
            rename(from, to)
        }
        Err(e) => Err(VolumeError::io("rename to", to.as_os_str().as_bytes(), e)),
    }
}

/// The children of a mount point that a swap moves.
fn children(of: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let mut found = Vec::new();
    for child in of.read_dir().map_err(failed("read the directory", of))? {
        let child = child.map_err(failed("read the directory", of))?;
        if !stays(child.file_name().as_bytes()) {
            found.push(child.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Something mounted on a child of a mount point could not be moved; better to know before the first child is.
pub(super) fn refuse_nested_mounts(target: &Target) -> Result<(), VolumeError> {
    if !target.mount_point {
        return Ok(());
    }
    let here = target
        .path
        .symlink_metadata()
        .map_err(failed("look at", &target.path))?
        .dev();
    for child in children(&target.path)? {
        let found = child.symlink_metadata().map_err(failed("look at", &child))?;
        if found.is_dir() && found.dev() != here {
            return Err(refuse(
                &child,
                "another file system is mounted here, so its parent cannot be swapped",
                "unmount it first",
            ));
        }
    }
    Ok(())
}

fn move_old(destination: &Path, kept: Option<&Path>) -> Result<(), VolumeError> {
    let Some(kept) = kept else { return Ok(()) };
    match std::fs::DirBuilder::new().create(kept) {
        Ok(()) => {
            use std::os::unix::fs::PermissionsExt;
            // What is kept is as secret as what was live, and nobody's to use.
            std::fs::set_permissions(kept, std::fs::Permissions::from_mode(0o700)).map_err(failed("protect", kept))?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(failed("create the directory", kept)(e)),
    }
    for child in children(destination)? {
        let Some(name) = child.file_name() else { continue };
        move_child(&child, &kept.join(name))?;
    }
    sync_directory(kept)
}

fn move_new(staging: &Staging, destination: &Path) -> Result<(), VolumeError> {
    let tree = staging.tree();
    if inode(&tree)?.is_none() {
        // All was moved; only the removal of the staging directory was interrupted.
        return Ok(());
    }
    for child in children(&tree)? {
        let Some(name) = child.file_name() else { continue };
        move_child(&child, &destination.join(name))?;
    }
    // The mount point itself stays, so the root's own owner, mode and times are copied to it, times last.
    super::extract::copy_root(&tree, destination)
}

fn kept_name(target: &Target) -> PathBuf {
    // Millisecond stamps: two swaps in the same second must not meet.
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ");
    if target.mount_point {
        return target.path.join(format!("{KEPT_PREFIX}{stamp}"));
    }
    let mut name = target.name.clone();
    name.push(format!("{KEPT_BESIDE}{stamp}"));
    target.parent.join(name)
}

fn sync_directory(path: &Path) -> Result<(), VolumeError> {
    File::open(path)
        .and_then(|d| d.sync_all())
        .map_err(failed("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(at: &Path, word: &str) {
        std::fs::create_dir_all(at.join("sub")).unwrap();
        std::fs::write(at.join("sub/f"), word).unwrap();
        std::fs::write(at.join("g"), word).unwrap();
    }

    fn reads(at: &Path) -> [String; 2] {
        ["sub/f", "g"].map(|name| std::fs::read_to_string(at.join(name)).unwrap())
    }

    /// A swap that got as far as `done` of its steps and was killed.
    fn killed_after(done: usize, mount_point: bool) {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        fill(&live, "old");
        let mut target = Target::look(&live).unwrap();
        target.mount_point = mount_point;
        let mut staging = Staging::create(&target, [0; 32]).unwrap();
        let (path, tree) = (staging.path.clone(), staging.tree());
        fill(&tree, "new");
        let kept = kept_name(&target);
        staging.state.keep_as(&kept);
        let moves: Vec<(PathBuf, PathBuf)> = if mount_point {
            staging.enter(Step::MovingOld).unwrap();
            vec![
                (live.join("g"), kept.join("g")),
                (live.join("sub"), kept.join("sub")),
                (tree.join("g"), live.join("g")),
                (tree.join("sub"), live.join("sub")),
            ]
        } else {
            // The way without an exchange, which has the more states.
            staging.enter(Step::Exchanging).unwrap();
            vec![(live.clone(), kept.clone()), (tree.clone(), live.clone())]
        };
        for (step, (from, to)) in moves.iter().enumerate().take(done) {
            if mount_point && step == 0 {
                std::fs::create_dir(&kept).unwrap();
            }
            if mount_point && step == 2 {
                staging.enter(Step::MovingNew).unwrap();
            }
            std::fs::rename(from, to).unwrap();
        }
        if done > moves.len() {
            // Killed while the staging directory was being removed.
            let _ = std::fs::remove_dir_all(&tree);
        }
        drop(staging);
        let swapped = resume(&path).unwrap();
        assert_eq!(swapped.kept.as_deref(), Some(kept.as_path()));
        assert_eq!(reads(&live), ["new", "new"], "after {done}");
        assert_eq!(reads(&kept), ["old", "old"], "after {done}");
        assert!(!path.exists());
        assert!(resume(&path).is_err());
    }

    #[test]
    fn an_interrupted_swap_can_be_ended_from_every_step() {
        for done in 0..=3 {
            killed_after(done, false);
        }
        for done in 0..=5 {
            killed_after(done, true);
        }
    }

    /// The same after the atomic exchange, where staging holds what was live.
    #[test]
    fn after_an_exchange_the_old_tree_is_not_taken_for_the_new() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        fill(&live, "old");
        let target = Target::look(&live).unwrap();
        let mut staging = Staging::create(&target, [0; 32]).unwrap();
        fill(&staging.tree(), "new");
        let kept = kept_name(&target);
        staging.state.keep_as(&kept);
        staging.enter(Step::Exchanging).unwrap();
        rustix::fs::renameat_with(CWD, staging.tree(), CWD, &live, RenameFlags::EXCHANGE).unwrap();
        let path = staging.path.clone();
        drop(staging);
        let leftover = super::super::staging::leftovers(&target).unwrap().remove(0);
        assert_eq!(leftover.state, super::super::LeftoverState::Swapping);
        assert!(
            !super::super::staging::drop_one(&leftover).unwrap(),
            "it holds what was live"
        );
        resume(&path).unwrap();
        assert_eq!(
            (reads(&live), reads(&kept)),
            (["new", "new"].map(str::to_owned), ["old", "old"].map(str::to_owned))
        );
    }
}
