//! The server, the database and the repository that both sides work on.
//!
//! A real Synapse makes the tables, so all its indexes, keys and triggers are there; `synapse.sql` fills them.

use crate::shell::{self, Problem, Result};
use essrun_testkit::suite::{DATABASE_VARIABLE, Suite};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Where below the cache folder compiled components lie.
const COMPILED: &str = "components";

/// Made once, used by all rounds.
pub struct World {
    suite: Suite,
    binary: PathBuf,
}

/// Where one of our restores goes.
pub struct Target {
    pub database: String,
    identity: PathBuf,
    folder: PathBuf,
}

impl Target {
    pub fn arguments(&self) -> Vec<String> {
        let folder = self.folder.display();
        [
            "--json",
            "restore",
            "pipeline.toml",
            "--yes",
            "--identity",
            &self.identity.display().to_string(),
            "--to",
            &format!("synapse/main={}", self.database),
            "--to",
            &format!("synapse/media={folder}/media"),
            "--to",
            &format!("synapse/config={folder}/config"),
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

fn io(what: &std::path::Path) -> impl Fn(std::io::Error) -> Problem + '_ {
    move |e| Problem::Other(format!("{}: {e}", what.display()))
}

impl World {
    pub fn make(binary: PathBuf, events: u32) -> Result<World> {
        println!("a Synapse-shaped database with {events} events: this takes a few minutes");
        // Like a server somebody set up with care: durable, some memory.
        let suite = Suite::create_with(&[
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
            ("shared_buffers", "512MB"),
            ("maintenance_work_mem", "256MB"),
            ("max_wal_size", "8GB"),
            ("checkpoint_timeout", "15min"),
        ]);
        let server = suite.home.start();
        // A new Synapse makes some of its indexes in the background.
        let begun = Instant::now();
        while suite.sql("SELECT count(*) FROM background_updates") != "0" && begun.elapsed() < Duration::from_secs(120)
        {
            std::thread::sleep(Duration::from_millis(500));
        }
        server.stop();
        let begun = Instant::now();
        let script = format!("SET bench.events = {events};\n{}", include_str!("synapse.sql"));
        let filled = suite.cluster.psql_script(&suite.database.name, &script);
        filled.map_err(|e| Problem::Other(format!("filling the database: {e}")))?;
        suite.sql("VACUUM (ANALYZE)");
        suite.sql("CHECKPOINT");
        let heap: u64 = suite.sql("SELECT sum(pg_table_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace").parse().unwrap_or(0);
        let all: u64 = suite
            .sql("SELECT pg_database_size(current_database())")
            .parse()
            .unwrap_or(0);
        println!(
            "made in {:.0} s: {} tables, {:.2} GB of tables, {:.2} GB with indexes",
            begun.elapsed().as_secs_f64(),
            suite.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
            heap as f64 / 1e9,
            all as f64 / 1e9
        );
        let world = World { suite, binary };
        world.keys()?;
        Ok(world)
    }

    fn keys(&self) -> Result {
        let elsewhere = self.suite.path().join("elsewhere");
        std::fs::create_dir_all(&elsewhere).map_err(io(&elsewhere))?;
        let identity = self.identity();
        let made = shell::quiet(self.essrun(&["keygen", "identity", "--output"]).arg(&identity))?;
        let said = String::from_utf8_lossy(&made.stdout).into_owned();
        let recipient = said
            .split_whitespace()
            .find(|word| word.starts_with("age1"))
            .unwrap_or_default();
        std::fs::write(self.recipient_file(), recipient).map_err(io(&self.recipient_file()))?;
        shell::quiet(
            self.essrun(&["keygen", "writer", "--output"])
                .arg(self.suite.writer_key()),
        )?;
        let file = self.suite.pipeline_file();
        std::fs::write(&file, self.suite.pipeline(recipient)).map_err(io(&file))
    }

    pub fn identity(&self) -> PathBuf {
        self.suite.identity()
    }

    pub fn recipient_file(&self) -> PathBuf {
        self.suite.path().join("recipient.txt")
    }

    pub fn repository(&self) -> PathBuf {
        self.suite.repository()
    }

    pub fn peer_file(&self) -> PathBuf {
        self.suite.path().join("peer.dump.zst.age")
    }

    pub fn peer_unpacked(&self) -> PathBuf {
        self.suite.path().join("peer.dump")
    }

    /// The server's first process.
    pub fn server(&self) -> Option<u32> {
        let file = self.suite.cluster.data_dir().join("postmaster.pid");
        std::fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
    }

    /// How to reach the database, for whoever wants to look.
    pub fn address(&self) -> String {
        format!("{} ({})", self.suite.database.url(), self.suite.path().display())
    }

    /// A program of the server's version.
    pub fn program(&self, name: &str) -> PathBuf {
        self.suite.cluster.bin_dir().join(name)
    }

    /// What libpq needs to reach the server as Synapse's role.
    pub fn libpq(&self) -> [(&'static str, String); 4] {
        let database = &self.suite.database;
        [
            ("PGHOST", database.host.clone()),
            ("PGPORT", database.port.to_string()),
            ("PGUSER", database.user.clone()),
            ("PGPASSWORD", database.password.clone()),
        ]
    }

    pub fn essrun<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .current_dir(self.suite.path())
            .env("ESSRUN_STATE", self.suite.path().join(".state"))
            .env(DATABASE_VARIABLE, self.suite.database.url());
        command
    }

    /// A folder beside the repository.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.suite.path().join(name)
    }

    pub fn cache(&self) -> PathBuf {
        self.folder("cache")
    }

    /// Runs SQL in the database as the superuser.
    pub fn script(&self, sql: &str) -> Result {
        let done = self.suite.cluster.psql_script(&self.suite.database.name, sql);
        done.map_err(|e| Problem::Other(e.to_string()))?;
        self.suite.sql("CHECKPOINT");
        Ok(())
    }

    /// An empty repository, and nothing remembered of an earlier one; compiled components stay where asked for.
    pub fn fresh_repository(&self, keep_compiled: bool) -> Result {
        let cache = self.cache();
        let mut gone = vec![self.repository()];
        match std::fs::read_dir(&cache) {
            Ok(entries) => {
                let entries = entries
                    .flatten()
                    .filter(|e| !(keep_compiled && e.file_name() == COMPILED));
                gone.extend(entries.map(|e| e.path()));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(&cache)(e)),
        }
        for path in gone {
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(e)),
                _ => {}
            }
        }
        shell::quiet(&mut self.essrun(&["init", "pipeline.toml"])).map(drop)
    }

    pub fn new_database(&self, name: &str) -> Result {
        let sql = format!(
            "CREATE DATABASE {name} OWNER {} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0",
            self.suite.database.user
        );
        self.suite
            .cluster
            .psql("postgres", &sql)
            .map(drop)
            .map_err(|e| Problem::Other(e.to_string()))
    }

    /// Drops it and writes everything out, so that the next in turn starts even.
    pub fn drop_database(&self, name: &str) -> Result {
        for sql in [
            format!("DROP DATABASE \"{name}\" WITH (FORCE)"),
            "CHECKPOINT".to_owned(),
        ] {
            self.suite
                .cluster
                .psql("postgres", &sql)
                .map_err(|e| Problem::Other(e.to_string()))?;
        }
        Ok(())
    }

    pub fn restore_target(&self, round: u32) -> Target {
        let name = format!("ours_{round}");
        Target {
            folder: self.suite.path().join(&name),
            database: name,
            identity: self.identity(),
        }
    }

    /// Removes what was restored, so that the same place is free for the next round.
    pub fn drop_target(&self, target: &Target) -> Result {
        self.drop_database(&target.database)?;
        std::fs::remove_dir_all(&target.folder).map_err(io(&target.folder))
    }

    /// A restore that is fast because it left something out would be no restore.
    pub fn check_restored(&self, database: &str) -> Result {
        let count = "SELECT string_agg(c, ' ' ORDER BY c) FROM (
            SELECT 'events ' || count(*) AS c FROM events UNION ALL SELECT 'event_json ' || sum(length(json)) FROM event_json
            UNION ALL SELECT 'state_groups_state ' || count(*) FROM state_groups_state
            UNION ALL SELECT 'event_auth ' || count(*) FROM event_auth UNION ALL SELECT 'device_inbox ' || count(*) FROM device_inbox
            UNION ALL SELECT 'indexes ' || count(*) FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT 'constraints ' || count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT 'triggers ' || count(*) FROM pg_trigger WHERE NOT tgisinternal) x";
        let there = |name: &str| {
            self.suite
                .cluster
                .psql(name, count)
                .map_err(|e| Problem::Other(e.to_string()))
        };
        let (original, restored) = (there(&self.suite.database.name)?, there(database)?);
        if original == restored {
            return Ok(());
        }
        Err(Problem::Other(format!(
            "the restored database differs:\n{original}{restored}"
        )))
    }
}
