//! `essrun restore pipeline.toml`: plan, ask, restore beside the live system, verify, swap.

use crate::cli::RestoreArgs;
use crate::ui::Ui;
use essrun_pipeline::restore::{self, RestoreOptions, parse_target};
use essrun_pipeline::{Pipeline, PipelineError};
use std::sync::Arc;

pub async fn run(args: RestoreArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let targets = args.to.iter().map(|t| parse_target(t)).collect::<Result<_, _>>()?;
    let options = RestoreOptions {
        backup: args.which.backup,
        identities: args.which.identity,
        only: args.only,
        replace: args.replace,
        disconnect: args.disconnect,
        targets,
        resume: args.resume,
        allow_drift: args.allow_drift,
        keep_failed: args.keep_failed,
        dry_run: args.dry_run,
    };
    let prepared = restore::prepare(&pipeline, options, Arc::new(ui.clone())).await?;
    ui.answer(&prepared.summary(), || prepared.text());
    prepared.refuse_if_blocked()?;
    if args.dry_run {
        return Ok(());
    }
    let goes_ahead = args.yes || ui.json() || ui.confirm(&prepared.question());
    if !goes_ahead {
        return Err(PipelineError::refused(
            "not confirmed",
            "answer y, or give --yes where there is no terminal",
        ));
    }
    prepared.execute().await
}
