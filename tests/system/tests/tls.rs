//! A whole backup and restore over verified TLS, pg_dump included; and what is said when the server is not who it should be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::certificates::{Authority, Leaf, write};
use essrun_testkit::essrun::Essrun;
use essrun_testkit::postgres::Cluster;
use std::path::Path;

/// Nothing gets in over TCP without TLS; the password is asked for inside it.
const HBA: &str = "local all all trust\nhostssl all all all scram-sha-256\n";

struct World {
    cluster: Cluster,
    essrun: Essrun,
    dir: tempfile::TempDir,
}

impl World {
    fn create(authority: &Authority) -> World {
        let dir = tempfile::tempdir().unwrap();
        let pair = authority.sign(&Leaf {
            subject: "db",
            names: &["localhost"],
            ..Leaf::default()
        });
        let cluster = Cluster::builder()
            .password("secret")
            .setting("ssl", "on")
            .setting("ssl_cert_file", "tls.crt")
            .setting("ssl_key_file", "tls.key")
            .setting("log_connections", "on")
            .file("tls.crt", pair.certificate)
            .file("tls.key", pair.key)
            .file("pg_hba.conf", HBA)
            .start()
            .expect("a server with TLS");
        cluster.psql("postgres", "CREATE DATABASE small").unwrap();
        let fill = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('ü', g % 500) FROM generate_series(1, 5000) g; \
                    CREATE INDEX ON t (v); CREATE VIEW w AS SELECT count(*) FROM t";
        cluster.psql("small", fill).unwrap();
        let essrun = Essrun::in_dir(dir.path());
        let said = essrun
            .run(&["keygen", "identity", "--output", "identity.txt"])
            .expect_success();
        let recipient = said.stdout.split_whitespace().find(|w| w.starts_with("age1")).unwrap();
        essrun
            .run(&["keygen", "writer", "--output", "writer.key"])
            .expect_success();
        let pipeline = format!(
            "version = 1\nname = \"x\"\n[repository]\nurl = \"repository\"\nrecipients = [\"{recipient}\"]\n\
             writer-key = \"writer.key\"\ncache = \"cache\"\n\
             [components.any]\nuse = \"generic\"\ndatabases = {{ main = {{ url-env = \"DB\" }} }}\n"
        );
        std::fs::write(dir.path().join("pipeline.toml"), pipeline).unwrap();
        essrun.run(&["init", "pipeline.toml"]).expect_success();
        World { cluster, essrun, dir }
    }

    fn file(&self, name: &str, text: &str) -> String {
        write(self.dir.path(), name, text).display().to_string()
    }

    fn at(&self, host: &str, database: &str, more: &str) -> Essrun {
        let port = self.cluster.port();
        let url = format!("postgresql://postgres:secret@{host}:{port}/{database}?{more}");
        self.essrun.clone().env("DB", url)
    }

    /// Sums over what was filled in.
    fn contents(&self, database: &str) -> String {
        let sums = "SELECT count(*), sum(id), md5(string_agg(v, ',' ORDER BY id)), (SELECT count FROM w) FROM t";
        self.cluster.psql(database, sums).unwrap()
    }
}

const RESTORE: [&str; 5] = ["restore", "pipeline.toml", "--yes", "--identity", "identity.txt"];

#[test]
fn there_and_back_through_verify_full() {
    let authority = Authority::create("the site's own authority");
    let world = World::create(&authority);
    let root = world.file("root.crt", &authority.pair.certificate);
    let full = format!("sslmode=verify-full&sslrootcert={root}&channel_binding=require");

    world
        .at("localhost", "small", &full)
        .run(&["validate", "pipeline.toml"])
        .expect_success();
    world
        .at("localhost", "small", &full)
        .run(&["pipeline.toml"])
        .expect_success();
    world.at("localhost", "again", &full).run(&RESTORE).expect_success();
    assert_eq!(world.contents("again"), world.contents("small"));
    // pg_dump too: it sets its own name at the end of the start, so its lines are told by the database it read.
    let log = world.cluster.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("connection authorized") && l.contains("application_name=essrun"))
        .collect();
    assert!(lines.len() > 5, "{log}");
    assert!(lines.iter().all(|l| l.contains("SSL enabled")), "{log}");

    // What the operating system trusts; pg_dump of this version does not know the word.
    let system = world
        .at("localhost", "small", "sslrootcert=system")
        .env("SSL_CERT_FILE", root.as_str())
        .env("SSL_CERT_DIR", "/nowhere");
    system.run(&["pipeline.toml"]).expect_success();
    let leftovers = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let leftovers: Vec<_> = leftovers
        .filter(|e| e.file_name().to_string_lossy().starts_with("essrun-roots-"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");

    // By libpq's environment, as a service manager may set it.
    let port = world.cluster.port();
    let words = format!("host=localhost port={port} dbname=small user=postgres");
    let by_environment = world.essrun.clone().env("DB", words).env("PGPASSWORD", "secret");
    by_environment
        .clone()
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", root.as_str())
        .run(&["pipeline.toml"])
        .expect_success();
    by_environment
        .env("PGSSLMODE", "disable")
        .run(&["pipeline.toml"])
        .expect_code(5)
        .expect_stderr(&["no encryption"]);
}

#[test]
fn not_who_it_should_be() {
    let authority = Authority::create("the site's own authority");
    let world = World::create(&authority);
    let root = world.file("root.crt", &authority.pair.certificate);
    let other = world.file("other.crt", &Authority::create("another").pair.certificate);
    let said = |host: &str, more: &str, said: &[&str]| {
        let outcome = world
            .at(host, "small", more)
            .run(&["pipeline.toml"])
            .expect_code(5)
            .expect_stderr(said);
        assert!(!outcome.stderr.contains("secret"), "{outcome}");
    };
    said(
        "localhost",
        &format!("sslmode=verify-full&sslrootcert={other}"),
        &["UnknownIssuer", "`sslrootcert` must hold"],
    );
    said(
        "localhost",
        &format!("sslmode=require&sslrootcert={other}"),
        &["UnknownIssuer"],
    );
    said(
        "127.0.0.1",
        &format!("sslmode=verify-full&sslrootcert={root}"),
        &["127.0.0.1", "localhost", "subjectAltName"],
    );
    assert_eq!(
        Path::new(&world.dir.path().join("repository/manifests"))
            .read_dir()
            .map_or(0, Iterator::count),
        0,
        "nothing was committed"
    );

    let plain = Cluster::builder().password("secret").start().expect("a server");
    let url = format!(
        "postgresql://postgres:secret@localhost:{}/postgres?sslmode=require",
        plain.port()
    );
    world
        .essrun
        .clone()
        .env("DB", url)
        .run(&["pipeline.toml"])
        .expect_code(5)
        .expect_stderr(&["the server offers no TLS", "ssl = on"]);
}
