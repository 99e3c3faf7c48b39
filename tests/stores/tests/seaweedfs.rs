//! SeaweedFS, a store with conditional writes and Object Lock: the contract, and what a person is told of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../../host/store/tests/conformance/mod.rs"]
mod conformance;
mod server;

use conformance::{elects_one_creator, keeps_the_contract, lists_many, name};
use essrun_store::*;
use essrun_testkit::seaweed::{ADMIN, Seaweed, WRITER};
use server::seaweed_options;

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract_of_a_store() {
    let server = Seaweed::start();
    let dir = tempfile::tempdir().unwrap();
    server.make_bucket("backups");
    let options = seaweed_options(&server, dir.path(), ADMIN);
    let open = |prefix: &str| open_with(&format!("s3://backups{prefix}"), &options).unwrap();
    keeps_the_contract(&*open("")).await;
    keeps_the_contract(&*open("/a/prefix")).await;
    elects_one_creator((0..16).map(|_| open("/race")).collect(), 3).await;
    lists_many(&*open("/many"), 2300).await;
    let there = server.objects("backups", "a/prefix/");
    assert_eq!(
        there,
        [
            "a/prefix/data/b",
            "a/prefix/database/c",
            "a/prefix/essrun-store",
            "a/prefix/z"
        ]
    );

    let told = inspect("s3://backups/fresh", &options, "leases").await.unwrap();
    let text = format!("{told:?}");
    assert!(told.iter().all(|a| a.grade < Grade::Bad), "{text}");
    for part in [
        "If-None-Match",
        "listing shows at once",
        "versioning is off",
        "Object Lock is off",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }

    // Keys that may not write there say so, with the bucket's name.
    let bound = seaweed_options(&server, dir.path(), WRITER);
    let missing = open_with("s3://no-such-bucket/x", &bound)
        .unwrap()
        .put_new(&name("a"), bytes::Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(missing.cause, Cause::Denied);
    assert!(missing.to_string().contains("no-such-bucket"), "{missing}");
}
