//! `essrun prune pipeline.toml`: frees the space of what no backup needs, in two phases; `--confirm` does it.

use crate::cli::PruneArgs;
use crate::ui::Ui;
use essrun_pipeline::{Pipeline, PipelineError, retention};

pub async fn run(args: PruneArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let Some(grace) = retention::duration(&args.grace) else {
        return Err(PipelineError::refused(
            format!("--grace {:?} is no length of time", args.grace),
            "write days or hours: 7d, 36h",
        ));
    };
    let pruning = retention::prune(&pipeline, grace, args.confirm).await?;
    ui.answer(&pruning, || pruning.text());
    Ok(())
}
