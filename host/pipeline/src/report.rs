//! How a verb tells what it does: events, shown as text, bars or one JSON object a line. The choice is the CLI's.

use crate::body::{Finding, Severity};
use crate::policy::{Outcome, Question};
use essrun_artifact::Progress;
use serde::Serialize;

/// Something happened. Its JSON form only ever grows.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Event {
    /// A component was loaded and described itself.
    Component {
        component: String,
        system: String,
        version: String,
    },
    /// Snapshots of a group of databases were taken.
    Instant {
        group: String,
        databases: Vec<String>,
        reached: serde_json::Value,
    },
    /// One step of a plan, in words.
    Step {
        component: String,
        step: String,
        why: Option<String>,
    },
    /// A component's remark.
    Note {
        component: String,
        severity: Severity,
        text: String,
    },
    /// A check's result.
    Finding {
        #[serde(flatten)]
        finding: Finding,
    },
    /// This was done by a restore that was stopped, and is not done again.
    Kept { artifact: String, why: String },
    /// Work on an artifact began.
    Started { artifact: String, total_bytes: Option<u64> },
    /// An artifact is done.
    Finished { artifact: String, bytes: u64, items: u64 },
    /// A phase of the run began: `open`, `plan`, `dump`, `archive`, `commit`, `restore`, `verify`, `swap`.
    Phase { phase: &'static str },
    /// A backup was committed.
    Committed {
        backup: String,
        artifacts: usize,
        bytes: u64,
        new_bytes: u64,
        stored_bytes: u64,
    },
    /// A restored database or volume took the place of the live one; `kept` names the old one.
    Swapped {
        component: String,
        label: String,
        kept: Option<String>,
    },
    /// The policy was asked. `failure`: why it gave no answer, which counts as a no.
    Policy {
        question: Question,
        outcome: Outcome,
        reasons: Vec<String>,
        failure: Option<String>,
    },
    /// A component failed; the others go on.
    Failed { component: String, problem: String },
}

/// Told of everything. Must be quick and must not fail.
pub trait Reporter: Progress {
    fn event(&self, event: Event);
}

/// Nobody listens; for tests and quiet runs.
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _: &str, _: Option<u64>) {}
    fn advanced(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str) {}
}

impl Reporter for Silent {
    fn event(&self, _: Event) {}
}
