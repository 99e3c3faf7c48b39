//! Compiles the components to wasm with a cargo of their own, and writes the table that embeds them.
//!
//! A nested cargo must not share anything with the outer one: it gets its own target directory (the outer one is
//! locked while this script runs), and none of the outer build's flags and wrappers, which are meant for the host's
//! own target. A component is any crate under components/ whose name begins with `essrun-component-`, an interpreter of
//! policies one whose name begins with `essrun-policy-`.

use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-wasip2";
/// What a crate's name begins with, and the table it is put into.
const TABLES: [(&str, &str); 2] = [("essrun-component-", "COMPONENTS"), ("essrun-policy-", "POLICIES")];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() {
    if let Err(e) = build() {
        // Cargo shows what a failed build script says; there is nobody else to tell.
        eprintln!("essrun-builtin: {e}");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = here.join("../..").canonicalize()?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    for watched in ["components", "guest-sdk", "wit", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }

    let packages = packages(&root)?;
    let target_dir = target_dir(&out);
    compile(&root, &target_dir, &packages)?;

    let mut text = String::new();
    for (prefix, table) in TABLES {
        writeln!(text, "static {table}: &[BuiltIn] = &[")?;
        for package in &packages {
            let Some(name) = package.strip_prefix(prefix) else {
                continue;
            };
            let file = format!("{package}.wasm").replace('-', "_");
            let built = target_dir.join(TARGET).join("component").join(file);
            let wasm = fs::read(&built).map_err(|e| format!("{}: {e}", built.display()))?;
            // A copy in OUT_DIR: what is embedded must be what was hashed, also when somebody cleans the nested directory.
            let kept = out.join(format!("{package}.wasm"));
            fs::write(&kept, &wasm)?;
            writeln!(
                text,
                "    BuiltIn {{ name: {name:?}, wasm: include_bytes!({kept:?}), sha256: {:?} }},",
                hex::encode(Sha256::digest(&wasm))
            )?;
        }
        text.push_str("];\n");
    }
    fs::write(out.join("all.rs"), text)?;
    Ok(())
}

fn variable(name: &str) -> Result<std::ffi::OsString> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set; this script is run by cargo").into())
}

/// The names of the crates to embed, in order.
fn packages(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("components"))? {
        let manifest = entry?.path().join("Cargo.toml");
        if !manifest.is_file() {
            continue;
        }
        let text = fs::read_to_string(&manifest)?;
        let parsed: toml::Table = text.parse().map_err(|e| format!("{}: {e}", manifest.display()))?;
        let name = parsed
            .get("package")
            .and_then(|p| p.get("name"))
            .and_then(|n| n.as_str());
        if let Some(name) = name.filter(|n| TABLES.iter().any(|(prefix, _)| n.starts_with(prefix))) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A directory beside the outer build's profiles, so that debug and release builds share it; OUT_DIR if the layout is
/// not the known one.
fn target_dir(out: &Path) -> PathBuf {
    let profile = out
        .ancestors()
        .find(|a| a.file_name() == Some(OsStr::new("build")))
        .and_then(Path::parent);
    match profile.and_then(Path::parent) {
        Some(target) => target.join("components"),
        None => out.join("components"),
    }
}

fn compile(root: &Path, target_dir: &Path, names: &[String]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args([
        "build",
        "--quiet",
        "--lib",
        "--profile",
        "component",
        "--target",
        TARGET,
    ]);
    command.arg("--target-dir").arg(target_dir);
    for name in names {
        command.arg("--package").arg(name);
    }
    for (key, value) in env::vars_os() {
        let Some(key) = key.to_str() else { continue };
        if is_outer_builds(key, &value) {
            command.env_remove(key);
        }
    }
    let output = command.output().map_err(|e| format!("cannot run cargo: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("can't find crate for `core`") || said.contains("can't find crate for `std`") {
        return Err(format!(
            "the built-in components need the Rust target {TARGET}, which is not installed; run `rustup target add {TARGET}`\n{said}"
        )
        .into());
    }
    Err(format!("compiling the components for {TARGET} failed:\n{said}").into())
}

/// Whether a variable speaks of the outer build and must not reach the nested one. What says where crates come from
/// (CARGO_HOME, CARGO_NET_…, CARGO_REGISTRIES_…, CARGO_HTTP_…, CARGO_SOURCE_…) stays, and so does a compile cache.
fn is_outer_builds(key: &str, value: &OsStr) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_HTTP_",
        "CARGO_SOURCE_",
        "CARGO_MAKEFLAGS",
    ];
    match key {
        "RUSTC_WRAPPER" => !Path::new(value)
            .file_stem()
            .is_some_and(|s| s == "sccache" || s == "ccache"),
        "RUSTFLAGS"
        | "RUSTDOCFLAGS"
        | "RUSTC"
        | "RUSTDOC"
        | "RUSTC_WORKSPACE_WRAPPER"
        | "CLIPPY_ARGS"
        | "CLIPPY_CONF_DIR"
        | "TARGET"
        | "HOST"
        | "OPT_LEVEL"
        | "PROFILE"
        | "DEBUG"
        | "OUT_DIR"
        | "NUM_JOBS"
        | "RUSTC_LINKER" => true,
        _ => key.starts_with("CARGO") && !KEPT.iter().any(|k| key.starts_with(k)),
    }
}
