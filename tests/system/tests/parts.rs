//! Of a component only what it has under one label is restored, beside the rest as it is now.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::python::Environment;
use essrun_testkit::site::{Site, python};
use essrun_testkit::suite::{Suite, tree_digest};

const REFUSED: i32 = 4;

fn swapped(outcome: &Outcome) -> Vec<String> {
    let name = |e: &serde_json::Value| format!("{}/{}", e["component"].as_str().unwrap(), e["label"].as_str().unwrap());
    outcome.events_of("swapped").map(name).collect()
}

/// The media of a real Synapse are lost; its database goes on, and knows media that no backup has.
#[test]
fn media_beside_a_live_database() {
    let suite = Suite::create();
    let server = suite.home.start();
    let client = server.client();
    let alice = client.register("alice", "password", false).expect("registering");
    let upload = |name: &str| {
        let bytes = name.repeat(5000).into_bytes();
        client
            .upload(&alice.token, name, "text/plain", bytes)
            .expect("a medium")
    };
    let room = client
        .create_room(&alice.token, &serde_json::json!({"name": "room"}))
        .expect("a room");
    let kept = upload("kept");
    server.stop();
    suite.prepare_backups();
    suite.essrun().run(&["init", "pipeline.toml"]).expect_success();
    suite.back_up().expect_success();

    // Life goes on: rows, a one-time key and a medium that the backup does not have, and another configuration.
    let server = suite.home.start();
    let lost = upload("lost");
    let message = client
        .send_text(&alice.token, &room, "after the backup")
        .expect("a message");
    suite.sql(
        "INSERT INTO e2e_one_time_keys_json (user_id, device_id, algorithm, key_id, ts_added_ms, key_json) \
         VALUES ('@alice:example.org', 'D', 'signed_curve25519', 'AAA', 1, '{}')",
    );
    server.stop();
    std::fs::write(suite.home.config().join("later.yaml"), "later: true\n").unwrap();
    let (database, config) = (suite.database_digest("synapse"), tree_digest(&suite.home.config()));
    let databases = suite.databases();
    std::fs::remove_dir_all(suite.home.media_store()).unwrap();

    let identity = suite.identity();
    let restore = |more: &[&str]| {
        let args = [
            "restore",
            "pipeline.toml",
            "--yes",
            "--identity",
            identity.to_str().unwrap(),
        ];
        suite.essrun().run_json(&[&args[..], more].concat())
    };
    // The whole component cannot go there, and what is no label of it cannot be asked for.
    restore(&[]).expect_code(REFUSED).expect_stderr(&["target-not-empty"]);
    for unknown in ["synapse/nothing", "synapse/state"] {
        restore(&["--only", unknown])
            .expect_code(REFUSED)
            .expect_stderr(&[unknown, "there are: config, main, media"]);
    }
    let restored = restore(&["--only", "synapse/media"]).expect_success();
    assert_eq!(swapped(&restored), ["synapse/media"], "{restored}");
    let plan = &restored.events_of("restore-plan").next().unwrap()["components"][0];
    let steps = plan["steps"].as_array().unwrap();
    assert!(
        steps.len() == 1 && steps[0].as_str().unwrap().starts_with("volume media"),
        "neither databases nor the SQL in them: {plan}"
    );
    assert!(
        plan["notes"].to_string().contains("config, main stays as it is now"),
        "{plan}"
    );
    // It was looked at beside the live database, which knows one medium more.
    let media = restored
        .events_of("finding")
        .find(|f| f["check"] == "synapse-media-files")
        .unwrap_or_else(|| panic!("{restored}"));
    assert_eq!(media["severity"], "warning", "{media}");
    assert!(
        media["message"].as_str().unwrap().starts_with("1 of 2: local_content/"),
        "{media}"
    );
    let contents = restored
        .events_of("finding")
        .find(|f| f["check"] == "synapse-media-contents")
        .unwrap();
    assert_eq!(contents["severity"], "info", "{contents}");
    assert_eq!(
        suite.database_digest("synapse"),
        database,
        "the live database is as it was"
    );
    assert_eq!(tree_digest(&suite.home.config()), config, "and the configuration");
    assert_eq!(suite.databases(), databases);

    let server = suite.home.start();
    client.download(&alice.token, &kept).expect("the medium is back");
    assert!(
        client.download(&alice.token, &lost).is_err(),
        "nothing has the younger one"
    );
    client
        .event(&alice.token, &room, &message)
        .expect("nothing of the database was lost");
    server.stop();

    // Some are there again: only with leave to replace them.
    restore(&["--only", "synapse/media"])
        .expect_code(REFUSED)
        .expect_stderr(&["volume-destination"]);
    restore(&["--only", "synapse/media", "--replace"]).expect_success();
    // With the database gone as well there is nothing to look at them beside, which is told.
    suite
        .cluster
        .psql("postgres", "DROP DATABASE synapse WITH (FORCE)")
        .unwrap();
    let alone = restore(&["--only", "synapse/media", "--replace"]).expect_success();
    assert!(
        alone
            .events_of("finding")
            .any(|f| f["check"] == "synapse-database" && f["severity"] == "warning"),
        "{alone}"
    );
    // And then the rest of it, of which nothing is there.
    std::fs::remove_dir_all(suite.home.config()).unwrap();
    let rest = restore(&["--only", "synapse/main", "--only", "synapse/config"]).expect_success();
    assert_eq!(swapped(&rest), ["synapse/config", "synapse/main"], "{rest}");
    assert_eq!(suite.sql("SELECT count(*) FROM e2e_one_time_keys_json"), "0");
}

/// Each label of one component by itself, the others changed since: they are not touched, and what the plan does to them
/// is left out.
#[test]
fn each_label_alone() {
    let mut site = Site::create();
    site.database("one");
    site.fill("one", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let root = site.path().display().to_string();
    std::fs::write(site.folder("files").join("one.txt"), "one").unwrap();
    let lite = |sql: &str| {
        let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.commit()\n\
                       print(c.execute('SELECT group_concat(a) FROM t').fetchone()[0])";
        let file = format!("{root}/lite.db");
        python(Environment::Sydent, program, &[&file, sql])
    };
    lite("CREATE TABLE t (a); INSERT INTO t VALUES (1)");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(site.path()).unwrap());
    site.prepare(&format!(
        "[components.a]\nuse = \"generic\"\n\
         databases = {{ main = {{ url-env = \"ONE_DB\" }}, second = {{ sqlite = \"{root}/lite.db\" }} }}\n\
         volumes.files = {{ path = \"{root}/files\" }}\n\
         [components.a.settings]\nowner = {{ files = [{owner}, {owner}] }}\n\
         after-restore = {{ main = [\"UPDATE public.t SET a = 100\"], second = [\"UPDATE t SET a = 100\"] }}\n"
    ));
    site.back_up().expect_success();
    let changed = || {
        site.fill("one", "TRUNCATE t; INSERT INTO t VALUES (2), (3)");
        std::fs::write(site.path().join("files/one.txt"), "changed").unwrap();
        lite("DELETE FROM t; INSERT INTO t VALUES (2), (3)");
    };
    let now = || {
        [
            site.sql("one", "SELECT string_agg(a::text, ',' ORDER BY a) FROM t"),
            lite(""),
            std::fs::read_to_string(site.path().join("files/one.txt")).unwrap(),
        ]
    };
    for (label, expected) in [
        ("main", ["100", "2,3", "changed"]),
        ("second", ["2,3", "100", "changed"]),
        ("files", ["2,3", "2,3", "one"]),
    ] {
        changed();
        let only = format!("a/{label}");
        let restored = site
            .with_identity("restore", &["--yes", "--replace", "--only", &only])
            .expect_success();
        assert_eq!(swapped(&restored), [only], "{restored}");
        assert_eq!(now(), expected, "{restored}");
    }
    // Two of three; and one of them with the component as a whole is the whole.
    changed();
    let two = ["--yes", "--replace", "--only", "a/main", "--only", "a/files"];
    let restored = site.with_identity("restore", &two).expect_success();
    assert_eq!(swapped(&restored), ["a/files", "a/main"], "{restored}");
    assert_eq!(now(), ["100", "2,3", "one"]);
    let whole = ["--yes", "--replace", "--only", "a", "--only", "a/files"];
    site.with_identity("restore", &whole).expect_success();
    assert_eq!(now(), ["100", "100", "one"]);
}
