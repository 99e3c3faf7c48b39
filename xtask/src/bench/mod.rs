//! Benchmarks against the tools people use now, in the same run, on the same server, taking turns.
//!
//! What counts are the ratios of medians: absolute times are this machine's. Peak memory is the largest sum of resident
//! memory of a command and everything it started, sampled while it runs; the server's own memory is nobody's.

mod database;
mod incremental;
mod index;
mod measure;
mod peers;

use crate::setup;
use crate::shell::{self, Problem, Result};
use database::World;
use measure::{Measured, median};
use std::path::PathBuf;
use std::process::Command;

#[derive(clap::Subcommand)]
pub enum Bench {
    /// Backup against `pg_dump -Fc -Z0 | zstd -3 -T2 | age`
    Backup(Options),
    /// Restore against `age -d | zstd -d` and `pg_restore -j2`
    Restore(Options),
    /// Both, on one database
    Both(Options),
    /// Makes the database once, then does what each line of standard input asks: `backup [ROUNDS]`, `restore [ROUNDS]`
    Repeat(Options),
    /// A day later, against restic and borg: bytes stored again, time, memory
    Incremental(incremental::Options),
    /// Backups of two databases under writers: causality in each, and what taking the instant and the fence cost
    Instant {
        /// Backups of each kind: of one server, and of two
        #[arg(long, default_value_t = 500)]
        backups: u32,
    },
}

/// The system test of the same, with so many backups; the figures are what it prints.
fn instant(backups: u32) -> Result {
    let binary = shell::essrun("release")?;
    let mut tests = shell::cargo();
    // With the features of the workspace, as all tests are built: those of the package alone would be built anew.
    tests.args(["test", "--workspace", "--test", "causality", "--"]);
    tests.args(["--nocapture", "--test-threads", "1"]);
    shell::show(
        tests
            .env("ESSRUN_BIN", binary)
            .env("INSTANT_BACKUPS", backups.to_string()),
    )
}

#[derive(clap::Args, Clone, Copy)]
pub struct Options {
    /// Events in the database; the default makes tables of more than 1.5 GB
    #[arg(long, default_value_t = 500_000)]
    events: u32,
    /// How often each side runs
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

pub fn run(what: Bench) -> Result {
    let peers = || -> Result<PathBuf> {
        setup::run(setup::PEERS)?;
        shell::essrun("release")
    };
    let (binary, options, backup, restore) = match what {
        Bench::Backup(options) => (peers()?, options, true, false),
        Bench::Restore(options) => (peers()?, options, false, true),
        Bench::Both(options) | Bench::Repeat(options) => (peers()?, options, true, true),
        Bench::Incremental(options) => {
            let binary = peers()?;
            return guarded(|| incremental::run(binary, options));
        }
        Bench::Instant { backups } => {
            setup::run(&[])?;
            return instant(backups);
        }
    };
    guarded(|| {
        let world = World::make(binary, options.events)?;
        first_run(&world)?;
        if let Bench::Repeat(_) = what {
            return repeat(&world, options.rounds);
        }
        if backup {
            compare_backups(&world, options.rounds)?;
        } else {
            // Something to restore from; the first run has made ours.
            shell::quiet(&mut peers::backup(&world))?;
        }
        if restore {
            compare_restores(&world, options.rounds)?;
        }
        Ok(())
    })
}

/// Servers are killed when their owners are dropped, which unwinding does; so set-up may panic.
fn guarded(work: impl FnOnce() -> Result + std::panic::UnwindSafe) -> Result {
    std::panic::catch_unwind(work).unwrap_or_else(|_| {
        Err(Problem::Other(
            "the benchmark could not be set up; the reason is above".to_owned(),
        ))
    })
}

/// A site's first run compiles its components, all others find them compiled: so it is no part of the comparison.
fn first_run(world: &World) -> Result {
    world.fresh_repository(false)?;
    let first = measure::run(&mut world.essrun(&["--json", "pipeline.toml"]), world.server())?;
    println!("\nfirst run, compiling components: {first}");
    Ok(())
}

fn repeat(world: &World, rounds: u32) -> Result {
    println!("ready: {}", world.address());
    for line in std::io::stdin().lines() {
        let line = line.map_err(|e| Problem::Other(format!("standard input: {e}")))?;
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let rounds = rest.parse().unwrap_or(rounds);
        let done = match word {
            "backup" => compare_backups(world, rounds),
            "restore" => compare_restores(world, rounds),
            "" => Ok(()),
            other => Err(Problem::Other(format!("`{other}`? Say backup or restore"))),
        };
        match done {
            Ok(()) => println!("done"),
            Err(e) => println!("{e}"),
        }
    }
    Ok(())
}

fn compare_backups(world: &World, rounds: u32) -> Result {
    println!("\nbackup, {rounds} rounds, taking turns");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let peer = measure::run(&mut peers::backup(world), world.server())?;
        println!("  round {round}: pg_dump | zstd | age   {peer}");
        world.fresh_repository(true)?;
        let own = measure::run(&mut world.essrun(&["--json", "pipeline.toml"]), world.server())?;
        println!("  round {round}: essrun                 {own}");
        theirs.push(peer);
        ours.push(own);
    }
    let stored = size(&[world.repository()])?;
    let peer_stored = size(&[world.peer_file()])?;
    println!(
        "  stored: essrun {} MB, peer {} MB (ratio {:.2})",
        stored / 1_000_000,
        peer_stored / 1_000_000,
        ratio(stored, peer_stored)
    );
    verdict("backup", &ours, &theirs, 0.5);
    Ok(())
}

fn compare_restores(world: &World, rounds: u32) -> Result {
    println!("\nrestore, {rounds} rounds, taking turns; ours also verifies and analyzes");
    let (mut ours, mut theirs, mut theirs_from_file, mut theirs_analyzed) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let unpacked = measure::run(&mut peers::unpack(world), world.server())?;
        world.new_database("peer")?;
        let loaded = measure::run(&mut peers::restore(world, "peer"), world.server())?;
        let analyzed = measure::run(&mut peers::analyze(world, "peer"), world.server())?;
        world.drop_database("peer")?;
        let whole = unpacked.then(&loaded);
        println!(
            "  round {round}: age -d | zstd -d, pg_restore -j2   {whole} (pg_restore alone {:.1} s; vacuumdb --analyze-only {:.1} s more)",
            loaded.seconds, analyzed.seconds
        );
        let target = world.restore_target(round);
        let own = measure::run(&mut world.essrun(&target.arguments()), world.server())?;
        println!("  round {round}: essrun restore                     {own}");
        world.check_restored(&target.database)?;
        world.drop_target(&target)?;
        theirs_analyzed.push(whole.then(&analyzed));
        theirs.push(whole);
        theirs_from_file.push(loaded);
        ours.push(own);
    }
    verdict("restore", &ours, &theirs, 0.7);
    verdict(
        "restore, against one that is analyzed as ours is",
        &ours,
        &theirs_analyzed,
        0.7,
    );
    verdict(
        "restore, against pg_restore alone from the unpacked file",
        &ours,
        &theirs_from_file,
        0.7,
    );
    Ok(())
}

fn verdict(what: &str, ours: &[Measured], theirs: &[Measured], aim: f64) {
    let seconds = |runs: &[Measured]| median(runs.iter().map(|m| m.seconds));
    let memory = |runs: &[Measured]| runs.iter().map(|m| m.peak_memory).max().unwrap_or(0) / 1_000_000;
    let cpu = |runs: &[Measured]| median(runs.iter().map(|m| m.cpu + m.server_cpu));
    let (own, peer) = (seconds(ours), seconds(theirs));
    println!(
        "{what}: essrun {own:.1} s, peer {peer:.1} s: ratio {:.2} (aim ≤ {aim}); processor time with the server's: ratio {:.2}; \
         peak memory {} MB (aim < 256), peer {} MB",
        own / peer,
        cpu(ours) / cpu(theirs),
        memory(ours),
        memory(theirs)
    );
}

fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

fn size(paths: &[PathBuf]) -> Result<u64> {
    let output = shell::quiet(Command::new("du").args(["-sb", "--total", "--"]).args(paths))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let total = text
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().next())
        .and_then(|n| n.parse().ok());
    total.ok_or_else(|| Problem::Other(format!("du said: {text}")))
}
