//! A component that fails half-way: what it had finished is told, and is never taken for the whole. The others of the run
//! are not touched by it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::plugins;
use essrun_testkit::sha256_hex;
use essrun_testkit::site::Site;
use serde_json::{Value, json};

const REFUSED: i32 = 4;
const INCOMPLETE: i32 = 9;

const FINISHED: &str = "half/main/public.access_tokens";
const UNFINISHED: &str = "half/main/public.item";

/// The plugin's larger table is read first, by one worker, and its smaller one stops it in the middle.
fn site() -> Site {
    let wasm = std::fs::read(plugins::hostile()).unwrap();
    let mut site = Site::create();
    site.database("shop");
    site.fill(
        "shop",
        "CREATE TABLE access_tokens (id int PRIMARY KEY, token text);\n\
         INSERT INTO access_tokens SELECT n, 'token ' || n FROM generate_series(1, 20000) n;\n\
         CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 100);",
    );
    std::fs::write(site.folder("files").join("a.txt"), "a").unwrap();
    std::fs::write(site.path().join("half.wasm"), &wasm).unwrap();
    site.prepare(&format!(
        "[run]\njobs = 1\n[components.honest]\nuse = \"generic\"\nvolumes.files = {{ path = \"files\" }}\n\
         [components.half]\nuse = {{ path = \"half.wasm\", sha256 = \"{}\" }}\ndatabases.main = {{ url-env = \"SHOP_DB\" }}\n\
         settings.deed = \"filter-divides\"\n",
        sha256_hex(&wasm)
    ));
    site
}

#[test]
fn what_a_failed_component_finished_is_no_backup_of_it() {
    let site = site();
    let outcome = site
        .back_up()
        .expect_code(INCOMPLETE)
        .expect_stderr(&["was committed without: half", "division by zero"]);
    let failed: Vec<&Value> = outcome.events_of("failed").collect();
    assert_eq!(
        (failed.len(), &failed[0]["component"]),
        (1, &json!("half")),
        "{outcome}"
    );

    // The manifest says that it failed, and of what it holds of it that no restore takes it.
    let list = site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    assert_eq!(
        (&list.events[0]["state"], &list.events[0]["components"]),
        (&json!("incomplete"), &json!(["honest"]))
    );
    let first = list.events[0]["id"].as_str().unwrap().to_owned();
    let shown = site.essrun().run_json(&["show", "pipeline.toml"]).expect_success();
    let shown = &shown.events[0];
    let half = shown["body"]["components"].as_array().unwrap();
    let half = half.iter().find(|c| c["name"] == "half").unwrap();
    assert!(half["failed"].as_str().unwrap().contains("division by zero"), "{half}");
    let held = |name: &str| {
        let artifacts = shown["artifacts"].as_array().unwrap();
        artifacts.iter().find(|a| a["name"] == name).cloned()
    };
    let finished = held(FINISHED).unwrap();
    assert_eq!(
        (&finished["incomplete"], &finished["items"]),
        (&json!(true), &json!(20000))
    );
    assert_eq!(held(UNFINISHED), None, "half a table is no artifact");
    assert_eq!(held("honest/files").unwrap()["incomplete"], false);
    let words = site.essrun().run(&["show", "pipeline.toml"]).expect_success();
    for part in [
        "FAILED, cannot be restored from this backup",
        "finished before it failed",
        "extract --incomplete",
    ] {
        assert!(words.stdout.contains(part), "{part:?} is not in\n{words}");
    }
    // What is there is sound.
    site.with_identity("check", &[]).expect_success();

    // A leak of it is a leak of what it holds.
    let leak = site
        .essrun()
        .run_json(&["incident", "pipeline.toml", "latest"])
        .expect_success();
    let incident = leak.events_of("incident").next().unwrap()["components"].to_string();
    assert!(incident.contains("main/public.access_tokens"), "{incident}");

    // Neither restore nor drill takes it for a backup.
    let only = ["--yes", "--only", "half", "--to", "half/main=copy"];
    site.with_identity("restore", &only)
        .expect_code(REFUSED)
        .expect_stderr(&["component half cannot be restored", "failed when the backup was taken"]);
    let drill = site.with_identity("drill", &[]).expect_success();
    assert_eq!(
        drill.events_of("drill").next().unwrap()["components"],
        json!(["honest"])
    );
    site.drop_database("shop");
    std::fs::remove_dir_all(site.path().join("files")).unwrap();
    let restored = site.with_identity("restore", &["--yes"]).expect_success();
    let plan = restored.events_of("restore-plan").next().unwrap();
    assert!(
        plan["notes"].to_string().contains("component half is not restored"),
        "{plan}"
    );
    assert_eq!(site.databases(), ["postgres"]);
    assert_eq!(std::fs::read_to_string(site.path().join("files/a.txt")).unwrap(), "a");

    // Somebody who has nothing else may have what is there, and must say that they know.
    let extract = |more: &[&str]| {
        let args = [
            "extract",
            "pipeline.toml",
            FINISHED,
            "--output",
            "tokens.txt",
            "-i",
            "elsewhere/identity.txt",
        ];
        site.essrun().run(&[&args[..], more].concat())
    };
    extract(&[])
        .expect_code(REFUSED)
        .expect_stderr(&["component half failed", "finished before", "--incomplete"]);
    assert!(!site.path().join("tokens.txt").exists());
    extract(&["--incomplete"]).expect_success();
    let written = std::fs::read_to_string(site.path().join("tokens.txt")).unwrap();
    assert_eq!(written.lines().count(), 20000);

    // The next run has all of it, and the difference says so.
    site.sql(
        "postgres",
        "CREATE DATABASE shop OWNER shop_user ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0",
    );
    site.fill(
        "shop",
        "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 49);",
    );
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.back_up().expect_success();
    let diff = site
        .essrun()
        .run_json(&["diff", "pipeline.toml", &first])
        .expect_success();
    let components = diff.events[0]["components"].as_array().unwrap();
    let half = components.iter().find(|c| c["component"] == "half").unwrap();
    assert!(
        half["failed"]["from"].as_str().unwrap().contains("division by zero"),
        "{half:#}"
    );
    assert_eq!(
        (&half["failed"]["to"], &half["change"]),
        (&Value::Null, &json!("changed"))
    );
    let artifact = |name: &str| {
        let artifacts = half["artifacts"].as_array().unwrap();
        artifacts.iter().find(|a| a["artifact"] == name).unwrap()["change"].clone()
    };
    assert_eq!(artifact("main/public.item"), "added");
    assert_eq!(artifact("main/public.access_tokens"), "removed");
    let words = site.essrun().run(&["diff", "pipeline.toml", &first]).expect_success();
    assert!(words.stdout.contains("NOT WHOLE in the first"), "{words}");
}
