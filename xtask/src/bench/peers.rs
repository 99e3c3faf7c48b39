//! What people do now, as they would write it.

use super::database::World;
use std::path::Path;
use std::process::Command;

/// A pipe in bash that fails when any part of it fails.
fn pipe(script: &str, arguments: &[&Path]) -> Command {
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("set -euo pipefail; {script}"), "bash"])
        .args(arguments);
    command
}

fn reach(command: &mut Command, world: &World) {
    for (key, value) in world.libpq() {
        command.env(key, value);
    }
}

pub fn backup(world: &World) -> Command {
    let pg_dump = world.program("pg_dump");
    let mut command = pipe(
        "\"$1\" -Fc -Z0 --exclude-table-data e2e_one_time_keys_json synapse | zstd -q -3 -T2 | age -r \"$(cat \"$2\")\" > \"$3\"",
        &[&pg_dump, &world.recipient_file(), &world.peer_file()],
    );
    reach(&mut command, world);
    command
}

pub fn unpack(world: &World) -> Command {
    pipe(
        "age -d -i \"$1\" \"$2\" | zstd -q -d > \"$3\"",
        &[&world.identity(), &world.peer_file(), &world.peer_unpacked()],
    )
}

pub fn restore(world: &World, database: &str) -> Command {
    let mut command = Command::new(world.program("pg_restore"));
    command
        .args(["-j2", "--exit-on-error", "-d", database])
        .arg(world.peer_unpacked());
    reach(&mut command, world);
    command
}

/// Statistics, without which a restored database answers slowly: PostgreSQL's manual asks for them after every restore.
pub fn analyze(world: &World, database: &str) -> Command {
    let mut command = Command::new(world.program("vacuumdb"));
    command.args(["--quiet", "--analyze-only", "-j2", "-d", database]);
    reach(&mut command, world);
    command
}
