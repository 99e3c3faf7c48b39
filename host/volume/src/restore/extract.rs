//! Extraction: a listing and its contents become a tree below a directory of ours.
//!
//! The listing may be hostile. Its paths were checked by the decoder; here every name is created relative to its
//! parent's descriptor, opened without following links from the staged root, and only as a new entry. So a "directory"
//! that is a link, a path listed twice or a link planted before the file it should divert are failures, never a way out.
//!
//! Three passes over the listing, since it is in no memory: directories, files and links; then further names of files;
//! then owners, modes and times of directories, which the first two would have changed.

use super::over::TakenOver;
use super::target::failed;
use super::{Finding, Owners};
use crate::listing::Entries;
use crate::path::{TreePath, split_bytes};
use crate::sys::{self, Root};
use crate::{Kind, ListedEntry, Stamp, VolumeError};
use essrun_artifact::{ArtifactRecord, BackupReader, Progress};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// What to extract, and how.
pub(super) struct Extraction {
    pub reader: Arc<dyn BackupReader>,
    pub record: ArtifactRecord,
    pub root: Arc<Root>,
    pub owners: Owners,
    pub jobs: usize,
    pub progress: Arc<dyn Progress>,
    /// Only this entry and what is below it; it becomes the root.
    pub only: Option<TreePath>,
    /// What stopped restores staged.
    pub over: Arc<TakenOver>,
}

/// Entries handed to a worker at once.
const BATCH: usize = 64;

/// What an extraction came to.
pub(super) struct Extracted {
    pub findings: Vec<Finding>,
    /// The part extracted is a file or link, and stands under its own name in the tree.
    pub single: bool,
}

/// What could not be put back as it was, counted, with the first few.
#[derive(Default)]
struct Shortfalls {
    owners: Shortfall,
    privileges: Shortfall,
    attributes: Shortfall,
    links: Shortfall,
    unstable: Shortfall,
    entries: u64,
    single: bool,
}

#[derive(Default)]
struct Shortfall {
    count: u64,
    first: Vec<String>,
}

impl Shortfall {
    fn note(&mut self, path: &[u8], why: impl std::fmt::Display) {
        self.count += 1;
        if self.first.len() < 5 {
            self.first.push(format!("{}: {why}", crate::path::show(path)));
        }
    }

    fn finding(&self, check: &'static str, what: &str, remedy: &str) -> Option<Finding> {
        (self.count > 0).then(|| Finding {
            check,
            fatal: false,
            message: format!("{} {what}, first: {}", self.count, self.first.join("; ")),
            remedy: remedy.into(),
        })
    }
}

struct Shared {
    what: Extraction,
    runtime: Handle,
    stopped: AtomicBool,
    why: Mutex<Option<VolumeError>>,
    shortfalls: Mutex<Shortfalls>,
    name: String,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn fail(&self, error: VolumeError) {
        self.why
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn shortfall(&self, note: impl FnOnce(&mut Shortfalls)) {
        note(&mut self.shortfalls.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

struct EndWithCaller(Arc<Shared>);

impl Drop for EndWithCaller {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

/// Extracts below `what.root`, which must be an empty directory nobody else can write to.
pub(super) async fn extract(what: Extraction) -> Result<Extracted, VolumeError> {
    let meta = crate::listing::meta_of(&what.record)?;
    let name = what.record.name.to_string();
    what.progress.started(&name, what.only.is_none().then_some(meta.bytes));
    let jobs = what.jobs.max(1);
    let shared = Arc::new(Shared {
        what,
        runtime: Handle::current(),
        stopped: AtomicBool::new(false),
        why: Mutex::new(None),
        shortfalls: Mutex::default(),
        name,
    });
    let _end = EndWithCaller(shared.clone());

    let (batches_tx, batches_rx) = mpsc::channel::<Vec<Placed>>(jobs * 2);
    let batches_rx = Arc::new(Mutex::new(batches_rx));
    let mut threads = Vec::new();
    for _ in 0..jobs {
        let batches = batches_rx.clone();
        threads.push(spawn(&shared, move |shared| work(shared, &batches)));
    }
    drop(batches_rx);
    threads.push(spawn(&shared, move |shared| first_pass(shared, batches_tx)));
    for thread in threads {
        thread.await.map_err(died)?;
    }
    check(&shared)?;
    spawn(&shared, later_passes).await.map_err(died)?;
    check(&shared)?;
    shared.what.progress.finished(&shared.name);
    if let Some(said) = shared.what.over.said() {
        shared.what.progress.kept(&shared.name, &said);
    }

    let found = shared.shortfalls.lock().unwrap_or_else(PoisonError::into_inner);
    if found.entries == 0
        && let Some(only) = &shared.what.only
    {
        return Err(VolumeError::Denied { path: only.to_string() });
    }
    let findings = [
        found.owners.finding(
            "owners-not-set",
            "entries could not be given their owner",
            "restore as root, or have the owner set afterwards",
        ),
        found.privileges.finding(
            "privileges-dropped",
            "set-user-id bits or capabilities were left off, since the owner is another",
            "restore as root with numeric owners if these programs are needed",
        ),
        found.attributes.finding(
            "attributes-not-set",
            "extended attributes could not be set",
            "restore as root, to a file system that keeps them",
        ),
        found.links.finding(
            "hard-links-copied",
            "hard links became files of their own",
            "restore the whole volume, to a file system that has hard links, if space matters",
        ),
        found.unstable.finding(
            "unstable-when-backed-up",
            "files changed while they were backed up, so their content is a mixture",
            "check these files, or take them from another backup",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    Ok(Extracted {
        findings,
        single: found.single,
    })
}

fn check(shared: &Shared) -> Result<(), VolumeError> {
    match shared.why.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(why) => Err(why),
        None if shared.stopped() => Err(VolumeError::Internal(
            "the extraction was stopped before its end".into(),
        )),
        None => Ok(()),
    }
}

fn spawn(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<(), VolumeError> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = work(&shared) {
            shared.fail(error);
        }
    })
}

fn died(error: tokio::task::JoinError) -> VolumeError {
    VolumeError::Internal(format!("a worker of the extraction died: {error}"))
}

/// An entry and where it goes below the root.
struct Placed {
    at: Vec<u8>,
    entry: ListedEntry,
}

/// Where an entry goes: its path, or, when only a part is extracted, its path below that part. A single file or link
/// goes under its own name.
fn place(only: Option<&TreePath>, entry: &ListedEntry) -> Option<Vec<u8>> {
    let Some(only) = only else {
        return Some(entry.path.as_bytes().to_vec());
    };
    if !entry.path.is_within(only) {
        return None;
    }
    if entry.path == *only && entry.kind != Kind::Directory {
        return entry.path.split().map(|(_, name)| name.to_vec());
    }
    let below = entry.path.as_bytes().get(only.as_bytes().len()..)?;
    Some(below.strip_prefix(b"/").unwrap_or(below).to_vec())
}

fn each(shared: &Shared, mut take: impl FnMut(Placed) -> Result<(), VolumeError>) -> Result<(), VolumeError> {
    let what = &shared.what;
    let block = |entries: &mut Entries| shared.runtime.block_on(entries.next());
    let mut entries = shared.runtime.block_on(Entries::open(&*what.reader, &what.record))?;
    while let Some(entry) = block(&mut entries)? {
        if shared.stopped() {
            return Ok(());
        }
        let path = entry.path.as_bytes();
        if !path.contains(&b'/') && crate::walk::is_own(path) {
            return Err(VolumeError::Listing {
                artifact: shared.name.clone(),
                entry: 0,
                why: format!("{} is a name only a restore makes", entry.path),
            });
        }
        if let Some(at) = place(what.only.as_ref(), &entry) {
            take(Placed { at, entry })?;
        }
    }
    Ok(())
}

/// Directories are made here, in order, so that workers find them; the rest goes to the workers.
fn first_pass(shared: &Shared, out: mpsc::Sender<Vec<Placed>>) -> Result<(), VolumeError> {
    let mut parents = Parents::new(&shared.what.root);
    let mut batch = Vec::new();
    let mut entries = 0;
    let mut single = false;
    each(shared, |placed| {
        entries += 1;
        single |= shared.what.only.as_ref() == Some(&placed.entry.path) && placed.entry.kind != Kind::Directory;
        match &placed.entry.kind {
            Kind::Directory if placed.at.is_empty() => {}
            Kind::Directory => {
                let (parent, name) = split_bytes(&placed.at);
                let made = parents
                    .open(parent)
                    .and_then(|fd| rustix::fs::mkdirat(fd, name, Mode::RWXU));
                made.map_err(|e| VolumeError::io("create the directory", &placed.at, e))?;
                shared.what.progress.advanced(&shared.name, 0, 1);
            }
            Kind::File { hardlink: Some(_), .. } if shared.what.only.is_none() => {}
            _ => batch.push(placed),
        }
        if batch.len() >= BATCH {
            // The workers end early only when all is stopped.
            let _ = out.blocking_send(std::mem::take(&mut batch));
        }
        Ok(())
    })?;
    let _ = out.blocking_send(batch);
    shared.shortfall(|s| {
        s.entries = entries;
        s.single = single;
    });
    Ok(())
}

fn work(shared: &Shared, batches: &Mutex<mpsc::Receiver<Vec<Placed>>>) -> Result<(), VolumeError> {
    let mut parents = Parents::new(&shared.what.root);
    loop {
        let batch = batches.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(batch) = batch else { return Ok(()) };
        for placed in batch {
            if shared.stopped() {
                return Ok(());
            }
            let (parent, name) = split_bytes(&placed.at);
            let parent = parents
                .open(parent)
                .map_err(|e| VolumeError::io("open the directory of", &placed.at, e))?;
            match &placed.entry.kind {
                Kind::Directory => {}
                Kind::Symlink { target } => symlink(shared, parent, name, target, &placed)?,
                Kind::File { hardlink, .. } => {
                    if let Some(first) = hardlink {
                        let why = format!("the same file as {first}, extracted by itself");
                        shared.shortfall(|s| s.links.note(&placed.at, why));
                    }
                    file(shared, parent, name, &placed)?;
                }
            }
            shared.what.progress.advanced(&shared.name, 0, 1);
        }
    }
}

/// Opens parents, remembering the last: neighbours in a listing share theirs.
struct Parents<'a> {
    root: &'a Root,
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl<'a> Parents<'a> {
    fn new(root: &'a Root) -> Self {
        Parents { root, last: None }
    }

    fn open(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if path.is_empty() {
            return Ok(self.root.fd());
        }
        let known = self.last.take().filter(|(last, _)| last == path);
        let found = match known {
            Some(found) => found,
            None => (path.to_vec(), self.root.directory(path)?),
        };
        Ok(self.last.insert(found).1.as_fd())
    }
}

fn symlink(
    shared: &Shared,
    parent: BorrowedFd<'_>,
    name: &[u8],
    target: &[u8],
    placed: &Placed,
) -> Result<(), VolumeError> {
    let entry = &placed.entry;
    rustix::fs::symlinkat(target, parent, name).map_err(|e| VolumeError::io("create the link", &placed.at, e))?;
    if shared.what.owners == Owners::Numeric {
        let set = owner_of(entry)
            .and_then(|(uid, gid)| rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW));
        if let Err(e) = set {
            shared.shortfall(|s| s.owners.note(&placed.at, e));
        }
    }
    rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| VolumeError::io("set the time of", &placed.at, e))
}

fn file(shared: &Shared, parent: BorrowedFd<'_>, name: &[u8], placed: &Placed) -> Result<(), VolumeError> {
    let Kind::File {
        size,
        content,
        extents,
        unstable,
        ..
    } = &placed.entry.kind
    else {
        return Ok(());
    };
    if let Some(fd) = shared
        .what
        .over
        .file(&shared.runtime, &*shared.what.reader, &placed.entry, parent, name)?
    {
        if *unstable {
            shared.shortfall(|s| s.unstable.note(&placed.at, "changed while it was read"));
        }
        return dress(shared, fd.as_fd(), &placed.at, &placed.entry);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| VolumeError::io("create", &placed.at, e))?;
    let io = |action| move |e: Errno| VolumeError::io(action, &placed.at, e);
    let whole = [(0, *size)];
    let mut ranges = extents.as_deref().unwrap_or(&whole).iter().copied();
    let (mut at, mut left) = ranges.next().unwrap_or((0, 0));
    let mut written = 0u64;
    if content.bytes > 0 {
        let mut reader = shared.runtime.block_on(shared.what.reader.open(content))?;
        while let Some(bytes) = shared.runtime.block_on(reader.next())? {
            if shared.stopped() {
                return Ok(());
            }
            let mut bytes = bytes.as_ref();
            shared.what.progress.advanced(&shared.name, bytes.len() as u64, 0);
            written += bytes.len() as u64;
            while !bytes.is_empty() {
                if left == 0 {
                    // More than the listing promised: the count below tells.
                    let Some(next) = ranges.next() else { break };
                    (at, left) = next;
                    continue;
                }
                let fits = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let (now, later) = bytes.split_at(fits);
                write_all(&fd, now, at).map_err(io("write"))?;
                at += now.len() as u64;
                left -= now.len() as u64;
                bytes = later;
            }
        }
    }
    if written != content.bytes {
        return Err(VolumeError::Listing {
            artifact: shared.name.clone(),
            entry: 0,
            why: format!(
                "{}: {} bytes expected, {written} came",
                placed.entry.path, content.bytes
            ),
        });
    }
    if extents.is_some() {
        // The hole at the end.
        rustix::fs::ftruncate(&fd, *size).map_err(io("lengthen"))?;
    }
    if *unstable {
        shared.shortfall(|s| s.unstable.note(&placed.at, "changed while it was read"));
    }
    dress(shared, fd.as_fd(), &placed.at, &placed.entry)
}

fn write_all(fd: impl AsFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&fd, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                at += n as u64;
                bytes = bytes.get(n..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn owner_of(entry: &ListedEntry) -> Result<(Uid, Gid), Errno> {
    // The all-ones number means "leave as it is" to the kernel and is nobody's.
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    Ok((Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
}

fn times(mtime: Stamp) -> Timestamps {
    Timestamps {
        // The access time is not kept.
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    }
}

/// Owner, attributes, mode, time, in this order: each undoes something of those after it.
fn dress(shared: &Shared, fd: BorrowedFd<'_>, at: &[u8], entry: &ListedEntry) -> Result<(), VolumeError> {
    let mut owned = false;
    if shared.what.owners == Owners::Numeric {
        match owner_of(entry).and_then(|(uid, gid)| rustix::fs::fchown(fd, Some(uid), Some(gid))) {
            Ok(()) => owned = true,
            Err(e) => shared.shortfall(|s| s.owners.note(at, e)),
        }
    }
    for (name, value) in &entry.xattrs {
        // A name of another class would be written by no backup of ours.
        let privilege = name.as_slice() == b"security.capability";
        if privilege && !owned {
            shared.shortfall(|s| s.privileges.note(at, "file capabilities"));
            continue;
        }
        let set = if sys::is_kept(name) {
            rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())
        } else {
            Err(Errno::NOTSUP)
        };
        if let Err(e) = set {
            shared.shortfall(|s| s.attributes.note(at, format!("{}: {e}", crate::path::show(name))));
        }
    }
    let mut mode = entry.mode;
    if !owned && entry.kind != Kind::Directory && mode & 0o6000 != 0 {
        // Such a program would lend somebody else's rights.
        mode &= !0o6000;
        shared.shortfall(|s| s.privileges.note(at, "set-user-id or set-group-id"));
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(|e| VolumeError::io("set the mode of", at, e))?;
    rustix::fs::futimens(fd, &times(entry.mtime)).map_err(|e| VolumeError::io("set the time of", at, e))
}

fn later_passes(shared: &Shared) -> Result<(), VolumeError> {
    if shared.what.only.is_none() {
        let mut parents = Parents::new(&shared.what.root);
        each(shared, |placed| match &placed.entry.kind {
            Kind::File {
                hardlink: Some(first), ..
            } => hard_link(shared, &mut parents, first, &placed),
            _ => Ok(()),
        })?;
    }
    // Not root: a directory that must not be entered by its owner could not be dressed below any more.
    let root = rustix::process::geteuid().is_root();
    let mut closed = Vec::new();
    each(shared, |placed| {
        if placed.entry.kind != Kind::Directory {
            return Ok(());
        }
        if !root && placed.entry.mode & 0o100 == 0 {
            closed.push(placed);
            return Ok(());
        }
        directory(shared, &placed)
    })?;
    closed.iter().rev().try_for_each(|placed| directory(shared, placed))?;
    if shared.stopped() {
        return Ok(());
    }
    // One flush of the file system instead of one per file; since Linux 5.8 it also reports errors of writing back.
    rustix::fs::syncfs(shared.what.root.fd()).map_err(|e| VolumeError::io("sync", b"", e))
}

fn directory(shared: &Shared, placed: &Placed) -> Result<(), VolumeError> {
    let fd = shared
        .what
        .root
        .directory(&placed.at)
        .map_err(|e| VolumeError::io("open the directory", &placed.at, e))?;
    dress(shared, fd.as_fd(), &placed.at, &placed.entry)
}

fn hard_link(shared: &Shared, parents: &mut Parents<'_>, first: &TreePath, placed: &Placed) -> Result<(), VolumeError> {
    let Some((first_parent, first_name)) = first.split() else {
        return Ok(());
    };
    let io = |action, e| VolumeError::io(action, &placed.at, e);
    let from = shared
        .what
        .root
        .directory(first_parent)
        .map_err(|e| io("open the first name of", e))?;
    let stat = sys::stat_at(from.as_fd(), first_name).map_err(|e| io("look at the first name of", e))?;
    if stat.kind != FileType::RegularFile {
        return Err(VolumeError::Listing {
            artifact: shared.name.clone(),
            entry: 0,
            why: format!("{} is a hard link to {first}, which is no file", placed.entry.path),
        });
    }
    let (parent, name) = split_bytes(&placed.at);
    let parent = parents.open(parent).map_err(|e| io("open the directory of", e))?;
    match rustix::fs::linkat(&from, first_name, parent, name, AtFlags::empty()) {
        Ok(()) => {}
        // No hard links here, or too many: the listing names the content again for this.
        Err(e @ (Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP | Errno::NOSYS)) => {
            shared.shortfall(|s| s.links.note(&placed.at, e));
            file(shared, parent, name, placed)?;
        }
        Err(e) => return Err(io("link", e)),
    }
    shared.what.progress.advanced(&shared.name, 0, 1);
    Ok(())
}

/// Gives a mount point the owner, attributes, mode and times of the staged root.
pub(super) fn copy_root(from: &Path, to: &Path) -> Result<(), VolumeError> {
    let (source, goal) = (Root::open(from)?, Root::open(to)?);
    let io = |action| move |e: Errno| VolumeError::io(action, to.as_os_str().as_bytes(), e);
    let stat = sys::stat_fd(source.fd()).map_err(io("look at"))?;
    let now = sys::stat_fd(goal.fd()).map_err(io("look at"))?;
    if (stat.uid, stat.gid) != (now.uid, now.gid) {
        let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
        rustix::fs::fchown(goal.fd(), Some(uid), Some(gid)).map_err(io("set the owner of"))?;
    }
    for (name, value) in sys::xattrs(source.fd()).map_err(io("read the attributes for"))? {
        rustix::fs::fsetxattr(goal.fd(), name, &value, XattrFlags::empty()).map_err(io("set the attributes of"))?;
    }
    if stat.mode != now.mode {
        rustix::fs::fchmod(goal.fd(), Mode::from_raw_mode(stat.mode)).map_err(io("set the mode of"))?;
    }
    rustix::fs::futimens(goal.fd(), &times(stat.mtime)).map_err(io("set the time of"))
}

/// Gives an entry and all below it an owner.
pub(super) fn set_owner(root: &Root, path: &TreePath, uid: u32, gid: u32) -> Result<(), VolumeError> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(VolumeError::invalid("owner", "4294967295 is nobody's number"));
    }
    let own = |fd: BorrowedFd<'_>, name: &[u8], path: &[u8]| {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| VolumeError::io("set the owner of", path, e))
    };
    let kind = match path.split() {
        None => {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(root.fd(), uid, gid).map_err(|e| VolumeError::io("set the owner of", b"", e))?;
            FileType::Directory
        }
        Some((parent, name)) => {
            let denied = |e| match e {
                e if sys::is_denied(e) => VolumeError::Denied { path: path.to_string() },
                e => VolumeError::io("look at", path.as_bytes(), e),
            };
            let parent = root.directory(parent).map_err(denied)?;
            let stat = sys::stat_at(parent.as_fd(), name).map_err(denied)?;
            own(parent.as_fd(), name, path.as_bytes())?;
            stat.kind
        }
    };
    if kind != FileType::Directory {
        return Ok(());
    }
    let mut pending = vec![path.as_bytes().to_vec()];
    while let Some(directory) = pending.pop() {
        let fd = root
            .directory(&directory)
            .map_err(|e| VolumeError::io("open the directory", &directory, e))?;
        let names = sys::names(fd.as_fd()).map_err(|e| VolumeError::io("read the directory", &directory, e))?;
        for (name, _) in names {
            let path = crate::path::join_bytes(&directory, &name);
            own(fd.as_fd(), &name, &path)?;
            let stat = sys::stat_at(fd.as_fd(), &name).map_err(|e| VolumeError::io("look at", &path, e))?;
            if stat.kind == FileType::Directory {
                pending.push(path);
            }
        }
    }
    Ok(())
}

/// Whether names differing only in case are one on the file system of `directory`. Leaves nothing behind.
pub(super) fn is_case_insensitive(directory: &Path) -> Result<bool, VolumeError> {
    let (lower, upper) = (directory.join("case-probe"), directory.join("CASE-PROBE"));
    std::fs::write(&lower, b"").map_err(failed("write", &lower))?;
    let same = upper.symlink_metadata().is_ok();
    std::fs::remove_file(&lower).map_err(failed("remove", &lower))?;
    Ok(same)
}
