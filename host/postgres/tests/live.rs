//! A database in use, and one behind a password.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{assert_same, connection, create, drill, dump, try_restore};
use essrun_postgres::dump::DumpRequest;
use essrun_postgres::{Connection, Error, Inspector, Session};
use essrun_testkit::postgres::Cluster;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows move between blocks, grow, vanish and come while a table is read in parts: the parts must still be one instant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_rewritten_while_it_is_read_in_parts_is_of_one_instant() {
    let cluster = Cluster::start(&[("autovacuum_naptime", "1s")]).unwrap();
    create(
        &cluster,
        "bank",
        "CREATE TABLE account (id int PRIMARY KEY, cents bigint NOT NULL, pad text) WITH (fillfactor = 60);
         INSERT INTO account SELECT g, 100, repeat('p', 300) FROM generate_series(1, 20000) g; ANALYZE;",
    );
    let source = connection(&cluster, "bank");
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for w in 0..3i64 {
        let session = Session::open(&source).await.unwrap();
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut n = 0i64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let (from, to) = (1 + (n * 7919 + w * 31) % 20000, 1 + (n * 104_729 + w * 17) % 20000);
                // In order of id, so that writers do not deadlock; longer and shorter rows, so that they move.
                let (low, high) = (from.min(to), from.max(to));
                if low == high {
                    continue;
                }
                let sql = format!(
                    "BEGIN; UPDATE public.account SET cents = cents - 1, pad = repeat('q', {}) WHERE id = {low}; \
                     UPDATE public.account SET cents = cents + 1 WHERE id = {high}; COMMIT",
                    n % 900
                );
                session.run("writer", &sql).await.unwrap();
            }
            n
        }));
    }
    let request = DumpRequest {
        split_over_bytes: 256 << 10,
        jobs: 4,
        ..DumpRequest::default()
    };
    for round in 0..4 {
        let (plan, report, reader) = dump(&source, &request).await;
        assert!(plan.tables[0].parts.len() >= 4, "{}", plan.tables[0].parts.len());
        assert_eq!(report.rows, 20_000, "round {round}");
        let restored = try_restore(reader, &source, &drill("copy")).await.unwrap();
        let sum = cluster
            .psql(restored.scratch(), "SELECT count(DISTINCT id), sum(cents) FROM account")
            .unwrap();
        assert_eq!(sum, "20000|2000000", "round {round}");
        restored.drop_scratch().await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert!(written > 100, "the writers must have been busy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_works_everywhere_and_is_seen_nowhere() {
    let secret = "hunter2 'x";
    let cluster = Cluster::builder().password(secret).start().unwrap();
    create(
        &cluster,
        "s",
        "CREATE TABLE t (x int PRIMARY KEY); INSERT INTO t VALUES (1)",
    );
    let params = |password: &str| {
        let quoted = password.replace('\'', "\\'");
        format!(
            "host=127.0.0.1 port={} user=postgres dbname=s password='{quoted}'",
            cluster.port()
        )
    };
    let source = Connection::parse(&params(secret)).unwrap();
    let (_, _, reader) = dump(&source, &DumpRequest::default()).await;
    let restored = try_restore(reader, &source, &drill("copy")).await.unwrap();
    assert_same((&cluster, "s"), (&cluster, restored.scratch()));
    assert!(!format!("{source:?} {source} {restored:?}").contains("hunter2"));
    for wrong in [params("hunter3"), params(secret).replace("dbname=s", "dbname=nonesuch")] {
        let error = Inspector::new(Connection::parse(&wrong).unwrap())
            .info()
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Connect { .. }));
        assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    }
    let gone = Connection::parse("host=127.0.0.1 port=1 user=u dbname=d password=hunter2").unwrap();
    let error = Session::open(&gone).await.unwrap_err();
    assert!(
        error.to_string().contains("127.0.0.1:1/d") && !error.to_string().contains("hunter"),
        "{error}"
    );
    // The unix socket, too.
    let socket = Connection::parse(&format!("{} password='hunter2 \\'x'", cluster.socket_params("s"))).unwrap();
    assert_eq!(Inspector::new(socket).info().await.unwrap().name, "s");
}
