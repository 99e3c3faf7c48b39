//! What the repository's tests share: a repository in a directory, content that looks like data, and the stock tools.
#![allow(dead_code)]

use bytes::Bytes;
use essrun_artifact::*;
use essrun_repository::*;
use essrun_store::{Fault, FaultPlan, Faulty, ObjectInfo, ObjectName, Objects, Outcome, Store, StoreError};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

pub struct Place {
    pub dir: tempfile::TempDir,
    pub writer: WriterKey,
    pub identity: NewIdentity,
}

pub const START: BackupStart = BackupStart {
    sensitivity: Sensitivity::Secret,
};

impl Place {
    pub async fn new() -> Self {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
            writer: WriterKey::generate(),
            identity: NewIdentity::generate(),
        };
        let recipients = place.recipients();
        Repository::init(place.store(), &place.writer, &recipients)
            .await
            .unwrap();
        place
    }

    pub fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("repository")
    }

    pub fn store(&self) -> Arc<dyn Store> {
        Arc::new(Objects::directory(&self.root()).unwrap())
    }

    pub fn recipients(&self) -> Recipients {
        Recipients::parse([self.identity.recipient()]).unwrap()
    }

    pub fn options(&self) -> Options {
        Options {
            // Small packs, so that small tests have several.
            pack_bytes: 256 << 10,
            ..Options::default()
        }
    }

    /// As the backup host opens it: no identity.
    pub fn as_writer(&self) -> Access {
        Access {
            writer: Some(self.writer.clone()),
            identities: vec![],
            recipients: self.recipients(),
            cache_dir: self.dir.path().join("cache"),
            state_dir: self.dir.path().join("state").join("cache"),
            options: self.options(),
        }
    }

    /// As a restore on another machine opens it: an identity, no writer key, an empty cache.
    pub fn as_reader(&self, cache: &str) -> Access {
        Access {
            writer: None,
            identities: vec![self.identity.identity()],
            recipients: Recipients::none(),
            cache_dir: self.dir.path().join(cache),
            state_dir: self.dir.path().join("state").join(cache),
            options: self.options(),
        }
    }

    pub async fn writing(&self) -> Repository {
        Repository::open(self.store(), self.as_writer()).await.unwrap()
    }

    pub async fn reading(&self) -> Repository {
        Repository::open(self.store(), self.as_reader("reader-cache"))
            .await
            .unwrap()
    }

    pub fn objects(&self, below: &str) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.root().join(below)];
        while let Some(dir) = left.pop() {
            let Ok(entries) = std::fs::read_dir(dir) else { continue };
            for entry in entries {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path)
                } else {
                    found.push(path)
                }
            }
        }
        found.sort();
        found
    }

    /// Makes what lies there now look older.
    pub fn age(&self, below: &str, by: Duration) {
        for path in self.objects(below) {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - by).unwrap();
        }
    }

    pub fn bytes_in(&self, below: &str) -> u64 {
        self.objects(below).iter().map(|p| p.metadata().unwrap().len()).sum()
    }
}

/// Incompressible bytes that are the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Rows of text, as a table is dumped: compressible, each row its own.
pub fn rows(seed: u64, count: usize) -> Vec<u8> {
    let mut text = String::new();
    for row in 0..count {
        let id = noise(seed.wrapping_add(row as u64), 12);
        let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
        text.push_str(&format!(
            "{row}\t${id}\t!room{}:example.org\t{{\"type\":\"m.room.message\",\"content\":{{\"body\":\"{id} hello\"}}}}\n",
            row % 97
        ));
    }
    text.into_bytes()
}

pub fn record(name: &str, content: Content) -> ArtifactRecord {
    ArtifactRecord {
        name: ArtifactName::new(name).unwrap(),
        kind: "test".into(),
        sensitivity: Sensitivity::Personal,
        meta: serde_json::Value::Null,
        content,
    }
}

/// Writes pieces through one lane, in writes of odd sizes.
pub async fn keep(backup: &Backup, spec: LaneSpec, pieces: &[&[u8]]) -> Result<Vec<Content>, KeepError> {
    let mut lane = backup.lane(spec)?;
    let mut contents = Vec::new();
    for piece in pieces {
        for part in piece.chunks(99_991) {
            lane.write(Bytes::copy_from_slice(part)).await?;
        }
        contents.push(lane.cut().await?);
    }
    lane.close().await?;
    Ok(contents)
}

/// A whole backup of named artifacts.
pub async fn backup(repository: &Repository, artifacts: &[(&str, &[u8])]) -> Result<BackupSummary, RepositoryError> {
    let backup = repository.begin(START).await?;
    for (name, bytes) in artifacts {
        let content = keep(&backup, LaneSpec::TABLE, &[bytes]).await?.remove(0);
        backup.record(record(name, content)).await?;
    }
    backup.commit(serde_json::json!({"made": "by a test"})).await
}

pub async fn read_all(from: &dyn BackupReader, content: &Content) -> Result<Vec<u8>, KeepError> {
    let mut reader = from.open(content).await?;
    let mut bytes = Vec::new();
    while let Some(part) = reader.next().await? {
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

pub async fn read_artifact(from: &OpenBackup, name: &str) -> Result<Vec<u8>, KeepError> {
    let artifact = from
        .artifact(&ArtifactName::new(name).unwrap())
        .expect("the artifact is there");
    read_all(from, &artifact.content).await
}

/// Runs a stock tool; a missing one fails the test and says so.
pub fn tool(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("the tool {program} is needed for this test (apt-get install {program}): {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let done = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    assert!(
        done.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    done.stdout
}

/// `age -d -i identity object | zstd -d`.
pub fn open_with_stock_tools(identity: &Path, object: &[u8]) -> Vec<u8> {
    let plain = tool("age", &["-d", "-i", identity.to_str().unwrap()], object);
    tool("zstd", &["-d", "-c"], &plain)
}

/// A store that counts what is read and listed, and breaks what is named to it.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn Store>,
    pub read_bytes: AtomicU64,
    pub lists: AtomicU64,
    /// Objects below this are deleted by somebody else just before they are read.
    vanishing: Mutex<Option<String>>,
    /// Objects below this cannot be read.
    failing: Mutex<Option<String>>,
}

impl Watched {
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Watched {
            inner,
            read_bytes: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            vanishing: Mutex::default(),
            failing: Mutex::default(),
        })
    }

    pub fn vanish(&self, below: &str) {
        *self.vanishing.lock().unwrap() = Some(below.to_owned());
    }

    pub fn fail(&self, below: Option<&str>) {
        *self.failing.lock().unwrap() = below.map(str::to_owned);
    }

    async fn before(&self, name: &ObjectName) -> Result<(), StoreError> {
        let is_below = |named: &Mutex<Option<String>>| {
            let below = named.lock().unwrap().clone();
            below.is_some_and(|b| name.as_str().starts_with(&b))
        };
        if is_below(&self.failing) {
            // What a store says that is there and does not answer.
            let nowhere = Faulty::new(
                self.inner.clone(),
                FaultPlan {
                    faults: vec![Fault::Refused],
                    ..FaultPlan::flaky(0, 1.0)
                },
            );
            return nowhere.get(name).await.map(drop);
        }
        if is_below(&self.vanishing) {
            self.inner.delete(name).await?;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Store for Watched {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        self.inner.put_new(name, bytes).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.before(name).await?;
        let bytes = self.inner.get(name).await?;
        self.read_bytes.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    async fn get_range(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.before(name).await?;
        let bytes = self.inner.get_range(name, range).await?;
        self.read_bytes.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.inner.head(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.lists.fetch_add(1, Relaxed);
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }
}
