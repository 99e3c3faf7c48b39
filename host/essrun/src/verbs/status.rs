//! `essrun status pipeline.toml`: how old the newest backups are, the last drill, what is missing.

use crate::cli::ReadArgs;
use crate::ui::{Ui, human};
use essrun_pipeline::{Pipeline, PipelineError, status};

pub async fn run(args: ReadArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let status = status::status(&pipeline, &args.identity).await?;
    ui.answer(&status, || status.text(human));
    status.into_error()
}
