//! The doors that fuzzers come in by: pipeline.toml, and what of a backup this room reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::Pipeline;
use crate::body::BackupBody;
use crate::repo::{DrillNote, parse_subset};
use std::path::Path;

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("body", body), ("toml", toml)];

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
