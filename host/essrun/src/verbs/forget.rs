//! `essrun forget pipeline.toml`: which backups `[retention]` keeps, and why; `--confirm` forgets the others.

use crate::cli::ForgetArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, retention};

pub async fn run(args: ForgetArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let forgetting = retention::forget(&pipeline, args.confirm).await?;
    ui.answer(&forgetting, || forgetting.text());
    forgetting.into_error()
}
