//! The doors that fuzzers come in by: a component's bytes before anything compiles them, and a policy's answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::examine::{COMPONENT, examine};
use crate::limits::Shape;
use crate::policy;
use std::collections::BTreeSet;

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("answer", answer), ("component", component)];

/// What a policy answered: doubt must never come out as a yes.
pub fn answer(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let said: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let decision = policy::decided(
        "p",
        policy::Question::MayRun,
        policy::shaped("p", policy::Question::MayRun, text),
    );
    if decision.allowed {
        let against = said["deny"].as_array().is_some_and(|d| !d.is_empty());
        assert!(said["allow"] != false && !against && decision.failure.is_none());
        assert!(said["allow"] == true || said["deny"].is_array());
    }
    let judged = policy::judged(policy::shaped("p", policy::Question::JudgeResult, text));
    assert!(judged.suspect || judged.failure.is_none());
    let known: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
    let retention = policy::retained(&known, policy::shaped("p", policy::Question::Retention, text));
    assert!(retention.keep.keys().all(|id| known.contains(id)));
    assert!(retention.failure.is_none() || retention.keep.len() == known.len());
}

/// A file that says it is a component.
pub fn component(data: &[u8]) {
    let shape = Shape::default();
    // After a preamble, so that every byte counts for more.
    let mut titled = b"\0asm\x0d\0\x01\0".to_vec();
    titled.extend_from_slice(data);
    for wasm in [data, &titled] {
        let _ = crate::inspect_wasm(wasm);
        if let Ok(info) = examine(wasm, &shape, &COMPONENT) {
            assert!(info.functions <= shape.functions && info.code <= shape.code);
            assert!(info.instances <= shape.instances && info.depth <= shape.depth);
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
