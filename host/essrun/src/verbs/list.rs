//! `essrun list pipeline.toml`: the backups, oldest first.

use super::utc;
use crate::cli::ReadArgs;
use crate::ui::{Ui, human};
use essrun_pipeline::{Pipeline, PipelineError, repo};

pub async fn run(args: ReadArgs, ui: &Ui) -> Result<(), PipelineError> {
    let pipeline = Pipeline::load(&args.pipeline)?;
    let backups = repo::list(&pipeline, &args.identity).await?;
    if ui.json() {
        for backup in &backups {
            ui.answer(backup, String::new);
        }
        return Ok(());
    }
    if backups.is_empty() {
        ui.out("no backups yet");
        return Ok(());
    }
    let mut text = format!(
        "{:<26} {:<20} {:>11} {:>11}  {}\n",
        "backup", "taken (UTC)", "size", "stored", "components"
    );
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), human);
    for b in &backups {
        let mut line = format!(
            "{:<26} {:<20} {:>11} {:>11}  {}",
            b.id,
            utc(b.taken_at),
            size(b.bytes),
            size(b.stored_bytes),
            b.components.join(", ")
        );
        if !b.readable {
            line.push_str(&format!(
                "(of writer {}, not to be read here: no --identity opens it)",
                b.writer
            ));
        }
        if let Some(other) = b.pipeline.as_ref().filter(|name| **name != pipeline.name) {
            line.push_str(&format!("  (of pipeline {other})"));
        }
        if !b.missing.is_empty() {
            line.push_str(&format!("  INCOMPLETE, without {}", b.missing.join("; ")));
        }
        if !b.suspect.is_empty() {
            line.push_str(&format!("  SUSPECT: {}", b.suspect.join("; ")));
        }
        if b.lost_objects > 0 {
            line.push_str("  DAMAGED, `show` says what is lost");
        }
        match &b.drill {
            Some(drill) if drill.passed => line.push_str(&format!("  restored in a drill {}", utc(drill.at))),
            Some(drill) => line.push_str(&format!("  DRILL FAILED {}", utc(drill.at))),
            None => {}
        }
        text.push_str(&line);
        text.push('\n');
    }
    ui.out(&text);
    Ok(())
}
