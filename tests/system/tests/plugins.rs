//! A component from elsewhere, from its author's build to a restore: the example bridge on a real database. And every way
//! in which its file, its pin, its signature and its grants can be wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::plugins::{self, tool};
use essrun_testkit::sha256_hex;
use essrun_testkit::site::{Site, tree};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const SCHEMA: &str = "
    CREATE TABLE team (id text PRIMARY KEY, name text NOT NULL);
    CREATE TABLE channel (id bigint PRIMARY KEY, team text REFERENCES team, room text NOT NULL);
    CREATE TABLE puppet (mxid text PRIMARY KEY, token text);
    CREATE TABLE message (id bigint PRIMARY KEY, channel_id bigint NOT NULL, sent timestamptz NOT NULL, body text);
    CREATE TABLE seen_event (id text PRIMARY KEY);
    INSERT INTO team VALUES ('T1', 'Ärzte & Söhne'), ('T2', E'tab\\there');
    INSERT INTO channel SELECT n, 'T' || (1 + n % 2), '!room' || n || ':example.org' FROM generate_series(1, 20) n;
    INSERT INTO puppet SELECT '@u' || n || ':example.org', CASE WHEN n % 3 > 0 THEN 'xoxp-' || n END
        FROM generate_series(1, 30) n;
    INSERT INTO message SELECT n, 1 + n % 20, now(), repeat('☃ text ', n % 50) FROM generate_series(1, 5000) n;
    INSERT INTO seen_event SELECT 'E' || n FROM generate_series(1, 100) n;";

/// A site with the bridge's database and files, its plugin beside pipeline.toml, named by `used` (lines 10 to 13).
fn site(wasm: &Path, used: &str) -> Site {
    let mut site = Site::create();
    site.database("slack");
    site.fill("slack", SCHEMA);
    let config = site.folder("slack-bridge");
    std::fs::write(
        config.join("registration.yaml"),
        "id: slack\nas_token: a\nhs_token: b\n",
    )
    .unwrap();
    std::fs::write(config.join("config.yaml"), "port: 9000\n").unwrap();
    std::fs::copy(wasm, site.path().join("slack.wasm")).unwrap();
    site.prepare(&format!(
        "[components.slack] # the bridge\nuse = {}\ndatabases.main = {{ url-env = \"SLACK_DB\" }}\n\
         volumes.config = {{ path = \"slack-bridge\" }}\n",
        pinned(wasm)
    ));
    edit(&site, &pinned(wasm), used);
    site
}

fn pipeline(site: &Site) -> String {
    std::fs::read_to_string(site.path().join("pipeline.toml")).unwrap()
}

fn edit(site: &Site, from: &str, to: &str) {
    let text = pipeline(site);
    assert!(text.contains(from), "{from:?} is not in\n{text}");
    std::fs::write(site.path().join("pipeline.toml"), text.replacen(from, to, 1)).unwrap();
}

fn pinned(wasm: &Path) -> String {
    format!(
        "{{ path = \"slack.wasm\", sha256 = \"{}\" }}",
        sha256_hex(&std::fs::read(wasm).unwrap())
    )
}

fn refused(outcome: Outcome, code: i32, says: &[&str]) {
    outcome.expect_code(code).expect_stderr(says);
}

#[test]
fn the_example_from_file_to_restore() {
    let wasm = plugins::slack_bridge();
    let site = site(&wasm, "{ path = \"slack.wasm\" }");
    let essrun = site.essrun();

    // Look before trusting.
    let looked = essrun.run_json(&["plugin", "inspect", "slack.wasm"]).expect_success();
    let found = &looked.events[0];
    assert_eq!(found["plugin"]["sha256"], sha256_hex(&std::fs::read(&wasm).unwrap()));
    assert_eq!(found["plugin"]["contract"], "0.1.0");
    assert_eq!(found["description"]["system"], "Slack bridge");
    assert_eq!(found["description"]["needs"][0]["label"], "main");
    assert_eq!(
        found["limits"],
        serde_json::json!([]),
        "a plugin in Rust needs no larger limits"
    );
    let text = essrun.run(&["plugin", "inspect", "slack.wasm"]).expect_success().stdout;
    for said in [
        "ess:inspect/database@0.1.0",
        "database main (required)",
        "setting keep-seen-events = false",
        "use = {",
    ] {
        assert!(text.contains(said), "{said:?} is not in\n{text}");
    }

    // Without a pin nothing runs; pinning writes the hash and nothing else.
    refused(essrun.run(&["pipeline.toml"]), 3, &["pipeline.toml:11", "sha256"]);
    let before = pipeline(&site);
    essrun.run(&["plugin", "pin", "pipeline.toml"]).expect_success();
    let after = pipeline(&site);
    assert_eq!(after, before.replacen("{ path = \"slack.wasm\" }", &pinned(&wasm), 1));
    essrun
        .run(&["plugin", "pin", "pipeline.toml", "slack"])
        .expect_success();
    assert_eq!(pipeline(&site), after, "pinning twice changes nothing");

    essrun.run(&["validate", "pipeline.toml"]).expect_success();
    let plan = essrun.run(&["plan", "pipeline.toml"]).expect_success();
    assert!(plan.to_string().contains("the service repeats deliveries"), "{plan}");
    site.back_up().expect_success();
    let files = tree(&site.path().join("slack-bridge"));
    let rows = |table: &str| site.sql("slack", &format!("SELECT * FROM {table} ORDER BY 1"));
    let before: Vec<String> = ["team", "channel", "puppet", "message"].map(rows).into();

    site.drop_database("slack");
    std::fs::remove_dir_all(site.path().join("slack-bridge")).unwrap();
    let restored = site.with_identity("restore", &["--yes"]).expect_success();
    let checks: Vec<&Value> = restored.events_of("finding").collect();
    for check in ["slack-messages-have-channels", "slack-logins", "bridge-registration"] {
        assert!(
            checks.iter().any(|f| f["check"] == check && f["severity"] == "info"),
            "{check} did not pass in\n{restored}"
        );
    }
    let rows = |table: &str| site.sql("slack", &format!("SELECT * FROM {table} ORDER BY 1"));
    let after: Vec<String> = ["team", "channel", "puppet", "message"].map(rows).into();
    assert_eq!(after, before);
    assert_eq!(
        site.sql("slack", "SELECT count(*) FROM seen_event").trim(),
        "0",
        "left out"
    );
    assert_eq!(tree(&site.path().join("slack-bridge")), files);

    // A damaged one does not get so far: its own check fails the drill.
    site.fill("slack", "DELETE FROM channel WHERE id = 7");
    site.back_up().expect_success();
    refused(site.with_identity("drill", &[]), 8, &["messages have no channel"]);

    // A leak: what the component says, with rows counted.
    let leak = essrun.run(&["incident", "pipeline.toml", "latest"]).expect_success();
    assert!(leak.to_string().contains("revoke the app's tokens"), "{leak}");
}

#[test]
fn a_file_that_changed_runs_only_when_it_is_pinned_again() {
    let wasm = plugins::slack_bridge();
    let site = site(&wasm, &pinned(&wasm));
    let essrun = site.essrun();
    essrun.run(&["validate", "pipeline.toml"]).expect_success();
    let kept = pipeline(&site);

    // One more custom section: the same component, other bytes.
    let mut other = std::fs::read(&wasm).unwrap();
    other.extend_from_slice(&[0, 2, 1, b'x']);
    std::fs::write(site.path().join("slack.wasm"), &other).unwrap();
    let hash = sha256_hex(&other);
    refused(
        essrun.run(&["pipeline.toml"]),
        7,
        &["component slack: refused", &hash, "pipeline.toml says"],
    );
    refused(
        essrun.run(&["plugin", "pin", "pipeline.toml"]),
        4,
        &["slack is not the one that was pinned", "--confirm"],
    );
    assert_eq!(pipeline(&site), kept, "nothing is written without --confirm");
    let told = essrun.run(&["plugin", "pin", "pipeline.toml"]).stdout;
    assert!(
        told.contains("CHANGED") && told.contains(&hash) && told.contains("was     "),
        "{told}"
    );
    essrun
        .run(&["plugin", "pin", "pipeline.toml", "--confirm"])
        .expect_success();
    assert!(pipeline(&site).contains(&hash));
    essrun.run(&["validate", "pipeline.toml"]).expect_success();
    refused(
        essrun.run(&["plugin", "pin", "pipeline.toml", "mas"]),
        3,
        &["no component \"mas\"", "slack"],
    );
}

#[test]
fn signed_by_the_key_that_pipeline_toml_names() {
    let wasm = plugins::slack_bridge();
    let signed = "{ path = \"slack.wasm\", signature = \"slack.wasm.minisig\", public-key = \"KEY\" }";
    let site = site(&wasm, signed);
    let essrun = site.essrun();
    let minisign = |args: &[&str]| tool(Command::new("minisign").args(args).current_dir(site.path()));
    minisign(&["-G", "-W", "-p", "author.pub", "-s", "author.key"]);
    minisign(&["-G", "-W", "-p", "other.pub", "-s", "other.key"]);
    let key = std::fs::read_to_string(site.path().join("author.pub")).unwrap();
    edit(&site, "\"KEY\"", &format!("{:?}", key.lines().nth(1).unwrap()));

    refused(
        essrun.run(&["plugin", "pin", "pipeline.toml"]),
        7,
        &["slack.wasm.minisig cannot be read"],
    );
    minisign(&["-S", "-s", "other.key", "-m", "slack.wasm"]);
    refused(
        essrun.run(&["plugin", "pin", "pipeline.toml"]),
        7,
        &["not pinned", "is not good"],
    );
    minisign(&["-S", "-s", "author.key", "-m", "slack.wasm"]);
    let told = essrun.run(&["plugin", "pin", "pipeline.toml"]).expect_success();
    assert!(told.stdout.contains("signature good"), "{told}");
    site.back_up().expect_success();

    // Bytes that are pinned but not signed are refused.
    let mut other = std::fs::read(&wasm).unwrap();
    other.extend_from_slice(&[0, 2, 1, b'x']);
    std::fs::write(site.path().join("slack.wasm"), &other).unwrap();
    let before = sha256_hex(&std::fs::read(&wasm).unwrap());
    edit(&site, &before, &sha256_hex(&other));
    refused(
        site.back_up(),
        7,
        &["component slack: refused: its signature", "is not good"],
    );
    edit(&site, ", public-key = ", ", sha512 = ");
    refused(site.back_up(), 3, &["pipeline.toml:11", "sha512"]);
}

/// Files that are no plugins, as somebody might drop them in the place of one.
#[test]
fn what_is_no_plugin_is_refused_by_name_everywhere() {
    let wasm = plugins::slack_bridge();
    let site = site(&wasm, &pinned(&wasm));
    let essrun = site.essrun();
    let good = std::fs::read(&wasm).unwrap();
    let core = b"\0asm\x01\0\0\0".to_vec();
    let elf = std::fs::read("/proc/self/exe").unwrap();
    let mut half = good.clone();
    half.truncate(half.len() / 2);
    for (name, bytes, says) in [
        ("native code", elf, ".cwasm"),
        ("core module", core, "not a component"),
        ("text", b"hello".to_vec(), "no WebAssembly file"),
        ("nothing", Vec::new(), "no WebAssembly file"),
        ("half of one", half, ""),
    ] {
        std::fs::write(site.path().join("slack.wasm"), &bytes).unwrap();
        refused(
            essrun.run(&["plugin", "inspect", "slack.wasm"]),
            7,
            &["slack.wasm", "refused", says],
        );
        refused(
            essrun.run(&["plugin", "pin", "pipeline.toml", "--confirm"]),
            7,
            &["component slack: not pinned", says],
        );
        // Neither is it loaded when its hash was written by hand.
        let text = pipeline(&site);
        let at = text.find("sha256 = \"").unwrap() + "sha256 = \"".len();
        let by_hand = format!("{}{}{}", &text[..at], sha256_hex(&bytes), &text[at + 64..]);
        std::fs::write(site.path().join("pipeline.toml"), by_hand).unwrap();
        refused(site.back_up(), 7, &["component slack: refused", says]);
        assert!(
            essrun
                .run(&["list", "pipeline.toml"])
                .expect_success()
                .stdout
                .contains("no backups"),
            "{name}"
        );
    }
    std::fs::remove_file(site.path().join("slack.wasm")).unwrap();
    std::fs::create_dir(site.path().join("slack.wasm")).unwrap();
    refused(site.back_up(), 3, &["pipeline.toml:10", "is no file"]);
    refused(essrun.run(&["plugin", "inspect", "slack.wasm"]), 3, &["is no file"]);
    refused(
        essrun.run(&["plugin", "inspect", "absent.wasm"]),
        3,
        &["absent.wasm", "cannot be read"],
    );
}

#[test]
fn grants_settings_and_limits_that_do_not_fit_are_named_with_their_line() {
    let wasm = plugins::slack_bridge();
    let cases: [(&str, i32, &[&str]); 8] = [
        (
            "volumes.files = { path = \"x\" }\n",
            3,
            &["pipeline.toml:14", "knows no volume \"files\"", "config (optional"],
        ),
        (
            "settings.keep = true\n",
            3,
            &["pipeline.toml:14", "knows no setting \"keep\"", "keep-seen-events"],
        ),
        (
            "settings.keep-seen-events = \"yes\"\n",
            7,
            &["plan-backup: a setting is wrong", "keep-seen-events"],
        ),
        (
            "limits.memory = \"1 MiB\"\n",
            7,
            &["component slack: describe was stopped", "raise `memory`"],
        ),
        ("limits.memory = 5\n", 3, &["pipeline.toml:14", "5"]),
        (
            "limits.memmory = \"1 MiB\"\n",
            3,
            &["pipeline.toml:14", "unknown field `memmory`"],
        ),
        (
            "limits.compile.file = \"100 KiB\"\n",
            3,
            &["slack", "at most 102400", "limits.compile"],
        ),
        (
            "limits.compile.functions = 5\n",
            7,
            &["component slack: refused", "at most 5 are allowed", "raise `functions`"],
        ),
    ];
    let site = site(&wasm, &pinned(&wasm));
    let template = pipeline(&site);
    for (extra, code, says) in cases {
        std::fs::write(site.path().join("pipeline.toml"), format!("{template}{extra}")).unwrap();
        refused(site.back_up(), code, says);
    }
    let without = template.replace("databases.main = { url-env = \"SLACK_DB\" }\n", "");
    std::fs::write(site.path().join("pipeline.toml"), without).unwrap();
    refused(
        site.back_up(),
        3,
        &["pipeline.toml:10", "component slack needs databases.main"],
    );
}

/// A role that reaches beyond its database is refused for a stranger's component.
#[test]
fn a_superusers_connection_is_not_for_plugins() {
    let wasm = plugins::slack_bridge();
    let site = site(&wasm, &pinned(&wasm));
    site.sql("postgres", "ALTER ROLE slack_user SUPERUSER");
    refused(site.back_up(), 5, &["slack", "is a superuser", "a role of its own"]);
    site.sql("postgres", "ALTER ROLE slack_user NOSUPERUSER");
    site.back_up().expect_success();
}

/// What a plugin's SQL and its looks go through in a restore and in a drill is a role of the same kind, whether or not its own
/// database can be reached.
#[test]
fn a_superuser_does_not_restore_for_plugins() {
    let wasm = plugins::slack_bridge();
    let mut site = site(&wasm, &pinned(&wasm));
    site.back_up().expect_success();
    let admin = site.cluster.uri("postgres");
    site.set_env("SLACK_ADMIN_DB", &admin);
    let grant = "databases.main = { url-env = \"SLACK_DB\" }";
    let with_admin =
        "databases.main = { url-env = \"SLACK_DB\", admin-url-env = \"SLACK_ADMIN_DB\", owner = \"slack_user\" }";
    edit(&site, grant, with_admin);
    let before = site.databases();
    let says = [
        "slack",
        "the role postgres that restores main is a superuser",
        "admin-url-env",
    ];
    let validated = || site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    let told = validated();
    assert!(says.iter().all(|word| told.stdout.contains(word)), "{told}");
    refused(site.with_identity("restore", &["--replace", "--yes"]), 4, &says);
    refused(site.with_identity("restore", &["--replace", "--dry-run"]), 4, &says);
    refused(site.with_identity("drill", &[]), 4, &says);
    // Nobody is there whose own role could be looked at.
    site.drop_database("slack");
    refused(site.with_identity("restore", &["--yes"]), 4, &says);
    let left: Vec<_> = before.into_iter().filter(|d| d != "slack").collect();
    assert_eq!(site.databases(), left);

    // A role for this alone.
    site.sql(
        "postgres",
        "CREATE ROLE restorer LOGIN CREATEDB PASSWORD 'pw'; GRANT slack_user TO restorer",
    );
    let admin = site.cluster.uri_as("restorer:pw", "postgres");
    site.set_env("SLACK_ADMIN_DB", &admin);
    site.with_identity("restore", &["--replace", "--yes"]).expect_success();
    assert_eq!(site.sql("slack", "SELECT count(*) FROM message"), "5000");
    let told = site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    assert!(!told.stdout.contains("that restores"), "{told}");
}
