//! The contract of a store, kept by the directory, by memory, and through every decorator.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::result_large_err
)]

mod conformance;

use bytes::Bytes;
use conformance::{elects_one_creator, keeps_the_contract, lists_many, name};
use essrun_store::*;
use std::sync::Arc;
use std::time::Duration;

const QUICK: RetryPolicy = RetryPolicy {
    attempts: 20,
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(2),
};

#[tokio::test(flavor = "multi_thread")]
async fn every_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    keeps_the_contract(&*open(dir.path().to_str().unwrap()).unwrap()).await;
    keeps_the_contract(&Objects::memory()).await;
    keeps_the_contract(&Throttled::new(
        Arc::new(Objects::memory()),
        Some(1 << 30),
        Some(1 << 30),
    ))
    .await;
    lists_many(&Objects::memory(), 2500).await;
    let faulty = Arc::new(Faulty::new(Arc::new(Objects::memory()), FaultPlan::flaky(3, 0.4)));
    keeps_the_contract(&Retrying::new(faulty.clone(), QUICK)).await;
    assert!(faulty.broken_calls() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_create_one_object_exactly_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = (0..32).map(|_| open(dir.path().to_str().unwrap()).unwrap());
    elects_one_creator(hosts.collect(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_elect_a_creator_where_the_store_cannot() {
    // First that it takes an election: the blind store lets everybody be the creator.
    let blind = Objects::memory().blind();
    for _ in 0..2 {
        assert_eq!(blind.put_new(&name("a"), Bytes::new()).await.unwrap(), Outcome::Created);
    }
    for seed in 0..8 {
        // Slow in varying ways, so that the writers' steps mix.
        let slow = Arc::new(Slow(Objects::memory().blind(), seed));
        let hosts = (0..6).map(|_| Arc::new(Elected::new(slow.clone())) as Arc<dyn Store>);
        elects_one_creator(hosts.collect(), 3).await;
    }
    let slow = Fault::Slow(Duration::from_millis(5));
    let flaky = FaultPlan {
        faults: vec![Fault::Refused, slow, slow],
        ..FaultPlan::flaky(7, 0.4)
    };
    let faulty = Arc::new(Faulty::new(Arc::new(Objects::memory().blind()), flaky));
    let flaky = |_| Arc::new(Elected::new(Arc::new(Retrying::new(faulty.clone(), QUICK)))) as Arc<dyn Store>;
    elects_one_creator((0..6).map(flaky).collect(), 3).await;
    assert!(faulty.broken_calls() > 0);
    let elected = Elected::new(Arc::new(Objects::memory().blind()));
    keeps_the_contract(&elected).await;
    assert_eq!(elected.list("claims").await.unwrap(), [], "no claim is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_objects_are_created_is_recorded_and_held_to() {
    let remote = |place: &Objects, able: bool| {
        let first = if able { place.clone() } else { place.blind() };
        Remote::new(Arc::new(first), Arc::new(place.blind()))
    };
    for able in [true, false] {
        let place = Objects::memory();
        keeps_the_contract(&remote(&place, able)).await;
        let record = place.get(&name("essrun-store")).await.unwrap();
        let word = if able { "conditional" } else { "elected" };
        assert!(String::from_utf8_lossy(&record).contains(word), "{record:?}");
        // A host that meets the place later goes by the record, and one whose store forgot how is refused.
        let later = remote(&place, !able).put_new(&name("later"), Bytes::new()).await;
        match able {
            true => assert!(
                later
                    .unwrap_err()
                    .to_string()
                    .contains("overwrites although it did not")
            ),
            false => assert_eq!(later.unwrap(), Outcome::Created),
        }
        assert!(remote(&place, !able).get(&name("z")).await.is_ok(), "reading goes on");
    }
    // Ten hosts at once in a new place agree.
    let place = Objects::memory();
    let hosts = (0..10).map(|_| Arc::new(remote(&place, true)) as Arc<dyn Store>);
    elects_one_creator(hosts.collect(), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_that_are_not_atomic_are_seen_through() {
    let place = Objects::memory();
    let hasty = Hasty(place.clone());
    let a = name("a");
    let twice = (0..2).map(|_| hasty.put_new(&a, Bytes::new()));
    let told = futures_util::future::join_all(twice).await;
    assert!(told.iter().all(|t| matches!(t, Ok(Outcome::Created))), "{told:?}");
    let hosts = (0..4)
        .map(|_| Arc::new(Remote::new(Arc::new(Hasty(place.clone())), Arc::new(place.blind()))) as Arc<dyn Store>);
    elects_one_creator(hosts.collect(), 2).await;
    let record = place.get(&name("essrun-store")).await.unwrap();
    assert!(String::from_utf8_lossy(&record).contains("elected"), "{record:?}");
}

/// Looks whether an object is there, and some time later writes it.
#[derive(Debug)]
struct Hasty(Objects);

#[async_trait::async_trait]
impl Store for Hasty {
    fn describe(&self) -> String {
        self.0.describe()
    }
    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        if self.0.head(name).await?.is_some() {
            return Ok(Outcome::AlreadyThere);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.0.blind().put_new(name, bytes).await
    }
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.0.get(name).await
    }
    async fn get_range(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get_range(name, range).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.0.head(name).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.0.list(prefix).await
    }
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.0.delete(name).await
    }
}

/// A store whose answers take their time.
#[derive(Debug)]
struct Slow(Objects, u64);

impl Slow {
    async fn wait(&self) {
        // Only the order of steps matters: each waits for a few turns of the others.
        let turns = rand::random_range(0..6 + self.1);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait::async_trait]
impl Store for Slow {
    fn describe(&self) -> String {
        self.0.describe()
    }
    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        self.wait().await;
        let done = self.0.put_new(name, bytes).await;
        self.wait().await;
        done
    }
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.0.get(name).await
    }
    async fn get_range(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get_range(name, range).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.wait().await;
        let seen = self.0.head(name).await;
        self.wait().await;
        seen
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.wait().await;
        let seen = self.0.list(prefix).await;
        self.wait().await;
        seen
    }
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.wait().await;
        self.0.delete(name).await
    }
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

/// Looking at a place that is not there, mistyped say, makes nothing.
#[tokio::test]
async fn a_directory_is_made_with_its_first_object() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not").join("there");
    let (one, other) = (Objects::directory(&path).unwrap(), Objects::directory(&path).unwrap());
    let name = ObjectName::new("a/b").unwrap();
    assert_eq!(one.list("").await.unwrap(), []);
    assert_eq!(one.head(&name).await.unwrap(), None);
    assert_eq!(one.get(&name).await.unwrap_err().cause, Cause::Missing);
    one.delete(&name).await.unwrap();
    assert!(!dir.path().join("not").exists());
    assert_eq!(
        one.put_new(&name, Bytes::from_static(b"x")).await.unwrap(),
        Outcome::Created
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
    // Whoever looked before it was there sees it now.
    assert_eq!(other.get(&name).await.unwrap(), "x");
    assert_eq!(
        other.put_new(&name, Bytes::from_static(b"y")).await.unwrap(),
        Outcome::AlreadyThere
    );
}

/// Fails in passing until a moment, and works from then on.
#[derive(Debug)]
struct Restarting {
    inner: Objects,
    up: tokio::time::Instant,
}

impl Restarting {
    fn new(outage: Duration) -> Restarting {
        Restarting {
            inner: Objects::memory(),
            up: tokio::time::Instant::now() + outage,
        }
    }

    fn ready(&self, action: &'static str, object: &str) -> Result<(), StoreError> {
        match tokio::time::Instant::now() < self.up {
            true => Err(StoreError {
                action,
                object: object.to_owned(),
                store: "restarting".to_owned(),
                cause: Cause::Transient,
                why: "connection refused".to_owned(),
                hint: None,
                source: None,
            }),
            false => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl Store for Restarting {
    fn describe(&self) -> String {
        "restarting".to_owned()
    }
    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        self.ready("write", name.as_str())?;
        self.inner.put_new(name, bytes).await
    }
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.ready("read", name.as_str())?;
        self.inner.get(name).await
    }
    async fn get_range(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.ready("read", name.as_str())?;
        self.inner.get_range(name, range).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.ready("look at", name.as_str())?;
        self.inner.head(name).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.ready("list", prefix)?;
        self.inner.list(prefix).await
    }
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.ready("delete", name.as_str())?;
        self.inner.delete(name).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_gone_for_forty_seconds_is_waited_for() {
    // The pauses are drawn, so more than once.
    for _ in 0..50 {
        let away = || Arc::new(Restarting::new(Duration::from_secs(40)));
        let retrying = |store| Retrying::new(store, RetryPolicy::default());
        let done = retrying(away()).put_new(&name("a"), Bytes::from_static(b"x")).await;
        assert_eq!(done.unwrap(), Outcome::Created);
        assert_eq!(retrying(away()).list("").await.unwrap(), []);
        // For ever is too long: somebody must hear of it.
        let begun = tokio::time::Instant::now();
        let gone = Arc::new(Restarting::new(Duration::from_secs(86_400)));
        assert!(retrying(gone).head(&name("a")).await.unwrap_err().is_transient());
        assert!(begun.elapsed() <= Duration::from_secs(90), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept_over_objects_and_small_ones_do_not_wait() {
    const MIB: usize = 1 << 20;
    let store = Arc::new(Throttled::new(
        Arc::new(Objects::memory()),
        Some(MIB as u64),
        Some(MIB as u64 / 2),
    ));
    let begun = tokio::time::Instant::now();
    for n in 0..4 {
        let pack = Bytes::from(vec![n; MIB]);
        store.put_new(&name(&format!("pack-{n}")), pack).await.unwrap();
    }
    // Timers go by milliseconds.
    let took = |begun: tokio::time::Instant| begun.elapsed().as_millis();
    assert!((4_000..=4_004).contains(&took(begun)), "{}", took(begun));
    // Each direction by itself.
    let begun = tokio::time::Instant::now();
    store.get(&name("pack-0")).await.unwrap();
    store.get_range(&name("pack-1"), 0..MIB as u64 / 2).await.unwrap();
    assert!((3_000..=3_002).contains(&took(begun)), "{}", took(begun));
    // A lease goes past the packs that wait.
    let waiting = |n: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            store
                .put_new(&name(&format!("wait-{n}")), Bytes::from(vec![0; 30 * MIB]))
                .await
        })
    };
    let packs = [waiting(0), waiting(1)];
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = tokio::time::Instant::now();
    store
        .put_new(&name("lease"), Bytes::from(vec![0; 60 << 10]))
        .await
        .unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(packs.iter().all(|p| !p.is_finished()));
    for pack in packs {
        pack.await.unwrap().unwrap();
    }
    // What it took is paid for by the next large one.
    for n in 0..16 {
        store
            .put_new(&name(&format!("small-{n}")), Bytes::from(vec![0; 32 << 10]))
            .await
            .unwrap();
    }
    let begun = tokio::time::Instant::now();
    store.put_new(&name("large"), Bytes::from(vec![0; MIB])).await.unwrap();
    assert!((1_550..=1_570).contains(&took(begun)), "{}", took(begun));
}

/// Where FORMAT.md says that the claims to a name lie.
fn claim(of: &ObjectName, rest: &str) -> ObjectName {
    use sha2::Digest;
    let hash: String = sha2::Sha256::digest(of.as_str())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    name(&format!("claims/{}/{rest}", &hash[..32]))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claim_of_a_writer_that_died_runs_out() {
    let blind = Objects::memory().blind();
    let object = name("manifests/a");
    // Smaller than any other, so that whoever believes it gives way.
    let dead = claim(&object, "0000000000000000.0");
    blind.put_new(&dead, Bytes::new()).await.unwrap();
    let alive = claim(&object, "0000000000000001.86400");
    blind.put_new(&alive, Bytes::new()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let elected = Arc::new(Elected::new(Arc::new(blind.clone())));
    let create = {
        let (elected, object) = (elected.clone(), object.clone());
        tokio::spawn(async move { elected.put_new(&object, Bytes::from_static(b"x")).await })
    };
    // The dead one's claim is taken away by whoever sees it; the living one's holds the name.
    while blind.head(&dead).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!create.is_finished());
    assert_eq!(blind.head(&object).await.unwrap(), None);
    elected.delete(&alive).await.unwrap();
    assert_eq!(create.await.unwrap().unwrap(), Outcome::Created);
    assert_eq!(blind.list("claims").await.unwrap(), []);
}
