//! The host's own memory under everything the memory-hungry guests can do, measured as the kernel counted it. A file of
//! its own, because the peak belongs to the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_sandbox::{Limits, inspect_wasm};
use std::sync::Arc;
use std::time::Duration;

const MOST: u64 = 256 << 20;

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Functions in the file whose compiling is measured.
const MANY: usize = 29_000;

/// The test's own tools need much memory to write such a file; so another process does.
fn made_elsewhere(how: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.wasm");
    let mut maker = std::process::Command::new(std::env::current_exe().unwrap());
    maker.args(["--exact", how, "--ignored"]).env("MADE", &path);
    assert!(maker.output().unwrap().status.success());
    std::fs::read(path).unwrap()
}

#[test]
#[ignore = "a tool of the test below"]
fn make_many() {
    let functions = "(func (param i32) (result i32) (i32.mul (local.get 0) (i32.const 7)))".repeat(MANY);
    std::fs::write(std::env::var_os("MADE").unwrap(), guest(&functions, &[])).unwrap();
}

/// Instructions in each huge function, of seven bytes or more.
const HUGE: usize = 30_000;

#[test]
#[ignore = "a tool of the test below"]
fn make_huge() {
    // Every step uses what came before, so that nothing can be left out by the optimiser.
    let body = "(local.set 0 (i32.add (local.get 0) (i32.load (local.get 0))))".repeat(HUGE * 7 / 9);
    let functions = format!("(func (param i32) (result i32) {body} (local.get 0))").repeat(4);
    std::fs::write(std::env::var_os("MADE").unwrap(), guest(&functions, &[])).unwrap();
}

#[tokio::test]
async fn the_host_stays_small() {
    let touch = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (memory.fill (i32.const 65536) (i32.const 1) (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 65536)))
        (unreachable)";
    let bomb = guest("", &[("verify", touch)]);
    for _ in 0..4 {
        stopped(&bomb, "verify").await;
    }
    let after_bomb = peak();
    assert!(after_bomb > 64 << 20, "it did use what it may: {after_bomb}");

    let steps = "(i32.store (i32.const 2052) (i32.const 65536)) (i32.store (i32.const 2056) (i32.const 1500000)) (i32.const 2048)";
    stopped(
        &guest("(memory (export \"memory\") 1000)", &[("plan-backup", steps)]),
        "plan-backup",
    )
    .await;

    let query = "(call $query (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))";
    let read = format!(
        "{query} (loop $l (call $next (i32.load (i32.const 2052)) (i32.const 100000000) (i32.const 2064))
           (global.set $top (i32.const 65536)) (br_if $l (i32.eqz (i32.load8_u (i32.const 2064))))) (i32.const 1024)"
    );
    let long = Limits {
        cpu: Duration::from_secs(60),
        ..Limits::default()
    };
    let reader = load(&guest("", &[("verify", &read)]));
    call(
        &reader,
        "verify",
        &Arc::new(Fake {
            row_bytes: 100_000,
            ..Fake::default()
        }),
        &long,
    )
    .await
    .unwrap();
    call(&reader, "verify", &Fake::new(), &long).await.unwrap();

    println!("after looks {} MiB", peak() >> 20);
    // Files about as costly to compile as are let in: of very many functions, and of a few huge ones.
    let many = made_elsewhere("make_many");
    assert!(inspect_wasm(&many).unwrap().functions >= MANY as u64);
    call(&load(&many), "describe", &Fake::new(), &limits()).await.unwrap();
    println!("after many functions {} MiB", peak() >> 20);
    let huge = made_elsewhere("make_huge");
    assert!(huge.len() > 4 * HUGE * 7);
    call(&load(&huge), "describe", &Fake::new(), &limits()).await.unwrap();

    let peak = peak();
    assert!(peak < MOST, "peak of {} MiB", peak >> 20);
    println!("peak {} MiB", peak >> 20);
}
