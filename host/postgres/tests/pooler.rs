//! A pooler that does not keep sessions is refused before anything is set; one that does will do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{assert_same, connection, create, drill, dump, try_dump, try_restore};
use essrun_postgres::dump::DumpRequest;
use essrun_postgres::{Connection, Error};
use essrun_testkit::pgbouncer::PgBouncer;
use essrun_testkit::postgres::Cluster;

const LIVE: &str = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_transactions_is_refused() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    for (mode, size) in [("transaction", 1), ("transaction", 20), ("statement", 20)] {
        let pool = PgBouncer::start(&cluster, mode, size);
        let through = Connection::parse(&pool.uri("live")).unwrap();
        let error = try_dump(&through, &DumpRequest::default())
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{mode} {size}: {error:?}");
        for said in ["pooler", "pool_mode = session"] {
            assert!(error.to_string().contains(said), "{mode} {size}: {error}");
        }
        // Whoever is given the sessions next finds them as they were.
        let mut psql = cluster.client("psql");
        psql.args(["-X", "-A", "-t", "-c", "SHOW search_path"])
            .arg(pool.uri("live"));
        let path = psql.output().unwrap();
        assert_eq!(
            String::from_utf8(path.stdout).unwrap().trim(),
            "\"$user\", public",
            "{mode} {size}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_sessions_will_do() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    let pool = PgBouncer::start(&cluster, "session", 30);
    let through = Connection::parse(&pool.uri("live")).unwrap();
    let (_, report, reader) = dump(&through, &DumpRequest::default()).await;
    assert_eq!(report.rows, 100);
    let restored = try_restore(reader, &connection(&cluster, "live"), &drill("copy"))
        .await
        .unwrap();
    assert_same((&cluster, "live"), (&cluster, restored.scratch()));
}
