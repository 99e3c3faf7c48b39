//! `essrun backup pipeline.toml`, or just `essrun pipeline.toml`.

use crate::cli::BackupArgs;
use crate::ui::Ui;
use essrun_pipeline::backup::{self, BackupOptions};
use essrun_pipeline::{Pipeline, PipelineError};
use std::sync::Arc;

pub async fn run(args: BackupArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let options = BackupOptions {
        dry_run: args.dry_run,
        rescan: args.rescan,
        only: args.only,
    };
    backup::run(&pipeline, options, Arc::new(ui.clone())).await
}
