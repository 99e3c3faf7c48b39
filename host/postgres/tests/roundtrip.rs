//! Every awkward shape a database can have: dumped, restored, compared in full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{AWKWARD, PREFIX, assert_same, connection, contents, create, drill, dump, try_dump, try_restore};
use essrun_artifact::memory::MemoryBackup;
use essrun_artifact::{BackupReader, NoProgress, Sensitivity};
use essrun_postgres::SnapshotGroup;
use essrun_postgres::dump::{self, DumpRequest, Format, FormatPolicy, RowFilter, TableMeta, TableRule};
use essrun_postgres::restore::RestoreOptions;
use essrun_testkit::postgres::Cluster;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awkward_databases_come_back_whole() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "awkward", AWKWARD);
    cluster.psql("awkward", "ANALYZE").unwrap();
    let source = connection(&cluster, "awkward");
    let before = contents(&cluster, "awkward");
    for policy in [FormatPolicy::Auto, FormatPolicy::Text] {
        let request = DumpRequest {
            format: policy,
            jobs: 3,
            ..DumpRequest::default()
        };
        let (plan, report, reader) = dump(&source, &request).await;
        assert!(
            plan.left_out
                .iter()
                .any(|l| l.table.name == "far_table" && l.why.contains("another server"))
        );
        assert!(plan.to_string().contains("large objects"));
        let rows = |name: &str| report.tables.iter().find(|t| t.table == name).unwrap().rows;
        // Inherited tables count for themselves only, partitions' rows are in the leaves.
        assert_eq!(
            (rows("public.rooms"), rows("public.group_rooms"), rows("public.nothing")),
            (1, 1, 2)
        );
        assert_eq!(rows("public.part_2a"), 100);
        assert!(
            reader
                .artifacts()
                .iter()
                .any(|a| a.name.as_str() == format!("{PREFIX}/Odd%2ESchema.a.b%2Fc%0Ad%25"))
        );
        let restored = try_restore(reader, &source, &drill("copy")).await.unwrap();
        assert_eq!(restored.report().rows, report.rows);
        assert_same((&cluster, "awkward"), (&cluster, restored.scratch()));
        restored.drop_scratch().await.unwrap();
    }
    assert_eq!(before, contents(&cluster, "awkward"), "the source was only read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split_tables_in_both_formats_come_back_whole() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "big",
        "CREATE TABLE narrow (a bigint, b int, c text, d text); INSERT INTO narrow SELECT g, g % 7, 'k' || g % 7, 'v' || g FROM generate_series(1, 60000) g;
         CREATE TABLE texts (a bigint, b text, c text); INSERT INTO texts SELECT g, E'k\\\n\t' || repeat((g % 7)::text, 60), 'v' || repeat(g::text, 9) FROM generate_series(1, 60000) g;
         CREATE TABLE wide (id bigint PRIMARY KEY, body text, raw bytea);
         INSERT INTO wide SELECT g, repeat(md5(g::text), 20), decode(repeat(md5(g::text), 30), 'hex') FROM generate_series(1, 9000) g;
         UPDATE wide SET body = body || 'x' WHERE id % 3 = 0; DELETE FROM wide WHERE id % 5 = 0;
         CREATE TABLE huge_row (t text, b bytea); INSERT INTO huge_row VALUES (repeat('z', 3000000), decode(repeat('ab', 2000000), 'hex')), ('', NULL);
         CREATE TABLE empty (x int); ANALYZE",
    );
    let source = connection(&cluster, "big");
    let request = DumpRequest {
        split_over_bytes: 1 << 20,
        jobs: 12,
        ..DumpRequest::default()
    };
    let (plan, report, reader) = dump(&source, &request).await;
    for (name, format) in [
        ("narrow", Format::Text),
        ("texts", Format::Binary),
        ("wide", Format::Binary),
    ] {
        let table = plan.tables.iter().find(|t| t.table.name == name).unwrap();
        assert_eq!(table.format, format, "{name}");
        assert!(table.parts.len() >= 2, "{name} has {} parts", table.parts.len());
    }
    assert_eq!(
        report.tables.iter().find(|t| t.table == "public.narrow").unwrap().rows,
        60_000
    );
    assert_eq!(
        report.tables.iter().find(|t| t.table == "public.wide").unwrap().rows,
        7_200
    );
    let restored = try_restore(reader, &source, &drill("copy")).await.unwrap();
    assert_same((&cluster, "big"), (&cluster, restored.scratch()));
    // FREEZE took: no row waits for a vacuum.
    let frozen = cluster
        .psql(
            restored.scratch(),
            "CREATE EXTENSION pg_visibility; SELECT bool_and(all_frozen) FROM pg_visibility('narrow')",
        )
        .unwrap();
    assert_eq!(frozen, "t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_left_out_by_rule_and_filter_and_said() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "s",
        "CREATE TABLE e2e_one_time_keys_json (k text); INSERT INTO e2e_one_time_keys_json VALUES ('secret');
         CREATE TABLE e2e_fallback_keys_json (k text); INSERT INTO e2e_fallback_keys_json VALUES ('keep');
         CREATE TABLE jobs (id int, status text); INSERT INTO jobs VALUES (1, 'done'), (2, 'pending'), (3, E'do\\ne'), (4, NULL);",
    );
    let source = connection(&cluster, "s");
    let rule = |table: &str, why: &str| TableRule {
        table: table.to_owned(),
        why: why.to_owned(),
    };
    let mut request = DumpRequest {
        leave_out_data: vec![
            rule("public.e2e_one_time_*", "must not come back"),
            rule("public.gone", "old"),
        ],
        row_filters: vec![RowFilter {
            table: "public.jobs".to_owned(),
            keep_where: "status <> 'pending' -- why not".to_owned(),
            why: "would run again".to_owned(),
        }],
        ..DumpRequest::default()
    };
    let (plan, report, reader) = dump(&source, &request).await;
    assert_eq!(plan.left_out[0].why, "must not come back");
    assert!(
        plan.remarks.iter().any(|r| r.contains("public.gone")),
        "{:?}",
        plan.remarks
    );
    assert!(!report.tables.iter().any(|t| t.table.contains("one_time")));
    let restored = try_restore(reader, &source, &drill("copy")).await.unwrap();
    let count = |sql: &str| cluster.psql(restored.scratch(), sql).unwrap();
    assert_eq!(count("SELECT count(*) FROM e2e_one_time_keys_json"), "0");
    assert_eq!(count("SELECT count(*) FROM e2e_fallback_keys_json"), "1");
    assert_eq!(count("SELECT string_agg(id::text, ',' ORDER BY id) FROM jobs"), "1,3");
    for hostile in [
        "true) TO PROGRAM 'touch /tmp/x' --",
        "true); DROP TABLE jobs; --",
        "true) OR (true",
        "id = 1 /*",
        "no_such_column = 1",
        "",
    ] {
        request.row_filters[0].keep_where = hostile.to_owned();
        let error = try_dump(&source, &request).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("row filter"), "{hostile}: {error}");
    }
    assert_eq!(cluster.psql("s", "SELECT count(*) FROM jobs").unwrap(), "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_without_superuser_rights_can_do_both() {
    let cluster = Cluster::start(&[]).unwrap();
    cluster
        .psql_script(
            "postgres",
            "CREATE ROLE owner LOGIN CREATEDB; CREATE ROLE other LOGIN; CREATE DATABASE o OWNER owner;",
        )
        .unwrap();
    let owner = connection(&cluster, "o").with_user("owner", None);
    let sql = "CREATE TABLE t (id int PRIMARY KEY, x text); INSERT INTO t SELECT g, 'x' FROM generate_series(1, 500) g; CREATE INDEX ON t (x);
               CREATE SEQUENCE s; SELECT nextval('s');";
    let status = cluster
        .client("psql")
        .args(["-X", "-q", "-c", sql])
        .env("PGUSER", "owner")
        .env("PGDATABASE", "o")
        .output();
    assert!(status.unwrap().status.success());
    let (_, report, reader) = dump(&owner, &DumpRequest::default()).await;
    assert_eq!(report.rows, 500);
    let restored = try_restore(reader, &owner, &drill("copy")).await.unwrap();
    assert_same((&cluster, "o"), (&cluster, restored.scratch()));
    restored.drop_scratch().await.unwrap();

    // Another superuser's restore can give everything to one role.
    let (_, _, reader) = dump(&owner, &DumpRequest::default()).await;
    let options = RestoreOptions {
        owner: Some("other".to_owned()),
        ..drill("copy")
    };
    let admin = connection(&cluster, "postgres");
    let restored = try_restore(reader, &admin, &options).await.unwrap();
    let owners = cluster
        .psql(
            restored.scratch(),
            "SELECT string_agg(DISTINCT relowner::regrole::text, ',') FROM pg_class WHERE relnamespace = 'public'::regnamespace",
        )
        .unwrap();
    assert_eq!(owners, "other");
}

/// Autovacuum belongs to a superuser, and an owner may not send it away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_drops_scratch_while_autovacuum_is_in_it() {
    let cluster = Cluster::start(&[
        ("autovacuum_naptime", "1s"),
        ("autovacuum_vacuum_insert_threshold", "0"),
        ("autovacuum_vacuum_insert_scale_factor", "0"),
        ("autovacuum_vacuum_cost_limit", "1"),
        ("autovacuum_vacuum_cost_delay", "100ms"),
    ])
    .unwrap();
    let roles = "CREATE ROLE owner LOGIN CREATEDB; CREATE DATABASE o OWNER owner;";
    cluster.psql_script("postgres", roles).unwrap();
    let fill = "SET ROLE owner; CREATE TABLE t AS SELECT g, repeat('x', 900) FROM generate_series(1, 20000) g";
    cluster.psql_script("o", fill).unwrap();
    let owner = connection(&cluster, "o").with_user("owner", None);
    let (_, _, reader) = dump(&owner, &DumpRequest::default()).await;
    let restored = try_restore(reader, &owner, &drill("copy")).await.unwrap();
    let worker = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND backend_type = 'autovacuum worker'",
        restored.scratch()
    );
    let begun = std::time::Instant::now();
    while cluster.psql("postgres", &worker).unwrap() == "0" {
        assert!(begun.elapsed().as_secs() < 120, "autovacuum does not come");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let name = restored.scratch().to_owned();
    restored.drop_scratch().await.unwrap();
    let left = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    assert_eq!(cluster.psql("postgres", &left).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_in_full_is_refused() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "s",
        "CREATE ROLE weak LOGIN; CREATE TABLE guarded (x text); INSERT INTO guarded VALUES ('a'), ('b');
         GRANT SELECT ON guarded TO weak;",
    );
    let weak = connection(&cluster, "s").with_user("weak", None);
    assert_eq!(try_dump(&weak, &DumpRequest::default()).await.unwrap().1.rows, 2);
    // Row security must fail, not filter.
    cluster
        .psql("s", "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
        .unwrap();
    let error = try_dump(&weak, &DumpRequest::default()).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("row-level security"), "{error}");
    cluster
        .psql("s", "ALTER TABLE guarded DISABLE ROW LEVEL SECURITY")
        .unwrap();
    // A large object of somebody else.
    cluster.psql("s", "SELECT lo_from_bytea(7, 'x')").unwrap();
    let error = try_dump(&weak, &DumpRequest::default()).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("large objects"), "{error}");
    cluster.psql("s", "GRANT SELECT ON LARGE OBJECT 7 TO weak").unwrap();
    assert!(try_dump(&weak, &DumpRequest::default()).await.is_ok());
    // A table without the right to read it.
    cluster.psql("s", "CREATE TABLE hidden (x int)").unwrap();
    let error = try_dump(&weak, &DumpRequest::default()).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("hidden"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_has_the_right_of_way() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "s", "CREATE TABLE t (x int)");
    let source = connection(&cluster, "s");
    let migration = essrun_postgres::Session::open(&source).await.unwrap();
    migration
        .run("m", "BEGIN; ALTER TABLE public.t ADD COLUMN y int")
        .await
        .unwrap();
    let request = DumpRequest {
        lock_timeout: std::time::Duration::from_millis(100),
        ..DumpRequest::default()
    };
    let error = try_dump(&source, &request).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("migration"), "{error}");
    migration.run("m", "COMMIT").await.unwrap();
    assert!(try_dump(&source, &request).await.is_ok());
}

/// Synapse drops tables of its own while it runs. Who waits for that stands before everybody who comes later, our own
/// workers included; so those tables are read by the session that holds them already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_somebody_waits_to_drop_is_read_all_the_same() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "s",
        "CREATE TABLE gone (x int); INSERT INTO gone SELECT generate_series(1, 1000);
         CREATE TABLE kept (x int); INSERT INTO kept VALUES (1)",
    );
    let source = connection(&cluster, "s");
    let group = SnapshotGroup::single("main", &source).await.unwrap();
    let snapshot = &group.snapshots()[0];
    let mut plan = dump::plan(snapshot, &DumpRequest::default()).await.unwrap();
    dump::hold(snapshot, &mut plan).await.unwrap();
    let dropping = essrun_postgres::Session::open(&source).await.unwrap();
    let drop = tokio::spawn(async move { dropping.run("drop", "DROP TABLE public.gone").await });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'";
    while cluster.psql("s", waits).unwrap() != "1" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let backup = MemoryBackup::new();
    let writer = Arc::new(backup.clone());
    let secret: dump::Classify = Arc::new(|_| Sensitivity::Secret);
    let report = dump::execute(snapshot, plan, PREFIX, writer, secret, Arc::new(NoProgress))
        .await
        .unwrap();
    assert_eq!(report.rows, 1001);
    assert!(!drop.is_finished());
    std::mem::drop(group);
    drop.await.unwrap().unwrap();
    try_restore(backup.commit().unwrap(), &connection(&cluster, "back"), &drill("back"))
        .await
        .unwrap();
}

/// What is done to definitions once there is a snapshot, before all tables are locked or with a lock that readers do not
/// stand against. What comes is after our instant; what goes may be missing from what pg_dump says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_that_come_are_after_our_instant_and_those_that_go_are_missed() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "s",
        "CREATE TABLE t (x int PRIMARY KEY, y int); INSERT INTO t VALUES (1, 1); CREATE INDEX of_t ON t (y);
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    );
    let source = connection(&cluster, "s");
    let dump_while = async |sql: &str| {
        let group = SnapshotGroup::single("main", &source).await.unwrap();
        let snapshot = &group.snapshots()[0];
        let plan = dump::plan(snapshot, &DumpRequest::default()).await.unwrap();
        cluster.psql_script("s", sql).unwrap();
        let backup = MemoryBackup::new();
        let writer = Arc::new(backup.clone());
        let secret: dump::Classify = Arc::new(|_| Sensitivity::Secret);
        dump::execute(snapshot, plan, PREFIX, writer, secret, Arc::new(NoProgress))
            .await
            .map(|_| backup)
    };
    let come = "CREATE INDEX later ON t (y); CREATE TABLE later_t (x int); \
                CREATE TRIGGER later BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); \
                ALTER TABLE t ADD CONSTRAINT later_f FOREIGN KEY (y) REFERENCES t (x)";
    let backup = dump_while(come).await.unwrap();
    let target = connection(&cluster, "back");
    let restored = try_restore(backup.commit().unwrap(), &target, &drill("back"))
        .await
        .unwrap();
    let there = "SELECT (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relname IN ('of_t', 'later', 'later_t')), \
                 (SELECT count(*) FROM pg_trigger WHERE tgname = 'later'), (SELECT count(*) FROM pg_constraint WHERE conname = 'later_f')";
    assert_eq!(cluster.psql(restored.scratch(), there).unwrap(), "of_t|0|0");

    let rebuilt = dump_while("DROP INDEX of_t; CREATE INDEX of_t ON t (y)")
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        rebuilt.contains("definitions changed") && rebuilt.contains("public.t"),
        "{rebuilt}"
    );
    assert!(dump_while("DROP TRIGGER later ON t").await.is_err());
    assert!(dump_while("SELECT 1").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_records_can_be_read_by_others() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "s",
        "CREATE TABLE t (x int, y int GENERATED ALWAYS AS (x) STORED); INSERT INTO t VALUES (1), (2)",
    );
    let (_, _, reader) = dump(&connection(&cluster, "s"), &DumpRequest::default()).await;
    let record = reader
        .artifacts()
        .iter()
        .find(|a| a.name.as_str() == "suite/main/public.t")
        .unwrap();
    let meta = TableMeta::of(record).unwrap();
    assert_eq!(
        (meta.columns.as_slice(), meta.rows, meta.bytes),
        (&["x".to_owned()][..], 2, 4)
    );
    let contents = essrun_postgres::dump::table_contents(record).unwrap();
    let mut stream = reader.open(&contents[0]).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "1\n2\n");
}
