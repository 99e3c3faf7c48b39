//! `essrun plan pipeline.toml`: what a backup, a restore or the recovery of everything would do, and why.

use super::restore;
use crate::cli::{PlanArgs, RestoreChoice};
use crate::ui::Ui;
use essrun_pipeline::backup::{self, BackupOptions};
use essrun_pipeline::{Pipeline, PipelineError, disaster};
use std::sync::Arc;

pub async fn run(args: PlanArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    if args.restore {
        return restore::plan(&pipeline, args.choice, ui).await;
    }
    if let Some(given) = of_a_restore(&args.choice) {
        return Err(PipelineError::refused(
            format!("{given} is about a restore"),
            "plan one with --restore",
        ));
    }
    let (which, only) = (args.choice.which, args.choice.only);
    if args.disaster {
        if !only.is_empty() {
            return Err(PipelineError::refused(
                "--only is not about the recovery of everything",
                "leave it away, or plan a restore with --restore",
            ));
        }
        let runbook = disaster::runbook(&pipeline, &which.backup, &which.identity).await?;
        return match &args.output {
            None => {
                ui.answer(&runbook, || runbook.markdown());
                Ok(())
            }
            Some(file) => {
                runbook.write(file)?;
                ui.say(&format!(
                    "runbook written to {}; print it and keep it with the identity",
                    file.display()
                ));
                Ok(())
            }
        };
    }
    backup::run(
        &pipeline,
        BackupOptions {
            dry_run: true,
            only,
            ..BackupOptions::default()
        },
        Arc::new(ui.clone()),
    )
    .await
}

/// An argument that only the plan of a restore understands.
fn of_a_restore(choice: &RestoreChoice) -> Option<&'static str> {
    [
        (choice.replace, "--replace"),
        (choice.disconnect, "--disconnect"),
        (!choice.to.is_empty(), "--to"),
        (choice.allow_drift, "--allow-drift"),
        (choice.force_space, "--force-space"),
        (choice.keep_failed, "--keep-failed"),
        (choice.resume, "--resume"),
    ]
    .into_iter()
    .find_map(|(given, name)| given.then_some(name))
}
