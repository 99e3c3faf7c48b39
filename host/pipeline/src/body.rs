//! What a backup says about itself: the pipeline's part of the manifest.
//!
//! The repository keeps it without looking inside. It is read back by every verb that shows or restores, possibly
//! years later by a newer essrun: fields are only ever added, and unknown ones are ignored.

use essrun_artifact::ArtifactName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const BODY_VERSION: u32 = 1;

/// The pipeline's part of a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackupBody {
    pub version: u32,
    /// `name` of the pipeline file.
    pub pipeline: String,
    /// The machine that took it.
    pub host: String,
    /// Version of essrun.
    pub essrun: String,
    /// Seconds since 1970-01-01 UTC.
    pub started_at: i64,
    pub finished_at: i64,
    pub components: Vec<ComponentBody>,
    /// Which databases were taken at one instant, and how that was reached.
    #[serde(default)]
    pub instants: Vec<Instant>,
    /// What the policy said of it, before it was committed; absent where none was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
}

/// Whether a result was found normal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    pub suspect: bool,
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Why there was no answer, which counts as suspect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl BackupBody {
    /// Names and reasons of components that are not in this backup although the pipeline asked for them.
    pub fn missing(&self) -> Vec<String> {
        self.components
            .iter()
            .filter_map(|c| c.failed.as_ref().map(|why| format!("{}: {why}", c.name)))
            .collect()
    }

    /// Why the component an artifact belongs to failed. What it had finished before is in the backup, each artifact whole;
    /// what belongs together is not, so no restore takes it.
    pub fn failed(&self, artifact: &ArtifactName) -> Option<&str> {
        self.component(artifact.component())?.failed.as_deref()
    }

    pub fn component(&self, name: &str) -> Option<&ComponentBody> {
        self.components.iter().find(|c| c.name == name)
    }
}

impl Judgement {
    /// The reasons, never none.
    pub fn words(&self) -> Vec<String> {
        match &self.failure {
            Some(failure) => vec![format!("the policy gave no answer: {failure}")],
            None if self.reasons.is_empty() => vec!["the policy gives no reason".to_owned()],
            None => self.reasons.clone(),
        }
    }
}

/// One component's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentBody {
    pub name: String,
    pub system: String,
    pub tier: Tier,
    /// What is lost without it, in the component's words.
    #[serde(default)]
    pub loss: String,
    pub component_version: String,
    pub wasm_sha256: String,
    /// Why it is not in this backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// When its snapshot was taken, seconds since 1970-01-01 UTC.
    pub taken_at: i64,
    #[serde(default)]
    pub facts: Vec<Fact>,
    #[serde(default)]
    pub notes: Vec<Note>,
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// Where each label came from, without secrets: `host:port/dbname`, a path.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
    /// What leaks with which artifact, for incidents.
    #[serde(default)]
    pub classes: Vec<Class>,
}

/// When a system comes back in a disaster. Restores go in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    Critical,
    Feature,
    Rebuildable,
    Bridge,
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tier::Critical => "critical",
            Tier::Feature => "feature",
            Tier::Rebuildable => "rebuildable",
            Tier::Bridge => "bridge",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    pub key: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Severity::Info => "ok",
            Severity::Warning => "warning",
            Severity::Error => "ERROR",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub severity: Severity,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub label: String,
    pub what: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    pub pattern: String,
    pub sensitivity: essrun_artifact::Sensitivity,
    pub exposes: String,
    pub on_leak: Vec<String>,
}

/// A group of databases taken together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instant {
    /// The group's name, or the component's when it stands alone.
    pub group: String,
    pub databases: Vec<String>,
    /// What was reached, as the Postgres room reports it.
    pub reached: serde_json::Value,
}

/// What verification found; also kept beside a backup as the result of a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub component: String,
    pub check: String,
    pub severity: Severity,
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}
