//! What a header gives away of whom an object was sealed to.

use crate::core::Core;
use crate::keys::{NewIdentity, Recipients, WriterKey};
use crate::manifest;
use crate::names::{IndexName, Sum};
use crate::revision::{self, Draft, Reason};
use crate::{Access, Backup, BackupStart, CheckMode, FindingKind, Options, Repository, envelope, read};
use bytes::Bytes;
use essrun_artifact::*;
use essrun_store::{Objects, Store};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Who writes here may seal to somebody nobody named: not packs alone say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_nobody_named_is_seen_in_revisions_and_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Objects::memory());
    let (key, identity, spy) = (WriterKey::generate(), NewIdentity::generate(), NewIdentity::generate());
    let recipients = Recipients::parse([identity.recipient()]).unwrap();
    let access = |name: &str| Access {
        writer: Some(key.clone()),
        identities: vec![],
        recipients: recipients.clone(),
        cache_dir: dir.path().join(name),
        state_dir: dir.path().join("state").join(name),
        options: Options::default(),
    };
    Repository::init(store.clone(), &key, &recipients).await.unwrap();
    let repository = Repository::open(store.clone(), access("own")).await.unwrap();
    let start = BackupStart {
        sensitivity: Sensitivity::Secret,
    };
    let made: Backup = repository.begin(start).await.unwrap();
    let mut lane = made.lane(LaneSpec::TABLE).unwrap();
    lane.write(Bytes::from_static(b"a few bytes")).await.unwrap();
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
    let good = repository.check(CheckMode::Writer).await.unwrap();
    assert_eq!(good.findings, []);

    let core = Arc::new(Core::open(store.clone(), access("core")).await.unwrap());
    let (_, manifest) = manifest::read_all(&core).await.unwrap().remove(0);
    let manifest = manifest.unwrap();
    let with_spy = Recipients::parse([identity.recipient(), spy.recipient()]).unwrap();
    let mut objects: BTreeSet<String> = read::read_list(&core, &manifest.list)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let name = objects.iter().find_map(|n| IndexName::parse(n)).unwrap();
    let sealed = core.get_summed(&name.object().unwrap()).await.unwrap();
    let text = envelope::open("x", &core.identities, &sealed, 1 << 20).unwrap();
    let readers = with_spy.with_native(key.index_recipient());
    let bytes = envelope::seal(&readers, &text, 3).unwrap().bytes;
    let index = IndexName {
        sum: Sum::of(&bytes),
        ..name.clone()
    };
    store.put_new(&index.object().unwrap(), bytes).await.unwrap();
    objects.remove(name.object().unwrap().as_str());
    objects.insert(index.object().unwrap().to_string());
    let draft = Draft {
        manifest: &manifest,
        reason: Reason::Repair,
        objects: &objects,
        lost: Vec::new(),
        sealed: &manifest.open(&core).unwrap(),
        recipients: &with_spy,
    };
    revision::write(&core, draft).await.unwrap();
    let report = repository.check(CheckMode::Writer).await.unwrap();
    let foreign = report
        .findings
        .iter()
        .filter(|f| f.kind == FindingKind::ForeignRecipient);
    let found: Vec<&str> = foreign.map(|f| f.object.as_str()).collect();
    assert!(
        found.contains(&index.object().unwrap().as_str()),
        "{:?}",
        report.findings
    );
    assert!(
        found.iter().any(|o| o.starts_with("revisions/")),
        "{:?}",
        report.findings
    );
    assert_eq!(found.len(), 2, "{:?}", report.findings);
}
