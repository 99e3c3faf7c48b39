//! The contract of a store, kept by the directory, by memory, and through every decorator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use essrun_store::*;
use std::sync::Arc;
use std::time::Duration;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

const QUICK: RetryPolicy = RetryPolicy {
    attempts: 20,
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(2),
};

async fn keeps_the_contract(store: &dyn Store) {
    let a = name("data/aa/x.1.age");
    assert_eq!(
        store.put_new(&a, Bytes::from_static(b"0123456789")).await.unwrap(),
        Outcome::Created
    );
    assert_eq!(
        store.put_new(&a, Bytes::from_static(b"other")).await.unwrap(),
        Outcome::AlreadyThere
    );
    assert_eq!(store.get(&a).await.unwrap(), b"0123456789"[..], "never overwritten");
    assert_eq!(store.get_range(&a, 2..5).await.unwrap(), b"234"[..]);
    assert_eq!(store.get_range(&a, 5..5).await.unwrap(), b""[..]);
    for range in [8..12, 20..22] {
        assert_eq!(store.get_range(&a, range).await.unwrap_err().cause, Cause::Short);
    }
    assert_eq!(store.head(&a).await.unwrap().unwrap().bytes, 10);
    let gone = name("data/aa/none");
    assert_eq!(store.head(&gone).await.unwrap(), None);
    let missing = store.get(&gone).await.unwrap_err();
    assert_eq!(missing.cause, Cause::Missing);
    assert!(missing.to_string().contains("data/aa/none"), "{missing}");
    for other in ["data/b", "database/c", "z"] {
        store.put_new(&name(other), Bytes::new()).await.unwrap();
    }
    let list = |found: Vec<ObjectInfo>| found.into_iter().map(|i| i.name.to_string()).collect::<Vec<_>>();
    assert_eq!(
        list(store.list("data").await.unwrap()),
        ["data/aa/x.1.age", "data/b"],
        "whole segments only"
    );
    assert_eq!(store.list("").await.unwrap().len(), 4);
    assert_eq!(store.list("nowhere").await.unwrap(), []);
    store.delete(&a).await.unwrap();
    store.delete(&a).await.unwrap();
    assert_eq!(store.head(&a).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    keeps_the_contract(&*open(dir.path().to_str().unwrap()).unwrap()).await;
    keeps_the_contract(&Objects::memory()).await;
    keeps_the_contract(&Throttled::new(Arc::new(Objects::memory()), 1 << 30)).await;
    let faulty = Arc::new(Faulty::new(Arc::new(Objects::memory()), FaultPlan::flaky(3, 0.4)));
    keeps_the_contract(&Retrying::new(faulty.clone(), QUICK)).await;
    assert!(faulty.broken_calls() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_create_one_object_exactly_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path().to_str().unwrap()).unwrap();
    let tries = (0..32u8).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            (
                n,
                store
                    .put_new(&name("manifests/w/1"), Bytes::from(vec![n; 5000]))
                    .await
                    .unwrap(),
            )
        })
    });
    let mut winner = None;
    for one in tries.collect::<Vec<_>>() {
        let (n, outcome) = one.await.unwrap();
        if outcome == Outcome::Created {
            assert_eq!(winner.replace(n), None, "only one");
        }
    }
    assert_eq!(
        store.get(&name("manifests/w/1")).await.unwrap(),
        vec![winner.unwrap(); 5000]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_will_not_pass_is_not_tried_again_and_a_dead_store_stays_dead() {
    let dying = Arc::new(Faulty::new(Arc::new(Objects::memory()), FaultPlan::dead_after(1)));
    let store = Retrying::new(dying.clone(), QUICK);
    store.put_new(&name("a"), Bytes::new()).await.unwrap();
    let full = store.put_new(&name("b"), Bytes::new()).await.unwrap_err();
    assert_eq!(full.cause, Cause::Full);
    assert_eq!(dying.broken_calls(), 1, "no second attempt");
    assert!(full.to_string().contains("make room"), "{full}");
    assert!(store.get(&name("a")).await.is_err());
}
