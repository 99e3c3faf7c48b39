//! A drill: the same restore into scratch databases and a scratch folder, verified, then dropped.
//!
//! What it promises: nothing live is touched; everything it made is gone afterwards, or, when it was killed, after the
//! next drill; the result is kept, signed, beside the backup. What it must never do: call a backup good that it did not
//! restore wholly.

use crate::body::{Finding, Severity};
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::pace::Pace;
use crate::policy::Policy;
use crate::policy::input::Verb;
use crate::repo::{DRILL, DrillNote};
use crate::report::{Event, Reporter};
use crate::restore::plan::{self, DatabaseTarget, Planned, Purpose};
use crate::restore::{Asker, RestoreOptions, leftovers, stage};
use crate::{backup, keys, load, repo, time};
use essrun_postgres::restore as pg;
use essrun_repository::OpenBackup;
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct DrillOptions {
    pub backup: String,
    pub identities: Vec<PathBuf>,
    pub only: Vec<String>,
    /// Folder for restored files; without it one below the cache.
    pub scratch: Option<PathBuf>,
}

/// How it went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DrillResult {
    pub event: &'static str,
    pub backup: String,
    pub passed: bool,
    pub components: Vec<String>,
    pub findings: Vec<Finding>,
    /// What could not be removed; the next drill removes it.
    pub left_behind: Vec<String>,
    pub seconds: u64,
    /// Whether the result could be kept beside the backup (it takes the writer key).
    pub recorded: bool,
}

pub async fn run(
    pipeline: &Pipeline,
    options: DrillOptions,
    reporter: Arc<dyn Reporter>,
) -> Result<DrillResult, PipelineError> {
    let began = std::time::Instant::now();
    let engine = load::engine(pipeline)?;
    let policy = Policy::load(pipeline, &engine).await?;
    let loaded = load::all(pipeline, &options.only, &engine, reporter.as_ref()).await?;
    let writer = keys::writer_if_there(pipeline)?;
    let can_record = writer.is_some();
    let repository = repo::open(pipeline, writer, keys::identities(&options.identities)?).await?;
    let backup = Arc::new(repo::read(pipeline, &repository, &options.backup).await?);

    let base = match options.scratch {
        Some(dir) => dir,
        None => backup::open::scratch(pipeline)?,
    };
    let folder = Folder::new(&base)?;
    let restore = RestoreOptions {
        backup: options.backup,
        only: options.only.clone(),
        ..RestoreOptions::default()
    };
    let asker = Asker {
        pipeline,
        policy: policy.as_ref(),
        repository: &repository,
        verb: Verb::Drill,
    };
    let rehearsed = rehearse(&asker, loaded, backup.clone(), &restore, &folder, &reporter).await;
    let removed = folder.remove();

    let recorded = can_record && options.only.is_empty();
    let note = match &rehearsed {
        Ok(r) => Some(r.note()),
        Err(failed) => failed.note(),
    };
    if let (true, Some(note)) = (recorded, note) {
        let body = serde_json::to_value(note).map_err(|e| PipelineError::Internal(e.to_string()))?;
        repository
            .annotate(&backup.summary().id, DRILL, body)
            .await
            .map_err(PipelineError::repository)?;
    }
    let rehearsed = match rehearsed {
        Ok(rehearsed) => rehearsed,
        Err(failed) => {
            if let Err(left) = removed {
                tracing::warn!("left behind: {left}; the next drill removes it");
            }
            return Err(failed.error);
        }
    };
    let mut left_behind = rehearsed.left_behind;
    left_behind.extend(removed.err());
    let (errors, _) = repo::tally(&rehearsed.findings);
    Ok(DrillResult {
        event: "drill",
        backup: backup.summary().id.to_string(),
        passed: errors == 0,
        components: rehearsed.components,
        findings: rehearsed.findings,
        left_behind,
        seconds: began.elapsed().as_secs(),
        recorded,
    })
}

/// A restore that came to its end, whatever verification said.
struct Rehearsed {
    components: Vec<String>,
    findings: Vec<Finding>,
    left_behind: Vec<String>,
    pace: Pace,
}

impl Rehearsed {
    fn note(&self) -> DrillNote {
        let (errors, warnings) = repo::tally(&self.findings);
        DrillNote {
            at: time::now(),
            passed: errors == 0,
            errors,
            warnings,
            why: None,
            pace: Some(self.pace),
        }
    }
}

/// A restore that did not. Whether that says something about the backup depends on how far it came.
struct Failed {
    error: PipelineError,
    began: bool,
}

impl Failed {
    /// Nothing is noted when it was forbidden or could not begin, unless the backup itself was at fault.
    fn note(&self) -> Option<DrillNote> {
        let tells = self.began || matches!(self.error, PipelineError::Repository { .. });
        tells.then(|| DrillNote {
            at: time::now(),
            passed: false,
            errors: 1,
            warnings: 0,
            why: Some(self.error.to_string()),
            pace: None,
        })
    }
}

/// The restore itself; whatever it made in databases is gone when it returns.
async fn rehearse(
    asker: &Asker<'_>,
    loaded: Vec<load::Loaded>,
    backup: Arc<OpenBackup>,
    restore: &RestoreOptions,
    folder: &Folder,
    reporter: &Arc<dyn Reporter>,
) -> Result<Rehearsed, Failed> {
    let before = |error| Failed { error, began: false };
    let after = |error| Failed { error, began: true };
    let purpose = Purpose::Drill {
        folder: folder.path.clone(),
        run: folder.run.clone(),
    };
    let mut planned = plan::all(asker.pipeline, loaded, backup, restore, purpose)
        .await
        .map_err(before)?;
    planned.permission = asker.ask(&planned, restore, reporter.as_ref()).await.map_err(before)?;
    planned.refuse_if_forbidden().map_err(before)?;
    drop_dead_databases(&planned).await;
    planned.refuse_if_blocked().map_err(before)?;

    reporter.event(Event::Phase { phase: "restore" });
    let staged = stage::everything(&planned, reporter).await.map_err(after)?;
    reporter.event(Event::Phase { phase: "verify" });
    let verifying = std::time::Instant::now();
    let verified = stage::verify(&planned, &staged, reporter.as_ref()).await;
    let mut pace = staged.pace;
    pace.verify_seconds = verifying.elapsed().as_secs_f64();
    let left_behind = staged.discard().await;
    match verified {
        Ok(findings) => Ok(Rehearsed {
            components: planned.items.iter().map(|i| i.loaded.name().to_owned()).collect(),
            findings,
            left_behind,
            pace,
        }),
        Err(error) => {
            for left in left_behind {
                tracing::warn!("left behind: {left}; the next drill removes it");
            }
            Err(after(error))
        }
    }
}

impl DrillResult {
    pub fn text(&self) -> String {
        let (errors, warnings) = repo::tally(&self.findings);
        let mut t = format!(
            "drill of backup {}: {} ({} component(s), {} checks, {errors} error(s), {warnings} warning(s), {} s)\n",
            self.backup,
            if self.passed { "passed" } else { "FAILED" },
            self.components.len(),
            self.findings.len(),
            self.seconds
        );
        for left in &self.left_behind {
            t.push_str(&format!("left behind: {left}\n"));
        }
        if !self.recorded {
            t.push_str("the result is not kept beside the backup: that takes the writer key, and all components\n");
        }
        t
    }

    pub fn into_error(self) -> Result<(), PipelineError> {
        if self.passed {
            return Ok(());
        }
        let errors: Vec<_> = self
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .map(|f| format!("{} {}: {}", f.component, f.check, f.message))
            .collect();
        Err(PipelineError::Findings {
            what: "drill".into(),
            errors: errors.len(),
            findings: errors,
        })
    }
}

/// Drops scratch databases of drills whose maker is gone.
async fn drop_dead_databases(planned: &Planned) {
    for item in &planned.items {
        for (label, target) in &item.databases {
            if let DatabaseTarget::Postgres { target, options, .. } = target {
                let what = format!("{}/{label}", item.loaded.name());
                // One killed between making and marking has no purpose yet, and is empty: it goes as well.
                let not_a_restores = |l: &pg::Leftover| l.purpose != Some(pg::Purpose::Restore);
                leftovers::databases(&what, target, &options.maintenance_database, not_a_restores).await;
            }
        }
    }
}

/// A folder for one drill. A lock file beside it is held for as long as the drill lives, so that the next one knows
/// which folders are dead.
struct Folder {
    path: PathBuf,
    run: String,
    lock_path: PathBuf,
    _lock: File,
}

const PREFIX: &str = "essrun-drill-";

impl Folder {
    fn new(base: &Path) -> Result<Folder, PipelineError> {
        let failed =
            |e: std::io::Error| PipelineError::source(base.display().to_string(), format!("scratch folder: {e}"));
        std::fs::create_dir_all(base).map_err(failed)?;
        drop_dead_folders(base);
        let run = format!("drill-{}-{}", time::now(), std::process::id());
        let path = base.join(format!("{PREFIX}{run}"));
        let lock_path = base.join(format!("{PREFIX}{run}.lock"));
        let lock = File::create(&lock_path).map_err(failed)?;
        lock.try_lock()
            .map_err(|e| PipelineError::source(lock_path.display().to_string(), e))?;
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Folder {
            path,
            run,
            lock_path,
            _lock: lock,
        })
    }

    fn remove(self) -> Result<(), String> {
        std::fs::remove_dir_all(&self.path).map_err(|e| format!("{}: {e}", self.path.display()))?;
        std::fs::remove_file(&self.lock_path).map_err(|e| format!("{}: {e}", self.lock_path.display()))
    }
}

fn drop_dead_folders(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(run) = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(".lock")) else {
            continue;
        };
        let dead = File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok());
        if dead {
            let folder = base.join(format!("{PREFIX}{run}"));
            let removed = match std::fs::remove_dir_all(&folder) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => std::fs::remove_file(entry.path()),
            };
            match removed {
                Ok(()) => tracing::info!("removed {}, left by a drill that was killed", folder.display()),
                Err(e) => tracing::warn!("{} is left by a drill that was killed: {e}", folder.display()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_dead_drills_go_and_living_ones_stay() {
        let base = tempfile::tempdir().unwrap();
        let living = Folder::new(base.path()).unwrap();
        let dead = base.path().join("essrun-drill-x");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("file"), "x").unwrap();
        std::fs::write(base.path().join("essrun-drill-x.lock"), "").unwrap();
        std::fs::write(base.path().join("unrelated"), "").unwrap();
        drop_dead_folders(base.path());
        assert!(!dead.exists());
        assert!(living.path.exists() && living.lock_path.exists() && base.path().join("unrelated").exists());
        let (path, lock) = (living.path.clone(), living.lock_path.clone());
        living.remove().unwrap();
        assert!(!path.exists() && !lock.exists());
    }
}
