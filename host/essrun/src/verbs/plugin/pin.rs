//! `essrun plugin pin pipeline.toml [NAME]`: writes the hashes of plugins, components or the policy, into the pipeline file.

use crate::cli::plugin::PinArgs;
use crate::ui::Ui;
use essrun_pipeline::PipelineError;
use essrun_pipeline::plugin::pin::{self, PinOptions, What};

pub async fn run(args: PinArgs, ui: &Ui) -> Result<(), PipelineError> {
    let only = match (args.component, args.policy) {
        (Some(component), _) => Some(What::Component { component }),
        (None, true) => Some(What::Policy),
        (None, false) => None,
    };
    let options = PinOptions {
        only,
        confirm: args.confirm,
    };
    let pinned = pin::run(&args.pipeline, &options).await?;
    ui.answer(&pinned, || pinned.text());
    pinned.into_error()
}
