//! essrun: the command line.
//!
//! One file per verb under `verbs/`; each turns arguments into one call of the pipeline room and its answer into text
//! or JSON. Nothing is decided here that a library user would need. What is printed on stdout is the answer; progress
//! and log go to stderr, so that answers can be piped. With `--json` stdout carries one JSON object per line.
#![deny(unsafe_code)]

mod cli;
mod memory;
mod ui;
mod verbs;

use clap::Parser;
use essrun_pipeline::{Exit, PipelineError};
use std::process::ExitCode;

fn main() -> ExitCode {
    memory::few_arenas();
    let cli = match cli::Cli::try_parse_from(cli::with_default_verb(std::env::args_os())) {
        Ok(cli) => cli,
        Err(e) => {
            let wanted = !e.use_stderr();
            // Nothing sensible is left to do when the terminal is gone.
            let _ = e.print();
            return ExitCode::from(if wanted { Exit::Done.code() } else { Exit::Usage.code() });
        }
    };
    let ui = ui::Ui::new(&cli.global);
    ui.log_to_stderr(cli.global.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return ended(&ui, Err(PipelineError::Internal(format!("no async runtime: {e}")))),
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = verbs::run(cli.verb, &ui) => result,
            () = interrupted() => Err(PipelineError::Interrupted),
        }
    });
    // Blocking threads (walks, compression) may be mid-file; what they write is not committed and will be found again.
    runtime.shutdown_background();
    ended(&ui, result)
}

/// Resolves on SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut int), Ok(mut term)) => {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}

fn ended(ui: &ui::Ui, result: Result<(), PipelineError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(Exit::Done.code()),
        Err(e) => {
            ui.error(&e);
            ExitCode::from(e.exit().code())
        }
    }
}
