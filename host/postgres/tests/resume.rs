//! Restores that were stopped and are gone on with: nothing is done twice, nothing is believed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use async_trait::async_trait;
use common::{AWKWARD, PREFIX, assert_same, connection, create, dump};
use essrun_artifact::memory::MemoryReader;
use essrun_artifact::{ArtifactRecord, BackupReader, Content, ContentReader, KeepError, NoProgress, Progress};
use essrun_postgres::dump::{DumpRequest, TableMeta};
use essrun_postgres::restore::{self, Purpose, RestoreOptions, Restored, drop_leftover, list_leftovers};
use essrun_postgres::{Connection, Error, Result};
use essrun_testkit::postgres::Cluster;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Remembers what was begun and what was kept, and says when so much has happened.
#[derive(Default)]
struct Watch {
    begun: Mutex<Vec<String>>,
    kept: Mutex<BTreeSet<String>>,
    count: Mutex<usize>,
    stop_at: usize,
    stop: Notify,
}

impl Watch {
    fn tick(&self) {
        let mut count = self.count.lock().unwrap();
        *count += 1;
        if *count == self.stop_at {
            self.stop.notify_one();
        }
    }
}

impl Progress for Watch {
    fn started(&self, what: &str, _: Option<u64>) {
        self.begun.lock().unwrap().push(what.to_owned());
        self.tick();
    }
    fn advanced(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str) {
        self.tick();
    }
    fn kept(&self, what: &str, why: &str) {
        assert!(why.contains("read back"), "{why}");
        assert!(
            self.kept.lock().unwrap().insert(what.to_owned()),
            "{what} is kept twice"
        );
    }
}

/// A backup of which one artifact cannot be read.
struct Failing {
    inner: MemoryReader,
    fails: Content,
}

#[async_trait]
impl BackupReader for Failing {
    fn artifacts(&self) -> &[ArtifactRecord] {
        self.inner.artifacts()
    }
    async fn open(&self, content: &Content) -> std::result::Result<Box<dyn ContentReader>, KeepError> {
        if content == &self.fails {
            return Err(KeepError::new("the store", "is not there now"));
        }
        self.inner.open(content).await
    }
}

fn options(database: &str, resume: bool) -> RestoreOptions {
    RestoreOptions {
        resume,
        keep_unfinished: true,
        jobs: 2,
        ..RestoreOptions::new("20260131t041500z-9f3a01c2", database, Purpose::Restore)
    }
}

async fn run(
    reader: Arc<dyn BackupReader>,
    target: &Connection,
    options: &RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Restored> {
    let plan = restore::plan(reader.as_ref(), PREFIX, target, options).await?;
    restore::execute(reader, &plan, target, options, progress).await
}

async fn resume(reader: &MemoryReader, target: &Connection) -> (Result<Restored>, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let result = run(Arc::new(reader.clone()), target, &options("copy", true), watch.clone()).await;
    (result, watch)
}

fn tables(reader: &MemoryReader) -> BTreeSet<String> {
    let filled = |a: &&ArtifactRecord| TableMeta::of(a).is_ok_and(|m| m.rows > 0);
    reader
        .artifacts()
        .iter()
        .filter(filled)
        .map(|a| a.name.to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_at_any_moment_and_gone_on_with() {
    let cluster = Cluster::start(&[]).unwrap();
    create(&cluster, "awkward", AWKWARD);
    let target = connection(&cluster, "copy");
    let (_, _, reader) = dump(&connection(&cluster, "awkward"), &DumpRequest::default()).await;
    let began = Instant::now();
    let watch = Arc::new(Watch::default());
    let whole = run(
        Arc::new(reader.clone()),
        &target,
        &options("copy", false),
        watch.clone(),
    )
    .await;
    whole.unwrap().drop_scratch().await.unwrap();
    let (took, events) = (began.elapsed(), *watch.count.lock().unwrap());
    let filled = tables(&reader);

    // By time it is another moment each time, but a run that is faster than the first may be over by then.
    let by_event = (1..16).map(|n| (events * n / 16, took * 20));
    let by_time = (1..=8).map(|n| (usize::MAX, took * n / 8));
    let (mut stopped, mut kept_some, mut anew) = (0, 0, 0);
    for (stop_at, stop_after) in by_event.chain(by_time) {
        let watch = Arc::new(Watch {
            stop_at,
            ..Watch::default()
        });
        let (reader_, target_, watch_) = (Arc::new(reader.clone()), target.clone(), watch.clone());
        let mut work = tokio::spawn(async move { run(reader_, &target_, &options("copy", false), watch_).await });
        let came_to_its_end = tokio::select! {
            _ = watch.stop.notified() => false,
            () = tokio::time::sleep(stop_after) => false,
            done = &mut work => {
                drop(done.unwrap().unwrap());
                true
            }
        };
        if !came_to_its_end {
            work.abort();
            stopped += usize::from(work.await.is_err());
        }

        // At once: what the killed one left running on the server is waited for.
        let (resumed, watch) = resume(&reader, &target).await;
        let mut resumed = resumed.unwrap();
        let kept = watch.kept.lock().unwrap().clone();
        let begun: Vec<String> = watch.begun.lock().unwrap().clone();
        for table in &filled {
            let loaded = begun.iter().filter(|name| *name == table).count();
            assert_eq!(
                loaded + usize::from(kept.contains(table)),
                1,
                "{table}: neither once loaded nor kept"
            );
        }
        let of_filled = kept.len() as u64;
        assert_eq!(resumed.report().kept_tables, of_filled);
        kept_some += usize::from(!kept.is_empty());
        anew += usize::from(kept.is_empty());
        resumed.settle().await.unwrap();
        assert_same((&cluster, "awkward"), (&cluster, resumed.scratch()));
        resumed.drop_scratch().await.unwrap();
        let left = list_leftovers(&target, "postgres").await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(
        stopped >= 12 && kept_some >= 8,
        "{stopped} stopped, {kept_some} kept some, {anew} nothing"
    );
}

const SOURCE: &str = "\
    CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'v' || g FROM generate_series(1, 5000) g;
    CREATE INDEX a_v ON a (v); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO b SELECT g, g FROM generate_series(1, 300) g;
    CREATE TABLE c (id int PRIMARY KEY, v text); INSERT INTO c VALUES (1, 'one'); CREATE TABLE nothing (x int);
    CREATE TABLE otk (k text); INSERT INTO otk VALUES ('once'); CREATE SEQUENCE s; SELECT nextval('s')";

struct Stopped {
    cluster: Cluster,
    target: Connection,
    reader: MemoryReader,
    scratch: String,
}

impl Stopped {
    async fn new() -> Stopped {
        let cluster = Cluster::start(&[]).unwrap();
        create(&cluster, "source", SOURCE);
        let request = DumpRequest {
            leave_out_data: vec![essrun_postgres::dump::TableRule {
                table: "public.otk".to_owned(),
                why: "once".to_owned(),
            }],
            ..DumpRequest::default()
        };
        let (_, _, reader) = dump(&connection(&cluster, "source"), &request).await;
        cluster.psql("source", "TRUNCATE otk").unwrap();
        Stopped {
            target: connection(&cluster, "copy"),
            scratch: "copy_essrun_20260131t041500z-9f3a01c2".to_owned(),
            cluster,
            reader,
        }
    }

    /// A restore that fails at table `c`, all others loaded.
    async fn at_c(&self) {
        self.drop_all().await;
        let c = self
            .reader
            .artifacts()
            .iter()
            .find(|a| a.name.as_str().ends_with("public.c"));
        let failing = Failing {
            inner: self.reader.clone(),
            fails: c.unwrap().content.clone(),
        };
        let options = RestoreOptions {
            // One at a time, the largest first: `c` is the last with rows.
            jobs: 1,
            ..options("copy", false)
        };
        let failed = run(Arc::new(failing), &self.target, &options, Arc::new(NoProgress)).await;
        assert!(matches!(failed, Err(Error::Keep(_))), "{failed:?}");
    }

    /// One that was stopped when all was done.
    async fn at_the_end(&self, settled: bool, sql: &[&str]) {
        self.drop_all().await;
        let reader = Arc::new(self.reader.clone());
        let mut restored = run(reader, &self.target, &options("copy", false), Arc::new(NoProgress))
            .await
            .unwrap();
        let sql: Vec<String> = sql.iter().map(|s| (*s).to_owned()).collect();
        if !sql.is_empty() {
            assert!(restored.run_sql(&sql).await.unwrap());
        }
        if settled {
            restored.settle().await.unwrap();
        }
    }

    async fn drop_all(&self) {
        for _ in 0..500 {
            let left = list_leftovers(&self.target, "postgres").await.unwrap();
            for one in &left {
                // Somebody may just be leaving.
                let _ = drop_leftover(&self.target, "postgres", one).await;
            }
            if self
                .cluster
                .psql(
                    "postgres",
                    "SELECT count(*) FROM pg_database WHERE datname LIKE '%essrun%'",
                )
                .unwrap()
                == "0"
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("scratch databases stay");
    }

    fn sql(&self, sql: &str) {
        self.cluster.psql(&self.scratch, sql).unwrap();
    }

    /// Goes on; the result is the source, and so many tables were kept.
    async fn comes_back_whole(&self, kept: &[&str]) {
        let (resumed, watch) = resume(&self.reader, &self.target).await;
        let mut resumed = resumed.unwrap();
        let names: BTreeSet<String> = kept.iter().map(|t| format!("{PREFIX}/public.{t}")).collect();
        assert_eq!(*watch.kept.lock().unwrap(), names);
        resumed.settle().await.unwrap();
        assert_same((&self.cluster, "source"), (&self.cluster, resumed.scratch()));
    }

    async fn is_refused(&self, why: &str) {
        let (resumed, _) = resume(&self.reader, &self.target).await;
        match resumed {
            Err(e @ Error::Refused { .. }) => {
                let said = e.to_string();
                assert!(said.contains(why) && said.contains("without --resume"), "{why}: {said}");
            }
            other => panic!("{why}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_table_failed() {
    let stopped = Stopped::new().await;
    stopped.at_c().await;
    stopped.comes_back_whole(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_tampered_with_is_done_again_or_refused() {
    let stopped = Stopped::new().await;
    // Rows: loaded again, whichever way they differ.
    for tamper in [
        "DELETE FROM a WHERE id = 7",
        "UPDATE a SET v = 'w' WHERE id = 4999",
        "INSERT INTO a VALUES (0, 'more')",
        "TRUNCATE a",
        // The journal claims what is not so.
        "DELETE FROM a; INSERT INTO a SELECT g, 'v' || g FROM generate_series(5000, 1, -1) g",
    ] {
        stopped.at_c().await;
        stopped.sql(tamper);
        stopped.comes_back_whole(&["b"]).await;
    }
    stopped.at_c().await;
    let claim = format!("rows {}", blake3::hash(b"\"public\".\"c\"").to_hex());
    stopped.sql(&format!("INSERT INTO essrun_restore.done VALUES ('{claim}', '')"));
    stopped.comes_back_whole(&["a", "b"]).await;
    // No journal: nothing is believed, all is done anew.
    for tamper in [
        "DROP SCHEMA essrun_restore CASCADE",
        "DELETE FROM essrun_restore.done WHERE step = 'definitions'",
    ] {
        stopped.at_c().await;
        stopped.sql(tamper);
        stopped.comes_back_whole(&[]).await;
    }
    // What cannot be mended piece by piece.
    for (tamper, why) in [
        ("INSERT INTO otk VALUES ('x')", "public.otk has rows"),
        ("INSERT INTO nothing VALUES (1)", "public.nothing"),
        ("DROP INDEX a_v", "index public.a_v"),
        ("ALTER TABLE b ADD more int", "column public.b."),
        ("CREATE TABLE planted (x int)", "relation public.planted"),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function public.f()",
        ),
        ("ALTER TABLE a ENABLE ROW LEVEL SECURITY", "relation public.a"),
        (
            "UPDATE essrun_restore.done SET said = '{}' WHERE step = 'origin'",
            "changed since",
        ),
        ("DELETE FROM essrun_restore.done WHERE step = 'origin'", "changed since"),
        (
            "COMMENT ON DATABASE \"copy_essrun_20260131t041500z-9f3a01c2\" IS 'essrun scratch {\"run\":\"20260131t041500z-9f3a01c2\",\"purpose\":\"restore\",\"of\":\"copy\",\"what\":\"other/main\",\"complete\":false}'",
            "of another restore",
        ),
    ] {
        stopped.at_c().await;
        stopped.sql(tamper);
        stopped.is_refused(why).await;
    }
    // Once foreign keys stand, no table is filled again by itself.
    for settled in [false, true] {
        for (tamper, why) in [
            ("DELETE FROM b WHERE id = 7", "rows of public.b"),
            ("ALTER TABLE b DROP CONSTRAINT b_a_fkey", "constraint public.b b_a_fkey"),
            ("DROP INDEX a_v", "index public.a_v"),
        ] {
            stopped.at_the_end(settled, &[]).await;
            stopped.sql(tamper);
            stopped.is_refused(why).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_of_the_plan_runs_once_and_what_it_changed_is_known() {
    let stopped = Stopped::new().await;
    let sql = [
        "UPDATE public.b SET a = 1 WHERE id < 10",
        "TRUNCATE public.c",
        "ALTER TABLE public.a ALTER v SET DEFAULT 'x'",
    ];
    let sql_owned: Vec<String> = sql.iter().map(|s| (*s).to_owned()).collect();
    for settled in [false, true] {
        stopped.at_the_end(settled, &sql).await;
        let (resumed, watch) = resume(&stopped.reader, &stopped.target).await;
        let mut resumed = resumed.unwrap();
        assert_eq!(watch.kept.lock().unwrap().len(), 3);
        assert!(!resumed.run_sql(&sql_owned).await.unwrap(), "it ran a second time");
        resumed.settle().await.unwrap();
        let there =
            "SELECT (SELECT count(*) FROM b WHERE a = 1), (SELECT count(*) FROM c), (SELECT count(*) FROM pg_attrdef)";
        assert_eq!(stopped.cluster.psql(resumed.scratch(), there).unwrap(), "9|0|1");
        drop(resumed);
        for (tamper, why) in [
            ("UPDATE b SET a = 2 WHERE id = 5", "rows of public.b"),
            ("INSERT INTO c VALUES (2, 'x')", "rows of public.c"),
            ("ALTER TABLE a ALTER v DROP DEFAULT", "its definitions differ"),
        ] {
            stopped.at_the_end(settled, &sql).await;
            stopped.sql(tamper);
            stopped.is_refused(why).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_same_restore_is_gone_on_with() {
    let stopped = Stopped::new().await;
    stopped.at_c().await;
    let found = async |options: RestoreOptions| {
        for _ in 0..500 {
            let plan = restore::plan(&stopped.reader, PREFIX, &stopped.target, &options)
                .await
                .unwrap();
            let checks: Vec<String> = plan
                .findings
                .iter()
                .map(|f| f.check.clone())
                .filter(|c| c != "space-unknown")
                .collect();
            if !checks.contains(&"scratch-exists".to_owned()) {
                return checks;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the stopped restore's sessions do not end");
    };
    assert_eq!(found(options("copy", true)).await, ["resumed"]);
    assert_eq!(found(options("elsewhere", true)).await, ["resume-other-target"]);
    let other = RestoreOptions {
        run: "b-2".to_owned(),
        ..options("copy", true)
    };
    assert_eq!(found(other).await, ["resume-other-backup"]);
    // Changed since, though the names are the same.
    let mut changed = options("copy", true);
    changed.origin.insert("component".to_owned(), "another".to_owned());
    let refused = run(
        Arc::new(stopped.reader.clone()),
        &stopped.target,
        &changed,
        Arc::new(NoProgress),
    )
    .await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("component changed since"), "{said}");
    stopped.comes_back_whole(&["a", "b"]).await;
    // Nothing there: everything is done.
    stopped.drop_all().await;
    stopped.comes_back_whole(&[]).await;
}
