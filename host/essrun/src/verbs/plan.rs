//! `essrun plan pipeline.toml`: what a backup, a restore or the recovery of everything would do, and why.

use crate::cli::PlanArgs;
use crate::ui::Ui;
use essrun_pipeline::backup::{self, BackupOptions};
use essrun_pipeline::restore::{self, RestoreOptions};
use essrun_pipeline::{Pipeline, PipelineError, disaster};
use std::sync::Arc;

pub async fn run(args: PlanArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    if args.disaster {
        let runbook = disaster::runbook(&pipeline, &args.which.backup, &args.which.identity).await?;
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
    if args.restore {
        let options = RestoreOptions {
            backup: args.which.backup,
            identities: args.which.identity,
            dry_run: true,
            ..RestoreOptions::default()
        };
        let prepared = restore::prepare(&pipeline, options, Arc::new(ui.clone())).await?;
        ui.answer(&prepared.summary(), || prepared.text());
        return Ok(());
    }
    backup::run(
        &pipeline,
        BackupOptions {
            dry_run: true,
            ..BackupOptions::default()
        },
        Arc::new(ui.clone()),
    )
    .await
}
