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
    let meta: serde_json::Value = serde_json::from_slice(&run(&["meta", "latest", "s/main/events"])).unwrap();
    assert_eq!(
        (&meta["kind"], &meta["meta"]),
        (&"test".into(), &serde_json::Value::Null)
    );
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

/// Listings that lead out of the tree: a reader that followed them would write anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_reader_leaves_no_tree_that_it_writes() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let elsewhere = place.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("secret"), b"secret").unwrap();
    let common = r#""mode":493,"uid":0,"gid":0,"mtime":[1,0]"#;
    let entry = |path: &str, kind: &str, more: &str| format!(r#"{{"path":"{path}","kind":"{kind}",{common}{more}}}"#);
    let root = entry("", "directory", "");
    let link = |to: &str| entry("out", "symlink", &format!(r#","target":"{to}""#));
    let out = link(elsewhere.to_str().unwrap());
    let secret = link(elsewhere.join("secret").to_str().unwrap());
    let hostile = [
        (
            "through",
            vec![root.clone(), out.clone(), entry("out/evil", "file", r#","size":0"#)],
        ),
        ("below", vec![root.clone(), out, entry("out/evil", "directory", "")]),
        (
            "up",
            vec![root.clone(), entry("../elsewhere/evil", "file", r#","size":0"#)],
        ),
        ("nowhere", vec![root.clone(), entry("a/evil", "file", r#","size":0"#)]),
        ("rootless", vec![entry("evil", "file", r#","size":0"#)]),
        (
            "twin",
            vec![
                root.clone(),
                secret.clone(),
                entry("evil", "file", r#","size":6,"hardlink":"out""#),
            ],
        ),
        (
            "twin-up",
            vec![
                root.clone(),
                entry("evil", "file", r#","size":6,"hardlink":"../elsewhere/secret""#),
            ],
        ),
        ("over", vec![root.clone(), secret, entry("out", "file", r#","size":0"#)]),
        ("device", vec![root.clone(), entry("evil", "device", "")]),
    ];
    let made = repository.begin(START).await.unwrap();
    for (name, lines) in &hostile {
        let listing = lines.join("\n") + "\n";
        let content = keep(&made, LaneSpec::FILES, &[listing.as_bytes()])
            .await
            .unwrap()
            .remove(0);
        made.record(ArtifactRecord {
            kind: "volume".into(),
            ..record(&format!("s/{name}"), content)
        })
        .await
        .unwrap();
    }
    made.commit(serde_json::Value::Null).await.unwrap();
    let key = place.dir.path().join("identity.txt");
    place.identity.save(&key).unwrap();
    for (name, _) in &hostile {
        let target = place.dir.path().join("tree");
        let output = std::process::Command::new("python3")
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/reader/essrun_read.py"
            ))
            .args([&place.root(), &key])
            .args(["tree", "latest", &format!("s/{name}")])
            .arg(&target)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{name} was restored");
        let there: Vec<_> = std::fs::read_dir(&elsewhere)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(there, ["secret"], "{name}");
        assert_eq!(std::fs::read(elsewhere.join("secret")).unwrap(), b"secret", "{name}");
        if target.exists() {
            std::fs::remove_dir_all(&target).unwrap();
        }
    }
}

/// A tombstone for another manifest of the same place counts for nothing, to the reader as to us.
#[tokio::test(flavor = "multi_thread")]
async fn the_reader_believes_only_tombstones_of_that_manifest() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let first = backup(&repository, &[("s/a", b"first")]).await.unwrap();
    let second = backup(&repository, &[("s/a", b"second")]).await.unwrap();
    repository.forget(&first.id, "retention").await.unwrap();
    let writer = place.writer.id();
    let stone = |sequence: u64| {
        place
            .root()
            .join(format!("tombstones/{writer}/{sequence:010}.tombstone"))
    };
    std::fs::copy(stone(1), stone(2)).unwrap();
    let key = place.dir.path().join("identity.txt");
    place.identity.save(&key).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reader/essrun_read.py");
    let root = place.root();
    let listed = tool(
        "python3",
        &[script, root.to_str().unwrap(), key.to_str().unwrap(), "list"],
        b"",
    );
    let listed = String::from_utf8(listed).unwrap();
    assert!(
        !listed.contains(first.id.as_str()) && listed.contains(second.id.as_str()),
        "{listed}"
    );
}
