//! The systems that cannot be run here: each on the tables, columns and files it is known to have, with awkward data,
//! all in one pipeline. Backed up, lost, restored, verified, drilled; and what must refuse a restore refuses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::python::Environment;
use essrun_testkit::site::{Site, python, tree};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// Makes what the systems seal, with another library than the components use: two RSA keys as passkey.pem and
/// other.pem, IRC passwords for the first, tokens of the sliding sync proxy. Prints the sealed texts.
const SEAL: &str = r#"
import base64, hashlib, os, sys
from cryptography.hazmat.primitives import hashes, serialization as s
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
folder, secret = sys.argv[1:]
for name in ("other", "passkey"):
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    open(f"{folder}/{name}.pem", "wb").write(pem)
oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
for password in ("hunter2", "päss wörd \\N", "'; DROP TABLE rooms; --"):
    text = os.urandom(8).hex() + " " + password
    print(base64.b64encode(key.public_key().encrypt(text.encode(), oaep)).decode())
for token in ("syt_alice", "syt_bob"):
    nonce = os.urandom(12)
    print(nonce.hex(), AESGCM(hashlib.sha256(secret.encode()).digest()).encrypt(nonce, token.encode(), None).hex())
"#;
const SYNC_SECRET: &str = "the secret of the proxy";
const REGISTRATION: &str = "id: bridge\nas_token: \"as\"\nhs_token: 'hs'\nsender_localpart: bot\n";

fn sliding_sync(tokens: &[&str]) -> String {
    format!(
        "CREATE SEQUENCE syncv3_to_device_messages_seq; SELECT setval('syncv3_to_device_messages_seq', 4711);
         CREATE TABLE syncv3_events (event_nid BIGINT PRIMARY KEY, event_id TEXT UNIQUE, room_id TEXT, event BYTEA NOT NULL);
         CREATE TABLE syncv3_snapshots (snapshot_id BIGINT PRIMARY KEY, events BIGINT[] NOT NULL, membership_events BIGINT[]);
         CREATE TABLE syncv3_to_device_messages (position BIGINT PRIMARY KEY DEFAULT nextval('syncv3_to_device_messages_seq'),
           user_id TEXT NOT NULL, device_id TEXT NOT NULL, event_type TEXT, message TEXT NOT NULL, unique_key TEXT);
         CREATE TABLE syncv3_device_data (user_id TEXT, device_id TEXT, data BYTEA, UNIQUE (user_id, device_id));
         CREATE TABLE syncv3_sync2_devices (user_id TEXT, device_id TEXT, since TEXT NOT NULL, PRIMARY KEY (user_id, device_id));
         CREATE TABLE syncv3_sync2_tokens (token_hash TEXT PRIMARY KEY, token_encrypted TEXT NOT NULL, user_id TEXT,
           device_id TEXT, last_seen TIMESTAMPTZ);
         INSERT INTO syncv3_events SELECT n, '$' || n, '!r:example.org', decode(repeat(md5(n::text), 8), 'hex') FROM generate_series(1, 300) n;
         INSERT INTO syncv3_snapshots VALUES (1, '{{1,2,3}}', NULL), (2, '{{}}', '{{-9223372036854775808,NULL}}');
         INSERT INTO syncv3_to_device_messages (user_id, device_id, event_type, message)
           VALUES ('@a:example.org', 'D', 'm.room.encrypted', E'{{\"a\":\"\\\\u0000 \\\\\\\\N\"}}');
         INSERT INTO syncv3_device_data VALUES ('@a:example.org', 'D', '\\xa0ff00'), ('@a:example.org', NULL, NULL);
         INSERT INTO syncv3_sync2_devices VALUES ('@a:example.org', 'D', 's1_2_3');
         INSERT INTO syncv3_sync2_tokens VALUES ('h1', '{}', '@a:example.org', 'D', 'infinity'), ('h2', '{}', '@b:example.org', 'E', NULL);",
        tokens[0], tokens[1]
    )
}

fn irc(passwords: &[&str]) -> String {
    let clients: Vec<String> = passwords
        .iter()
        .enumerate()
        .map(|(at, sealed)| format!("('@u{at}:example.org', 'irc.example.org', '{{\"nick\": \"u{at}\"}}', '{sealed}')"))
        .collect();
    format!(
        "CREATE TABLE schema (version INTEGER UNIQUE NOT NULL); INSERT INTO schema VALUES (9);
         CREATE TABLE rooms (origin TEXT NOT NULL, room_id TEXT NOT NULL, type TEXT NOT NULL, irc_domain TEXT NOT NULL,
           irc_channel TEXT NOT NULL, matrix_json JSONB, irc_json JSONB NOT NULL, UNIQUE (room_id, irc_domain, irc_channel));
         CREATE TABLE admin_rooms (room_id TEXT UNIQUE, user_id TEXT);
         CREATE TABLE pm_rooms (room_id TEXT UNIQUE, irc_domain TEXT, irc_nick TEXT, matrix_user_id TEXT, virtual_user_id TEXT);
         CREATE TABLE matrix_users (user_id TEXT UNIQUE NOT NULL, data JSONB);
         CREATE TABLE client_config (user_id TEXT, domain TEXT NOT NULL, config JSONB, password TEXT, UNIQUE (user_id, domain));
         CREATE TABLE ipv6_counter (count INTEGER); INSERT INTO ipv6_counter VALUES (65535);
         CREATE TABLE user_features (user_id TEXT UNIQUE, features JSONB);
         CREATE TABLE deactivated_users (user_id TEXT UNIQUE, ts BIGINT);
         CREATE TABLE provisioner_sessions (user_id TEXT, token TEXT UNIQUE, expires_ts BIGINT);
         INSERT INTO rooms VALUES ('config', '!a:example.org', 'channel', 'irc.example.org', '#a', NULL, '{{}}'),
           ('provision', '!b:example.org', 'channel', 'irc.example.org', '#back\\slash', '{{\"x\": null}}', '{{\"k\": \"\\\\\\\\N\"}}');
         INSERT INTO matrix_users VALUES ('@u0:example.org', '{{\"displayName\": \"Ünïcode \\\"quoted\\\"\"}}');
         INSERT INTO provisioner_sessions VALUES ('@u0:example.org', 'plaintext', 9223372036854775807);
         INSERT INTO client_config VALUES {}, ('@none:example.org', 'irc.example.org', NULL, NULL);",
        clients.join(", ")
    )
}

const XMPP: &str = r#"
CREATE TABLE schema (version INTEGER UNIQUE NOT NULL); INSERT INTO schema VALUES (2);
CREATE TABLE rooms (room_id TEXT UNIQUE NOT NULL);
CREATE TABLE group_rooms (protocol_id TEXT NOT NULL, room_name TEXT NOT NULL, gateway BOOLEAN NOT NULL, properties JSONB) INHERITS (rooms);
CREATE TABLE im_rooms (user_id TEXT NOT NULL, remote_id TEXT NOT NULL, protocol_id TEXT NOT NULL) INHERITS (rooms);
CREATE TABLE admin_rooms (user_id TEXT UNIQUE NOT NULL) INHERITS (rooms);
CREATE TABLE accounts (user_id TEXT NOT NULL, protocol_id TEXT NOT NULL, username TEXT NOT NULL, extra_data JSONB);
CREATE TABLE ghost_cache (user_id TEXT UNIQUE NOT NULL, displayname TEXT, avatar_url TEXT);
CREATE TABLE remote_users (user_id TEXT UNIQUE NOT NULL, sender_name TEXT, protocol_id TEXT, extra_data JSONB);
CREATE TABLE events (matrix_id TEXT, remote_id TEXT, remote_room_id TEXT);
INSERT INTO group_rooms SELECT '!g' || n || ':example.org', 'xmpp-js', 'room' || n || '@conference.example.org', n % 2 = 0, NULL FROM generate_series(1, 20) n;
INSERT INTO im_rooms VALUES ('!i:example.org', '@a:example.org', E'tab\t\\N@example.org/res', 'xmpp-js');
INSERT INTO admin_rooms VALUES ('!admin:example.org', '@a:example.org');
INSERT INTO accounts VALUES ('@a:example.org', 'xmpp-js', 'a', '{"avatar_hash": null, "n": 1e400}');
INSERT INTO ghost_cache VALUES ('@_xmpp_a:example.org', '', NULL);
INSERT INTO remote_users VALUES ('@_xmpp_a:example.org', 'a@b', 'xmpp-js', '{}');
INSERT INTO events VALUES ('$1', NULL, 'r');
"#;

const WHATSAPP: &str = r#"
CREATE TABLE database_owner (key INTEGER PRIMARY KEY DEFAULT 0, owner TEXT NOT NULL); INSERT INTO database_owner VALUES (0, 'mautrix-whatsapp');
CREATE TABLE "user" (bridge_id TEXT, mxid TEXT, management_room TEXT, access_token TEXT, PRIMARY KEY (bridge_id, mxid));
CREATE TABLE user_login (bridge_id TEXT, user_mxid TEXT, id TEXT, remote_name TEXT, metadata JSONB NOT NULL, PRIMARY KEY (bridge_id, id),
  FOREIGN KEY (bridge_id, user_mxid) REFERENCES "user" (bridge_id, mxid) ON DELETE CASCADE);
CREATE TABLE portal (bridge_id TEXT, id TEXT, receiver TEXT, mxid TEXT UNIQUE, name TEXT NOT NULL, metadata JSONB NOT NULL, PRIMARY KEY (bridge_id, id, receiver));
CREATE TABLE ghost (bridge_id TEXT, id TEXT, name TEXT NOT NULL, identifiers JSONB NOT NULL, PRIMARY KEY (bridge_id, id));
CREATE TABLE user_portal (bridge_id TEXT, user_mxid TEXT, login_id TEXT, portal_id TEXT, in_space BOOLEAN);
CREATE TABLE message (rowid BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY, bridge_id TEXT, id TEXT, mxid TEXT NOT NULL, timestamp BIGINT, metadata JSONB);
CREATE TABLE crypto_account (account_id TEXT PRIMARY KEY, device_id TEXT, shared BOOLEAN NOT NULL, sync_token TEXT NOT NULL, account BYTEA NOT NULL);
CREATE TABLE whatsmeow_device (jid TEXT PRIMARY KEY, registration_id BIGINT CHECK (registration_id >= 0 AND registration_id < 4294967296),
  noise_key BYTEA NOT NULL CHECK (length(noise_key) = 32), identity_key BYTEA NOT NULL CHECK (length(identity_key) = 32),
  signed_pre_key BYTEA NOT NULL, signed_pre_key_sig BYTEA NOT NULL, adv_key BYTEA NOT NULL, adv_details BYTEA NOT NULL,
  adv_account_sig BYTEA NOT NULL, adv_account_sig_key BYTEA NOT NULL, adv_device_sig BYTEA NOT NULL, push_name TEXT NOT NULL DEFAULT '');
CREATE TABLE whatsmeow_sessions (our_jid TEXT REFERENCES whatsmeow_device (jid) ON DELETE CASCADE, their_id TEXT, session BYTEA, PRIMARY KEY (our_jid, their_id));
CREATE TABLE whatsmeow_identity_keys (our_jid TEXT REFERENCES whatsmeow_device (jid) ON DELETE CASCADE, their_id TEXT, identity BYTEA NOT NULL CHECK (length(identity) = 32), PRIMARY KEY (our_jid, their_id));
CREATE TABLE whatsmeow_retry_buffer (our_jid TEXT, plaintext BYTEA, timestamp BIGINT);
INSERT INTO "user" VALUES ('', '@a:example.org', NULL, 'syt_plain');
INSERT INTO user_login VALUES ('', '@a:example.org', '491500', E'\\N', '{"phone": "+49"}');
INSERT INTO portal VALUES ('', '1@g.us', '', '!p:example.org', '"quoted" ✓', '{}');
INSERT INTO ghost VALUES ('', '1', '', '[]');
INSERT INTO user_portal VALUES ('', '@a:example.org', '491500', '1@g.us', NULL);
INSERT INTO message (bridge_id, id, mxid, timestamp, metadata) SELECT '', n, '$' || n, n, '{"a": "\\"}' FROM generate_series(1, 100) n;
INSERT INTO crypto_account VALUES ('@bot:example.org', 'DEV', true, '', '\x00ff5c4e0a');
INSERT INTO whatsmeow_device SELECT '1@s.whatsapp.net', 4294967295, decode(repeat('00', 32), 'hex'), decode(repeat('5c', 32), 'hex'),
  k, s, k, '\x0a', s, k, s FROM (SELECT decode(repeat('0a', 32), 'hex') AS k, decode(repeat('0b', 64), 'hex') AS s) x;
INSERT INTO whatsmeow_sessions VALUES ('1@s.whatsapp.net', '2', '\x0a');
INSERT INTO whatsmeow_identity_keys VALUES ('1@s.whatsapp.net', '2', decode(repeat('ff', 32), 'hex'));
INSERT INTO whatsmeow_retry_buffer VALUES ('1@s.whatsapp.net', convert_to('in clear', 'UTF8'), 1);
"#;

const INTEGRATOR: &str = r#"
CREATE TABLE "dimension_users" ("userId" TEXT PRIMARY KEY, "isSelfBot" BOOLEAN NOT NULL, "createdAt" TIMESTAMPTZ);
CREATE TABLE dimension_scalar_tokens (id SERIAL PRIMARY KEY, "userId" TEXT REFERENCES dimension_users ("userId") ON DELETE CASCADE, "scalarToken" TEXT NOT NULL);
CREATE TABLE "Mixed Case ""quoted""" (id SERIAL PRIMARY KEY, "select" TEXT, options JSON);
INSERT INTO dimension_users VALUES ('@a:example.org', false, '-infinity');
INSERT INTO dimension_scalar_tokens ("userId", "scalarToken") VALUES ('@a:example.org', 'plaintext'), ('@a:example.org', '\N');
INSERT INTO "Mixed Case ""quoted""" ("select", options) VALUES (E'a\nb', '{"a":1,"a":2}');
"#;

const SIP: &str = r#"
CREATE TYPE direction AS ENUM ('in', 'out');
CREATE TABLE calls (id BIGINT PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, way direction NOT NULL, secret BYTEA, at TIMESTAMPTZ DEFAULT now());
INSERT INTO calls (way, secret) SELECT CASE n % 2 WHEN 0 THEN 'in' ELSE 'out' END::direction, decode(md5(n::text), 'hex') FROM generate_series(1, 50) n;
"#;

const OTHER: &str = r#"
CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL); INSERT INTO users VALUES (1, 'ä'), (2, '');
CREATE TABLE cache_pages (id INTEGER PRIMARY KEY, page TEXT); INSERT INTO cache_pages SELECT n, repeat('x', 1000) FROM generate_series(1, 100) n;
"#;

/// Every row of every table of a database, inheritance not followed, and where its sequences stand, as one text.
fn rows(site: &Site, database: &str) -> String {
    site.sql(
        database,
        "SELECT string_agg(c.oid::regclass || ' ' || (xpath('//row/*/text()', query_to_xml(format(CASE c.relkind \
           WHEN 'S' THEN 'SELECT last_value || '' '' || is_called AS v FROM %s' \
           ELSE 'SELECT count(*) || coalesce(md5(string_agg(t::text, '','' ORDER BY t::text)), '''') AS v FROM ONLY %s t' END, \
           c.oid::regclass), true, false, '')))[1], E'\\n' ORDER BY c.oid::regclass::text) \
         FROM pg_class c WHERE c.relkind IN ('r', 'S') AND c.relnamespace = 'public'::regnamespace",
    )
}

fn base64(text: &str) -> String {
    let program = "import base64, sys; print(base64.b64encode(sys.argv[1].encode()).decode())";
    python(Environment::Sydent, program, &[text])
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

fn chown(folder: &Path, owner: &str) {
    let status = Command::new("chown").arg("-R").arg(owner).arg(folder).status().unwrap();
    assert!(status.success(), "chown {owner} {}", folder.display());
}

/// The severity of a finding: `info` where the check passed.
fn finding<'a>(outcome: &'a Outcome, component: &str, check: &str) -> (&'a str, &'a str) {
    let found = outcome
        .events_of("finding")
        .find(|f| f["component"] == component && f["check"] == check)
        .unwrap_or_else(|| panic!("{component} found nothing about {check}: {outcome}"));
    (found["severity"].as_str().unwrap(), found["message"].as_str().unwrap())
}

const DATABASES: [&str; 7] = ["sliding", "integrator", "xmpp", "irc", "whatsapp", "sip", "other"];
const VOLUMES: [&str; 16] = [
    "sliding",
    "integrator",
    "adminbot-data",
    "adminbot",
    "auditbot-data",
    "auditbot",
    "xmpp",
    "irc",
    "whatsapp",
    "sip",
    "hookshot",
    "hookshot-data",
    "files",
    "host",
    "kubernetes",
    "nedb",
];

/// Everything but Synapse, MAS, Sydent and Telegram, which have tests of their own.
fn furnish(site: &mut Site) -> String {
    for name in DATABASES {
        site.database(name);
    }
    let keys = site.folder("keys");
    let sealed = python(Environment::Synapse, SEAL, &[keys.to_str().unwrap(), SYNC_SECRET]);
    let sealed: Vec<&str> = sealed.lines().collect();
    site.fill("irc", &irc(&sealed[..3]));
    site.fill("sliding", &sliding_sync(&sealed[3..]));
    for (name, sql) in [
        ("integrator", INTEGRATOR),
        ("xmpp", XMPP),
        ("whatsapp", WHATSAPP),
        ("sip", SIP),
        ("other", OTHER),
    ] {
        site.fill(name, sql);
    }
    let passkey = std::fs::read_to_string(keys.join("passkey.pem")).unwrap();
    let volume = |name: &str, files: &[(&str, &str)]| write(&site.folder(name), files);
    let secret = format!("SYNCV3_SERVER=http://127.0.0.1\nSYNCV3_SECRET='{SYNC_SECRET}'\n");
    volume("sliding", &[("proxy.env", &secret)]);
    volume(
        "integrator",
        &[
            ("config.yaml", "homeserver: {accessToken: x}\n"),
            ("dimension.bot.json", "{}"),
        ],
    );
    let phrase = "bot_backup_phrase: \"only for this test\"\nbot_data_path: /data\n";
    for bot in ["adminbot", "auditbot"] {
        volume(bot, &[("config.yml", phrase)]);
        volume(
            &format!("{bot}-data"),
            &[
                ("crypto/store.db", "ratchets"),
                ("login.json", "{}"),
                ("a b/ü\n.txt", ""),
            ],
        );
    }
    volume("auditbot-data", &[("logs/audit.log", "alice: in clear\n")]);
    volume(
        "xmpp",
        &[
            ("registration.yaml", REGISTRATION),
            ("config.yaml", "componentPassword: x\n"),
        ],
    );
    volume(
        "irc",
        &[
            ("appservice-registration-irc.yaml", REGISTRATION),
            ("passkey.pem", &passkey),
        ],
    );
    volume(
        "whatsapp",
        &[
            ("registration.yaml", REGISTRATION),
            ("config.yaml", "encryption:\n  pickle_key: 0123456789\n"),
        ],
    );
    volume(
        "sip",
        &[
            ("registration.yaml", REGISTRATION),
            ("config.yaml", "encryption_key: 0123456789abcdef0123456789abcdef\n"),
        ],
    );
    volume(
        "hookshot",
        &[
            ("registration.yml", ""),
            ("hookshot-registration.yaml", REGISTRATION),
            ("passkey.pem", &passkey),
        ],
    );
    volume("hookshot-data", &[("bot-sdk/store", "keys")]);
    volume("files", &[("uploads/a", "kept"), ("cache/b", "left out")]);
    let seed = "A".repeat(43);
    volume(
        "host",
        &[
            ("cluster.yml", "passwordsSeed: x\n"),
            ("secrets.yml", "a: b\n"),
            ("ess.signing.key", &format!("ed25519 0 {seed}\n")),
        ],
    );
    // The generated Secret as kubectl prints it: values in base64. This key is of the later generation.
    let key = base64(&format!("ed25519 1 {seed}\n"));
    let generated = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: ess-generated\ndata:\n  SYNAPSE_SIGNING_KEY: {key}\n  \
         MAS_ENCRYPTION_SECRET: {}\n  POSTGRES_SYNAPSE_PASSWORD: eA==\n",
        base64("00")
    );
    let marker = "apiVersion: v1\nkind: ConfigMap\ndata:\n  MATRIX_STACK_MSC3861: delegated_auth\n";
    volume(
        "kubernetes",
        &[("secrets.yaml", generated.as_str()), ("configmaps.yaml", marker)],
    );
    volume("nedb", &[("room-store.db", "{\"_id\":\"1\"}\n")]);
    let file = site.path().join("files.db");
    let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1]); c.executescript(\
                   'CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, b BLOB); INSERT INTO t (b) VALUES (x\\'00ff\\'); PRAGMA user_version = 3')";
    python(Environment::Sydent, program, &[file.to_str().unwrap()]);

    let root = site.path().display().to_string();
    let config = |folder: &str| format!("config = {{ path = \"{root}/{folder}\" }}");
    let bridge = |system: &str| {
        format!(
            "[components.{system}]\nuse = \"{system}\"\ndatabases = {{ main = {{ url-env = \"{}_DB\" }} }}\nvolumes = {{ {} }}\n\n",
            system.to_uppercase(),
            config(system)
        )
    };
    let mut pipeline: String = ["integrator", "irc", "whatsapp", "sip"].map(bridge).concat();
    // Its NeDB files of before the move to PostgreSQL are kept beside the database.
    pipeline.push_str(&bridge("xmpp").replace(
        "volumes = { ",
        &format!("volumes = {{ data = {{ path = \"{root}/nedb\" }}, "),
    ));
    pipeline.push_str(&format!(
        "[components.sliding-sync]\nuse = \"sliding-sync\"\ndatabases = {{ main = {{ url-env = \"SLIDING_DB\" }} }}\nvolumes = {{ {} }}\n\n\
         [components.adminbot]\nuse = \"adminbot\"\nvolumes = {{ data = {{ path = \"{root}/adminbot-data\" }}, {} }}\n\n\
         [components.auditbot]\nuse = \"auditbot\"\nvolumes = {{ data = {{ path = \"{root}/auditbot-data\" }}, {} }}\n\
         settings = {{ logs-in-bucket = true }}\n\n\
         [components.hookshot]\nuse = \"hookshot\"\nvolumes = {{ data = {{ path = \"{root}/hookshot-data\" }}, {} }}\n\n\
         [components.host-secrets]\nuse = \"host-secrets\"\nvolumes = {{ files = {{ path = \"{root}/host\" }}, \
         kubernetes = {{ path = \"{root}/kubernetes\" }} }}\n\
         settings = {{ required = [\"cluster.yml\"] }}\n\n\
         [components.other]\nuse = \"generic\"\n\
         databases = {{ main = {{ url-env = \"OTHER_DB\" }}, second = {{ sqlite = \"{root}/files.db\" }} }}\n\
         volumes = {{ files = {{ path = \"{root}/files\" }} }}\n\
         [components.other.settings]\nleave-out-data = {{ main = [\"public.cache*\"] }}\nleave-out = {{ files = [\"cache\"] }}\n\
         must-be-true = {{ main = [\"SELECT count(*) = 2 FROM public.users\"] }}\n",
        config("sliding"),
        config("adminbot"),
        config("auditbot"),
        config("hookshot"),
    ));
    pipeline
}

fn destroy(site: &Site) {
    for name in DATABASES {
        site.drop_database(name);
    }
    for name in VOLUMES {
        std::fs::remove_dir_all(site.path().join(name)).unwrap();
    }
    std::fs::remove_file(site.path().join("files.db")).unwrap();
}

/// By tier, and within a tier by name where none looks at another; put in service in the same order, files before databases.
/// Every bridge says that it comes after Synapse.
fn in_order(restored: &Outcome) {
    let plan = restored.events_of("restore-plan").next().unwrap();
    let components = plan["components"].as_array().unwrap();
    let place = |c: &serde_json::Value| {
        let tiers = ["critical", "feature", "rebuildable", "bridge"];
        let tier = tiers.iter().position(|t| c["tier"] == *t).unwrap();
        (tier, c["component"].as_str().unwrap().to_owned())
    };
    let order: Vec<(usize, String)> = components.iter().map(place).collect();
    assert!(order.is_sorted(), "{order:?}");
    for (tier, name) in [
        (0, "host-secrets"),
        (1, "adminbot"),
        (1, "other"),
        (2, "sliding-sync"),
        (3, "irc"),
        (3, "xmpp"),
    ] {
        assert!(
            order.contains(&(tier, name.to_owned())),
            "{name} is not of tier {tier}: {order:?}"
        );
    }
    let mut swapped: Vec<String> = restored
        .events_of("swapped")
        .map(|e| e["component"].as_str().unwrap().to_owned())
        .collect();
    swapped.dedup();
    let names: Vec<String> = order.iter().map(|(_, name)| name.clone()).collect();
    let files_then_databases = swapped.iter().position(|n| n == names.last().unwrap()).unwrap() + 1;
    let (files, databases) = swapped.split_at(files_then_databases);
    for part in [files, databases] {
        let places: Vec<usize> = part
            .iter()
            .map(|n| names.iter().position(|m| m == n).unwrap())
            .collect();
        assert!(places.is_sorted(), "{swapped:?} are not in the order {names:?}");
    }
    let bridges: Vec<&serde_json::Value> = components.iter().filter(|c| c["tier"] == "bridge").collect();
    assert!(bridges.len() >= 4, "{names:?}");
    for bridge in bridges {
        let notes = bridge["notes"].to_string();
        assert!(
            notes.contains("bridges come last") && notes.contains("restart it whenever Synapse was rolled back"),
            "{bridge}"
        );
    }
}

#[test]
fn every_other_system_comes_back() {
    let mut site = Site::create();
    let pipeline = furnish(&mut site);
    site.prepare(&pipeline);
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    if root {
        // One bot's volume is as it should be, the other's owner was lost by some earlier copy.
        chown(&site.path().join("adminbot-data"), "10006:10006");
    }
    site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    let before: Vec<String> = DATABASES[..6].iter().map(|name| rows(&site, name)).collect();
    assert!(
        before[2].contains("group_rooms 20") && before[2].contains("\nrooms 0"),
        "{}",
        before[2]
    );
    let trees: Vec<String> = VOLUMES.iter().map(|name| tree(&site.path().join(name))).collect();
    let backup = site.back_up().expect_success();
    for said in ["the audit logs are in a bucket and NOT in this backup", "ed25519:0"] {
        assert!(backup.stdout.contains(said), "{said:?} is not said: {backup}");
    }
    let shown = site
        .essrun()
        .run(&["show", "pipeline.toml", "--artifacts"])
        .expect_success();
    for artifact in [
        "xmpp/main/public.group_rooms",
        "whatsapp/main/public.user",
        "irc/config",
        "other/second",
        "adminbot/data",
    ] {
        assert!(shown.stdout.contains(artifact), "{artifact} is not in {shown}");
    }
    let leak = site
        .essrun()
        .run(&["incident", "pipeline.toml", "latest"])
        .expect_success();
    assert_eq!(
        leak.stdout.matches("not classed by the component").count(),
        1,
        "only of the generic component nothing is known: {leak}"
    );
    site.with_identity("drill", &[]).expect_success();
    let names = site.databases();
    assert_eq!(names.len(), DATABASES.len() + 1, "the drill left nothing: {names:?}");

    destroy(&site);
    let restored = site.with_identity("restore", &["--yes"]).expect_success();
    in_order(&restored);
    let after: Vec<String> = DATABASES[..6].iter().map(|name| rows(&site, name)).collect();
    for ((name, before), after) in DATABASES.iter().zip(&before).zip(&after) {
        assert_eq!(after, before, "{name}");
    }
    assert_eq!(site.sql("other", "SELECT count(*) FROM users"), "2");
    assert_eq!(
        site.sql("other", "SELECT count(*) FROM cache_pages"),
        "0",
        "left out by the settings"
    );
    assert_eq!(
        site.sql(
            "xmpp",
            "SELECT (SELECT count(*) FROM rooms) || ' ' || (SELECT count(*) FROM ONLY rooms)"
        ),
        "22 0",
        "the parent counts its children and has no rows of its own"
    );
    for (name, before) in VOLUMES.iter().zip(&trees) {
        let after = tree(&site.path().join(name));
        match *name {
            "files" => assert!(after.contains("uploads/a") && !after.contains("cache/b"), "{after}"),
            "auditbot-data" if root => {
                assert_eq!(&after.replace(" 10006:10006 ", " 0:0 "), before, "{name}");
                assert!(!after.contains(" 0:0 "), "the bot can read its files again: {after}");
            }
            _ => assert_eq!(&after, before, "{name}"),
        }
    }
    let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\n\
                   print(c.execute('PRAGMA user_version').fetchone(), c.execute('SELECT id, hex(b) FROM t').fetchall())";
    let file = site.path().join("files.db");
    assert_eq!(
        python(Environment::Sydent, program, &[file.to_str().unwrap()]),
        "(3,) [(1, '00FF')]"
    );

    for (component, check) in [
        ("sliding-sync", "sliding-sync-secret"),
        ("irc", "irc-passkey"),
        ("irc", "bridge-registration"),
        ("xmpp", "xmpp-inheritance"),
        ("whatsapp", "mautrix-pickle-key"),
        ("whatsapp", "mautrix-database-owner"),
        ("whatsapp", "whatsapp-device-keys"),
        ("sip", "sip-encryption-key"),
        ("adminbot", "adminbot-data"),
        ("adminbot", "adminbot-passphrase"),
        ("hookshot", "hookshot-passkey"),
        ("host-secrets", "host-secrets-files"),
        ("host-secrets", "host-secrets-kubernetes"),
        ("host-secrets", "host-secrets-signing-key"),
        ("other", "generic-main-1"),
        ("other", "generic-files"),
    ] {
        let (severity, message) = finding(&restored, component, check);
        assert_eq!(severity, "info", "{component}: {check}: {message}");
    }
    for (component, check) in [
        ("auditbot", "auditbot-logs"),
        ("whatsapp", "whatsapp-ratchets"),
        ("host-secrets", "host-secrets-signing-key-generation"),
    ] {
        assert_eq!(
            finding(&restored, component, check).0,
            "warning",
            "{component}: {check}"
        );
    }
    if root {
        for bot in ["adminbot", "auditbot"] {
            assert_eq!(finding(&restored, bot, &format!("{bot}-owner")).0, "info");
        }
    }
}

/// A bot's files are to belong to its user, and only root can give them away.
#[test]
fn who_is_not_root_is_told_whose_files_are_to_be() {
    let mut site = Site::create();
    let pipeline = furnish(&mut site);
    site.prepare(&pipeline);
    site.back_up().expect_success();
    let args = ["--identity", "elsewhere/identity.txt", "--only", "adminbot"];
    let drill = [&["drill", "pipeline.toml"], &args[..]].concat();
    let drilled = site.give_to_somebody().run_json(&drill).expect_success();
    let told = drilled.events_of("finding").any(|f| {
        let message = f["message"].as_str().unwrap();
        f["check"] == "owners-not-set" && message.contains("10006:10006, which only root can set")
    });
    assert!(told, "{drilled}");
}

#[test]
fn a_key_that_does_not_open_refuses_the_restore() {
    let mut site = Site::create();
    let pipeline = furnish(&mut site);
    site.prepare(&pipeline);
    // Someone made a new passkey, and set another secret: the running systems have not noticed yet.
    std::fs::copy(site.path().join("keys/other.pem"), site.path().join("irc/passkey.pem")).unwrap();
    write(
        &site.path().join("sliding"),
        &[("proxy.env", "SYNCV3_SECRET=another\n")],
    );
    let only = ["--only", "irc", "--only", "sliding-sync"];
    let backup = site
        .essrun()
        .run_json(&[&["pipeline.toml"], &only[..]].concat())
        .expect_success();
    for said in ["does not open 3 of 3 stored IRC passwords", "opens only 0 of 2 tokens"] {
        assert!(backup.stdout.contains(said), "{said:?} is not said: {backup}");
    }

    // After the backup life went on.
    site.fill("irc", "INSERT INTO pm_rooms (room_id) VALUES ('!later:example.org')");
    let (live, config, names) = (rows(&site, "irc"), tree(&site.path().join("irc")), site.databases());
    let refused = site
        .with_identity("restore", &[&["--yes", "--replace"], &only[..]].concat())
        .expect_code(8);
    let (severity, message) = finding(&refused, "irc", "irc-passkey");
    assert_eq!((severity, message.contains("3 of 3")), ("error", true), "{message}");
    let (severity, message) = finding(&refused, "sliding-sync", "sliding-sync-secret");
    assert_eq!((severity, message.contains("0 of 2")), ("warning", true), "{message}");
    assert_eq!(rows(&site, "irc"), live, "nothing was put in service");
    assert_eq!(tree(&site.path().join("irc")), config);
    assert_eq!(site.databases(), names, "nothing is left behind");
    site.with_identity("drill", &only).expect_code(8);
    assert_eq!(site.databases(), names, "nor by a drill");

    // A leak of that backup: the stored passwords are forgotten, the sessions of the widget ended, nothing else.
    let args = [
        "incident",
        "pipeline.toml",
        "latest",
        "--only",
        "irc",
        "--apply",
        "--yes",
    ];
    let applied = site.essrun().run_json(&args).expect_success();
    let touched: Vec<_> = applied.events_of("applied").map(|a| a["rows"].clone()).collect();
    assert_eq!(touched, [json!(3), json!(1)], "{applied}");
    assert_eq!(
        site.sql(
            "irc",
            "SELECT count(*) || ' ' || count(password) || ' ' || count(config) FROM client_config"
        ),
        "4 0 3"
    );
    assert_eq!(site.sql("irc", "SELECT count(*) FROM provisioner_sessions"), "0");
    // With no password left, what is there needs no passkey.
    site.essrun()
        .run_json(&[&["pipeline.toml"], &only[..]].concat())
        .expect_success();
    site.with_identity("restore", &["--yes", "--replace", "--only", "irc"])
        .expect_success();
}
