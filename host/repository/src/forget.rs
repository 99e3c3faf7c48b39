//! Forgetting: a tombstone is set for a backup, and nothing else happens. What it needed goes only when it is pruned,
//! after a grace time; until then removing the tombstone brings the backup back.
//!
//! Tombstones stay for ever: they stand in the chain for the manifests that prune deletes.

use crate::core::{Core, now};
use crate::keys::WriterId;
use crate::manifest::Manifest;
use crate::names::{self, Hash};
use crate::signed::{self, Kind};
use crate::{BackupId, RepositoryError};
use essrun_store::{ObjectName, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub repository: String,
    pub backup: BackupId,
    pub sequence: u64,
    /// SHA-256 of the manifest it stands for, and of the one before that.
    pub manifest: String,
    pub previous: String,
    pub forgotten_at: i64,
    pub reason: String,
}

/// A tombstone with a trusted signature.
#[derive(Clone, Debug)]
pub(crate) struct Tombstone {
    pub claim: Claim,
    pub manifest: Hash,
    /// When it was set, by the store's clock.
    pub set_at: i64,
}

pub(crate) type Tombstones = BTreeMap<(WriterId, u64), Tombstone>;

pub(crate) async fn set(core: &Core, manifest: &Manifest, reason: &str) -> Result<(), RepositoryError> {
    let key = core.writer()?;
    let claim = Claim {
        repository: core.config.id.clone(),
        backup: manifest.claim.backup.clone(),
        sequence: manifest.claim.sequence,
        manifest: hex::encode(manifest.hash),
        previous: manifest.claim.previous.clone(),
        forgotten_at: now(),
        reason: reason.to_owned(),
    };
    let object = names::tombstone(&manifest.writer, manifest.claim.sequence)?;
    let bytes = signed::write(Kind::Tombstone, &claim, b"", key)?;
    match core.store.put_new(&object, bytes).await? {
        Outcome::Created => Ok(()),
        // Forgotten by somebody else meanwhile, which is as good, or occupied by what is none.
        Outcome::AlreadyThere => read(core, &object, 0).await.map(drop),
    }
}

async fn read(core: &Core, object: &ObjectName, set_at: i64) -> Result<(WriterId, Tombstone), RepositoryError> {
    let bytes = core.store.get(object).await?;
    let bad = |why: &str| RepositoryError::damaged(object, why);
    let (writer, sequence) = names::parse_sequenced(object.as_str(), "tombstones", "tombstone")
        .ok_or_else(|| bad("its name is not one of a tombstone"))?;
    let claim: Claim = signed::read(object.as_str(), Kind::Tombstone, &bytes)?.trusted(&core.trusted)?;
    if claim.repository != core.config.id || claim.sequence != sequence {
        return Err(bad("it was set for another backup"));
    }
    let manifest = names::parse_hash(&claim.manifest).ok_or_else(|| bad("it names no manifest"))?;
    let tombstone = Tombstone {
        claim,
        manifest,
        set_at,
    };
    Ok((writer, tombstone))
}

/// All tombstones that count, and what is wrong with those that do not.
pub(crate) async fn read_all(core: &Core) -> Result<(Tombstones, Vec<(ObjectName, RepositoryError)>), RepositoryError> {
    let (mut good, mut bad) = (Tombstones::new(), Vec::new());
    for info in core.store.list("tombstones").await? {
        match read(core, &info.name, info.modified_unix_seconds).await {
            Ok((writer, tombstone)) => {
                good.insert((writer, tombstone.claim.sequence), tombstone);
            }
            Err(e @ RepositoryError::Store(_)) => return Err(e),
            Err(e) => bad.push((info.name, e)),
        }
    }
    Ok((good, bad))
}

/// Whether a manifest is forgotten. A tombstone for another manifest of the same place counts for nothing.
pub(crate) fn is_forgotten(tombstones: &Tombstones, manifest: &Manifest) -> bool {
    let place = (manifest.writer.clone(), manifest.claim.sequence);
    tombstones.get(&place).is_some_and(|t| t.manifest == manifest.hash)
}
