//! A tree becomes an artifact and a tree again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Mounted, OPTIONS, as_nobody, back_up, is_root, listing, name, rules, run, runtime, stage};
use essrun_artifact::memory::MemoryBackup;
use essrun_artifact::{ArtifactRecord, BackupReader, BackupWriter, Content, KeepError, Lane, LaneSpec, NoProgress};
use essrun_volume::{
    Archive, ArchiveRequest, EntryKind, Kind, OnUnreadable, Owners, RestoreOptions, TreePath, Volume, VolumeError,
    archive, listing::Entries, restore,
};
use std::ffi::OsStr;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Everything a file system can hold that an archive must keep.
fn furnish(root: &Path) {
    use std::fs::{create_dir, create_dir_all, hard_link, set_permissions, write};
    create_dir_all(root.join("local_content/LR/YG")).unwrap();
    write(root.join("local_content/LR/YG/rUpM"), b"media").unwrap();
    write(
        root.join("local_content/LR/YG/rupm"),
        b"another: names are case-sensitive",
    )
    .unwrap();
    write(root.join("empty file"), b"").unwrap();
    create_dir(root.join("empty directory")).unwrap();
    let big: Vec<u8> = (0..3_500_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    write(root.join("big"), &big).unwrap();
    symlink("local_content/LR", root.join("link")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\xfe"), root.join("link to bytes")).unwrap();
    for odd in [
        b"new\nline".to_vec(),
        b"\xff\xfe not utf-8".to_vec(),
        b"tab\tand \x1b[31mred".to_vec(),
        vec![b'n'; 255],
        b" ".to_vec(),
        b"...".to_vec(),
        b"*".to_vec(),
        "ünïcödé".into(),
        b"quote\"back\\slash".to_vec(),
    ] {
        write(root.join(OsStr::from_bytes(&odd)), &odd).unwrap();
    }
    create_dir(root.join("zz")).unwrap();
    hard_link(root.join("big"), root.join("zz/other name of big")).unwrap();
    hard_link(root.join("big"), root.join("local_content/third name")).unwrap();
    // Sparse: a hole, data, a hole, data, a hole.
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(&[7; 5000], 10 << 20).unwrap();
    sparse.write_all_at(b"end of data", (30 << 20) + 17).unwrap();
    std::fs::File::create(root.join("only a hole"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    for (path, mode) in [
        // Nobody may read it but root, who reads all.
        ("empty file", if is_root() { 0o000 } else { 0o400 }),
        ("local_content/LR/YG/rUpM", 0o4755),
        ("local_content/LR/YG/rupm", 0o640),
        ("local_content", 0o2750),
        ("empty directory", 0o500),
        ("zz", 0o1777),
    ] {
        set_permissions(root.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    xattr(&root.join("big"), "user.comment", b"\x00binary\xff");
    xattr(&root.join("big"), "user.empty", b"");
    xattr(&root.join("zz"), "user.on a directory", &[9; 2000]);
    if is_root() {
        own(&root.join("local_content"), 10991, 10991);
        own(&root.join("local_content/LR/YG/rupm"), 10006, 999);
        std::os::unix::fs::lchown(root.join("dangling"), Some(4_000_000_000), Some(7)).unwrap();
        xattr(&root.join("sparse"), "trusted.essrun", b"only root sees this");
    }
    for (path, seconds) in [
        ("zz", 1_000_000_000i64),
        ("local_content/LR", 86_400),
        ("big", -5),
        ("empty directory", 0),
    ] {
        set_time(&root.join(path), seconds, 123_456_789);
    }
    set_time(root, 1_234_567_890, 5);
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn own(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
}

fn set_time(path: &Path, tv_sec: i64, tv_nsec: i64) {
    let t = rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps {
        last_access: t,
        last_modification: t,
    };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn hard_links_whose_file_stays_behind_become_files_and_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    std::fs::create_dir_all(source.join("zz")).unwrap();
    std::fs::write(source.join("first"), b"of all").unwrap();
    for other in ["zz/second", "zz/third"] {
        std::fs::hard_link(source.join("first"), source.join(other)).unwrap();
    }
    std::fs::write(source.join("zz/plain"), b"alone").unwrap();
    runtime().block_on(async {
        let (report, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        assert_eq!(report.hardlinks, 2);
        let extract = async |path: &str, to: &Path| {
            let path = TreePath::new(path).unwrap();
            let extracted = restore::extract(reader.clone(), &record, &path, to, OPTIONS, Arc::new(NoProgress));
            let findings = extracted
                .await
                .unwrap()
                .into_iter()
                .map(|f| (f.check, f.fatal, f.message));
            findings
                .filter(|(check, ..)| *check != "owners-not-set")
                .collect::<Vec<_>>()
        };
        let found = extract("zz", &goal).await;
        assert_eq!(found.len(), 1, "{found:?}");
        let (check, fatal, said) = &found[0];
        assert_eq!((*check, *fatal), ("hard-links-copied", false));
        assert!(
            said.starts_with('2') && said.contains("the same file as first"),
            "{said}"
        );
        for name in ["second", "third"] {
            assert_eq!(std::fs::read(goal.join(name)).unwrap(), b"of all");
            assert_eq!(goal.join(name).metadata().unwrap().nlink(), 1);
        }
        // What is no link is not spoken of.
        assert!(extract("zz/plain", &dir.path().join("plain")).await.is_empty());
    });
}

#[test]
fn everything_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    std::fs::create_dir(&source).unwrap();
    furnish(&source);
    runtime().block_on(async {
        let (report, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        assert_eq!(
            report.unreadable.count + report.vanished.count + report.unstable.count,
            0,
            "{report:?}"
        );
        assert_eq!(report.hardlinks, 2);
        assert_eq!(report.symlinks, 3);
        // The terabyte of nothing was not read.
        assert!(report.read_bytes < 5 << 20, "{}", report.read_bytes);

        let staged = stage(&reader, &record, &goal, OPTIONS).await.unwrap();
        assert!(staged.findings().is_empty() || !is_root(), "{:?}", staged.findings());
        assert!(!goal.exists(), "nothing before the swap");
        let swapped = staged.swap().await.unwrap();
        assert_eq!(swapped.kept, None);

        // Our own comparison, which must find nothing…
        assert_eq!(
            restore::compare(reader.clone(), &record, &goal, true).await.unwrap(),
            []
        );
        // …an independent one…
        assert_eq!(fingerprint(&source), fingerprint(&goal));
        // …and disk usage: holes stayed holes.
        assert!(goal.join("only a hole").metadata().unwrap().blocks() < 100);
        assert!(goal.join("sparse").metadata().unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(
            goal.join("big").metadata().unwrap().ino(),
            goal.join("zz/other name of big").metadata().unwrap().ino()
        );
        assert_eq!(goal.join("big").metadata().unwrap().nlink(), 3);

        // A backup of the restored tree lists the same, but for inodes and times of change.
        let (_, again, again_record) = back_up(&goal, ArchiveRequest::default()).await.unwrap();
        let strip = |text: String| -> Vec<serde_json::Value> {
            text.lines()
                .map(|l| {
                    let mut v: serde_json::Value = serde_json::from_str(l).unwrap();
                    for member in ["ino", "ctime", "fresh", "content"] {
                        v.as_object_mut().unwrap().remove(member);
                    }
                    v
                })
                .collect()
        };
        assert_eq!(
            strip(listing(&*reader, &record).await),
            strip(listing(&*again, &again_record).await)
        );
        assert_eq!(restore::list_leftovers(&goal).await.unwrap(), []);
    });
}

/// What `find` and `sha256sum`-like reading through `std` see.
fn fingerprint(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let m = path.symlink_metadata().unwrap();
        let content = if m.is_symlink() {
            format!("{:?}", path.read_link().unwrap())
        } else if m.is_file() && m.len() < 1 << 30 && (is_root() || m.mode() & 0o400 != 0) {
            let bytes = std::fs::read(&path).unwrap();
            format!(
                "{} {:?}",
                bytes.len(),
                bytes
                    .iter()
                    .fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add((*b).into()))
            )
        } else {
            String::new()
        };
        lines.push(format!(
            "{:?} {:o} {}:{} {}.{} {content}",
            path.strip_prefix(root).unwrap(),
            m.mode(),
            m.uid(),
            m.gid(),
            m.mtime(),
            m.mtime_nsec(),
        ));
        if m.is_dir() {
            pending.extend(path.read_dir().unwrap().map(|e| e.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

#[test]
fn unchanged_files_are_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    for i in 0..700 {
        std::fs::create_dir_all(dir.path().join(format!("d{}", i % 37))).unwrap();
        std::fs::write(dir.path().join(format!("d{}/f{i}", i % 37)), format!("file {i}")).unwrap();
    }
    // Let the files' times of change grow older than the clock's tick.
    std::thread::sleep(Duration::from_millis(2100));
    runtime().block_on(async {
        let store = MemoryBackup::new();
        let request = ArchiveRequest::default;
        let first = run(&store, dir.path(), request(), 1, None, false, 3).await.unwrap();
        assert_eq!(first.taken_over_files, 0);
        let reader: Arc<dyn BackupReader> = Arc::new(store.clone().commit().unwrap());
        let previous = || Some((reader.clone(), reader.artifact(&name(1)).unwrap().clone()));

        let second = run(&store, dir.path(), request(), 2, previous(), false, 3)
            .await
            .unwrap();
        assert_eq!(second.read_bytes, 0);
        assert_eq!(second.taken_over_files, first.files - first.hardlinks);
        assert_eq!(second.taken_over_bytes, first.bytes);
        assert_eq!(second.previous_unusable, None);
        let reader2: Arc<dyn BackupReader> = Arc::new(store.clone().commit().unwrap());
        // Equal trees make equal listings, to the byte.
        assert_eq!(
            listing(&*reader2, reader2.artifact(&name(1)).unwrap()).await,
            listing(&*reader2, reader2.artifact(&name(2)).unwrap()).await
        );

        // Changed: contents under the same size and mtime, one new, one gone.
        let sly = dir.path().join("d3/f3");
        let before = sly.metadata().unwrap();
        std::fs::write(&sly, b"FILE 3").unwrap();
        set_time(&sly, before.mtime(), before.mtime_nsec());
        std::fs::write(dir.path().join("d4/new"), b"new!").unwrap();
        std::fs::remove_file(dir.path().join("d5/f5")).unwrap();
        let third = run(&store, dir.path(), request(), 3, previous(), false, 3)
            .await
            .unwrap();
        assert_eq!(third.read_bytes, 6 + 4);
        assert_eq!(third.taken_over_files, second.taken_over_files - 2);
        let reader3: Arc<dyn BackupReader> = Arc::new(store.clone().commit().unwrap());
        let record3 = reader3.artifact(&name(3)).unwrap();
        assert_eq!(
            restore::compare(reader3.clone(), record3, dir.path(), true)
                .await
                .unwrap(),
            []
        );

        let all = run(&store, dir.path(), request(), 4, previous(), true, 3)
            .await
            .unwrap();
        assert_eq!(all.taken_over_files, 0, "rescan reads all");

        // A keeper that has lost the chunks: everything is read, nothing fails.
        let archive = Archive {
            name: name(5),
            sensitivity: essrun_artifact::Sensitivity::Internal,
            watch: None,
            previous: previous(),
            rescan: false,
            jobs: 2,
        };
        let volume = Arc::new(Volume::open(dir.path()).unwrap());
        let keeper = Arc::new(Forgetful(store.clone()));
        let lost = archive::execute(volume, request(), archive, keeper, Arc::new(NoProgress))
            .await
            .unwrap();
        // Files without data need no keeper to be taken over.
        assert_eq!(lost.taken_over_files, 2);
        assert_eq!(lost.read_bytes, all.read_bytes);
        let reader5: Arc<dyn BackupReader> = Arc::new(store.clone().commit().unwrap());
        let record5 = reader5.artifact(&name(5)).unwrap();
        assert_eq!(
            restore::compare(reader5.clone(), record5, dir.path(), true)
                .await
                .unwrap(),
            []
        );

        // An earlier listing that cannot be used is said, and does no harm.
        let (bad, bad_record) = common::forged(&["{broken"], b"x").await;
        let run6 = run(&store, dir.path(), request(), 6, Some((bad, bad_record)), false, 3)
            .await
            .unwrap();
        assert_eq!(run6.taken_over_files, 0);
        assert!(run6.previous_unusable.unwrap().contains("entry 1"));
    });
}

/// A keeper that has nothing of what was there before.
struct Forgetful(MemoryBackup);

#[async_trait::async_trait]
impl BackupWriter for Forgetful {
    fn lane(&self, spec: LaneSpec) -> Result<Box<dyn Lane>, KeepError> {
        self.0.lane(spec)
    }
    async fn adopt(&self, _: &Content) -> Result<bool, KeepError> {
        Ok(false)
    }
    async fn record(&self, artifact: ArtifactRecord) -> Result<(), KeepError> {
        self.0.record(artifact).await
    }
}

#[test]
fn fresh_files_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = MemoryBackup::new();
        std::fs::write(dir.path().join("f"), b"one").unwrap();
        run(&store, dir.path(), ArchiveRequest::default(), 1, None, false, 1)
            .await
            .unwrap();
        let reader: Arc<dyn BackupReader> = Arc::new(store.clone().commit().unwrap());
        let record = reader.artifact(&name(1)).unwrap().clone();
        assert!(listing(&*reader, &record).await.contains("\"fresh\":true"));
        let again = run(
            &store,
            dir.path(),
            ArchiveRequest::default(),
            2,
            Some((reader, record)),
            false,
            1,
        )
        .await;
        assert_eq!(again.unwrap().read_bytes, 3);
    });
}

#[test]
fn rules_decide_what_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    for path in [
        "local_content/a/x",
        "local_thumbnails/a/x",
        "remote_content/r",
        "url_cache/u",
        "top",
        "a/b/c/keep.log",
        "a/b/c/no",
    ] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"x").unwrap();
    }
    let taken = |take: &[&str], leave_out: &[&str]| {
        let request = ArchiveRequest {
            take: rules(take),
            leave_out: rules(leave_out),
            ..ArchiveRequest::default()
        };
        let estimate = archive::plan(&Volume::open(dir.path()).unwrap(), &request).unwrap();
        runtime().block_on(async {
            let (report, reader, record) = back_up(dir.path(), request).await.unwrap();
            assert_eq!(
                (estimate.files, estimate.directories, estimate.bytes),
                (report.files, report.directories, report.bytes)
            );
            let mut files = Vec::new();
            let mut entries = Entries::open(&*reader, &record).await.unwrap();
            while let Some(entry) = entries.next().await.unwrap() {
                if matches!(entry.kind, Kind::File { .. }) {
                    files.push(entry.path.to_text());
                }
            }
            assert_eq!(restore::compare(reader, &record, dir.path(), true).await.unwrap(), []);
            files
        })
    };
    assert_eq!(
        taken(&[], &["remote_*", "url_cache/**", "a"]),
        ["top", "local_content/a/x", "local_thumbnails/a/x"]
    );
    assert_eq!(taken(&["local_content"], &[]), ["local_content/a/x"]);
    assert_eq!(taken(&["**/*.log"], &[]), ["a/b/c/keep.log"]);
    assert_eq!(taken(&["a/**"], &["**/no"]), ["a/b/c/keep.log"]);
    assert_eq!(taken(&["top", "remote_content/r"], &["top"]), ["remote_content/r"]);
}

#[test]
fn what_is_no_file_is_named_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    std::fs::create_dir(dir.path().join(".essrun-restore-0123")).unwrap();
    runtime().block_on(async {
        let (report, reader, record) = back_up(dir.path(), ArchiveRequest::default()).await.unwrap();
        assert_eq!(report.files, 1);
        let skipped: Vec<_> = report
            .skipped
            .first
            .iter()
            .map(|(p, why)| format!("{p} {why}"))
            .collect();
        assert_eq!(skipped, ["fifo a FIFO", "socket a socket"]);
        assert!(!listing(&*reader, &record).await.contains("essrun-restore"));
    });
}

/// A keeper that does something to the tree whenever file bytes come.
#[derive(Clone)]
struct Meddling {
    store: MemoryBackup,
    meddle: Arc<Mutex<dyn FnMut() + Send>>,
}

struct MeddlingLane(Box<dyn Lane>, Arc<Mutex<dyn FnMut() + Send>>);

#[async_trait::async_trait]
impl BackupWriter for Meddling {
    fn lane(&self, spec: LaneSpec) -> Result<Box<dyn Lane>, KeepError> {
        let lane = self.store.lane(spec)?;
        if spec == LaneSpec::FILES {
            return Ok(Box::new(MeddlingLane(lane, self.meddle.clone())));
        }
        Ok(lane)
    }
    async fn adopt(&self, content: &Content) -> Result<bool, KeepError> {
        self.store.adopt(content).await
    }
    async fn record(&self, artifact: ArtifactRecord) -> Result<(), KeepError> {
        self.store.record(artifact).await
    }
}

#[async_trait::async_trait]
impl Lane for MeddlingLane {
    async fn write(&mut self, bytes: bytes::Bytes) -> Result<(), KeepError> {
        (self.1.lock().unwrap())();
        self.0.write(bytes).await
    }
    async fn cut(&mut self) -> Result<Content, KeepError> {
        self.0.cut().await
    }
    async fn close(self: Box<Self>) -> Result<(), KeepError> {
        self.0.close().await
    }
}

async fn meddled(
    root: &Path,
    meddle: impl FnMut() + Send + 'static,
) -> (essrun_volume::ArchiveReport, Arc<dyn BackupReader>, ArtifactRecord) {
    let store = MemoryBackup::new();
    let writer = Meddling {
        store: store.clone(),
        meddle: Arc::new(Mutex::new(meddle)),
    };
    let archive = Archive {
        name: name(1),
        sensitivity: essrun_artifact::Sensitivity::Internal,
        watch: None,
        previous: None,
        rescan: false,
        jobs: 1,
    };
    let report = archive::execute(
        Arc::new(Volume::open(root).unwrap()),
        ArchiveRequest::default(),
        archive,
        Arc::new(writer),
        Arc::new(NoProgress),
    )
    .await
    .unwrap();
    let reader = store.commit().unwrap();
    let record = reader.artifacts()[0].clone();
    (report, Arc::new(reader), record)
}

#[test]
fn a_file_that_changes_is_read_again_then_called_unstable() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("busy");
    let append = {
        let file = file.clone();
        move || {
            std::fs::File::options()
                .append(true)
                .open(&file)
                .unwrap()
                .write_all(b"!")
                .unwrap()
        }
    };
    runtime().block_on(async {
        std::fs::write(&file, b"busy").unwrap();
        let mut once = Some(append.clone());
        let (report, reader, record) = meddled(dir.path(), move || {
            if let Some(append) = once.take() {
                append();
            }
        })
        .await;
        assert_eq!(report.unstable.count, 0, "the second reading was quiet");
        assert_eq!(restore::compare(reader, &record, dir.path(), true).await.unwrap(), []);

        std::fs::write(&file, b"busy").unwrap();
        let (report, reader, record) = meddled(dir.path(), append).await;
        assert_eq!(report.unstable.count, 1);
        assert_eq!(report.unstable.first[0].0.to_text(), "busy");
        // It is restored all the same, and said.
        let staged = stage(&reader, &record, &dir.path().join("../unstable-goal-not-made"), OPTIONS)
            .await
            .unwrap();
        assert!(staged.findings().iter().any(|f| f.check == "unstable-when-backed-up"));
        staged.discard().await.unwrap();
    });
}

#[test]
fn a_file_cut_short_under_our_hands_does_not_spoil_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shrinking");
    runtime().block_on(async {
        std::fs::write(&file, vec![1; 5 << 20]).unwrap();
        std::fs::write(dir.path().join("z-after"), b"after").unwrap();
        let shrink = file.clone();
        let count = AtomicU32::new(0);
        let (report, reader, record) = meddled(dir.path(), move || {
            let n = u64::from(count.fetch_add(1, Ordering::Relaxed));
            let mut f = std::fs::File::options().write(true).open(&shrink).unwrap();
            let length = (5 << 20) - n * (1 << 20) / 2 - 1;
            f.set_len(length).unwrap();
            f.seek(SeekFrom::Start(0)).unwrap();
        })
        .await;
        assert_eq!(report.unstable.count, 1, "{report:?}");
        let out = dir.path().join("extracted");
        let path = TreePath::new("z-after").unwrap();
        restore::extract(reader, &record, &path, &out, OPTIONS, Arc::new(NoProgress))
            .await
            .unwrap();
        assert_eq!(std::fs::read(out).unwrap(), b"after");
    });
}

#[test]
fn files_that_vanish_are_noted() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..50 {
        std::fs::create_dir(dir.path().join(format!("d{i:02}"))).unwrap();
        std::fs::write(dir.path().join(format!("d{i:02}/f")), b"x").unwrap();
    }
    std::fs::write(dir.path().join("a-first"), b"x").unwrap();
    runtime().block_on(async {
        let root = dir.path().to_owned();
        let (report, reader, record) = meddled(dir.path(), move || {
            let _ = std::fs::remove_dir_all(root.join("d48"));
            let _ = std::fs::remove_file(root.join("d49/f"));
        })
        .await;
        assert!(report.vanished.count >= 2, "{report:?}");
        assert_eq!(report.unreadable.count, 0);
        // What remains can be restored.
        let goal = dir.path().join("goal");
        stage(&reader, &record, &goal, OPTIONS)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert!(goal.join("d00/f").exists() && !goal.join("d49/f").exists());
    });
}

#[test]
fn single_paths_can_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    furnish(&source);
    // A directory that holds one file of its own name must not be taken for that file.
    std::fs::create_dir(source.join("same")).unwrap();
    std::fs::write(source.join("same/same"), b"inner").unwrap();
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        let get = async |path: &[u8], to: &str| {
            let path = TreePath::new(path).unwrap();
            restore::extract(
                reader.clone(),
                &record,
                &path,
                &dir.path().join(to),
                OPTIONS,
                Arc::new(NoProgress),
            )
            .await
        };
        get(b"local_content", "tree").await.unwrap();
        let (got, was) = (dir.path().join("tree"), source.join("local_content"));
        assert_eq!(fingerprint(&got.join("LR")), fingerprint(&was.join("LR")));
        assert_eq!(
            std::fs::read(got.join("third name")).unwrap(),
            std::fs::read(source.join("big")).unwrap()
        );
        get(b"zz/other name of big", "file").await.unwrap();
        assert_eq!(
            std::fs::read(dir.path().join("file")).unwrap(),
            std::fs::read(source.join("big")).unwrap()
        );
        get(b"\xff\xfe not utf-8", "odd").await.unwrap();
        assert_eq!(std::fs::read(dir.path().join("odd")).unwrap(), b"\xff\xfe not utf-8");
        get(b"dangling", "dangling").await.unwrap();
        assert_eq!(
            dir.path().join("dangling").read_link().unwrap(),
            Path::new("/nowhere/at/all")
        );
        get(b"same", "same").await.unwrap();
        assert_eq!(std::fs::read(dir.path().join("same/same")).unwrap(), b"inner");
        assert!(matches!(get(b"not there", "x").await, Err(VolumeError::Denied { .. })));
        assert!(
            matches!(get(b"big", "file").await, Err(VolumeError::Destination { .. })),
            "nothing is replaced"
        );
        let left: Vec<_> = dir.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|n| n.as_bytes().starts_with(b".essrun")), "{left:?}");
    });
}

#[test]
fn comparing_finds_every_kind_of_difference() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    furnish(&source);
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        assert_eq!(
            restore::compare(reader.clone(), &record, &source, true).await.unwrap(),
            []
        );
        let m = source.join("sparse").metadata().unwrap();
        std::fs::File::options()
            .write(true)
            .open(source.join("sparse"))
            .unwrap()
            .write_all_at(b"!", 100)
            .unwrap();
        set_time(&source.join("sparse"), m.mtime(), m.mtime_nsec());
        std::fs::remove_file(source.join("dangling")).unwrap();
        symlink("elsewhere", source.join("dangling")).unwrap();
        std::fs::remove_file(source.join("*")).unwrap();
        std::fs::write(source.join("added"), b"").unwrap();
        std::fs::set_permissions(
            source.join("local_content/LR/YG/rupm"),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        xattr(&source.join("zz"), "user.more", b"");
        std::fs::remove_file(source.join("local_content/third name")).unwrap();
        std::fs::copy(source.join("big"), source.join("local_content/third name")).unwrap();
        let found = restore::compare(reader, &record, &source, true).await.unwrap();
        let text: Vec<String> = found.iter().map(|d| format!("{}: {}", d.path, d.what)).collect();
        for expected in [
            "sparse: contents differ",
            "dangling: leads elsewhere",
            "*: missing in the tree",
            "added: not in the backup",
            "local_content/LR/YG/rupm: mode 600, in the backup 640",
            "zz: extended attributes differ",
            "local_content/third name: is not the same file as big",
        ] {
            assert!(text.iter().any(|t| t == expected), "{expected} not in {text:#?}");
        }
    });
}

#[test]
fn looks_are_confined() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    furnish(&root);
    std::fs::write(dir.path().join("secret"), b"secret").unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink("../secret", root.join("to secret")).unwrap();
    let volume = Volume::open(&root).unwrap();
    for bad in [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "a\0b",
        ".",
        "a//b",
        "./big",
        &"x/".repeat(600_000),
    ] {
        assert!(
            matches!(volume.read(bad, 100), Err(VolumeError::Invalid { .. })),
            "{bad:.20}"
        );
        assert!(
            matches!(volume.look(&[bad.to_owned()]), Err(VolumeError::Invalid { .. })),
            "{bad:.20}"
        );
        assert!(
            matches!(volume.walk(bad, true), Err(VolumeError::Invalid { .. })),
            "{bad:.20}"
        );
        assert!(matches!(
            volume.digest(&[bad.to_owned()], &|| true),
            Err(VolumeError::Invalid { .. })
        ));
    }
    for denied in ["up/secret", "to secret", "link/YG/rUpM", "not there", "big/x", "zz", ""] {
        assert!(
            matches!(volume.read(denied, 100), Err(VolumeError::Denied { .. })),
            "{denied}"
        );
        assert_eq!(volume.digest(&[denied.to_owned()], &|| true).unwrap(), [None]);
    }
    assert_eq!(
        volume.look(&["up/secret".into(), "link/YG".into()]).unwrap(),
        [None, None]
    );
    assert_eq!(
        volume.look(&["up".into()]).unwrap()[0].as_ref().unwrap().kind,
        EntryKind::Symlink
    );
    assert!(matches!(volume.walk("up", true), Err(VolumeError::Denied { .. })));
    assert_eq!(volume.read("local_content/LR/YG/rUpM", 5).unwrap(), b"media");
    assert!(matches!(
        volume.read("local_content/LR/YG/rUpM", 4),
        Err(VolumeError::Limit { .. })
    ));
    let digests = volume
        .digest(&["local_content/LR/YG/rUpM".into(), "link".into()], &|| true)
        .unwrap();
    let digest = digests[0].as_ref().unwrap();
    assert_eq!(digest.size_bytes, 5);
    assert_eq!(digest.sha256, sha256sum(b"media"));
    assert_eq!(digests[1], None);
    assert!(
        volume.digest(&["big".into()], &|| false).is_err(),
        "the caller can stop it"
    );

    let mut walk = volume.walk("", true).unwrap();
    let mut seen = Vec::new();
    loop {
        let page = walk.next_page(3).unwrap();
        assert!(page.len() <= 3);
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    assert!(seen.windows(2).all(|w| w[0].path < w[1].path), "in order, once each");
    // The root itself is not listed.
    assert_eq!(seen.len(), fingerprint(&root).len() - 1);
    let flat = volume.walk("local_content", false).unwrap().next_page(100).unwrap();
    let flat: Vec<_> = flat.iter().map(|e| e.path.to_text()).collect();
    assert_eq!(flat, ["local_content/LR", "local_content/third name"]);
}

fn sha256sum(bytes: &[u8]) -> String {
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    String::from_utf8(out.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn depth_beyond_the_kernels_longest_path() {
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    std::fs::create_dir(&source).unwrap();
    // 1100 levels, more than the usual limit of open files, and 6.6 kB of path.
    let mut here = rustix::fs::open(&source, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    let name_of_level = "deep!".to_owned();
    for _ in 0..1100 {
        rustix::fs::mkdirat(&here, &name_of_level, rustix::fs::Mode::RWXU).unwrap();
        here = rustix::fs::openat(
            &here,
            &name_of_level,
            rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    let file = rustix::fs::openat(
        &here,
        "bottom",
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
        rustix::fs::Mode::RWXU,
    )
    .unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    runtime().block_on(async {
        let (report, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        assert_eq!((report.files, report.directories, report.vanished.count), (1, 1101, 0));
        stage(&reader, &record, &goal, OPTIONS)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!(
            restore::compare(reader.clone(), &record, &goal, true).await.unwrap(),
            []
        );
        let bottom = TreePath::new([name_of_level.clone(), "bottom".into()].join("/")).unwrap();
        assert!(matches!(
            restore::extract(
                reader,
                &record,
                &bottom,
                &dir.path().join("x"),
                OPTIONS,
                Arc::new(NoProgress)
            )
            .await,
            Err(VolumeError::Denied { .. })
        ));
    });
    let volume = Volume::open(&goal).unwrap();
    let path = std::iter::repeat_n(name_of_level.as_str(), 1100)
        .collect::<Vec<_>>()
        .join("/")
        + "/bottom";
    assert_eq!(volume.read(&path, 100).unwrap(), b"deep");
}

#[test]
fn fifty_thousand_files() {
    // In memory where there is such a file system: flushing a busy disk is no part of this test.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let dir = dir.unwrap();
    let source = dir.path().join("source");
    for i in 0..50_000u32 {
        let parent = source.join(format!("{:02x}/{:02x}", i % 23, i % 29));
        if i < 23 * 29 {
            std::fs::create_dir_all(&parent).unwrap();
        }
        std::fs::write(parent.join(format!("{i}")), i.to_be_bytes()).unwrap();
    }
    runtime().block_on(async {
        let (report, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        assert_eq!(
            (report.files, report.bytes, report.read_bytes),
            (50_000, 200_000, 200_000)
        );
        let goal = dir.path().join("goal");
        stage(&reader, &record, &goal, OPTIONS)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!(restore::compare(reader, &record, &goal, true).await.unwrap(), []);
    });
}

#[test]
fn without_numeric_owners_privileges_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("program"), b"x").unwrap();
    std::fs::set_permissions(source.join("program"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        let options = RestoreOptions {
            owners: Owners::Current,
            ..OPTIONS
        };
        let goal = dir.path().join("goal");
        let staged = stage(&reader, &record, &goal, options).await.unwrap();
        assert_eq!(staged.findings()[0].check, "privileges-dropped");
        staged.swap().await.unwrap();
        assert_eq!(goal.join("program").metadata().unwrap().mode() & 0o7777, 0o755);
        let goal = dir.path().join("numeric");
        stage(&reader, &record, &goal, OPTIONS)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!(goal.join("program").metadata().unwrap().mode() & 0o7777, 0o6755);
    });
}

/// What is mounted inside a volume is another's: named, and not taken, also where it is the same device once more.
#[test]
fn a_mount_inside_a_volume_is_not_archived() {
    let dir = tempfile::tempdir().unwrap();
    let (root, elsewhere) = (dir.path().join("volume"), dir.path().join("elsewhere"));
    for folder in ["a/tmpfs", "a/bind", "b"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("theirs"), "theirs").unwrap();
    std::fs::write(root.join("a/ours"), "ours").unwrap();
    std::fs::write(root.join("a/bind/hidden"), "under the mount").unwrap();
    let Some(_tmpfs) = Mounted::tmpfs(&root.join("a/tmpfs")) else {
        return;
    };
    let _bind = Mounted::bind(&elsewhere, &root.join("a/bind")).unwrap();
    std::fs::write(root.join("a/tmpfs/theirs"), "theirs").unwrap();
    runtime().block_on(async {
        let (report, reader, record) = back_up(&root, ArchiveRequest::default()).await.unwrap();
        let mut skipped: Vec<_> = report.skipped.first.iter().map(|(p, _)| p.to_text()).collect();
        skipped.sort();
        assert_eq!(skipped, ["a/bind", "a/tmpfs"]);
        assert_eq!((report.files, report.skipped.count), (1, 2));
        let listing = listing(&*reader, &record).await;
        assert!(listing.contains("ours") && !listing.contains("theirs"), "{listing}");
    });
}

#[test]
fn not_root_what_cannot_be_read_is_an_error() {
    if as_nobody("not_root_what_cannot_be_read_is_an_error") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("closed/inner")).unwrap();
    std::fs::write(source.join("secret"), b"x").unwrap();
    std::fs::write(source.join("open"), b"x").unwrap();
    std::fs::set_permissions(source.join("secret"), std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(source.join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    runtime().block_on(async {
        let error = back_up(&source, ArchiveRequest::default())
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error, VolumeError::Unreadable { count: 2, .. }), "{error}");
        let request = ArchiveRequest {
            on_unreadable: OnUnreadable::Report,
            ..ArchiveRequest::default()
        };
        let (report, reader, record) = back_up(&source, request).await.unwrap();
        assert_eq!(report.unreadable.count, 2);
        let mut named: Vec<_> = report.unreadable.first.iter().map(|(p, _)| p.to_text()).collect();
        named.sort();
        assert_eq!(named, ["closed", "secret"]);
        assert_eq!(report.files, 1);
        stage(&reader, &record, &dir.path().join("goal"), OPTIONS)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!(dir.path().join("goal/closed").metadata().unwrap().mode() & 0o7777, 0);
    });
    std::fs::set_permissions(source.join("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(dir.path().join("goal/closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn not_root_foreign_owners_become_a_finding() {
    // Made as root, restored as nobody: the listing says 10991.
    if as_nobody("not_root_foreign_owners_become_a_finding") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        common::line("", "directory", ""),
        common::line("d", "directory", "").replace("448", "320"),
        common::line("f", "file", r#""size":3,"content":{}"#)
            .replace("448", "2541")
            .replace(r#""uid":0"#, r#""uid":10991"#),
        common::line("d/inner", "file", r#""size":3,"content":{}"#),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    runtime().block_on(async {
        let (reader, record) = common::forged(&lines, b"abc").await;
        let goal = dir.path().join("goal");
        let staged = stage(&reader, &record, &goal, OPTIONS).await.unwrap();
        let owners = staged.findings().iter().find(|f| f.check == "owners-not-set").unwrap();
        assert!(owners.message.starts_with("4 entries"), "{}", owners.message);
        staged.swap().await.unwrap();
        assert_eq!(
            goal.join("f").metadata().unwrap().mode() & 0o7777,
            0o755,
            "no set-user-id for somebody else"
        );
        assert_eq!(goal.join("d").metadata().unwrap().mode() & 0o7777, 0o500);
        assert_eq!(std::fs::read(goal.join("d/inner")).unwrap(), b"abc");
    });
    std::fs::set_permissions(dir.path().join("goal/d"), std::fs::Permissions::from_mode(0o700)).unwrap();
}
