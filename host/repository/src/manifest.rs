//! Manifests: the one object that makes a backup, and the chain they form.
//!
//! The claim of a manifest is public: sequence, previous manifest's hash, and the list of objects the backup needs.
//! It says nothing about rooms, tables or files, nor how long anything in them is. The payload is an envelope with
//! everything else: the artifacts, the pipeline's own body, what the run took, and the key that chunk names can be
//! checked with.

use crate::core::Core;
use crate::keys::WriterId;
use crate::names::{self, Hash, ListName};
use crate::revision::{self, Revision};
use crate::signed::{self, Kind};
pub(crate) use crate::state::Head;
use crate::state::remembered;
use crate::{BackupId, BackupStats, BackupSummary, Body, RepositoryError, envelope, index_object};
use bytes::Bytes;
use essrun_artifact::ArtifactRecord;
use essrun_store::{Cause, ObjectName};
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// No manifest's payload is larger when opened.
const PAYLOAD_LIMIT: usize = 64 << 20;

/// The public part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub repository: String,
    pub backup: BackupId,
    pub sequence: u64,
    /// SHA-256 of the manifest before, or of the configuration object for the first.
    pub previous: String,
    pub created_at: i64,
    pub committed_at: i64,
    /// The list of needed objects, by its object name.
    pub list: String,
    pub needed_objects: u64,
    pub needed_bytes: u64,
    /// Only in manifests of before they were sealed: plain lengths are nobody's to know. Never written.
    #[serde(default, skip_serializing)]
    pub stats: Option<BackupStats>,
}

/// The sealed part.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Sealed {
    /// Keyed BLAKE3 with this key over a chunk's plain bytes is its id.
    pub chunk_id_key: String,
    pub recipients: Vec<String>,
    pub artifacts: Vec<ArtifactRecord>,
    pub body: serde_json::Value,
    /// What the run took. Not in the first manifests, whose claims have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<BackupStats>,
    /// Only in revisions: artifacts that cannot be read in full any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<Damaged>,
}

impl Sealed {
    /// Opens what a manifest or a revision carries.
    pub fn open(core: &Core, object: &str, payload: &Bytes) -> Result<Self, RepositoryError> {
        let plain = envelope::open(object, &core.identities, payload, PAYLOAD_LIMIT)?;
        serde_json::from_slice(&plain)
            .map_err(|e| RepositoryError::damaged(object, format!("its sealed part cannot be read: {e}")))
    }
}

/// An artifact that is no longer whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    pub artifact: String,
    pub why: String,
}

/// A manifest with a trusted signature.
#[derive(Clone)]
pub(crate) struct Manifest {
    pub object: ObjectName,
    pub writer: WriterId,
    pub hash: Hash,
    pub claim: Claim,
    /// The list that counts: the manifest's own or its last revision's.
    pub list: ListName,
    /// The claim of the revision that counts, where there is one.
    pub revision: Option<revision::Claim>,
    payload: Bytes,
}

impl Manifest {
    /// Reads a manifest object: signature, signer, repository and place in the chain must fit.
    pub fn read(core: &Core, object: &ObjectName, bytes: &Bytes) -> Result<Self, RepositoryError> {
        let bad = |why: &str| RepositoryError::damaged(object, why);
        let (writer, sequence) = names::parse_sequenced(object.as_str(), "manifests", "manifest")
            .ok_or_else(|| bad("its name is not one of a manifest"))?;
        let document = signed::read(object.as_str(), Kind::Manifest, bytes)?;
        let claim: Claim = document.trusted(&core.trusted)?;
        if claim.repository != core.config.id || document.signer.id() != writer || claim.sequence != sequence {
            return Err(bad("it was written for another place"));
        }
        if let Some(last) = core.last_of(&writer)
            && sequence > last.sequence
        {
            return Err(bad("it was written after its writer's key was given up"));
        }
        index_object::claim_hash(object.as_str(), &claim.previous)?;
        let list = ListName::parse(&claim.list).ok_or_else(|| bad("it names no list"))?;
        Ok(Manifest {
            object: object.clone(),
            writer,
            hash: names::sha256(bytes),
            claim,
            list,
            revision: None,
            payload: document.payload,
        })
    }

    /// This manifest as a revision has it.
    fn revised(self, revision: Option<Revision>) -> Self {
        match revision {
            None => self,
            Some(revision) => Manifest {
                list: revision.list,
                payload: revision.payload,
                revision: Some(revision.claim),
                ..self
            },
        }
    }

    /// The object whose sealed part counts, for messages.
    pub fn sealed_in(&self) -> String {
        match &self.revision {
            None => self.object.to_string(),
            Some(r) => names::revision(&self.writer, r.sequence, r.number)
                .map_or_else(|_| self.object.to_string(), |name| name.to_string()),
        }
    }

    /// The sealed part, as it lies there.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Opens the sealed part with the keys at hand.
    pub fn open(&self, core: &Core) -> Result<Sealed, RepositoryError> {
        Sealed::open(core, &self.sealed_in(), &self.payload)
    }

    /// With what was opened of it.
    pub fn summary(&self, body: Option<Body>, stats: Option<BackupStats>) -> BackupSummary {
        summary(&self.writer, &self.claim, self.revision.as_ref(), body, stats)
    }
}

/// A backup as lists show it.
pub(crate) fn summary(
    writer: &WriterId,
    claim: &Claim,
    revision: Option<&revision::Claim>,
    body: Option<Body>,
    stats: Option<BackupStats>,
) -> BackupSummary {
    BackupSummary {
        id: claim.backup.clone(),
        created_at: claim.created_at,
        committed_at: claim.committed_at,
        writer: writer.clone(),
        sequence: claim.sequence,
        stats: stats.or(claim.stats).unwrap_or_default(),
        needed_objects: revision.map_or(claim.needed_objects, |r| r.needed_objects),
        needed_bytes: revision.map_or(claim.needed_bytes, |r| r.needed_bytes),
        lost_objects: revision.map_or(0, |r| r.lost.len() as u64),
        body,
    }
}

/// Reads one manifest, as its revision has it.
pub(crate) async fn read_one(core: &Core, object: &ObjectName) -> Result<Manifest, RepositoryError> {
    let manifest = Manifest::read(core, object, &core.store.get(object).await?)?;
    let (revision, bad) = revision::of(core, &revision::places(core).await?, &manifest).await?;
    for (_, e) in bad {
        tracing::warn!(error = %e, "a revision is left out");
    }
    Ok(manifest.revised(revision))
}

/// Which manifests the store holds, by writer and sequence, without reading them.
pub(crate) async fn places(core: &Core) -> Result<BTreeMap<WriterId, BTreeMap<u64, ObjectName>>, RepositoryError> {
    let mut all: BTreeMap<WriterId, BTreeMap<u64, ObjectName>> = BTreeMap::new();
    for info in core.store.list("manifests").await? {
        if let Some((writer, sequence)) = names::parse_sequenced(info.name.as_str(), "manifests", "manifest") {
            all.entry(writer).or_default().insert(sequence, info.name);
        }
    }
    Ok(all)
}

/// Reads all manifests, as their revisions have them; each comes with what is wrong with it, if something is. So does
/// every revision that does not count.
pub(crate) async fn read_all(
    core: &Core,
) -> Result<Vec<(ObjectName, Result<Manifest, RepositoryError>)>, RepositoryError> {
    let names: Vec<ObjectName> = places(core)
        .await?
        .into_values()
        .flat_map(BTreeMap::into_values)
        .collect();
    let revisions = &revision::places(core).await?;
    let found: Vec<Vec<_>> = futures_util::stream::iter(names)
        .map(|name| async move {
            let bytes = match core.store.get(&name).await {
                Ok(bytes) => bytes,
                // Forgotten between the listing and now.
                Err(e) if e.cause == Cause::Missing => return Ok(Vec::new()),
                Err(e) => return Err(RepositoryError::from(e)),
            };
            let manifest = match Manifest::read(core, &name, &bytes) {
                Ok(manifest) => manifest,
                Err(e) => return Ok(vec![(name, Err(e))]),
            };
            let (revision, bad) = revision::of(core, revisions, &manifest).await?;
            let mut all = vec![(name, Ok(manifest.revised(revision)))];
            all.extend(bad.into_iter().map(|(object, e)| (object, Err(e))));
            Ok(all)
        })
        .buffered(8)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

/// The head that this writer's next manifest follows: the one in the store or the one remembered, whichever is later.
/// After a rollback the chain goes on from what is remembered, so that the hole stays visible.
pub(crate) async fn own_head(core: &Core, writer: &WriterId) -> Result<Head, RepositoryError> {
    let origin = Head {
        sequence: 0,
        hash: core.origin(writer),
    };
    let known = remembered(core, writer)?.unwrap_or(origin);
    let mut chain = places(core).await?.remove(writer).unwrap_or_default();
    let mut manifest = None;
    while let Some((_, name)) = chain.pop_last() {
        let bytes = match core.store.get(&name).await {
            Ok(bytes) => bytes,
            // Forgotten long ago, and pruned between the listing and now: its tombstone keeps its place.
            Err(e) if e.cause == Cause::Missing => continue,
            Err(e) => return Err(e.into()),
        };
        manifest = Some((Manifest::read(core, &name, &bytes)?, name));
        break;
    }
    // A forgotten backup's place is taken for ever, also when its manifest is gone.
    let tombstones = crate::overview::tombstones(core).await?;
    let buried = tombstones
        .iter()
        .rev()
        .find(|((w, _), _)| w == writer)
        .map(|((_, sequence), t)| Head {
            sequence: *sequence,
            hash: t.manifest,
        });
    let stored = manifest.map(|(m, name)| {
        (
            Head {
                sequence: m.claim.sequence,
                hash: m.hash,
            },
            name,
        )
    });
    let (found, name) = match (stored, buried) {
        (Some((head, _)), Some(buried)) if buried.sequence > head.sequence => (buried, String::from("a tombstone")),
        (Some((head, name)), _) => (head, name.to_string()),
        (None, Some(buried)) => (buried, String::from("a tombstone")),
        (None, None) => {
            if known.sequence > 0 {
                tracing::warn!(
                    remembered = known.sequence,
                    "this writer's backups are gone from the repository"
                );
            }
            return Ok(known);
        }
    };
    if found.sequence < known.sequence {
        tracing::warn!(
            remembered = known.sequence,
            found = found.sequence,
            "the repository is older than this host saw it"
        );
        return Ok(known);
    }
    if found.sequence == known.sequence && found.hash != known.hash {
        return Err(RepositoryError::History {
            why: format!("{name} is not the manifest that this host wrote or saw"),
            hint: "somebody replaced it with another one signed with the same writer key; treat the key as stolen"
                .into(),
        });
    }
    Ok(found)
}
