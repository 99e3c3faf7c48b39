//! Another S3, in this process, and the same without conditions: there the writers keep each other apart.
//!
//! With conditions it looks first and writes then, which two writers can slip through; so writers that meet are only
//! tried without. (That such a store is seen through is shown in `host/store`, where the moments can be chosen.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../../host/store/tests/conformance/mod.rs"]
mod conformance;
mod server;

use conformance::{elects_one_creator, keeps_the_contract, lists_many, name};
use essrun_store::s3::{Credentials, S3Options};
use essrun_store::*;
use server::InProcess;
use std::path::PathBuf;

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract_of_a_store() {
    let server = InProcess::start(true).await;
    let dir = tempfile::tempdir().unwrap();
    let options = server.options(dir.path());
    keeps_the_contract(&*open_with("s3://backups/one", &options).unwrap()).await;
    lists_many(&*open_with("s3://backups/many", &options).unwrap(), 1100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_conditional_writes_writers_elect_a_creator() {
    let server = InProcess::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let options = server.options(dir.path());
    keeps_the_contract(&*open_with("s3://backups/one", &options).unwrap()).await;
    assert!(server.dropped() > 0, "conditions were there to be ignored");
    let hosts = (0..3).map(|_| open_with("s3://backups/race", &options).unwrap());
    elects_one_creator(hosts.collect(), 2).await;
    let told = inspect("s3://backups/one", &options, "leases").await.unwrap();
    let text = format!("{told:?}");
    assert!(text.contains("writers elect who may"), "{text}");
    assert!(told.iter().all(|a| a.grade < Grade::Bad), "{text}");
    let left = server.stored();
    let in_claims = |p: &&PathBuf| p.components().any(|c| c.as_os_str() == "claims");
    assert_eq!(left.iter().find(in_claims), None, "every claim was withdrawn");
    // The record says so; a store that can do more by now still does it the recorded way, as all other hosts do.
    let record = left
        .iter()
        .find(|p| p.ends_with("race/essrun-store"))
        .expect("a record");
    assert!(std::fs::read_to_string(record).unwrap().contains("elected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_said_and_says_no_secret() {
    let server = InProcess::start(true).await;
    let dir = tempfile::tempdir().unwrap();
    let good = server.options(dir.path());
    let with = |change: &dyn Fn(&mut S3Options)| {
        let mut options = good.clone();
        change(&mut options.s3);
        options
    };
    // Before anything is asked of the store.
    let cases: [(OpenOptions, &str); 4] = [
        (with(&|s| s.allow_http = false), "allow-http = true"),
        (
            with(&|s| s.endpoint = Some("https://key:secret@host".into())),
            "more than a host and a port",
        ),
        (with(&|s| s.endpoint = Some("host:9000".into())), "no address"),
        (
            with(&|s| {
                s.credentials = Credentials::File {
                    path: dir.path().join("credentials"),
                    profile: Some("nobody".into()),
                }
            }),
            "no profile [nobody]",
        ),
    ];
    for (options, says) in cases {
        let said = open_with("s3://backups/x", &options).unwrap_err().to_string();
        assert!(said.contains(says) && !said.contains("some secret"), "{said}");
    }
    // A wrong key is refused at once and without repeating; a bucket that is not there is named.
    std::fs::write(
        dir.path().join("wrong"),
        "[default]\naws_access_key_id = some-key\naws_secret_access_key = another secret\n",
    )
    .unwrap();
    let wrong = with(&|s| {
        s.credentials = Credentials::File {
            path: dir.path().join("wrong"),
            profile: None,
        }
    });
    let refused = open_with("s3://backups/x", &wrong)
        .unwrap()
        .get(&name("a"))
        .await
        .unwrap_err();
    assert_eq!(refused.cause, Cause::Denied, "{refused}");
    for text in [refused.to_string(), format!("{refused:?}"), format!("{wrong:?}")] {
        assert!(!text.contains("another secret"), "{text}");
    }
    // Nobody answers there: tried again, then said.
    let gone = with(&|s| s.endpoint = Some("http://127.0.0.1:1".into()));
    let store = open_with("s3://backups/x", &gone).unwrap();
    let quick = tokio::time::timeout(std::time::Duration::from_millis(50), store.get(&name("a"))).await;
    assert!(quick.is_err(), "it should still be trying: {quick:?}");
}
