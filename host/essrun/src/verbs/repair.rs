//! `essrun repair pipeline.toml`: what can be done about damage, and nothing that makes it worse; `--confirm` does it.

use crate::cli::RepairArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, upkeep};

pub async fn run(args: RepairArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let done = upkeep::repair(&pipeline, &args.identity, args.confirm).await?;
    ui.answer(&done, || done.text());
    Ok(())
}
