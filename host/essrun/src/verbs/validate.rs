//! `essrun validate pipeline.toml`: would a backup work? Opens everything, takes nothing.

use crate::cli::PipelineArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, validate};
use std::sync::Arc;

pub async fn run(args: PipelineArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let report = validate::run(&pipeline, Arc::new(ui.clone())).await?;
    ui.answer(&report, || report.text());
    report.into_error()
}
