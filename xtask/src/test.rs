//! All tests, in one go: everything is built once, with the features of the whole workspace, then run.
//!
//! The runner's own summary is the last thing printed. `cargo nextest` is used where it is installed: each test has a
//! process of its own, so one that hangs or aborts is named. Documentation tests follow, which nextest does not run.
//! Nothing here changes Cargo.lock: what was tested is what is committed.

use crate::setup;
use crate::shell::{self, Result};

pub fn run(runner: &[String]) -> Result {
    setup::run(&[])?;
    // The essrun binary the system tests run, built with the same features as the tests so that nothing is built twice.
    shell::show(shell::cargo().args(["build", "--locked", "--workspace", "--bins", "--tests"]))?;
    let essrun = shell::target_dir("debug")?.join("essrun");
    let nextest = shell::has("cargo-nextest");
    let mut tests = shell::cargo();
    if nextest {
        tests.args([
            "nextest",
            "run",
            "--locked",
            "--workspace",
            "--bins",
            "--lib",
            "--tests",
        ]);
    } else {
        tests.args(["test", "--locked", "--workspace", "--bins", "--lib", "--tests"]);
    }
    shell::show(tests.args(runner).env("ESSRUN_BIN", &essrun))?;
    if !runner.is_empty() {
        return Ok(());
    }
    shell::show(
        shell::cargo()
            .args(["test", "--locked", "--workspace", "--doc", "--quiet"])
            .env("ESSRUN_BIN", &essrun),
    )
}
