//! An artifact becomes a tree again: staged, verified by others, then swapped in.

use crate::{TreePath, Volume, VolumeError};
use essrun_artifact::{ArtifactRecord, BackupReader, Progress};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whose the restored files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Owners {
    /// The numeric owners of the backup; what cannot be set becomes a finding.
    #[default]
    Numeric,
    /// Whoever restores.
    Current,
}

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Swap out a destination that is not empty, keeping it under a dated name. Without it such a destination is refused.
    pub replace: bool,
    pub owners: Owners,
    /// Files written at once, at least 1.
    pub jobs: usize,
}

/// Something a person must know about a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A stable name: `owners-not-set`, `case-insensitive-destination`, …
    pub check: &'static str,
    /// Whether the result must not be used.
    pub fatal: bool,
    pub message: String,
    pub remedy: String,
}

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    pub destination: PathBuf,
    /// Where it will be staged.
    pub staging_in: PathBuf,
    /// The destination is a mount point: staged inside it, its children swapped one by one.
    pub mount_point: bool,
    /// The destination holds something, which would be kept under a dated name.
    pub replaces: bool,
    pub entries: u64,
    pub bytes: u64,
    /// Free bytes on the destination's file system.
    pub free_bytes: u64,
    pub findings: Vec<Finding>,
}

/// A restored tree that is not yet in place. Dropped without a swap, it stays behind as a leftover.
#[derive(Debug)]
pub struct Staged {
    tree: PathBuf,
    findings: Vec<Finding>,
}

/// What the swap did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    pub destination: PathBuf,
    /// Where the tree that was there before is kept.
    pub kept: Option<PathBuf>,
}

/// How far a leftover of a restore got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftoverState {
    /// Another process is at work in it.
    InUse,
    /// Incomplete, safe to drop.
    Extracting,
    /// Complete but never swapped in; safe to drop.
    Complete,
    /// The swap was under way: it may hold what was live. Never dropped; see [`resume_swap`].
    Swapping,
}

/// What an interrupted restore left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub path: PathBuf,
    pub state: LeftoverState,
}

/// One difference between a tree and an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub path: TreePath,
    pub what: String,
}

/// Looks at the destination and says what [`execute`] would do; refuses what it would refuse.
pub async fn plan(
    record: &ArtifactRecord,
    destination: &Path,
    options: RestoreOptions,
) -> Result<RestorePlan, VolumeError> {
    let _ = (record, destination, options);
    Err(VolumeError::Internal("not built yet".into()))
}

/// Extracts the artifact into a staging directory on the destination's file system.
pub async fn execute(
    reader: Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    destination: &Path,
    options: RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Staged, VolumeError> {
    let _ = (reader, record, destination, options, progress);
    Err(VolumeError::Internal("not built yet".into()))
}

impl Staged {
    /// The staged tree's root.
    pub fn root(&self) -> &Path {
        &self.tree
    }

    /// The staged tree, for a component's `verify`.
    pub fn volume(&self) -> Result<Volume, VolumeError> {
        Volume::open(&self.tree)
    }

    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Gives `path` (empty: all) and everything below it an owner. Set-user-id bits of files are lost by it.
    pub async fn set_owner(&self, path: &str, uid: u32, gid: u32) -> Result<(), VolumeError> {
        let _ = (path, uid, gid);
        Err(VolumeError::Internal("not built yet".into()))
    }

    /// Puts the tree in place; what was there is kept under a dated name.
    pub async fn swap(self) -> Result<Swapped, VolumeError> {
        Err(VolumeError::Internal("not built yet".into()))
    }

    /// Removes the staged tree.
    pub async fn discard(self) -> Result<(), VolumeError> {
        Err(VolumeError::Internal("not built yet".into()))
    }
}

/// What interrupted restores to `destination` left behind.
pub async fn list_leftovers(destination: &Path) -> Result<Vec<Leftover>, VolumeError> {
    let _ = destination;
    Err(VolumeError::Internal("not built yet".into()))
}

/// Removes the leftovers that are safe to remove and returns them.
pub async fn drop_leftovers(destination: &Path) -> Result<Vec<Leftover>, VolumeError> {
    let _ = destination;
    Err(VolumeError::Internal("not built yet".into()))
}

/// Ends a swap that was interrupted.
pub async fn resume_swap(leftover: &Leftover) -> Result<Swapped, VolumeError> {
    let _ = leftover;
    Err(VolumeError::Internal("not built yet".into()))
}

/// Compares a tree with an artifact: entries, metadata and, with `contents`, every byte. At most 1000 differences are
/// returned.
pub async fn compare(
    reader: &dyn BackupReader,
    record: &ArtifactRecord,
    root: &Path,
    contents: bool,
) -> Result<Vec<Difference>, VolumeError> {
    let _ = (reader, record, root, contents);
    Err(VolumeError::Internal("not built yet".into()))
}

/// Extracts one path (a file, a link, or a directory with all below it) to `destination`, which must not exist.
pub async fn extract(
    reader: Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    path: &TreePath,
    destination: &Path,
    options: RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Vec<Finding>, VolumeError> {
    let _ = (reader, record, path, destination, options, progress);
    Err(VolumeError::Internal("not built yet".into()))
}
