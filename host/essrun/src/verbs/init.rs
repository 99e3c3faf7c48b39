//! `essrun init pipeline.toml`: creates the repository, or says that an existing one lets this host in.

use crate::cli::PipelineArgs;
use crate::ui::Ui;
use essrun_pipeline::repo::{self, Initialised};
use essrun_pipeline::{Pipeline, PipelineError};

pub async fn run(args: PipelineArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let (joined, words) = match repo::init(&pipeline).await? {
        Initialised::Created => (false, "repository created"),
        Initialised::Joined => (true, "there is a repository, and it knows this host's writer key"),
    };
    ui.answer(
        &serde_json::json!({"event": "initialised", "repository": pipeline.repository.url, "joined": joined}),
        || format!("{words}: {}", pipeline.repository.url),
    );
    Ok(())
}
