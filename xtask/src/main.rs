//! The project's own chores, as `cargo xtask …`: set-up, tests, the demo, benchmarks, the gates of the contract and of the
//! arrows between crates.
//!
//! Every chore that needs something on the machine begins with `setup`, which installs only what is missing. Chores end
//! with a non-zero status when anything went wrong; nothing is skipped silently.
#![deny(unsafe_code)]

mod arrows;
mod bench;
mod demo;
mod setup;
mod shell;
mod test;
mod wit_check;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Chores of the essrun workspace",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what tests, demo and benchmarks need: Debian packages (as root), the wasm target, Python environments
    Setup,
    /// Set up, build everything, run all tests
    Test {
        /// Passed on to the test runner, after `--`
        #[arg(last = true)]
        runner: Vec<String>,
    },
    /// Set up, then back up a real Synapse, destroy it, restore it, and show that all came back
    Demo,
    /// Measure against the usual tools, in the same run
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Check the contract: documented, versioned, compatible with what was released
    WitCheck,
    /// Check which crates of host/ build upon which: the arrows point one way
    Arrows,
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Setup => setup::run(&[]),
        Chore::Test { runner } => test::run(&runner),
        Chore::Demo => demo::run(),
        Chore::Bench { what } => bench::run(what),
        Chore::WitCheck => wit_check::run(),
        Chore::Arrows => arrows::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("xtask: {problem}");
            ExitCode::FAILURE
        }
    }
}
