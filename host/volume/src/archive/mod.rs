//! A tree becomes an artifact.
//!
//! Four kinds of threads hand batches of entries to each other, in the order of the listing:
//! - the walk ([`scan::walk`]) reads directories and cuts their names into numbered batches;
//! - the join ([`scan::join`]) puts beside each name what the earlier backup's listing says of it: one pass over both;
//! - workers ([`read`]) look at each entry, take unchanged files over, read the others, each into a lane of its own;
//! - the collector ([`collect`]) puts batches back into order and writes the listing.
//!
//! A window bounds the batches under way, so memory does not grow with the tree. Files with several names are left to
//! the collector, who alone knows which name comes first. The first failure stops all.

mod collect;
mod links;
mod read;
mod scan;

use crate::listing::{self, VolumeMeta, meta_of};
use crate::sys::{self, Root};
use crate::walk::{Met, Rules, Walker};
use crate::{Patterns, TreePath, Volume, VolumeError};
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, BackupWriter, Progress, Sensitivity};
use rustix::fd::AsFd;
use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

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

/// Knows secrets by their path: says what a file of that name holds.
pub type Watch = Arc<dyn Fn(&TreePath) -> Option<String> + Send + Sync>;

/// How and under what name.
pub struct Archive {
    pub name: ArtifactName,
    pub sensitivity: Sensitivity,
    /// Files it knows make the artifact secret, whatever was said of it before.
    pub watch: Option<Watch>,
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
    /// Files the watch knows, and what they hold.
    pub known: Noted,
    /// Files with several names that were forgotten before all of them had come; see `links`.
    pub forgotten_links: u64,
    /// Why nothing was taken over, where the earlier listing could not be used.
    pub previous_unusable: Option<String>,
}

/// Counts what [`execute`] would take, without reading files. Blocking.
pub fn plan(volume: &Volume, request: &ArchiveRequest) -> Result<Estimate, VolumeError> {
    let rules = request.rules()?;
    let mut estimate = Estimate {
        directories: 1,
        ..Estimate::default()
    };
    let root = volume.root();
    let mut walker = Walker::new(root.clone(), Vec::new(), true, rules);
    while let Some(met) = walker.next() {
        let (path, names) = match met {
            Met::Directory { path, names } => (path, names),
            Met::Failed { path, error } => {
                let path = TreePath::of_directory(path);
                match error {
                    Errno::XDEV => estimate.skipped.note(path, OTHER_FILE_SYSTEM),
                    e if sys::is_gone(e) => {}
                    e => estimate.unreadable.note(path, e.to_string()),
                }
                continue;
            }
        };
        let Ok(directory) = root.directory(&path) else { continue };
        for (name, _) in names {
            let entry = TreePath::of_entry(&path, &name);
            match sys::stat_at(directory.as_fd(), &name) {
                Ok(stat) => match stat.kind {
                    FileType::RegularFile if stat.mount_root => estimate.skipped.note(entry, OTHER_FILE_SYSTEM),
                    FileType::RegularFile => {
                        estimate.files += 1;
                        estimate.bytes += stat.size;
                    }
                    FileType::Directory => estimate.directories += 1,
                    FileType::Symlink => estimate.symlinks += 1,
                    other => estimate.skipped.note(entry, special(other)),
                },
                Err(e) if sys::is_gone(e) => {}
                Err(e) => estimate.unreadable.note(entry, e.to_string()),
            }
        }
    }
    Ok(estimate)
}

const OTHER_FILE_SYSTEM: &str = "another file system is mounted here; grant it as a volume of its own";

fn special(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "a socket",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of a kind unknown to us",
    }
}

impl Noted {
    fn note(&mut self, path: TreePath, why: impl Into<String>) {
        self.count += 1;
        if self.first.len() < Noted::KEPT {
            self.first.push((path, why.into()));
        }
    }
}

impl ArchiveRequest {
    fn rules(&self) -> Result<Rules, VolumeError> {
        Ok(Rules {
            take: Patterns::new(self.take.iter().map(|r| r.pattern.as_str()))?,
            leave_out: Patterns::new(self.leave_out.iter().map(|r| r.pattern.as_str()))?,
        })
    }
}

/// What all threads of one archive share.
struct Shared {
    root: Arc<Root>,
    writer: Arc<dyn BackupWriter>,
    progress: Arc<dyn Progress>,
    name: String,
    watch: Option<Watch>,
    runtime: Handle,
    /// Batches under way between the walk and the listing, so that one slow file cannot pile up the rest.
    window: Semaphore,
    stop: Stop,
}

/// Batches under way at once.
const WINDOW: usize = 128;

/// The first failure, which ends all threads. Also set when the caller gives up.
#[derive(Default)]
struct Stop {
    stopped: AtomicBool,
    why: Mutex<Option<VolumeError>>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.stopped.load(Ordering::Relaxed)
    }

    fn fail(&self, error: VolumeError) {
        let mut why = self.stop.why.lock().unwrap_or_else(PoisonError::into_inner);
        why.get_or_insert(error);
        drop(why);
        self.end();
    }

    fn end(&self) {
        self.stop.stopped.store(true, Ordering::Relaxed);
        self.window.close();
    }
}

/// Ends the threads when the caller drops the future.
struct EndWithCaller(Arc<Shared>);

impl Drop for EndWithCaller {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Archives the volume and records the artifact.
pub async fn execute(
    volume: Arc<Volume>,
    request: ArchiveRequest,
    archive: Archive,
    writer: Arc<dyn BackupWriter>,
    progress: Arc<dyn Progress>,
) -> Result<ArchiveReport, VolumeError> {
    let rules = request.rules()?;
    let jobs = archive.jobs.max(1);
    let name = archive.name.to_string();
    let expected = archive.previous.as_ref().and_then(|(_, record)| meta_of(record).ok());
    progress.started(&name, expected.map(|meta| meta.bytes));
    let shared = Arc::new(Shared {
        root: volume.root().clone(),
        writer: writer.clone(),
        progress: progress.clone(),
        name: name.clone(),
        watch: archive.watch.clone(),
        runtime: Handle::current(),
        window: Semaphore::new(WINDOW),
        stop: Stop::default(),
    });
    let _end = EndWithCaller(shared.clone());

    // walk → join with the earlier listing → workers → listing
    let (met_tx, met_rx) = mpsc::channel(4);
    let (batch_tx, batch_rx) = mpsc::channel(jobs);
    let (done_tx, done_rx) = mpsc::channel(WINDOW);
    let batch_rx = Arc::new(Mutex::new(batch_rx));
    let mut threads = Vec::new();
    threads.push(spawn(&shared, {
        let walker = Walker::new(shared.root.clone(), Vec::new(), true, rules);
        move |shared| scan::walk(shared, walker, met_tx)
    }));
    for _ in 0..jobs {
        let (batches, done) = (batch_rx.clone(), done_tx.clone());
        threads.push(spawn(&shared, move |shared| read::work(shared, &batches, &done)));
    }
    drop((batch_rx, done_tx));
    let listing = tokio::task::spawn_blocking({
        let shared = shared.clone();
        move || {
            let result = collect::collect(&shared, done_rx);
            if result.is_err() {
                // Wake the others; the error itself is returned.
                shared.end();
            }
            result
        }
    });

    let unusable = scan::join(&shared, archive.previous, archive.rescan, met_rx, batch_tx).await;
    for thread in threads {
        thread.await.map_err(died)?;
    }
    let collected = listing.await.map_err(died)?;
    if let Some(why) = shared.stop.why.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(why);
    }
    let (mut report, content) = collected?;
    report.previous_unusable = unusable;
    progress.finished(&name);

    if request.on_unreadable == OnUnreadable::Fail
        && let Some((path, why)) = report.unreadable.first.first()
    {
        return Err(VolumeError::Unreadable {
            count: report.unreadable.count,
            first: format!("{path} ({why})"),
        });
    }
    let meta = VolumeMeta {
        format: listing::FORMAT,
        entries: report.files + report.directories + report.symlinks,
        files: report.files,
        directories: report.directories,
        symlinks: report.symlinks,
        hardlinks: report.hardlinks,
        bytes: report.bytes,
        unstable: report.unstable.count,
        unreadable: report.unreadable.count,
        take: request.take,
        leave_out: request.leave_out,
    };
    let meta = serde_json::to_value(&meta).map_err(|e| VolumeError::Internal(e.to_string()))?;
    writer
        .record(ArtifactRecord {
            name: archive.name,
            kind: crate::KIND.into(),
            sensitivity: match report.known.count {
                0 => archive.sensitivity,
                _ => Sensitivity::Secret,
            },
            meta,
            content,
        })
        .await?;
    Ok(report)
}

fn spawn(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<(), VolumeError> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        // A thread that dies must not leave the others waiting for it.
        let guard = EndUnlessDisarmed(Some(&shared));
        match work(&shared) {
            Ok(()) => guard.disarm(),
            Err(error) => shared.fail(error),
        }
    })
}

struct EndUnlessDisarmed<'a>(Option<&'a Shared>);

impl EndUnlessDisarmed<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for EndUnlessDisarmed<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.end();
        }
    }
}

fn died(error: tokio::task::JoinError) -> VolumeError {
    VolumeError::Internal(format!("a worker of the archive died: {error}"))
}
