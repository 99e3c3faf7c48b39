//! `essrun drill pipeline.toml`: a restore into scratch, verified, dropped again; its result is kept beside the backup.

use crate::cli::DrillArgs;
use crate::ui::Ui;
use essrun_pipeline::drill::{self, DrillOptions};
use essrun_pipeline::{Pipeline, PipelineError};
use std::sync::Arc;

pub async fn run(args: DrillArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let options = DrillOptions {
        backup: args.which.backup,
        identities: args.which.identity,
        only: args.only,
        scratch: args.scratch,
        force_space: args.force_space,
    };
    let result = drill::run(&pipeline, options, Arc::new(ui.clone())).await?;
    ui.answer(&result, || result.text());
    result.into_error()
}
