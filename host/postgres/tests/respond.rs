//! Statements on request: one, in a transaction, or none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_postgres::respond::apply;
use essrun_postgres::{Connection, Inspector, QueryLimits};
use essrun_testkit::postgres::Cluster;

#[tokio::test]
async fn one_statement_or_nothing() {
    let cluster = Cluster::start(&[]).unwrap();
    cluster.psql("postgres", "CREATE TABLE tokens (id int PRIMARY KEY, live bool); INSERT INTO tokens SELECT i, true FROM generate_series(1, 10) i").unwrap();
    let connection = Connection::parse(&cluster.uri("postgres")).unwrap();
    assert_eq!(
        apply(&connection, " DELETE FROM public.tokens WHERE id <= 4")
            .await
            .unwrap(),
        4
    );
    for bad in [
        "DROP TABLE public.tokens",
        "COMMIT",
        "DELETE FROM public.tokens; DELETE FROM public.tokens",
        "UPDATE public.tokens SET id = 5",
        "DELETE FROM public.no_such_table",
        "",
    ] {
        assert!(apply(&connection, bad).await.is_err(), "{bad}");
    }
    let left = Inspector::new(connection)
        .query("SELECT count(*) FROM public.tokens", vec![], &QueryLimits::default())
        .await
        .unwrap()
        .all()
        .await
        .unwrap();
    assert_eq!(format!("{left:?}"), "[[Integer(6)]]");
}
