//! Forgetting, pruning, several writers, changed keys, and stores that fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_artifact::*;
use essrun_repository::*;
use essrun_store::*;
use std::sync::Arc;
use std::time::Duration;

const NO_GRACE: Duration = Duration::ZERO;

async fn prune_all(repository: &Repository) -> u64 {
    let mut deleted = 0;
    for _ in 0..3 {
        let plan = repository.plan_prune(NO_GRACE).await.unwrap();
        deleted += repository.prune(&plan).await.unwrap().deleted;
    }
    deleted
}

#[tokio::test(flavor = "multi_thread")]
async fn forgetting_and_pruning_free_what_nothing_needs_and_nothing_else() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let (old, new) = (rows(1, 20_000), rows(500_000, 20_000));
    let first = backup(&repository, &[("s/t", &old)]).await.unwrap();
    let second = backup(&repository, &[("s/t", &new)]).await.unwrap();
    let before = place.bytes_in("data");
    assert_eq!(prune_all(&repository).await, 0, "everything is needed");
    repository.forget(&first.id, "a test").await.unwrap();
    assert_eq!(repository.backups().await.unwrap().len(), 1);
    assert!(repository.read(first.id.as_str()).await.is_err());

    let plan = repository.plan_prune(NO_GRACE).await.unwrap();
    assert!(!plan.mark.is_empty());
    assert_eq!(place.bytes_in("data"), before, "planning changes nothing");
    // Within the grace time nothing goes.
    let patient = repository.plan_prune(Duration::from_secs(3600)).await.unwrap();
    repository.prune(&patient).await.unwrap();
    let patient = repository.plan_prune(Duration::from_secs(3600)).await.unwrap();
    assert!(patient.delete.is_empty() && !patient.waiting.is_empty(), "{patient:?}");
    assert_eq!(place.bytes_in("data"), before);

    assert!(prune_all(&repository).await > 0);
    assert!(
        place.bytes_in("data") < before * 2 / 3,
        "{} of {before}",
        place.bytes_in("data")
    );
    assert_eq!(place.objects("prunes").len(), 0, "marks that did their work are gone");
    let reader = place.reading().await;
    let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert_eq!(report.findings, [], "the tombstone stands in the chain");
    let open = reader.read("latest").await.unwrap();
    assert_eq!(open.summary().id, second.id);
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), new);
    // Life goes on: the next backup finds its place in the chain, stores the old rows anew.
    let third = backup(&place.writing().await, &[("s/t", &old)]).await.unwrap();
    assert_eq!(third.sequence, 3);
    let open = reader.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_backup_keeps_what_it_relies_on() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let table = rows(1, 20_000);
    let first = backup(&repository, &[("s/t", &table)]).await.unwrap();
    // What was written since something began is not marked anyway.
    place.age("", Duration::from_secs(2 * 3600));
    let old = repository.read("latest").await.unwrap();
    let content = old.artifacts()[0].content.clone();

    // It relies on the first backup's packs, which are then forgotten and pruned as eagerly as can be.
    let running = repository.begin(START).await.unwrap();
    assert!(running.adopt(&content).await.unwrap());
    repository.forget(&first.id, "a test").await.unwrap();
    let other = place.writing().await;
    assert_eq!(
        prune_all(&other).await,
        1,
        "only the forgotten manifest goes while a backup runs"
    );
    let waiting = other.plan_prune(NO_GRACE).await.unwrap().waiting;
    assert!(waiting.iter().any(|w| w.contains(running.id().as_str())), "{waiting:?}");

    // One that begins now sees the mark and does not rely on these packs.
    let late = other.begin(START).await.unwrap();
    assert!(!late.adopt(&content).await.unwrap());
    drop(late);

    running.record(record("s/t", content)).await.unwrap();
    running.commit(serde_json::Value::Null).await.unwrap();
    prune_all(&other).await;
    let open = place.reading().await.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_writers_at_once_lose_nothing() {
    let place = Place::new().await;
    let second = WriterKey::generate();
    let stranger = Access {
        writer: Some(second.clone()),
        cache_dir: place.dir.path().join("cache-2"),
        state_dir: place.dir.path().join("state").join("cache-2"),
        ..place.as_writer()
    };
    let refused = Repository::open(place.store(), stranger)
        .await
        .unwrap()
        .begin(START)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("not known"), "{refused}");
    place.writing().await.authorize(&second.public()).await.unwrap();

    let mut runs = Vec::new();
    for n in 0..6u64 {
        let access = if n % 2 == 0 {
            // The same key and cache from several processes at once.
            place.as_writer()
        } else {
            Access {
                writer: Some(second.clone()),
                cache_dir: place.dir.path().join("cache-2"),
                state_dir: place.dir.path().join("state").join("cache-2"),
                ..place.as_writer()
            }
        };
        let store = place.store();
        runs.push(tokio::spawn(async move {
            let repository = Repository::open(store, access).await.unwrap();
            let table = rows(n * 1000, 4000);
            (backup(&repository, &[("s/t", &table)]).await.unwrap(), table)
        }));
    }
    let mut made = Vec::new();
    for run in runs {
        made.push(run.await.unwrap());
    }
    let reader = place.reading().await;
    assert_eq!(reader.backups().await.unwrap().len(), 6);
    assert_eq!(reader.writers().len(), 2);
    for (summary, table) in made {
        let open = reader.read(summary.id.as_str()).await.unwrap();
        assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
    }
    let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_may_change_and_a_lost_writer_key_loses_nothing() {
    let place = Place::new().await;
    let second = NewIdentity::generate();
    let table = rows(1, 5_000);
    backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    let both = Recipients::parse([place.identity.recipient(), second.recipient()]).unwrap();
    let access = Access {
        recipients: both,
        ..place.as_writer()
    };
    let repository = Repository::open(place.store(), access).await.unwrap();
    let more = rows(700_000, 5_000);
    backup(&repository, &[("s/more", &more)]).await.unwrap();
    // The new recipient reads the new backup and not the old one.
    let access = Access {
        identities: vec![second.identity()],
        ..place.as_reader("second")
    };
    let reader = Repository::open(place.store(), access).await.unwrap();
    let open = reader.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/more").await.unwrap(), more);
    let bodies: Vec<bool> = reader
        .backups()
        .await
        .unwrap()
        .iter()
        .map(|b| b.body.is_some())
        .collect();
    assert_eq!(bodies, [false, true]);
    // Headers say so too: as a note to whoever names other recipients, which is no damage.
    let report = place.writing().await.check(CheckMode::Writer).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
    let named: Vec<_> = report.findings.iter().map(|f| (f.kind, f.object.clone())).collect();
    let other = format!("recipient {}", second.recipient());
    assert_eq!(named, [(FindingKind::OtherRecipients, other)]);
    let report = repository.check(CheckMode::Writer).await.unwrap();
    assert!(
        report.findings.iter().all(|f| f.detail.contains("cannot read")) && report.findings.len() == 1,
        "{:?}",
        report.findings
    );
    // The writer key was never needed: `reading` has none.
    let open = place.reading().await.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/more").await.unwrap(), more);
}

/// Dies after each number of changes, is opened again on the healthy store, and must be whole and complete the work.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_at_any_step_of_a_backup_leaves_the_repository_good() {
    let place = Place::new().await;
    let base = rows(1, 6_000);
    backup(&place.writing().await, &[("s/t", &base)]).await.unwrap();
    // Each round that dies is followed by one that finishes.
    for (finished, step) in (1u64..).zip(0..40u64) {
        let table = rows(step * 100_000 + 7, 4_000);
        let faulty = Arc::new(Faulty::new(place.store(), FaultPlan::dead_after(step)));
        let made = match Repository::open(faulty.clone(), place.as_writer()).await {
            Ok(repository) => backup(&repository, &[("s/t", &table)]).await.is_ok(),
            Err(_) => false,
        };
        let reader = place.reading().await;
        let listed = reader.backups().await.unwrap();
        // What was reported and what is there agree; a commit is the last thing that can fail.
        assert_eq!(listed.len() as u64, finished + u64::from(made), "step {step}");
        let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
        assert!(report.is_good(), "step {step}: {:?}", report.findings);
        if made {
            assert!(step > 4, "a backup takes some steps");
            return;
        }
        let next = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
        assert_eq!(next.sequence, finished + 1);
        let open = place.reading().await.read("latest").await.unwrap();
        assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table, "step {step}");
    }
    panic!("the backup never succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_at_any_step_of_forget_and_prune_loses_no_backup() {
    for step in 0..60u64 {
        let place = Place::new().await;
        let repository = place.writing().await;
        let (gone, kept) = (rows(1, 3_000), rows(900_000, 3_000));
        let first = backup(&repository, &[("s/t", &gone)]).await.unwrap();
        backup(&repository, &[("s/t", &kept)]).await.unwrap();
        let faulty = Arc::new(Faulty::new(place.store(), FaultPlan::dead_after(step)));
        let done = async {
            let dying = Repository::open(faulty, place.as_writer()).await?;
            dying.forget(&first.id, "a test").await?;
            for _ in 0..2 {
                let plan = dying.plan_prune(NO_GRACE).await?;
                dying.prune(&plan).await?;
            }
            Ok::<_, RepositoryError>(())
        };
        let done = done.await.is_ok();
        let reader = place.reading().await;
        let open = reader.read("latest").await.unwrap();
        assert_eq!(read_artifact(&open, "s/t").await.unwrap(), kept, "step {step}");
        let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
        assert!(report.is_good(), "step {step}: {:?}", report.findings);
        // And the work can be taken up again.
        let again = place.writing().await;
        if again.backups().await.unwrap().len() == 2 {
            again.forget(&first.id, "again").await.unwrap();
        }
        prune_all(&again).await;
        let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
        assert_eq!(report.findings, [], "step {step}");
        if done {
            assert!(step > 5);
            return;
        }
    }
    panic!("forget and prune never succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_succeeds_on_a_flaky_store_restores() {
    let place = Place::new().await;
    let mut broken = 0;
    for seed in 0..4u64 {
        let faulty = Arc::new(Faulty::new(place.store(), FaultPlan::flaky(seed, 0.15)));
        let policy = RetryPolicy {
            attempts: 12,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(5),
        };
        let store = Arc::new(Retrying::new(faulty.clone(), policy));
        let repository = Repository::open(store, place.as_writer()).await.unwrap();
        let table = rows(seed * 100_000, 8_000);
        let summary = backup(&repository, &[("s/t", &table)]).await.unwrap();
        broken += faulty.broken_calls();
        let open = place.reading().await.read(summary.id.as_str()).await.unwrap();
        assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
    }
    assert!(broken > 0, "something was broken on purpose");
    assert!(
        place
            .reading()
            .await
            .check(CheckMode::Full { part: 1, of: 1 })
            .await
            .unwrap()
            .is_good()
    );
}
