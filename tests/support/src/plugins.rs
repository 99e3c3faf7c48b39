//! Plugins as a stranger would build them: the examples, with the tools of their languages.
//!
//! Each is built outside the workspace, from `examples/`, into `<workspace>/.essrun/plugins`; cargo and a lock file keep
//! two tests from building the same at once.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    let root = crate::scratch_root().join("plugins");
    std::fs::create_dir_all(&root).expect("a folder for plugins");
    root
}

/// Runs a tool to its end; panics with what it said when it fails.
#[track_caller]
pub fn tool(command: &mut Command) -> String {
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy().into_owned();
        // What cargo tells this test is not meant for another build.
        let ours = name == "CARGO_HOME" || name.starts_with("CARGO_NET_") || name.starts_with("CARGO_REGISTR");
        if (name.starts_with("CARGO") && !ours) || name.starts_with("RUSTFLAGS") || name.starts_with("ESSRUN_") {
            command.env_remove(key);
        }
    }
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}:\n{said}");
    said
}

/// Builds a crate as its README says: `cargo build --target wasm32-wasip2 --release`. Gives the .wasm file. The target
/// folder is shared, so that the dependencies are built once.
#[track_caller]
pub fn cargo_component(crate_dir: &Path) -> PathBuf {
    let target = root().join("target");
    tool(
        Command::new("cargo")
            .args([
                "build",
                "--quiet",
                "--target",
                "wasm32-wasip2",
                "--release",
                "--target-dir",
            ])
            .arg(&target)
            .current_dir(crate_dir),
    );
    let name = crate_dir.file_name().expect("a crate's folder").to_string_lossy();
    let file = target
        .join("wasm32-wasip2/release")
        .join(format!("{}.wasm", name.replace('-', "_")));
    assert!(file.is_file(), "cargo made no {}", file.display());
    file
}

/// Runs a crate's own tests, natively, as its author would; gives what cargo said. The target folder is the same.
#[track_caller]
pub fn cargo_test(crate_dir: &Path) -> String {
    tool(
        Command::new("cargo")
            .args(["test", "--target-dir"])
            .arg(root().join("target"))
            .current_dir(crate_dir),
    )
}

/// The component that does what its setting `deed` says, none of it good.
#[track_caller]
pub fn hostile() -> PathBuf {
    let target = root().join("target");
    tool(
        Command::new("cargo")
            .args([
                "build",
                "--quiet",
                "--lib",
                "--package",
                "essrun-hostile",
                "--target",
                "wasm32-wasip2",
            ])
            .args(["--profile", "component", "--target-dir"])
            .arg(&target)
            .current_dir(crate::workspace()),
    );
    target.join("wasm32-wasip2/component/essrun_hostile.wasm")
}

/// The example in Rust.
#[track_caller]
pub fn slack_bridge() -> PathBuf {
    cargo_component(&crate::workspace().join("examples/slack-bridge"))
}

/// The contract as tools for other languages want it: one folder, the packages it needs below `deps`.
fn contract(dir: &Path) -> PathBuf {
    let (wit, ours) = (dir.join("wit"), crate::workspace().join("wit"));
    for (from, to) in [("backup", wit.clone()), ("inspect", wit.join("deps/inspect"))] {
        std::fs::create_dir_all(&to).expect("a folder for the contract");
        for file in std::fs::read_dir(ours.join(from)).expect("wit/").flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy of the contract");
        }
    }
    wit
}

/// The example in Python, made by componentize-py.
#[track_caller]
pub fn slack_bridge_python(dir: &Path) -> PathBuf {
    let file = dir.join("slack_python.wasm");
    let program = crate::python::Environment::Plugins
        .python()
        .with_file_name("componentize-py");
    tool(
        Command::new(program)
            .arg("-d")
            .arg(contract(dir))
            .args(["-w", "component", "componentize", "--stub-wasi", "-p"])
            .arg(crate::workspace().join("examples/slack-bridge-python"))
            .args(["slack_bridge", "-o"])
            .arg(&file)
            .current_dir(dir),
    );
    file
}

/// The example in JavaScript, made by componentize-qjs.
#[track_caller]
pub fn slack_bridge_javascript(dir: &Path) -> PathBuf {
    let file = dir.join("slack_javascript.wasm");
    let example = crate::workspace().join("examples/slack-bridge-javascript/slack-bridge.js");
    tool(
        Command::new(crate::node::program("componentize-qjs"))
            .arg("--wit")
            .arg(contract(dir))
            .args(["--world", "component", "--sync", "--stub-wasi", "--opt-size", "--js"])
            .arg(example)
            .arg("--output")
            .arg(&file)
            .current_dir(dir),
    );
    file
}
