//! TLS to a real server: each of libpq's modes against each way a server can be, or fail to be, who it should be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_postgres::{Connection, Session};
use essrun_testkit::certificates::{Authority, Leaf, Pair, self_signed, write};
use essrun_testkit::postgres::{Builder, Cluster};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const ALL_TRUSTED: &str = "local all all trust\nhost all all all trust\n";
const ONLY_TLS: &str = "local all all trust\nhostssl all all all trust\n";
const ONLY_PLAIN: &str = "local all all trust\nhostnossl all all all trust\n";

fn server(pair: &Pair, hba: &str) -> Builder {
    Cluster::builder()
        .setting("ssl", "on")
        .setting("ssl_cert_file", "tls.crt")
        .setting("ssl_key_file", "tls.key")
        .file("tls.crt", &pair.certificate)
        .file("tls.key", &pair.key)
        .file("pg_hba.conf", hba)
}

/// Whether the connection these words make is encrypted, or why there is none.
async fn tls(cluster: &Cluster, words: &str) -> Result<bool, String> {
    let text = format!("port={} user=postgres dbname=postgres {words}", cluster.port());
    let connection = Connection::parse(&text).map_err(|e| e.to_string())?;
    let session = Session::open(&connection).await.map_err(|e| e.to_string())?;
    let row = session
        .query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[])
        .await
        .unwrap();
    Ok(row.get(0))
}

#[track_caller]
fn refused(outcome: &Result<bool, String>, said: &[&str]) {
    let error = outcome.as_ref().expect_err("this connection must not come about");
    for said in said {
        assert!(error.contains(said), "{said:?} is not in {error:?}");
    }
}

struct Files {
    dir: tempfile::TempDir,
    authority: Authority,
    right: PathBuf,
    wrong: PathBuf,
}

impl Files {
    fn create() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("the right authority");
        let wrong = Authority::create("another authority");
        Files {
            right: write(dir.path(), "right.crt", &authority.pair.certificate),
            wrong: write(dir.path(), "wrong.crt", &wrong.pair.certificate),
            dir,
            authority,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn server(&self) -> Pair {
        self.authority.sign(&Leaf {
            subject: "db",
            names: &["localhost"],
            ..Leaf::default()
        })
    }
}

#[tokio::test]
async fn every_mode_against_every_server() {
    let files = Files::create();
    let both = server(&files.server(), ALL_TRUSTED).start().unwrap();
    let (right, wrong) = (files.right.display(), files.wrong.display());

    // No root: encrypted where it can be, and nobody is asked who they are.
    for (mode, encrypted) in [
        ("disable", false),
        ("allow", false),
        ("prefer", true),
        ("require", true),
    ] {
        let words = format!("host=127.0.0.1 sslmode={mode}");
        assert_eq!(tls(&both, &words).await, Ok(encrypted), "{mode}");
    }
    assert_eq!(
        tls(&both, "host=127.0.0.1").await,
        Ok(true),
        "libpq's default is prefer"
    );
    for mode in ["verify-ca", "verify-full"] {
        let missing = tls(
            &both,
            &format!("host=localhost sslmode={mode} sslrootcert=/nowhere/root.crt"),
        )
        .await;
        refused(&missing, &["/nowhere/root.crt", "sslrootcert=system"]);
    }

    // The right root.
    for (host, mode, good) in [
        ("localhost", "verify-full", true),
        ("127.0.0.1", "verify-full", false),
        ("127.0.0.1", "verify-ca", true),
        ("127.0.0.1", "require", true),
    ] {
        let outcome = tls(&both, &format!("host={host} sslmode={mode} sslrootcert={right}")).await;
        match good {
            true => assert_eq!(outcome, Ok(true), "{host} {mode}"),
            false => refused(&outcome, &["127.0.0.1", "localhost", "subjectAltName", "verify-ca"]),
        }
    }
    // A name is the server's, whatever address leads to it.
    let words = format!("host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={right} sslsni=0");
    assert_eq!(tls(&both, &words).await, Ok(true));
    for version in ["TLSv1.2", "TLSv1.3"] {
        let words = format!(
            "host=localhost sslmode=verify-full sslrootcert={right} ssl_min_protocol_version={version} ssl_max_protocol_version={version}"
        );
        assert_eq!(tls(&both, &words).await, Ok(true), "{version}");
    }

    // The wrong root: `require` is `verify-ca` now, and what only prefers TLS does without.
    for mode in ["require", "verify-ca", "verify-full"] {
        let outcome = tls(&both, &format!("host=localhost sslmode={mode} sslrootcert={wrong}")).await;
        refused(&outcome, &["UnknownIssuer", "`sslrootcert` must hold the authority"]);
    }
    let fallen_back = tls(&both, &format!("host=localhost sslmode=prefer sslrootcert={wrong}")).await;
    assert_eq!(fallen_back, Ok(false));
    let words = format!("host=localhost sslmode=require sslrootcert={}", files.path().display());
    refused(&tls(&both, &words).await, &["sslrootcert", "PEM"]);

    // Sockets have no TLS, and need none.
    let socket = format!(
        "host={} sslmode=verify-full sslrootcert={wrong}",
        both.socket_dir().display()
    );
    assert_eq!(tls(&both, &socket).await, Ok(false));
    drop(both);

    // What pg_hba.conf demands, the modes that may choose find.
    let only = server(&files.server(), ONLY_TLS).start().unwrap();
    for mode in ["allow", "prefer", "require"] {
        assert_eq!(
            tls(&only, &format!("host=localhost sslmode={mode}")).await,
            Ok(true),
            "{mode}"
        );
    }
    refused(
        &tls(&only, "host=localhost sslmode=disable").await,
        &["no encryption", "sslmode"],
    );
    // What is asked of the server meanwhile can be ended.
    let words = format!(
        "host=localhost port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={right}",
        only.port()
    );
    let session = Session::open(&Connection::parse(&words).unwrap()).await.unwrap();
    let (answer, ()) = tokio::join!(session.run("sleep", "SELECT pg_sleep(120)"), async {
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
        while only.psql("postgres", asleep).unwrap() != "1" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        session.cancel().await;
    });
    assert_eq!(answer.unwrap_err().code(), Some("57014"));
    drop(only);

    let plain = server(&files.server(), ONLY_PLAIN).start().unwrap();
    for mode in ["disable", "allow", "prefer"] {
        assert_eq!(
            tls(&plain, &format!("host=localhost sslmode={mode}")).await,
            Ok(false),
            "{mode}"
        );
    }
    refused(
        &tls(&plain, "host=localhost sslmode=require").await,
        &["SSL encryption", "pg_hba.conf"],
    );
}

#[tokio::test]
async fn a_server_without_tls() {
    let files = Files::create();
    let cluster = Cluster::builder().start().unwrap();
    for mode in ["disable", "allow", "prefer"] {
        assert_eq!(
            tls(&cluster, &format!("host=localhost sslmode={mode}")).await,
            Ok(false),
            "{mode}"
        );
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let words = format!("host=localhost sslmode={mode} sslrootcert={}", files.right.display());
        refused(&tls(&cluster, &words).await, &["the server offers no TLS", "ssl = on"]);
    }
}

#[tokio::test]
async fn certificates_that_are_not_good_enough() {
    let files = Files::create();
    let right = files.right.display();
    let full = format!("host=localhost sslmode=verify-full sslrootcert={right}");

    let expired = files.authority.sign(&Leaf {
        subject: "db",
        names: &["localhost"],
        expired: true,
        ..Leaf::default()
    });
    let cluster = server(&expired, ALL_TRUSTED).start().unwrap();
    refused(
        &tls(&cluster, &full).await,
        &["expired", "renew the server's certificate"],
    );
    assert_eq!(tls(&cluster, "host=localhost sslmode=require").await, Ok(true));
    drop(cluster);

    // A revoked one; and a list that revokes another.
    let revoked = files.authority.sign(&Leaf {
        subject: "db",
        names: &["localhost"],
        serial: Some(7),
        ..Leaf::default()
    });
    let cluster = server(&revoked, ALL_TRUSTED).start().unwrap();
    for (serial, good) in [(7, false), (8, true)] {
        let list = write(files.path(), "list.crl", &files.authority.revoke(&[serial]));
        let outcome = tls(&cluster, &format!("{full} sslcrl={}", list.display())).await;
        match good {
            true => assert_eq!(outcome, Ok(true)),
            false => refused(&outcome, &["was revoked"]),
        }
    }
    drop(cluster);

    // The subject's name counts where there is no other, and only there.
    for (subject, names, good) in [
        ("localhost", &[][..], true),
        ("LOCALHOST", &[], true),
        ("db", &[], false),
        ("localhost", &["db.example.org"], false),
        ("localhost", &["127.0.0.1"], true),
    ] {
        let pair = files.authority.sign(&Leaf {
            subject,
            names,
            ..Leaf::default()
        });
        let cluster = server(&pair, ALL_TRUSTED).start().unwrap();
        let outcome = tls(&cluster, &full).await;
        match good {
            true => assert_eq!(outcome, Ok(true), "{subject} {names:?}"),
            false => refused(&outcome, &["not valid for name", "subjectAltName"]),
        }
    }

    // Signed by itself, as the manual's first example.
    let own = self_signed("localhost");
    let root = write(files.path(), "own.crt", &own.certificate);
    let cluster = server(&own, ALL_TRUSTED).start().unwrap();
    for (host, mode, good) in [
        ("localhost", "verify-full", true),
        ("127.0.0.1", "verify-full", false),
        ("127.0.0.1", "verify-ca", true),
    ] {
        let outcome = tls(
            &cluster,
            &format!("host={host} sslmode={mode} sslrootcert={}", root.display()),
        )
        .await;
        assert_eq!(outcome.is_ok(), good, "{host} {mode}: {outcome:?}");
    }
    refused(&tls(&cluster, &full).await, &["authority's own", "`sslrootcert`"]);
    drop(cluster);

    // X.509 version 1, as the manual's second example makes it with older OpenSSL: good enough to encrypt with, but
    // nothing that can be verified.
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/version1");
    let read = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
    let old = Pair {
        certificate: read("server.crt"),
        key: read("server.key"),
    };
    let cluster = server(&old, ALL_TRUSTED).start().unwrap();
    assert_eq!(tls(&cluster, "host=localhost sslmode=require").await, Ok(true));
    let words = format!(
        "host=localhost sslmode=verify-ca sslrootcert={}",
        data.join("root.crt").display()
    );
    refused(&tls(&cluster, &words).await, &["X.509 version 3", "subjectAltName"]);
}

#[tokio::test]
async fn our_own_certificate() {
    let files = Files::create();
    let clients = Authority::create("an authority of clients");
    let hba = "local all all trust\nhostssl all postgres all cert\nhostssl all all all trust clientcert=verify-ca\n";
    let cluster = server(&files.server(), hba)
        .setting("ssl_ca_file", "clients.crt")
        .file("clients.crt", &clients.pair.certificate)
        .start()
        .unwrap();
    let client = |subject| Leaf {
        subject,
        client: true,
        ..Leaf::default()
    };
    let (mine, somebody) = (clients.sign(&client("postgres")), clients.sign(&client("somebody")));
    let foreign = files.authority.sign(&client("postgres"));
    let file = |name: &str, text: &str| write(files.path(), name, text).display().to_string();
    let (my_crt, my_key) = (file("my.crt", &mine.certificate), file("my.key", &mine.key));
    let (their_crt, their_key) = (
        file("their.crt", &somebody.certificate),
        file("their.key", &somebody.key),
    );
    let (foreign_crt, foreign_key) = (
        file("foreign.crt", &foreign.certificate),
        file("foreign.key", &foreign.key),
    );
    let full = format!(
        "host=localhost sslmode=verify-full sslrootcert={}",
        files.right.display()
    );
    let with = |crt: &str, key: &str| format!("{full} sslcert={crt} sslkey={key}");

    assert_eq!(tls(&cluster, &with(&my_crt, &my_key)).await, Ok(true));
    refused(&tls(&cluster, &full).await, &["valid client certificate", "`sslcert`"]);
    refused(
        &tls(&cluster, &with(&their_crt, &their_key)).await,
        &["certificate authentication failed"],
    );
    refused(
        &tls(&cluster, &with(&foreign_crt, &foreign_key)).await,
        &["the server refused our certificate", "ssl_ca_file"],
    );
    refused(
        &tls(&cluster, &with(&my_crt, &their_key)).await,
        &["my.crt", "their.key", "cannot be used"],
    );
    refused(
        &tls(&cluster, &format!("{full} sslcert={my_crt} sslkey=/nowhere")).await,
        &["no private key"],
    );
    refused(
        &tls(&cluster, &with(&my_crt, &my_crt)).await,
        &["sslkey", "one private key in PEM"],
    );

    // A key others can read is no secret.
    std::fs::set_permissions(&my_key, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(
        &tls(&cluster, &with(&my_crt, &my_key)).await,
        &["my.key", "others may read", "chmod 0600"],
    );
}

#[tokio::test]
async fn passwords_are_bound_to_the_channel() {
    let files = Files::create();
    let hba = "local all all trust\nhost all all all scram-sha-256\n";
    let cluster = server(&files.server(), hba).password("secret").start().unwrap();
    let words = format!(
        "host=localhost password=secret channel_binding=require sslrootcert={}",
        files.right.display()
    );
    assert_eq!(tls(&cluster, &format!("{words} sslmode=verify-full")).await, Ok(true));
    let without = tls(&cluster, &format!("{words} sslmode=disable")).await;
    refused(&without, &["hannel binding"]);
    let wrong = tls(
        &cluster,
        &format!("{words} sslmode=verify-full").replace("=secret", "=wrong"),
    )
    .await;
    refused(&wrong, &["password authentication failed"]);
}
