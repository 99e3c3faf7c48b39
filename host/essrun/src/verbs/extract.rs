//! `essrun extract pipeline.toml ARTIFACT`: one artifact as SQL, COPY text or files, without any server.

use crate::cli::ExtractArgs;
use crate::ui::Ui;
use essrun_pipeline::extract::{self, ExtractOptions};
use essrun_pipeline::{Pipeline, PipelineError};

pub async fn run(args: ExtractArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let options = ExtractOptions {
        backup: args.which.backup,
        identities: args.which.identity,
        artifact: args.artifact,
        incomplete: args.incomplete,
        path: args.path,
        output: args.output,
    };
    // Where the data goes to standard output, nothing else may.
    let told = match options.output {
        Some(_) => ui.clone(),
        None => ui.beside_data(),
    };
    let done = extract::run(&pipeline, options, &told).await?;
    ui.say(&done);
    Ok(())
}
