//! Repair: what comes back, what is said to be lost, and that nothing gets worse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_artifact::*;
use essrun_repository::*;
use essrun_store::*;
use std::sync::Arc;

fn name(place: &Place, path: &std::path::Path) -> String {
    path.strip_prefix(place.root()).unwrap().to_str().unwrap().to_owned()
}

async fn both(place: &Place) -> Repository {
    let access = Access {
        identities: vec![place.identity.identity()],
        cache_dir: place.dir.path().join("both"),
        state_dir: place.dir.path().join("state").join("both"),
        ..place.as_writer()
    };
    Repository::open(place.store(), access).await.unwrap()
}

async fn mended(place: &Place) -> RepairReport {
    let repository = both(place).await;
    let before: Vec<_> = place.objects("").iter().map(|p| std::fs::read(p).unwrap()).collect();
    let plan = repository.repair(false, &PlainArtifacts).await.unwrap();
    assert!(!plan.done);
    let after: Vec<_> = place.objects("").iter().map(|p| std::fs::read(p).unwrap()).collect();
    assert!(before == after, "a dry run changes nothing");
    repository.repair(true, &PlainArtifacts).await.unwrap()
}

async fn findings(place: &Place) -> Vec<Finding> {
    let report = place.reading().await.check(CheckMode::Full { part: 1, of: 1 }).await;
    report
        .unwrap()
        .findings
        .into_iter()
        .filter(|f| f.kind != FindingKind::Unused)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_and_damaged_indexes_are_made_again_from_their_packs() {
    let place = Place::new().await;
    let table = rows(1, 12_000);
    backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    let indexes = place.objects("index");
    assert!(indexes.len() > 1);
    for (at, index) in indexes.iter().enumerate() {
        if at % 2 == 0 {
            std::fs::remove_file(index).unwrap();
        } else {
            let mut bytes = std::fs::read(index).unwrap();
            bytes[300] ^= 1;
            std::fs::write(index, bytes).unwrap();
        }
    }
    assert!(!findings(&place).await.is_empty());
    let report = mended(&place).await;
    assert_eq!(report.indexes.len(), indexes.len(), "{report:?}");
    assert!(
        report.backups[0].damaged.is_empty() && report.backups[0].lost.is_empty(),
        "{report:?}"
    );
    assert_eq!(findings(&place).await, []);
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/t").await.unwrap() == table);
    // The writer, whose cache knew the lost indexes, relies on the new ones.
    let next = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert_eq!(next.stats.chunks_new, 0);
    assert_eq!(findings(&place).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_backup_stored_anew_mends_the_earlier_ones() {
    let place = Place::new().await;
    let table = rows(1, 12_000);
    let first = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    for pack in place.objects("data") {
        std::fs::remove_file(pack).unwrap();
    }
    backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert!(!findings(&place).await.is_empty());
    let report = mended(&place).await;
    assert!(report.backups[0].damaged.is_empty(), "{report:?}");
    assert_eq!(findings(&place).await, []);
    let open = place.reading().await.read(first.id.as_str()).await.unwrap();
    assert!(read_artifact(&open, "s/t").await.unwrap() == table);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_said_and_the_rest_restores_and_it_is_taken_back_when_it_returns() {
    let place = Place::new().await;
    let (lost, kept) = (rows(1, 4_000), rows(800_000, 4_000));
    let repository = place.writing().await;
    let made = backup(&repository, &[("s/lost", &lost)]).await.unwrap();
    let packs = place.objects("data");
    let made_too = backup(&repository, &[("s/lost", &lost), ("s/kept", &kept)])
        .await
        .unwrap();
    let away = place.dir.path().join("away");
    std::fs::rename(&packs[0], &away).unwrap();

    let report = mended(&place).await;
    assert_eq!(report.backups.len(), 2, "{report:?}");
    for backup in &report.backups {
        assert_eq!(backup.damaged.len(), 1);
        assert_eq!(backup.damaged[0].artifact, "s/lost");
        assert!(backup.lost.contains(&name(&place, &packs[0])));
    }
    let found = findings(&place).await;
    assert!(
        found
            .iter()
            .all(|f| f.kind == FindingKind::KnownDamage || f.object.contains("s/lost")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|f| f.kind == FindingKind::KnownDamage && f.affects == [made.id.clone()])
    );
    let public = place.writing().await.check(CheckMode::Public).await.unwrap();
    assert!(public.is_good(), "{:?}", public.findings);
    let reader = place.reading().await;
    assert!(reader.backups().await.unwrap().iter().all(|b| b.lost_objects > 0));
    let open = reader.read(made_too.id.as_str()).await.unwrap();
    assert_eq!(open.damaged().len(), 1);
    assert!(read_artifact(&open, "s/kept").await.unwrap() == kept);
    assert!(read_artifact(&open, "s/lost").await.is_err());
    // Nothing more to say a second time.
    let again = both(&place).await.repair(true, &PlainArtifacts).await.unwrap();
    assert!(again.backups.is_empty(), "{again:?}");
    // It comes back, from a copy say.
    std::fs::rename(&away, &packs[0]).unwrap();
    let report = mended(&place).await;
    assert!(
        report.backups.iter().all(|b| b.damaged.is_empty() && b.lost.is_empty()),
        "{report:?}"
    );
    assert_eq!(findings(&place).await, []);
    let open = place.reading().await.read(made.id.as_str()).await.unwrap();
    assert!(read_artifact(&open, "s/lost").await.unwrap() == lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_of_a_torn_pack_is_kept() {
    let place = Place::new().await;
    let access = Access {
        options: Options {
            pack_bytes: 16 << 20,
            ..place.options()
        },
        ..place.as_writer()
    };
    let repository = Repository::open(place.store(), access).await.unwrap();
    // Incompressible, so that frames and blocks lie where one thinks; two artifacts in one pack.
    let made = repository.begin(START).await.unwrap();
    let (front, back) = (noise(1, 4 << 20), noise(2, 4 << 20));
    let mut contents = keep(&made, LaneSpec::TABLE, &[&front, &back]).await.unwrap();
    made.record(record("s/back", contents.pop().unwrap())).await.unwrap();
    made.record(record("s/front", contents.pop().unwrap())).await.unwrap();
    made.commit(serde_json::Value::Null).await.unwrap();
    let packs = place.objects("data");
    assert_eq!(packs.len(), 1);
    let mut bytes = std::fs::read(&packs[0]).unwrap();
    let at = bytes.len() - 100_000;
    bytes[at] ^= 1;
    std::fs::write(&packs[0], bytes).unwrap();

    let report = mended(&place).await;
    assert_eq!(report.salvaged.len(), 1, "{report:?}");
    assert_eq!(report.backups[0].damaged.len(), 1);
    assert_eq!(report.backups[0].damaged[0].artifact, "s/back");
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/front").await.unwrap() == front);
    assert!(read_artifact(&open, "s/back").await.is_err());
    // The torn pack is not relied on by the next backup, which stores what is missing, and that mends this one.
    backup(&place.writing().await, &[("s/back", &back)]).await.unwrap();
    let report = mended(&place).await;
    assert!(report.backups[0].damaged.is_empty(), "{report:?}");
    assert_eq!(findings(&place).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_list_is_found_again() {
    let place = Place::new().await;
    let table = rows(1, 5_000);
    backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    std::fs::remove_file(place.objects("lists").remove(0)).unwrap();
    assert!(place.reading().await.read("latest").await.is_err());
    mended(&place).await;
    assert_eq!(findings(&place).await, []);
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/t").await.unwrap() == table);
}

/// Without an identity, and on a store that fails, it does less and harms nothing.
#[tokio::test(flavor = "multi_thread")]
async fn it_never_makes_it_worse() {
    let place = Place::new().await;
    let table = rows(1, 5_000);
    backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    let index = place.objects("index").remove(0);
    let bytes = std::fs::read(&index).unwrap();
    std::fs::remove_file(&index).unwrap();
    for seed in 0..5 {
        let faulty: Arc<dyn Store> = Arc::new(Faulty::new(place.store(), FaultPlan::flaky(seed, 0.3)));
        let access = Access {
            cache_dir: place.dir.path().join("flaky"),
            state_dir: place.dir.path().join("state").join("flaky"),
            ..place.as_writer()
        };
        if let Ok(repository) = Repository::open(faulty, access).await {
            let _ = repository.repair(true, &PlainArtifacts).await;
        }
    }
    // The writer alone cannot make the index again, and may say that something is lost.
    place.writing().await.repair(true, &PlainArtifacts).await.unwrap();
    let report = both(&place).await.repair(true, &PlainArtifacts).await.unwrap();
    assert!(report.done);
    let healed = place.reading().await.read("latest").await.unwrap();
    let first = read_artifact(&healed, "s/t").await;
    // Whatever was said meanwhile: with the object back, all is back.
    std::fs::write(&index, bytes).unwrap();
    both(&place).await.repair(true, &PlainArtifacts).await.unwrap();
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/t").await.unwrap() == table);
    assert!(
        first.is_ok(),
        "an identity makes the index again, whatever a run without one said: {first:?}"
    );
    let found = findings(&place).await;
    assert_eq!(found, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_dies_at_any_step_can_be_taken_up_again() {
    for step in 0..40u64 {
        let place = Place::new().await;
        let (lost, kept) = (rows(1, 2_000), rows(800_000, 2_000));
        backup(&place.writing().await, &[("s/lost", &lost)]).await.unwrap();
        let pack = place.objects("data").remove(0);
        backup(&place.writing().await, &[("s/lost", &lost), ("s/kept", &kept)])
            .await
            .unwrap();
        std::fs::remove_file(pack).unwrap();
        let index = place.objects("index").into_iter().find(|index| {
            let kept = |pack: &std::path::PathBuf| {
                let name = name(&place, pack);
                let hash = name.rsplit('/').next().unwrap().split('.').next().unwrap().to_owned();
                index.to_str().unwrap().contains(&hash)
            };
            place.objects("data").iter().any(kept)
        });
        std::fs::remove_file(index.unwrap()).unwrap();
        let faulty: Arc<dyn Store> = Arc::new(Faulty::new(place.store(), FaultPlan::dead_after(step)));
        let access = Access {
            identities: vec![place.identity.identity()],
            cache_dir: place.dir.path().join("dying"),
            state_dir: place.dir.path().join("state").join("dying"),
            ..place.as_writer()
        };
        let died = match Repository::open(faulty, access).await {
            Ok(dying) => dying.repair(true, &PlainArtifacts).await.is_err(),
            Err(_) => true,
        };
        both(&place).await.repair(true, &PlainArtifacts).await.unwrap();
        let found = findings(&place).await;
        assert!(
            found.iter().all(|f| f.kind == FindingKind::KnownDamage),
            "step {step}: {found:?}"
        );
        let open = place.reading().await.read("latest").await.unwrap();
        assert!(read_artifact(&open, "s/kept").await.unwrap() == kept, "step {step}");
        if !died {
            assert!(step > 3);
            return;
        }
    }
    panic!("the repair never succeeded");
}
