//! A tree becomes an artifact.

use crate::{TreePath, Volume, VolumeError};
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, BackupWriter, Progress, Sensitivity};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Paths, and why. See [`crate::Patterns`] for what a pattern means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRule {
    pub pattern: String,
    pub why: String,
}

/// What to do about entries that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnUnreadable {
    /// Look at the whole tree, then fail, naming them.
    #[default]
    Fail,
    /// Go on without them; the report names them.
    Report,
}

/// Which entries to take.
#[derive(Clone, Debug, Default)]
pub struct ArchiveRequest {
    /// What to take; empty takes all. Directories on the way to a match are listed too.
    pub take: Vec<PathRule>,
    /// What of that to leave out.
    pub leave_out: Vec<PathRule>,
    pub on_unreadable: OnUnreadable,
}

/// How and under what name.
pub struct Archive {
    pub name: ArtifactName,
    pub sensitivity: Sensitivity,
    /// The same artifact in an earlier backup: unchanged files are taken over from it without reading them.
    pub previous: Option<(Arc<dyn BackupReader>, ArtifactRecord)>,
    /// Read every file, whatever the earlier listing says.
    pub rescan: bool,
    /// Files read at once, at least 1.
    pub jobs: usize,
}

/// A count and the first of what was counted, with the reason for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    pub count: u64,
    /// At most [`Noted::KEPT`].
    pub first: Vec<(TreePath, String)>,
}

impl Noted {
    pub const KEPT: usize = 1000;
}

/// What a walk without reading counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub bytes: u64,
    /// Sockets, FIFOs and devices, which are not archived, and other file systems mounted below.
    pub skipped: Noted,
    pub unreadable: Noted,
}

/// What was archived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveReport {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hardlinks: u64,
    /// Length of all files in sum, each hard-linked file once.
    pub bytes: u64,
    /// Files taken over from the earlier backup without reading, and their bytes.
    pub taken_over_files: u64,
    pub taken_over_bytes: u64,
    /// Bytes really read.
    pub read_bytes: u64,
    /// Changed while they were read, twice.
    pub unstable: Noted,
    /// There in the directory, gone when we came to them.
    pub vanished: Noted,
    /// Sockets, FIFOs, devices, other file systems mounted below, leftovers of restores.
    pub skipped: Noted,
    /// Could not be read. Empty unless [`OnUnreadable::Report`].
    pub unreadable: Noted,
    /// Why nothing was taken over, where the earlier listing could not be used.
    pub previous_unusable: Option<String>,
}

/// Counts what [`execute`] would take, without reading files. Blocking.
pub fn plan(volume: &Volume, request: &ArchiveRequest) -> Result<Estimate, VolumeError> {
    let _ = (volume, request);
    Err(VolumeError::Internal("not built yet".into()))
}

/// Archives the volume and records the artifact.
pub async fn execute(
    volume: Arc<Volume>,
    request: ArchiveRequest,
    archive: Archive,
    writer: Arc<dyn BackupWriter>,
    progress: Arc<dyn Progress>,
) -> Result<ArchiveReport, VolumeError> {
    let _ = (volume, request, archive, writer, progress);
    Err(VolumeError::Internal("not built yet".into()))
}
