//! `essrun init pipeline.toml`: creates the repository.

use crate::cli::PipelineArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, repo};

pub async fn run(args: PipelineArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    repo::init(&pipeline).await?;
    ui.answer(
        &serde_json::json!({"event": "initialised", "repository": pipeline.repository.url}),
        || format!("repository created: {}", pipeline.repository.url),
    );
    Ok(())
}
