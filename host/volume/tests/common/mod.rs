//! What the tests of this room share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code
)]

use essrun_artifact::memory::{MemoryBackup, MemoryReader};
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, BackupWriter, LaneSpec, NoProgress, Sensitivity};
use essrun_volume::{
    Archive, ArchiveReport, ArchiveRequest, PathRule, RestoreOptions, Volume, VolumeError, archive, restore,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn name(n: u32) -> ArtifactName {
    ArtifactName::new(format!("test/tree{n}")).unwrap()
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

pub fn rules(patterns: &[&str]) -> Vec<PathRule> {
    patterns
        .iter()
        .map(|p| PathRule {
            pattern: (*p).into(),
            why: "test".into(),
        })
        .collect()
}

pub async fn back_up(
    root: &Path,
    request: ArchiveRequest,
) -> Result<(ArchiveReport, Arc<dyn BackupReader>, ArtifactRecord), VolumeError> {
    let store = MemoryBackup::new();
    let report = run(&store, root, request, 0, None, false, 2).await?;
    let reader = store.commit().unwrap();
    let record = reader.artifacts()[0].clone();
    Ok((report, Arc::new(reader), record))
}

#[allow(clippy::too_many_arguments)]
pub async fn run(
    store: &MemoryBackup,
    root: &Path,
    request: ArchiveRequest,
    n: u32,
    previous: Option<(Arc<dyn BackupReader>, ArtifactRecord)>,
    rescan: bool,
    jobs: usize,
) -> Result<ArchiveReport, VolumeError> {
    let archive = Archive {
        name: name(n),
        sensitivity: Sensitivity::Personal,
        watch: None,
        previous,
        rescan,
        jobs,
    };
    archive::execute(
        Arc::new(Volume::open(root).unwrap()),
        request,
        archive,
        Arc::new(store.clone()),
        Arc::new(NoProgress),
    )
    .await
}

pub const OPTIONS: RestoreOptions = RestoreOptions {
    resume: false,
    keep_unfinished: false,
    origin: [0; 32],
    planned_mount_point: None,
    replace: false,
    owners: restore::Owners::Numeric,
    jobs: 2,
};

pub async fn stage(
    reader: &Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    to: &Path,
    options: RestoreOptions,
) -> Result<restore::Staged, VolumeError> {
    restore::execute(reader.clone(), record, to, options, Arc::new(NoProgress)).await
}

/// The listing's text.
pub async fn listing(reader: &dyn BackupReader, record: &ArtifactRecord) -> String {
    let mut content = reader.open(&record.content).await.unwrap();
    let mut text = Vec::new();
    while let Some(bytes) = content.next().await.unwrap() {
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).unwrap()
}

/// A backup whose listing is made by hand. `{}` in a line stands for the content of `bytes`.
pub async fn forged(lines: &[&str], bytes: &[u8]) -> (Arc<dyn BackupReader>, ArtifactRecord) {
    let store = MemoryBackup::new();
    let mut lane = store.lane(LaneSpec::FILES).unwrap();
    lane.write(bytes::Bytes::copy_from_slice(bytes)).await.unwrap();
    let content = serde_json::to_string(&lane.cut().await.unwrap()).unwrap();
    lane.close().await.unwrap();
    let text: String = lines.iter().map(|l| l.replace("{}", &content) + "\n").collect();
    let mut lane = store.lane(LaneSpec::LISTING).unwrap();
    lane.write(bytes::Bytes::from(text)).await.unwrap();
    let content = lane.cut().await.unwrap();
    lane.close().await.unwrap();
    let record = ArtifactRecord {
        name: name(0),
        kind: "volume".into(),
        sensitivity: Sensitivity::Secret,
        meta: serde_json::json!({
            "format": 1, "entries": lines.len(), "files": 0, "directories": 0, "symlinks": 0, "hardlinks": 0,
            "bytes": 0, "unstable": 0, "unreadable": 0, "take": [], "leave_out": [],
        }),
        content,
    };
    store.record(record.clone()).await.unwrap();
    let reader: MemoryReader = store.commit().unwrap();
    (Arc::new(reader), record)
}

/// Common members of a forged line.
pub fn line(path: &str, kind: &str, more: &str) -> String {
    let more = if more.is_empty() {
        String::new()
    } else {
        format!(",{more}")
    };
    format!(
        r#"{{"path":{path:?},"kind":{kind:?},"mode":448,"uid":0,"gid":0,"mtime":[1,2],"ctime":[3,4],"ino":5{more}}}"#
    )
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs one test of the calling file again as somebody who is not root.
pub fn as_nobody(test: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !is_root() {
        return false;
    }
    // Where nobody may read it.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let exe = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    let out = std::process::Command::new(&exe)
        .args(["--exact", test, "--nocapture"])
        .env("TMPDIR", dir.path())
        .uid(65534)
        .gid(65534)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "as nobody: {}",
        String::from_utf8_lossy(&out.stdout)
    );
    assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
    true
}

/// A mounted file system; unmounted when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// A tmpfs; none where mounting is not allowed.
    pub fn tmpfs(at: &Path) -> Option<Mounted> {
        Self::mount(&["-t", "tmpfs", "none"], at)
    }

    /// A directory once more, elsewhere.
    pub fn bind(from: &Path, at: &Path) -> Option<Mounted> {
        Self::mount(&["--bind", from.to_str().unwrap()], at)
    }

    fn mount(args: &[&str], at: &Path) -> Option<Mounted> {
        let done = std::process::Command::new("mount").args(args).arg(at).output().ok()?;
        if !done.status.success() {
            eprintln!("cannot mount here, skipped: {}", String::from_utf8_lossy(&done.stderr));
        }
        done.status.success().then(|| Mounted(at.to_owned()))
    }

    pub fn read_only(&self) {
        let done = std::process::Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(&self.0)
            .status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
