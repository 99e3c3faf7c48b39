//! `essrun restore pipeline.toml`: plan, ask, restore beside the live system, verify, swap.

use crate::cli::{RestoreArgs, RestoreChoice};
use crate::ui::Ui;
use essrun_pipeline::restore::{self, RestoreOptions, parse_target};
use essrun_pipeline::{Pipeline, PipelineError};
use std::sync::Arc;

pub async fn run(args: RestoreArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    if args.dry_run {
        return plan(&pipeline, args.choice, ui).await;
    }
    let options = options(args.choice, false)?;
    let prepared = restore::prepare(&pipeline, options, Arc::new(ui.clone())).await?;
    ui.answer(&prepared.summary(), || prepared.text());
    prepared.refuse_if_blocked()?;
    if !args.yes && !ui.confirm(&prepared.question()) {
        return Err(PipelineError::refused(
            "not confirmed; nothing was changed",
            "answer y, or give --yes where there is no terminal",
        ));
    }
    prepared.execute().await
}

/// Says what a restore would do, and fails as it would at once.
pub async fn plan(pipeline: &Pipeline, choice: RestoreChoice, ui: &Ui) -> Result<(), PipelineError> {
    let options = options(choice, true)?;
    let prepared = restore::prepare(pipeline, options, Arc::new(ui.clone())).await?;
    ui.answer(&prepared.summary(), || prepared.text());
    prepared.refuse_if_blocked()
}

fn options(choice: RestoreChoice, dry_run: bool) -> Result<RestoreOptions, PipelineError> {
    let targets = choice.to.iter().map(|t| parse_target(t)).collect::<Result<_, _>>()?;
    Ok(RestoreOptions {
        backup: choice.which.backup,
        identities: choice.which.identity,
        only: choice.only,
        replace: choice.replace,
        disconnect: choice.disconnect,
        targets,
        resume: choice.resume,
        allow_drift: choice.allow_drift,
        force_space: choice.force_space,
        keep_failed: choice.keep_failed,
        dry_run,
    })
}
