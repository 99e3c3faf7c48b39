//! Preconditions, scratch databases, swap: what may happen to a live database, and what never.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{PREFIX, connection, create, drill, dump, try_restore};
use essrun_artifact::memory::{MemoryBackup, MemoryReader};
use essrun_artifact::{ArtifactRecord, BackupReader, BackupWriter, LaneSpec};
use essrun_postgres::dump::DumpRequest;
use essrun_postgres::restore::{
    self, Purpose, RestoreOptions, Severity, SwapOptions, drop_leftover, list_leftovers, swap,
};
use essrun_postgres::{Error, Session};
use essrun_testkit::postgres::Cluster;

const LIVE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 1000) g";

fn options(database: &str, replace: bool) -> RestoreOptions {
    RestoreOptions {
        replace,
        ..RestoreOptions::new("b-1", database, Purpose::Restore)
    }
}

fn swapping(replace: bool, terminate: bool) -> SwapOptions {
    SwapOptions { replace, terminate }
}

fn databases(cluster: &Cluster) -> Vec<String> {
    let list = cluster
        .psql(
            "postgres",
            "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1",
        )
        .unwrap();
    list.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_database_is_replaced_only_when_told_and_kept() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    cluster.psql("postgres", "CREATE ROLE app LOGIN; GRANT CONNECT ON DATABASE live TO app; ALTER DATABASE live SET work_mem = '7MB'; ALTER DATABASE live SET search_path = app, public; REVOKE TEMPORARY ON DATABASE live FROM PUBLIC").unwrap();
    let target = connection(&cluster, "live");
    let (_, _, reader) = dump(&target, &DumpRequest::default()).await;
    cluster.psql("live", "DELETE FROM public.t WHERE id > 10").unwrap();

    // Not told: refused before anything.
    let plan = restore::plan(&reader, PREFIX, &target, &options("live", false))
        .await
        .unwrap();
    assert!(plan.blocked());
    assert!(
        plan.findings
            .iter()
            .any(|f| f.check == "target-not-empty" && f.severity == Severity::Error)
    );

    let mut restored = try_restore(reader, &target, &options("live", true)).await.unwrap();
    // Half-done work is shut to others, and the live database untouched.
    let app = Session::open(&target.with_user("app", None).with_database(restored.scratch())).await;
    assert!(matches!(app, Err(Error::Connect { .. })), "{app:?}");
    assert_eq!(cluster.psql("live", "SELECT count(*) FROM public.t").unwrap(), "10");
    restored
        .run_sql(&["UPDATE public.t SET v = 'patched' WHERE id = 1".to_owned()])
        .await
        .unwrap();

    let refused = swap(&target, &mut restored, &swapping(false, false)).await.unwrap_err();
    assert!(refused.to_string().contains("replaced"), "{refused}");
    let mut other = connection(&cluster, "live");
    other = essrun_postgres::Connection::parse(&format!(
        "host={} port={} user=postgres dbname=live application_name=synapse",
        other.host(),
        other.port()
    ))
    .unwrap();
    let session = Session::open(&other).await.unwrap();
    let refused = swap(&target, &mut restored, &swapping(true, false)).await.unwrap_err();
    assert!(refused.to_string().contains("synapse"), "{refused}");
    assert_eq!(cluster.psql("live", "SELECT count(*) FROM public.t").unwrap(), "10");

    let done = swap(&target, &mut restored, &swapping(true, true)).await.unwrap();
    assert!(session.run("x", "SELECT 1").await.is_err());
    let old = done.old_kept_as.unwrap();
    assert!(old.starts_with("live_before_20"), "{old}");
    assert_eq!(cluster.psql(&old, "SELECT count(*) FROM public.t").unwrap(), "10");
    assert_eq!(cluster.psql("live", "SELECT count(*) FROM public.t").unwrap(), "1000");
    assert_eq!(
        cluster.psql("live", "SELECT v FROM public.t WHERE id = 1").unwrap(),
        "patched"
    );
    assert_eq!(cluster.psql("live", "SHOW work_mem").unwrap(), "7MB");
    assert_eq!(cluster.psql("live", "SHOW search_path").unwrap(), "app, public");
    let rights =
        "SELECT has_database_privilege('app', 'live', 'CONNECT'), has_database_privilege('app', 'live', 'TEMPORARY')";
    assert_eq!(cluster.psql("postgres", rights).unwrap(), "t|f");
    assert_eq!(databases(&cluster), ["live".to_owned(), old]);
    drop(restored);
    assert!(list_leftovers(&target, "postgres").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_database_is_made_and_dying_in_between_changes_nothing() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    let target = connection(&cluster, "live");
    let (_, _, reader) = dump(&target, &DumpRequest::default()).await;
    let mut restored = try_restore(reader, &target, &options("live", true)).await.unwrap();
    // As a swap that dies after its first rename.
    let dying = Session::open(&target.with_database("postgres")).await.unwrap();
    dying
        .run("first half", "BEGIN; ALTER DATABASE live RENAME TO old")
        .await
        .unwrap();
    drop(dying);
    let done = loop {
        // The server needs a moment to see that the session is gone; until then the database is locked.
        match swap(&target, &mut restored, &swapping(true, false)).await {
            Ok(done) => break done,
            Err(e) => assert!(matches!(e, Error::Refused { .. }), "{e}"),
        }
    };
    assert!(done.old_kept_as.is_some());
    assert_eq!(databases(&cluster).len(), 2);

    // Into a server that has no such database: it is simply there.
    let (_, _, reader) = dump(&target, &DumpRequest::default()).await;
    let empty = Cluster::start(&[]).unwrap();
    let there = connection(&empty, "live");
    let mut restored = try_restore(reader, &there, &options("live", false)).await.unwrap();
    let done = swap(&there, &mut restored, &swapping(false, false)).await.unwrap();
    assert_eq!(done.old_kept_as, None);
    common::assert_same((&cluster, "live"), (&empty, "live"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_the_dead_are_found_and_only_those() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    create(&cluster, "not_essrun_mine", "CREATE TABLE precious (x int)");
    let target = connection(&cluster, "live");
    let (_, _, reader) = dump(&target, &DumpRequest::default()).await;
    let restored = try_restore(reader, &target, &drill("live")).await.unwrap();
    let scratch = restored.scratch().to_owned();
    assert!(
        list_leftovers(&target, "postgres").await.unwrap().is_empty(),
        "its maker lives"
    );
    // The same run again is refused while this one lives.
    let (_, _, again) = dump(&target, &DumpRequest::default()).await;
    let refused = try_restore(again, &target, &drill("live")).await.unwrap_err();
    assert!(refused.to_string().contains("exists already"), "{refused}");

    // Dies without a word, as by kill -9.
    drop(restored);
    let found = loop {
        let found = list_leftovers(&target, "postgres").await.unwrap();
        if !found.is_empty() {
            break found;
        }
    };
    assert_eq!((found.len(), found[0].database.as_str()), (1, scratch.as_str()));
    assert_eq!(
        (found[0].run.as_deref(), found[0].purpose, found[0].complete),
        (Some("run-1"), Some(Purpose::Drill), true)
    );
    drop_leftover(&target, "postgres", &found[0]).await.unwrap();
    assert!(drop_leftover(&target, "postgres", &found[0]).await.is_err());

    // Killed between making and marking.
    cluster
        .psql("postgres", "CREATE DATABASE live_essrun_x TEMPLATE template0")
        .unwrap();
    let found = list_leftovers(&target, "postgres").await.unwrap();
    assert_eq!(
        found.iter().map(|l| l.database.as_str()).collect::<Vec<_>>(),
        ["live_essrun_x"]
    );
    drop_leftover(&target, "postgres", &found[0]).await.unwrap();
    assert_eq!(databases(&cluster), ["live", "not_essrun_mine"]);
}

/// A backup like another, with some artifacts changed on the way.
async fn tampered(reader: &MemoryReader, change: impl Fn(&mut ArtifactRecord, &mut Vec<u8>)) -> MemoryReader {
    let backup = MemoryBackup::new();
    let mut lane = backup.lane(LaneSpec::TABLE).unwrap();
    for record in reader.artifacts() {
        let mut record = record.clone();
        let mut bytes = Vec::new();
        let mut content = reader.open(&record.content).await.unwrap();
        while let Some(more) = content.next().await.unwrap() {
            bytes.extend_from_slice(&more);
        }
        change(&mut record, &mut bytes);
        lane.write(bytes.into()).await.unwrap();
        record.content = lane.cut().await.unwrap();
        backup.record(record).await.unwrap();
    }
    lane.close().await.unwrap();
    backup.commit().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_stops_the_restore_and_leaves_nothing() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    let target = connection(&cluster, "live");
    let (_, _, good) = dump(&target, &DumpRequest::default()).await;
    let table = |r: &ArtifactRecord| r.kind == "postgres-table";
    let cases: Vec<(&str, MemoryReader)> = vec![
        (
            "digest",
            tampered(&good, |r, b| {
                if table(r) {
                    b[0] = b'9'
                }
            })
            .await,
        ),
        (
            "digest",
            tampered(&good, |r, b| {
                if table(r) {
                    b.truncate(100)
                }
            })
            .await,
        ),
        (
            "parts",
            tampered(&good, |r, _| {
                if table(r) {
                    r.meta["rows"] = 7.into()
                }
            })
            .await,
        ),
        (
            "part has no content",
            tampered(&good, |r, _| {
                if table(r) {
                    r.meta["parts"] = serde_json::json!([])
                }
            })
            .await,
        ),
        (
            "psql command",
            tampered(&good, |r, b| {
                if r.name.as_str().ends_with("pre-data") {
                    b.extend_from_slice(b"\\! touch /tmp/essrun-owned\n");
                    r.meta["digest"] = serde_json::Value::Null;
                }
            })
            .await,
        ),
        (
            "cut off",
            tampered(&good, |r, b| {
                if r.name.as_str().ends_with("post-data") {
                    b.extend_from_slice(b"CREATE INDEX");
                    r.meta["digest"] = serde_json::Value::Null;
                }
            })
            .await,
        ),
        (
            "setval",
            tampered(&good, |r, b| {
                if r.name.as_str().ends_with("sequences") {
                    b.extend_from_slice(b"DROP TABLE public.t;\n");
                    r.meta["digest"] = serde_json::Value::Null;
                }
            })
            .await,
        ),
        (
            "SQLSTATE",
            tampered(&good, |r, b| {
                if r.name.as_str().ends_with("post-data") {
                    b.extend_from_slice(b"CREATE INDEX broken ON public.no_such_table (x);\n");
                    r.meta["digest"] = serde_json::Value::Null;
                }
            })
            .await,
        ),
    ];
    for (expected, reader) in cases {
        let error = try_restore(reader, &target, &drill("live"))
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert_eq!(databases(&cluster), ["live"], "{expected}");
    }
    assert!(!std::path::Path::new("/tmp/essrun-owned").exists());
    assert_eq!(cluster.psql("live", "SELECT count(*) FROM public.t").unwrap(), "1000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_precondition_is_found_when_violated() {
    let cluster = Cluster::start(&[("allow_system_table_mods", "on")]).unwrap();
    create(&cluster, "live", LIVE);
    cluster
        .psql_script(
            "postgres",
            "CREATE ROLE owner; CREATE ROLE nobody_much LOGIN; ALTER DATABASE live OWNER TO owner;",
        )
        .unwrap();
    let target = connection(&cluster, "live");
    let (_, _, good) = dump(&target, &DumpRequest::default()).await;
    let facts = async |change: fn(&mut serde_json::Value)| {
        tampered(&good, move |r, b| {
            if r.kind == "postgres-facts" {
                let mut facts: serde_json::Value = serde_json::from_slice(b).unwrap();
                change(&mut facts);
                *b = serde_json::to_vec(&facts).unwrap();
                r.meta = serde_json::json!({});
            }
        })
        .await
    };
    let checks = async |reader: &MemoryReader, options: &RestoreOptions| {
        let plan = restore::plan(reader, PREFIX, &target, options).await.unwrap();
        let found = |s: Severity| {
            plan.findings
                .iter()
                .filter(|f| f.severity == s)
                .map(|f| f.check.clone())
                .collect::<Vec<_>>()
        };
        (found(Severity::Error), found(Severity::Warning))
    };
    let drill = drill("live");
    let none = (Vec::<String>::new(), Vec::<String>::new());
    assert_eq!(checks(&good, &drill).await, none);
    let one = |name: &str| (vec![name.to_owned()], vec![]);
    assert_eq!(
        checks(&facts(|f| f["server_version_number"] = 990_000.into()).await, &drill).await,
        one("server-older")
    );
    assert_eq!(
        checks(&facts(|f| f["collate"] = "xx_YY.UTF-8".into()).await, &drill).await,
        one("locale-missing")
    );
    // A locale of the C library: the server knows its version by the library, whether or not the locale is installed.
    let others_locale = facts(|f| {
        f["collate"] = "xx_YY.UTF-8".into();
        f["collation_version"] = "0.1".into();
    })
    .await;
    cluster
        .psql(
            "postgres",
            "INSERT INTO pg_collation SELECT 99999, 'xx', collnamespace, collowner, 'c', true, -1, 'xx_YY.utf8', 'xx_YY.utf8' \
             FROM pg_collation WHERE collname = 'C'",
        )
        .unwrap();
    assert_eq!(
        checks(&others_locale, &drill).await,
        (vec![], vec!["collation-drift".to_owned()])
    );
    assert_eq!(
        checks(&facts(|f| f["extensions"]["nonesuch"] = "1".into()).await, &drill).await,
        one("extension-missing")
    );
    let drifted = facts(|f| f["extensions"]["plpgsql"] = "0.9".into()).await;
    assert_eq!(checks(&drifted, &drill).await, one("extension-drift"));
    let allowed = RestoreOptions {
        allow_drift: true,
        ..drill.clone()
    };
    assert_eq!(
        checks(&drifted, &allowed).await,
        (vec![], vec!["extension-drift".to_owned()])
    );
    let ghost = facts(|f| f["roles"] = serde_json::json!(["ghost"])).await;
    assert_eq!(checks(&ghost, &drill).await, one("role-missing"));
    let owned = RestoreOptions {
        owner: Some("owner".to_owned()),
        ..drill.clone()
    };
    assert_eq!(checks(&ghost, &owned).await, none);
    cluster
        .psql("postgres", "CREATE DATABASE \"live_essrun_run-1\"")
        .unwrap();
    assert_eq!(checks(&good, &drill).await, one("scratch-exists"));
    let clears = RestoreOptions {
        clears: true,
        ..drill.clone()
    };
    assert_eq!(checks(&good, &clears).await, none);
    // Not a leftover, whatever it is called.
    cluster.psql("live_essrun_run-1", "CREATE TABLE t (n int)").unwrap();
    assert_eq!(checks(&good, &clears).await, one("scratch-exists"));
    cluster.psql("postgres", "DROP DATABASE \"live_essrun_run-1\"").unwrap();
    let weak = target.with_user("nobody_much", None);
    let plan = restore::plan(&good, PREFIX, &weak, &drill).await.unwrap();
    let names: Vec<&str> = plan.findings.iter().map(|f| f.check.as_str()).collect();
    assert!(
        names.contains(&"cannot-create-database") && names.contains(&"role-not-granted"),
        "{names:?}"
    );
    let busy =
        essrun_postgres::Connection::parse(&format!("{}?application_name=synapse", cluster.uri("live"))).unwrap();
    let _session = Session::open(&busy).await.unwrap();
    let (errors, warnings) = checks(&good, &options("live", false)).await;
    assert_eq!(
        (errors, warnings),
        (vec!["target-not-empty".to_owned()], vec!["target-in-use".to_owned()])
    );
    // And a plan with an error is not carried out.
    let plan = restore::plan(&good, PREFIX, &target, &options("live", false))
        .await
        .unwrap();
    let refused = restore::execute(
        std::sync::Arc::new(good),
        &plan,
        &target,
        &options("live", false),
        std::sync::Arc::new(essrun_artifact::NoProgress),
    )
    .await;
    assert!(matches!(refused, Err(Error::Refused { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_sql_stays_within_its_bounds() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    let target = connection(&cluster, "live");
    let (_, _, reader) = dump(&target, &DumpRequest::default()).await;
    let restored = try_restore(reader, &target, &drill("live")).await.unwrap();
    let run = async |sql: &[&str]| {
        restored
            .run_sql(&sql.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
            .await
    };
    for bad in [
        "COMMIT",
        "BEGIN",
        "SET ROLE postgres",
        "RESET ROLE",
        "DELETE FROM public.t; COMMIT",
        "COPY public.t TO PROGRAM 'true'",
        "DO $$ BEGIN COMMIT; END $$",
        "SELECT set_config('role', 'none', false)",
        "",
        "DELETE FROM public.t WHERE (id = 1",
    ] {
        assert!(matches!(run(&[bad]).await, Err(Error::Invalid(_))), "{bad}");
    }
    // All or nothing.
    assert!(
        run(&["DELETE FROM public.t", "DELETE FROM public.no_such"])
            .await
            .is_err()
    );
    assert_eq!(
        cluster.psql(restored.scratch(), "SELECT count(*) FROM t").unwrap(),
        "1000"
    );
    run(&[
        "DELETE FROM public.t WHERE id > 5",
        "TRUNCATE public.t",
        "INSERT INTO public.t VALUES (1, ';')",
    ])
    .await
    .unwrap();
    assert_eq!(cluster.psql(restored.scratch(), "SELECT count(*) FROM t").unwrap(), "1");
}
