//! The doors that fuzzers come in by: names, places, the files that a store's settings lie in, and what a server answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::elected::{self, Standing};
use crate::error::LONGEST_REASON;
use crate::s3::BucketState;
use crate::{Location, ObjectInfo, ObjectName, StoreError, leftovers, remote, s3};
use std::collections::BTreeSet;
use std::path::Path;

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("answers", answers), ("place", place)];

/// What a server or a directory shows. The first line says what it is: `status` and a number before an answer about a
/// bucket, `claims` before a listing of claims (a second and a name on each line), `error` before an error's text,
/// `path` before a path in a directory.
pub fn answers(data: &[u8]) {
    let at = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (kind, rest) = data.split_at(at);
    let (kind, rest) = (String::from_utf8_lossy(kind), rest.get(1..).unwrap_or_default());
    if let Some(status) = kind.strip_prefix("status ").and_then(|s| s.parse().ok()) {
        return answer(status, rest);
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match &*kind {
        "claims" => claims(text),
        "error" => error(text),
        "path" => staging(text),
        _ => {}
    }
}

/// What is said to a person are the fields that were looked for and plain words, however long and odd the answer is.
fn answer(status: u16, body: &[u8]) {
    for fields in [&["Status"][..], &["ObjectLockEnabled", "Mode", "Days", "Years"]] {
        match BucketState::of(status, body, fields) {
            BucketState::Said(said) => {
                assert!((200..300).contains(&status));
                for one in said.split(", ") {
                    let (field, word) = one.split_once(' ').unwrap();
                    assert!(fields.iter().any(|f| f.to_lowercase() == field), "{one:?}");
                    assert!((1..=40).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric()));
                }
            }
            BucketState::Unset => assert!((200..300).contains(&status) || status == 404),
            BucketState::Untold(why) => {
                assert!(!(200..300).contains(&status) && why.len() < 40);
                assert!(!why.contains(char::is_control));
            }
        }
    }
}

/// Of all who find themselves in one listing at most one may create the object, and nobody's claim is taken away by
/// somebody whose own it outlasts.
fn claims(text: &str) {
    let mut seen = BTreeSet::new();
    let claims: Vec<ObjectInfo> = text
        .lines()
        .take(40)
        .filter_map(|line| {
            let (modified, name) = line.split_once(' ')?;
            let name = ObjectName::new(name).ok()?;
            let modified_unix_seconds = modified.parse().ok()?;
            let info = ObjectInfo {
                name: name.clone(),
                bytes: 0,
                modified_unix_seconds,
            };
            seen.insert(name).then_some(info)
        })
        .collect();
    let (mut alone, mut first) = (0, 0);
    for claim in &claims {
        let (from, until) = (claim.modified_unix_seconds, elected::counts_until(claim));
        assert!(until > from || until == i64::MAX, "it never counts");
        assert!(until <= from.saturating_add(86_401), "it counts for more than a day");
        let (standing, dead) = elected::standing_among(&claims, &claim.name).expect("it is there");
        for old in &dead {
            let (_, took) = elected::standing_among(&claims, old).unwrap();
            assert!(!took.contains(&&claim.name), "each takes away the other's");
            let old = claims.iter().find(|c| c.name == **old).unwrap();
            assert!(elected::counts_until(old) < from);
        }
        match standing {
            Standing::Alone => {
                alone += 1;
                assert_eq!(dead.len() + 1, claims.len());
            }
            Standing::First => {
                first += 1;
                assert!(dead.len() + 1 < claims.len());
            }
            Standing::Behind => assert!(claims.len() > 1),
        }
    }
    assert!(alone <= 1, "{alone} may create one name");
    // Among claims that all count somebody is first, so not everybody gives way for ever.
    let all_live = claims.iter().all(|c| {
        let others = claims.iter().filter(|o| o.name != c.name);
        others
            .into_iter()
            .all(|o| elected::counts_until(o) >= c.modified_unix_seconds)
    });
    assert!(claims.is_empty() || !all_live || alone + first == 1);
    let absent = ObjectName::new("claims/of-nobody").unwrap();
    assert!(seen.contains(&absent) || elected::standing_among(&claims, &absent).is_none());
}

/// What a server answers instead of an object: told in short, and not kept from saying whether to try again.
fn error(text: &str) {
    let source = std::io::Error::other(text.to_owned());
    let error = object_store::Error::Generic {
        store: "S3",
        source: source.into(),
    };
    let error = StoreError::from_object_store_str("read", "x", "here", error);
    assert!(error.why.len() <= LONGEST_REASON + 3);
    let _ = error.is_transient();
}

/// A file in a directory is a leftover only where taking off its end leaves an object's name.
fn staging(text: &str) {
    let root = Path::new("/root/of/it");
    let path = root.join(text);
    if leftovers::is_staging(root, &path) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let (object, number) = name.rsplit_once('#').unwrap();
        assert!(ObjectName::new(object).is_ok() && number.parse::<u128>().is_ok() | (number.len() > 30));
    }
    if let Ok(name) = ObjectName::new(text) {
        assert!(
            !leftovers::is_staging(root, &root.join(name.as_str())),
            "an object is none"
        );
        assert!(leftovers::is_staging(root, &root.join(format!("{name}#1"))));
    }
}

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
        // Without spaces: with them it may be the error's own words.
        for secret in secret.filter(|s| s.len() > 30 && !s.contains(' ')) {
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
