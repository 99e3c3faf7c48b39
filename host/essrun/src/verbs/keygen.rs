//! `essrun keygen identity|writer`: the two keys, made apart because they must be kept apart.

use crate::cli::{Keygen, KeygenArgs};
use crate::ui::Ui;
use essrun_pipeline::{PipelineError, keys};

pub fn run(args: KeygenArgs, ui: &Ui) -> Result<(), PipelineError> {
    match args.what {
        Keygen::Identity { output } => {
            let recipient = keys::new_identity(&output)?;
            ui.answer(
                &serde_json::json!({"event": "identity", "file": output, "recipient": recipient}),
                || recipient.clone(),
            );
            ui.say(&format!(
                "The identity is in {}. It alone opens backups: copy it to two safe places away from this host, then \
                 delete it here. Put the recipient above into pipeline.toml.",
                output.display()
            ));
        }
        Keygen::Writer { output } => {
            let public = keys::new_writer(&output)?;
            ui.answer(
                &serde_json::json!({"event": "writer-key", "file": output, "public": public}),
                || format!("writer key: {}\npublic: {public}", output.display()),
            );
            ui.say(
                "It stays on the backup host. It signs backups and recognises what is already stored; it opens no backup.",
            );
        }
    }
    Ok(())
}
