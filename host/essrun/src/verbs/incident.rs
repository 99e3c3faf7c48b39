//! `essrun incident pipeline.toml BACKUP`: what a leaked backup gives away and what to do; `--apply` does what it can.

use crate::cli::IncidentArgs;
use crate::ui::Ui;
use essrun_pipeline::incident::{self, IncidentOptions, Step};
use essrun_pipeline::{Pipeline, PipelineError};
use std::sync::Arc;

pub async fn run(args: IncidentArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let options = IncidentOptions {
        backup: args.backup,
        identities: args.identity,
        only: args.only,
        apply: args.apply,
    };
    let plan = incident::plan(&pipeline, &options, Arc::new(ui.clone())).await?;
    ui.answer(&plan, || plan.text());
    if !args.apply {
        return Ok(());
    }
    plan.refuse_if_forbidden()?;
    for component in &plan.components {
        for step in &component.steps {
            let Step::Statement {
                database,
                sql,
                why,
                rows,
                ..
            } = step
            else {
                continue;
            };
            if rows.is_none() {
                ui.say(&format!(
                    "{}/{database}: skipped, the live database could not be asked: {sql}",
                    component.component
                ));
                continue;
            }
            if !args.yes {
                // Counted again: what was done before this step may have taken some of its rows.
                let rows = incident::recount(&pipeline, &component.component, step)
                    .await?
                    .unwrap_or(0);
                let question = format!(
                    "{why}\n  {sql}\n  in {}/{database}, {rows} rows. Run it?",
                    component.component
                );
                if !ui.confirm(&question) {
                    ui.say("skipped");
                    continue;
                }
            }
            if let Some(applied) = incident::apply(&pipeline, &plan, &component.component, step).await? {
                ui.answer(&applied, || {
                    format!("{}/{database}: {} rows: {sql}", component.component, applied.rows)
                });
            }
        }
    }
    Ok(())
}
