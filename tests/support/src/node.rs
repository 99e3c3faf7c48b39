//! What makes plugins of JavaScript programs, from npm, below `<workspace>/.essrun/node`. Like the Python environments: named
//! after its pins, made by `cargo xtask setup`, never by a test.

use crate::python::Prepared;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::process::Command;

const PINS: &str = include_str!("../node/package.json");

/// Where the packages are, or will be.
pub fn home() -> PathBuf {
    let digest = hex::encode(Sha256::digest(PINS.as_bytes()));
    let short: String = digest.chars().take(12).collect();
    crate::scratch_root().join("node").join(format!("plugins-{short}"))
}

fn stamp() -> PathBuf {
    home().join("complete")
}

/// A program of one of the packages; panics with what to do when they were never installed.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    assert!(
        stamp().is_file(),
        "no packages at {}: run `cargo xtask setup` (or `cargo xtask test`, which begins with it)",
        home().display()
    );
    home().join("node_modules/.bin").join(name)
}

/// Installs what is missing. The one package is pinned, and pins those it needs. Two callers at once wait for each other.
pub fn prepare() -> Result<Prepared, String> {
    let home = home();
    let root = home.parent().map(std::path::Path::to_owned).unwrap_or_default();
    let failed = |path: &std::path::Path, e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::create_dir_all(&root).map_err(|e| failed(&root, e))?;
    let lock_path = root.join("lock");
    let lock = std::fs::File::create(&lock_path).map_err(|e| failed(&lock_path, e))?;
    lock.lock().map_err(|e| failed(&lock_path, e))?;
    if stamp().is_file() {
        return Ok(Prepared::WasThere);
    }
    if home.exists() {
        std::fs::remove_dir_all(&home).map_err(|e| failed(&home, e))?;
    }
    std::fs::create_dir(&home).map_err(|e| failed(&home, e))?;
    let pins = home.join("package.json");
    std::fs::write(&pins, PINS).map_err(|e| failed(&pins, e))?;
    let mut npm = Command::new("npm");
    npm.args([
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--no-package-lock",
    ])
    .current_dir(&home);
    let output = npm.output().map_err(|e| format!("npm: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "npm install failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    std::fs::write(stamp(), PINS).map_err(|e| failed(&stamp(), e))?;
    Ok(Prepared::Made)
}
