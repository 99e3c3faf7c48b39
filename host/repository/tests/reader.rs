//! The reader written from docs/FORMAT.md alone restores what we wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_artifact::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_written_from_the_documentation_restores() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let table = rows(1, 12_000);
    let made = repository.begin(START).await.unwrap();
    let content = keep(&made, LaneSpec::TABLE, &[&table]).await.unwrap().remove(0);
    assert!(matches!(content.chunks, ChunkList::Stored { .. }));
    made.record(record("s/main/events", content)).await.unwrap();
    let media = noise(5, 700_000);
    let content = keep(&made, LaneSpec::FILES, &[&media]).await.unwrap().remove(0);
    made.record(record("s/media", content)).await.unwrap();
    made.commit(serde_json::Value::Null).await.unwrap();
    // A second backup over the first, so that a content's chunks lie in packs of both.
    let mut changed = table.clone();
    changed.splice(300_000..300_010, *b"changed!");
    backup(&place.writing().await, &[("s/main/events", &changed)])
        .await
        .unwrap();

    let key = place.dir.path().join("identity.txt");
    place.identity.save(&key).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reader/essrun_read.py");
    let root = place.root();
    let run = |rest: &[&str]| {
        let mut arguments = vec![script, root.to_str().unwrap(), key.to_str().unwrap()];
        arguments.extend(rest);
        tool("python3", &arguments, b"")
    };
    let first = repository.backups().await.unwrap().remove(0).id;
    assert_eq!(run(&["cat", "latest", "s/main/events"]), changed);
    assert_eq!(run(&["cat", first.as_str(), "s/main/events"]), table);
    assert_eq!(run(&["cat", first.as_str(), "s/media"]), media);
    let listed = String::from_utf8(run(&["list"])).unwrap();
    assert!(
        listed.contains("s/media") && listed.contains(first.as_str()),
        "{listed}"
    );
}
