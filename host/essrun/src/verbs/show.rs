//! `essrun show pipeline.toml`: everything one backup says about itself, in words.

use crate::cli::ShowArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, repo};

pub async fn run(args: ShowArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let shown = repo::show(&pipeline, &args.which.backup, &args.which.identity).await?;
    ui.answer(&shown, || shown.text(args.artifacts));
    Ok(())
}
