//! `essrun policy test pipeline.toml|DIR`: the tests of a policy, in the interpreter that decides later.

use crate::cli::PolicyTestArgs;
use crate::ui::Ui;
use essrun_pipeline::PipelineError;
use essrun_pipeline::policy::test;

pub async fn run(args: PolicyTestArgs, ui: &Ui) -> Result<(), PipelineError> {
    let tested = test::run(&args.target).await?;
    if ui.json() {
        for one in &tested.tests {
            ui.answer(one, String::new);
        }
    }
    ui.answer(&tested, || tested.text());
    tested.into_error()
}
