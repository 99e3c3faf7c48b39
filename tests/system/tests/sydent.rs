//! A real Sydent: filled, backed up while it runs, lost, restored, used again. And why SQLite files are not dumped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::free_port;
use essrun_testkit::python::Environment;
use essrun_testkit::site::{Server, Site, python};
use essrun_testkit::synapse::SynapseClient;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Addresses as people write them; Sydent folds mail addresses before it hashes them. The users' homeserver, which it would
/// tell of each, is this machine, where nobody listens.
const ADDRESSES: [(&str, &str, &str); 4] = [
    ("email", "alice@example.org", "@alice:127.0.0.1:1"),
    ("email", "Bob.O'Brien+ess@Example.org", "@bob:127.0.0.1:1"),
    ("email", "straße@exämple.org", "@carol:127.0.0.1:1"),
    ("msisdn", "4915100000001", "@dave:127.0.0.1:1"),
];
const TOKEN: &str = "sydent-token-of-alice";

struct Sydent {
    root: PathBuf,
    port: u16,
}

impl Sydent {
    fn create(root: &Path) -> Sydent {
        let port = free_port();
        for folder in ["data", "config", "run"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let root_text = root.display();
        std::fs::write(
            root.join("config/sydent.conf"),
            format!(
                "[general]\nserver.name = id.example.org\nlog.path =\npidfile.path = {root_text}/run/sydent.pid\n\
                 [db]\ndb.file = {root_text}/data/sydent.db\n\
                 [http]\nclientapi.http.bind_address = 127.0.0.1\nclientapi.http.port = {port}\n\
                 replication.https.bind_address = 127.0.0.1\nreplication.https.port = {}\n\
                 [email]\nemail.from = id@example.org\n[crypto]\ned25519.signingkey =\n",
                free_port()
            ),
        )
        .unwrap();
        Sydent {
            root: root.to_owned(),
            port,
        }
    }

    fn database(&self) -> PathBuf {
        self.root.join("data/sydent.db")
    }

    fn api(&self) -> SynapseClient {
        SynapseClient::new(&format!("http://127.0.0.1:{}", self.port), "id.example.org", "")
    }

    fn start(&self) -> Server {
        let api = self.api();
        Server::start(
            Command::new(Environment::Sydent.python())
                .args(["-m", "sydent.sydent"])
                .current_dir(&self.root)
                .env("SYDENT_CONF", self.root.join("config/sydent.conf")),
            &self.root.join("run/log"),
            || api.call("GET", "/_matrix/identity/versions", None, None).is_ok(),
        )
    }

    /// Runs SQL in the file, as another process beside Sydent.
    fn sql(&self, sql: &str) -> String {
        let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=30)\nc.isolation_level = None\n\
                       for s in sys.argv[2].split(';'):\n  for row in c.execute(s): print('|'.join(map(str, row)))\n";
        python(Environment::Sydent, program, &[self.database().to_str().unwrap(), sql])
    }

    /// The mail that proves an address cannot be read here, so the proof is put in place. To be done before anything is
    /// bound: after that Sydent keeps a read lock on its file between requests, and nobody else can write.
    fn prove(&self, proofs: &[(usize, &str, &str)]) {
        let program = "import sqlite3, sys, time\nc = sqlite3.connect(sys.argv[1], timeout=30)\na = sys.argv[2:]\n\
                       for i in range(0, len(a), 3): \
                       c.execute('INSERT INTO threepid_validation_sessions VALUES (?,?,?,?,1,?)', \
                       (int(a[i]), a[i + 1], a[i + 2], 'secret', int(time.time() * 1000)))\nc.commit()\n";
        let mut args = vec![self.database().to_str().unwrap().to_owned()];
        for (id, medium, address) in proofs {
            args.extend([id.to_string(), (*medium).to_owned(), (*address).to_owned()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        python(Environment::Sydent, program, &args);
    }

    /// Binds a proved address over the API.
    fn bind(&self, id: usize, user: &str) -> Value {
        self.api()
            .call(
                "POST",
                "/_matrix/identity/api/v1/3pid/bind",
                None,
                Some(&json!({"sid": id.to_string(), "client_secret": "secret", "mxid": user})),
            )
            .expect("binding an address")
    }

    /// What a client does: asks for the pepper, hashes, looks up. Gives who was found, in the order asked.
    fn look_up(&self) -> Vec<Option<String>> {
        let api = self.api();
        let details = api
            .get("/_matrix/identity/v2/hash_details", TOKEN)
            .expect("hash details");
        let pepper = details["lookup_pepper"].as_str().unwrap();
        let program = "import base64, hashlib, sys\nfor a in sys.argv[1:]: \
                       print(base64.urlsafe_b64encode(hashlib.sha256(a.encode()).digest()).decode().rstrip('='))";
        let texts: Vec<String> = ADDRESSES
            .iter()
            .map(|(medium, address, _)| match *medium {
                // Python's casefold of the one sharp s in the list.
                "email" => format!("{} email {pepper}", address.to_lowercase().replace('ß', "ss")),
                _ => format!("{address} {medium} {pepper}"),
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let printed = python(Environment::Sydent, program, &texts);
        let hashes: Vec<&str> = printed.lines().collect();
        let answer = api
            .post(
                "/_matrix/identity/v2/lookup",
                TOKEN,
                &json!({"addresses": hashes, "algorithm": "sha256", "pepper": pepper}),
            )
            .expect("a lookup");
        hashes
            .iter()
            .map(|hash| answer["mappings"][hash].as_str().map(str::to_owned))
            .collect()
    }

    fn public_key(&self) -> Value {
        self.api()
            .call("GET", "/_matrix/identity/v2/pubkey/ed25519:0", None, None)
            .expect("the public key")
    }
}

fn everybody() -> Vec<Option<String>> {
    ADDRESSES.iter().map(|(_, _, user)| Some((*user).to_owned())).collect()
}

#[test]
fn a_real_sydent_comes_back() {
    let site = Site::create();
    let sydent = Sydent::create(&site.path().join("sydent"));
    let server = sydent.start();
    sydent.sql(&format!(
        "INSERT INTO accounts VALUES ('@alice:127.0.0.1:1', 1, NULL); INSERT INTO tokens VALUES ('{TOKEN}', '@alice:127.0.0.1:1')"
    ));
    let proofs: Vec<_> = (1..)
        .zip(ADDRESSES)
        .map(|(id, (medium, address, _))| (id, medium, address))
        .collect();
    sydent.prove(&proofs);
    sydent.prove(&[(99, "email", "late@example.org"), (100, "email", "new@example.org")]);
    for (at, (_, _, user)) in ADDRESSES.iter().enumerate() {
        let signed = sydent.bind(at + 1, user);
        assert_eq!(signed["mxid"], json!(user), "{signed}");
    }
    // The last id given out belongs to a row that is gone: it must not be given out again.
    server.stop();
    sydent.sql(
        "INSERT INTO local_threepid_associations (id, medium, address) VALUES (4711, 'email', 'gone@example.org'); \
         DELETE FROM local_threepid_associations WHERE id = 4711; \
         INSERT INTO invite_tokens (medium, address, room_id, sender, token, received_ts) \
         VALUES ('email', 'later@example.org', '!r:example.org', '@alice:127.0.0.1:1', 'invited', 1)",
    );
    let server = sydent.start();
    assert_eq!(sydent.look_up(), everybody());
    let (key, pragma, sequences, dump) = (
        sydent.public_key(),
        sydent.sql("PRAGMA user_version"),
        sydent.sql("SELECT name, seq FROM sqlite_sequence ORDER BY name"),
        contents(&sydent.database()),
    );
    assert!(sequences.contains("local_threepid_associations|4711"), "{sequences}");
    assert_ne!(pragma, "0");

    let root = sydent.root.display();
    site.prepare(&format!(
        "[components.sydent]\nuse = \"sydent\"\ndatabases = {{ main = {{ sqlite = \"{root}/data/sydent.db\" }} }}\n\
         volumes = {{ config = {{ path = \"{root}/config\" }} }}\n"
    ));
    site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    let backup = site.back_up().expect_success();
    assert!(
        !backup.stdout.contains(TOKEN) && !backup.stderr.contains(TOKEN),
        "{backup}"
    );
    site.with_identity("drill", &[]).expect_success();

    // It went on running; what came later is not in the backup.
    sydent.bind(99, "@late:127.0.0.1:1");
    server.stop();
    std::fs::remove_file(sydent.database()).unwrap();
    std::fs::remove_dir_all(sydent.root.join("config")).unwrap();

    site.with_identity("restore", &["--yes"]).expect_success();
    assert_eq!(sydent.sql("PRAGMA user_version"), pragma);
    assert_eq!(
        sydent.sql("SELECT name, seq FROM sqlite_sequence ORDER BY name"),
        sequences
    );
    assert_eq!(contents(&sydent.database()), dump, "every row of every table");
    let server = sydent.start();
    assert_eq!(sydent.look_up(), everybody(), "found by hash as before");
    assert_eq!(sydent.public_key(), key, "it vouches with the same key");
    sydent.bind(100, "@new:127.0.0.1:1");
    assert_eq!(
        sydent.sql("SELECT id FROM local_threepid_associations WHERE address = 'new@example.org'"),
        "4712",
        "no id is given twice"
    );

    // A leak: essrun shows what to do, and writes to no live SQLite file.
    let leak = site
        .essrun()
        .run(&["incident", "pipeline.toml", "latest", "--apply", "--yes"])
        .expect_success();
    assert!(leak.stdout.contains("PLAINTEXT access tokens"), "{leak}");
    assert_eq!(sydent.sql("SELECT count(*) FROM tokens"), "1", "{leak}");
    server.stop();
}

/// A copy as SQL text is what other tools make. It loses the schema's version: the component refuses to take such a
/// file, and a restored one that lost it is not put in service.
#[test]
fn a_copy_made_as_sql_text_is_refused() {
    let site = Site::create();
    let sydent = Sydent::create(&site.path().join("sydent"));
    let server = sydent.start();
    sydent.prove(&[(1, "email", "alice@example.org")]);
    sydent.bind(1, "@alice:127.0.0.1:1");
    server.stop();
    let program = "import sqlite3, sys, os\na = sqlite3.connect(sys.argv[1]); t = '\\n'.join(a.iterdump()); a.close()\n\
                   os.remove(sys.argv[1])\nb = sqlite3.connect(sys.argv[1]); b.executescript(t); b.commit()\n";
    python(Environment::Sydent, program, &[sydent.database().to_str().unwrap()]);
    assert_eq!(sydent.sql("PRAGMA user_version"), "0", "the copy lost it");
    let root = sydent.root.display();
    site.prepare(&format!(
        "[components.sydent]\nuse = \"sydent\"\ndatabases = {{ main = {{ sqlite = \"{root}/data/sydent.db\" }} }}\n\
         volumes = {{ config = {{ path = \"{root}/config\" }} }}\n"
    ));
    site.back_up()
        .expect_code(7)
        .expect_stderr(&["user_version is 0", "lookup_hash"]);
}

/// The schema and the rows of a Sydent's SQLite file as PostgreSQL takes them, as a site moves them there: upstream's
/// release speaks to SQLite only, so the real one fills the file first.
fn as_postgres(file: &Path) -> String {
    let program = r#"
import re, sqlite3, sys
c = sqlite3.connect(sys.argv[1])
def literal(value):
    if value is None: return 'NULL'
    if isinstance(value, (int, float)): return str(value)
    return "'" + value.replace("'", "''") + "'"
def quoted(name): return '"' + name + '"'
names = [r[0] for r in c.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")]
for t in names:
    keys, cols = [], []
    made = c.execute("SELECT sql FROM sqlite_master WHERE name = ?", (t,)).fetchone()[0].lower()
    for _, name, kind, notnull, default, pk in c.execute(f"PRAGMA table_info({t})"):
        kind = kind.lower()
        col = quoted(name) + ' ' + ('bigint' if 'int' in kind else 'text')
        if pk and 'autoincrement' in made: col += ' GENERATED BY DEFAULT AS IDENTITY'
        if notnull: col += ' NOT NULL'
        if pk: keys.append(quoted(name))
        cols.append(col)
    if keys: cols.append('PRIMARY KEY (' + ', '.join(keys) + ')')
    print(f"CREATE TABLE {quoted(t)} (" + ', '.join(cols) + ');')
    for row in c.execute(f"SELECT * FROM {t}"):
        print(f"INSERT INTO {quoted(t)} VALUES (" + ', '.join(map(literal, row)) + ');')
    for _, index, unique, origin, partial in c.execute(f"PRAGMA index_list({t})").fetchall():
        if origin == 'pk': continue
        on = [r[2] for r in c.execute(f"PRAGMA index_info({index})")]
        if None in on: continue  # of an expression, in SQLite's words
        on = ', '.join(map(quoted, on))
        print(f"CREATE {'UNIQUE ' if unique else ''}INDEX ON {quoted(t)} ({on});")
for name, seq in c.execute("SELECT name, seq FROM sqlite_sequence"):
    print(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), {seq});")
"#;
    python(Environment::Sydent, program, &[file.to_str().unwrap()])
}

/// A site that keeps Sydent's tables in PostgreSQL: taken, lost, restored, proved by the pepper; its tokens ended on a leak.
#[test]
fn a_sydent_on_postgres() {
    let mut site = Site::create();
    let sydent = Sydent::create(&site.path().join("sydent"));
    let server = sydent.start();
    sydent.sql(&format!(
        "INSERT INTO accounts VALUES ('@alice:127.0.0.1:1', 1, NULL); INSERT INTO tokens VALUES ('{TOKEN}', '@alice:127.0.0.1:1')"
    ));
    let proofs: Vec<_> = (1..)
        .zip(ADDRESSES)
        .map(|(id, (medium, address, _))| (id, medium, address))
        .collect();
    sydent.prove(&proofs);
    for (at, (_, _, user)) in ADDRESSES.iter().enumerate() {
        sydent.bind(at + 1, user);
    }
    server.stop();

    site.database("sydent");
    site.fill("sydent", &as_postgres(&sydent.database()));
    let everything = || {
        let tables = site.sql(
            "sydent",
            "SELECT string_agg(format('SELECT %L, %s FROM public.%I t', c.relname, \
               CASE c.relkind WHEN 'S' THEN 'last_value::text' ELSE 't::text' END, c.relname), ' UNION ALL ') || ' ORDER BY 1, 2' \
             FROM pg_class c WHERE c.relkind IN ('r', 'S') AND c.relnamespace = 'public'::regnamespace",
        );
        site.sql("sydent", &tables)
    };
    let before = everything();
    for row in ["@exämple.org", TOKEN, "4915100000001"] {
        assert!(before.contains(row), "{row} is not in {before}");
    }
    let config = sydent.root.join("config");
    site.prepare(&format!(
        "[components.sydent]\nuse = \"sydent\"\ndatabases = {{ main = {{ url-env = \"SYDENT_DB\" }} }}\n\
         volumes = {{ config = {{ path = \"{}\" }} }}\n",
        config.display()
    ));
    site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    site.back_up().expect_success();
    site.drop_database("sydent");
    std::fs::remove_dir_all(&config).unwrap();
    let restored = site.with_identity("restore", &["--yes"]).expect_success();
    for said in ["4 hashes belong to the pepper", "is back"] {
        assert!(restored.stdout.contains(said), "{said:?} is not in {restored}");
    }
    assert_eq!(everything(), before, "every row of every table, every sequence");

    // Hashes of another pepper find nobody: such a database does not pass.
    site.sql("sydent", "UPDATE hashing_metadata SET lookup_pepper = 'another'");
    site.back_up().expect_success();
    let drill = site.with_identity("drill", &[]);
    assert_eq!(drill.code(), Some(8), "{drill}");
    let said = format!("{}{}", drill.stdout, drill.stderr);
    assert!(
        said.contains("sydent-lookup-hashes") && said.contains("4 of 4 hashes"),
        "{drill}"
    );

    // Here essrun can end the tokens itself.
    let leak = site
        .essrun()
        .run_json(&["incident", "pipeline.toml", "latest", "--apply", "--yes"])
        .expect_success();
    let applied: Vec<_> = leak.events_of("applied").map(|a| a["rows"].clone()).collect();
    assert_eq!(applied, [json!(1)], "{leak}");
    assert_eq!(site.sql("sydent", "SELECT count(*) FROM tokens"), "0");
}

/// Every table with every row, as text.
fn contents(file: &Path) -> String {
    let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=30)\n\
                   for l in c.iterdump(): print(l)\n";
    python(Environment::Sydent, program, &[file.to_str().unwrap()])
}
