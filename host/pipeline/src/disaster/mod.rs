//! The runbook for the person at 3 a.m., who may never have seen essrun: what is lost, what is needed, in which order,
//! and the exact commands. Made from the pipeline, its components and one backup's manifest; meant to be printed and kept
//! with the identity, so it must never hold a secret.
//!
//! Its commands work with an identity and the repository alone: the host that took the backups, its writer key and what
//! it remembered are gone on that day. All of them name one backup, so that one taken meanwhile changes nothing.

pub(crate) mod html;
mod pieces;
pub(crate) mod text;
mod words;

use crate::body::BackupBody;
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::load::{self, Loaded};
use crate::order;
use crate::pace::{self, Estimate};
use crate::repo::{self, DrillNote};
use crate::report::Silent;
use crate::standing::Standing;
use essrun_artifact::{ArtifactRecord, BackupReader};
use essrun_postgres::dump::KIND_FACTS;
use essrun_repository::Repository;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Runbook {
    pub event: &'static str,
    pub pipeline: String,
    pub markdown: String,
}

/// What the runbook is written from.
struct Site<'a> {
    pipeline: &'a Pipeline,
    /// In the order they come back.
    loaded: Vec<Loaded>,
    /// Why components could not be asked what they need; the runbook is written all the same.
    unasked: Vec<String>,
    backup: Option<Known>,
}

/// What is known of the backup it names.
struct Known {
    id: String,
    body: BackupBody,
    suspect: Vec<String>,
    drill: Option<DrillNote>,
    /// The newest backup that passed a drill and is not suspect, where the named one is not.
    proved: Option<(String, i64)>,
    databases: Vec<DatabaseNeeds>,
    artifacts: Vec<ArtifactRecord>,
    estimate: Option<Estimate>,
}

/// What a server must have for one PostgreSQL database. Backups of essrun 0.1 before this was recorded say less.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DatabaseNeeds {
    #[serde(skip)]
    component: String,
    #[serde(skip)]
    label: String,
    database: String,
    server_version_number: u32,
    owner: Option<String>,
    roles: Vec<String>,
    encoding: Option<String>,
    collate: Option<String>,
    ctype: Option<String>,
    icu_locale: Option<String>,
    extensions: BTreeMap<String, String>,
}

/// Makes the runbook. Without any backup it still says what would be needed.
pub async fn runbook(pipeline: &Pipeline, wanted: &str, identity: &[PathBuf]) -> Result<Runbook, PipelineError> {
    let (loaded, unasked) = match load::each(pipeline, &[], &load::engine(pipeline)?, &Silent).await {
        Ok((loaded, failed)) => (loaded, failed.into_iter().map(|f| f.error.to_string()).collect()),
        Err(error) => (Vec::new(), vec![error.to_string()]),
    };
    let repository = repo::open_to_read(pipeline, identity).await?;
    let none_yet = repository
        .backups()
        .await
        .map_err(PipelineError::repository)?
        .is_empty();
    let site = Site {
        pipeline,
        loaded,
        unasked,
        backup: match none_yet {
            true => None,
            false => Some(known(pipeline, &repository, wanted).await?),
        },
    };
    Ok(Runbook {
        event: "runbook",
        pipeline: pipeline.name.clone(),
        markdown: words::write(&site)?,
    })
}

async fn known(pipeline: &Pipeline, repository: &Repository, wanted: &str) -> Result<Known, PipelineError> {
    let backup = repo::read(pipeline, repository, wanted).await?;
    let body = repo::body(backup.summary())?;
    let standing = Standing::of(repository, backup.summary()).await?;
    let proved = match standing.verified_at() {
        Some(_) => None,
        None => proved(pipeline, repository).await?,
    };
    let id = backup.summary().id.to_string();
    let mut known = Known::of(id, body, standing, backup.artifacts(), proved);
    let (files, rows): (Vec<_>, Vec<_>) = known.artifacts.iter().partition(|a| a.kind == essrun_volume::KIND);
    let bytes = |of: &[&ArtifactRecord]| of.iter().fold(0u64, |sum, a| sum.saturating_add(repo::size(a)));
    known.estimate = pace::estimate(repository, &pipeline.name, bytes(&rows), bytes(&files)).await?;
    Ok(known)
}

impl Known {
    fn of(
        id: String,
        mut body: BackupBody,
        standing: Standing,
        artifacts: &[ArtifactRecord],
        proved: Option<(String, i64)>,
    ) -> Known {
        order::recorded(&mut body, artifacts);
        let whole = artifacts.iter().filter(|a| body.failed(&a.name).is_none());
        let artifacts: Vec<ArtifactRecord> = whole.cloned().collect();
        Known {
            id,
            proved,
            suspect: standing.suspect,
            drill: standing.drill,
            databases: artifacts.iter().filter_map(DatabaseNeeds::of).collect(),
            body,
            artifacts,
            estimate: None,
        }
    }
}

/// The runbook of a backup whose components are not to be had.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn of_backup(
    pipeline: &Pipeline,
    id: String,
    body: BackupBody,
    standing: Standing,
    artifacts: &[ArtifactRecord],
) -> Result<String, PipelineError> {
    words::write(&Site {
        pipeline,
        loaded: Vec::new(),
        unasked: Vec::new(),
        backup: Some(Known::of(id, body, standing, artifacts, None)),
    })
}

/// The newest backup of this pipeline that passed a drill, and when.
async fn proved(pipeline: &Pipeline, repository: &Repository) -> Result<Option<(String, i64)>, PipelineError> {
    let backups = repository
        .backups_annotated()
        .await
        .map_err(PipelineError::repository)?;
    for (summary, notes) in backups.iter().rev() {
        let standing = Standing::with(summary, notes)?;
        let own = standing.body.as_ref().is_some_and(|b| b.pipeline == pipeline.name);
        if let (true, true, Some(at)) = (own, standing.suspect.is_empty(), standing.verified_at()) {
            return Ok(Some((summary.id.to_string(), at)));
        }
    }
    Ok(None)
}

impl DatabaseNeeds {
    fn of(record: &ArtifactRecord) -> Option<DatabaseNeeds> {
        if record.kind != KIND_FACTS {
            return None;
        }
        let mut parts = record.name.as_str().split('/');
        let mut needs: DatabaseNeeds = serde_json::from_value(record.meta.clone()).ok()?;
        needs.component = parts.next()?.to_owned();
        needs.label = parts.next()?.to_owned();
        Some(needs)
    }
}

impl Runbook {
    pub fn markdown(&self) -> String {
        self.markdown.clone()
    }

    /// Writes it as Markdown, or as HTML when the name ends in `.html`.
    pub fn write(&self, file: &Path) -> Result<(), PipelineError> {
        let text = match file.extension().and_then(|e| e.to_str()) {
            Some("html" | "htm") => html::html(&self.pipeline, &self.markdown),
            _ => self.markdown.clone(),
        };
        std::fs::write(file, text).map_err(|e| PipelineError::source(file.display().to_string(), e))
    }
}
