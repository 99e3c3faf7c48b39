//! A restore of Synapse and MAS on two servers, killed at any moment and gone on with: one database may be in service on its
//! server while the other is not yet there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Kill, Outcome, moments};
use essrun_testkit::pair::Pair;
use essrun_testkit::suite::tree_digest;
use std::path::{Path, PathBuf};

const BEGIN: [&str; 3] = ["restore", "pipeline.toml", "--yes"];
const RESUME: [&str; 4] = ["restore", "pipeline.toml", "--yes", "--resume"];

/// Everything that is restored, wherever it is; `None` while some of it is not there.
fn digests(pair: &Pair) -> Option<Vec<String>> {
    let synapse = pair.suite.cluster.databases().contains(&"synapse".to_owned());
    let mas = pair.mas_cluster().databases().contains(&"mas".to_owned());
    let trees = [
        &pair.suite.home.media_store(),
        &pair.suite.home.config(),
        &pair.mas.config,
    ];
    (synapse && mas && trees.iter().all(|tree| tree.is_dir())).then(|| {
        let databases = [pair.suite.cluster.digest("synapse"), pair.mas_cluster().digest("mas")];
        let trees = trees.iter().map(|tree| tree_digest(tree));
        databases.into_iter().chain(trees).collect()
    })
}

fn folders(pair: &Pair) -> [PathBuf; 2] {
    let parent = |path: &Path| path.parent().unwrap().to_owned();
    [pair.suite.home.root.clone(), parent(&pair.mas.config)]
}

fn staging(pair: &Pair) -> Vec<PathBuf> {
    let entries = folders(pair).into_iter().flat_map(|folder| folder.read_dir().unwrap());
    let is_staging = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with(".essrun-restore-")
    };
    entries.map(|e| e.unwrap().path()).filter(is_staging).collect()
}

/// From any state a killed restore leaves.
fn lose(pair: &Pair) {
    for cluster in [&pair.suite.cluster, pair.mas_cluster()] {
        for name in cluster.databases().iter().filter(|name| *name != "postgres") {
            let drop = format!("DROP DATABASE \"{name}\" WITH (FORCE)");
            cluster.psql("postgres", &drop).expect("dropping");
        }
    }
    let trees = [
        pair.suite.home.media_store(),
        pair.suite.home.config(),
        pair.mas.config.clone(),
    ];
    for path in trees.iter().filter(|tree| tree.exists()).chain(&staging(pair)) {
        std::fs::remove_dir_all(path).unwrap();
    }
}

fn kill(pair: &Pair, at: Kill) -> Outcome {
    let identity = pair.suite.identity();
    let args = [&BEGIN[..], &["--identity", identity.to_str().unwrap()]].concat();
    pair.essrun().run_and_kill(&args, at)
}

#[test]
fn a_pair_on_two_servers_is_gone_on_with() {
    let pair = Pair::new(true);
    pair.essrun().run_json(&["pipeline.toml"]).expect_success();
    // What a backup leaves out is not in what is compared: the source is itself a restored one.
    lose(&pair);
    pair.run_with_identity(&BEGIN).expect_success();
    pair.essrun().run_json(&["pipeline.toml"]).expect_success();
    let source = digests(&pair).expect("all was restored");

    lose(&pair);
    let sample = pair.run_with_identity(&BEGIN).expect_success();
    assert_eq!(digests(&pair).as_ref(), Some(&source));
    let swap = sample.events.iter().position(|e| e["phase"] == "swap").expect("a swap");
    // At each step in which one is in service and the other is not, besides those spread over the whole.
    let swaps = (swap + 1..=sample.events.len()).map(Kill::AtEvent);
    let (mut stopped, mut apart) = (0, 0);
    for at in moments(&sample, 3, 5).into_iter().chain(swaps) {
        lose(&pair);
        let killed = kill(&pair, at);
        assert!(killed.was_killed() || killed.code() == Some(0), "{at:?}: {killed}");
        stopped += usize::from(killed.was_killed());
        let in_service = [
            pair.suite.cluster.databases().contains(&"synapse".to_owned()),
            pair.mas_cluster().databases().contains(&"mas".to_owned()),
        ];
        apart += usize::from(in_service[0] != in_service[1]);
        if digests(&pair).is_none() {
            let resumed = pair.run_with_identity(&RESUME).expect_success();
            let errors = resumed
                .events_of("finding")
                .filter(|e| e["severity"] == "error")
                .count();
            assert_eq!(errors, 0, "{at:?}: {resumed}");
        }
        assert_eq!(digests(&pair).as_ref(), Some(&source), "{at:?}: {killed}");
        assert_eq!(pair.suite.cluster.databases(), ["postgres", "synapse"], "{at:?}");
        assert_eq!(pair.mas_cluster().databases(), ["mas", "postgres"], "{at:?}");
    }
    assert!(
        stopped >= 6 && apart >= 1,
        "{stopped} stopped, {apart} between the swaps"
    );
}
