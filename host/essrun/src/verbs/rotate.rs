//! `essrun rotate pipeline.toml --output FILE`: a new writer key goes on where the present one ends; `--confirm` does it.

use crate::cli::RotateArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, upkeep};

pub async fn run(args: RotateArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let done = upkeep::rotate(&pipeline, &args.output, args.confirm).await?;
    ui.answer(&done, || done.text());
    Ok(())
}
