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

async fn prune_all(place: &Place) {
    let repository = place.writing().await;
    for _ in 0..3 {
        let plan = repository.plan_prune(std::time::Duration::ZERO).await.unwrap();
        repository.prune(&plan).await.unwrap();
    }
}

/// Another writer has not the packs of whose backup it is, so it cannot say what of it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn anothers_backup_without_its_list_is_left_to_its_own_writer() {
    let place = Place::new().await;
    let second = WriterKey::generate();
    place.writing().await.authorize(&second.public()).await.unwrap();
    let as_second = |identity: bool| Access {
        writer: Some(second.clone()),
        identities: if identity {
            vec![place.identity.identity()]
        } else {
            vec![]
        },
        cache_dir: place.dir.path().join("second"),
        state_dir: place.dir.path().join("state").join("second"),
        ..place.as_writer()
    };
    let (table, other) = (rows(1, 5_000), rows(700_000, 2_000));
    let made = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    let list = place.objects("lists").remove(0);
    let repository = Repository::open(place.store(), as_second(false)).await.unwrap();
    backup(&repository, &[("s/other", &other)]).await.unwrap();
    std::fs::remove_file(list).unwrap();

    let repository = Repository::open(place.store(), as_second(true)).await.unwrap();
    for confirm in [false, true] {
        let report = repository.repair(confirm, &PlainArtifacts).await.unwrap();
        assert!(report.backups.is_empty(), "{report:?}");
        assert!(
            report.left_alone.iter().any(|l| l.contains(made.id.as_str())),
            "{:?}",
            report.left_alone
        );
    }
    assert!(place.objects("revisions").is_empty());
    assert!(
        repository.plan_prune(std::time::Duration::ZERO).await.is_err(),
        "as long as it is not known what is needed, nothing is deleted"
    );
    place.writing().await.repair(true, &PlainArtifacts).await.unwrap();
    prune_all(&place).await;
    assert_eq!(findings(&place).await, []);
    let open = place.reading().await.read(made.id.as_str()).await.unwrap();
    assert!(read_artifact(&open, "s/t").await.unwrap() == table);
}

/// Where a list is lost and with it some of what it named, that is said, and both come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_list_is_called_lost_where_not_all_is_found() {
    let place = Place::new().await;
    let (lost, kept) = (rows(1, 4_000), rows(800_000, 4_000));
    backup(&place.writing().await, &[("s/lost", &lost)]).await.unwrap();
    let pack = place.objects("data").remove(0);
    for list in place.objects("lists") {
        std::fs::remove_file(list).unwrap();
    }
    let first = place.reading().await.backups().await.unwrap().remove(0).id;
    place.writing().await.repair(true, &PlainArtifacts).await.unwrap();
    place.writing().await.forget(&first, "a test").await.unwrap();
    backup(&place.writing().await, &[("s/lost", &lost), ("s/kept", &kept)])
        .await
        .unwrap();
    let listed: Vec<_> = place
        .objects("lists")
        .into_iter()
        .map(|path| (std::fs::read(&path).unwrap(), path))
        .collect();
    for (_, path) in &listed {
        std::fs::remove_file(path).unwrap();
    }
    let away = std::fs::read(&pack).unwrap();
    std::fs::remove_file(&pack).unwrap();

    // Without an identity nothing is decided; with one it is said what is lost.
    let report = place.writing().await.repair(true, &PlainArtifacts).await.unwrap();
    assert!(report.backups.is_empty(), "{report:?}");
    let report = mended(&place).await;
    assert_eq!(report.backups.len(), 1, "{report:?}");
    assert_eq!(report.backups[0].damaged.len(), 1, "{report:?}");
    assert!(
        report.backups[0].lost.iter().any(|l| l.starts_with("lists/")),
        "{report:?}"
    );
    let summary = place.reading().await.backups().await.unwrap().remove(0);
    assert!(summary.lost_objects > 0);
    prune_all(&place).await;
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/kept").await.unwrap() == kept);
    assert!(read_artifact(&open, "s/lost").await.is_err());
    // The list and the pack come back from a copy.
    std::fs::write(&pack, away).unwrap();
    for (bytes, path) in listed {
        std::fs::write(path, bytes).unwrap();
    }
    let report = mended(&place).await;
    assert!(report.backups.iter().all(|b| b.lost.is_empty()), "{report:?}");
    assert_eq!(findings(&place).await, []);
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/lost").await.unwrap() == lost);
}

/// Two artifacts in one pack, of which the second is torn.
async fn torn() -> (Place, Vec<u8>, Vec<u8>, std::path::PathBuf) {
    let place = Place::new().await;
    let access = Access {
        options: Options {
            pack_bytes: 16 << 20,
            ..place.options()
        },
        ..place.as_writer()
    };
    let repository = Repository::open(place.store(), access).await.unwrap();
    let made = repository.begin(START).await.unwrap();
    let (front, back) = (noise(1, 4 << 20), noise(2, 4 << 20));
    let mut contents = keep(&made, LaneSpec::TABLE, &[&front, &back]).await.unwrap();
    made.record(record("s/back", contents.pop().unwrap())).await.unwrap();
    made.record(record("s/front", contents.pop().unwrap())).await.unwrap();
    made.commit(serde_json::Value::Null).await.unwrap();
    let pack = place.objects("data").remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    let at = bytes.len() - 100_000;
    bytes[at] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    (place, front, back, pack)
}

async fn front_is_saved(place: &Place, front: &[u8]) {
    let report = mended(place).await;
    assert_eq!(report.salvaged.len(), 1, "{report:?}");
    assert_eq!(report.backups[0].damaged.len(), 1, "{report:?}");
    assert_eq!(report.backups[0].damaged[0].artifact, "s/back");
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/front").await.unwrap() == front);
    // What was saved is saved once.
    let again = both(place).await.repair(true, &PlainArtifacts).await.unwrap();
    assert!(again.salvaged.is_empty() && again.backups.is_empty(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_pack_waits_for_whoever_can_look_into_it() {
    let (place, front, back, pack) = torn().await;
    let report = place.writing().await.repair(true, &PlainArtifacts).await.unwrap();
    assert!(report.backups.is_empty(), "nothing is lost yet: {report:?}");
    prune_all(&place).await;
    assert!(pack.exists());
    front_is_saved(&place, &front).await;
    // It is not relied on, whatever was pruned meanwhile.
    prune_all(&place).await;
    let next = backup(&place.writing().await, &[("s/back", &back)]).await.unwrap();
    assert!(next.stats.chunks_new > 0);
    let report = mended(&place).await;
    assert!(report.backups[0].damaged.is_empty(), "{report:?}");
    assert_eq!(findings(&place).await, []);
    // Now nothing needs it.
    prune_all(&place).await;
    assert!(!pack.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_pack_is_not_relied_on_between_repair_and_salvage() {
    let (place, _, back, _) = torn().await;
    place.writing().await.repair(true, &PlainArtifacts).await.unwrap();
    prune_all(&place).await;
    let next = backup(&place.writing().await, &[("s/back", &back)]).await.unwrap();
    assert!(next.stats.chunks_new > 0);
    let open = place.reading().await.read(next.id.as_str()).await.unwrap();
    assert!(read_artifact(&open, "s/back").await.unwrap() == back);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_declared_lost_is_not_pruned_and_can_still_be_salvaged() {
    let (place, front, _, pack) = torn().await;
    // Who names no recipient cannot keep what is salvaged: the pack is called lost.
    let access = Access {
        identities: vec![place.identity.identity()],
        recipients: Recipients::none(),
        cache_dir: place.dir.path().join("nobody"),
        state_dir: place.dir.path().join("state").join("nobody"),
        ..place.as_writer()
    };
    let report = Repository::open(place.store(), access).await.unwrap();
    let report = report.repair(true, &PlainArtifacts).await.unwrap();
    assert!(report.backups[0].lost.contains(&name(&place, &pack)), "{report:?}");
    prune_all(&place).await;
    assert!(pack.exists());
    front_is_saved(&place, &front).await;
}

/// A disk or a memory that flips a bit now and then: repair believes none of it, and a restore hands out none of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_reads_wrongly_now_and_then_is_neither_believed_nor_handed_out() {
    let place = Place::new().await;
    let table = rows(1, 12_000);
    let first = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    backup(&place.writing().await, &[("s/t", &rows(1, 14_000))])
        .await
        .unwrap();
    let everything = || -> Vec<_> {
        let all = place.objects("").into_iter();
        all.filter(|p| !p.starts_with(place.root().join("leases")))
            .map(|p| (std::fs::read(&p).unwrap(), p))
            .collect()
    };
    let before = everything();
    let flips = |seed: u64| {
        let plan = FaultPlan {
            faults: vec![Fault::BitFlip],
            only: vec![Op::Get, Op::GetRange],
            ..FaultPlan::flaky(seed, [0.02, 0.06, 0.15][(seed % 3) as usize])
        };
        Arc::new(Faulty::new(place.store(), plan))
    };
    let (mut refused, mut ran, mut flipped) = (0, 0, 0);
    for seed in 0..24u64 {
        let faulty = flips(seed);
        let access = Access {
            identities: if seed % 2 == 0 {
                vec![place.identity.identity()]
            } else {
                vec![]
            },
            cache_dir: place.dir.path().join(format!("flips-{seed}")),
            state_dir: place.dir.path().join("state").join(format!("flips-{seed}")),
            ..place.as_writer()
        };
        if let Ok(repository) = Repository::open(faulty.clone(), access).await {
            match repository.repair(true, &PlainArtifacts).await {
                Ok(report) => {
                    assert!(report.backups.is_empty(), "seed {seed}: {report:?}");
                    ran += 1;
                }
                Err(_) => refused += 1,
            }
        }
        flipped += faulty.broken_calls();
        assert!(everything() == before, "seed {seed}");
    }
    assert!(ran > 0 && refused > 0 && flipped > 20, "{ran} {refused} {flipped}");

    let (mut failed, mut whole) = (0, 0);
    for seed in 0..24u64 {
        let restored = async {
            let reader = Repository::open(flips(seed), place.as_reader(&format!("restores-{seed}"))).await?;
            let open = reader.read(first.id.as_str()).await?;
            Ok::<_, RepositoryError>(read_artifact(&open, "s/t").await?)
        };
        match restored.await {
            Ok(read) => {
                assert!(read == table, "seed {seed}: wrong bytes");
                whole += 1;
            }
            Err(_) => failed += 1,
        }
    }
    assert!(whole > 0 && failed > 0, "{whole} {failed}");
}
