//! Looking after a repository: packs written anew, damage repaired, the writer key rotated.
//!
//! All of it only says what it would do until it is told to. Writing anew needs an identity, so it is run where the
//! identity is, with a copy of the writer key, which opens nothing; never bring the identity to the backup host.

use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::keys;
use crate::makers::AllMakers;
use crate::repo;
use essrun_artifact::Progress;
pub use essrun_repository::Rewrite;
use essrun_repository::{RepairReport, RewriteReport};
use essrun_store::{Leftover, Location};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A staging file this old belongs to no living writer.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// What `repack` or `rekey` would do, or did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rewriting {
    pub event: &'static str,
    #[serde(flatten)]
    pub report: RewriteReport,
}

pub async fn rewrite(
    pipeline: &Pipeline,
    identity_files: &[PathBuf],
    what: Rewrite,
    confirm: bool,
    progress: &dyn Progress,
) -> Result<Rewriting, PipelineError> {
    let repository = repo::open(
        pipeline,
        Some(keys::writer(pipeline)?),
        keys::identities(identity_files)?,
    )
    .await?;
    let report = repository
        .rewrite(what, confirm, &AllMakers, progress)
        .await
        .map_err(PipelineError::repository)?;
    let event = match what {
        Rewrite::Repack { .. } => "repack",
        Rewrite::Rekey => "rekey",
    };
    Ok(Rewriting { event, report })
}

impl Rewriting {
    pub fn text(&self) -> String {
        let r = &self.report;
        let mut t = String::new();
        for p in &r.packs {
            t.push_str(&format!(
                "{}  {} bytes, {} kept: {}\n",
                p.object, p.bytes, p.kept_bytes, p.why
            ));
        }
        for note in &r.left_alone {
            t.push_str(&format!("left alone: {note}\n"));
        }
        match (r.annotations.len(), r.done) {
            (0, _) => {}
            (n, true) => t.push_str(&format!("{n} notes beside backups sealed anew\n")),
            (n, false) => t.push_str(&format!("{n} notes beside backups would be sealed anew\n")),
        }
        let (packs, backups) = (r.packs.len(), r.backups.len());
        t.push_str(&match (r.done, packs + backups + r.annotations.len()) {
            (_, 0) => "nothing to do\n".to_owned(),
            (true, _) => format!(
                "{packs} packs written anew for {backups} backups, {} bytes stored; `essrun prune` frees the old ones \
                 after the grace time\n",
                r.stored_bytes
            ),
            (false, _) => {
                format!("{packs} packs would be written anew for {backups} backups; nothing was changed, --confirm does it\n")
            }
        });
        t
    }
}

/// What `repair` would do, or did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Repairing {
    pub event: &'static str,
    #[serde(flatten)]
    pub report: RepairReport,
    /// Staging files of killed writers, and the bytes they hold.
    pub leftovers: Vec<PathBuf>,
    pub leftover_bytes: u64,
}

pub async fn repair(
    pipeline: &Pipeline,
    identity_files: &[PathBuf],
    confirm: bool,
) -> Result<Repairing, PipelineError> {
    let repository = repo::open(
        pipeline,
        Some(keys::writer(pipeline)?),
        keys::identities(identity_files)?,
    )
    .await?;
    let leftovers = leftovers(pipeline)?;
    let report = repository
        .repair(confirm, &AllMakers)
        .await
        .map_err(PipelineError::repository)?;
    if confirm {
        for leftover in &leftovers {
            std::fs::remove_file(&leftover.path)
                .map_err(|e| PipelineError::repository(format!("{}: {e}", leftover.path.display())))?;
        }
    }
    Ok(Repairing {
        event: "repair",
        report,
        leftover_bytes: leftovers.iter().map(|l| l.bytes).sum(),
        leftovers: leftovers.into_iter().map(|l| l.path).collect(),
    })
}

fn leftovers(pipeline: &Pipeline) -> Result<Vec<Leftover>, PipelineError> {
    let place: Location = pipeline.repository.url.parse().map_err(PipelineError::repository)?;
    match place {
        Location::Directory(path) => essrun_store::leftovers(&path, LEFTOVER_AGE).map_err(PipelineError::repository),
        _ => Ok(Vec::new()),
    }
}

impl Repairing {
    pub fn text(&self) -> String {
        let r = &self.report;
        let will = |done: &'static str, would: &'static str| if r.done { done } else { would };
        let mut t = String::new();
        for f in r.findings.iter().filter(|f| !f.kind.is_harmless()) {
            t.push_str(&format!("found: {}: {}\n", f.object, f.detail));
        }
        for object in &r.indexes {
            let word = will("made again", "would be made again");
            t.push_str(&format!("index of {object}: {word} from the pack\n"));
        }
        for object in &r.salvaged {
            let word = will("kept in a new pack", "would be kept in a new pack");
            t.push_str(&format!("{object}: what can still be read {word}\n"));
        }
        for b in &r.backups {
            if b.damaged.is_empty() && b.lost.is_empty() {
                t.push_str(&format!(
                    "backup {}: {}\n",
                    b.backup,
                    will("whole again", "would be whole again")
                ));
                continue;
            }
            let word = will("marked as damaged", "would be marked as damaged");
            t.push_str(&format!(
                "backup {}: {word}, {} artifacts are whole\n",
                b.backup, b.whole_artifacts
            ));
            for d in &b.damaged {
                t.push_str(&format!("  lost: {}: {}\n", d.artifact, d.why));
            }
        }
        for note in &r.left_alone {
            t.push_str(&format!("left alone: {note}\n"));
        }
        if !self.leftovers.is_empty() {
            let word = will("removed", "would be removed");
            let (count, bytes) = (self.leftovers.len(), self.leftover_bytes);
            t.push_str(&format!("{count} files of killed runs ({bytes} bytes) {word}\n"));
        }
        if t.is_empty() {
            t.push_str("nothing to repair\n");
        } else if !r.done {
            t.push_str("nothing was changed; --confirm does it\n");
        }
        t
    }
}

/// What `rotate` would do, or did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rotation {
    pub event: &'static str,
    pub confirmed: bool,
    pub old: String,
    /// The new writer's public key, once it is made.
    pub new: Option<String>,
    pub file: PathBuf,
}

/// Makes a new writer key that goes on where the present one ends, and gives the present one up.
pub async fn rotate(pipeline: &Pipeline, output: &Path, confirm: bool) -> Result<Rotation, PipelineError> {
    let old = keys::writer(pipeline)?;
    let repository = repo::open(pipeline, Some(old.clone()), Vec::new()).await?;
    let new = match confirm {
        true => {
            // The file first: a repository must never wait for a key that nobody has.
            let new = keys::rotated_writer(&old, output)?;
            repository.rotate(&new).await.map_err(PipelineError::repository)?;
            Some(new.public().to_string())
        }
        false => None,
    };
    Ok(Rotation {
        event: "rotate",
        confirmed: confirm,
        old: old.public().to_string(),
        new,
        file: output.to_owned(),
    })
}

impl Rotation {
    pub fn text(&self) -> String {
        let file = self.file.display();
        match &self.new {
            Some(new) => format!(
                "{} is given up; {new} goes on where it ended\nput writer-key = \"{file}\" into the pipeline file, and \
                 destroy the old key file once a backup was made with the new one\n",
                self.old
            ),
            None => format!(
                "{} would be given up for a new key in {file}; nothing was changed, --confirm does it\n",
                self.old
            ),
        }
    }
}
