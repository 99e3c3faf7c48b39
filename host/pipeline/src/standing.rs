//! How a backup stands: whole, incomplete or suspect; proved by a drill or not.
//!
//! Three things make it: what the manifest says, what a policy said when it was taken, and what was noted beside it
//! since. Every verb that weighs backups asks here, so that list, status, forget and a policy never differ.

use crate::body::{BackupBody, Judgement};
use crate::error::PipelineError;
use crate::repo::{self, DrillNote};
use essrun_repository::{Annotation, BackupSummary, Repository};
use serde::Serialize;

/// The annotation that calls a backup suspect.
pub const SUSPECT: &str = "suspect";
/// The annotation of a person who looked at a suspect backup and found it good.
pub const ACCEPTED: &str = "accepted";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Normal,
    /// Components are missing from it.
    Incomplete,
    /// Something is odd about its contents.
    Suspect,
}

/// What is known of a backup.
#[derive(Debug, Clone)]
pub struct Standing {
    pub state: State,
    /// Why it is suspect.
    pub suspect: Vec<String>,
    /// What the pipeline stored; `None` where no key here opens it, and nothing is known against it.
    pub body: Option<BackupBody>,
    pub drill: Option<DrillNote>,
}

impl Standing {
    /// Asks the repository.
    pub async fn of(repository: &Repository, summary: &BackupSummary) -> Result<Standing, PipelineError> {
        let notes = repository
            .annotations(&summary.id)
            .await
            .map_err(PipelineError::repository)?;
        Standing::with(summary, &notes)
    }

    /// Of one whose annotations are at hand: for lists, which ask for all at once.
    pub fn with(summary: &BackupSummary, notes: &[Annotation]) -> Result<Standing, PipelineError> {
        let body = match summary.body {
            Some(_) => Some(repo::body(summary)?),
            None => None,
        };
        Standing::from_notes(body, notes)
    }

    /// Of a result that is about to be committed.
    pub fn of_result(body: BackupBody) -> Standing {
        Standing {
            state: match body.missing().is_empty() {
                true => State::Normal,
                false => State::Incomplete,
            },
            suspect: Vec::new(),
            drill: None,
            body: Some(body),
        }
    }

    fn from_notes(body: Option<BackupBody>, notes: &[Annotation]) -> Result<Standing, PipelineError> {
        let incomplete = body.as_ref().is_some_and(|b| !b.missing().is_empty());
        // Of an acceptance and a suspicion in one second the suspicion counts: which came last is not known.
        let accepted = notes.iter().filter(|n| n.kind == ACCEPTED).map(|n| n.created_at).max();
        let judged = body
            .as_ref()
            .and_then(|b| b.judgement.as_ref())
            .filter(|j| j.suspect && accepted.is_none());
        let mut suspect: Vec<String> = judged.map(Judgement::words).unwrap_or_default();
        suspect.extend(
            notes
                .iter()
                .filter(|n| n.kind == SUSPECT && accepted.is_none_or(|at| n.created_at >= at))
                .map(|n| reason(&n.body)),
        );
        Ok(Standing {
            state: match (suspect.is_empty(), incomplete) {
                (false, _) => State::Suspect,
                (true, true) => State::Incomplete,
                (true, false) => State::Normal,
            },
            suspect,
            drill: repo::drill_note(notes)?,
            body,
        })
    }

    /// When a drill last proved it.
    pub fn verified_at(&self) -> Option<i64> {
        self.drill.as_ref().filter(|d| d.passed).map(|d| d.at)
    }
}

fn reason(note: &serde_json::Value) -> String {
    match note.get("reason").and_then(serde_json::Value::as_str) {
        Some(text) => text.to_owned(),
        None => "it was marked by hand".to_owned(),
    }
}
