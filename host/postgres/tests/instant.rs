//! Several databases at one instant: an effect is never seen without its cause.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{connection, create};
use essrun_postgres::{
    Connection, Consistency, ConsistencyRequest, Error, FenceTables, QueryLimits, Session, Snapshot, SnapshotGroup,
    TableName,
};
use essrun_testkit::postgres::Cluster;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const CAUSE: &str = "CREATE TABLE cause (w int, n bigint, PRIMARY KEY (w, n))";
const EFFECT: &str = "CREATE TABLE effect (w int, n bigint, PRIMARY KEY (w, n))";

/// Writers that commit the cause to A, then the effect to B, without pause, until told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

async fn write(a: &Connection, b: &Connection, writers: i32) -> Writers {
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for w in 0..writers {
        let (a, b) = (Session::open(a).await.unwrap(), Session::open(b).await.unwrap());
        let (stop, written) = (stop.clone(), written.clone());
        tasks.push(tokio::spawn(async move {
            let mut n = 0i64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                a.execute("INSERT INTO public.cause VALUES ($1, $2)", &[&w, &n])
                    .await
                    .unwrap();
                b.execute("INSERT INTO public.effect VALUES ($1, $2)", &[&w, &n])
                    .await
                    .unwrap();
                // Old rows go, cause last, so that the tables stay small however long this takes.
                if n > 20 {
                    let old = n - 20;
                    b.execute("DELETE FROM public.effect WHERE w = $1 AND n < $2", &[&w, &old])
                        .await
                        .unwrap();
                    a.execute("DELETE FROM public.cause WHERE w = $1 AND n < $2", &[&w, &old])
                        .await
                        .unwrap();
                }
                written.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    Writers { stop, written, tasks }
}

impl Writers {
    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.written.load(Ordering::Relaxed)
    }
}

async fn rows(snapshot: &Snapshot, table: &str) -> HashSet<String> {
    let limits = QueryLimits::default();
    let sql = format!("SELECT w || '/' || n FROM public.{table}");
    let rows = snapshot
        .query(&sql, vec![], &limits)
        .await
        .unwrap()
        .all()
        .await
        .unwrap();
    rows.into_iter().map(|r| format!("{:?}", r[0])).collect()
}

/// Takes `times` groups; gives how they were reached and the sorted milliseconds each took.
async fn take(
    a: &Connection,
    b: &Connection,
    request: &ConsistencyRequest,
    times: usize,
) -> (Vec<Consistency>, Vec<f64>) {
    let (mut how, mut took) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let databases = vec![("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())];
        let group = SnapshotGroup::open(databases, request).await.unwrap();
        let (cause, effect) = tokio::join!(
            rows(group.get("a").unwrap(), "cause"),
            rows(group.get("b").unwrap(), "effect")
        );
        let orphans: Vec<_> = effect.difference(&cause).collect();
        assert!(orphans.is_empty(), "{orphans:?} have no cause; {:?}", group.reached());
        how.push(group.reached().how);
        took.push(group.reached().hold_ms.unwrap_or(group.reached().took_ms));
    }
    took.sort_by(f64::total_cmp);
    (how, took)
}

fn times() -> usize {
    std::env::var("ESSRUN_INSTANT_TRIALS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(500)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_many_times() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "a", CAUSE);
    create(&cluster, "b", EFFECT);
    let (a, b) = (connection(&cluster, "a"), connection(&cluster, "b"));
    let writers = write(&a, &b, 4).await;
    let (how, took) = take(&a, &b, &ConsistencyRequest::default(), times()).await;
    let written = writers.end().await;
    assert!(how.iter().all(|h| *h == Consistency::SameInstant));
    println!(
        "one server: {} groups, {written} pairs written, median {:.2} ms, p95 {:.2} ms",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 95 / 100]
    );
    assert!(written as usize > times(), "the writers must have been busy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_many_times() {
    let (one, two) = (Cluster::start(&[]).unwrap(), Cluster::start(&[]).unwrap());
    create(&one, "a", CAUSE);
    create(&two, "b", EFFECT);
    let (a, b) = (connection(&one, "a"), connection(&two, "b"));
    let tables = |label: &str, table: &str| FenceTables {
        label: label.to_owned(),
        tables: vec![TableName::new("public", table)],
    };
    let request = ConsistencyRequest {
        fence: vec![tables("a", "cause"), tables("b", "effect")],
        ..ConsistencyRequest::default()
    };
    let writers = write(&a, &b, 4).await;
    let (how, took) = take(&a, &b, &request, times()).await;
    let written = writers.end().await;
    assert!(how.iter().all(|h| *h == Consistency::Fenced));
    println!(
        "two servers: {} groups, {written} pairs written, hold median {:.2} ms, p95 {:.2} ms",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 95 / 100]
    );
    assert!(written as usize > times(), "the writers must have been busy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_is_refused_or_said() {
    let (one, two) = (Cluster::start(&[]).unwrap(), Cluster::start(&[]).unwrap());
    create(&one, "a", CAUSE);
    create(&two, "b", EFFECT);
    let (a, b) = (connection(&one, "a"), connection(&two, "b"));
    let both = || vec![("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())];
    // No tables named, nothing allowed.
    let refused = SnapshotGroup::open(both(), &ConsistencyRequest::default())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("different servers"), "{refused}");
    let ordered = ConsistencyRequest {
        allow_ordered: true,
        ..ConsistencyRequest::default()
    };
    let group = SnapshotGroup::open(both(), &ordered).await.unwrap();
    assert_eq!(group.reached().how, Consistency::Ordered);
    assert!(group.reached().in_words().contains("a, then b"));
    assert!(serde_json::to_string(group.reached()).unwrap().contains("\"ordered\""));
    drop(group);
    // A table somebody works on without end: the fence gives up, and lets go of what it had.
    let busy = Session::open(&b).await.unwrap();
    busy.run("x", "BEGIN; INSERT INTO public.effect VALUES (0, 0)")
        .await
        .unwrap();
    let fence = |label: &str, table: &str| FenceTables {
        label: label.to_owned(),
        tables: vec![TableName::new("public", table)],
    };
    let request = ConsistencyRequest {
        fence: vec![fence("a", "cause"), fence("b", "effect")],
        lock_timeout: Duration::from_millis(30),
        give_up: Duration::from_millis(300),
        allow_ordered: false,
    };
    let refused = SnapshotGroup::open(both(), &request).await.unwrap_err();
    assert!(refused.to_string().contains("could not be locked"), "{refused}");
    let free = Session::open(&a).await.unwrap();
    free.run("x", "SET lock_timeout = 1000; INSERT INTO public.cause VALUES (0, 0)")
        .await
        .unwrap();
    let fallback = ConsistencyRequest {
        allow_ordered: true,
        ..request
    };
    assert_eq!(
        SnapshotGroup::open(both(), &fallback).await.unwrap().reached().how,
        Consistency::Ordered
    );
    // One database needs no fence.
    assert_eq!(
        SnapshotGroup::single("a", &a).await.unwrap().reached().how,
        Consistency::Single
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_holder_fails_the_backup() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "a", CAUSE);
    let a = connection(&cluster, "a");
    let group = SnapshotGroup::single("a", &a).await.unwrap();
    let lost = group.snapshots()[0].lost();
    cluster
        .psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'a' AND state = 'idle in transaction'")
        .unwrap();
    assert!(lost.await.contains("terminat"));
    assert!(matches!(group.check().await, Err(Error::Lost { .. })));
    let plan = essrun_postgres::dump::plan(&group.snapshots()[0], &Default::default()).await;
    assert!(plan.is_err());
}
