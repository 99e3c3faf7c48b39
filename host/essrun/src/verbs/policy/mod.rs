//! `essrun policy test|explain|accept`: policies tried out, asked why, and overruled in the open.

mod accept;
mod explain;
mod test;

use crate::cli::PolicyVerb;
use crate::ui::Ui;
use essrun_pipeline::PipelineError;

pub async fn run(verb: PolicyVerb, ui: &Ui) -> Result<(), PipelineError> {
    match verb {
        PolicyVerb::Test(args) => test::run(args, ui).await,
        PolicyVerb::Explain(args) => explain::run(args, ui).await,
        PolicyVerb::Accept(args) => accept::run(args, ui).await,
    }
}
