//! `essrun plugin …`: components that come from elsewhere.

mod inspect;
mod new;
mod pin;
mod test;

use crate::cli::plugin::{Plugin, PluginArgs};
use crate::ui::Ui;
use essrun_pipeline::PipelineError;

pub async fn run(args: PluginArgs, ui: &Ui) -> Result<(), PipelineError> {
    match args.what {
        Plugin::New(args) => new::run(args, ui),
        Plugin::Test(args) => test::run(args, ui).await,
        Plugin::Inspect(args) => inspect::run(args, ui).await,
        Plugin::Pin(args) => pin::run(args, ui).await,
    }
}
