//! `essrun policy accept pipeline.toml BACKUP --reason …`: a person says that a suspect backup is as it should be.

use crate::cli::PolicyAcceptArgs;
use crate::ui::Ui;
use essrun_pipeline::policy::accept;
use essrun_pipeline::{Pipeline, PipelineError};

pub async fn run(args: PolicyAcceptArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let accepted = accept::accept(&pipeline, &args.backup, &args.reason).await?;
    ui.answer(&accepted, || {
        format!(
            "backup {} is no longer suspect: {} says {:?}",
            accepted.backup, accepted.person, accepted.reason
        )
    });
    Ok(())
}
