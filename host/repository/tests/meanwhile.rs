//! What goes on at the same time: prunes beside backups, marks that come and go, runs that fail and leave nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_artifact::*;
use essrun_repository::*;
use std::time::Duration;

const NO_GRACE: Duration = Duration::ZERO;

async fn prune_all(repository: &Repository) {
    for _ in 0..3 {
        let plan = repository.plan_prune(NO_GRACE).await.unwrap();
        repository.prune(&plan).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_during_the_first_backup_takes_nothing_of_it_away() {
    let place = Place::new().await;
    let table = rows(1, 20_000);
    let running = place.writing().await.begin(START).await.unwrap();
    let content = keep(&running, LaneSpec::TABLE, &[&table]).await.unwrap().remove(0);
    running.record(record("s/t", content)).await.unwrap();
    assert!(!place.objects("data").is_empty());
    let other = place.writing().await;
    prune_all(&other).await;
    running.commit(serde_json::Value::Null).await.unwrap();
    let next = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert_eq!(next.stats.chunks_new, 0, "all of it is there");
}

/// Others prune and take back what they forgot while we look.
#[tokio::test(flavor = "multi_thread")]
async fn marks_and_tombstones_that_go_while_they_are_read_fail_nobody() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let table = rows(1, 3_000);
    let first = backup(&repository, &[("s/t", &table)]).await.unwrap();
    backup(&repository, &[("s/t", &rows(900_000, 3_000))]).await.unwrap();
    for below in ["prunes", "tombstones"] {
        if place.objects("tombstones").is_empty() {
            repository.forget(&first.id, "a test").await.unwrap();
            let plan = repository.plan_prune(Duration::from_secs(3600)).await.unwrap();
            repository.prune(&plan).await.unwrap();
        }
        assert!(!place.objects(below).is_empty());
        let watched = Watched::new(place.store());
        watched.vanish(below);
        let access = Access {
            cache_dir: place.dir.path().join(below),
            state_dir: place.dir.path().join("state").join(below),
            ..place.as_writer()
        };
        let late = Repository::open(watched, access).await.unwrap();
        match below {
            "prunes" => drop(backup(&late, &[("s/t", &table)]).await.unwrap()),
            _ => drop(late.plan_prune(NO_GRACE).await.unwrap()),
        }
        assert!(place.objects(below).is_empty(), "they went while they were read");
    }
}

/// A mark outlives the list it names, and a list of the same content is written again.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_a_mark_names_is_not_relied_on_also_when_it_is_created_anew() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let first = backup(&repository, &[]).await.unwrap();
    let list = place.objects("lists").remove(0);
    repository.forget(&first.id, "a test").await.unwrap();
    let plan = repository.plan_prune(Duration::from_secs(3600)).await.unwrap();
    repository.prune(&plan).await.unwrap();
    assert_eq!(place.objects("prunes").len(), 1);
    std::fs::remove_file(&list).unwrap();
    let second = backup(&place.writing().await, &[]).await.unwrap();
    // A sweep takes what the mark names.
    let _ = std::fs::remove_file(&list);
    let reader = place.reading().await;
    assert!(reader.read(second.id.as_str()).await.is_ok());
    let report = reader.check(CheckMode::Public).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
}

async fn until_no_lease(place: &Place) {
    for _ in 0..500 {
        if place.objects("leases").is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", place.objects("leases"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_leaves_no_lease() {
    let place = Place::new().await;
    let writer = place.writing().await;
    backup(&writer, &[("s/t", &rows(1, 3_000))]).await.unwrap();
    let access = || Access {
        identities: vec![place.identity.identity()],
        cache_dir: place.dir.path().join("watched"),
        state_dir: place.dir.path().join("state").join("watched"),
        ..place.as_writer()
    };
    let watched = Watched::new(place.store());
    let repository = Repository::open(watched.clone(), access()).await.unwrap();
    watched.fail(Some("lists"));
    assert!(repository.repair(true, &PlainArtifacts).await.is_err());
    assert!(place.objects("leases").is_empty(), "repair");
    let repack = Rewrite::Repack { unused_percent: 0 };
    let done = repository.rewrite(repack, true, &PlainArtifacts, &NoProgress).await;
    assert!(done.is_err());
    assert!(place.objects("leases").is_empty(), "repack");
    watched.fail(Some("manifests"));
    assert!(repository.begin(START).await.is_err());
    assert!(place.objects("leases").is_empty(), "a backup that cannot begin");
    watched.fail(None);
    let given_up = repository.begin(START).await.unwrap();
    given_up.abandon().await;
    assert!(place.objects("leases").is_empty(), "a backup that was given up");
    drop(repository.begin(START).await.unwrap());
    until_no_lease(&place).await;
    writer.rotate(&place.writer.rotated()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_ran_out_long_ago_are_pruned() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let running = repository.begin(START).await.unwrap();
    let lease = place.objects("leases").remove(0);
    let bytes = std::fs::read(&lease).unwrap();
    running.commit(serde_json::Value::Null).await.unwrap();
    // As a killed run leaves them.
    let (old, new) = (lease.with_file_name("old.lease"), lease.with_file_name("new.lease"));
    std::fs::write(&old, &bytes).unwrap();
    place.age("leases", Duration::from_secs(27 * 3600));
    std::fs::write(&new, &bytes).unwrap();
    let plan = repository.plan_prune(NO_GRACE).await.unwrap();
    assert!(old.exists(), "planning changes nothing");
    repository.prune(&plan).await.unwrap();
    assert!(!old.exists() && new.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn forgetting_many_looks_once() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let mut all = Vec::new();
    for n in 0..6u64 {
        let made = backup(&repository, &[("s/t", &rows(n, 50))]).await.unwrap();
        all.push((made.id, format!("reason {n}")));
    }
    let watched = Watched::new(place.store());
    let access = Access {
        cache_dir: place.dir.path().join("watched"),
        state_dir: place.dir.path().join("state").join("watched"),
        ..place.as_writer()
    };
    let repository = Repository::open(watched.clone(), access).await.unwrap();
    let lists = || watched.lists.load(std::sync::atomic::Ordering::Relaxed);
    let (first, rest) = all.split_at(1);
    let before = lists();
    repository.forget_all(first).await.unwrap();
    let for_one = lists() - before;
    repository.forget_all(rest).await.unwrap();
    assert_eq!(lists() - before - for_one, for_one, "five cost as many listings as one");
    assert!(repository.backups().await.unwrap().is_empty());
    assert!(repository.forget_all(first).await.is_err(), "it is forgotten already");
}
