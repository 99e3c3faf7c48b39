//! `essrun plugin new NAME`: a crate to start from.

use crate::cli::plugin::NewArgs;
use crate::ui::Ui;
use essrun_pipeline::PipelineError;
use essrun_pipeline::plugin::scaffold;
use std::path::Path;

pub fn run(args: NewArgs, ui: &Ui) -> Result<(), PipelineError> {
    let made = scaffold::run(Path::new(""), &args.name, &args.sdk)?;
    ui.answer(&made, || made.text());
    Ok(())
}
