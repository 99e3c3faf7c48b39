//! A real mautrix-telegram beside a real Synapse: both backed up while they run, lost, restored, used again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::free_port;
use essrun_testkit::python::Environment;
use essrun_testkit::site::{Server, Site, python};
use essrun_testkit::synapse::{Home, Session, SynapseClient};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const BOT: &str = "@telegrambot:example.org";
const TABLES: [&str; 10] = [
    "\"user\"",
    "portal",
    "puppet",
    "user_portal",
    "contact",
    "message",
    "telethon_sessions",
    "telethon_entities",
    "version",
    "database_owner",
];

struct Bridge {
    root: PathBuf,
    port: u16,
}

impl Bridge {
    /// Configuration from the bridge's own example, and the registration it makes from that.
    fn create(root: &Path, homeserver: &str, database: &str) -> Bridge {
        let (config, port) = (root.join("config"), free_port());
        std::fs::create_dir_all(&config).unwrap();
        std::fs::create_dir_all(root.join("run")).unwrap();
        let program = r#"
import importlib.resources, sys
from ruamel.yaml import YAML
out, homeserver, port, database = sys.argv[1:]
yaml = YAML()
c = yaml.load(importlib.resources.files("mautrix_telegram").joinpath("example-config.yaml").read_text())
c["homeserver"]["address"], c["homeserver"]["domain"] = homeserver, "example.org"
c["appservice"].update(address=f"http://127.0.0.1:{port}", hostname="127.0.0.1", port=int(port), database=database)
c["appservice"]["bot_avatar"] = ""
c["appservice"]["ephemeral_events"] = False
c["bridge"]["permissions"] = {"*": "relaybot", "@alice:example.org": "full", "@bob:example.org": "relaybot"}
c["telegram"].update(api_id=1, api_hash="0123456789abcdef0123456789abcdef", bot_token="disabled")
c["logging"]["root"]["handlers"] = ["console"]
del c["logging"]["handlers"]["file"]
yaml.dump(c, open(out, "w"))
"#;
        let file = config.join("config.yaml");
        python(
            Environment::Telegram,
            program,
            &[file.to_str().unwrap(), homeserver, &port.to_string(), database],
        );
        let bridge = Bridge {
            root: root.to_owned(),
            port,
        };
        let made = bridge
            .command()
            .args(["-g", "-r"])
            .arg(config.join("registration.yaml"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        bridge
    }

    fn command(&self) -> Command {
        let mut command = Command::new(Environment::Telegram.python());
        command
            .args(["-m", "mautrix_telegram", "-c"])
            .arg(self.root.join("config/config.yaml"))
            .current_dir(self.root.join("run"));
        command
    }

    fn start(&self) -> Server {
        let (log, port) = (self.root.join("run/log"), self.port);
        Server::start(&mut self.command(), &log, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
    }
}

/// Says something in a room until the bot answers with what is expected.
fn ask(client: &SynapseClient, who: &Session, room: &str, command: &str, expected: &str, bridge: &Server) {
    let begun = Instant::now();
    let mut since = client.sync(&who.token, None).unwrap()["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    client.send_text(&who.token, room, command).unwrap();
    let mut heard = Vec::new();
    while begun.elapsed() < Duration::from_secs(60) {
        let sync = client.sync(&who.token, Some(&since)).unwrap();
        since = sync["next_batch"].as_str().unwrap().to_owned();
        let events = sync["rooms"]["join"][room]["timeline"]["events"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for event in events.iter().filter(|e| e["sender"] == json!(BOT)) {
            heard.push(event["content"]["body"].as_str().unwrap_or_default().to_owned());
        }
        if heard.iter().any(|body| body.contains(expected)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!(
        "the bot did not answer {command:?} with {expected:?} but {heard:?}:\n{}",
        bridge.log()
    );
}

fn room_with_bot(client: &SynapseClient, who: &Session, bridge: &Server) -> String {
    let room = client
        .create_room(
            &who.token,
            &json!({"is_direct": true, "invite": [BOT], "preset": "trusted_private_chat"}),
        )
        .unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        let path = format!("/_matrix/client/v3/rooms/{room}/joined_members");
        if client.get(&path, &who.token).unwrap()["joined"].get(BOT).is_some() {
            return room;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("the bot did not join:\n{}", bridge.log());
}

#[test]
fn a_real_telegram_bridge_comes_back() {
    let mut site = Site::create();
    let (synapse_db, telegram_db) = (site.database("synapse"), site.database("telegram"));
    let home = Home::create(&site.path().join("synapse"), "example.org", &synapse_db);
    let bridge = Bridge::create(&site.path().join("telegram"), &home.url(), &telegram_db.url());
    let registration = home.config().join("telegram-registration.yaml");
    std::fs::copy(bridge.root.join("config/registration.yaml"), &registration).unwrap();
    let mut yaml = std::fs::read_to_string(home.config_file()).unwrap();
    yaml.push_str(&format!("app_service_config_files: ['{}']\n", registration.display()));
    std::fs::write(home.config_file(), yaml).unwrap();

    let synapse = home.start();
    let client = synapse.client();
    let alice = client.register("alice", "a long password", false).unwrap();
    let running = bridge.start();
    let chat = room_with_bot(&client, &alice, &running);
    let portal = room_with_bot(&client, &alice, &running);
    ask(
        &client,
        &alice,
        &portal,
        "!tg id",
        "This is not a portal room.",
        &running,
    );
    running.stop();

    // What the bridge knows of Telegram, without Telegram: it keeps it in memory, so it is stopped for it.
    site.fill(
        "telegram",
        &format!(
            r#"INSERT INTO "user" (mxid, tgid, tg_username, tg_phone) VALUES
                 ('@bob:example.org', 4611686018427387904, 'bob', '4915100000001'),
                 ('@o''brien "the" \N:example.org', 777, NULL, E'tab\there');
               INSERT INTO portal (tgid, tg_receiver, peer_type, mxid, title, about, config, megagroup) VALUES
                 (1234567890, 1234567890, 'channel', '{portal}', E'Back\\slash \\N ✓', '', '{{"a": [1, null]}}', true),
                 (99, 777, 'user', NULL, NULL, E'line\nline', NULL, NULL);
               INSERT INTO puppet (id, displayname, username, access_token, custom_mxid) VALUES
                 (888, 'Zoë 💬', 'zoe', NULL, NULL), (889, '', NULL, 'syt_secret', NULL);
               INSERT INTO user_portal VALUES (777, 1234567890, 1234567890), (777, 99, 777);
               INSERT INTO contact VALUES (777, 888);
               INSERT INTO message (mxid, mx_room, tgid, tg_space, edit_index, content_hash)
                 SELECT '$event' || n, '{portal}', n, 1234567890, 0, decode(md5(n::text), 'hex') FROM generate_series(1, 500) n;
               INSERT INTO telethon_sessions SELECT '@bob:example.org', 2, '127.0.0.1', 1,
                 decode(string_agg(lpad(to_hex(n), 2, '0'), ''), 'hex') FROM generate_series(0, 255) n;
               INSERT INTO telethon_entities (session_id, id, hash, name) VALUES ('@bob:example.org', 888, -1, 'Zoë');"#
        ),
    );
    let running = bridge.start();
    let bridged = "-1001234567890";
    ask(&client, &alice, &portal, "!tg id", bridged, &running);

    let (bridge_config, media) = (bridge.root.join("config"), home.media_store());
    site.prepare(&format!(
        "[components.synapse]\nuse = \"synapse\"\ndatabases = {{ main = {{ url-env = \"SYNAPSE_DB\" }} }}\n\
         volumes = {{ media = {{ path = \"{}\" }}, config = {{ path = \"{}\" }} }}\n\n\
         [components.telegram]\nuse = \"telegram\"\ndatabases = {{ main = {{ url-env = \"TELEGRAM_DB\" }} }}\n\
         volumes = {{ config = {{ path = \"{}\" }} }}\n",
        media.display(),
        home.config().display(),
        bridge_config.display()
    ));
    site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    let digest = |table: &str| {
        site.sql(
            "telegram",
            &format!("SELECT count(*) || md5(coalesce(string_agg(t::text, ',' ORDER BY t::text), '')) FROM {table} t"),
        )
    };
    let before: Vec<String> = TABLES.iter().map(|t| digest(t)).collect();
    let tables = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    let schema = site.sql("telegram", tables);
    let backup = site.back_up().expect_success();
    assert!(
        backup.stdout.contains("full access to an account"),
        "the sessions are said: {backup}"
    );
    let tokens = std::fs::read_to_string(bridge_config.join("registration.yaml")).unwrap();

    running.stop();
    synapse.stop();
    for name in ["synapse", "telegram"] {
        site.drop_database(name);
    }
    for folder in [&media, &home.config(), &bridge_config] {
        std::fs::remove_dir_all(folder).unwrap();
    }

    let restored = site.with_identity("restore", &["--yes"]).expect_success();
    for check in ["telegram-sessions", "bridge-registration"] {
        let passed = restored
            .events_of("finding")
            .any(|f| f["check"] == check && f["severity"] == "info");
        assert!(passed, "{check} did not pass: {restored}");
    }
    assert_eq!(
        TABLES.iter().map(|t| digest(t)).collect::<Vec<_>>(),
        before,
        "every row"
    );
    assert_eq!(site.sql("telegram", tables), schema, "every table");
    assert_eq!(
        site.sql("telegram", "SELECT length(auth_key) FROM telethon_sessions"),
        "256"
    );
    assert_eq!(
        std::fs::read_to_string(bridge_config.join("registration.yaml")).unwrap(),
        tokens
    );

    let synapse = home.start();
    let running = bridge.start();
    ask(&client, &alice, &portal, "!tg id", bridged, &running);
    ask(&client, &alice, &chat, "!tg help", "login", &running);
    let fresh = room_with_bot(&client, &alice, &running);
    ask(
        &client,
        &alice,
        &fresh,
        "!tg id",
        "This is not a portal room.",
        &running,
    );
    running.stop();
    synapse.stop();
}
