//! A drill: the same restore into scratch databases and a scratch folder, verified, then dropped.
//!
//! What it promises: nothing live is touched; everything it made is gone afterwards, or, when it was killed, after the
//! next drill or backup ([`clean`]); the result is kept, signed, beside the backup. What it must never do: call a backup
//! good that it did not restore wholly, or bad because the place it was tried in gave out.

use crate::body::{Finding, Severity};
use crate::config::{DatabaseSource, Pipeline};
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::pace::Pace;
use crate::policy::Policy;
use crate::policy::input::Verb;
use crate::repo::{DRILL, DrillNote};
use crate::report::{Event, Reporter};
use crate::restore::plan::{self, Purpose};
use crate::restore::targets::postgres_target;
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
    /// Restore even where it does not seem to fit.
    pub force_space: bool,
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
        force_space: options.force_space,
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
        let kept = repository.annotate(&backup.summary().id, DRILL, body).await;
        match (kept, &rehearsed) {
            (Err(e), Ok(_)) => return Err(PipelineError::repository(e)),
            // Why the drill failed is worth more.
            (Err(e), Err(_)) => tracing::warn!("the result could not be kept beside the backup: {e}"),
            (Ok(_), _) => {}
        }
    }
    let rehearsed = match rehearsed {
        Ok(rehearsed) => rehearsed,
        Err(failed) => {
            if let Err(left) = removed {
                tracing::warn!("left behind: {left}; the next drill removes it");
            }
            return Err(failed.told());
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
    /// Nothing is noted when it was forbidden or could not begin, unless the backup itself was at fault; nor when the place
    /// gave out, or the store. The newest result counts, and one that says nothing of the backup would take the place of one that does.
    fn note(&self) -> Option<DrillNote> {
        let tells = match self.error {
            PipelineError::GaveOut { .. }
            | PipelineError::OutOfReach { .. }
            | PipelineError::Refused { .. }
            | PipelineError::Interrupted => false,
            PipelineError::Repository { .. } => true,
            _ => self.began,
        };
        tells.then(|| DrillNote {
            at: time::now(),
            passed: false,
            errors: 1,
            warnings: 0,
            why: Some(self.error.to_string()),
            pace: None,
        })
    }

    fn told(self) -> PipelineError {
        match self.error {
            e @ PipelineError::GaveOut { .. } => {
                e.and_note("this says nothing about the backup, and no result is kept: drill again when there is room")
            }
            e @ PipelineError::OutOfReach { .. } => e.and_note(
                "this says nothing about the backup, and no result is kept: drill again when the store is in reach",
            ),
            e => e,
        }
    }
}

/// The restore itself; whatever it made in databases is gone when it returns.
async fn rehearse(
    asker: &Asker<'_>,
    loaded: Vec<Loaded>,
    backup: Arc<OpenBackup>,
    restore: &RestoreOptions,
    folder: &Folder,
    reporter: &Arc<dyn Reporter>,
) -> Result<Rehearsed, Failed> {
    let before = |error| Failed { error, began: false };
    let after = |error| Failed { error, began: true };
    drop_dead_databases(&loaded).await;
    let purpose = Purpose::Drill {
        folder: folder.path.clone(),
        run: folder.run.clone(),
    };
    let mut planned = plan::all(asker.pipeline, loaded, backup, restore, purpose)
        .await
        .map_err(before)?;
    planned.permission = asker.ask(&planned, restore, reporter.as_ref()).await.map_err(before)?;
    planned.refuse_if_forbidden().map_err(before)?;
    planned.refuse_if_blocked().map_err(before)?;
    for item in &planned.items {
        for f in item.findings.iter().filter(|f| f.severity == Severity::Warning) {
            reporter.event(Event::Note {
                component: item.loaded.name().to_owned(),
                severity: f.severity,
                text: format!("{}: {}: {}; {}", f.label, f.check, f.message, f.remedy),
            });
        }
    }

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

/// Removes what drills that were killed left on the servers of these components, and in the folder that is theirs unless
/// told otherwise. What cannot be reached is left to those who need it.
pub(crate) async fn clean(pipeline: &Pipeline, loaded: &[Loaded]) {
    match backup::open::scratch(pipeline) {
        Ok(base) => drop_dead_folders(&base),
        Err(e) => tracing::info!("leftovers of drills cannot be looked for: {e}"),
    }
    drop_dead_databases(loaded).await;
}

/// Drops scratch databases of drills whose maker is gone, wherever these components may make any.
async fn drop_dead_databases(loaded: &[Loaded]) {
    // A server is asked once, whoever has databases there.
    let mut asked = Vec::new();
    for one in loaded {
        for (label, grant) in &one.config.databases {
            if !one.owns(label) || matches!(grant.source, DatabaseSource::Sqlite(_)) {
                continue;
            }
            let what = format!("{}/{label}", one.name());
            let (target, maintenance) = match postgres_target(&what, grant) {
                Ok((target, maintenance)) => (target, maintenance.unwrap_or_else(|| "postgres".to_owned())),
                // Who needs this connection says what is wrong with it.
                Err(e) => {
                    tracing::info!("{what}: leftovers cannot be looked for: {e}");
                    continue;
                }
            };
            let server = (target.with_database(&maintenance), maintenance);
            if asked.contains(&server) {
                continue;
            }
            // One killed between making and marking has no purpose yet, and is empty: it goes as well.
            let not_a_restores = |l: &pg::Leftover| l.purpose != Some(pg::Purpose::Restore);
            leftovers::databases(&what, &target, &server.1, not_a_restores).await;
            asked.push(server);
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
        let now = format!("drill-{}-{}", time::now(), std::process::id());
        // Processes on other machines, or in other containers, may have the same number.
        for number in 0..1000 {
            let run = match number {
                0 => now.clone(),
                n => format!("{now}-{n}"),
            };
            let lock_path = base.join(format!("{PREFIX}{run}.lock"));
            let Some(lock) = hold(&lock_path, || {}).map_err(failed)? else {
                continue;
            };
            let path = base.join(format!("{PREFIX}{run}"));
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
            return Ok(Folder {
                path,
                run,
                lock_path,
                _lock: lock,
            });
        }
        Err(PipelineError::source(
            base.display().to_string(),
            "scratch folder: every name for it is taken",
        ))
    }

    fn remove(self) -> Result<(), String> {
        remove_folder(&self.path)?;
        std::fs::remove_file(&self.lock_path).map_err(|e| format!("{}: {e}", self.lock_path.display()))
    }
}

/// Makes a lock file and holds it; `None` when it is there already. Between the two another drill may take it for a dead
/// one's and remove it: what is held then is no file any more, and `None` as well. `made` is called in that moment.
fn hold(path: &Path, made: impl FnOnce()) -> std::io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt;
    let lock = match File::options().write(true).create_new(true).open(path) {
        Ok(lock) => lock,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
        Err(e) => return Err(e),
    };
    made();
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
        Err(std::fs::TryLockError::Error(e)) => return Err(e),
    }
    let held = lock.metadata()?;
    let still = path
        .metadata()
        .is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()));
    Ok(still.then_some(lock))
}

/// Also where what was restored may not be written to by its owner.
fn remove_folder(path: &Path) -> Result<(), String> {
    use essrun_volume::VolumeError;
    match essrun_volume::restore::remove_tree(path) {
        Err(VolumeError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|e| e.to_string()),
    }
}

fn drop_dead_folders(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(run) = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(".lock")) else {
            continue;
        };
        let Ok(lock) = File::open(entry.path()) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        // Held until both are gone.
        let folder = base.join(format!("{PREFIX}{run}"));
        let removed = remove_folder(&folder)
            .and_then(|()| std::fs::remove_file(entry.path()).map_err(|e| format!("{}: {e}", entry.path().display())));
        match removed {
            Ok(()) => tracing::info!("removed {}, left by a drill that was killed", folder.display()),
            Err(e) => tracing::warn!("{} is left by a drill that was killed: {e}", folder.display()),
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
        let other = Folder::new(base.path()).unwrap();
        assert_ne!(living.path, other.path, "two of one second");
        let dead = base.path().join("essrun-drill-x");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("file"), "x").unwrap();
        std::fs::write(base.path().join("essrun-drill-x.lock"), "").unwrap();
        // Killed before it came to a folder.
        std::fs::write(base.path().join("essrun-drill-y.lock"), "").unwrap();
        std::fs::write(base.path().join("unrelated"), "").unwrap();
        drop_dead_folders(base.path());
        assert!(!dead.exists() && !base.path().join("essrun-drill-y.lock").exists());
        assert!(living.path.exists() && living.lock_path.exists() && base.path().join("unrelated").exists());
        for folder in [living, other] {
            let (path, lock) = (folder.path.clone(), folder.lock_path.clone());
            folder.remove().unwrap();
            assert!(!path.exists() && !lock.exists());
        }
    }

    #[test]
    fn a_lock_that_another_drill_removed_is_not_taken_for_held() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("essrun-drill-x.lock");
        let removed = hold(&path, || drop_dead_folders(base.path())).unwrap();
        assert!(!path.exists(), "the other drill removed it");
        assert!(removed.is_none());
        // Another one in its place.
        let replaced = hold(&path, || {
            drop_dead_folders(base.path());
            std::fs::write(&path, "").unwrap();
        });
        assert!(replaced.unwrap().is_none());
        drop_dead_folders(base.path());
        let held = hold(&path, || {}).unwrap();
        drop_dead_folders(base.path());
        assert!(held.is_some() && path.exists());
        assert!(hold(&path, || {}).unwrap().is_none(), "it is there");
    }

    #[test]
    fn only_what_tells_of_the_backup_is_noted() {
        let failed = |error, began| Failed { error, began };
        let gave_out = || PipelineError::GaveOut {
            what: "s/main".into(),
            problem: "no room".into(),
        };
        let source = || PipelineError::source("s/main", "a row does not load");
        assert!(failed(gave_out(), true).note().is_none());
        assert!(
            failed(gave_out(), true)
                .told()
                .to_string()
                .contains("says nothing about the backup")
        );
        let out_of_reach = PipelineError::OutOfReach {
            problem: "connection refused".into(),
        };
        assert!(failed(out_of_reach, true).note().is_none());
        assert!(
            failed(PipelineError::refused("is in the way", "move it"), true)
                .note()
                .is_none()
        );
        assert!(failed(source(), false).note().is_none());
        assert!(failed(PipelineError::repository("damaged"), false).note().is_some());
        let note = failed(source(), true).note().unwrap();
        assert!(!note.passed && note.why.unwrap().contains("does not load"));
    }
}
