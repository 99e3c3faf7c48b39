//! A backup, a prune, a forgetting and its undoing at one time, in many orders of their single requests.
//!
//! Every request stands still before it reaches the store, and every change once more before its answer comes back; a
//! scheduler with a seed lets one of them go at a time. Whatever the order: what is listed restores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use async_trait::async_trait;
use bytes::Bytes;
use common::*;
use essrun_repository::*;
use essrun_store::*;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// What the store says was written so long ago, in seconds, of what was there before; and the grace time of all prunes.
const AGO: i64 = 2 * 3600;
const GRACE: Duration = Duration::from_secs(3600);

/// See the module's page.
#[derive(Debug)]
struct Parked {
    inner: Arc<dyn Store>,
    old: HashSet<ObjectName>,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
}

impl Parked {
    async fn turn(&self) {
        let (go, wait) = oneshot::channel();
        self.waiting.lock().unwrap().push(go);
        wait.await.expect("the scheduler lets everybody go in the end");
    }

    fn dated(&self, mut info: ObjectInfo) -> ObjectInfo {
        if self.old.contains(&info.name) {
            info.modified_unix_seconds -= AGO;
        }
        info
    }

    fn waiting(&self) -> usize {
        let mut waiting = self.waiting.lock().unwrap();
        // A request may be given up while it stands.
        waiting.retain(|go| !go.is_closed());
        waiting.len()
    }
}

#[async_trait]
impl Store for Parked {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        self.turn().await;
        let done = self.inner.put_new(name, bytes).await;
        self.turn().await;
        done
    }
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.turn().await;
        self.inner.get(name).await
    }
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.turn().await;
        self.inner.get_range(name, range).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.turn().await;
        Ok(self.inner.head(name).await?.map(|info| self.dated(info)))
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.turn().await;
        let found = self.inner.list(prefix).await?;
        Ok(found.into_iter().map(|info| self.dated(info)).collect())
    }
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.turn().await;
        let done = self.inner.delete(name).await;
        self.turn().await;
        done
    }
}

/// Lets requests go one at a time until all tasks are done; how many went.
async fn schedule(parked: &Parked, seed: u64, tasks: &[tokio::task::JoinHandle<()>]) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut went = 0;
    while !tasks.iter().all(|t| t.is_finished()) {
        // All that can go on without the store does.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let waiting = parked.waiting();
        if waiting == 0 {
            // Somebody computes.
            tokio::time::sleep(Duration::from_micros(200)).await;
            continue;
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let go = parked.waiting.lock().unwrap().swap_remove(state as usize % waiting);
        // It may have been given up just now.
        let _ = go.send(());
        went += 1;
    }
    went
}

#[tokio::test]
async fn whatever_the_order_of_requests_what_is_listed_restores() {
    let (mut orders, mut swept) = (BTreeSet::new(), 0);
    for seed in 0..30u64 {
        let place = Place::new().await;
        let memory: Arc<dyn Store> = Arc::new(Objects::memory());
        Repository::init(memory.clone(), &place.writer, &place.recipients())
            .await
            .unwrap();
        let access = |cache: &str| Access {
            cache_dir: place.dir.path().join(cache),
            state_dir: place.dir.path().join("state").join(cache),
            options: Options {
                pack_bytes: 32 << 10,
                ..place.options()
            },
            ..place.as_writer()
        };
        // Four backups that share packs. One was forgotten long ago, and what only it needed is marked: a prune takes it.
        // Another was forgotten a moment ago.
        let repository = Repository::open(memory.clone(), access("before")).await.unwrap();
        let (first, second, third, gone) = (rows(1, 500), rows(201, 500), rows(401, 500), rows(601, 500));
        let x = backup(&repository, &[("s/t", &first)]).await.unwrap().id;
        let y = backup(&repository, &[("s/t", &second)]).await.unwrap().id;
        let z = backup(&repository, &[("s/t", &third)]).await.unwrap().id;
        let w = backup(&repository, &[("s/t", &gone)]).await.unwrap().id;
        repository.forget(&w, "retention").await.unwrap();
        let plan = repository.plan_prune(GRACE).await.unwrap();
        assert!(!plan.mark.is_empty() && plan.delete.is_empty());
        repository.prune(&plan).await.unwrap();
        let old = memory
            .list("")
            .await
            .unwrap()
            .into_iter()
            .map(|info| info.name)
            .collect();
        repository.forget(&y, "retention").await.unwrap();
        drop(repository);

        let parked = Arc::new(Parked {
            inner: memory.clone(),
            old,
            waiting: Mutex::default(),
        });
        let opened = |cache: &str| Repository::open(parked.clone(), access(cache));
        let order = Arc::new(Mutex::new(Vec::new()));
        let done = |what: &'static str| {
            let order = order.clone();
            move || order.lock().unwrap().push(what)
        };
        let made = Arc::new(Mutex::new(None));
        let deleted = Arc::new(Mutex::new(0));
        let (backing_up, pruning, forgetting, undoing) =
            (opened("backup"), opened("prune"), opened("forget"), opened("undo"));
        let tasks = [
            tokio::spawn({
                let (done, made, table) = (done("backup"), made.clone(), gone.clone());
                async move {
                    let repository = backing_up.await.unwrap();
                    let id = backup(&repository, &[("s/t", &table)]).await.unwrap().id;
                    *made.lock().unwrap() = Some(id);
                    done();
                }
            }),
            tokio::spawn({
                let (done, deleted) = (done("prune"), deleted.clone());
                async move {
                    let repository = pruning.await.unwrap();
                    for _ in 0..2 {
                        // What it looks at may vanish meanwhile: then it says so and deletes nothing more.
                        if let Ok(plan) = repository.plan_prune(GRACE).await
                            && let Ok(report) = repository.prune(&plan).await
                        {
                            *deleted.lock().unwrap() += report.deleted;
                        }
                    }
                    done();
                }
            }),
            tokio::spawn({
                let (done, x) = (done("forget"), x.clone());
                async move {
                    forgetting.await.unwrap().forget(&x, "retention").await.unwrap();
                    done();
                }
            }),
            tokio::spawn({
                let (done, y) = (done("undo"), y.clone());
                async move {
                    undoing.await.unwrap().unforget(y.as_str(), GRACE).await.unwrap();
                    done();
                }
            }),
        ];
        let went = schedule(&parked, seed + 1, &tasks).await;
        assert!(went > 40, "requests do not stand still: {went}");
        for task in tasks {
            task.await.unwrap();
        }
        orders.insert(order.lock().unwrap().clone());

        let reader = Repository::open(memory.clone(), place.as_reader("after"))
            .await
            .unwrap();
        let listed: BTreeSet<BackupId> = reader.backups().await.unwrap().into_iter().map(|b| b.id).collect();
        let made = made.lock().unwrap().clone().unwrap();
        let expected = [(made, &gone), (y, &second), (z, &third)];
        swept += *deleted.lock().unwrap();
        assert_eq!(
            listed,
            expected.iter().map(|(id, _)| id.clone()).collect(),
            "seed {seed}"
        );
        for (id, table) in expected {
            let open = reader.read(id.as_str()).await.unwrap();
            assert!(
                &read_artifact(&open, "s/t").await.unwrap() == table,
                "seed {seed}: {id}"
            );
        }
        let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
        assert!(report.is_good(), "seed {seed}: {:?}", report.findings);
    }
    assert!(orders.len() > 1, "the orders are few: {orders:?}");
    assert!(swept > 0, "no prune had anything to take");
}

#[tokio::test]
async fn a_backup_follows_one_that_is_swept_while_it_looks() {
    let place = Place::new().await;
    let inner: Arc<dyn Store> = Arc::new(Objects::memory());
    Repository::init(inner.clone(), &place.writer, &place.recipients())
        .await
        .unwrap();
    let repository = Repository::open(inner.clone(), place.as_writer()).await.unwrap();
    let kept = backup(&repository, &[("s/t", &rows(1, 100))]).await.unwrap();
    let gone = backup(&repository, &[("s/t", &rows(51, 150))]).await.unwrap();
    repository.forget(&gone.id, "retention").await.unwrap();
    let manifests = inner.list("manifests").await.unwrap();
    let victim = manifests.last().unwrap().name.clone();
    assert_eq!((manifests.len(), gone.sequence), (2, 2));

    // As a prune does it, just before it is read.
    let store = Watched::new(inner.clone());
    store.vanish(victim.as_str());
    // Knows nothing from before, so that it has to look.
    let access = Access {
        cache_dir: place.dir.path().join("another"),
        state_dir: place.dir.path().join("another-state"),
        ..place.as_writer()
    };
    let repository = Repository::open(store, access).await.unwrap();
    let next = backup(&repository, &[("s/t", &rows(101, 200))]).await.unwrap();
    assert_eq!(inner.head(&victim).await.unwrap(), None, "it was looked at");
    assert_eq!(next.sequence, 3);
    let reader = Repository::open(inner, place.as_reader("after")).await.unwrap();
    let listed: Vec<BackupId> = reader.backups().await.unwrap().into_iter().map(|b| b.id).collect();
    assert_eq!(listed, [kept.id, next.id.clone()]);
    let open = reader.read(next.id.as_str()).await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), rows(101, 200));
}
