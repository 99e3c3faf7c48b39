//! `essrun plugin inspect x.wasm`: what it is and asks for, before anybody trusts it.

use crate::cli::plugin::InspectArgs;
use crate::ui::Ui;
use essrun_pipeline::{PipelineError, plugin::inspect};

pub async fn run(args: InspectArgs, ui: &Ui) -> Result<(), PipelineError> {
    let limits = if args.large { inspect::large() } else { inspect::usual() };
    let inspected = inspect::run(&args.plugin, &limits).await?;
    ui.answer(&inspected, || inspected.text());
    inspected.into_error()
}
