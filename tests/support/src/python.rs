//! Python environments for the real servers tests run against (Synapse, Sydent, mautrix-telegram) and for plugins.
//!
//! Each has its own virtual environment below `<workspace>/.essrun/python`, named after the pins it was made from and
//! its own place, which its programs begin with: a changed pin or a moved workspace makes a new one, and an interrupted
//! install is never mistaken for a whole one. They are made by `cargo xtask setup`; a test that finds none says so and
//! fails, it never installs anything by itself.

use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::process::Command;

/// A server that comes from PyPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    Synapse,
    Sydent,
    Telegram,
    /// No Python at all: the wheel brings the program `weed`.
    Seaweedfs,
    /// componentize-py, which makes plugins of Python programs.
    Plugins,
}

impl Environment {
    pub const ALL: [Environment; 5] = [
        Environment::Synapse,
        Environment::Sydent,
        Environment::Telegram,
        Environment::Seaweedfs,
        Environment::Plugins,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Environment::Synapse => "synapse",
            Environment::Sydent => "sydent",
            Environment::Telegram => "telegram",
            Environment::Seaweedfs => "seaweedfs",
            Environment::Plugins => "plugins",
        }
    }

    fn pins(self) -> &'static str {
        match self {
            Environment::Synapse => include_str!("../python/synapse.txt"),
            Environment::Sydent => include_str!("../python/sydent.txt"),
            Environment::Telegram => include_str!("../python/telegram.txt"),
            Environment::Seaweedfs => include_str!("../python/seaweedfs.txt"),
            Environment::Plugins => include_str!("../python/plugins.txt"),
        }
    }

    fn pins_file(self) -> PathBuf {
        crate::workspace()
            .join("tests/support/python")
            .join(format!("{}.txt", self.name()))
    }

    /// Where the environment is, or will be.
    pub fn home(self) -> PathBuf {
        let root = crate::scratch_root().join("python");
        let made_of = Sha256::new()
            .chain_update(self.pins())
            .chain_update(root.as_os_str().as_encoded_bytes());
        let short: String = hex::encode(made_of.finalize()).chars().take(12).collect();
        root.join(format!("{}-{short}", self.name()))
    }

    fn stamp(self) -> PathBuf {
        self.home().join("complete")
    }

    pub fn is_ready(self) -> bool {
        self.stamp().is_file()
    }

    /// The interpreter; panics with what to do when the environment was never made.
    #[track_caller]
    pub fn python(self) -> PathBuf {
        assert!(
            self.is_ready(),
            "no Python environment for {} at {}: run `cargo xtask setup` (or `cargo xtask test`, which begins with it)",
            self.name(),
            self.home().display()
        );
        self.home().join("bin/python")
    }

    /// Makes the environment if it is missing. Two callers at once wait for each other.
    pub fn prepare(self) -> Result<Prepared, String> {
        let root = crate::scratch_root().join("python");
        std::fs::create_dir_all(&root).map_err(|e| format!("{}: {e}", root.display()))?;
        let lock_path = root.join(format!("{}.lock", self.name()));
        let lock = std::fs::File::create(&lock_path).map_err(|e| format!("{}: {e}", lock_path.display()))?;
        lock.lock().map_err(|e| format!("{}: {e}", lock_path.display()))?;
        if self.is_ready() {
            return Ok(Prepared::WasThere);
        }
        let home = self.home();
        if home.exists() {
            std::fs::remove_dir_all(&home).map_err(|e| format!("{}: {e}", home.display()))?;
        }
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        run(Command::new(home.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--prefer-binary",
                "-r",
            ])
            .arg(self.pins_file()))?;
        std::fs::write(self.stamp(), self.pins()).map_err(|e| format!("{}: {e}", self.stamp().display()))?;
        Ok(Prepared::Made)
    }
}

/// What `prepare` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    WasThere,
    Made,
}

/// Runs a command to its end; an error holds all it said.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
