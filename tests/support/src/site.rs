//! A site of any systems: one cluster, a folder, keys, and a pipeline.toml whose components the test writes itself.
//!
//! As in `suite`, roles own their databases and are no superusers, and the identity lies elsewhere.

use crate::essrun::{Essrun, Outcome};
use crate::postgres::Cluster;
use crate::synapse::Database;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A site in a temporary folder; all of it goes when dropped.
pub struct Site {
    // Before the folder: the server goes first.
    pub cluster: Cluster,
    env: Vec<(String, String)>,
    dir: tempfile::TempDir,
}

impl Default for Site {
    fn default() -> Self {
        Site::create()
    }
}

impl Site {
    /// A cluster that asks for passwords, and an empty folder.
    pub fn create() -> Site {
        let cluster = Cluster::builder()
            .password("super secret")
            .start()
            .expect("a throwaway Postgres");
        Site::on(cluster)
    }

    /// An empty folder, and this cluster.
    pub fn on(cluster: Cluster) -> Site {
        let dir = tempfile::Builder::new()
            .prefix("essrun-site-")
            .tempdir()
            .expect("a temporary folder");
        Site {
            cluster,
            env: Vec::new(),
            dir,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A folder of the site, made.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// An empty database with an owner of its own, who may create databases. Its address is put into the environment
    /// of essrun as `NAME_DB` in capitals.
    pub fn database(&mut self, name: &str) -> Database {
        let database = Database {
            host: "127.0.0.1".to_owned(),
            port: self.cluster.port(),
            user: format!("{name}_user"),
            password: hex::encode(rand::random::<[u8; 8]>()),
            name: name.to_owned(),
        };
        let (user, password) = (&database.user, &database.password);
        let role = format!("CREATE ROLE {user} LOGIN CREATEDB PASSWORD '{password}'");
        let create = format!("CREATE DATABASE {name} OWNER {user} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0");
        for sql in [role, create] {
            self.cluster.psql("postgres", &sql).expect("a role and its database");
        }
        self.env.push((format!("{}_DB", name.to_uppercase()), database.url()));
        database
    }

    /// Something for the environment of essrun.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.env.push((key.to_owned(), value.to_owned()));
    }

    /// Runs SQL in a database as its owner, so that what it makes belongs to them.
    pub fn fill(&self, name: &str, sql: &str) {
        let as_owner = format!("SET ROLE {name}_user;\n{sql}");
        self.cluster
            .psql_script(name, &as_owner)
            .unwrap_or_else(|e| panic!("filling {name}: {e}"));
    }

    /// One value, or rows of values, out of a database.
    pub fn sql(&self, name: &str, sql: &str) -> String {
        self.cluster
            .psql(name, sql)
            .unwrap_or_else(|e| panic!("{sql} in {name}: {e}"))
    }

    /// Drops a database, sessions or not.
    pub fn drop_database(&self, name: &str) {
        self.sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
    }

    /// The databases of the cluster, sorted.
    pub fn databases(&self) -> Vec<String> {
        self.cluster.databases()
    }

    pub fn identity(&self) -> PathBuf {
        self.path().join("elsewhere/identity.txt")
    }

    /// Makes both keys, writes pipeline.toml with these components, and makes the repository.
    pub fn prepare(&self, components: &str) {
        let root = self.path().display();
        self.prepare_in(&format!("{root}/repository"), "", components);
    }

    /// The same with the repository elsewhere; `more` goes into its table.
    pub fn prepare_in(&self, url: &str, more: &str, components: &str) {
        self.folder("elsewhere");
        let said = self
            .essrun()
            .run(&["keygen", "identity", "--output", "elsewhere/identity.txt"])
            .expect_success();
        let whole = format!("{}\n{}", said.stdout, said.stderr);
        let recipient = whole
            .split(|c: char| !c.is_ascii_alphanumeric())
            .find(|word| word.starts_with("age1"))
            .unwrap_or_else(|| panic!("keygen printed no recipient:\n{said}"))
            .to_owned();
        self.essrun()
            .run(&["keygen", "writer", "--output", "writer.key"])
            .expect_success();
        let root = self.path().display();
        let pipeline = format!(
            "version = 1\nname = \"site\"\n\n[repository]\nurl = \"{url}\"\nrecipients = [\"{recipient}\"]\n\
             writer-key = \"{root}/writer.key\"\ncache = \"{root}/cache\"\n{more}\n{components}"
        );
        std::fs::write(self.path().join("pipeline.toml"), pipeline).expect("writing pipeline.toml");
        self.essrun().run(&["init", "pipeline.toml"]).expect_success();
    }

    /// essrun in the site's folder, with the databases' addresses in its environment.
    pub fn essrun(&self) -> Essrun {
        let essrun = Essrun::in_dir(self.path());
        self.env
            .iter()
            .fold(essrun, |essrun, (key, value)| essrun.env(key, value.as_str()))
    }

    /// Gives all of the site to somebody who is not root, and essrun as they run it; who is not root stays themselves.
    pub fn give_to_somebody(&self) -> Essrun {
        let Some(user) = crate::postgres::unprivileged().expect("looking for a user") else {
            return self.essrun();
        };
        // They may not reach where it was built.
        let copy = self.path().join("essrun");
        std::fs::copy(crate::essrun::binary(), &copy).expect("copying essrun");
        let owned = Command::new("chown")
            .args(["-R", &format!("{}:{}", user.0, user.1)])
            .arg(self.path())
            .status();
        assert!(owned.is_ok_and(|status| status.success()), "cannot give the site away");
        let home = self.path().display().to_string();
        self.essrun().env("HOME", home).as_user(copy, user)
    }

    /// `essrun pipeline.toml`
    pub fn back_up(&self) -> Outcome {
        self.essrun().run_json(&["pipeline.toml"])
    }

    /// `essrun VERB pipeline.toml … --identity …`
    pub fn with_identity(&self, verb: &str, more: &[&str]) -> Outcome {
        let args = [&[verb, "pipeline.toml", "--identity", "elsewhere/identity.txt"], more].concat();
        self.essrun().run_json(&args)
    }
}

/// Runs a Python program with the packages of an environment; gives what it printed.
#[track_caller]
pub fn python(environment: crate::python::Environment, program: &str, args: &[&str]) -> String {
    let output = Command::new(environment.python())
        .arg("-c")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .expect("Python prints UTF-8")
        .trim_end()
        .to_owned()
}

/// A server in a process of its own; killed when dropped.
pub struct Server {
    child: std::process::Child,
    log: PathBuf,
}

impl Server {
    /// Starts it, its output in `log`, and waits until `ready`; panics with the log's end when it ends before.
    #[track_caller]
    pub fn start(command: &mut Command, log: &Path, ready: impl Fn() -> bool) -> Server {
        let out = std::fs::File::create(log).expect("a log file");
        let err = out.try_clone().expect("sharing the log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("spawning a server");
        let mut server = Server {
            child,
            log: log.to_owned(),
        };
        let begun = std::time::Instant::now();
        while !ready() {
            let ended = server.child.try_wait().expect("waiting for the server");
            assert!(ended.is_none(), "the server ended with {ended:?}:\n{}", server.log());
            assert!(
                begun.elapsed() < std::time::Duration::from_secs(120),
                "the server does not answer:\n{}",
                server.log()
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        server
    }

    /// The end of what it printed.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Orderly, as a service manager would.
    pub fn stop(mut self) {
        let asked = Command::new("kill")
            .arg("-TERM")
            .arg(self.child.id().to_string())
            .status();
        assert!(asked.is_ok_and(|status| status.success()), "cannot signal the server");
        let begun = std::time::Instant::now();
        while self.child.try_wait().expect("waiting for the server").is_none() {
            assert!(
                begun.elapsed() < std::time::Duration::from_secs(60),
                "the server did not stop:\n{}",
                self.log()
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already stopped, or the test is over: nothing to report to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file tree as text: path, kind, permissions, owner, modification time and contents of everything in it.
pub fn tree(root: &Path) -> String {
    let script =
        "find . -printf '%P %y %m %U:%G %T@ %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0 -r sha256sum";
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(root)
        .output()
        .expect("find");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("test trees have UTF-8 names")
}
