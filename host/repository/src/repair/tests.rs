//! What earlier versions wrote and today's do not.

use crate::core::Core;
use crate::keys::{NewIdentity, Recipients, WriterKey};
use crate::manifest::{self, Damaged, Sealed};
use crate::revision::{self, Draft, Reason};
use crate::{Access, Backup, BackupStart, CheckMode, Options, PlainArtifacts, Repository};
use bytes::Bytes;
use essrun_artifact::*;
use essrun_store::{Objects, Store};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Another host took a backup whose list was lost for one that needs nothing: an empty list, and nothing called lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_calls_all_damaged_and_nothing_lost_is_mended_by_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Objects::memory());
    let (own, other, identity) = (WriterKey::generate(), WriterKey::generate(), NewIdentity::generate());
    let recipients = || Recipients::parse([identity.recipient()]).unwrap();
    let access = |key: &WriterKey, name: &str, identities| Access {
        writer: Some(key.clone()),
        identities,
        recipients: recipients(),
        cache_dir: dir.path().join(name),
        state_dir: dir.path().join("state").join(name),
        options: Options::default(),
    };
    Repository::init(store.clone(), &own, &recipients()).await.unwrap();
    let repository = Repository::open(store.clone(), access(&own, "own", vec![]))
        .await
        .unwrap();
    repository.authorize(&other.public()).await.unwrap();
    let repository = Repository::open(store.clone(), access(&own, "own", vec![]))
        .await
        .unwrap();
    let start = BackupStart {
        sensitivity: Sensitivity::Secret,
    };
    let table: Vec<u8> = (0..50_000u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
    let made: Backup = repository.begin(start).await.unwrap();
    let mut lane = made.lane(LaneSpec::TABLE).unwrap();
    lane.write(Bytes::from(table.clone())).await.unwrap();
    let content = lane.cut().await.unwrap();
    lane.close().await.unwrap();
    let record = ArtifactRecord {
        name: ArtifactName::new("s/t").unwrap(),
        kind: "test".into(),
        sensitivity: Sensitivity::Personal,
        meta: serde_json::Value::Null,
        content,
    };
    made.record(record).await.unwrap();
    made.commit(serde_json::Value::Null).await.unwrap();

    let foreign = access(&other, "other", vec![identity.identity()]);
    let core = Arc::new(Core::open(store.clone(), foreign).await.unwrap());
    let (_, manifest) = manifest::read_all(&core).await.unwrap().remove(0);
    let manifest = manifest.unwrap();
    let sealed = Sealed {
        damaged: vec![Damaged {
            artifact: "s/t".into(),
            why: "object chunks: it is lost".into(),
        }],
        ..manifest.open(&core).unwrap()
    };
    let draft = Draft {
        manifest: &manifest,
        reason: Reason::Repair,
        objects: &BTreeSet::new(),
        lost: Vec::new(),
        sealed: &sealed,
        recipients: &recipients(),
    };
    revision::write(&core, draft).await.unwrap();

    // What the other sealed opens with an identity only; without one it is at least said.
    let report = repository.repair(true, &PlainArtifacts).await.unwrap();
    assert!(report.backups.is_empty() && report.left_alone.len() == 1, "{report:?}");
    let both = access(&own, "own", vec![identity.identity()]);
    drop(repository);
    let repository = Repository::open(store.clone(), both).await.unwrap();
    let report = repository.repair(true, &PlainArtifacts).await.unwrap();
    assert_eq!(report.backups.len(), 1, "{report:?}");
    assert!(report.backups[0].damaged.is_empty() && report.backups[0].lost.is_empty());
    let reader = Access {
        writer: None,
        ..access(&own, "reader", vec![identity.identity()])
    };
    let reader = Repository::open(store, reader).await.unwrap();
    let open = reader.read("latest").await.unwrap();
    assert!(open.damaged().is_empty());
    let artifact = open.artifacts()[0].content.clone();
    let (mut content, mut read) = (BackupReader::open(&open, &artifact).await.unwrap(), Vec::new());
    while let Some(part) = content.next().await.unwrap() {
        read.extend_from_slice(&part);
    }
    assert!(read == table);
    let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
}
