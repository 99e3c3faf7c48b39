//! The repository of a pipeline: opened, listed, shown, checked.

use crate::body::{BackupBody, Finding, Severity};
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::keys;
use crate::pace::Pace;
use crate::standing::{Standing, State};
use crate::time::utc;
use essrun_artifact::{ArtifactRecord, BackupReader};
use essrun_repository::{
    Access, Annotation, BackupSummary, CheckMode, CheckReport, Identity, OpenBackup, Options, Repository, WriterKey,
    WriterPublic,
};
use essrun_store::{Ability, Store};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// The annotation that carries a drill's result.
pub const DRILL: &str = "drill";

/// The store behind the repository.
pub(crate) fn store(pipeline: &Pipeline) -> Result<Arc<dyn Store>, PipelineError> {
    essrun_store::open_with(&pipeline.repository.url, &pipeline.repository.store).map_err(PipelineError::repository)
}

/// What the store can do, tried on a small object.
pub async fn inspect_store(pipeline: &Pipeline) -> Result<Vec<Ability>, PipelineError> {
    let scratch = essrun_repository::SHORT_LIVED.first().copied().unwrap_or("leases");
    essrun_store::inspect(&pipeline.repository.url, &pipeline.repository.store, scratch)
        .await
        .map_err(PipelineError::repository)
}

/// What `init` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialised {
    /// The place was empty.
    Created,
    /// A repository that another writer made, and that knows the key of this pipeline.
    Joined,
}

/// Creates the repository; or finds one that lets this writer in.
pub async fn init(pipeline: &Pipeline) -> Result<Initialised, PipelineError> {
    let writer = keys::writer(pipeline)?;
    let recipients = keys::recipients(pipeline)?;
    let made = Repository::init(store(pipeline)?, &writer, &recipients).await;
    let Err(e) = made else {
        return Ok(Initialised::Created);
    };
    // Perhaps somebody else's, which this host is to write to as well.
    let public = writer.public();
    match open(pipeline, Some(writer), Vec::new()).await {
        Ok(repository) if repository.writers().first() == Some(&public) => Err(PipelineError::repository(e)),
        Ok(repository) if repository.knows(&public) => Ok(Initialised::Joined),
        Ok(_) => Err(PipelineError::refused(
            format!(
                "{}: there is a repository already, and it does not know this host's writer {public}",
                pipeline.repository.url
            ),
            format!(
                "to write to it as well, run on a host whose key it knows: `essrun authorize PIPELINE {public} --confirm`, \
                 then this again; nothing was changed"
            ),
        )),
        Err(_) => Err(PipelineError::repository(e)),
    }
}

/// What letting a writer in would do, or did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Authorised {
    pub event: &'static str,
    pub confirmed: bool,
    pub writer: String,
    /// Everybody the repository knows, whoever they are.
    pub writers: Vec<String>,
}

/// Lets a further writer in, by the key of this pipeline.
pub async fn authorize(pipeline: &Pipeline, writer: &str, confirm: bool) -> Result<Authorised, PipelineError> {
    let public: WriterPublic = writer.parse().map_err(|e: essrun_repository::RepositoryError| {
        PipelineError::refused(e.to_string(), "nothing was changed")
    })?;
    let repository = open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?;
    if repository.knows(&public) {
        return Err(PipelineError::refused(
            format!("writer {public} is known to this repository already"),
            "it can write; `essrun init` on its host says so",
        ));
    }
    if confirm {
        repository.authorize(&public).await.map_err(PipelineError::repository)?;
    }
    Ok(Authorised {
        event: "authorize",
        confirmed: confirm,
        writer: public.to_string(),
        writers: repository.writers().iter().map(ToString::to_string).collect(),
    })
}

impl Authorised {
    pub fn text(&self) -> String {
        let writer = &self.writer;
        let mut t = match self.confirmed {
            true => format!("{writer} is let in: `essrun init` on its host says so too\n"),
            false => format!("{writer} would be let in; nothing was changed, --confirm does it\n"),
        };
        t.push_str(
            "It can add backups, forget and prune any, and let others in; it reads none. It is shut out again only by \
             naming it under `distrusted-writers` on every host.\nknown before:\n",
        );
        for known in self.writers.iter().filter(|w| *w != writer) {
            t.push_str(&format!("  {known}\n"));
        }
        t
    }
}

/// Opens a backup by its id or the beginning of one. `latest` is the newest of this pipeline: in a repository of several
/// hosts another's may be newer. Where nothing tells whose a backup is, it is the newest of all.
pub async fn read(pipeline: &Pipeline, repository: &Repository, wanted: &str) -> Result<OpenBackup, PipelineError> {
    let mut wanted = wanted.to_owned();
    if wanted == "latest" {
        let all = repository.backups().await.map_err(PipelineError::repository)?;
        let of_this = |b: &&BackupSummary| body(b).is_ok_and(|body| body.pipeline == pipeline.name);
        match all.iter().rev().find(of_this) {
            Some(newest) => wanted = newest.id.to_string(),
            None if !all.is_empty() => {
                tracing::warn!(pipeline = %pipeline.name, "no backup says that it is of this pipeline; the newest of all is taken");
            }
            None => {}
        }
    }
    repository.read(&wanted).await.map_err(PipelineError::repository)
}

/// Opens it with the keys at hand.
pub async fn open(
    pipeline: &Pipeline,
    writer: Option<WriterKey>,
    identities: Vec<Identity>,
) -> Result<Repository, PipelineError> {
    let access = Access {
        writer,
        identities,
        recipients: keys::recipients(pipeline)?,
        cache_dir: pipeline.repository.cache.clone(),
        state_dir: pipeline.repository.state.clone(),
        options: Options {
            compression_level: pipeline.repository.compression_level,
            trusted_writers: pipeline.repository.trusted_writers.clone(),
            distrusted_writers: pipeline.repository.distrusted_writers.clone(),
            // A disk writes one pack as fast as two; each one waiting costs its size in memory.
            uploads: if pipeline.repository.url.contains("://") { 2 } else { 1 },
            ..Options::default()
        },
    };
    Repository::open(store(pipeline)?, access)
        .await
        .map_err(PipelineError::repository)
}

/// Opens it for reading, with whatever keys there are.
pub async fn open_to_read(pipeline: &Pipeline, identity_files: &[PathBuf]) -> Result<Repository, PipelineError> {
    let identities = keys::identities(identity_files)?;
    let writer = keys::writer_if_there(pipeline)?;
    open(pipeline, writer, identities).await
}

/// What the pipeline stored with a backup.
pub fn body(summary: &BackupSummary) -> Result<BackupBody, PipelineError> {
    let Some(body) = &summary.body else {
        return Err(PipelineError::Repository {
            problem: format!(
                "backup {}: no key here opens its manifest; run where the writer key is, or give --identity",
                summary.id
            ),
        });
    };
    body.read().map_err(|e| PipelineError::Repository {
        problem: format!(
            "backup {}: its manifest does not read as one of essrun's: {e}",
            summary.id
        ),
    })
}

/// One line of a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listed {
    pub id: String,
    /// The writer that took it.
    pub writer: String,
    /// Whether a key at hand opens what it says of itself; another host's is not.
    pub readable: bool,
    /// The pipeline it is of, where it is readable.
    pub pipeline: Option<String>,
    pub taken_at: i64,
    /// Plain bytes it stands for, and bytes of the objects written for it; of one that is not readable they are not known.
    pub bytes: Option<u64>,
    pub stored_bytes: Option<u64>,
    pub state: State,
    /// Why it is suspect.
    pub suspect: Vec<String>,
    /// Absent components, with reasons.
    pub missing: Vec<String>,
    pub components: Vec<String>,
    pub drill: Option<DrillNote>,
    /// Objects of it that are lost for good; `show` says what that concerns.
    pub lost_objects: u64,
}

/// What is kept of a drill.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DrillNote {
    /// Seconds since 1970-01-01 UTC.
    pub at: i64,
    pub passed: bool,
    pub errors: usize,
    pub warnings: usize,
    /// Why it did not come to verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How fast it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
}

/// All backups, oldest first. Without the writer key an identity opens what they say of themselves.
pub async fn list(pipeline: &Pipeline, identity: &[PathBuf]) -> Result<Vec<Listed>, PipelineError> {
    let repository = open_to_read(pipeline, identity).await?;
    let mut listed = Vec::new();
    let backups = repository.backups_annotated().await;
    for (summary, notes) in backups.map_err(PipelineError::repository)? {
        listed.push(Listed::of(&summary, Standing::with(&summary, &notes)?));
    }
    Ok(listed)
}

impl Listed {
    pub(crate) fn of(summary: &BackupSummary, standing: Standing) -> Listed {
        let Standing {
            state,
            suspect,
            body,
            drill,
        } = standing;
        let stats = body.as_ref().map(|_| summary.stats);
        let components = body.iter().flat_map(|b| &b.components);
        Listed {
            id: summary.id.to_string(),
            writer: summary.writer.to_string(),
            readable: body.is_some(),
            pipeline: body.as_ref().map(|b| b.pipeline.clone()),
            taken_at: body.as_ref().map_or(summary.created_at, |b| b.started_at),
            bytes: stats.map(|s| s.bytes_read.saturating_add(s.bytes_adopted)),
            stored_bytes: stats.map(|s| s.bytes_stored),
            state,
            suspect,
            missing: body.as_ref().map(BackupBody::missing).unwrap_or_default(),
            components: components
                .filter(|c| c.failed.is_none())
                .map(|c| c.name.clone())
                .collect(),
            drill,
            lost_objects: summary.lost_objects,
        }
    }
}

/// The newest drill among a backup's annotations. Of several in one second a failed one counts: which came last is not
/// known, and doubt must not look like proof.
pub fn drill_note(notes: &[Annotation]) -> Result<Option<DrillNote>, PipelineError> {
    let drills = || notes.iter().filter(|a| a.kind == DRILL);
    let Some(newest) = drills().map(|a| a.created_at).max() else {
        return Ok(None);
    };
    let mut last: Option<DrillNote> = None;
    for a in drills().filter(|a| a.created_at == newest) {
        let note: DrillNote = serde_json::from_value(a.body.clone()).map_err(|e| PipelineError::Repository {
            problem: format!("backup {}: the note of its drill does not read: {e}", a.backup),
        })?;
        if last.as_ref().is_none_or(|l| l.passed) {
            last = Some(note);
        }
    }
    Ok(last)
}

/// Everything one backup says about itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shown {
    pub id: String,
    pub summary: BackupSummary,
    pub body: BackupBody,
    pub artifacts: Vec<ShownArtifact>,
    /// Why it is suspect.
    pub suspect: Vec<String>,
    pub drill: Option<DrillNote>,
    /// Artifacts that cannot be read in full any more, as `repair` found.
    pub damaged: Vec<essrun_repository::Damaged>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShownArtifact {
    pub name: String,
    pub kind: String,
    pub sensitivity: essrun_artifact::Sensitivity,
    pub bytes: u64,
    pub items: Option<u64>,
    /// Finished before its component failed: no restore takes it.
    pub incomplete: bool,
}

/// Rows of a table, entries of a volume: makers keep it under one of these names.
pub fn items(record: &ArtifactRecord) -> Option<u64> {
    ["rows", "entries"]
        .iter()
        .find_map(|key| record.meta.get(key).and_then(serde_json::Value::as_u64))
}

/// Length of the plain bytes an artifact stands for: a volume's content is only its listing, a split table's its first part.
pub fn size(record: &ArtifactRecord) -> u64 {
    match record.meta.get("bytes").and_then(serde_json::Value::as_u64) {
        Some(bytes) if [essrun_volume::KIND, essrun_postgres::dump::KIND_TABLE].contains(&record.kind.as_str()) => {
            bytes
        }
        _ => record.content.bytes,
    }
}

pub async fn show(pipeline: &Pipeline, wanted: &str, identity: &[PathBuf]) -> Result<Shown, PipelineError> {
    let repository = open_to_read(pipeline, identity).await?;
    let backup = read(pipeline, &repository, wanted).await?;
    let summary = backup.summary().clone();
    let standing = Standing::of(&repository, &summary).await?;
    let body = body(&summary)?;
    Ok(Shown::of(
        summary,
        body,
        standing,
        backup.artifacts(),
        backup.damaged().to_vec(),
    ))
}

impl Shown {
    pub(crate) fn of(
        summary: BackupSummary,
        body: BackupBody,
        standing: Standing,
        artifacts: &[ArtifactRecord],
        damaged: Vec<essrun_repository::Damaged>,
    ) -> Shown {
        Shown {
            id: summary.id.to_string(),
            suspect: standing.suspect,
            drill: standing.drill,
            damaged,
            artifacts: artifacts
                .iter()
                .map(|a| ShownArtifact {
                    name: a.name.to_string(),
                    kind: a.kind.clone(),
                    sensitivity: a.sensitivity,
                    bytes: size(a),
                    items: items(a),
                    incomplete: body.failed(&a.name).is_some(),
                })
                .collect(),
            body,
            summary,
        }
    }

    /// In words.
    pub fn text(&self, artifacts: bool) -> String {
        use std::fmt::Write;
        let mut t = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(
            t,
            "backup {}  of pipeline {:?} on {}",
            self.id, self.body.pipeline, self.body.host
        );
        let _ = writeln!(
            t,
            "taken {} UTC, committed {} UTC, by essrun {}",
            utc(self.body.started_at),
            utc(self.body.finished_at),
            self.body.essrun
        );
        for why in &self.suspect {
            let _ = writeln!(t, "SUSPECT: {why}");
        }
        match &self.drill {
            None => t.push_str("never restored in a drill: it is not yet known to be good\n"),
            Some(d) if d.passed => {
                let _ = writeln!(
                    t,
                    "restored in a drill {} UTC: passed, {} warning(s)",
                    utc(d.at),
                    d.warnings
                );
            }
            Some(d) => {
                let _ = writeln!(
                    t,
                    "restored in a drill {} UTC: FAILED with {} error(s){}",
                    utc(d.at),
                    d.errors,
                    d.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
                );
            }
        }
        for d in &self.damaged {
            let _ = writeln!(t, "DAMAGED, cannot be restored: {} ({})", d.artifact, d.why);
        }
        for instant in &self.body.instants {
            let _ = writeln!(t, "instant {}: {}", instant.group, crate::instant::in_words(instant));
        }
        for c in &self.body.components {
            let _ = writeln!(t, "\n{} ({} {}, {})", c.name, c.system, c.component_version, c.tier);
            if let Some(why) = &c.failed {
                let _ = writeln!(t, "  FAILED, cannot be restored from this backup: {why}");
            }
            for (label, source) in &c.sources {
                let _ = writeln!(t, "  {label}: from {source}");
            }
            for l in &c.left_out {
                let _ = writeln!(t, "  left out of {}: {} ({})", l.label, l.what, l.why);
            }
            for n in &c.notes {
                let _ = writeln!(t, "  {}: {}", n.severity, n.text);
            }
            let (many, named): (Vec<_>, Vec<_>) = c.facts.iter().partition(|f| one_of_many(&f.key));
            for f in named {
                let _ = writeln!(t, "  {} = {}", f.key, f.value);
            }
            if !many.is_empty() {
                let _ = writeln!(t, "  and {} counts and positions (--json shows them)", many.len());
            }
            let own: Vec<_> = self
                .artifacts
                .iter()
                .filter(|a| a.name.split('/').next() == Some(&c.name))
                .collect();
            let bytes = own.iter().fold(0u64, |sum, a| sum.saturating_add(a.bytes));
            match &c.failed {
                None => {
                    let _ = writeln!(t, "  {} artifacts, {bytes} bytes", own.len());
                }
                Some(_) if own.is_empty() => {}
                Some(_) => {
                    let _ = writeln!(
                        t,
                        "  {} artifacts, {bytes} bytes, were finished before it failed: each is whole, the component is \
                         not; no restore takes them, `extract --incomplete` hands them out",
                        own.len()
                    );
                }
            }
            if artifacts {
                for a in own {
                    let items = a.items.map(|i| format!("{i} items")).unwrap_or_default();
                    let _ = writeln!(t, "    {:<60} {:<15} {:>14} bytes {items}", a.name, a.kind, a.bytes);
                }
            }
        }
        t
    }
}

/// Facts there is one of for every table or sequence: a person reads them only when something is compared. All others,
/// versions and keys above all, are told by name.
fn one_of_many(key: &str) -> bool {
    const KINDS: &[&str] = &[
        "dumped-rows",
        "rows",
        "single-row",
        "sequence",
        "sqlite-sequence",
        "stream-position",
    ];
    key.split_once('/').is_some_and(|(kind, _)| KINDS.contains(&kind))
}

/// `K/N`, 1 ≤ K ≤ N.
pub fn parse_subset(text: &str) -> Result<(u32, u32), PipelineError> {
    text.split_once('/')
        .and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)))
        .filter(|(k, n)| (1..=*n).contains(k))
        .ok_or_else(|| {
            PipelineError::refused(
                format!("{text:?} is not a part of the repository"),
                "write K/N with 1 ≤ K ≤ N, as 1/7",
            )
        })
}

/// What a check found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// How deep it looked: `public`, `writer` or `full`.
    pub depth: &'static str,
    pub good: bool,
    #[serde(flatten)]
    pub report: CheckReport,
}

/// Checks the repository as deeply as the keys allow.
pub async fn check(
    pipeline: &Pipeline,
    identity_files: &[PathBuf],
    subset: Option<(u32, u32)>,
) -> Result<Checked, PipelineError> {
    let identities = keys::identities(identity_files)?;
    let writer = keys::writer_if_there(pipeline)?;
    let (mode, depth) = if !identities.is_empty() {
        let (part, of) = subset.unwrap_or((1, 1));
        (CheckMode::Full { part, of }, "full")
    } else if writer.is_some() {
        (CheckMode::Writer, "writer")
    } else {
        (CheckMode::Public, "public")
    };
    let repository = open(pipeline, writer, identities).await?;
    let report = repository
        .check_with(mode, &crate::makers::AllMakers)
        .await
        .map_err(PipelineError::repository)?;
    Ok(Checked {
        depth,
        good: report.is_good(),
        report,
    })
}

impl Checked {
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let r = &self.report;
        let mut t = String::new();
        for f in &r.findings {
            let affects: Vec<_> = f.affects.iter().map(ToString::to_string).collect();
            let _ = write!(t, "{:?}: {}: {}", f.kind, f.object, f.detail);
            if !affects.is_empty() {
                let _ = write!(t, " (needed by {})", affects.join(", "));
            }
            t.push('\n');
        }
        let depth = match self.depth {
            "full" => "everything read back",
            "writer" => "objects, indexes and manifests; give --identity to read all contents back",
            _ => "objects against the signed lists; a writer key or --identity looks deeper",
        };
        let _ = writeln!(
            t,
            "{} backups, {} objects, {} bytes read, {} chunks verified ({depth}): {}",
            r.backups,
            r.objects,
            r.bytes_read,
            r.chunks_verified,
            if self.good { "good" } else { "NOT GOOD" }
        );
        t
    }

    pub fn into_error(self) -> Result<(), PipelineError> {
        if self.good {
            return Ok(());
        }
        let findings: Vec<_> = self
            .report
            .findings
            .iter()
            .map(|f| format!("{}: {}", f.object, f.detail))
            .collect();
        Err(PipelineError::Findings {
            what: "check".into(),
            errors: findings.len(),
            findings,
        })
    }
}

/// Counts of a set of findings.
pub fn tally(findings: &[Finding]) -> (usize, usize) {
    let count = |s| findings.iter().filter(|f| f.severity == s).count();
    (count(Severity::Error), count(Severity::Warning))
}
