//! Synapse and MAS as one group: what a backup of both and a loss of both need.

use crate::essrun::{Essrun, Outcome};
use crate::mas::Mas;
use crate::postgres::Cluster;
use crate::suite::Suite;
use std::collections::BTreeSet;

/// A suite of Synapse and MAS, on one server or two.
pub struct Pair {
    // First: MAS's own server goes first, where it has one.
    pub second: Option<Cluster>,
    pub suite: Suite,
    pub mas: Mas,
    recipient: String,
}

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
        let pair = Pair {
            second,
            suite,
            mas,
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
        let text = format!(
            "{}\n[components.mas]\nuse = \"mas\"\n\
             databases = {{ main = {{ url-env = \"MAS_DB\" }}, synapse = {{ url-env = \"SYNAPSE_DB\" }} }}\n\
             volumes = {{ config = {{ path = \"{}\" }} }}\n\n\
             [groups.core]\nconsistent = [\"synapse\", \"mas\"]\naccept = \"{accept}\"\n",
            self.suite.pipeline(&self.recipient),
            self.mas.config.display()
        );
        std::fs::write(self.suite.pipeline_file(), text).expect("writing pipeline.toml");
    }

    pub fn essrun(&self) -> Essrun {
        self.suite.essrun().env("MAS_DB", self.mas.database.url())
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
