//! The doors that fuzzers come in by: pipeline.toml, what comes with a plugin or a policy, and what of a backup this room
//! reads. What belongs together stands in a file of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod backups;
mod plugins;
mod policies;
mod texts;

pub use backups::{compare, instants, standing};
pub use plugins::{described, pin, signature};
pub use policies::{approval, told};
pub use texts::{lengths, runbook};

use crate::Pipeline;
use crate::body::BackupBody;
use crate::repo::{self, DrillNote, parse_subset};
use crate::standing::State;
use essrun_artifact::{ArtifactName, ArtifactRecord, ChunkList, Content, Sensitivity};
use essrun_postgres::dump::{TableMeta, table_contents};
use std::path::Path;
use std::sync::OnceLock;

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("approval", approval),
    ("body", body),
    ("compare", compare),
    ("described", described),
    ("instants", instants),
    ("lengths", lengths),
    ("meta", meta),
    ("pin", pin),
    ("runbook", runbook),
    ("signature", signature),
    ("standing", standing),
    ("told", told),
    ("toml", toml),
];

/// A pipeline, for what is only told beside one.
fn a_pipeline() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| {
        let text = "version = 1\nname = \"p\"\n[repository]\nurl = \"/r\"\n[status]\nmax-age = \"26h\"\n\
                    max-drill-age = \"8d\"\n[components.a]\nuse = \"generic\"\n[components.b]\nuse = \"generic\"\n\
                    [groups.g]\nconsistent = [\"a\", \"b\"]\n";
        Pipeline::parse(Path::new("/p.toml"), text).unwrap()
    })
}

/// What stands before and after a line that is `between` and nothing else; the whole where there is none.
fn parts<'a>(text: &'a str, between: &str) -> Vec<&'a str> {
    text.split(&format!("\n{between}\n")).collect()
}

/// A pipeline file. What it names is not opened, but a file of recipients would be read.
pub fn toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains("recipients-file") {
        return;
    }
    match Pipeline::parse(Path::new("/nowhere/ess.toml"), text) {
        Ok(pipeline) => {
            assert!(!pipeline.components.is_empty() && !pipeline.repository.url.is_empty());
            for group in &pipeline.groups {
                assert!(group.components.iter().all(|c| pipeline.component(c).is_some()));
            }
        }
        Err(e) => {
            let said = e.to_string();
            assert!(said.contains("ess.toml"), "it does not say where: {said}");
        }
    }
}

/// The pipeline's part of a manifest, and a note beside a backup.
pub fn body(data: &[u8]) {
    if let Ok(body) = serde_json::from_slice::<BackupBody>(data) {
        let again = serde_json::to_vec(&body).unwrap();
        assert_eq!(serde_json::from_slice::<BackupBody>(&again).unwrap(), body);
        assert!(body.missing().len() <= body.components.len());
    }
    if let Ok(note) = serde_json::from_slice::<DrillNote>(data) {
        serde_json::to_vec(&note).unwrap();
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok((k, n)) = parse_subset(text)
    {
        assert!((1..=n).contains(&k));
    }
}

/// Read, written and read again it is the same.
fn twice<T: serde::de::DeserializeOwned + serde::Serialize>(data: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_value(&read).unwrap();
    let again: T = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), written);
    Some(read)
}

/// What makers keep beside an artifact, and the facts of a database: the first byte says which. All of it comes out of a
/// manifest, and is read before a restore does anything.
pub fn meta(data: &[u8]) {
    let Some((kind, json)) = data.split_first() else { return };
    let (kind, table) = match kind {
        b't' => (essrun_postgres::dump::KIND_TABLE, true),
        b's' => (essrun_sqlite::KIND, false),
        b'v' => (essrun_volume::KIND, false),
        b'd' => return drop(twice::<essrun_postgres::dump::DatabaseFacts>(json)),
        b'b' => {
            if let Some(body) = twice::<BackupBody>(json) {
                let missing = body.missing().len();
                assert_eq!(
                    crate::standing::Standing::of_result(body).state == State::Normal,
                    missing == 0
                );
            }
            return;
        }
        _ => return,
    };
    drop(twice::<essrun_sqlite::SqliteMeta>(json));
    drop(twice::<essrun_volume::VolumeMeta>(json));
    let Ok(meta) = serde_json::from_slice(json) else { return };
    let record = ArtifactRecord {
        name: ArtifactName::new("a/b").unwrap(),
        kind: kind.to_owned(),
        sensitivity: Sensitivity::Internal,
        meta,
        content: Content {
            bytes: 5,
            chunks: ChunkList::Inline(Vec::new()),
        },
    };
    let _ = (repo::items(&record), repo::size(&record));
    if let Ok(meta) = TableMeta::of(&record) {
        // Every part is there, the first one being the artifact's own.
        let contents = table_contents(&record).unwrap();
        assert_eq!(contents.len(), meta.parts.len());
        assert_eq!(contents[0], record.content);
        if table {
            assert_eq!(repo::size(&record), meta.bytes);
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpora.rs"]
mod corpora;

#[cfg(test)]
mod tests {
    use super::corpora;

    #[test]
    fn every_corpus_is_decoded_or_refused() {
        corpora::run(super::TARGETS);
    }
}
