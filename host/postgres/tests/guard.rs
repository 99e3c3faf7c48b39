//! A guest's query can look, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{connection, create};
use essrun_postgres::dump::{self, DumpRequest, RowFilter};
use essrun_postgres::{Cell, Error, Inspector, QueryLimits, SnapshotGroup, TableKind};
use essrun_testkit::postgres::Cluster;
use std::time::Duration;

const TABLES: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 2500) g;
  CREATE SEQUENCE s; CREATE TABLE empty (x int); CREATE VIEW w AS SELECT * FROM t;
  CREATE FUNCTION evil() RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN 1; END';
  CREATE FUNCTION sly() RETURNS text LANGUAGE sql VOLATILE AS 'SELECT pg_sleep(100)::text';
  CREATE FUNCTION fine(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT x + 1';
  CREATE VIEW hidden_evil AS SELECT public.evil() AS e; CREATE EXTENSION dblink; CREATE ROLE weak LOGIN;
  CREATE VIEW deep_evil AS SELECT * FROM (VALUES (1), (public.evil())) AS x (e); CREATE VIEW deeper AS SELECT e FROM deep_evil;
  CREATE FUNCTION sly_op(int, int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN PERFORM pg_notify($$a$$, $$op$$); RETURN 1; END';
  CREATE OPERATOR <@@> (LEFTARG = int, RIGHTARG = int, FUNCTION = sly_op); CREATE AGGREGATE sly_sum(int) (SFUNC = sly_op, STYPE = int, INITCOND = '0');
  CREATE TYPE kind AS ENUM ('a'); CREATE FUNCTION sly_cast(kind) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN evil(); END';
  CREATE CAST (kind AS int) WITH FUNCTION sly_cast(kind); CREATE FUNCTION a_kind() RETURNS kind LANGUAGE sql IMMUTABLE AS $$ SELECT 'a'::public.kind $$;
  CREATE TYPE pair AS (k kind, n int); CREATE TABLE kinds AS SELECT 'a'::kind AS k, '{a}'::kind[] AS ks, ROW('a', 1)::pair AS one;
  CREATE FUNCTION sly_check(int) RETURNS bool LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN evil() > 0; END';
  CREATE DOMAIN checked AS int CHECK (sly_check(VALUE)); CREATE DOMAIN twice AS checked; CREATE EXTENSION tablefunc;
  GRANT SELECT ON ALL TABLES IN SCHEMA public TO weak; SELECT lo_from_bytea(5, 'x'); ANALYZE";

fn limits() -> QueryLimits {
    QueryLimits {
        timeout: Duration::from_secs(20),
        ..QueryLimits::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_queries_are_refused() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "s", TABLES);
    // Tried with the most powerful role there is: the guard must not lean on a weak one.
    let group = SnapshotGroup::single("s", &connection(&cluster, "s")).await.unwrap();
    let snapshot = &group.snapshots()[0];
    for sql in [
        "COMMIT",
        "ROLLBACK; DROP TABLE public.t",
        "SELECT 1; SELECT 2",
        "SELECT 1;",
        "COPY public.t TO STDOUT",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SET ROLE weak",
        "RESET ROLE",
        "SHOW all",
        "BEGIN",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_catalog.pg_read_binary_file('PG_VERSION')",
        "SELECT pg_ls_dir('.')",
        "SELECT 1) AS q; --",
        "SELECT 1) AS q(c0); COMMIT; SELECT (1",
        "SELECT 1) q, (SELECT 2",
        "SELECT (1",
        "SELECT '1",
        "SELECT $x$ 1",
        "SELECT 1 /* ",
        "",
        "   ",
        "-- nothing",
        "SELECT",
        "SELECT nextval('public.s')",
        "SELECT setval('public.s', 5)",
        "SELECT pg_sleep(100)",
        "SELECT pg_sleep_for('1 hour')",
        "SELECT lo_export(5, '/tmp/essrun-guard')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT lo_unlink(5)",
        "SELECT * FROM public.dblink('dbname=s', 'DROP TABLE public.t') AS d(x text)",
        "SELECT public.dblink_connect('dbname=s')",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "SELECT set_config('role', 'weak', false)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_xact_lock(1)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity",
        "SELECT pg_notify('a', 'b')",
        "SELECT pg_reload_conf()",
        "SELECT query_to_xml('SELECT pg_terminate_backend(1)', true, true, '')",
        "SELECT ts_stat('SELECT pg_sleep(1)::text::tsvector')",
        "SELECT U&\"\\0070g_sleep\"(100)",
        "SELECT \"pg_sleep\"(100)",
        "SELECT 'a\n' || pg_sleep(1)::text",
        "SELECT 'it''s\n''' || pg_sleep(1)::text",
        // Where the server's plan names no function.
        "SELECT column1 FROM (VALUES (pg_read_file('PG_VERSION')), ('x')) v",
        "VALUES (pg_notify('a', 'b')::text), ('x')",
        "SELECT id FROM public.t LIMIT (CASE WHEN pg_notify('a', 'b') IS NULL THEN 1 ELSE 2 END)",
        "SELECT id FROM public.t LIMIT length(pg_read_file('PG_VERSION'))",
        "SELECT id FROM public.t OFFSET length(pg_read_file('PG_VERSION'))",
        "SELECT id FROM public.t FETCH FIRST (length(pg_read_file('PG_VERSION'))) ROWS ONLY",
        "SELECT sum(id) OVER (ORDER BY id ROWS length(pg_read_file('PG_VERSION')) PRECEDING) FROM public.t",
        "SELECT sum(id) OVER w FROM public.t WINDOW w AS (ORDER BY id ROWS BETWEEN CURRENT ROW AND pg_try_advisory_lock(1)::int FOLLOWING)",
        "SELECT id FROM public.t TABLESAMPLE bernoulli (pg_try_advisory_lock(1)::int)",
        "SELECT id FROM public.t TABLESAMPLE system (1) REPEATABLE (pg_try_advisory_lock(1)::int)",
        // However the name is written.
        "SELECT column1 FROM (VALUES (\"pg_try_advisory_lock\"(1)), (true)) v",
        "SELECT column1 FROM (VALUES (pg_catalog . \"pg_try_advisory_lock\" /* ( */ -- (\n (1)), (true)) v",
        "SELECT column1 FROM (VALUES (s.pg_catalog.pg_try_advisory_lock(1)), (true)) v",
        "SELECT column1 FROM (VALUES (PG_Try_Advisory_Lock (1)), (true)) v",
        "SELECT column1 FROM (VALUES (U&\"pg_try_advisory\\005flock\"(1)), (true)) v",
        "SELECT column1 FROM (VALUES (E'a'\n'\\'', pg_try_advisory_lock(1)), ('x', true)) v",
        // Through what the database has.
        "SELECT e FROM public.deep_evil",
        "SELECT e FROM public.deeper",
        "SELECT column1 FROM (VALUES (1 OPERATOR(public.<@@>) 2), (3)) v",
        "SELECT column1 FROM (VALUES ((SELECT public.sly_sum(id) FROM public.t)), (3)) v",
        "SELECT column1 FROM (VALUES ('a'::public.kind::int), (3)) v",
        "SELECT column1 FROM (VALUES ((SELECT k::integer FROM public.kinds)), (3)) v",
        "SELECT column1 FROM (VALUES ((SELECT (ks::int[])[1] FROM public.kinds)), (3)) v",
        "SELECT column1 FROM (VALUES ((SELECT ((one).k)::int4 FROM public.kinds)), (3)) v",
        "SELECT column1 FROM (VALUES ((public.a_kind())::int), (3)) v",
        "SELECT column1 FROM (VALUES (1::public.checked::text), ('x')) v",
        "SELECT column1 FROM (VALUES (1::public.twice::text), ('x')) v",
        "SELECT public.sly_sum(id) FROM public.t",
        // Stable, says its extension, and runs what it is given.
        "SELECT a FROM public.crosstab('SELECT ''r'', ''c'', pg_notify(''a'', ''b'')::text') AS c (r text, a text)",
        // Passwords.
        "SELECT rolname FROM pg_catalog.pg_authid",
        "SELECT passwd FROM \"pg_shadow\"",
        "SELECT table_to_xml('pg_catalog.pg_authid', true, true, '')::text",
        "SELECT public.evil()",
        "SELECT public.sly()",
        "SELECT * FROM public.hidden_evil",
        "SELECT v FROM public.t WHERE public.evil() > 0",
        "SELECT v FROM public.t ORDER BY public.evil()",
        "SELECT (SELECT pg_sleep(1) FROM public.t LIMIT 1)::text",
        "WITH x AS (DELETE FROM public.t RETURNING *) SELECT * FROM x",
        "DELETE FROM public.t RETURNING id",
        "INSERT INTO public.empty VALUES (1) RETURNING x",
        "UPDATE public.t SET v = '' RETURNING id",
        "TRUNCATE public.t",
        "SELECT * INTO public.copy FROM public.t",
        "CREATE TABLE x (y int)",
        "SELECT id FROM public.t FOR UPDATE",
        "EXPLAIN ANALYZE DELETE FROM public.t",
        "VACUUM",
        "LISTEN x",
        "DO $$ BEGIN END $$",
        "CALL x()",
        "LOCK TABLE public.t",
        "SELECT id FROM t",
        "SELECT no_such_column FROM public.t",
        "SELECT 1 \\g",
        "SELECT $1",
        "SELECT '1'::point",
        "SELECT ARRAY[1]",
        "SELECT ROW(1)",
        "SELECT NULL::regclass",
        "DECLARE c CURSOR FOR SELECT 1",
        "FETCH 1 FROM c",
        "PREPARE x AS SELECT 1",
        "SELECT public.t FROM public.t",
        "SELECT 1/0",
    ] {
        let got = match snapshot.query(sql, vec![], &limits()).await {
            Ok(rows) => rows.all().await,
            Err(e) => Err(e),
        };
        // The last is the query's own fault, and the server has no other code for it.
        let absent = [
            "SELECT id FROM t",
            "SELECT no_such_column FROM public.t",
            "SELECT public.t FROM public.t",
        ]
        .contains(&sql);
        let as_it_is = match got {
            Err(Error::Gone(_)) => absent,
            Err(Error::Invalid(_)) => !absent,
            _ => false,
        };
        assert!(as_it_is, "{sql}: {got:?}");
    }
    // A row filter is a guest's as well, and runs in a COPY.
    for keep_where in [
        "pg_read_file('PG_VERSION') IS NOT NULL",
        "pg_try_advisory_lock(1)",
        "pg_notify('a', 'b') IS NULL",
        "public.evil() > 0",
        "id IN (SELECT column1 FROM (VALUES (length(pg_read_file('PG_VERSION'))), (1)) v)",
        "EXISTS (SELECT 1 LIMIT pg_try_advisory_lock(1)::int)",
        "EXISTS (SELECT e FROM public.deeper)",
        "id OPERATOR(public.<@@>) 1 > 0",
        "U&\"pg_try_advisory\\005flock\"(1)",
        "EXISTS (SELECT FROM pg_catalog.pg_authid)",
    ] {
        let request = DumpRequest {
            row_filters: vec![RowFilter {
                table: "public.t".to_owned(),
                keep_where: keep_where.to_owned(),
                why: "a trick".to_owned(),
            }],
            ..DumpRequest::default()
        };
        let planned = dump::plan(snapshot, &request).await;
        assert!(
            matches!(&planned, Err(Error::Invalid(why)) if why.contains("the row filter of public.t")),
            "{keep_where}: {planned:?}"
        );
    }
    group.check().await.unwrap();
    assert_eq!(cluster.psql("s", "SELECT count(*) FROM t").unwrap(), "2500");
    assert_eq!(cluster.psql("s", "SELECT last_value, is_called FROM s").unwrap(), "1|f");
    assert_eq!(
        cluster
            .psql("s", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            .unwrap(),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_queries_are_answered() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "s", TABLES);
    let inspector = Inspector::new(connection(&cluster, "s"));
    let all = async |sql: &str, params: Vec<Cell>| {
        inspector
            .query(sql, params, &limits())
            .await
            .unwrap()
            .all()
            .await
            .unwrap()
    };
    let text = |t: &str| Cell::Text(t.to_owned());
    let got = all(
        "SELECT true, 1::smallint, 2, 3::bigint, 4::oid, 1.5::real, 'NaN'::float8, 'x', 'y'::varchar, 'z '::char(2), 'n'::name, \
         '00000000-0000-0000-0000-000000000001'::uuid, '{\"a\":1}'::jsonb, 12345678901234567890.5::numeric, '2026-01-02'::date, \
         '2026-01-02 03:04:05+00'::timestamptz, '1 day'::interval, '\\x00ff'::bytea, NULL::text, NULL, 5 AS \"5\", 6 AS \"5\" -- end",
        vec![],
    )
    .await;
    let row = &got[0];
    assert_eq!(
        row[..6],
        [
            Cell::Boolean(true),
            Cell::Integer(1),
            Cell::Integer(2),
            Cell::Integer(3),
            Cell::Integer(4),
            Cell::Real(1.5)
        ]
    );
    assert!(matches!(row[6], Cell::Real(r) if r.is_nan()));
    assert_eq!(
        row[7..12],
        ["x", "y", "z", "n", "00000000-0000-0000-0000-000000000001"].map(text)
    );
    assert_eq!(
        row[12..17],
        [
            "{\"a\": 1}",
            "12345678901234567890.5",
            "2026-01-02",
            "2026-01-02 03:04:05+00",
            "1 day"
        ]
        .map(text)
    );
    assert_eq!(
        row[17..],
        [
            Cell::Bytes(vec![0, 255]),
            Cell::Null,
            Cell::Null,
            Cell::Integer(5),
            Cell::Integer(6)
        ]
    );

    let sql = "SELECT id FROM public.t WHERE id = $1 AND v = $2 AND now() > $3 AND $4::bytea = '\\x01' AND $5 AND $6::float8 > 1 AND $7::int IS NULL";
    let params = vec![
        Cell::Integer(7),
        text("v7"),
        text("2020-01-01"),
        Cell::Bytes(vec![1]),
        Cell::Boolean(true),
        Cell::Real(1.5),
        Cell::Null,
    ];
    assert_eq!(all(sql, params).await, [[Cell::Integer(7)]]);
    assert_eq!(all("VALUES (1), (2)", vec![]).await.len(), 2);
    assert_eq!(all("WITH a AS (SELECT 1) SELECT * FROM a", vec![]).await.len(), 1);
    assert_eq!(
        all(
            "SELECT public.fine(1), pg_relation_size('public.t') > 0, random() < 2",
            vec![]
        )
        .await[0][0],
        Cell::Integer(2)
    );
    assert_eq!(
        all("SELECT last_value FROM public.s", vec![]).await[0][0],
        Cell::Integer(1)
    );
    assert_eq!(all("SELECT ';--' || '/*'", vec![]).await[0][0], text(";--/*"));
    // What looks like what is refused, and is not.
    assert_eq!(
        all(
            "SELECT t.id FROM public.t TABLESAMPLE system (100) REPEATABLE (1) LIMIT greatest(1, length('pg_sleep(1)'))",
            vec![]
        )
        .await
        .len(),
        11
    );
    assert_eq!(
        all(
            "SELECT lower((SELECT w.v FROM public.w WHERE w.id OPERATOR(pg_catalog.=) 1)), sum(id) OVER (ROWS 1 PRECEDING) \
             FROM (VALUES (1, 'pg_notify'), (abs(-2), E'it''s'\n'\\'pg_sleep(1)')) AS q (id, b) OFFSET 1",
            vec![]
        )
        .await,
        [[text("v1"), Cell::Integer(3)]]
    );

    let ordered = all("SELECT id FROM public.t ORDER BY id DESC LIMIT 3", vec![]).await;
    assert_eq!(
        ordered,
        [[Cell::Integer(2500)], [Cell::Integer(2499)], [Cell::Integer(2498)]]
    );

    let wrong = inspector
        .query("SELECT $1::int", vec![text("x")], &limits())
        .await
        .unwrap_err();
    assert!(matches!(wrong, Error::Invalid(_)), "{wrong:?}");
    assert!(!wrong.to_string().contains("trust"));
    let nul = inspector
        .query("SELECT $1::text", vec![text("a\0b")], &limits())
        .await
        .unwrap_err();
    assert!(matches!(nul, Error::Invalid(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "s", TABLES);
    let inspector = Inspector::new(connection(&cluster, "s"));
    let mut rows = inspector
        .query("SELECT * FROM public.t ORDER BY id", vec![], &limits())
        .await
        .unwrap();
    assert_eq!(rows.columns(), ["id", "v"]);
    assert_eq!(rows.next(10).await.unwrap().len(), 10);
    assert_eq!(
        rows.next(u32::MAX).await.unwrap().len(),
        1000,
        "the page limit is the host's"
    );
    assert_eq!(rows.next(2000).await.unwrap()[0][0], Cell::Integer(1011));
    drop(rows);

    let limited = |change: fn(&mut QueryLimits)| {
        let mut l = limits();
        change(&mut l);
        l
    };
    let run = async |sql: &str, limits: QueryLimits| match inspector.query(sql, vec![], &limits).await {
        Ok(rows) => rows.all().await,
        Err(e) => Err(e),
    };
    let is_limit = |r: essrun_postgres::Result<Vec<Vec<Cell>>>| matches!(r, Err(Error::Limit(_)));
    let is_slow = |r: essrun_postgres::Result<Vec<Vec<Cell>>>| matches!(r, Err(Error::Slow(_)));
    assert!(is_limit(
        run("SELECT id FROM public.t", limited(|l| l.max_rows = 100)).await
    ));
    assert!(
        run("SELECT id FROM public.t LIMIT 100", limited(|l| l.max_rows = 100))
            .await
            .is_ok()
    );
    assert!(is_limit(
        run("SELECT v FROM public.t", limited(|l| l.max_bytes = 5000)).await
    ));
    // Too great, or too slow before it is, on a machine with other work.
    let great = run("SELECT repeat('x', 500000000)", limits()).await;
    assert!(matches!(great, Err(Error::Limit(_) | Error::Slow(_))), "{great:?}");
    assert!(is_limit(
        run("SELECT decode(repeat('00', 2000000), 'hex')", limits()).await
    ));
    let slow = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b";
    assert!(is_slow(
        run(slow, limited(|l| l.timeout = Duration::from_millis(300))).await
    ));
    let slow = "SELECT a FROM generate_series(1, 100000000) a";
    assert!(is_slow(
        run(
            slow,
            limited(|l| (l.timeout, l.max_rows) = (Duration::from_millis(500), u64::MAX))
        )
        .await
    ));
    let mut page = inspector
        .query(
            "SELECT repeat('y', 600000) FROM generate_series(1, 3)",
            vec![],
            &limits(),
        )
        .await
        .unwrap();
    assert_eq!(
        page.next(3).await.unwrap().len(),
        1,
        "a page ends before it is too great"
    );
    assert_eq!(page.next(3).await.unwrap().len(), 1);
    drop(page);

    // What a query may spill to the server's disk is bounded where the server lets us; where it does not, its log is not
    // filled with our tries.
    let bound = "SELECT pg_catalog.current_setting('temp_file_limit')";
    assert_eq!(run(bound, limits()).await.unwrap()[0][0], Cell::Text("1GB".into()));
    let weak = Inspector::new(connection(&cluster, "s").with_user("weak", None));
    let found = weak.query(bound, vec![], &limits()).await.unwrap().all().await;
    assert_eq!(found.unwrap()[0][0], Cell::Text("-1".into()));
    assert!(!cluster.log().contains("temp_file_limit"), "{}", cluster.log());
    if inspector.info().await.unwrap().server_version_number >= 150_000 {
        cluster
            .psql("s", "GRANT SET ON PARAMETER temp_file_limit TO weak")
            .unwrap();
        let found = weak.query(bound, vec![], &limits()).await.unwrap().all().await;
        assert_eq!(found.unwrap()[0][0], Cell::Text("1GB".into()), "whom it was granted to");
    }

    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(inspector.query("SELECT 1", vec![], &limits()).await.unwrap());
    }
    assert!(matches!(
        inspector.query("SELECT 1", vec![], &limits()).await,
        Err(Error::Limit(_))
    ));
    open.clear();
    assert!(inspector.query("SELECT 1", vec![], &limits()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_and_relations_are_told() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "s", TABLES);
    let admin = connection(&cluster, "s");
    let dangers = async |user: &str| {
        let c = admin.with_user(user, None);
        Inspector::new(c).role_dangers().await.unwrap().dangers
    };
    assert_eq!(dangers("postgres").await, ["is a superuser"]);
    assert!(dangers("weak").await.is_empty());
    cluster
        .psql(
            "s",
            "CREATE ROLE mid; GRANT pg_read_server_files TO mid; GRANT mid TO weak",
        )
        .unwrap();
    assert_eq!(dangers("weak").await, ["is a member of pg_read_server_files"]);
    cluster
        .psql("s", "REVOKE mid FROM weak; GRANT postgres TO weak")
        .unwrap();
    assert!(dangers("weak").await.iter().any(|d| d.contains("superuser postgres")));

    let inspector = Inspector::new(admin.clone());
    let info = inspector.info().await.unwrap();
    assert_eq!((info.encoding.as_str(), info.collate.as_str()), ("UTF8", "C"));
    assert!(info.server_version_number >= 140_000 && info.size_bytes > 0);
    let tables = inspector.tables().await.unwrap();
    let find = |name: &str| tables.iter().find(|t| t.name == name).unwrap();
    assert_eq!(
        (find("t").kind, find("t").estimated_rows),
        (TableKind::Table, Some(2500))
    );
    assert_eq!((find("w").kind, find("s").kind), (TableKind::View, TableKind::Sequence));
    assert_eq!(find("t").columns, ["id", "v"]);
}
