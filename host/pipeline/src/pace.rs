//! How fast restores were, and how long the next one may take.
//!
//! A drill measures itself: bytes and seconds of databases, of files, and of verification, kept with its result. The
//! estimate of a restore is made of the newest measurement there is, and names it; without one it says so rather than guess.

use crate::error::PipelineError;
use crate::repo;
use crate::time::utc;
use essrun_repository::{Annotation, BackupSummary, Repository};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// As many backups of a pipeline are looked at for a measurement, newest first: what is older says little of today.
const LOOKED_AT: usize = 30;

/// What a restore took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pace {
    pub database_bytes: u64,
    pub database_seconds: f64,
    pub file_bytes: u64,
    pub file_seconds: f64,
    pub verify_seconds: f64,
}

impl Pace {
    pub fn add_database(&mut self, bytes: u64, took: Duration) {
        self.database_bytes = self.database_bytes.saturating_add(bytes);
        self.database_seconds += took.as_secs_f64();
    }

    pub fn add_files(&mut self, bytes: u64, took: Duration) {
        self.file_bytes = self.file_bytes.saturating_add(bytes);
        self.file_seconds += took.as_secs_f64();
    }

    /// Seconds for so many bytes at this pace. Of what was not measured, the other's pace stands in.
    fn seconds(&self, database_bytes: u64, file_bytes: u64) -> Option<f64> {
        let per_byte = |seconds: f64, bytes: u64| (bytes > 0).then(|| seconds.max(0.0) / bytes as f64);
        let database = per_byte(self.database_seconds, self.database_bytes);
        let files = per_byte(self.file_seconds, self.file_bytes);
        let database_pace = database.or(files)?;
        let file_pace = files.or(database)?;
        // In floating point: bytes of a note that was tampered with add up to no number of bytes.
        let measured = self.database_bytes as f64 + self.file_bytes as f64;
        let verify = self.verify_seconds.max(0.0) * (database_bytes as f64 + file_bytes as f64) / measured;
        let all = database_pace * database_bytes as f64 + file_pace * file_bytes as f64 + verify;
        // A note that was tampered with, or a clock that jumped, must not become a promise.
        all.is_finite().then_some(all)
    }
}

/// How long a restore may take, and what says so.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Estimate {
    pub seconds: u64,
    /// The backup whose drill was measured, and when.
    pub measured_with: String,
    pub measured_at: i64,
}

/// From the newest passed drill of this pipeline's that measured itself: another's was of other data, on another machine.
pub async fn estimate(
    repository: &Repository,
    pipeline: &str,
    database_bytes: u64,
    file_bytes: u64,
) -> Result<Option<Estimate>, PipelineError> {
    let backups = repository
        .backups_annotated()
        .await
        .map_err(PipelineError::repository)?;
    newest(&backups, pipeline, database_bytes, file_bytes)
}

/// Of backups, oldest first, with what was noted beside each.
pub(crate) fn newest(
    backups: &[(BackupSummary, Vec<Annotation>)],
    pipeline: &str,
    database_bytes: u64,
    file_bytes: u64,
) -> Result<Option<Estimate>, PipelineError> {
    let own = |summary: &BackupSummary| repo::body(summary).is_ok_and(|b| b.pipeline == pipeline);
    for (summary, notes) in backups.iter().rev().filter(|(s, _)| own(s)).take(LOOKED_AT) {
        let Some(note) = repo::drill_note(notes)? else {
            continue;
        };
        let seconds = note
            .pace
            .filter(|_| note.passed)
            .and_then(|p| p.seconds(database_bytes, file_bytes));
        if let Some(seconds) = seconds {
            return Ok(Some(Estimate {
                seconds: seconds.ceil() as u64,
                measured_with: summary.id.to_string(),
                measured_at: note.at,
            }));
        }
    }
    Ok(None)
}

/// In words.
pub fn in_words(estimate: Option<&Estimate>) -> String {
    match estimate {
        None => "no estimate of the time yet: a passed `essrun drill` gives one".to_owned(),
        Some(e) => format!(
            "estimated time: {} (measured in the drill of backup {}, {} UTC; the swap itself takes seconds)",
            duration(e.seconds),
            e.measured_with,
            utc(e.measured_at)
        ),
    }
}

/// Two units at most: `2 d 3 h`, `5 min 10 s`.
pub fn duration(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (name, size) in units {
        let count = left / size;
        left %= size;
        if count > 0 || (size == 1 && parts.is_empty()) {
            parts.push(format!("{count} {name}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_grows_with_what_is_restored() {
        let mut pace = Pace {
            verify_seconds: 2.0,
            ..Pace::default()
        };
        assert_eq!(pace.seconds(1, 1), None, "nothing was measured");
        pace.add_database(100, Duration::from_secs(10));
        assert_eq!(pace.seconds(100, 0), Some(12.0));
        assert_eq!(pace.seconds(0, 100), Some(12.0), "files were not measured");
        pace.add_files(300, Duration::from_secs(3));
        assert_eq!(pace.seconds(200, 600), Some(20.0 + 6.0 + 4.0));
        pace.file_seconds = f64::NAN;
        assert_eq!(pace.seconds(100, 100), Some(10.0 + 1.0));
        pace.database_seconds = f64::INFINITY;
        assert_eq!(pace.seconds(100, 100), None);
    }

    /// A backup of this pipeline, and its drill: seconds for 100 bytes.
    fn drilled(id: &str, pipeline: &str, seconds: u64) -> (BackupSummary, Vec<Annotation>) {
        let mut pace = Pace::default();
        pace.add_database(100, Duration::from_secs(seconds));
        let body = serde_json::json!({
            "version": 1, "pipeline": pipeline, "host": "h", "essrun": "0.1.0", "started_at": 1, "finished_at": 2,
            "components": [],
        });
        let note = repo::DrillNote {
            at: 5,
            passed: true,
            errors: 0,
            warnings: 0,
            why: None,
            pace: Some(pace),
        };
        let writer = "0123456789abcdef";
        let summary = serde_json::json!({
            "id": id, "created_at": 1, "committed_at": 2, "writer": writer, "sequence": 1,
            "stats": essrun_repository::BackupStats::default(), "needed_objects": 1, "needed_bytes": 1, "body": body,
        });
        let note = serde_json::json!({
            "backup": id, "kind": repo::DRILL, "created_at": 5, "writer": writer, "body": note,
        });
        (
            serde_json::from_value(summary).unwrap(),
            vec![serde_json::from_value(note).unwrap()],
        )
    }

    #[test]
    fn only_drills_of_the_pipeline_itself_count() {
        let backups = [
            drilled("20260101t000000z-00000001", "ess", 10),
            drilled("20260102t000000z-00000002", "ess", 20),
            drilled("20260103t000000z-00000003", "bridges", 9_000),
        ];
        let of = |pipeline: &str| newest(&backups, pipeline, 100, 0).unwrap();
        let ess = of("ess").unwrap();
        assert_eq!(
            (ess.seconds, ess.measured_with.as_str()),
            (20, "20260102t000000z-00000002")
        );
        assert_eq!(of("bridges").unwrap().seconds, 9_000);
        assert_eq!(of("none"), None);
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (310, "5 min 10 s"),
            (3_601, "1 h"),
            (97_200, "1 d 3 h"),
            (86_400, "1 d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn the_absence_of_an_estimate_is_said() {
        assert!(in_words(None).contains("no estimate"));
    }
}
