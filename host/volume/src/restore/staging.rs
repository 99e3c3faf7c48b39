//! The staging directory: a tree in the making, its state, and the lock of whoever works in it.
//!
//! `.essrun-restore-ID/` (mode 0700, so that nobody meets half-made files) holds `tree/`, `state.json` and `lock`. The
//! state is written before each step that could need mending, so that whoever comes after a crash knows what is what.

use super::target::{Target, failed, refuse};
use super::{Leftover, LeftoverState, STAGING_PREFIX};
use crate::VolumeError;
use crate::path::TextOrHex;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const LOCK: &str = "lock";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Step {
    Extracting,
    Complete,
    /// The live tree and the staged one are being exchanged.
    Exchanging,
    /// Children of the mount point go to the kept directory.
    MovingOld,
    /// Children of the staged tree go to the mount point.
    MovingNew,
}

/// What `state.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    destination: TextOrHex,
    pub step: Step,
    pub mount_point: bool,
    /// Inode of the staged tree's root: tells it from the live one whatever their names are.
    pub tree_inode: u64,
    /// Where what was live is kept.
    kept: Option<TextOrHex>,
    /// What the restore is of, as a digest.
    #[serde(default)]
    origin: String,
    /// The mode the tree's root has in the end, where it had to be opened for the swap.
    #[serde(default)]
    pub closed: Option<u32>,
}

impl State {
    pub fn destination(&self) -> PathBuf {
        path_of(&self.destination)
    }

    pub fn kept(&self) -> Option<PathBuf> {
        self.kept.as_ref().map(path_of)
    }

    pub fn is_of(&self, origin: [u8; 32]) -> bool {
        self.origin == hex::encode(origin)
    }

    pub fn keep_as(&mut self, kept: &Path) {
        self.kept = Some(TextOrHex(kept.as_os_str().as_bytes().to_vec()));
    }
}

fn path_of(text: &TextOrHex) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(text.0.clone()))
}

/// A staging directory held by us.
#[derive(Debug)]
pub(super) struct Staging {
    pub path: PathBuf,
    pub state: State,
    lock: OwnedFd,
}

impl Staging {
    /// Makes a staging directory for the target.
    pub fn create(target: &Target, origin: [u8; 32]) -> Result<Staging, VolumeError> {
        let id = hex::encode(rand::random::<[u8; 8]>());
        let path = target.staging_in().join(format!("{STAGING_PREFIX}{id}"));
        let directory = |path: &Path| {
            DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(failed("create the directory", path))
        };
        directory(&path)?;
        let lock = take_lock(&path, true)?
            .ok_or_else(|| refuse(&path, "was locked by somebody else the moment it was made", "try again"))?;
        directory(&path.join("tree"))?;
        let inode = path
            .join("tree")
            .symlink_metadata()
            .map_err(failed("look at", &path))?
            .ino();
        let staging = Staging {
            state: State {
                destination: TextOrHex(target.path.as_os_str().as_bytes().to_vec()),
                step: Step::Extracting,
                mount_point: target.mount_point,
                tree_inode: inode,
                kept: None,
                origin: hex::encode(origin),
                closed: None,
            },
            path,
            lock,
        };
        staging.write_state()?;
        Ok(staging)
    }

    /// Takes up a leftover; `None` when somebody works in it.
    pub fn take_up(path: &Path) -> Result<Option<Staging>, VolumeError> {
        let Some(lock) = take_lock(path, false)? else {
            return Ok(None);
        };
        let Some(state) = read_state(path)? else {
            return Err(refuse(path, "has no state.json", "it can be removed by hand"));
        };
        Ok(Some(Staging {
            path: path.to_owned(),
            state,
            lock,
        }))
    }

    pub fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// Notes the next step, on disk before anything of it is done.
    pub fn enter(&mut self, step: Step) -> Result<(), VolumeError> {
        self.state.step = step;
        self.write_state()
    }

    fn write_state(&self) -> Result<(), VolumeError> {
        let (new, path) = (self.path.join("state.json.new"), self.path.join("state.json"));
        let text = serde_json::to_vec(&self.state).map_err(|e| VolumeError::Internal(e.to_string()))?;
        let write = || {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Removes the staging directory with all in it.
    pub fn remove(self) -> Result<(), VolumeError> {
        remove_locked(&self.path, self.lock)
    }
}

/// Removes a staging directory whose lock is held: the lock last, and closed before. What is open when it is removed is
/// only renamed by NFS and FUSE (`.nfs…`, `.fuse_hidden…`), and its directory would not be empty.
fn remove_locked(path: &Path, lock: OwnedFd) -> Result<(), VolumeError> {
    for entry in path.read_dir().map_err(failed("read the directory", path))? {
        let entry = entry.map_err(failed("read the directory", path))?;
        let inner = entry.path();
        if entry.file_type().map_err(failed("look at", &inner))?.is_dir() {
            remove_tree(&inner)?;
        } else if entry.file_name() != LOCK {
            std::fs::remove_file(&inner).map_err(failed("remove", &inner))?;
        }
    }
    drop(lock);
    remove_tree(path)
}

/// Removes a tree of ours. `std` does it without following links, from descriptors.
pub(super) fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        // Who clears leftovers away at this moment was faster.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            // Not root: restored directories may lack write permission. They are ours, so it can be given.
            open_up(path)
                .and_then(|()| std::fs::remove_dir_all(path))
                .map_err(failed("remove", path))
        }
        Err(e) => Err(failed("remove", path)(e)),
    }
}

fn open_up(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut stack = vec![path.to_owned()];
    while let Some(directory) = stack.pop() {
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700))?;
        for entry in directory.read_dir()? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    Ok(())
}

fn take_lock(path: &Path, create: bool) -> Result<Option<OwnedFd>, VolumeError> {
    let lock = path.join(LOCK);
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if create {
        flags |= OFlags::CREATE | OFlags::EXCL;
    }
    let fd = match rustix::fs::open(&lock, flags, Mode::from_raw_mode(0o600)) {
        Ok(fd) => fd,
        // Killed before it came to a lock, or just about to make one.
        Err(Errno::NOENT) => return Ok((!is_young(path)).then(|| dev_null().ok()).flatten()),
        Err(e) => return Err(VolumeError::io("open", lock.as_os_str().as_bytes(), e)),
    };
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(VolumeError::io("lock", lock.as_os_str().as_bytes(), e)),
    }
}

fn dev_null() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn is_young(path: &Path) -> bool {
    let age = path
        .symlink_metadata()
        .and_then(|m| m.modified())
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_none_or(|age| age < Duration::from_secs(5))
}

fn read_state(path: &Path) -> Result<Option<State>, VolumeError> {
    let file = path.join("state.json");
    match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            refuse(
                &file,
                format!("does not parse: {e}"),
                "look into the directory and remove it by hand",
            )
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", &file)(e)),
    }
}

/// All leftovers of restores to the target.
pub(super) fn leftovers(target: &Target) -> Result<Vec<Leftover>, VolumeError> {
    let mut found = Vec::new();
    let mut places = vec![target.parent.as_path()];
    // The destination may have become a mount point, or ceased to be one, since.
    places.extend(target.there.then_some(target.path.as_path()));
    for place in places {
        for entry in place.read_dir().map_err(failed("read the directory", place))? {
            let entry = entry.map_err(failed("read the directory", place))?;
            if !entry.file_name().as_bytes().starts_with(STAGING_PREFIX.as_bytes()) {
                continue;
            }
            let path = entry.path();
            let state = match read_state(&path) {
                Ok(state) => state,
                // Removed meanwhile, not ours to read, or damaged: not known to be of this destination.
                Err(e) => {
                    tracing::warn!(error = %e, "passed over a directory that looks like a restore's");
                    continue;
                }
            };
            let of_this = match &state {
                Some(state) => state.destination() == target.path,
                None => place == target.staging_in(),
            };
            if !of_this {
                continue;
            }
            let Some(lock) = take_lock(&path, false)? else {
                found.push(Leftover {
                    path,
                    state: LeftoverState::InUse,
                });
                continue;
            };
            drop(lock);
            let state = match state.map(|s| s.step) {
                None | Some(Step::Extracting) => LeftoverState::Extracting,
                Some(Step::Complete) => LeftoverState::Complete,
                Some(Step::Exchanging | Step::MovingOld | Step::MovingNew) => LeftoverState::Swapping,
            };
            found.push(Leftover { path, state });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Removes a leftover if, seen under its lock, it is safe to.
pub(super) fn drop_one(leftover: &Leftover) -> Result<bool, VolumeError> {
    let Some(lock) = take_lock(&leftover.path, false)? else {
        return Ok(false);
    };
    match read_state(&leftover.path)?.map(|s| s.step) {
        None | Some(Step::Extracting | Step::Complete) => remove_locked(&leftover.path, lock).map(|()| true),
        Some(Step::Exchanging | Step::MovingOld | Step::MovingNew) => Ok(false),
    }
}
