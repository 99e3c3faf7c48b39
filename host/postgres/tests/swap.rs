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

    // A backup of another process is in the way as well, and is seen before anything is swapped.
    let backup = essrun_postgres::Connection::parse(&format!(
        "host={} port={} user=postgres dbname=live application_name=essrun",
        target.host(),
        target.port()
    ))
    .unwrap();
    let backup = Session::open(&backup).await.unwrap();
    let refused = restore::swap_ready(&target, &restored, &swapping(true, false))
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("2 other sessions are connected (essrun, synapse)"),
        "{refused}"
    );

    let done = swap(&target, &mut restored, &swapping(true, true)).await.unwrap();
    assert!(session.run("x", "SELECT 1").await.is_err());
    assert!(backup.run("x", "SELECT 1").await.is_err());
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
    let unmarked = "live_essrun_20260131t041500z-9f3a01c2";
    let make = format!("CREATE DATABASE \"{unmarked}\" TEMPLATE template0");
    cluster.psql("postgres", &make).unwrap();
    // Empty too, and somebody else's by its name.
    cluster.psql("postgres", "CREATE DATABASE app_essrun_test").unwrap();
    let found = list_leftovers(&target, "postgres").await.unwrap();
    assert_eq!(
        found.iter().map(|l| l.database.as_str()).collect::<Vec<_>>(),
        [unmarked]
    );
    // Called so, and with something in it that is no table.
    for (add, remove) in [
        (
            "CREATE FUNCTION precious() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "DROP FUNCTION precious()",
        ),
        ("CREATE TYPE mood AS ENUM ('fine')", "DROP TYPE mood"),
        ("CREATE DOMAIN few AS int", "DROP DOMAIN few"),
        ("CREATE SCHEMA theirs", "DROP SCHEMA theirs"),
        ("SELECT lo_create(7)", "SELECT lo_unlink(7)"),
    ] {
        cluster.psql(unmarked, add).unwrap();
        assert!(list_leftovers(&target, "postgres").await.unwrap().is_empty(), "{add}");
        assert!(drop_leftover(&target, "postgres", &found[0]).await.is_err(), "{add}");
        cluster.psql(unmarked, remove).unwrap();
    }
    drop_leftover(&target, "postgres", &found[0]).await.unwrap();
    assert_eq!(databases(&cluster), ["app_essrun_test", "live", "not_essrun_mine"]);
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
async fn definitions_run_together_or_one_by_one_and_a_bad_one_is_named() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "live",
        "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE a (x int); CREATE TABLE b (x int PRIMARY KEY); INSERT INTO b VALUES (1)",
    );
    let target = connection(&cluster, "live");
    let (_, _, good) = dump(&target, &DumpRequest::default()).await;
    let with = async |more: &'static str| {
        tampered(&good, move |r, b| {
            if r.name.as_str().ends_with("ddl-pre-data") {
                b.extend_from_slice(more.as_bytes());
                r.meta["digest"] = serde_json::Value::Null;
            }
        })
        .await
    };
    // A new word of an enumeration cannot be used before the transaction that made it has ended: together they fail.
    let apart = with("ALTER TYPE public.mood ADD VALUE 'low';\nCREATE TABLE public.c (m public.mood DEFAULT 'low');\n");
    let restored = try_restore(apart.await, &target, &drill("live")).await.unwrap();
    let there = cluster.psql(restored.scratch(), "INSERT INTO public.c DEFAULT VALUES RETURNING m");
    assert_eq!(there.unwrap(), "low");
    restored.drop_scratch().await.unwrap();

    let bad = with("CREATE TABLE public.d (x int);\nCREATE TABLE public.d (y int);\nCREATE TABLE public.e (x int);\n");
    let error = try_restore(bad.await, &target, &drill("live"))
        .await
        .map(|_| ())
        .unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("definition `CREATE TABLE public.d (y int)`") && said.contains("already exists"),
        "{said}"
    );
    assert_eq!(databases(&cluster), ["live"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_are_counted_and_given_to_their_owners() {
    let cluster = Cluster::start(&[]).unwrap();
    create(
        &cluster,
        "live",
        "CREATE ROLE app; SELECT lo_create(5); SELECT lo_from_bytea(6, 'x'); SELECT lo_create(7); ALTER LARGE OBJECT 5 OWNER TO app",
    );
    let target = connection(&cluster, "live");
    let (_, _, good) = dump(&target, &DumpRequest::default()).await;
    // As pg_dump since 17 leaves it: the definitions know of none.
    let bare = async |change: fn(&mut ArtifactRecord, &mut Vec<u8>)| {
        tampered(&good, move |r, b| {
            if r.name.as_str().ends_with("ddl-pre-data") {
                let text = String::from_utf8(b.clone()).unwrap();
                let kept: Vec<&str> = text
                    .lines()
                    .filter(|l| !l.contains("lo_create") && !l.contains("LARGE OBJECT"))
                    .collect();
                assert!(kept.len() < text.lines().count());
                *b = format!("{}\n", kept.join("\n")).into_bytes();
                r.meta["digest"] = serde_json::Value::Null;
            }
            change(r, b);
        })
        .await
    };
    let restored = try_restore(bare(|_, _| ()).await, &target, &drill("live"))
        .await
        .unwrap();
    common::assert_same((&cluster, "live"), (&cluster, restored.scratch()));
    restored.drop_scratch().await.unwrap();
    for (expected, reader) in [
        (
            "it makes 3 large objects, 4 were recorded",
            bare(|r, _| {
                if r.kind == "postgres-large-objects" {
                    r.meta["objects"] = 4.into();
                }
            })
            .await,
        ),
        (
            "something else than rights",
            bare(|r, b| {
                if r.name.as_str().ends_with("ddl-large-objects") {
                    b.extend_from_slice(b"GRANT app TO PUBLIC; ");
                    r.meta["digest"] = serde_json::Value::Null;
                }
            })
            .await,
        ),
        (
            "something else than rights",
            bare(|r, b| {
                if r.name.as_str().ends_with("ddl-large-objects") {
                    b.extend_from_slice(b"ALTER ROLE app SUPERUSER;\n");
                    r.meta["digest"] = serde_json::Value::Null;
                }
            })
            .await,
        ),
    ] {
        let error = try_restore(reader, &target, &drill("live"))
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert_eq!(databases(&cluster), ["live"], "{expected}");
    }
    // A backup of before: what is known to be missing is not called damage.
    let older = MemoryBackup::new();
    let mut lane = older.lane(LaneSpec::TABLE).unwrap();
    for record in good
        .artifacts()
        .iter()
        .filter(|r| !r.name.as_str().ends_with("ddl-large-objects"))
    {
        let mut record = record.clone();
        let mut content = good.open(&record.content).await.unwrap();
        while let Some(more) = content.next().await.unwrap() {
            lane.write(more).await.unwrap();
        }
        record.content = lane.cut().await.unwrap();
        if record.kind == "postgres-large-objects" {
            record.meta["objects"] = 9.into();
        }
        older.record(record).await.unwrap();
    }
    lane.close().await.unwrap();
    let restored = try_restore(older.commit().unwrap(), &target, &drill("live"))
        .await
        .unwrap();
    common::assert_same((&cluster, "live"), (&cluster, restored.scratch()));
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
    // One locale for both is one finding.
    cluster
        .psql("postgres", "DELETE FROM pg_collation WHERE oid = 99999")
        .unwrap();
    let both = facts(|f| {
        f["collate"] = "xx_YY.UTF-8".into();
        f["ctype"] = "xx_YY.UTF-8".into();
    })
    .await;
    assert_eq!(checks(&both, &drill).await, one("locale-missing"));
    let icu = facts(|f| {
        f["locale_provider"] = "i".into();
        f["icu_locale"] = "und".into();
    })
    .await;
    assert_eq!(checks(&icu, &drill).await, none);
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
    // As one killed between making and marking leaves it.
    let run = RestoreOptions::new("drill-1769832900-4711", "live", Purpose::Drill);
    let scratch = "live_essrun_drill-1769832900-4711";
    cluster
        .psql("postgres", &format!("CREATE DATABASE \"{scratch}\""))
        .unwrap();
    assert_eq!(checks(&good, &run).await, one("scratch-exists"));
    let clears = RestoreOptions {
        clears: true,
        ..run.clone()
    };
    assert_eq!(checks(&good, &clears).await, none);
    let told = restore::plan(&good, PREFIX, &target, &clears).await.unwrap().findings;
    let told = told.iter().find(|f| f.check == "leftover").unwrap();
    assert_eq!(told.severity, Severity::Info);
    assert!(
        told.message.contains(scratch) && told.remedy.contains("--resume"),
        "{told:?}"
    );
    // Not a leftover, whatever it is called.
    cluster.psql(scratch, "CREATE TABLE t (n int)").unwrap();
    assert_eq!(checks(&good, &clears).await, one("scratch-exists"));
    let told = restore::plan(&good, PREFIX, &target, &clears).await.unwrap().findings;
    assert!(told.iter().all(|f| f.check != "leftover"), "{told:?}");
    cluster
        .psql("postgres", &format!("DROP DATABASE \"{scratch}\""))
        .unwrap();
    let weak = target.with_user("nobody_much", None);
    let plan = restore::plan(&good, PREFIX, &weak, &drill).await.unwrap();
    let names: Vec<&str> = plan.findings.iter().map(|f| f.check.as_str()).collect();
    assert!(
        names.contains(&"cannot-create-database") && names.contains(&"role-not-granted"),
        "{names:?}"
    );
    // A backup by another process is somebody else too; sessions of this one are not.
    let ours = Session::open(&target).await.unwrap();
    let in_use = (vec!["target-not-empty".to_owned()], vec!["target-in-use".to_owned()]);
    assert_eq!(checks(&good, &options("live", false)).await, one("target-not-empty"));
    drop(ours);
    let backup =
        essrun_postgres::Connection::parse(&format!("{}?application_name=essrun", cluster.uri("live"))).unwrap();
    let backup = Session::open(&backup).await.unwrap();
    assert_eq!(checks(&good, &options("live", false)).await, in_use);
    drop(backup);
    let busy =
        essrun_postgres::Connection::parse(&format!("{}?application_name=synapse", cluster.uri("live"))).unwrap();
    let _session = Session::open(&busy).await.unwrap();
    // How much is free is known where the server is this machine's, and who asks may be told where it keeps its data.
    let space = |plan: &restore::RestorePlan| plan.findings.iter().any(|f| f.check == "space-unknown");
    assert!(plan.data_directory.is_none() && space(&plan), "{:?}", plan.findings);
    let plan = restore::plan(&good, PREFIX, &target, &drill).await.unwrap();
    let directory = plan.data_directory.as_deref().map(|d| d.canonicalize().unwrap());
    assert_eq!(directory, Some(cluster.data_dir().canonicalize().unwrap()));
    assert!(!space(&plan));
    let (errors, warnings) = checks(&good, &options("live", false)).await;
    assert_eq!(
        (errors, warnings),
        (vec!["target-not-empty".to_owned()], vec!["target-in-use".to_owned()])
    );
    // A server that has no locales of ICU's.
    cluster
        .psql("postgres", "DELETE FROM pg_collation WHERE collprovider = 'i'")
        .unwrap();
    assert_eq!(checks(&icu, &drill).await, one("locale-missing"));
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

/// As a collation that changed under an index leaves it: two rows of one key, and the index still says that it is unique.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_was_damaged_already_is_named() {
    for unique in [
        "CREATE UNIQUE INDEX u ON t (v)",
        "ALTER TABLE t ADD CONSTRAINT u UNIQUE (v)",
        "ALTER TABLE t ADD CONSTRAINT u PRIMARY KEY (v)",
    ] {
        let cluster = Cluster::start(&[("allow_system_table_mods", "on")]).unwrap();
        create(
            &cluster,
            "live",
            &format!(
                "CREATE TABLE t (v text); INSERT INTO t VALUES ('a'); {unique};
                 UPDATE pg_index SET indisready = false WHERE indexrelid = 'u'::regclass;"
            ),
        );
        cluster
            .psql_script(
                "live",
                "INSERT INTO t VALUES ('a'); UPDATE pg_index SET indisready = true WHERE indexrelid = 'u'::regclass;",
            )
            .unwrap();
        let target = connection(&cluster, "live");
        let (_, _, reader) = dump(&target, &DumpRequest::default()).await;
        let error = try_restore(reader, &target, &drill("live"))
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.code(), Some("23505"), "{unique}: {error}");
        for said in ["public.t", "its index was damaged then", "REINDEX"] {
            assert!(error.to_string().contains(said), "{unique}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_sql_stays_within_its_bounds() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "live", LIVE);
    cluster
        .psql_script(
            "live",
            "CREATE FUNCTION become(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config('role', $1, false); END $$;
             CREATE FUNCTION touch() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO public.t VALUES (7000) RETURNING id';
             CREATE SEQUENCE s; CREATE ROLE owner; ALTER DATABASE live OWNER TO owner; ALTER TABLE t OWNER TO owner; ALTER SEQUENCE s OWNER TO owner;",
        )
        .unwrap();
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
        "SELECT U&\"set\\005fconfig\"('role', 'none', false)",
        "SELECT \"set_config\"('role', 'none', false)",
        "SELECT query_to_xml('SELECT set_conf' || 'ig(''role'', ''none'', false)', true, true, '')",
        "INSERT INTO public.t SELECT 5000, v FROM (VALUES (pg_read_file('PG_VERSION')), ('x')) AS f (v)",
        "SELECT pg_notify('a', 'b')",
        "SELECT pg_advisory_lock(1)",
        "SELECT lo_export(5, '/tmp/essrun-run-sql')",
        "UPDATE public.t SET v = (SELECT rolpassword FROM pg_authid LIMIT 1)",
        "ALTER DATABASE live SET work_mem = '1MB'",
        "ALTER DATABASE live RENAME TO stolen",
        "ALTER /* TABLE */ DATABASE live OWNER TO CURRENT_USER",
        "ALTER ROLE postgres PASSWORD 'known'",
        "ALTER USER postgres PASSWORD 'known'",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
        "ALTER TABLE public.t ADD COLUMN x text DEFAULT pg_read_file('PG_VERSION')",
        // A function of the database's own that changes the role.
        "SELECT public.become('none')",
        "",
        "DELETE FROM public.t WHERE (id = 1",
    ] {
        assert!(matches!(run(&[bad]).await, Err(Error::Invalid(_))), "{bad}");
    }
    let live = "SELECT d.datname, pg_get_userbyid(d.datdba), (SELECT count(*) FROM pg_db_role_setting) FROM pg_database d WHERE datname = 'live'";
    assert_eq!(cluster.psql("postgres", live).unwrap(), "live|owner|0");
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
        "SELECT setval('public.s', 5)",
        "ALTER TABLE public.t ADD COLUMN made uuid DEFAULT gen_random_uuid()",
        "ALTER SEQUENCE public.s INCREMENT 2",
        "SELECT public.touch()",
        "DELETE FROM public.t WHERE id = 7000",
    ])
    .await
    .unwrap();
    assert_eq!(cluster.psql(restored.scratch(), "SELECT nextval('s')").unwrap(), "7");
    assert_eq!(cluster.psql(restored.scratch(), "SELECT count(*) FROM t").unwrap(), "1");
}
