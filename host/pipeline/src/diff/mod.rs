//! What changed between two backups.
//!
//! Both manifests are held beside each other, component by component and artifact by artifact; nothing of the suite is
//! asked and no content is fetched. Two artifacts are the same when they are made of the same chunks, or when their maker
//! kept the same digest of both (after a key was replaced chunks have other names). How much of a changed one is new is
//! told by the names of its chunks; which files changed, by the two listings. It promises that what is not shown as changed
//! is the same, and that memory does not grow with the backups. Two things differ between any two backups and are not
//! told: the snapshot's name in a database's own facts, and inode numbers and directories' times in a listing. What it
//! must never do: call something the same because it could not be compared.

mod bytes;
mod files;
mod words;

use crate::body::{BackupBody, ComponentBody};
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::repo;
use essrun_artifact::{ArtifactRecord, BackupReader};
use essrun_postgres::dump;
use essrun_repository::OpenBackup;
pub use files::Files;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct DiffOptions {
    /// Ids, the beginnings of them, or `latest`.
    pub from: String,
    pub to: String,
    pub identities: Vec<PathBuf>,
    /// Only these components; empty: all.
    pub only: Vec<String>,
    /// How many files of each kind of change are named; all are counted.
    pub named_files: usize,
}

/// What changed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Diff {
    pub event: &'static str,
    pub from: Side,
    pub to: Side,
    /// Whether anything changed at all.
    pub changed: bool,
    pub components: Vec<ComponentDiff>,
}

/// One of the two backups.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Side {
    pub backup: String,
    pub taken_at: i64,
    pub pipeline: String,
    pub host: String,
    /// Read, or taken over from the backup before.
    pub bytes: u64,
    /// Of that what no backup had before, and what it took in the store.
    pub new_bytes: u64,
    pub stored_bytes: u64,
}

/// The two values of something; `null` where one backup does not have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair<T> {
    pub from: Option<T>,
    pub to: Option<T>,
}

impl<T: PartialEq> Pair<T> {
    fn changed(&self) -> bool {
        self.from != self.to
    }
}

/// How something stands in the second backup, against the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    Added,
    Removed,
    Changed,
    Same,
}

impl Change {
    fn of(from: bool, to: bool, differs: bool) -> Change {
        match (from, to, differs) {
            (false, _, _) => Change::Added,
            (true, false, _) => Change::Removed,
            (true, true, true) => Change::Changed,
            (true, true, false) => Change::Same,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ComponentDiff {
    pub component: String,
    pub change: Change,
    /// Of the essrun component.
    pub version: Pair<String>,
    /// Why it is not wholly in a backup.
    pub failed: Pair<String>,
    /// Digests of the definitions, by label; only those that differ.
    pub schemas: BTreeMap<String, Pair<String>>,
    /// Only those that differ.
    pub facts: BTreeMap<String, Pair<String>>,
    /// Only those that differ.
    pub artifacts: Vec<ArtifactDiff>,
    /// How many are the same.
    pub same: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ArtifactDiff {
    pub artifact: String,
    pub kind: String,
    pub change: Change,
    /// Rows of a table, entries of a volume.
    pub items: Pair<u64>,
    pub bytes: Pair<u64>,
    /// Bytes of the second one in pieces the first one does not have; `null` where that cannot be told.
    pub new_bytes: Option<u64>,
    /// Of volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Files>,
}

/// Compares two backups.
pub async fn run(pipeline: &Pipeline, options: &DiffOptions) -> Result<Diff, PipelineError> {
    let repository = repo::open_to_read(pipeline, &options.identities).await?;
    let read = async |wanted: &str| repo::read(pipeline, &repository, wanted).await;
    let (from, to) = (read(&options.from).await?, read(&options.to).await?);
    let (from_body, to_body) = (repo::body(from.summary())?, repo::body(to.summary())?);
    let names: BTreeSet<&str> = [&from_body, &to_body]
        .into_iter()
        .flat_map(|b| b.components.iter().map(|c| c.name.as_str()))
        .collect();
    if let Some(unknown) = options.only.iter().find(|o| !names.contains(o.as_str())) {
        return Err(PipelineError::refused(
            format!("neither backup holds component {unknown}"),
            format!("they hold {}", Vec::from_iter(names).join(", ")),
        ));
    }
    let mut components = Vec::new();
    for name in names {
        if options.only.is_empty() || options.only.iter().any(|o| o == name) {
            let pair = Backups {
                from: &from,
                to: &to,
                named_files: options.named_files,
            };
            components.push(
                pair.component(name, from_body.component(name), to_body.component(name))
                    .await?,
            );
        }
    }
    Ok(Diff {
        event: "diff",
        changed: components.iter().any(|c| c.change != Change::Same),
        from: side(&from, &from_body),
        to: side(&to, &to_body),
        components,
    })
}

fn side(backup: &OpenBackup, body: &BackupBody) -> Side {
    let summary = backup.summary();
    Side {
        backup: summary.id.to_string(),
        taken_at: body.started_at,
        pipeline: body.pipeline.clone(),
        host: body.host.clone(),
        bytes: summary.stats.bytes_read.saturating_add(summary.stats.bytes_adopted),
        new_bytes: summary.stats.bytes_new,
        stored_bytes: summary.stats.bytes_stored,
    }
}

/// A component's artifacts, by their names after `component/`.
fn artifacts<'a>(backup: &'a OpenBackup, component: &str) -> BTreeMap<&'a str, &'a ArtifactRecord> {
    let prefix = format!("{component}/");
    let own = backup.artifacts().iter();
    own.filter_map(|a| Some((a.name.as_str().strip_prefix(&prefix)?, a)))
        .collect()
}

/// The digests its maker kept of a whole artifact, if it did: of a table one for each part.
fn digest(record: &ArtifactRecord) -> Option<Vec<String>> {
    let text = |value: &Value| value.get("digest").and_then(Value::as_str).map(str::to_owned);
    match record.kind.as_str() {
        dump::KIND_TABLE => {
            let parts = record.meta.get("parts")?.as_array()?;
            // Of the parts in order; other parts with the same rows do not compare, and count as changed.
            let digests: Option<Vec<String>> = parts.iter().map(text).collect();
            // One without parts says nothing of its rows.
            digests.filter(|d| !d.is_empty())
        }
        _ => text(&record.meta).map(|d| vec![d]),
    }
}

/// Whether two artifacts hold the same bytes.
pub(crate) fn same(from: &ArtifactRecord, to: &ArtifactRecord) -> bool {
    if from.kind != to.kind {
        return false;
    }
    // Further parts of a table stand in its meta.
    if from.kind == dump::KIND_FACTS {
        let told =
            |r: &ArtifactRecord| ["database", "server_version_number", "schema_digest"].map(|k| r.meta.get(k).cloned());
        // Where the digest of the definitions was not kept, nothing of them was compared.
        return told(from) == told(to) && (schema(Some(&from)).is_some() || from.meta == to.meta);
    }
    let chunks = from.content == to.content && from.meta.get("parts") == to.meta.get("parts");
    chunks || digest(from).is_some_and(|d| digest(to) == Some(d))
}

/// The digest of a database's definitions, where this artifact carries it.
fn schema(record: Option<&&ArtifactRecord>) -> Option<String> {
    let record = record.filter(|r| r.kind == dump::KIND_FACTS)?;
    record.meta.get("schema_digest")?.as_str().map(str::to_owned)
}

struct Backups<'a> {
    from: &'a OpenBackup,
    to: &'a OpenBackup,
    named_files: usize,
}

impl Backups<'_> {
    async fn component(
        &self,
        name: &str,
        from: Option<&ComponentBody>,
        to: Option<&ComponentBody>,
    ) -> Result<ComponentDiff, PipelineError> {
        let (old, new) = (artifacts(self.from, name), artifacts(self.to, name));
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        let mut schemas = BTreeMap::new();
        let mut changed = Vec::new();
        for &artifact in &names {
            let (a, b) = (old.get(artifact), new.get(artifact));
            let digests = Pair {
                from: schema(a),
                to: schema(b),
            };
            if digests.changed() {
                let label = artifact.split('/').next().unwrap_or(artifact).to_owned();
                schemas.insert(label, digests);
            }
            if let Some(diff) = self.artifact(artifact, a.copied(), b.copied()).await? {
                changed.push(diff);
            }
        }
        let facts = facts(from, to);
        let version = Pair {
            from: from.map(|c| c.component_version.clone()),
            to: to.map(|c| c.component_version.clone()),
        };
        let failed = Pair {
            from: from.and_then(|c| c.failed.clone()),
            to: to.and_then(|c| c.failed.clone()),
        };
        let differs = !changed.is_empty() || !facts.is_empty() || version.changed() || failed.changed();
        Ok(ComponentDiff {
            component: name.to_owned(),
            change: Change::of(from.is_some(), to.is_some(), differs),
            version,
            failed,
            schemas,
            facts,
            same: names.len() - changed.len(),
            artifacts: changed,
        })
    }

    /// `None` where it is the same.
    async fn artifact(
        &self,
        name: &str,
        from: Option<&ArtifactRecord>,
        to: Option<&ArtifactRecord>,
    ) -> Result<Option<ArtifactDiff>, PipelineError> {
        let is_same = from.zip(to).is_some_and(|(a, b)| same(a, b));
        if is_same {
            return Ok(None);
        }
        let volumes = from.or(to).is_some_and(|r| r.kind == essrun_volume::KIND)
            && to.or(from).is_some_and(|r| r.kind == essrun_volume::KIND);
        let files = match volumes {
            true => Some(files::compare(self, from, to).await?),
            false => None,
        };
        if let (Some(files), Some(_), Some(_)) = (&files, from, to)
            && files.none()
        {
            return Ok(None);
        }
        let new_bytes = match (&files, to) {
            (_, None) => None,
            (Some(files), Some(_)) => Some(files.new_bytes),
            (None, Some(to)) => bytes::new(self, from, to).await?,
        };
        Ok(Some(ArtifactDiff {
            artifact: name.to_owned(),
            kind: to.or(from).map(|r| r.kind.clone()).unwrap_or_default(),
            change: Change::of(from.is_some(), to.is_some(), true),
            items: Pair {
                from: from.and_then(repo::items),
                to: to.and_then(repo::items),
            },
            bytes: Pair {
                from: from.map(repo::size),
                to: to.map(repo::size),
            },
            new_bytes,
            files,
        }))
    }
}

/// The facts that differ.
fn facts(from: Option<&ComponentBody>, to: Option<&ComponentBody>) -> BTreeMap<String, Pair<String>> {
    let mut all: BTreeMap<String, Pair<String>> = BTreeMap::new();
    let none = || Pair { from: None, to: None };
    for fact in from.iter().flat_map(|c| &c.facts) {
        all.entry(fact.key.clone()).or_insert_with(none).from = Some(fact.value.clone());
    }
    for fact in to.iter().flat_map(|c| &c.facts) {
        all.entry(fact.key.clone()).or_insert_with(none).to = Some(fact.value.clone());
    }
    all.retain(|_, pair| pair.changed());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use essrun_artifact::{ArtifactName, ChunkId, ChunkList, ChunkRef, Content, Sensitivity};
    use serde_json::json;

    fn record(kind: &str, chunk: u8, meta: Value) -> ArtifactRecord {
        let id = ChunkId([chunk; 32]);
        ArtifactRecord {
            name: ArtifactName::new("a/b/c").unwrap(),
            kind: kind.to_owned(),
            sensitivity: Sensitivity::Secret,
            meta,
            content: Content {
                bytes: 1,
                chunks: ChunkList::Inline(vec![ChunkRef { id, bytes: 1 }]),
            },
        }
    }

    #[test]
    fn the_same_is_what_has_the_same_chunks_or_the_same_digest() {
        let table = |chunk, parts: Value| record(dump::KIND_TABLE, chunk, json!({ "parts": parts }));
        let one = || json!([{"digest": "x", "rows": 1}]);
        assert!(same(&table(1, one()), &table(1, one())));
        assert!(same(&table(1, one()), &table(2, one())), "other names, same digest");
        assert!(!same(&table(1, one()), &table(1, json!([{"digest": "y"}]))));
        let two = json!([{"digest": "x"}, {"digest": "z"}]);
        assert!(!same(&table(1, one()), &table(1, two)), "a further part");
        assert!(
            !same(&table(1, json!([{}])), &table(2, json!([{}]))),
            "without a digest"
        );
        let ddl = |chunk, digest: Value| record(dump::KIND_DDL, chunk, json!({ "digest": digest }));
        assert!(same(&ddl(1, json!("x")), &ddl(2, json!("x"))));
        assert!(!same(&ddl(1, json!("x")), &ddl(2, json!("y"))));
        assert!(!same(&ddl(1, json!("x")), &record("other", 1, json!({"digest": "x"}))));
        let facts = |digest: &str, schema: &str| {
            let meta = json!({"database": "d", "schema_digest": schema, "digest": digest});
            record(dump::KIND_FACTS, 1, meta)
        };
        assert!(same(&facts("a", "s"), &facts("b", "s")), "another snapshot");
        assert!(!same(&facts("a", "s"), &facts("a", "t")));
        let silent = |roles: Value| record(dump::KIND_FACTS, 1, json!({"database": "d", "roles": roles}));
        assert!(!same(&silent(json!(["x"])), &silent(json!([]))), "no digest");
        assert!(same(&silent(json!(["x"])), &silent(json!(["x"]))));
        assert!(!same(&table(1, json!([])), &table(2, json!([]))), "no parts");
        let joined = json!([{"digest": "x z"}]);
        assert!(!same(
            &table(1, joined),
            &table(2, json!([{"digest": "x"}, {"digest": "z"}]))
        ));
    }
}
