//! `essrun diff pipeline.toml A B`: what changed between two backups.

use crate::cli::DiffArgs;
use crate::ui::Ui;
use essrun_pipeline::diff::{self, DiffOptions};
use essrun_pipeline::{Pipeline, PipelineError};

pub async fn run(args: DiffArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let options = DiffOptions {
        from: args.from,
        to: args.to,
        identities: args.identity,
        only: args.only,
        named_files: args.files,
    };
    let diff = diff::run(&pipeline, &options).await?;
    ui.answer(&diff, || diff.text());
    Ok(())
}
