//! `essrun forget pipeline.toml`: which backups `[retention]` keeps, and why; `--confirm` forgets the others; `--undo BACKUP` brings
//! a forgotten one back.

use crate::cli::ForgetArgs;
use crate::ui::Ui;
use essrun_pipeline::retention::{self, ForgetOptions};
use essrun_pipeline::{Pipeline, PipelineError};

pub async fn run(args: ForgetArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    if let Some(wanted) = &args.undo {
        let Some(grace) = retention::duration(&args.grace) else {
            return Err(PipelineError::refused(
                format!("--grace {:?} is no length of time", args.grace),
                "write days or hours: 7d, 36h",
            ));
        };
        let backup = retention::unforget(&pipeline, wanted, grace).await?;
        ui.answer(&serde_json::json!({"event": "unforget", "backup": backup}), || {
            format!("backup {backup} is back\n")
        });
        return Ok(());
    }
    let options = ForgetOptions {
        of_writer: args.of,
        identities: args.identity,
        confirm: args.confirm,
    };
    let forgetting = retention::forget(&pipeline, &options).await?;
    ui.answer(&forgetting, || forgetting.text());
    forgetting.into_error()
}
