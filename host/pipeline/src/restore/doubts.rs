//! What is known against a backup before it is restored: a suspicion, a drill that failed, artifacts that are damaged.
//!
//! A suspicion and a failed drill are told, for the person to weigh: it may be the only backup there is. What cannot be
//! read any more forbids the restore of it, and of nothing else.

use super::plan::{Item, Precondition};
use crate::body::{Note, Severity};
use crate::error::PipelineError;
use crate::standing::Standing;
use crate::time::utc;
use essrun_repository::{OpenBackup, Repository};

/// The doubts about a backup as a whole.
pub(super) async fn of(repository: &Repository, backup: &OpenBackup) -> Result<Vec<Note>, PipelineError> {
    let standing = Standing::of(repository, backup.summary()).await?;
    Ok(said(&standing))
}

fn said(standing: &Standing) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut warn = |text| {
        notes.push(Note {
            severity: Severity::Warning,
            text,
        });
    };
    if !standing.suspect.is_empty() {
        warn(format!(
            "this backup is SUSPECT: {}; `essrun list` shows others, --backup ID takes one",
            standing.suspect.join("; ")
        ));
    }
    if let Some(drill) = standing.drill.as_ref().filter(|d| !d.passed) {
        let why = drill.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        warn(format!(
            "the last drill of this backup, {} UTC, FAILED with {} error(s){why}; `essrun list` shows which passed",
            utc(drill.at),
            drill.errors
        ));
    }
    notes
}

/// Whether something under a label cannot be read any more; told once, however many steps are about the label.
pub(super) fn damaged(item: &mut Item, label: &str, backup: &OpenBackup) -> bool {
    let name = item.loaded.name();
    let (exact, below) = (format!("{name}/{label}"), format!("{name}/{label}/"));
    let found: Vec<Precondition> = backup
        .damaged()
        .iter()
        .filter(|d| d.artifact == exact || d.artifact.starts_with(&below))
        .map(|d| Precondition {
            label: label.to_owned(),
            check: "damaged".into(),
            severity: Severity::Error,
            message: format!("{} cannot be read in full any more: {}", d.artifact, d.why),
            remedy:
                "another backup (`essrun list`, --backup ID) has it, or --only with the other components or labels \
                     goes without it"
                    .into(),
        })
        .collect();
    let any = !found.is_empty();
    if !item.findings.iter().any(|f| f.label == label && f.check == "damaged") {
        item.findings.extend(found);
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::DrillNote;
    use crate::standing::State;

    #[test]
    fn what_is_known_against_a_backup_is_told() {
        let mut standing = Standing {
            state: State::Normal,
            suspect: Vec::new(),
            body: None,
            drill: None,
        };
        assert!(said(&standing).is_empty());
        let drill = |passed| DrillNote {
            at: 0,
            passed,
            errors: usize::from(!passed),
            warnings: 0,
            why: (!passed).then(|| "a pack is gone".to_owned()),
            pace: None,
        };
        standing.drill = Some(drill(true));
        assert!(said(&standing).is_empty());
        standing.drill = Some(drill(false));
        standing.suspect = vec!["half the rows".into()];
        let said = said(&standing);
        assert!(said.iter().all(|n| n.severity == Severity::Warning));
        assert!(said[0].text.contains("SUSPECT: half the rows"), "{said:?}");
        assert!(
            said[1].text.contains("FAILED with 1 error(s): a pack is gone"),
            "{said:?}"
        );
    }
}
