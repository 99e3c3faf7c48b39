//! Synapse and MAS as one group: what a backup of both and a loss of both need.

use crate::essrun::{Essrun, Outcome};
use crate::mas::Mas;
use crate::postgres::Cluster;
use crate::suite::Suite;
use crate::synapse::Database;
use std::collections::BTreeSet;

/// A suite of Synapse and MAS, on one server or two. MAS looks at Synapse's database with a role of its own that can
/// only read, under another name of the host; the file names MAS first: neither may matter.
pub struct Pair {
    // First: MAS's own server goes first, where it has one.
    pub second: Option<Cluster>,
    pub suite: Suite,
    pub mas: Mas,
    /// How MAS reaches Synapse's database.
    pub looked_at: Database,
    recipient: String,
}

/// The variable pipeline.toml reads that from.
pub const LOOKED_AT: &str = "MAS_SYNAPSE_DB";

impl Pair {
    /// A real Synapse with three users, and a MAS that knows them and their devices.
    pub fn new(two_servers: bool) -> Pair {
        let suite = Suite::create();
        let server = suite.home.start();
        for name in ["alice", "bob", "carol"] {
            server.client().register(name, "password", false).expect("registering");
        }
        server.stop();
        let second = two_servers.then(|| Cluster::builder().password("other").start().expect("a second server"));
        let mas = Mas::create(second.as_ref().unwrap_or(&suite.cluster), &suite.path().join("mas"));
        let recipient = suite.prepare_backups();
        let looked_at = Database {
            host: "localhost".to_owned(),
            user: "mas_reader".to_owned(),
            password: hex::encode(rand::random::<[u8; 8]>()),
            ..suite.database.clone()
        };
        let role = format!(
            "CREATE ROLE mas_reader LOGIN PASSWORD '{}'; GRANT pg_read_all_data TO mas_reader",
            looked_at.password
        );
        suite.cluster.psql("postgres", &role).expect("creating MAS's reader");
        let pair = Pair {
            second,
            suite,
            mas,
            looked_at,
            recipient,
        };
        for (user, device) in pair.synapse_devices() {
            pair.mas_sql(&format!(
                "WITH u AS (INSERT INTO users (user_id, username, created_at) VALUES (gen_random_uuid(), '{user}', now()) RETURNING user_id) \
                 INSERT INTO compat_sessions (compat_session_id, user_id, device_id, created_at) SELECT gen_random_uuid(), user_id, '{device}', now() FROM u"
            ));
        }
        pair.accept("fence");
        pair.run(&["init", "pipeline.toml"]).expect_success();
        pair
    }

    pub fn accept(&self, accept: &str) {
        self.write(&format!(
            "[groups.core]\nconsistent = [\"mas\", \"synapse\"]\naccept = \"{accept}\"\n"
        ));
    }

    /// Writes pipeline.toml, with this after the components.
    pub fn write(&self, groups: &str) {
        let text = format!(
            "{}\n[components.mas]\nuse = \"mas\"\n\
             databases = {{ main = {{ url-env = \"MAS_DB\" }}, synapse = {{ url-env = \"{LOOKED_AT}\" }} }}\n\
             volumes = {{ config = {{ path = \"{}\" }} }}\n\n{groups}",
            self.suite.pipeline(&self.recipient),
            self.mas.config.display()
        );
        std::fs::write(self.suite.pipeline_file(), text).expect("writing pipeline.toml");
    }

    pub fn essrun(&self) -> Essrun {
        self.suite
            .essrun()
            .env("MAS_DB", self.mas.database.url())
            .env(LOOKED_AT, self.looked_at.url())
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        self.essrun().run(args)
    }

    pub fn run_with_identity(&self, args: &[&str]) -> Outcome {
        let identity = self.suite.identity();
        let args: Vec<&str> = args
            .iter()
            .copied()
            .chain(["--identity", identity.to_str().expect("test folders have UTF-8 names")])
            .collect();
        self.essrun().run_json(&args)
    }

    pub fn mas_cluster(&self) -> &Cluster {
        self.second.as_ref().unwrap_or(&self.suite.cluster)
    }

    pub fn mas_sql(&self, sql: &str) -> String {
        self.mas_cluster()
            .psql("mas", sql)
            .expect("a query")
            .trim_end()
            .to_owned()
    }

    /// (localpart, device) of every device a sync could delete.
    pub fn synapse_devices(&self) -> BTreeSet<(String, String)> {
        pairs(
            &self
                .suite
                .sql("SELECT split_part(substr(user_id, 2), ':', 1), device_id FROM devices WHERE NOT hidden"),
        )
    }

    pub fn mas_devices(&self) -> BTreeSet<(String, String)> {
        pairs(&self.mas_sql("SELECT username, device_id FROM compat_sessions JOIN users USING (user_id)"))
    }

    pub fn destroy(&self) {
        self.suite.destroy();
        self.mas_cluster()
            .psql("postgres", "DROP DATABASE mas WITH (FORCE)")
            .expect("dropping MAS's database");
        std::fs::remove_dir_all(&self.mas.config).expect("removing a volume");
    }

    pub fn schema_of_mas(&self) -> String {
        let mut dump = self.mas_cluster().client("pg_dump");
        let dump = dump.args(["--schema-only", "-d", "mas"]).output().expect("pg_dump");
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let text = String::from_utf8(dump.stdout).expect("a dump is UTF-8");
        let known = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        text.lines().filter(known).collect::<Vec<_>>().join("\n")
    }
}

fn pairs(lines: &str) -> BTreeSet<(String, String)> {
    lines
        .lines()
        .map(|line| line.split_once('|').expect("two columns"))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect()
}
