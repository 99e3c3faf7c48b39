//! `essrun plugin pin pipeline.toml [NAME]`: writes the hashes of plugins into the pipeline file.

use crate::cli::plugin::PinArgs;
use crate::ui::Ui;
use essrun_pipeline::PipelineError;
use essrun_pipeline::plugin::pin::{self, PinOptions};

pub async fn run(args: PinArgs, ui: &Ui) -> Result<(), PipelineError> {
    let options = PinOptions {
        component: args.component,
        confirm: args.confirm,
    };
    let pinned = pin::run(&args.pipeline, &options).await?;
    ui.answer(&pinned, || pinned.text());
    pinned.into_error()
}
