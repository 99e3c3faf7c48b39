//! Hostile repositories, for tests: a good one, twisted byte by byte, and with claims that are nonsense but well signed.
//!
//! Whatever is in a store, nothing may panic, and what is handed out as read must be what was written.

use crate::envelope;
use crate::keys::{Identity, NewIdentity, Recipients, WriterKey};
use crate::signed::{self, Kind};
use crate::{Access, Backup, BackupStart, CheckMode, Options, PlainArtifacts, Repository, RepositoryError, Rewrite};
use bytes::Bytes;
use essrun_artifact::*;
use essrun_store::{ObjectName, Objects, Store};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

struct Good {
    writer: WriterKey,
    identity: NewIdentity,
    objects: Vec<(ObjectName, Bytes)>,
    table: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Good {
    fn access(&self, cache: &str) -> Access {
        Access {
            writer: Some(self.writer.clone()),
            identities: vec![self.identity.identity()],
            recipients: Recipients::parse([self.identity.recipient()]).unwrap(),
            cache_dir: self.dir.path().join(cache),
            state_dir: self.dir.path().join("state").join(cache),
            options: Options {
                trusted_writers: vec![self.writer.public()],
                pack_bytes: 64 << 10,
                ..Options::default()
            },
        }
    }

    async fn made() -> Self {
        let mut good = Good {
            writer: WriterKey::generate(),
            identity: NewIdentity::generate(),
            objects: Vec::new(),
            table: (0..300_000u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect(),
            dir: tempfile::tempdir().unwrap(),
        };
        let store: Arc<dyn Store> = Arc::new(Objects::memory());
        let recipients = Recipients::parse([good.identity.recipient()]).unwrap();
        Repository::init(store.clone(), &good.writer, &recipients)
            .await
            .unwrap();
        let repository = Repository::open(store.clone(), good.access("good")).await.unwrap();
        let first = fill(&repository, &good.table[..200_000]).await.unwrap();
        let second = fill(&repository, &good.table).await.unwrap();
        repository
            .annotate(&second, "drill", serde_json::json!({"passed": true}))
            .await
            .unwrap();
        repository.forget(&first, "a test").await.unwrap();
        let plan = repository.plan_prune(Duration::from_secs(60)).await.unwrap();
        repository.prune(&plan).await.unwrap();
        repository.authorize(&WriterKey::generate().public()).await.unwrap();
        let other = Access {
            recipients: Recipients::parse([NewIdentity::generate().recipient(), good.identity.recipient()]).unwrap(),
            ..good.access("rekey")
        };
        let other = Repository::open(store.clone(), other).await.unwrap();
        other
            .rewrite(Rewrite::Rekey, true, &PlainArtifacts, &NoProgress)
            .await
            .unwrap();
        for info in store.list("").await.unwrap() {
            let bytes = store.get(&info.name).await.unwrap();
            good.objects.push((info.name, bytes));
        }
        good
    }
}

async fn fill(repository: &Repository, table: &[u8]) -> Result<crate::BackupId, RepositoryError> {
    let start = BackupStart {
        sensitivity: Sensitivity::Secret,
    };
    let made: Backup = repository.begin(start).await?;
    let mut lane = made.lane(LaneSpec::TABLE)?;
    lane.write(Bytes::copy_from_slice(table)).await?;
    let content = lane.cut().await?;
    lane.close().await?;
    let record = ArtifactRecord {
        name: ArtifactName::new("s/t").unwrap(),
        kind: "test".into(),
        sensitivity: Sensitivity::Personal,
        meta: Value::Null,
        content,
    };
    made.record(record).await?;
    Ok(made.commit(Value::Null).await?.id)
}

/// Everything that reads, one after the other; errors are fine, and wrong bytes are not.
async fn use_it(good: &Good, objects: &[(ObjectName, Bytes)], cache: &str) {
    let store: Arc<dyn Store> = Arc::new(Objects::memory());
    for (name, bytes) in objects {
        store.put_new(name, bytes.clone()).await.unwrap();
    }
    let Ok(repository) = Repository::open(store, good.access(cache)).await else {
        return;
    };
    for backup in repository.backups().await.unwrap_or_default() {
        let _ = repository.annotations(&backup.id).await;
        let Ok(open) = repository.read(backup.id.as_str()).await else {
            continue;
        };
        for artifact in open.artifacts() {
            if let Ok(mut reader) = BackupReader::open(&open, &artifact.content).await {
                let mut read = Vec::new();
                let whole = loop {
                    match reader.next().await {
                        Ok(Some(bytes)) => read.extend_from_slice(&bytes),
                        Ok(None) => break true,
                        Err(_) => break false,
                    }
                };
                let fits = read == good.table || read == good.table[..200_000];
                // A signed claim may name other content; bytes that are not content at all never come out.
                assert!(
                    !whole || fits || read.is_empty(),
                    "{} wrong bytes were read",
                    read.len()
                );
            }
        }
    }
    let _ = repository.check(CheckMode::Full { part: 1, of: 1 }).await;
    let _ = repository.plan_prune(Duration::ZERO).await;
    let _ = repository.repair(false, &PlainArtifacts).await;
    let repack = Rewrite::Repack { unused_percent: 1 };
    let _ = repository.rewrite(repack, false, &PlainArtifacts, &NoProgress).await;
    let _ = repository.unforget("2", Duration::from_secs(60)).await;
    let _ = fill(&repository, &good.table[..1000]).await;
}

fn twist(rng: &mut StdRng, bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let length = bytes.len().max(1);
    match rng.random_range(0..5u8) {
        0 => {
            let at = rng.random_range(0..length);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8u8);
            }
        }
        1 => bytes.truncate(rng.random_range(0..length)),
        2 => {
            let at = rng.random_range(0..length);
            let end = (at + 9).min(bytes.len());
            bytes.drain(at..end);
        }
        3 => bytes.extend((0..rng.random_range(1..200u8)).map(|n| n ^ 0x5a)),
        _ => bytes = (0..rng.random_range(0..300usize)).map(|_| rng.random()).collect(),
    }
    Bytes::from(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn twisted_objects_neither_panic_nor_pass() {
    let good = Good::made().await;
    use_it(&good, &good.objects, "untwisted").await;
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..60 {
        let mut objects = good.objects.clone();
        for _ in 0..rng.random_range(1..4u8) {
            let at = rng.random_range(0..objects.len());
            match rng.random_range(0..4u8) {
                0 => {
                    objects.remove(at);
                }
                1 => {
                    let other = objects[rng.random_range(0..objects.len())].1.clone();
                    objects[at].1 = other;
                }
                _ => objects[at].1 = twist(&mut rng, &objects[at].1),
            }
        }
        use_it(&good, &objects, &format!("twisted-{round}")).await;
    }
}

const KINDS: &[(&str, Kind)] = &[
    ("essrun repository 1", Kind::Config),
    ("essrun writer 1", Kind::Writer),
    ("essrun manifest 1", Kind::Manifest),
    ("essrun revision 1", Kind::Revision),
    ("essrun tombstone 1", Kind::Tombstone),
    ("essrun annotation 1", Kind::Annotation),
    ("essrun prune 1", Kind::Prune),
];

/// Puts nonsense in the place of one value, somewhere.
fn garble(rng: &mut StdRng, value: &mut Value) {
    let inner: Vec<&mut Value> = match value {
        Value::Object(map) => map.values_mut().collect(),
        Value::Array(all) => all.iter_mut().collect(),
        _ => Vec::new(),
    };
    if !inner.is_empty() && rng.random_bool(0.9) {
        let at = rng.random_range(0..inner.len());
        if let Some(one) = inner.into_iter().nth(at) {
            return garble(rng, one);
        }
    }
    *value = match rng.random_range(0..9u8) {
        0 => Value::Null,
        1 => Value::from(u64::MAX),
        2 => Value::from(i64::MIN),
        3 => Value::from(0),
        4 => Value::from(""),
        5 => Value::from("../../etc/passwd"),
        6 => Value::from("data/00/x.age"),
        7 => Value::Array(vec![]),
        _ => Value::from(hex::encode(rng.random::<[u8; 32]>())),
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn well_signed_nonsense_does_not_panic() {
    let good = Good::made().await;
    let mut rng = StdRng::seed_from_u64(2);
    let readers = Recipients::parse([good.identity.recipient()]).unwrap();
    let readers = readers.with_native(good.writer.index_recipient());
    let opens: Vec<Identity> = vec![good.identity.identity()];
    let documents: Vec<usize> = (0..good.objects.len())
        .filter(|at| {
            KINDS
                .iter()
                .any(|(title, _)| good.objects[*at].1.starts_with(title.as_bytes()))
        })
        .collect();
    assert!(documents.len() >= 7, "{documents:?}");
    for round in 0..120 {
        let mut objects = good.objects.clone();
        let at = documents[round % documents.len()];
        let bytes = objects[at].1.clone();
        let mut lines = bytes.splitn(4, |b| *b == b'\n');
        let (title, claim) = (lines.next().unwrap(), lines.next().unwrap());
        let payload = lines.nth(1).unwrap();
        let (_, kind) = KINDS.iter().find(|(t, _)| t.as_bytes() == title).unwrap();
        let mut claim: Value = serde_json::from_slice(claim).unwrap();
        let mut payload = payload.to_vec();
        // Either the claim or what is sealed.
        let sealed = envelope::open("x", &opens, &payload, 1 << 20);
        match sealed {
            Ok(plain) if rng.random_bool(0.5) => {
                let mut sealed: Value = serde_json::from_slice(&plain).unwrap();
                garble(&mut rng, &mut sealed);
                payload = envelope::seal(&readers, &serde_json::to_vec(&sealed).unwrap(), 3)
                    .unwrap()
                    .bytes
                    .to_vec();
            }
            _ => garble(&mut rng, &mut claim),
        }
        objects[at].1 = signed::write(*kind, &claim, &payload, &good.writer).unwrap();
        use_it(&good, &objects, &format!("garbled-{round}")).await;
    }
}
