//! `essrun repack pipeline.toml`: writes partly used packs anew, without what nothing needs; `--confirm` does it.

use crate::cli::RepackArgs;
use crate::ui::Ui;
use essrun_pipeline::upkeep::{self, Rewrite};
use essrun_pipeline::{Pipeline, PipelineError};

pub async fn run(args: RepackArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let what = Rewrite::Repack {
        unused_percent: args.unused,
    };
    let done = upkeep::rewrite(&pipeline, &args.identity, what, args.confirm, ui).await?;
    ui.answer(&done, || done.text());
    Ok(())
}
