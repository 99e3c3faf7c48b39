//! The contract of a store, as a test for any of them. Stores over a network are put through it in `tests/stores`.

use bytes::Bytes;
use essrun_store::*;
use std::collections::BTreeSet;
use std::sync::Arc;

pub fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// An empty store, one operation after another.
pub async fn keeps_the_contract(store: &dyn Store) {
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

/// Several hosts create the same names at once; each name is created once, and holds what its creator wrote.
pub async fn elects_one_creator(hosts: Vec<Arc<dyn Store>>, names: u8) {
    let any = hosts.first().unwrap().clone();
    let tries = hosts.into_iter().zip(0u8..).map(|(store, n)| {
        tokio::spawn(async move {
            let mut won = BTreeSet::new();
            for number in 0..names {
                let name = name(&format!("manifests/w/{number}"));
                let outcome = store.put_new(&name, Bytes::from(vec![n; 5000])).await.unwrap();
                if outcome == Outcome::Created {
                    won.insert(number);
                }
            }
            (n, won)
        })
    });
    let mut creators = std::collections::BTreeMap::new();
    for one in tries.collect::<Vec<_>>() {
        let (n, won) = one.await.unwrap();
        for number in won {
            assert_eq!(creators.insert(number, n), None, "{number} was created twice");
        }
    }
    assert_eq!(creators.len(), usize::from(names), "every name was created");
    for (number, creator) in creators {
        let there = any.get(&name(&format!("manifests/w/{number}"))).await.unwrap();
        assert_eq!(there, vec![creator; 5000], "{number} holds what its creator wrote");
    }
}

/// More objects than any store lists in one answer.
pub async fn lists_many(store: &dyn Store, count: usize) {
    use futures_util::StreamExt;
    futures_util::stream::iter(0..count)
        .for_each_concurrent(32, |n| async move {
            let outcome = store
                .put_new(&name(&format!("many/{n:05}")), Bytes::new())
                .await
                .unwrap();
            assert_eq!(outcome, Outcome::Created);
        })
        .await;
    let found: Vec<String> = store
        .list("many")
        .await
        .unwrap()
        .into_iter()
        .map(|i| i.name.to_string())
        .collect();
    let wanted: Vec<String> = (0..count).map(|n| format!("many/{n:05}")).collect();
    assert_eq!(found, wanted);
}
