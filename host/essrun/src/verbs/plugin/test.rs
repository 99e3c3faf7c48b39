//! `essrun plugin test x.wasm world.toml`: what it answers in a described world.

use crate::cli::plugin::TestArgs;
use crate::ui::Ui;
use essrun_pipeline::PipelineError;
use essrun_pipeline::plugin::trial::{self, TrialOptions};

pub async fn run(args: TestArgs, ui: &Ui) -> Result<(), PipelineError> {
    let options = TrialOptions {
        expect: args.expect,
        record: args.record,
    };
    let trial = trial::run(&args.plugin, &args.world, &options).await?;
    ui.answer(&trial.json(), || trial.text());
    trial.into_error()
}
