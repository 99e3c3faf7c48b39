//! An artifact becomes a tree again: staged, verified by others, then swapped in.
//!
//! [`execute`] extracts into a directory of its own on the destination's file system and touches nothing else; a restore
//! that is killed leaves that directory, which [`list_leftovers`] finds. [`Staged::swap`] is the only step that touches
//! the live tree, and it keeps it.

mod compare;
mod extract;
mod over;
mod probe;
mod staging;
#[cfg(any(test, feature = "fuzzing"))]
mod staging_fuzz;
mod swap;
mod target;

use self::extract::Extraction;
use self::over::TakenOver;
use self::staging::{Staging, Step};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::staging_fuzz::run as fuzz_staging;
use self::target::Target;
use crate::listing::meta_of;
use crate::sys::Root;
use crate::{TreePath, Volume, VolumeError};
use essrun_artifact::{ArtifactRecord, BackupReader, Progress};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Names of staging directories begin so.
pub(crate) const STAGING_PREFIX: &str = ".essrun-restore-";
/// Names under which a mount point's earlier children are kept begin so.
pub(crate) const KEPT_PREFIX: &str = ".essrun-before-";

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
    /// Take over what a stopped restore to the same place staged, as far as it is as the backup has it.
    pub resume: bool,
    /// When it fails, leave what was staged, so that it can be gone on with.
    pub keep_unfinished: bool,
    /// What the restore is of, as a digest: a resume must be of the same.
    pub origin: [u8; 32],
    /// Whether the plan found the destination to be a mount point: it must still be so, or not be.
    pub planned_mount_point: Option<bool>,
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
    /// Free bytes on the destination's file system. Whether they are enough is for the caller to say, who knows what else
    /// goes there.
    pub free_bytes: u64,
    pub findings: Vec<Finding>,
}

/// A restored tree that is not yet in place. Dropped without a swap, it stays behind as a leftover.
#[derive(Debug)]
pub struct Staged {
    tree: PathBuf,
    staging: Staging,
    findings: Vec<Finding>,
    replace: bool,
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
    let meta = meta_of(record)?;
    let destination = destination.to_owned();
    blocking(move || {
        let target = fit(&destination, options)?;
        let staging_in = target.staging_in().to_owned();
        let space = rustix::fs::statvfs(&staging_in)
            .map_err(|e| VolumeError::io("look at the file system of", staging_in.as_os_str().as_bytes(), e))?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        let mut findings = Vec::new();
        if probe::looks_case_insensitive(&staging_in)? {
            findings.push(case_insensitive(&target.path));
        }
        if options.owners == Owners::Numeric && !rustix::process::geteuid().is_root() {
            findings.push(Finding {
                check: "not-root",
                fatal: false,
                message: "owners other than your own cannot be set, since essrun does not run as root".into(),
                remedy: "restore as root, or have the owners set afterwards".into(),
            });
        }
        Ok(RestorePlan {
            destination: target.path.clone(),
            staging_in,
            mount_point: target.mount_point,
            replaces: !target.empty,
            entries: meta.entries,
            bytes: meta.bytes,
            free_bytes,
            findings,
        })
    })
    .await
}

/// Looks at a destination and refuses one that cannot be restored to.
fn fit(destination: &Path, options: RestoreOptions) -> Result<Target, VolumeError> {
    let target = Target::look(destination)?;
    if let Some(left) = staging::leftovers(&target)?
        .into_iter()
        .find(|left| left.state == LeftoverState::Swapping)
    {
        return Err(target::refuse(
            &target.path,
            format!("an earlier swap was interrupted, see {}", left.path.display()),
            "resume it first: it may hold what was live",
        ));
    }
    if !target.empty && !options.replace {
        return Err(swap::not_empty(&target));
    }
    if options
        .planned_mount_point
        .is_some_and(|planned| planned != target.mount_point)
    {
        return Err(swap::mount_changed(&target.path));
    }
    // What the swap would find, hours later.
    swap::refuse_nested_mounts(&target)?;
    probe::refuse_unwritable(&target)?;
    Ok(target)
}

impl Finding {
    fn refused(&self, destination: &Path) -> VolumeError {
        target::refuse(destination, self.message.clone(), self.remedy.clone())
    }
}

fn case_insensitive(destination: &Path) -> Finding {
    Finding {
        check: "case-insensitive-destination",
        fatal: true,
        message: format!(
            "{} takes names that differ in case for one; Synapse's media names do differ so",
            destination.display()
        ),
        remedy: "restore to a file system that tells upper case from lower".into(),
    }
}

/// Extracts the artifact into a staging directory on the destination's file system.
pub async fn execute(
    reader: Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    destination: &Path,
    options: RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Staged, VolumeError> {
    let destination = destination.to_owned();
    let (mut staging, root, over) = blocking(move || {
        let target = fit(&destination, options)?;
        let over = match options.resume {
            true => TakenOver::open(&target, options.origin)?,
            false => TakenOver::default(),
        };
        let staging = Staging::create(&target, options.origin)?;
        if extract::is_case_insensitive(&staging.path)? {
            staging.remove()?;
            return Err(case_insensitive(&target.path).refused(&target.path));
        }
        let root = Root::open(&staging.tree())?;
        Ok((staging, Arc::new(root), Arc::new(over)))
    })
    .await?;
    let extracted = extract::extract(Extraction {
        reader,
        record: record.clone(),
        root,
        owners: options.owners,
        jobs: options.jobs,
        progress,
        only: None,
        over: over.clone(),
    })
    .await;
    let findings = match extracted {
        Ok(extracted) => extracted.findings,
        Err(error) if options.keep_unfinished => {
            tracing::warn!("what was staged stays in {}", staging.path.display());
            return Err(error);
        }
        Err(error) => {
            // A failed extraction is of no use to anybody.
            if let Err(e) = blocking(move || staging.remove()).await {
                tracing::warn!(error = %e, "a failed restore's staging directory stays behind");
            }
            return Err(error);
        }
    };
    let staging = blocking(move || {
        staging.enter(Step::Complete)?;
        // All that was good of these is in the new tree.
        over.remove()?;
        Ok(staging)
    })
    .await?;
    Ok(Staged {
        tree: staging.tree(),
        staging,
        findings,
        replace: options.replace,
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| VolumeError::Internal(format!("a worker of the restore died: {e}")))?
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

    /// Gives `path` (empty: all) and everything below it an owner. Set-user-id bits of files are lost by it. Somebody who
    /// is not root may give nothing away: that is a finding then, as it is of the owners of the backup.
    pub async fn set_owner(&mut self, path: &str, uid: u32, gid: u32) -> Result<(), VolumeError> {
        let at = TreePath::new(path)?;
        let tree = self.tree.clone();
        match blocking(move || extract::set_owner(&Root::open(&tree)?, &at, uid, gid)).await {
            Err(VolumeError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() =>
            {
                let what = if path.is_empty() { "all of it" } else { path };
                self.findings.push(Finding {
                    check: "owners-not-set",
                    fatal: false,
                    message: format!("{what} is to belong to {uid}:{gid}, which only root can set"),
                    remedy: format!("restore as root, or run `chown -R {uid}:{gid}` on it before its system starts"),
                });
                Ok(())
            }
            done => done,
        }
    }

    /// Refuses what [`Staged::swap`] would refuse, as things are now. Changes nothing.
    pub async fn swap_ready(&self) -> Result<(), VolumeError> {
        let (destination, mount_point) = (self.staging.state.destination(), self.staging.state.mount_point);
        let replace = self.replace;
        blocking(move || swap::ready(&destination, mount_point, replace).map(|_| ())).await
    }

    /// Puts the tree in place; what was there is kept under a dated name.
    pub async fn swap(self) -> Result<Swapped, VolumeError> {
        blocking(move || swap::swap(self.staging, self.replace)).await
    }

    /// Removes the staged tree.
    pub async fn discard(self) -> Result<(), VolumeError> {
        blocking(move || self.staging.remove()).await
    }
}

/// Removes a tree that was restored, also where its directories may not be written to by their owner. Links are not
/// followed.
pub fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    staging::remove_tree(path)
}

/// What interrupted restores to `destination` left behind.
pub async fn list_leftovers(destination: &Path) -> Result<Vec<Leftover>, VolumeError> {
    let destination = destination.to_owned();
    blocking(move || staging::leftovers(&Target::look(&destination)?)).await
}

/// Removes the leftovers that are safe to remove and returns them.
pub async fn drop_leftovers(destination: &Path) -> Result<Vec<Leftover>, VolumeError> {
    let destination = destination.to_owned();
    blocking(move || {
        let mut dropped = Vec::new();
        for leftover in staging::leftovers(&Target::look(&destination)?)? {
            let safe = matches!(leftover.state, LeftoverState::Extracting | LeftoverState::Complete);
            if safe && staging::drop_one(&leftover)? {
                dropped.push(leftover);
            }
        }
        Ok(dropped)
    })
    .await
}

/// Ends a swap that was interrupted: the restored tree goes in place, what was live is kept.
pub async fn resume_swap(leftover: &Leftover) -> Result<Swapped, VolumeError> {
    let path = leftover.path.clone();
    blocking(move || swap::resume(&path)).await
}

/// Compares a tree with an artifact: entries, metadata and, with `contents`, every byte. At most 1000 differences are
/// returned.
pub async fn compare(
    reader: Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    root: &Path,
    contents: bool,
) -> Result<Vec<Difference>, VolumeError> {
    let (record, root) = (record.clone(), root.to_owned());
    let runtime = Handle::current();
    let what = compare::What {
        metadata: true,
        contents,
    };
    blocking(move || compare::compare(&runtime, &*reader, &record, Root::open(&root)?, what)).await
}

/// Whether the artifact is in service already, as a swap leaves it: the destination holds every file as the backup has
/// it, and no other. Owners and times may have been changed since by what uses it.
pub async fn in_place(
    reader: Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    destination: &Path,
) -> Result<bool, VolumeError> {
    let (record, destination) = (record.clone(), destination.to_owned());
    let runtime = Handle::current();
    let what = compare::What {
        metadata: false,
        contents: true,
    };
    blocking(move || {
        let target = Target::look(&destination)?;
        if !target.there || target.empty {
            return Ok(false);
        }
        let root = Root::open(&target.path)?;
        Ok(compare::compare(&runtime, &*reader, &record, root, what)?.is_empty())
    })
    .await
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
    let destination = destination.to_owned();
    let (staging, root, target) = blocking(move || {
        let target = Target::look(&destination)?;
        if target.there {
            return Err(target::refuse(
                &target.path,
                "is there already",
                "name a path that is not",
            ));
        }
        let staging = Staging::create(&target, options.origin)?;
        let root = Arc::new(Root::open(&staging.tree())?);
        Ok((staging, root, target))
    })
    .await?;
    let extracted = extract::extract(Extraction {
        reader,
        record: record.clone(),
        root,
        owners: options.owners,
        jobs: options.jobs,
        progress,
        only: Some(path.clone()),
        over: Arc::default(),
    })
    .await;
    let single = path.split().map(|(_, name)| name.to_vec());
    blocking(move || {
        let moved = extracted.and_then(|extracted| {
            let single = single.as_deref().filter(|_| extracted.single);
            swap::place_extracted(&staging.tree(), single, &target)?;
            Ok(extracted.findings)
        });
        staging.remove()?;
        moved
    })
    .await
}
