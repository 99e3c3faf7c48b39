//! A restore: plan, stage, verify, swap.
//!
//! What it promises: the plan that is shown is the plan that is carried out; every precondition is checked before the
//! first step; everything is restored beside what is live, and only when all of it was verified is anything swapped; what
//! was live is kept under a dated name. What it must never do: write to a live database or tree, restore over existing
//! tables, swap a part of what failed verification, remove anything before somebody agreed.
//!
//! A restore that is killed or fails leaves what it did. The next one into the same places tells that, and removes it once
//! it was agreed to, or, with `resume`, goes on: rows and files that are there are compared with the backup, what is as it
//! should be is kept, the rest is done; verification and swap are always done in full.

mod doubts;
pub(crate) mod leftovers;
mod only;
pub(crate) mod plan;
mod same;
pub(crate) mod stage;
mod swap;
pub(crate) mod targets;
pub(crate) mod view;
mod words;

use crate::body::Note;
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::policy::{Permission, Policy, Question, input};
use crate::report::{Event, Reporter};
use crate::{load, pace, repo};
use essrun_repository::{OpenBackup, Repository};
use plan::Planned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Said with every failure after which a restore can be gone on with.
pub(crate) const TO_RESUME: &str =
    "what was done is kept: the same command with --resume goes on, without it begins anew";

/// Said when the places turn out to be no good only when what was left there is gone.
const CLEARED: &str = "what stopped restores had left there was cleared away before; nothing else was changed";

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Id of a backup, the beginning of one, or `latest`.
    pub backup: String,
    pub identities: Vec<PathBuf>,
    /// Only these components, or labels of them as `component/label`; empty: all.
    pub only: Vec<String>,
    /// Replace what is there; it is kept under a dated name.
    pub replace: bool,
    /// End other sessions of a database that is replaced.
    pub disconnect: bool,
    /// `component/label` → another database name or path.
    pub targets: BTreeMap<String, String>,
    /// Let extensions have other versions than when the backup was taken.
    pub allow_drift: bool,
    /// Restore even where it does not seem to fit.
    pub force_space: bool,
    /// Keep what was staged when verification fails, until the next restore.
    pub keep_failed: bool,
    /// Go on with a restore of the same backup into the same places that was stopped.
    pub resume: bool,
    /// Only planned: the policy is told so.
    pub dry_run: bool,
}

impl RestoreOptions {
    /// Where a volume or an SQLite file goes: where `--to` says, else where it was. As a whole path: what it is held
    /// against, and what a stopped restore left beside it, must not hang on the directory we were started in.
    fn place(&self, what: &str, otherwise: &Path) -> Result<PathBuf, PipelineError> {
        let path = self.targets.get(what).map_or(otherwise, Path::new);
        std::path::absolute(path).map_err(|e| {
            PipelineError::refused(
                format!("the target of {what}, {}, cannot be found: {e}", path.display()),
                "give the whole path",
            )
        })
    }
}

/// `COMPONENT/LABEL=TARGET`.
pub fn parse_target(text: &str) -> Result<(String, String), PipelineError> {
    match text.split_once('=') {
        Some((what, target)) if what.split('/').count() == 2 && !target.is_empty() => {
            Ok((what.to_owned(), target.to_owned()))
        }
        _ => Err(PipelineError::refused(
            format!("--to {text:?} names no target"),
            "write --to COMPONENT/LABEL=TARGET, as --to synapse/main=synapse_copy or --to synapse/media=/srv/media",
        )),
    }
}

/// A restore that was planned and checked, and changed nothing yet.
pub struct Prepared<'a> {
    planner: Planner<'a>,
    planned: Planned,
}

/// Plans a restore and checks every precondition. Nothing is changed, not even what stopped restores left.
pub async fn prepare(
    pipeline: &Pipeline,
    options: RestoreOptions,
    reporter: Arc<dyn Reporter>,
) -> Result<Prepared<'_>, PipelineError> {
    let engine = load::engine(pipeline)?;
    let policy = Policy::load(pipeline, &engine).await?;
    let loaded = load::all(pipeline, &options.components(), &engine, reporter.as_ref()).await?;
    let repository = repo::open_to_read(pipeline, &options.identities).await?;
    let backup = Arc::new(repo::read(pipeline, &repository, &options.backup).await?);
    let planner = Planner {
        doubts: doubts::of(&repository, &backup).await?,
        pipeline,
        policy,
        repository,
        loaded,
        backup,
        options,
        reporter,
    };
    let planned = planner.plan().await?;
    Ok(Prepared { planner, planned })
}

/// With what a restore is planned, and planned anew when the places have become others.
struct Planner<'a> {
    pipeline: &'a Pipeline,
    policy: Option<Policy>,
    repository: Repository,
    loaded: Vec<Loaded>,
    backup: Arc<OpenBackup>,
    /// What is known against it.
    doubts: Vec<Note>,
    options: RestoreOptions,
    reporter: Arc<dyn Reporter>,
}

impl Planner<'_> {
    async fn plan(&self) -> Result<Planned, PipelineError> {
        let mut planned = plan::all(
            self.pipeline,
            self.loaded.clone(),
            self.backup.clone(),
            &self.options,
            plan::Purpose::Restore,
        )
        .await?;
        planned.notes.splice(0..0, self.doubts.iter().cloned());
        let asker = Asker {
            pipeline: self.pipeline,
            policy: self.policy.as_ref(),
            repository: &self.repository,
            verb: input::Verb::Restore,
        };
        planned.permission = asker.ask(&planned, &self.options, self.reporter.as_ref()).await?;
        let (database_bytes, file_bytes) = planned.bytes();
        planned.estimate = pace::estimate(&self.repository, &self.pipeline.name, database_bytes, file_bytes).await?;
        Ok(planned)
    }
}

/// Asks the policy about restores.
pub(crate) struct Asker<'a> {
    pub pipeline: &'a Pipeline,
    pub policy: Option<&'a Policy>,
    pub repository: &'a Repository,
    pub verb: input::Verb,
}

impl Asker<'_> {
    /// Whether a planned restore may go ahead; `None` where the policy does not decide that.
    pub async fn ask(
        &self,
        planned: &Planned,
        options: &RestoreOptions,
        reporter: &dyn Reporter,
    ) -> Result<Option<Permission>, PipelineError> {
        let Some(policy) = self.policy.filter(|p| p.answers(Question::MayRestore)) else {
            return Ok(None);
        };
        let input = self.input(planned, options).await?;
        policy.may_restore(&input, reporter).await.map(Some)
    }

    /// What the policy is told.
    pub async fn input(&self, planned: &Planned, options: &RestoreOptions) -> Result<input::MayRestore, PipelineError> {
        let asked = input::Asked {
            verb: self.verb,
            dry_run: options.dry_run,
            replace: options.replace,
            targets: planned.targets(),
            steps: planned.steps(),
            ..input::Asked::default()
        };
        input::may_restore(self.pipeline, self.repository, &planned.backup, asked).await
    }
}

impl Prepared<'_> {
    /// For `--json`.
    pub fn summary(&self) -> impl serde::Serialize {
        self.planned.summary()
    }

    /// In words.
    pub fn text(&self) -> String {
        self.planned.text()
    }

    pub fn question(&self) -> String {
        let count = self.planned.items.len();
        let replaced = if self.planner.options.replace {
            "; what is live is replaced and kept under a dated name"
        } else {
            ""
        };
        format!("Restore {count} component(s) of backup {}{replaced}?", self.planned.id)
    }

    /// Fails when a precondition forbids the restore.
    pub fn refuse_if_blocked(&self) -> Result<(), PipelineError> {
        self.planned.refuse_if_blocked()
    }

    /// Carries the plan out. To be called once somebody agreed to it.
    pub async fn execute(self) -> Result<(), PipelineError> {
        self.refuse_if_blocked()?;
        let Prepared { planner, mut planned } = self;
        if leftovers::clean(&planned, planner.options.resume).await? {
            // Without what was there the places are others: planned anew, and asked anew.
            planned = planner.plan().await?;
            planned.refuse_if_blocked().map_err(|e| e.and_note(CLEARED))?;
        }
        let Planner { options, reporter, .. } = planner;
        reporter.event(Event::Phase { phase: "restore" });
        let staged = stage::everything(&planned, &reporter).await?;
        reporter.event(Event::Phase { phase: "verify" });
        let findings = match stage::verify(&planned, &staged, reporter.as_ref()).await {
            Ok(findings) => findings,
            Err(e) => {
                staged.leave().await;
                return Err(e.and_note(TO_RESUME));
            }
        };
        let (errors, _) = repo::tally(&findings);
        if errors > 0 {
            let listed = findings
                .iter()
                .filter(|f| f.severity == crate::body::Severity::Error)
                .map(|f| {
                    format!("{} {}: {} {}", f.component, f.check, f.message, f.remedy)
                        .trim_end()
                        .to_owned()
                })
                .collect();
            staged.drop_or_keep(options.keep_failed).await;
            return Err(PipelineError::Findings {
                what: "verification of what was restored; nothing was put in service".into(),
                errors,
                findings: listed,
            });
        }
        reporter.event(Event::Phase { phase: "swap" });
        swap::everything(&planned, staged, &options, reporter.as_ref()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_whole_paths() {
        let here = std::env::current_dir().unwrap();
        let mut options = RestoreOptions::default();
        options.targets.insert("a/b".into(), "copy".into());
        assert_eq!(options.place("a/b", Path::new("/srv/x")).unwrap(), here.join("copy"));
        assert_eq!(options.place("a/c", Path::new("/srv/x")).unwrap(), Path::new("/srv/x"));
    }

    #[test]
    fn targets_are_read_strictly() {
        assert_eq!(parse_target("a/b=c=d").unwrap(), ("a/b".into(), "c=d".into()));
        for bad in ["a/b", "a=b", "a/b=", "a/b/c=d", ""] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }
}
