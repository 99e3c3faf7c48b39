//! What goes in comes out: through us, and through stock `age` and `zstd`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use bytes::Bytes;
use common::*;
use essrun_artifact::*;
use essrun_repository::*;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out_on_another_machine() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let table = rows(1, 30_000);
    let media = noise(7, 5_000_000);
    let made = Arc::new(repository.begin(START).await.unwrap());
    // Several lanes at once, as workers use them.
    let (a, b) = (made.clone(), made.clone());
    let (t, m) = (table.clone(), media.clone());
    let tables = tokio::spawn(async move { keep(&a, LaneSpec::TABLE, &[&t, b"", b"x"]).await.unwrap() });
    let files = tokio::spawn(async move { keep(&b, LaneSpec::FILES, &[&m]).await.unwrap() });
    let tables = tables.await.unwrap();
    let files = files.await.unwrap();
    assert_eq!(tables[1], Content::empty());
    assert!(
        matches!(tables[0].chunks, ChunkList::Stored { .. }),
        "a table of many chunks has a stored list"
    );
    for (name, content) in [
        ("s/main/events", &tables[0]),
        ("s/main/empty", &tables[1]),
        ("s/main/small", &tables[2]),
        ("s/media", &files[0]),
    ] {
        made.record(record(name, content.clone())).await.unwrap();
    }
    assert!(
        made.record(record("s/media", Content::empty())).await.is_err(),
        "a name is taken once"
    );
    let summary = made.commit(serde_json::json!({"note": "hello"})).await.unwrap();
    assert!(made.commit(serde_json::Value::Null).await.is_err(), "committed once");
    assert_eq!(summary.stats.bytes_read, (table.len() + media.len() + 1) as u64);
    assert_eq!(place.objects("leases").len(), 0, "a finished backup leaves no lease");

    let reader = place.reading().await;
    let listed = reader.backups().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        listed[0].body.as_ref().unwrap().read::<serde_json::Value>().unwrap()["note"],
        "hello"
    );
    for wanted in ["latest", summary.id.as_str(), &summary.id.as_str()[..12]] {
        assert_eq!(reader.read(wanted).await.unwrap().summary().id, summary.id);
    }
    assert!(matches!(
        reader.read("2019").await,
        Err(RepositoryError::NoBackup { .. })
    ));
    let open = reader.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/main/events").await.unwrap(), table);
    assert_eq!(read_artifact(&open, "s/main/empty").await.unwrap(), b"");
    assert_eq!(read_artifact(&open, "s/main/small").await.unwrap(), b"x");
    assert_eq!(read_artifact(&open, "s/media").await.unwrap(), media);
    let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(report.chunks_verified > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_reads_listings_and_never_contents() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let made = repository.begin(START).await.unwrap();
    let listing = keep(&made, LaneSpec::LISTING, &[b"names of files"])
        .await
        .unwrap()
        .remove(0);
    let data = keep(&made, LaneSpec::TABLE, &[b"a secret"]).await.unwrap().remove(0);
    made.record(record("x/listing", listing)).await.unwrap();
    made.record(record("x/data", data)).await.unwrap();
    made.commit(serde_json::Value::Null).await.unwrap();
    let open = repository.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "x/listing").await.unwrap(), b"names of files");
    let said = read_artifact(&open, "x/data").await.unwrap_err().to_string();
    assert!(said.contains("none of the given keys"), "{said}");
    let stranger = Access {
        identities: vec![NewIdentity::generate().identity()],
        ..place.as_reader("c2")
    };
    let stranger = Repository::open(place.store(), stranger).await.unwrap();
    assert_eq!(stranger.backups().await.unwrap()[0].body, None);
    assert!(stranger.read("latest").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_age_and_zstd_open_every_sealed_object() {
    let place = Place::new().await;
    let key = place.dir.path().join("identity.txt");
    place.identity.save(&key).unwrap();
    let table = rows(3, 80_000);
    let repository = place.writing().await;
    backup(&repository, &[("s/main/events", &table)]).await.unwrap();

    let packs = place.objects("data");
    assert!(packs.len() > 1, "several packs");
    // One lane fills its packs in order, so the packs' contents together are the table, pack by pack.
    let mut opened: Vec<Vec<u8>> = Vec::new();
    for pack in &packs {
        opened.push(open_with_stock_tools(&key, &std::fs::read(pack).unwrap()));
    }
    assert_eq!(opened.iter().map(Vec::len).sum::<usize>(), table.len());
    let text = String::from_utf8(table.clone()).unwrap();
    for plain in &opened {
        assert!(
            text.contains(std::str::from_utf8(plain).unwrap()),
            "a pack is a stretch of the table, in order"
        );
    }
    for object in place.objects("index").iter().chain(&place.objects("meta")) {
        assert!(!open_with_stock_tools(&key, &std::fs::read(object).unwrap()).is_empty());
    }
    // The manifest: three lines, then the envelope.
    let manifest = std::fs::read(&place.objects("manifests")[0]).unwrap();
    let at = manifest
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .map(|(i, _)| i)
        .nth(2)
        .unwrap();
    let sealed = open_with_stock_tools(&key, &manifest[at + 1..]);
    let sealed: serde_json::Value = serde_json::from_slice(&sealed).unwrap();
    assert_eq!(sealed["artifacts"][0]["name"], "s/main/events");
    let public = String::from_utf8(manifest[..at].to_vec()).unwrap();
    assert!(!public.contains("events"), "the public part names no artifact");
    // The list is what sha256sum checks, from the repository's root.
    let list = &place.objects("lists")[0];
    let done = std::process::Command::new("sha256sum")
        .args(["--check", "--quiet", "--strict"])
        .arg(list)
        .current_dir(place.root())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_table_is_stored_once_and_a_changed_one_mostly() {
    let place = Place::new().await;
    let mut table = rows(1, 40_000);
    let first = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    let again = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert_eq!(again.stats.chunks_new, 0, "{:?}", again.stats);
    assert_eq!(again.stats.bytes_stored, 0);
    // A hundred bytes in the middle and some rows at the end.
    let middle = table.len() / 2;
    table.splice(middle..middle, [b'#'; 100]);
    table.extend(rows(900_000, 400));
    let third = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert!(
        third.stats.bytes_new * 20 < first.stats.bytes_new,
        "{:?} {:?}",
        first.stats,
        third.stats
    );
    let open = place.reading().await.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
    // A cache that is gone costs time, not data.
    std::fs::remove_dir_all(place.dir.path().join("cache")).unwrap();
    let fourth = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert_eq!(fourth.stats.chunks_new, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_do_not_depend_on_how_the_writes_fall() {
    let place = Place::new().await;
    let open = place.writing().await;
    let writing = open.begin(START).await.unwrap();
    for spec in [LaneSpec::TABLE, LaneSpec::FILES] {
        let mut bytes = rows(7, 90_000);
        bytes.extend(noise(3, 9 << 20));
        let mut contents = Vec::new();
        for (seed, longest) in [
            (1u64, 20_000_000u64),
            (2, 300_000),
            (3, 70_000),
            (4, 9_000),
            (5, 700_000),
        ] {
            let mut lane = writing.lane(spec).unwrap();
            let (mut rest, mut state) = (Bytes::from(bytes.clone()), seed);
            while !rest.is_empty() {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let length = ((state >> 33) % longest) as usize;
                lane.write(rest.split_to(length.min(rest.len()))).await.unwrap();
            }
            contents.push(lane.cut().await.unwrap());
            lane.close().await.unwrap();
        }
        assert_eq!(contents[0].bytes, bytes.len() as u64);
        assert!(contents.windows(2).all(|two| two[0] == two[1]), "{contents:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_adopted_only_when_all_of_it_is_there() {
    let place = Place::new().await;
    let table = rows(1, 30_000);
    let repository = place.writing().await;
    backup(&repository, &[("s/t", &table), ("s/small", b"small")])
        .await
        .unwrap();
    let old = repository.read("latest").await.unwrap();
    let contents: Vec<Content> = old.artifacts().iter().map(|a| a.content.clone()).collect();

    let next = repository.begin(START).await.unwrap();
    for (name, content) in [("s/t", &contents[0]), ("s/small", &contents[1])] {
        assert!(next.adopt(content).await.unwrap());
        next.record(record(name, content.clone())).await.unwrap();
    }
    let mut unknown = contents[1].clone();
    if let ChunkList::Inline(refs) = &mut unknown.chunks {
        refs[0].id = ChunkId([1; 32]);
    }
    assert!(!next.adopt(&unknown).await.unwrap());
    let mut lying = contents[1].clone();
    lying.bytes += 1;
    assert!(!next.adopt(&lying).await.unwrap());
    let summary = next.commit(serde_json::Value::Null).await.unwrap();
    assert_eq!(summary.stats.bytes_read, 0);
    assert_eq!(summary.stats.bytes_adopted, table.len() as u64 + 5);
    let open = place.reading().await.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);

    // A pack that went missing: not adopted any more, stored anew instead.
    let largest = place
        .objects("data")
        .into_iter()
        .max_by_key(|p| p.metadata().unwrap().len())
        .unwrap();
    std::fs::remove_file(&largest).unwrap();
    let repository = place.writing().await;
    let mend = repository.begin(START).await.unwrap();
    assert!(!mend.adopt(&contents[0]).await.unwrap());
    let content = keep(&mend, LaneSpec::TABLE, &[&table]).await.unwrap().remove(0);
    mend.record(record("s/t", content)).await.unwrap();
    let summary = mend.commit(serde_json::Value::Null).await.unwrap();
    assert!(
        summary.stats.chunks_new > 0 && summary.stats.chunks_reused > 0,
        "{:?}",
        summary.stats
    );
    let open = place.reading().await.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_leaves_packs_that_the_next_one_uses() {
    let place = Place::new().await;
    let table = rows(1, 250_000);
    {
        let repository = place.writing().await;
        let made = repository.begin(START).await.unwrap();
        let mut lane = made.lane(LaneSpec::TABLE).unwrap();
        for part in table[..table.len() * 3 / 4].chunks(64 << 10) {
            lane.write(Bytes::copy_from_slice(part)).await.unwrap();
        }
        // Uploads on their way go on a little; then the run is gone, never committed.
        for _ in 0..1500 {
            if place.objects("index").len() >= 2 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(
            place.objects("index").len() >= 2,
            "packs are stored while the run goes on"
        );
        drop(lane);
        assert!(
            made.commit(serde_json::Value::Null).await.is_err(),
            "a dropped lane spoils the backup"
        );
    }
    assert!(place.reading().await.backups().await.unwrap().is_empty());
    let summary = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert!(
        summary.stats.bytes_new < table.len() as u64 * 9 / 10,
        "{:?} of {}",
        summary.stats,
        table.len()
    );
    let open = place.reading().await.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_sensitive_is_taken_without_a_recipient() {
    let place = Place::new().await;
    let alone = Access {
        recipients: Recipients::none(),
        ..place.as_writer()
    };
    let repository = Repository::open(place.store(), alone).await.unwrap();
    let said = repository.begin(START).await.unwrap_err().to_string();
    assert!(said.contains("recipient"), "{said}");
    let made = repository
        .begin(BackupStart {
            sensitivity: Sensitivity::Internal,
        })
        .await
        .unwrap();
    let content = keep(&made, LaneSpec::TABLE, &[b"schema"]).await.unwrap().remove(0);
    assert!(
        made.record(record("x/y", content.clone())).await.is_err(),
        "a personal artifact is refused"
    );
    made.record(ArtifactRecord {
        sensitivity: Sensitivity::Internal,
        ..record("x/y", content)
    })
    .await
    .unwrap();
    made.commit(serde_json::Value::Null).await.unwrap();
    let open = repository.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "x/y").await.unwrap(), b"schema");
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_must_be_closed_and_pieces_cut() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let made = repository.begin(START).await.unwrap();
    let lane = made.lane(LaneSpec::TABLE).unwrap();
    let said = made.commit(serde_json::Value::Null).await.unwrap_err().to_string();
    assert!(said.contains("still open"), "{said}");
    lane.close().await.unwrap();
    let mut lane = made.lane(LaneSpec::TABLE).unwrap();
    lane.write(Bytes::from_static(b"left over")).await.unwrap();
    assert!(lane.close().await.is_err());
    assert!(made.commit(serde_json::Value::Null).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn annotations_stay_with_their_backup() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let one = backup(&repository, &[("s/t", b"1")]).await.unwrap();
    let two = backup(&repository, &[("s/t", b"2")]).await.unwrap();
    repository
        .annotate(&one.id, "drill", serde_json::json!({"good": true}))
        .await
        .unwrap();
    repository
        .annotate(&one.id, "drill", serde_json::json!({"good": false}))
        .await
        .unwrap();
    assert!(
        repository
            .annotate(&one.id, "no/word", serde_json::Value::Null)
            .await
            .is_err()
    );
    let read = place.reading().await.annotations(&one.id).await.unwrap();
    assert_eq!(read.len(), 2);
    assert!(read.iter().all(|a| a.kind == "drill" && a.backup == one.id));
    assert!(repository.annotations(&two.id).await.unwrap().is_empty());
    // Moved under another backup it proves nothing.
    let from = place.objects("annotations").remove(0);
    let to = place.root().join("annotations").join(two.id.as_str());
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    assert!(repository.annotations(&two.id).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_made_once_and_must_be_empty() {
    let place = Place::new().await;
    let said = Repository::init(place.store(), &place.writer, &place.recipients())
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("already"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("photo.jpg"), b"x").unwrap();
    let store = essrun_store::open(dir.path().to_str().unwrap()).unwrap();
    assert!(
        Repository::init(store.clone(), &place.writer, &place.recipients())
            .await
            .is_err()
    );
    assert!(matches!(
        Repository::open(store, place.as_writer()).await,
        Err(RepositoryError::Place { .. })
    ));
}
