//! `essrun rekey pipeline.toml`: encrypts what lies there to the recipients of today; `--confirm` does it.

use crate::cli::RekeyArgs;
use crate::ui::Ui;
use essrun_pipeline::upkeep::{self, Rewrite};
use essrun_pipeline::{Pipeline, PipelineError};

pub async fn run(args: RekeyArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let done = upkeep::rewrite(&pipeline, &args.identity, Rewrite::Rekey, args.confirm, ui).await?;
    ui.answer(&done, || done.text());
    Ok(())
}
