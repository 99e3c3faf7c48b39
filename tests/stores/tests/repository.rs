//! A repository on real object stores: several hosts at once, writers that die, retention that says no.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../../host/repository/tests/common/mod.rs"]
mod common;
#[path = "server/mod.rs"]
mod server;

use common::*;
use essrun_repository::*;
use essrun_store::s3::S3Options;
use essrun_store::*;
use essrun_testkit::seaweed::{ADMIN, Seaweed, WRITER};
use server::{InProcess, seaweed_options};
use std::sync::Arc;
use std::time::Duration;

type OpenStore<'a> = &'a dyn Fn() -> Arc<dyn Store>;

fn access(dir: &std::path::Path, writer: &WriterKey, identity: &NewIdentity, cache: &str) -> Access {
    Access {
        writer: Some(writer.clone()),
        identities: vec![],
        recipients: Recipients::parse([identity.recipient()]).unwrap(),
        cache_dir: dir.join(cache),
        state_dir: dir.join("state").join(cache),
        options: Options {
            pack_bytes: 256 << 10,
            ..Options::default()
        },
    }
}

/// Two hosts with keys of their own and one that shares the first's key, each twice at once, all with stores of their own.
async fn several_hosts_at_once_lose_nothing(open: OpenStore<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let (writers, identity) = ([WriterKey::generate(), WriterKey::generate()], NewIdentity::generate());
    let first = access(dir.path(), &writers[0], &identity, "cache-0");
    Repository::init(open(), &writers[0], &first.recipients).await.unwrap();
    let again = Repository::init(open(), &writers[0], &first.recipients).await;
    assert!(again.unwrap_err().to_string().contains("a repository already"));
    let repository = Repository::open(open(), first).await.unwrap();
    repository.authorize(&writers[1].public()).await.unwrap();
    drop(repository);

    let mut runs = Vec::new();
    for n in 0..6u64 {
        let host = n as usize % 3;
        let access = access(dir.path(), &writers[host % 2], &identity, &format!("cache-{n}"));
        let store = open();
        runs.push(tokio::spawn(async move {
            let repository = Repository::open(store, access).await.unwrap();
            let table = rows(n * 1000, 4000);
            (backup(&repository, &[("s/t", &table)]).await.unwrap(), table)
        }));
    }
    let mut made = Vec::new();
    for run in runs {
        made.push(run.await.unwrap());
    }
    let reading = Access {
        writer: None,
        identities: vec![identity.identity()],
        recipients: Recipients::none(),
        ..access(dir.path(), &writers[0], &identity, "cache-reader")
    };
    let reader = Repository::open(open(), reading).await.unwrap();
    assert_eq!(reader.backups().await.unwrap().len(), 6);
    for (summary, table) in made {
        let open = reader.read(summary.id.as_str()).await.unwrap();
        assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
    }
    let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_hosts_on_seaweedfs() {
    let server = Seaweed::start();
    server.make_bucket("backups");
    let dir = tempfile::tempdir().unwrap();
    let options = seaweed_options(&server, dir.path(), ADMIN);
    several_hosts_at_once_lose_nothing(&|| open_with("s3://backups/ess", &options).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_hosts_without_conditional_writes() {
    let server = InProcess::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let options = server.options(dir.path());
    several_hosts_at_once_lose_nothing(&|| open_with("s3://ess", &options).unwrap()).await;
    assert!(server.dropped() > 0);
}

/// What is under retention stays, prune says so and goes on; a forgotten backup's manifest that stays keeps its data.
#[tokio::test(flavor = "multi_thread")]
async fn prune_respects_retention() {
    let server = Seaweed::start();
    server.make_locked_bucket("locked");
    let dir = tempfile::tempdir().unwrap();
    let plain = seaweed_options(&server, dir.path(), ADMIN);
    let locking = OpenOptions {
        s3: S3Options {
            object_lock: Some(Duration::from_secs(86_400)),
            unlocked: SHORT_LIVED.map(str::to_owned).to_vec(),
            ..plain.s3.clone()
        },
        ..plain.clone()
    };
    let (writer, identity) = (WriterKey::generate(), NewIdentity::generate());
    let access = |cache: &str| access(dir.path(), &writer, &identity, cache);
    let store = |options: &OpenOptions| open_with("s3://locked/ess", options).unwrap();
    let told = format!("{:?}", inspect("s3://locked/ess", &locking, "leases").await.unwrap());
    assert!(
        told.contains("versioning is on") && told.contains("Object Lock: objectlockenabled Enabled"),
        "{told}"
    );

    Repository::init(store(&locking), &writer, &access("cache").recipients)
        .await
        .unwrap();
    let repository = Repository::open(store(&locking), access("cache")).await.unwrap();
    let first = backup(&repository, &[("s/t", &rows(1, 8000))]).await.unwrap();
    let second = backup(&repository, &[("s/t", &rows(500_000, 8000))]).await.unwrap();
    let manifest = server
        .objects("locked", "ess/")
        .into_iter()
        .find(|o| o.contains("manifests/"))
        .unwrap();
    let retention = server.expect("GET", &format!("/locked/{manifest}"), "retention=", &[], b"");
    assert!(retention.contains("COMPLIANCE"), "{retention}");

    repository.forget(&first.id, "a test").await.unwrap();
    drop(repository);
    // With keys that may not delete, all of it is reported, nothing fails half-way, and everything is still there.
    let before = server.objects("locked", "ess/");
    let prune = async |options: &OpenOptions| {
        let repository = Repository::open(store(options), access("cache")).await.unwrap();
        let plan = repository.plan_prune(Duration::ZERO).await.unwrap();
        repository.prune(&plan).await.unwrap()
    };
    let bound = OpenOptions {
        s3: seaweed_options(&server, dir.path(), WRITER).s3,
        ..plain.clone()
    };
    assert!(prune(&bound).await.marked > 0);
    let refused = prune(&bound).await;
    assert_eq!(refused.deleted, 0);
    assert!(refused.kept.iter().any(|k| k.starts_with("manifests/")), "{refused:?}");
    assert!(refused.kept.iter().any(|k| k.starts_with("data/")), "{refused:?}");
    let after = server.objects("locked", "ess/");
    assert_eq!(
        before.iter().find(|o| !after.contains(o) && !o.contains("leases/")),
        None
    );
    // With keys that may, the store hides what it must keep.
    let freed = prune(&plain).await;
    assert!(freed.deleted > 3 && freed.kept.is_empty(), "{freed:?}");
    assert!(!server.objects("locked", "ess/").contains(&manifest));
    // Every version ever written is still there, whatever became visible of the deletions.
    let versions = server.expect("GET", "/locked", "max-keys=1000&versions=", &[], b"");
    assert!(versions.contains(&manifest), "{versions}");
    let version = versions.matches("<Version>").count();
    assert!(version > 10, "{versions}");
    let reader = Repository::open(
        store(&plain),
        Access {
            writer: None,
            identities: vec![identity.identity()],
            ..access("reader")
        },
    )
    .await
    .unwrap();
    let open = reader.read(second.id.as_str()).await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), rows(500_000, 8000));
    let report = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
}
