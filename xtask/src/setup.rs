//! What a fresh Debian machine with rustup lacks: packages, the wasm target, Python environments, npm packages, more
//! PostgreSQL.
//!
//! Looks first and installs only what is missing, so that it costs nothing the second time. Packages are installed only
//! as root; anybody else is told which ones to ask for.

use crate::shell::{self, Problem, Result};
use essrun_testkit::python::{Environment, Prepared};
use essrun_testkit::release::Release;
use std::path::Path;
use std::process::{Command, Stdio};

/// Something from Debian, and how to see that it is there.
pub struct Package {
    name: &'static str,
    there: fn() -> bool,
}

const ALWAYS: &[Package] = &[
    Package {
        name: "gcc",
        there: || shell::has("cc"),
    },
    Package {
        name: "libc6-dev",
        there: || Path::new("/usr/include/stdio.h").exists(),
    },
    Package {
        name: "postgresql",
        there: postgres,
    },
    Package {
        // Debian puts it where only root looks.
        name: "pgbouncer",
        there: || Path::new("/usr/sbin/pgbouncer").exists() || shell::has("pgbouncer"),
    },
    Package {
        name: "age",
        there: || shell::has("age") && shell::has("age-keygen"),
    },
    Package {
        name: "zstd",
        there: || shell::has("zstd"),
    },
    Package {
        // `kill`, by which tests and demo stop servers; a minimal Debian has it only within its shells.
        name: "procps",
        there: || shell::has("kill"),
    },
    Package {
        // A file system that folds names, which few kernels have.
        name: "ntfs-3g",
        there: || Path::new("/sbin/mkntfs").exists() && shell::has("lowntfs-3g"),
    },
    Package {
        name: "openssh-client",
        there: || shell::has("ssh-keygen"),
    },
    Package {
        name: "minisign",
        there: || shell::has("minisign"),
    },
    Package {
        name: "nodejs",
        there: || shell::has("node"),
    },
    Package {
        name: "npm",
        there: || shell::has("npm"),
    },
    Package {
        name: "python3-venv",
        there: || python("import venv, ensurepip"),
    },
    Package {
        name: "libmagic1",
        there: || python("import ctypes.util, sys; sys.exit(ctypes.util.find_library('magic') is None)"),
    },
];

/// What only the benchmarks compare with.
pub const PEERS: &[Package] = &[
    Package {
        name: "restic",
        there: || shell::has("restic"),
    },
    Package {
        name: "borgbackup",
        there: || shell::has("borg"),
    },
];

fn postgres() -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .map(|entry| entry.path().join("bin/initdb"))
        .any(|path| path.is_file())
        || shell::has("initdb")
}

fn python(code: &str) -> bool {
    let run = Command::new("python3")
        .args(["-c", code])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    run.is_ok_and(|status| status.success())
}

/// Sets up the machine; `more` are packages only this chore needs.
pub fn run(more: &[Package]) -> Result {
    packages(more)?;
    wasm_target()?;
    for environment in Environment::ALL {
        match environment.prepare()? {
            Prepared::WasThere => println!("python: {} is there", environment.name()),
            Prepared::Made => println!(
                "python: {} installed in {}",
                environment.name(),
                environment.home().display()
            ),
        }
    }
    for release in Release::ALL {
        match release.prepare() {
            Ok(Prepared::WasThere) => println!("postgres: {} is there", release.major),
            Ok(Prepared::Made) => println!("postgres: {} installed", release.major),
            // Not every machine's architecture has a package. Only the tests of this major need it, and say so.
            Err(why) => println!(
                "postgres: {} is not to be had here, its tests will fail: {why}",
                release.major
            ),
        }
    }
    let made = match essrun_testkit::node::prepare()? {
        Prepared::WasThere => "are there",
        Prepared::Made => "installed",
    };
    println!("node: what makes plugins of JavaScript: packages {made}");
    Ok(())
}

fn packages(more: &[Package]) -> Result {
    let missing: Vec<&str> = ALWAYS
        .iter()
        .chain(more)
        .filter(|p| !(p.there)())
        .map(|p| p.name)
        .collect();
    if missing.is_empty() {
        println!("packages: all are there");
        return Ok(());
    }
    let list = missing.join(" ");
    if !shell::has("apt-get") {
        return Err(Problem::Other(format!(
            "these are missing (by their Debian names): {list}\n  hint: install them, then run this again"
        )));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Problem::Other(format!(
            "these packages are missing: {list}\n  hint: sudo apt-get install --no-install-recommends {list}"
        )));
    }
    shell::show(Command::new("apt-get").args(["update", "-q"]).stdout(Stdio::null()))?;
    shell::show(
        Command::new("apt-get")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null()),
    )?;
    let still: Vec<&str> = ALWAYS
        .iter()
        .chain(more)
        .filter(|p| !(p.there)())
        .map(|p| p.name)
        .collect();
    if still.is_empty() {
        return Ok(());
    }
    Err(Problem::Other(format!(
        "still missing after apt-get install: {}",
        still.join(" ")
    )))
}

/// Built-in components are compiled to wasm by the build.
fn wasm_target() -> Result {
    const TARGET: &str = "wasm32-wasip2";
    let sysroot = shell::quiet(Command::new("rustc").args(["--print", "sysroot"]))?;
    let sysroot = String::from_utf8_lossy(&sysroot.stdout).trim().to_owned();
    if Path::new(&sysroot)
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib")
        .is_dir()
    {
        println!("rust: {TARGET} is there");
        return Ok(());
    }
    if !shell::has("rustup") {
        return Err(Problem::Other(format!(
            "rustc has no {TARGET} target and there is no rustup to add it"
        )));
    }
    shell::show(Command::new("rustup").args(["target", "add", TARGET]))
}
