//! Statements on request: one, in a transaction, or none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_postgres::respond::apply;
use essrun_postgres::{Connection, Inspector, QueryLimits, Session};
use essrun_testkit::postgres::Cluster;

#[tokio::test]
async fn one_statement_or_nothing() {
    let cluster = Cluster::start(&[]).unwrap();
    cluster.psql("postgres", "CREATE TABLE tokens (id int PRIMARY KEY, live bool); INSERT INTO tokens SELECT i, true FROM generate_series(1, 10) i; CREATE SEQUENCE s").unwrap();
    let connection = Connection::parse(&cluster.uri("postgres")).unwrap();
    assert_eq!(
        apply(
            &connection,
            " DELETE FROM public.tokens WHERE id <= 4",
            "SELECT count(*) FROM public.tokens WHERE id <= 4"
        )
        .await
        .unwrap(),
        4
    );
    let six = "SELECT count(*) FROM public.tokens";
    for (bad, count) in [
        ("DROP TABLE public.tokens", six),
        ("COMMIT", six),
        ("DELETE FROM public.tokens; DELETE FROM public.tokens", six),
        ("UPDATE public.tokens SET id = 5", six),
        ("DELETE FROM public.no_such_table", six),
        ("", six),
        // A count that is none, that writes, that leaves its transaction, or that says less than is done.
        ("DELETE FROM public.tokens", "SELECT 'six'"),
        ("DELETE FROM public.tokens", "SELECT id::bigint FROM public.tokens"),
        ("DELETE FROM public.tokens", "SELECT -6"),
        ("DELETE FROM public.tokens", "DELETE FROM public.tokens RETURNING 6"),
        (
            "DELETE FROM public.tokens",
            "WITH d AS (DELETE FROM public.tokens RETURNING 1) SELECT count(*) FROM d",
        ),
        ("DELETE FROM public.tokens", "SELECT nextval('public.s')"),
        ("DELETE FROM public.tokens", "SELECT 6); COMMIT; SELECT (6"),
        ("DELETE FROM public.tokens", "SELECT 1"),
    ] {
        assert!(apply(&connection, bad, count).await.is_err(), "{bad}, {count}");
    }
    assert_eq!(
        cluster.psql("postgres", "SELECT last_value, is_called FROM s").unwrap(),
        "1|f"
    );
    let left = Inspector::new(connection)
        .query("SELECT count(*) FROM public.tokens", vec![], &QueryLimits::default())
        .await
        .unwrap()
        .all()
        .await
        .unwrap();
    assert_eq!(format!("{left:?}"), "[[Integer(6)]]");
}

/// Rows that somebody else changes meanwhile are waited for, and counted as they are then.
#[tokio::test]
async fn beside_somebody_else() {
    let cluster = Cluster::start(&[]).unwrap();
    cluster
        .psql("postgres", "CREATE TABLE tokens (id int PRIMARY KEY, live bool); INSERT INTO tokens SELECT i, true FROM generate_series(1, 10) i")
        .unwrap();
    let connection = Connection::parse(&cluster.uri("postgres")).unwrap();
    let other = Session::open(&connection).await.unwrap();
    other
        .run("other", "BEGIN; UPDATE public.tokens SET live = false WHERE id <= 3")
        .await
        .unwrap();
    let applying = apply(
        &connection,
        "UPDATE public.tokens SET live = false WHERE live",
        "SELECT count(*) FROM public.tokens WHERE live",
    );
    let ending = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        while cluster.psql("postgres", waits).unwrap() != "1" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        other.run("other", "COMMIT").await.unwrap();
    };
    let (applied, ()) = tokio::join!(applying, ending);
    assert_eq!(applied.unwrap(), 7);
}
