//! Each writer's chain: whether a manifest is missing from it, was put in another's place, or was cut off at its end.
//!
//! Two witnesses are asked besides the chain itself: where a key was given up, what its card says of the end; and what
//! this host remembers of the last time it looked. Where nothing is wrong with a chain, its end is remembered for the
//! next time: every host that checks is a witness, not only the one that writes.

use super::Check;
use crate::forget::Tombstones;
use crate::keys::WriterId;
use crate::manifest::{Head, Manifest};
use crate::names::{self, Hash};
use crate::{FindingKind, RepositoryError, state};
use essrun_store::ObjectName;
use std::collections::{BTreeMap, BTreeSet};

impl Check {
    /// Each writer's chain: every manifest, or the tombstone in its stead, follows the one before, none is missing, and
    /// the end is what we remember.
    pub(super) fn chain(&mut self, manifests: &[Manifest], tombstones: &Tombstones) -> Result<(), RepositoryError> {
        // Chains with something wrong about them, of which nothing is remembered.
        let mut doubtful: BTreeSet<WriterId> = BTreeSet::new();
        // Of each place: the manifest's hash, the one it follows, and the object that says so.
        let mut chains: BTreeMap<WriterId, BTreeMap<u64, (Hash, String, ObjectName)>> = BTreeMap::new();
        for ((writer, sequence), t) in tombstones {
            let link = (
                t.manifest,
                t.claim.previous.clone(),
                names::tombstone(writer, *sequence)?,
            );
            chains.entry(writer.clone()).or_default().insert(*sequence, link);
        }
        for m in manifests {
            let link = (m.hash, m.claim.previous.clone(), m.object.clone());
            let place = chains.entry(m.writer.clone()).or_default();
            if let Some((stood_for, _, object)) = place.insert(m.claim.sequence, link)
                && stood_for != m.hash
            {
                doubtful.insert(m.writer.clone());
                self.found(
                    object,
                    FindingKind::Forged,
                    "it stands for another manifest than the one in its place",
                );
            }
        }
        for (writer, chain) in &chains {
            let mut before: Option<(u64, Hash)> = None;
            for (sequence, (hash, previous, object)) in chain {
                let expected = before.map_or(1, |(s, _)| s + 1);
                if *sequence != expected {
                    doubtful.insert(writer.clone());
                    let detail = format!("backups {expected} to {} of writer {writer} are gone", sequence - 1);
                    self.found(names::manifest(writer, expected)?, FindingKind::ChainBroken, detail);
                } else if names::parse_hash(previous)
                    != Some(before.map_or_else(|| self.core.origin(writer), |(_, hash)| hash))
                {
                    doubtful.insert(writer.clone());
                    self.found(
                        object,
                        FindingKind::ChainBroken,
                        "it does not follow the manifest before it",
                    );
                }
                before = Some((*sequence, *hash));
            }
        }
        // Where a key was given up, the end of its chain is signed, for everyone to compare.
        for follows in self.core.follows.clone().into_values() {
            // Of one who is not believed no chain is known.
            if !self.core.trusted.contains(&follows.writer) {
                continue;
            }
            let writer = follows.writer.id();
            let last = chains.get(&writer).and_then(|c| c.last_key_value());
            let (sequence, hash) = last.map_or((0, self.core.origin(&writer)), |(s, (hash, ..))| (*s, *hash));
            if (sequence, hash) != (follows.head.sequence, follows.head.hash) {
                let detail = format!(
                    "the chain of writer {writer} was given up at backup {} and now ends with {sequence}",
                    follows.head.sequence
                );
                let object = names::manifest(&writer, follows.head.sequence.max(1))?;
                doubtful.insert(writer);
                self.found(object, FindingKind::ChainBroken, detail);
            }
        }
        let mut writers: BTreeSet<WriterId> = chains.keys().cloned().collect();
        writers.extend(self.core.trusted.iter().map(|w| w.id()));
        for writer in writers {
            let Some(head) = state::remembered(&self.core, &writer)? else {
                continue;
            };
            let chain = chains.get(&writer);
            let object = names::manifest(&writer, head.sequence)?;
            let last = chain.and_then(|c| c.last_key_value()).map_or(0, |(s, _)| *s);
            match chain.and_then(|c| c.get(&head.sequence)) {
                Some((hash, ..)) if *hash != head.hash => {
                    doubtful.insert(writer);
                    self.found(
                        object,
                        FindingKind::Forged,
                        "it is not the manifest this host wrote or saw",
                    );
                }
                None if last < head.sequence => {
                    let seen = head.sequence;
                    let detail = format!("this host saw backup {seen} of writer {writer}, and the newest is {last}");
                    doubtful.insert(writer);
                    self.found(object, FindingKind::RolledBack, detail);
                }
                _ => {}
            }
        }
        for (writer, chain) in chains.iter().filter(|(writer, _)| !doubtful.contains(*writer)) {
            let Some((sequence, (hash, ..))) = chain.last_key_value() else {
                continue;
            };
            let head = Head {
                sequence: *sequence,
                hash: *hash,
            };
            if let Err(e) = state::remember(&self.core, writer, head) {
                tracing::warn!(error = %e, "this host could not remember the end of a chain it checked");
            }
        }
        Ok(())
    }
}
