//! What a stopped restore staged, taken over file by file into the new tree.
//!
//! Nothing about the old tree is believed: a file that the listing names is moved when its bytes are, by their chunks'
//! names, those of the backup; whatever else lies there goes with the old tree. So a resumed restore makes every entry
//! as new in a directory of its own, as any other does.

use super::staging::{self, Staging, Step};
use super::target::{Target, refuse};
use crate::sys::{self, Root};
use crate::{Kind, LeftoverState, ListedEntry, VolumeError};
use essrun_artifact::BackupReader;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, RenameFlags};
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::runtime::Handle;

/// Old trees, locked for us.
#[derive(Default)]
pub(super) struct TakenOver {
    trees: Vec<Root>,
    stagings: Mutex<Vec<Staging>>,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl TakenOver {
    /// Takes up what stopped restores to the target left. Refused when it is of something else.
    pub fn open(target: &Target, origin: [u8; 32]) -> Result<TakenOver, VolumeError> {
        let mut taken = TakenOver::default();
        let mut stagings = Vec::new();
        for leftover in staging::leftovers(target)? {
            let at_work = || refuse(&leftover.path, "another restore is at work there", "wait for it");
            if leftover.state == LeftoverState::InUse {
                return Err(at_work());
            }
            if !leftover.path.join("state.json").exists() {
                // Killed before anything was staged.
                staging::drop_one(&leftover)?;
                continue;
            }
            let staging = Staging::take_up(&leftover.path)?.ok_or_else(at_work)?;
            if !matches!(staging.state.step, Step::Extracting | Step::Complete) {
                continue;
            }
            if !staging.state.is_of(origin) {
                return Err(refuse(
                    &leftover.path,
                    "a stopped restore of something else: backup, pipeline or target changed since",
                    "go on with those of then, or start again without --resume, which removes it",
                ));
            }
            taken.trees.push(Root::open(&staging.tree())?);
            stagings.push(staging);
        }
        taken.stagings = Mutex::new(stagings);
        Ok(taken)
    }

    /// Moves a file to its place in the new tree when an old one has it as it should be; anything in the way of that is
    /// a reason to write it anew.
    pub fn file(
        &self,
        runtime: &Handle,
        reader: &dyn BackupReader,
        entry: &ListedEntry,
        to: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Option<OwnedFd>, VolumeError> {
        // A sparse file's content does not say where its holes are.
        let Kind::File {
            size,
            content,
            extents: None,
            ..
        } = &entry.kind
        else {
            return Ok(None);
        };
        let Some((parent, old_name)) = entry.path.split() else {
            return Ok(None);
        };
        for tree in &self.trees {
            let Ok(from) = tree.directory(parent) else { continue };
            let Ok(fd) = tree.file(from.as_fd(), old_name) else {
                continue;
            };
            let Ok(stat) = sys::stat_fd(&fd) else { continue };
            // A second name elsewhere could be somebody's to write through.
            let plain = stat.kind == FileType::RegularFile && stat.links == 1 && stat.size == *size;
            let attributes = sys::xattrs(fd.as_fd()).unwrap_or_default();
            if !plain || attributes.iter().any(|a| !entry.xattrs.contains(a)) {
                continue;
            }
            let Ok(copy) = fd.try_clone() else { continue };
            if !runtime.block_on(reader.same(content, &mut std::fs::File::from(copy)))? {
                continue;
            }
            if rustix::fs::renameat_with(&from, old_name, to, name, RenameFlags::NOREPLACE).is_err() {
                continue;
            }
            let moved = sys::stat_at(to, name).map_err(|e| VolumeError::io("look at", entry.path.as_bytes(), e))?;
            if moved.ino != stat.ino {
                return Err(refuse(
                    std::path::Path::new(std::ffi::OsStr::from_bytes(entry.path.as_bytes())),
                    "was exchanged while it was taken over",
                    "find out who writes into the staging directory",
                ));
            }
            self.files.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(*size, Ordering::Relaxed);
            return Ok(Some(fd));
        }
        Ok(None)
    }

    /// In words; nothing when nothing was taken over.
    pub fn said(&self) -> Option<String> {
        let (files, bytes) = (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        (files > 0)
            .then(|| format!("{files} files of {bytes} bytes staged before; read back, and as the backup has them"))
    }

    /// Removes the old trees with what is left in them.
    pub fn remove(&self) -> Result<(), VolumeError> {
        let mut stagings = self.stagings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        stagings.drain(..).try_for_each(Staging::remove)
    }
}
