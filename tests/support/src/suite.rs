//! The example suite: a Synapse with its Postgres, media and configuration, and the pipeline.toml that backs it up.
//!
//! Laid out as on a real host: the server's role owns its database and may create databases but is no superuser;
//! passwords are asked for; the identity that opens backups lies in a folder of its own, as if it were elsewhere.

use crate::essrun::{Essrun, Outcome};
use crate::postgres::Cluster;
use crate::sha256_hex;
use crate::synapse::{Database, Home};
use std::path::{Path, PathBuf};

/// A suite in a temporary folder; all of it goes when dropped.
pub struct Suite {
    // Before the folder: the server goes first.
    pub cluster: Cluster,
    pub database: Database,
    pub home: Home,
    dir: tempfile::TempDir,
}

/// The name of the variable pipeline.toml reads the database's address from.
pub const DATABASE_VARIABLE: &str = "SYNAPSE_DB";

impl Suite {
    /// A new cluster with an empty database, and a Synapse that was never started.
    pub fn create() -> Suite {
        Suite::create_with(&[])
    }

    /// With extra lines for postgresql.conf.
    pub fn create_with(settings: &[(&str, &str)]) -> Suite {
        let dir = tempfile::Builder::new()
            .prefix("essrun-suite-")
            .tempdir()
            .expect("a temporary folder");
        let mut builder = Cluster::builder().password("super secret");
        for (name, value) in settings {
            builder = builder.setting(*name, *value);
        }
        let cluster = builder.start().expect("a throwaway Postgres");
        let database = Database {
            host: "127.0.0.1".to_owned(),
            port: cluster.port(),
            user: "synapse_user".to_owned(),
            password: hex::encode(rand::random::<[u8; 8]>()),
            name: "synapse".to_owned(),
        };
        cluster
            .psql(
                "postgres",
                &format!(
                    "CREATE ROLE {} LOGIN CREATEDB PASSWORD '{}'",
                    database.user, database.password
                ),
            )
            .expect("creating Synapse's role");
        cluster
            .psql(
                "postgres",
                &format!(
                    "CREATE DATABASE synapse OWNER {} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0",
                    database.user
                ),
            )
            .expect("creating Synapse's database");
        let home = Home::create(&dir.path().join("synapse"), "example.org", &database);
        Suite {
            cluster,
            database,
            home,
            dir,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn repository(&self) -> PathBuf {
        self.path().join("repository")
    }

    /// Opens backups; a real host never has it.
    pub fn identity(&self) -> PathBuf {
        self.path().join("elsewhere/identity.txt")
    }

    pub fn writer_key(&self) -> PathBuf {
        self.path().join("writer.key")
    }

    pub fn pipeline_file(&self) -> PathBuf {
        self.path().join("pipeline.toml")
    }

    /// essrun in the suite's folder, with the database's address in its environment.
    pub fn essrun(&self) -> Essrun {
        Essrun::in_dir(self.path()).env(DATABASE_VARIABLE, self.database.url())
    }

    /// Makes both keys with essrun and writes pipeline.toml for them.
    pub fn prepare_backups(&self) -> String {
        std::fs::create_dir_all(self.path().join("elsewhere")).expect("a folder for the identity");
        let identity = text(&self.identity());
        let said = self
            .essrun()
            .run(&["keygen", "identity", "--output", &identity])
            .expect_success();
        let recipient = recipient_of(&said, &self.identity());
        self.essrun()
            .run(&["keygen", "writer", "--output", &text(&self.writer_key())])
            .expect_success();
        let pipeline = self.pipeline(&recipient);
        std::fs::write(self.pipeline_file(), pipeline).expect("writing pipeline.toml");
        recipient
    }

    /// The text of pipeline.toml.
    pub fn pipeline(&self, recipient: &str) -> String {
        format!(
            r#"version = 1
name = "example"

[repository]
url = "{repository}"
recipients = ["{recipient}"]
writer-key = "{writer}"
cache = "{cache}"

[components.synapse]
use = "synapse"
databases = {{ main = {{ url-env = "{DATABASE_VARIABLE}" }} }}
volumes = {{ media = {{ path = "{media}" }}, config = {{ path = "{config}" }} }}
"#,
            repository = text(&self.repository()),
            writer = text(&self.writer_key()),
            cache = text(&self.path().join("cache")),
            media = text(&self.home.media_store()),
            config = text(&self.home.config()),
        )
    }

    /// `essrun pipeline.toml`
    pub fn back_up(&self) -> Outcome {
        self.essrun().run_json(&["pipeline.toml"])
    }

    /// `essrun restore pipeline.toml`, of the latest backup, without asking.
    pub fn restore(&self) -> Outcome {
        self.essrun().run_json(&[
            "restore",
            "pipeline.toml",
            "--identity",
            &text(&self.identity()),
            "--yes",
        ])
    }

    /// The disaster: the database dropped, media and configuration gone; the empty mount point is there again.
    /// Synapse must have been stopped before.
    pub fn destroy(&self) {
        self.cluster
            .psql(
                "postgres",
                &format!("DROP DATABASE {} WITH (FORCE)", self.database.name),
            )
            .expect("dropping the database");
        for volume in [self.home.media_store(), self.home.config()] {
            std::fs::remove_dir_all(&volume).expect("removing a volume");
        }
    }

    /// One value out of Synapse's database.
    pub fn sql(&self, sql: &str) -> String {
        self.cluster
            .psql(&self.database.name, sql)
            .expect("a query")
            .trim_end()
            .to_owned()
    }

    /// A database as a digest: schema, rows, sequences, whatever the order rows lie in.
    pub fn database_digest(&self, name: &str) -> String {
        self.cluster.digest(name)
    }

    /// The databases of the cluster, sorted.
    pub fn databases(&self) -> Vec<String> {
        self.cluster.databases()
    }
}

/// The recipient `keygen identity` printed, which must be the one of the file it wrote.
fn recipient_of(said: &Outcome, identity: &Path) -> String {
    let whole = format!("{}\n{}", said.stdout, said.stderr);
    let recipient = whole
        .split(|c: char| !c.is_ascii_alphanumeric())
        .find(|word| word.starts_with("age1"))
        .unwrap_or_else(|| panic!("keygen printed no recipient:\n{said}"))
        .to_owned();
    let file = std::fs::read_to_string(identity).expect("the identity file");
    assert!(
        file.contains("AGE-SECRET-KEY-1"),
        "{} is no age identity",
        identity.display()
    );
    recipient
}

fn text(path: &Path) -> String {
    path.to_str().expect("test folders have UTF-8 names").to_owned()
}

/// A file tree as a digest: paths, kinds, modes, owners, times and contents.
#[track_caller]
pub fn tree_digest(root: &Path) -> String {
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            "find . -printf '%P %y %m %U:%G %T@\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum",
        ])
        .current_dir(root)
        .output()
        .expect("find");
    assert!(
        output.status.success(),
        "{}: {}",
        root.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    sha256_hex(&output.stdout)
}
