//! The staging directory: a tree in the making, its state, and the lock of whoever works in it.
//!
//! `.essrun-restore-ID/` (mode 0700, so that nobody meets half-made files) holds `tree/`, `state.json` and `lock`. The
//! state is written before each step that could need mending, so that whoever comes after a crash knows what is what.
//!
//! Where it lies others may be able to write: a mount point's own root belongs to whoever uses what is mounted. What such
//! a one put there under our name must not have us move files about, so only a directory of our own is believed, and of
//! it only what we could have written.

use super::target::{Target, failed, refuse};
use super::{KEPT_PREFIX, Leftover, LeftoverState, STAGING_PREFIX};
use crate::VolumeError;
use crate::path::TextOrHex;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
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

/// What is kept beside a destination is named after it, this, and a time.
pub(super) const KEPT_BESIDE: &str = ".before-";

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

/// Two paths of the longest there are, written as digits, and the rest.
const STATE_LIMIT: u64 = 64 << 10;

impl State {
    /// Reads one, and refuses what no restore wrote. What was live is kept beside the destination, or in it where that is
    /// a mount point, and nowhere else.
    pub fn parse(text: &[u8]) -> Result<State, String> {
        let state: State = serde_json::from_slice(text).map_err(|e| format!("does not parse: {e}"))?;
        let destination = state.destination();
        let (Some(parent), Some(name)) = (destination.parent(), destination.file_name()) else {
            return Err("names no destination".to_owned());
        };
        if !destination.is_absolute() || destination.as_os_str().as_bytes().contains(&0) {
            return Err("names no destination".to_owned());
        }
        if let Some(kept) = state.kept() {
            let (place, prefix) = match state.mount_point {
                true => (destination.as_path(), KEPT_PREFIX.as_bytes().to_vec()),
                false => (parent, [name.as_bytes(), KEPT_BESIDE.as_bytes()].concat()),
            };
            let ours = kept
                .file_name()
                .is_some_and(|name| name.as_bytes().starts_with(&prefix));
            if !ours || kept.parent() != Some(place) || kept.as_os_str().as_bytes().contains(&0) {
                return Err("keeps what was live where no restore keeps it".to_owned());
            }
        }
        if state.closed.is_some_and(|mode| mode > 0o7777) {
            return Err("names a mode that is none".to_owned());
        }
        Ok(state)
    }

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

/// The state, read from a directory of ours and no other; `None` when there is none.
fn read_state(path: &Path) -> Result<Option<State>, VolumeError> {
    let file = path.join("state.json");
    let io = |action, path: &Path, e| VolumeError::io(action, path.as_os_str().as_bytes(), e);
    // From one descriptor, so that nobody puts another directory in its place in between.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = match rustix::fs::open(path, flags | OFlags::DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(io("open", path, e)),
    };
    let owner = rustix::fs::fstat(&directory)
        .map_err(|e| io("look at", path, e))?
        .st_uid;
    if owner != rustix::process::geteuid().as_raw() {
        return Err(refuse(
            path,
            format!("belongs to user {owner}, and not to the one who restores"),
            "look into the directory and remove it by hand, or restore as that user",
        ));
    }
    let opened = match rustix::fs::openat(&directory, "state.json", flags | OFlags::NONBLOCK, Mode::empty()) {
        Ok(opened) => File::from(opened),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(io("open", &file, e)),
    };
    let mut text = Vec::new();
    let read = opened.take(STATE_LIMIT).read_to_end(&mut text);
    read.map_err(failed("read", &file))?;
    let state = State::parse(&text);
    state
        .map(Some)
        .map_err(|why| refuse(&file, why, "look into the directory and remove it by hand"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_live_is_kept_beside_it_and_nowhere_else() {
        let state = |mount_point: bool, kept: &str| {
            let text = serde_json::json!({
                "destination": "/srv/media", "step": "exchanging", "mount_point": mount_point, "tree_inode": 1, "kept": kept,
            });
            State::parse(text.to_string().as_bytes())
        };
        for (mount_point, kept) in [
            (false, "/srv/media.before-20260131T041500000Z"),
            (true, "/srv/media/.essrun-before-20260131T041500000Z"),
        ] {
            state(mount_point, kept).unwrap();
            state(!mount_point, kept).unwrap_err();
        }
        for elsewhere in [
            "/etc/cron.d",
            "/srv/other.before-1",
            "/srv/media.before-1/..",
            "/srv/media.before-1/x",
            "/srv/../etc/media.before-1",
            "media.before-1",
            "/srv/media.before-1\0",
            "",
        ] {
            state(false, elsewhere).unwrap_err();
        }
    }

    /// Only root can make a directory another's.
    #[test]
    fn a_directory_of_somebody_else_is_passed_over() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        std::fs::create_dir(&live).unwrap();
        let target = Target::look(&live).unwrap();
        let mut staging = Staging::create(&target, [0; 32]).unwrap();
        staging.enter(Step::Exchanging).unwrap();
        let path = staging.path.clone();
        drop(staging);
        assert_eq!(leftovers(&target).unwrap().len(), 1);
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        assert_eq!(leftovers(&target).unwrap(), []);
        let refused = Staging::take_up(&path).unwrap_err().to_string();
        assert!(refused.contains("belongs to user 12345"), "{refused}");
        // A link to one of ours is not ours either.
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        let moved = dir.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        assert_eq!(leftovers(&target).unwrap(), []);
    }
}
