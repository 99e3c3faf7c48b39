//! `essrun authorize pipeline.toml essrun-writer-…`: lets another host's writer key in; `--confirm` does it.

use crate::cli::AuthorizeArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, repo};

pub async fn run(args: AuthorizeArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let done = repo::authorize(&pipeline, &args.writer, args.confirm).await?;
    ui.answer(&done, || done.text());
    Ok(())
}
