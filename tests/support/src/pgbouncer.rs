//! A real PgBouncer before a throwaway cluster, on a free port of 127.0.0.1, gone at the end.
//!
//! As with Postgres, a shell watches the pipe to its standard input and takes it down when the test process ends, however
//! it ends; and it refuses to run as root.

use crate::postgres::{Cluster, drop_rights, unprivileged};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running pooler. Everybody who comes is the superuser `postgres`.
pub struct PgBouncer {
    port: u16,
    keeper: Option<Child>,
    dir: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts one before a cluster that trusts everybody; `mode` is its `pool_mode`, `size` how many sessions of the server
    /// it has for each database.
    #[track_caller]
    pub fn start(cluster: &Cluster, mode: &str, size: u32) -> PgBouncer {
        let run_as = unprivileged().expect("looking for a user");
        let dir = tempfile::Builder::new()
            .prefix("essrun-pool-")
            .tempdir()
            .expect("a temporary folder");
        let port = crate::free_port();
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\n\
             ignore_startup_parameters = extra_float_digits\n",
            cluster.port()
        );
        let ini = dir.path().join("pgbouncer.ini");
        std::fs::write(&ini, config).expect("writing pgbouncer.ini");
        if let Some((uid, gid)) = run_as {
            for path in [dir.path(), ini.as_path()] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("giving it away");
            }
        }
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
            .expect("no pgbouncer: run `cargo xtask setup` (or `cargo xtask test`, which begins with it)");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log file");
        let script = "\"$1\" \"$2\" </dev/null & pool=$!\ncat >/dev/null\nkill -INT $pool 2>/dev/null; wait $pool";
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", script, "sh", program])
            .arg(&ini)
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        drop_rights(&mut shell, run_as);
        let pool = PgBouncer {
            port,
            keeper: Some(shell.spawn().expect("spawning pgbouncer")),
            dir,
        };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "pgbouncer does not answer:\n{}",
                std::fs::read_to_string(pool.dir.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        pool
    }

    /// Connection string over TCP, through it.
    pub fn uri(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}
