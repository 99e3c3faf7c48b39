//! Lists do not read what was read before, and show nothing else than reading everything would.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use async_trait::async_trait;
use bytes::Bytes;
use common::*;
use essrun_repository::*;
use essrun_store::{ObjectInfo, ObjectName, Outcome, Store, StoreError};
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Counts what is read, by the first segment of its name.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Store>,
    read: Mutex<BTreeMap<String, usize>>,
}

impl Counting {
    fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let read = Mutex::default();
        Arc::new(Counting { inner, read })
    }

    /// What was read since this was asked before.
    fn reads(&self, of: &str) -> usize {
        self.read.lock().unwrap().remove(of).unwrap_or(0)
    }

    fn forget(&self) {
        self.read.lock().unwrap().clear();
    }

    fn count(&self, name: &ObjectName) {
        let first = name.as_str().split('/').next().unwrap().to_owned();
        *self.read.lock().unwrap().entry(first).or_default() += 1;
    }
}

#[async_trait]
impl Store for Counting {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        self.inner.put_new(name, bytes).await
    }
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.count(name);
        self.inner.get(name).await
    }
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.count(name);
        self.inner.get_range(name, range).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.inner.head(name).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.inner.list(prefix).await
    }
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }
}

fn text(all: &[(BackupSummary, Vec<Annotation>)]) -> String {
    serde_json::to_string_pretty(&all).unwrap()
}

/// What a list shows.
async fn shown(repository: &Repository) -> String {
    text(&repository.backups_annotated().await.unwrap())
}

/// With one new chunk, `bytes_new` would be its plain length.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_took_is_told_to_keys_only() {
    let place = Place::new().await;
    let made = backup(&place.writing().await, &[("s/one", &noise(1, 3_210))])
        .await
        .unwrap();
    assert_eq!((made.stats.bytes_new, made.stats.chunks_new), (3_210, 1));
    let object = place.objects("manifests").remove(0);
    let text = std::fs::read(&object).unwrap();
    let claim = String::from_utf8(text.split(|b| *b == b'\n').nth(1).unwrap().to_vec()).unwrap();
    assert!(claim.contains("needed_bytes"), "{claim}");
    for secret in ["stats", "bytes_new", "chunks", ":3210"] {
        assert!(!claim.contains(secret), "{secret}: {claim}");
    }
    // Each key reads it, from the object and from what is known of it.
    for _ in 0..2 {
        assert_eq!(place.writing().await.backups().await.unwrap()[0].stats, made.stats);
    }
    let reader = place.reading().await;
    assert_eq!(reader.backups().await.unwrap()[0].stats, made.stats);
    assert_eq!(reader.read("latest").await.unwrap().summary().stats, made.stats);
    let keyless = Access {
        identities: vec![],
        ..place.as_reader("keyless")
    };
    let keyless = Repository::open(place.store(), keyless).await.unwrap();
    let seen = keyless.backups().await.unwrap().remove(0);
    assert!(seen.body.is_none());
    assert_eq!(seen.stats, BackupStats::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_that_no_key_opens_is_known_to_be_there() {
    let place = Place::new().await;
    let writer = place.writing().await;
    let made = backup(&writer, &[("s/one", b"bytes")]).await.unwrap();
    writer
        .annotate(&made.id, "drill", json!({"passed": true}))
        .await
        .unwrap();
    assert!(writer.with_unread_notes().await.unwrap().is_empty());
    let keyless = Access {
        identities: vec![],
        ..place.as_reader("keyless")
    };
    let keyless = Repository::open(place.store(), keyless).await.unwrap();
    assert_eq!(keyless.with_unread_notes().await.unwrap(), [made.id].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_many_backups_reads_only_what_is_new() {
    const MANY: usize = 1000;
    let place = Place::new().await;
    let store = Counting::new(place.store());
    let open = async |access| Repository::open(store.clone(), access).await.unwrap();
    let writer = open(place.as_writer()).await;
    let mut ids = Vec::new();
    for n in 0..MANY {
        let body = json!({"number": n, "secret": "rooms of Alice"});
        let backup = writer.begin(START).await.unwrap();
        ids.push(backup.commit(body).await.unwrap().id);
    }
    writer
        .annotate(&ids[3], "drill", json!({"passed": true}))
        .await
        .unwrap();
    writer.forget(&ids[4], "a test").await.unwrap();
    drop(writer);
    std::fs::remove_dir_all(place.as_writer().cache_dir).unwrap();
    store.forget();

    let first = shown(&open(place.as_writer()).await).await;
    assert_eq!(store.reads("manifests"), MANY, "each is read once");
    assert_eq!((store.reads("tombstones"), store.reads("annotations")), (1, 1));

    let writer = open(place.as_writer()).await;
    assert_eq!(shown(&writer).await, first);
    assert_eq!(writer.annotations(&ids[3]).await.unwrap().len(), 1);
    for of in ["manifests", "tombstones", "annotations", "revisions"] {
        assert_eq!(store.reads(of), 0, "{of} were read again");
    }

    // A backup reads the end of its chain and no more.
    let backup = writer.begin(START).await.unwrap();
    let newest = backup.commit(json!({"number": MANY})).await.unwrap();
    let read = store.reads("manifests");
    assert!(read <= 4, "{read} manifests were read for one backup");
    store.forget();
    assert_eq!(writer.backups().await.unwrap().len(), MANY);
    assert_eq!(store.reads("manifests"), 1);
    let note = json!({"passed": false});
    writer.annotate(&newest.id, "drill", note.clone()).await.unwrap();
    writer.forget(&ids[5], "a test").await.unwrap();
    store.forget();
    let now = writer.backups_annotated().await.unwrap();
    assert_eq!((now.len(), &now.last().unwrap().1[0].body), (MANY - 1, &note));
    assert_eq!(store.reads("manifests"), 0);
    assert_eq!((store.reads("tombstones"), store.reads("annotations")), (1, 1));

    // What is shown is what whoever reads everything sees.
    let uncached = Access {
        cache_dir: place.dir.path().join("another"),
        state_dir: place.dir.path().join("state").join("another"),
        ..place.as_writer()
    };
    assert_eq!(shown(&open(uncached).await).await, text(&now));
    // One that is opened is read again, and so is everything by a check.
    store.forget();
    writer.read(newest.id.as_str()).await.unwrap();
    assert_eq!(store.reads("manifests"), 1);
    writer.check(CheckMode::Public).await.unwrap();
    assert!(store.reads("manifests") >= MANY);
}

fn known(place: &Place) -> std::path::PathBuf {
    let cache = place.dir.path().join("cache");
    let mut found = Vec::new();
    for repository in std::fs::read_dir(cache)
        .unwrap()
        .flatten()
        .filter(|e| e.path().is_dir())
    {
        let files = std::fs::read_dir(repository.path())
            .unwrap()
            .flatten()
            .map(|e| e.path());
        found.extend(files.filter(|f| f.file_name().unwrap().to_str().unwrap().starts_with("known-")));
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

async fn three() -> (Place, Vec<BackupId>) {
    let place = Place::new().await;
    let repository = place.writing().await;
    let mut ids = Vec::new();
    for n in 0..3u64 {
        ids.push(backup(&repository, &[("s/t", &rows(n, 50))]).await.unwrap().id);
    }
    repository
        .annotate(&ids[0], "drill", json!({"why": "rooms of Alice"}))
        .await
        .unwrap();
    (place, ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_private_and_cannot_be_forged() {
    let (place, _) = three().await;
    let whole = shown(&place.writing().await).await;
    let path = known(&place);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&path).unwrap();
    for word in ["Alice", "made by a test"] {
        let there = bytes.windows(word.len()).any(|w| w == word.as_bytes());
        assert!(!there, "{word:?} stands in the cache for everyone to read");
    }
    // Another writer's cache, and one that was changed, count for nothing.
    let (other, _) = three().await;
    shown(&other.writing().await).await;
    std::fs::copy(known(&other), &path).unwrap();
    assert_eq!(shown(&place.writing().await).await, whole);
    for step in [97, 1009] {
        let mut twisted = std::fs::read(&path).unwrap();
        let length = twisted.len();
        for at in (0..length).step_by(step) {
            twisted[at] ^= 0x21;
        }
        std::fs::write(&path, &twisted).unwrap();
        assert_eq!(shown(&place.writing().await).await, whole, "step {step}");
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(shown(&place.writing().await).await, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changed_is_read_again_and_trust_is_asked_again() {
    let (place, ids) = three().await;
    let store = Counting::new(place.store());
    let listed = async |access: Access| {
        let repository = Repository::open(store.clone(), access).await.unwrap();
        let all = repository.backups().await.unwrap();
        all.into_iter().map(|b| b.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(place.as_writer()).await, ids);
    // Trusting another writer as well: who vouches for what is looked at anew.
    store.forget();
    let trusting = Access {
        options: Options {
            trusted_writers: vec![place.writer.public(), WriterKey::generate().public()],
            ..place.options()
        },
        ..place.as_writer()
    };
    assert_eq!(listed(trusting).await, ids);
    assert_eq!(store.reads("manifests"), 3);
    // Damaged at the same length: its time tells.
    let path = place.objects("manifests")[1].clone();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert_eq!(listed(place.as_writer()).await, [ids[0].clone(), ids[2].clone()]);
    // Even with its old time back it is shown at most, never read.
    let repository = place.writing().await;
    assert!(repository.read(ids[1].as_str()).await.is_err());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(listed(place.as_writer()).await, [ids[0].clone(), ids[2].clone()]);
}
