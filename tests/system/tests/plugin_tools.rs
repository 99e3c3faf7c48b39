//! What an author of a plugin works with: `plugin new`, `plugin test`, and the examples in three languages, each built by the
//! tools of its language and tried in the same described world; then a backup and restore with each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Essrun;
use essrun_testkit::plugins;
use essrun_testkit::sha256_hex;
use essrun_testkit::site::Site;
use essrun_testkit::workspace;
use serde_json::{Value, json};
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_new_plugin_is_built_tested_and_tried_as_its_readme_says() {
    let dir = tempfile::tempdir().unwrap();
    let essrun = Essrun::in_dir(dir.path());
    let sdk = workspace().join("guest-sdk");
    essrun
        .run(&["plugin", "new", "Wiki!", "--sdk", text(&sdk)])
        .expect_code(3)
        .expect_stderr(&["lower-case"]);
    essrun
        .run(&["plugin", "new", "my-wiki", "--sdk", "nowhere"])
        .expect_code(3)
        .expect_stderr(&["not the guest SDK"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    essrun
        .run(&["plugin", "new", "my-wiki", "--sdk", text(&sdk)])
        .expect_success();
    essrun
        .run(&["plugin", "new", "my-wiki", "--sdk", text(&sdk)])
        .expect_code(3)
        .expect_stderr(&["my-wiki"]);

    let made = dir.path().join("my-wiki");
    let tested = plugins::cargo_test(&made);
    assert!(tested.contains("3 passed"), "{tested}");
    let wasm = plugins::cargo_component(&made);
    let essrun = Essrun::in_dir(&made);
    let looked = essrun.run_json(&["plugin", "inspect", text(&wasm)]).expect_success();
    assert_eq!(looked.events[0]["description"]["system"], "my-wiki");

    let args = ["plugin", "test", text(&wasm), "world.toml"];
    let tried = essrun.run_json(&args).expect_success();
    let plan = &tried.events[0]["plan-backup"];
    assert_eq!(
        plan[0]["dump-database"]["leave-out-data"][0]["table"], "public.cache",
        "{tried}"
    );
    assert_eq!(plan[1]["record-fact"], json!({"key": "items", "value": "2"}));
    assert_eq!(plan[2]["archive-volume"]["volume"], "files");
    let checks = tried.events[0]["verify"].as_array().unwrap();
    assert!(checks.iter().all(|f| f["severity"] == "info"), "{tried}");

    essrun
        .run(&[&args[..], &["--record", "golden.json"]].concat())
        .expect_success();
    essrun
        .run(&[&args[..], &["--expect", "golden.json"]].concat())
        .expect_success();
    let world = std::fs::read_to_string(made.join("world.toml")).unwrap();
    std::fs::write(
        made.join("world.toml"),
        world.replace("keep-cache = false", "keep-cache = true"),
    )
    .unwrap();
    essrun
        .run(&[&args[..], &["--expect", "golden.json"]].concat())
        .expect_code(8)
        .expect_stderr(&["/plan-backup/0/dump-database/leave-out-data/0"]);
    for (from, to, code, says) in [
        ("keep-cache", "keep-cash", 3, "knows no setting \"keep-cash\""),
        ("databases.main.", "databases.mane.", 3, "needs databases.main"),
        ("public.item", "public.thing", 7, "public.item"),
        ("rows = [[1, \"first\"]", "rows = [[1]", 3, "1 values for 2 columns"),
        ("a/letter.txt", "../letter.txt", 3, "no path below the volume"),
        ("[settings]", "[setings]", 3, "setings"),
    ] {
        let broken = world.replace(from, to);
        assert_ne!(broken, world);
        std::fs::write(made.join("world.toml"), broken).unwrap();
        essrun.run(&args).expect_code(code).expect_stderr(&[says]);
    }
}

/// What every example must answer in the world of `examples/slack-bridge`, and that a damaged one is found.
fn tried(wasm: &Path, limits: &str) {
    let dir = tempfile::tempdir().unwrap();
    let essrun = Essrun::in_dir(dir.path());
    let world = |name: &str| {
        let given = std::fs::read_to_string(workspace().join("examples/slack-bridge").join(name)).unwrap();
        std::fs::write(dir.path().join(name), format!("{limits}\n{given}")).unwrap();
    };
    world("world.toml");
    world("damaged.toml");
    let good = essrun
        .run_json(&["plugin", "test", text(wasm), "world.toml"])
        .expect_success();
    let answers = &good.events[0];
    assert_eq!(answers["describe"]["system"], "Slack bridge");
    let plan = answers["plan-backup"].as_array().unwrap();
    let left_out = json!([{"table": "public.seen_event", "why": "the service repeats deliveries for an hour at most"}]);
    assert_eq!(plan[0]["dump-database"]["leave-out-data"], left_out, "{good}");
    assert!(
        plan.contains(&json!({"record-fact": {"key": "logged-in", "value": "2"}})),
        "{good}"
    );
    assert!(plan.iter().any(|s| s["archive-volume"]["volume"] == "config"), "{good}");
    let restore = answers["plan-restore"].as_array().unwrap();
    assert!(restore.contains(&json!({"restore-database": "main"})), "{good}");
    let severity = |answers: &Value, check: &str| {
        let findings = answers["verify"].as_array().unwrap().clone();
        let found = findings.into_iter().find(|f| f["check"] == check);
        found.unwrap_or_else(|| panic!("no {check} in {answers}"))["severity"].clone()
    };
    for check in ["slack-messages-have-channels", "slack-logins", "bridge-registration"] {
        assert_eq!(severity(answers, check), "info");
    }
    let respond = answers["respond"].as_array().unwrap();
    assert_eq!(respond[0]["run-sql"]["database"], "main", "{good}");
    assert!(
        respond
            .iter()
            .any(|s| s["advise"]["text"].as_str().unwrap_or_default().contains("revoke")),
        "{good}"
    );

    let bad = essrun
        .run_json(&["plugin", "test", text(wasm), "damaged.toml"])
        .expect_success();
    let answers = &bad.events[0];
    assert_eq!(severity(answers, "slack-messages-have-channels"), "error");
    assert_eq!(severity(answers, "slack-logins"), "warning");
    assert_eq!(severity(answers, "bridge-registration"), "warning");
}

/// From inspect to a restore on a real database.
fn backed_up_and_restored(wasm: &Path, limits: &str) {
    let mut site = Site::create();
    site.database("slack");
    site.fill(
        "slack",
        "CREATE TABLE team (id text PRIMARY KEY); CREATE TABLE channel (id bigint PRIMARY KEY);
         CREATE TABLE puppet (mxid text PRIMARY KEY, token text);
         CREATE TABLE message (id bigint PRIMARY KEY, channel_id bigint);
         INSERT INTO channel VALUES (1), (2); INSERT INTO puppet VALUES ('@a', 'x'), ('@b', NULL);
         INSERT INTO message SELECT n, 1 + n % 2 FROM generate_series(1, 500) n;",
    );
    let config = site.folder("bridge");
    std::fs::write(config.join("registration.yaml"), "as_token: a\nhs_token: b\n").unwrap();
    let hash = sha256_hex(&std::fs::read(wasm).unwrap());
    site.prepare(&format!(
        "[components.slack]\nuse = {{ path = {:?}, sha256 = \"{hash}\" }}\ndatabases.main = {{ url-env = \"SLACK_DB\" }}\n\
         volumes.config = {{ path = \"bridge\" }}\n{limits}\n",
        text(wasm)
    ));
    site.back_up().expect_success();
    site.drop_database("slack");
    std::fs::remove_dir_all(&config).unwrap();
    let restored = site.with_identity("restore", &["--yes"]).expect_success();
    let passed = restored
        .events_of("finding")
        .filter(|f| f["severity"] == "info")
        .count();
    assert!(passed >= 3, "{restored}");
    assert_eq!(site.sql("slack", "SELECT count(*) FROM message").trim(), "500");
    assert!(config.join("registration.yaml").is_file());
}

#[test]
fn the_example_in_rust() {
    let wasm = plugins::slack_bridge();
    tried(&wasm, "");
    // Its own tests, natively.
    let tested = plugins::cargo_test(&workspace().join("examples/slack-bridge"));
    assert!(tested.contains("test result: ok. 3 passed"), "{tested}");
}

#[test]
fn the_example_in_javascript() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = plugins::slack_bridge_javascript(dir.path());
    tried(&wasm, LIMITS_JAVASCRIPT);
    backed_up_and_restored(&wasm, &LIMITS_JAVASCRIPT.replace("[limits", "[components.slack.limits"));
}

#[test]
fn the_example_in_python() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = plugins::slack_bridge_python(dir.path());
    tried(&wasm, LIMITS_PYTHON);
    backed_up_and_restored(&wasm, &LIMITS_PYTHON.replace("[limits", "[components.slack.limits"));
}

/// What docs/PLUGINS.md says these need.
const LIMITS_JAVASCRIPT: &str = "";
const LIMITS_PYTHON: &str = "[limits]\nmemory = \"256 MiB\"\ncpu = \"60 s\"\n[limits.compile]\nfunction = \"1 MiB\"\n";
