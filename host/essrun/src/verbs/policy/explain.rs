//! `essrun policy explain pipeline.toml [BACKUP]`: what the policy is told and what it answers.

use crate::cli::PolicyExplainArgs;
use crate::ui::Ui;
use essrun_pipeline::policy::explain::{self, ExplainOptions};
use essrun_pipeline::{Pipeline, PipelineError};
use std::sync::Arc;

pub async fn run(args: PolicyExplainArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let options = ExplainOptions {
        backup: args.backup,
        question: args.question.map(Into::into),
        identities: args.identity,
        replace: args.replace,
        verb: args.verb.into(),
        artifact: args.artifact,
    };
    for explained in explain::explain(&pipeline, options, Arc::new(ui.clone())).await? {
        ui.answer(&explained, || explained.text());
    }
    Ok(())
}
