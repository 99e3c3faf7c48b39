//! `essrun check pipeline.toml`: is the repository what its signed lists say, down to the last byte?

use crate::cli::CheckArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, repo};

pub async fn run(args: CheckArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let subset = args.subset.as_deref().map(repo::parse_subset).transpose()?;
    let report = repo::check(&pipeline, &args.identity, subset).await?;
    ui.answer(&report, || report.text());
    report.into_error()
}
