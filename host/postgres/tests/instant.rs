//! Several databases at one instant: an effect is never seen without its cause.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{connection, create};
use essrun_postgres::{
    Connection, Consistency, ConsistencyRequest, Error, FenceTables, QueryLimits, Reached, Session, Snapshot,
    SnapshotGroup, TableName,
};
use essrun_testkit::postgres::Cluster;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
        if let Some(held) = group.reached().hold_ms {
            assert!(group.reached().fenced_ms >= Some(held), "{:?}", group.reached());
        }
    }
    took.sort_by(f64::total_cmp);
    (how, took)
}

async fn reached_of(a: &Connection, b: &Connection, request: &ConsistencyRequest) -> Reached {
    let databases = vec![("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())];
    SnapshotGroup::open(databases, request).await.unwrap().reached().clone()
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
    let words = group.reached().in_words();
    assert!(
        words.contains("a, then b") && words.contains("ms apart (1 try)"),
        "{words}"
    );
    assert_eq!(group.reached().fenced_ms, None, "no fence was tried");
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
    let group = SnapshotGroup::open(both(), &fallback).await.unwrap();
    let reached = group.reached();
    assert_eq!((reached.how, reached.hold_ms), (Consistency::Ordered, None));
    // Each of these tries held the first table while it waited for the second.
    assert!(reached.tries > 2, "{reached:?}");
    assert!(
        reached.fenced_ms.unwrap() >= 30.0 * f64::from(reached.tries - 1),
        "{reached:?}"
    );
    assert!(
        reached.in_words().contains("over all tries): a, then b"),
        "{}",
        reached.in_words()
    );
    drop(group);
    // A manifest of before that was recorded.
    let mut old = serde_json::to_value(reached_of(&a, &b, &ordered).await).unwrap();
    assert!(old.as_object_mut().unwrap().remove("fenced_ms").is_none());
    old["hold_ms"] = serde_json::json!(1.25);
    old["how"] = serde_json::json!("fenced");
    let old: Reached = serde_json::from_value(old).unwrap();
    assert_eq!((old.fenced_ms, old.hold_ms), (None, Some(1.25)));
    assert!(
        old.in_words().contains("held for 1.2 ms, snapshots"),
        "{}",
        old.in_words()
    );
    // One database needs no fence.
    assert_eq!(
        SnapshotGroup::single("a", &a).await.unwrap().reached().how,
        Consistency::Single
    );
}

/// By how much later than the first the second snapshot is taken.
const SLOWED: Duration = Duration::from_millis(3);

/// A way to a server on which what is asked of it arrives late.
async fn slow(port: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            server.set_nodelay(true).unwrap();
            client.set_nodelay(true).unwrap();
            let (mut asks, mut hears) = client.into_split();
            let (mut answers, mut listens) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut hears).await });
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(n @ 1..) = asks.read(&mut bytes).await {
                    tokio::time::sleep(SLOWED).await;
                    if listens.write_all(&bytes[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    own
}

/// Commits the cause to A and then the effect to B, whose transactions are both open before: then the commits change
/// nothing that `pg_current_snapshot()` prints on a standby, where a longer one is open and a later one has ended.
async fn write_unseen(a: &Connection, b: &Connection) -> Writers {
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let [longer, later, a, b] = [
        Session::open(a).await.unwrap(),
        Session::open(a).await.unwrap(),
        Session::open(a).await.unwrap(),
        Session::open(b).await.unwrap(),
    ];
    let (ended, count) = (stop.clone(), written.clone());
    let task = tokio::spawn(async move {
        longer
            .run("x", "BEGIN; INSERT INTO public.cause VALUES (-1, 0)")
            .await
            .unwrap();
        for n in 1u64.. {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            // Old rows of the cause go later than those of the effect, so that none is without.
            let row = |table: &str, kept: u64| {
                let old = n.saturating_sub(kept);
                format!(
                    "BEGIN; INSERT INTO public.{table} VALUES (0, {n}); DELETE FROM public.{table} WHERE w = 0 AND n < {old}"
                )
            };
            a.run("x", &row("cause", 25)).await.unwrap();
            b.run("x", &row("effect", 20)).await.unwrap();
            later.run("x", "SELECT pg_current_xact_id()").await.unwrap();
            tokio::time::sleep(SLOWED).await;
            a.run("x", "COMMIT").await.unwrap();
            b.run("x", "COMMIT").await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            // Time in which the standby has nothing to replay.
            tokio::time::sleep(3 * SLOWED).await;
        }
    });
    Writers {
        stop,
        written,
        tasks: vec![task],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_standby_many_times() {
    // What is sent to the standby ends with a commit, as it does where commits are waited for.
    let primary = Cluster::start(&[("synchronous_commit", "on")]).unwrap();
    create(&primary, "a", CAUSE);
    create(&primary, "b", EFFECT);
    let standby = primary.standby().unwrap();
    let writers = write_unseen(&connection(&primary, "a"), &connection(&primary, "b")).await;
    let (a, b) = (connection(&standby, "a"), connection(&standby, "b"));
    while standby.psql("b", "SELECT count(*) > 5 FROM effect").unwrap() != "t" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = format!("postgresql://postgres@127.0.0.1:{}/b", slow(standby.port()).await);
    let late = Connection::parse(&late).unwrap();
    let (how, took) = take(&a, &late, &ConsistencyRequest::default(), times() / 5).await;
    // Tables are not locked on a standby; that is said, and what would do.
    let fence = |label: &str, table: &str| FenceTables {
        label: label.to_owned(),
        tables: vec![TableName::new("public", table)],
    };
    let fenced = ConsistencyRequest {
        fence: vec![fence("a", "cause"), fence("b", "effect")],
        ..ConsistencyRequest::default()
    };
    let both = vec![("a".to_owned(), connection(&primary, "a")), ("b".to_owned(), b.clone())];
    let refused = SnapshotGroup::open(both.clone(), &fenced)
        .await
        .unwrap_err()
        .to_string();
    let named = format!("127.0.0.1:{}/b is a standby", standby.port());
    assert!(
        refused.contains(&named) && refused.contains("different servers"),
        "{refused}"
    );
    let ordered = ConsistencyRequest {
        allow_ordered: true,
        ..fenced
    };
    let group = SnapshotGroup::open(both, &ordered).await.unwrap();
    assert_eq!(group.reached().how, Consistency::Ordered);
    drop(group);
    let written = writers.end().await;
    assert!(how.iter().all(|h| *h == Consistency::SameInstant));
    assert!(
        !took.is_empty() && written > 20,
        "the writer must have been busy: {written}"
    );
    println!(
        "one standby: {} groups, {written} pairs written, median {:.2} ms, p95 {:.2} ms",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 95 / 100]
    );
}

/// Behind a fence that falls the snapshots taken are not those of an order: they end before others begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_a_fence_that_fell_are_ended() {
    let (one, two) = (Cluster::start(&[]).unwrap(), Cluster::start(&[]).unwrap());
    create(&one, "a", CAUSE);
    create(&two, "b", EFFECT);
    let (a, b) = (connection(&one, "a"), connection(&two, "b"));
    let fence = |label: &str, table: &str| FenceTables {
        label: label.to_owned(),
        tables: vec![TableName::new("public", table)],
    };
    let request = ConsistencyRequest {
        fence: vec![fence("a", "cause"), fence("b", "effect")],
        lock_timeout: Duration::from_secs(60),
        allow_ordered: true,
        ..ConsistencyRequest::default()
    };
    // The fence holds A and waits for B; then its connection to A is cut, and B is let go.
    let busy = Session::open(&b).await.unwrap();
    busy.run("x", "BEGIN; INSERT INTO public.effect VALUES (0, 0)")
        .await
        .unwrap();
    let both = vec![("a".to_owned(), a), ("b".to_owned(), b)];
    let opening = tokio::spawn(async move { SnapshotGroup::open(both, &request).await });
    let cut = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a JOIN pg_locks l USING (pid) \
               WHERE l.granted AND l.mode = 'ShareLock' AND l.relation = 'cause'::regclass AND a.state = 'idle in transaction'";
    while one.psql("a", cut).unwrap() != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    busy.run("x", "COMMIT").await.unwrap();
    let group = opening.await.unwrap().unwrap();
    assert_eq!(group.reached().how, Consistency::Ordered);
    assert!(
        one.log()
            .contains("terminating connection due to administrator command")
    );
    for cluster in [&one, &two] {
        let log = cluster.log();
        assert!(!log.contains("there is already a transaction in progress"), "{log}");
    }
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
