//! Which part of WASI a guest gets: what Rust's standard library needs to start, to panic and to hash, and no more.
//!
//! Measured on a component built for wasm32-wasip2 (Rust 1.95, serde_json, HashMap, eprintln): it imports
//! wasi:io/{error,poll,streams}, wasi:cli/{environment,exit,stdin,stdout,stderr,terminal-*} and
//! wasi:random/insecure-seed; clocks and random come in when used. wasi:filesystem comes in only with `std::fs`, and
//! wasi:sockets only with `std::net`: neither is linked, so such a component is refused by name when it is loaded.
//! What is linked leads nowhere: no arguments, no environment, stdin at its end, stdout thrown away, no terminal.
//!
//! Each interface is linked by itself. `wasmtime_wasi::p2::add_to_linker_async` would link files and sockets too.

use crate::host::State;
use crate::stderr::Tail;
use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView as _};
use wasmtime_wasi::p2::bindings::{cli, clocks, io, random};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView as _};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// Random bytes a guest may ask for at once; the host allocates them.
const RANDOM: u64 = 64 * 1024;

/// Interfaces of WASI a guest may import, any 0.2 version.
pub(crate) const LINKED: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];

struct Io;

impl HasData for Io {
    type Data<'a> = &'a mut ResourceTable;
}

/// A context that leads nowhere.
pub(crate) fn context(stderr: Tail) -> WasiCtx {
    WasiCtx::builder()
        .stderr(stderr)
        .max_random_size(RANDOM)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// Links the interfaces of [`LINKED`], one by one.
pub(crate) fn link(l: &mut Linker<State>) -> wasmtime::Result<()> {
    io::error::add_to_linker::<State, Io>(l, |s| s.ctx().table)?;
    io::poll::add_to_linker::<State, Io>(l, |s| s.ctx().table)?;
    io::streams::add_to_linker::<State, Io>(l, |s| s.ctx().table)?;
    clocks::wall_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
    clocks::monotonic_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
    random::random::add_to_linker::<State, WasiRandom>(l, |s| s.random())?;
    random::insecure::add_to_linker::<State, WasiRandom>(l, |s| s.random())?;
    random::insecure_seed::add_to_linker::<State, WasiRandom>(l, |s| s.random())?;
    cli::exit::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::environment::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_input::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    Ok(())
}

/// What having an interface would mean, for the message that refuses it.
pub(crate) fn meaning(import: &str) -> &'static str {
    let table: &[(&str, &str)] = &[
        (
            "wasi:filesystem/",
            "reading and writing files of the host; look into granted volumes through ess:inspect/volume",
        ),
        ("wasi:sockets/", "connections to other machines"),
        ("wasi:http/", "requests to other machines"),
        ("wasi:clocks/timezone", "the host's time zone"),
        ("wasi:cli/run", "being run as a program"),
        ("wasi:keyvalue/", "a key-value store"),
        (
            "wasi:config/",
            "the host's configuration; settings come through ess:inspect/settings",
        ),
        ("wasi:nn/", "machine learning on the host"),
        ("wasi:logging/", "a log of its own; write through ess:inspect/log"),
        (
            "wasi_snapshot_preview1",
            "WASI of the first generation; build for wasm32-wasip2",
        ),
        ("wasi:", "an interface of WASI that the sandbox does not have"),
        ("ess:", "an interface of essrun that this version does not have"),
    ];
    table
        .iter()
        .find(|(prefix, _)| import.starts_with(prefix))
        .map_or("nothing essrun knows", |(_, meaning)| *meaning)
}
