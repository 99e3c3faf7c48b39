//! Throwaway PostgreSQL clusters for tests: initdb in a temporary directory, a unix socket and a free port on
//! 127.0.0.1, fsync off, gone at the end.
//!
//! Promises: nothing outside the temporary directory is touched; the server listens on loopback only; it stops when the
//! [`Cluster`] is dropped, on a panic, and also when the test process is killed, because a shell watches the pipe to
//! its standard input and takes the server down when that closes. PostgreSQL refuses to run as root: then the server
//! runs as the user `postgres` or, where there is none, `nobody`.

use crate::release::Release;
use std::io::{Error, ErrorKind};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How a cluster is to be made; begin with [`Cluster::builder`].
#[derive(Debug, Clone, Default)]
pub struct Builder {
    settings: Vec<(String, String)>,
    bin: Option<PathBuf>,
    release: Option<Release>,
    password: Option<String>,
    locale: Option<String>,
    files: Vec<(String, String)>,
    within: Option<PathBuf>,
}

/// A running throwaway cluster. Its superuser is `postgres`.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    port: u16,
    run_as: Option<(u32, u32)>,
    keeper: Option<Child>,
    password: Option<String>,
    // Last: the directory goes when the server is gone.
    dir: tempfile::TempDir,
}

impl Builder {
    /// One line of postgresql.conf.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Uses the programs of this directory instead of the newest installed ones.
    pub fn bin_dir(mut self, bin: impl Into<PathBuf>) -> Self {
        self.bin = Some(bin.into());
        self
    }

    /// Another major than Debian's.
    pub fn release(mut self, release: Release) -> Self {
        self.bin = Some(release.bin());
        self.release = Some(release);
        self
    }

    /// Asks for SCRAM passwords; the superuser's is this one. Without it everybody is trusted.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The locale of `template0` and `template1`; `C` when not set.
    pub fn locale(mut self, locale: impl Into<String>) -> Self {
        self.locale = Some(locale.into());
        self
    }

    /// Puts a file into the data directory, the server's alone to read: a certificate, a key, another pg_hba.conf.
    pub fn file(mut self, name: impl Into<String>, contents: impl Into<String>) -> Self {
        self.files.push((name.into(), contents.into()));
        self
    }

    /// Makes the cluster's directory below this one, which its user must be able to get to.
    pub fn within(mut self, directory: impl Into<PathBuf>) -> Self {
        self.within = Some(directory.into());
        self
    }

    /// Makes the cluster and waits until it answers.
    pub fn start(self) -> std::io::Result<Cluster> {
        let bin = match &self.bin {
            Some(bin) => bin.clone(),
            None => find_bin().ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    "no initdb in /usr/lib/postgresql/*/bin or PATH; install the package `postgresql`",
                )
            })?,
        };
        let run_as = unprivileged()?;
        let within = self.within.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("essrun-pg-").tempdir_in(within)?;
        if let Some((uid, gid)) = run_as {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid))?;
        }
        let bin = match self.release {
            Some(release) if !may_run(&bin, run_as)? => release.copy(dir.path())?,
            _ => bin,
        };
        let data = dir.path().join("data");
        let mut initdb = command(&bin, "initdb", run_as);
        initdb.args(["-U", "postgres", "-E", "UTF8", "--no-sync", "--no-instructions"]);
        initdb.arg(format!("--locale={}", self.locale.as_deref().unwrap_or("C")));
        initdb.arg("-D").arg(&data);
        if let Some(password) = &self.password {
            let file = dir.path().join("password");
            std::fs::write(&file, password)?;
            if let Some((uid, gid)) = run_as {
                std::os::unix::fs::chown(&file, Some(uid), Some(gid))?;
            }
            initdb
                .args(["-A", "scram-sha-256"])
                .arg(format!("--pwfile={}", file.display()));
        } else {
            initdb.args(["-A", "trust"]);
        }
        succeed("initdb", initdb.current_dir(dir.path()).output()?)?;

        let mut conf = String::from(
            "listen_addresses = '127.0.0.1'\nfsync = off\nfull_page_writes = off\nsynchronous_commit = off\n\
             max_connections = 100\nlogging_collector = off\n",
        );
        conf.push_str(&format!("unix_socket_directories = '{}'\n", dir.path().display()));
        for (name, value) in &self.settings {
            conf.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        std::fs::write(data.join("essrun.conf"), conf)?;
        if let Some((uid, gid)) = run_as {
            std::os::unix::fs::chown(data.join("essrun.conf"), Some(uid), Some(gid))?;
        }
        for (name, contents) in &self.files {
            use std::os::unix::fs::PermissionsExt;
            let path = data.join(name);
            std::fs::write(&path, contents)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            if let Some((uid, gid)) = run_as {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
            }
        }
        let main = std::fs::read_to_string(data.join("postgresql.conf"))?;
        std::fs::write(data.join("postgresql.conf"), format!("{main}\ninclude 'essrun.conf'\n"))?;

        Cluster {
            bin,
            port: 0,
            run_as,
            keeper: None,
            password: self.password,
            dir,
        }
        .on_a_free_port()
    }
}

impl Cluster {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A cluster with these extra settings.
    pub fn start(settings: &[(&str, &str)]) -> std::io::Result<Cluster> {
        let mut builder = Builder::default();
        for (name, value) in settings {
            builder = builder.setting(*name, *value);
        }
        builder.start()
    }

    /// The databases, sorted.
    pub fn databases(&self) -> Vec<String> {
        let list = self.psql(
            "postgres",
            "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1",
        );
        list.expect("listing databases").lines().map(str::to_owned).collect()
    }

    /// Of all that `pg_dump` says of a database, whatever order its rows lie in.
    pub fn digest(&self, database: &str) -> String {
        let dump = self.client("pg_dump").args(["-d", database]).output().expect("pg_dump");
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let text = String::from_utf8(dump.stdout).expect("a dump is UTF-8");
        // pg_dump puts a random word into these two lines.
        let known = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        let mut lines: Vec<&str> = text.lines().filter(known).collect();
        lines.sort_unstable();
        crate::sha256_hex(lines.join("\n").as_bytes())
    }

    /// A hot standby that streams from this server, on a port of its own; it must go before this one.
    pub fn standby(&self) -> std::io::Result<Cluster> {
        let dir = tempfile::Builder::new().prefix("essrun-pg-").tempdir()?;
        if let Some((uid, gid)) = self.run_as {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid))?;
        }
        let data = dir.path().join("data");
        let mut backup = command(&self.bin, "pg_basebackup", self.run_as);
        backup
            .args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"])
            .arg(&data)
            .current_dir(dir.path())
            .env("PGHOST", self.dir.path())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres");
        if let Some(password) = &self.password {
            backup.env("PGPASSWORD", password);
        }
        succeed("pg_basebackup", backup.output()?)?;
        // The settings are those of the other; the socket is its own.
        let conf = data.join("essrun.conf");
        let settings = std::fs::read_to_string(&conf)?;
        std::fs::write(
            &conf,
            format!("{settings}unix_socket_directories = '{}'\n", dir.path().display()),
        )?;
        Cluster {
            bin: self.bin.clone(),
            port: 0,
            run_as: self.run_as,
            keeper: None,
            password: self.password.clone(),
            dir,
        }
        .on_a_free_port()
    }

    /// Starts it. A port found free can be taken by somebody else before the server binds it: a few are tried.
    fn on_a_free_port(mut self) -> std::io::Result<Cluster> {
        let mut last = None;
        for _ in 0..5 {
            self.port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            match self.launch() {
                Ok(()) => return Ok(self),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::other("no try was made")))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the unix socket is.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where `psql`, `pg_dump` and the others of this server's version are.
    pub fn bin_dir(&self) -> &Path {
        &self.bin
    }

    /// Connection string over TCP for `role`, without a password.
    pub fn uri_as(&self, role: &str, database: &str) -> String {
        format!("postgresql://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// Connection string over TCP for the superuser, with the password where one was set.
    pub fn uri(&self, database: &str) -> String {
        match &self.password {
            Some(password) => format!("postgresql://postgres:{password}@127.0.0.1:{}/{database}", self.port),
            None => self.uri_as("postgres", database),
        }
    }

    /// Connection string over the unix socket for the superuser, as keywords.
    pub fn socket_params(&self, database: &str) -> String {
        format!(
            "host='{}' port={} user=postgres dbname='{}'",
            self.dir.path().display(),
            self.port,
            database.replace('\\', "\\\\").replace('\'', "\\'")
        )
    }

    /// Runs SQL through `psql` as the superuser and gives what it prints, unaligned, without headers.
    pub fn psql(&self, database: &str, sql: &str) -> std::io::Result<String> {
        let mut psql = self.client("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        psql.arg("-c").arg(sql).env("PGDATABASE", database);
        succeed("psql", psql.output()?)
    }

    /// Runs a file of SQL, or a long script, through `psql` as the superuser.
    pub fn psql_script(&self, database: &str, sql: &str) -> std::io::Result<String> {
        use std::io::Write;
        let mut psql = self.client("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        psql.env("PGDATABASE", database);
        let mut child = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            let sql = sql.to_owned();
            std::thread::spawn(move || stdin.write_all(sql.as_bytes()));
        }
        succeed("psql", child.wait_with_output()?)
    }

    /// One of this version's client programs, its environment set to reach this cluster as the superuser.
    pub fn client(&self, program: &str) -> Command {
        self.client_of(&self.bin, program)
    }

    /// The same of another version, from its directory.
    pub fn client_of(&self, bin: &Path, program: &str) -> Command {
        let mut command = command(bin, program, None);
        command
            .env("PGHOST", self.dir.path())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres");
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password);
        }
        command
    }

    /// What the server has written to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Stops the server as a crash would, keeping its data.
    pub fn crash(&mut self) {
        self.stop();
    }

    /// Starts a stopped server again, on the same port.
    pub fn launch(&mut self) -> std::io::Result<()> {
        if self.keeper.is_some() {
            return Ok(());
        }
        let data = self.data_dir();
        let log = self.dir.path().join("log");
        let script = "\"$1\" -D \"$2\" -p \"$3\" >>\"$4\" 2>&1 </dev/null & server=$!\n\
                      cat >/dev/null\nkill -QUIT $server 2>/dev/null; wait $server";
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", script, "sh"])
            .arg(self.bin.join("postgres"))
            .arg(&data)
            .arg(self.port.to_string())
            .arg(&log)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        drop_rights(&mut shell, self.run_as);
        self.keeper = Some(shell.spawn()?);
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            let ready = self.client("pg_isready").arg("-q").status()?;
            if ready.success() {
                return Ok(());
            }
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("could not create any TCP/IP sockets") || text.contains("FATAL:") && !ready_later(&text) {
                self.stop();
                return Err(Error::other(format!("the server did not start: {text}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stop();
        Err(Error::new(ErrorKind::TimedOut, "the server did not answer within 60 s"))
    }

    fn stop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Refused connections during start-up and recovery are logged as FATAL too; they are no failure to start.
fn ready_later(log: &str) -> bool {
    log.lines()
        .filter(|l| l.contains("FATAL:"))
        .all(|l| l.contains("the database system is") || l.contains("terminating connection"))
}

fn find_bin() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let version = e.file_name().to_str()?.parse().ok()?;
            let bin = e.path().join("bin");
            bin.join("initdb").is_file().then_some((version, bin))
        })
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, bin)| bin)
        .or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).find(|dir| dir.join("initdb").is_file()))
}

pub(crate) fn unprivileged() -> std::io::Result<Option<(u32, u32)>> {
    use std::os::unix::fs::MetadataExt;
    // /proc/self belongs to the effective user of this process.
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    for user in ["postgres", "nobody"] {
        for line in passwd.lines() {
            let mut fields = line.split(':');
            if fields.next() == Some(user)
                && let (Some(Ok(uid)), Some(Ok(gid))) = (
                    fields.nth(1).map(str::parse::<u32>),
                    fields.next().map(str::parse::<u32>),
                )
            {
                return Ok(Some((uid, gid)));
            }
        }
    }
    Err(Error::new(
        ErrorKind::NotFound,
        "running as root, and there is neither a user `postgres` nor `nobody` to run the server as",
    ))
}

/// Whether the user the server runs as reaches its programs: a workspace may lie in a folder that only root enters.
fn may_run(bin: &Path, run_as: Option<(u32, u32)>) -> std::io::Result<bool> {
    let tried = command(bin, "postgres", run_as)
        .arg("--version")
        .current_dir("/")
        .output();
    match tried {
        Ok(output) => Ok(output.status.success()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(e) => Err(e),
    }
}

pub(crate) fn drop_rights(command: &mut Command, run_as: Option<(u32, u32)>) {
    if let Some((uid, gid)) = run_as {
        command.uid(uid).gid(gid);
    }
}

fn command(bin: &Path, program: &str, run_as: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(bin.join(program));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    drop_rights(&mut command, run_as);
    command
}

fn succeed(what: &str, output: Output) -> std::io::Result<String> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        Err(Error::other(format!(
            "{what} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_answers_and_is_gone_afterwards() {
        let mut cluster = Cluster::start(&[("work_mem", "5MB")]).unwrap();
        assert_eq!(cluster.psql("postgres", "SHOW work_mem").unwrap(), "5MB");
        assert_eq!(cluster.psql("postgres", "SELECT current_user").unwrap(), "postgres");
        cluster.crash();
        assert!(cluster.psql("postgres", "SELECT 1").is_err());
        cluster.launch().unwrap();
        assert_eq!(cluster.psql("postgres", "SELECT 1").unwrap(), "1");
        let (dir, port) = (cluster.socket_dir().to_owned(), cluster.port());
        drop(cluster);
        assert!(!dir.exists());
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
