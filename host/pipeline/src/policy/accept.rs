//! A person looked at a suspect backup and found it as it should be.
//!
//! Without this a policy that compares with the newest normal backup would find every later one odd as well, once a
//! table was emptied on purpose. What is kept is a signed note beside the backup: who said so, when and why.

use super::person;
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::standing::{ACCEPTED, Standing, State};
use crate::{keys, repo};
use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Accepted {
    pub event: &'static str,
    pub backup: String,
    pub person: String,
    pub reason: String,
    /// What was said against it.
    pub suspect: Vec<String>,
}

/// Calls a suspect backup good.
pub async fn accept(pipeline: &Pipeline, wanted: &str, reason: &str) -> Result<Accepted, PipelineError> {
    if reason.trim().is_empty() {
        return Err(PipelineError::refused(
            "no reason is given",
            "say in a few words why the backup is as it should be: --reason \"old rooms were purged\"",
        ));
    }
    let repository = repo::open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?;
    let backup = repo::read(pipeline, &repository, wanted).await?;
    let summary = backup.summary();
    let standing = Standing::of(&repository, summary).await?;
    if standing.state != State::Suspect {
        return Err(PipelineError::refused(
            format!("backup {} is not suspect", summary.id),
            "`essrun list` shows which are",
        ));
    }
    let person = person::asking();
    repository
        .annotate(
            &summary.id,
            ACCEPTED,
            serde_json::json!({"reason": reason, "person": person}),
        )
        .await
        .map_err(PipelineError::repository)?;
    Ok(Accepted {
        event: "accepted",
        backup: summary.id.to_string(),
        person,
        reason: reason.to_owned(),
        suspect: standing.suspect,
    })
}
