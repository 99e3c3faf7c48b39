//! The doors that fuzzers come in by: names, places, and the files that a store's settings lie in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::{Location, ObjectName, remote, s3};

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("place", place)];

/// An object's name, a repository's place, a file of credentials, the record of how objects are created.
pub fn place(data: &[u8]) {
    let _ = remote::Creation::read(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = ObjectName::new(text) {
        let path = std::path::Path::new(name.as_str());
        let plain = |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_));
        assert!(path.components().all(plain), "{name} leads elsewhere");
    }
    if let Ok(Location::S3 { bucket, .. }) = text.parse::<Location>() {
        assert!(!bucket.is_empty() && !bucket.contains('/'));
    }
    if let Err(why) = s3::fuzz_credentials(text, "default") {
        let secret = text.lines().filter_map(|l| l.split_once('=')).map(|(_, v)| v.trim());
        for secret in secret.filter(|s| s.len() > 30) {
            assert!(!why.contains(secret), "an error tells a secret");
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
