//! Forgetting: a tombstone is set for a backup, and nothing else happens. What it needed goes only when it is pruned,
//! after a grace time; until then [`undo`] takes the tombstone away and the backup is back.
//!
//! Tombstones stay for ever: they stand in the chain for the manifests that prune deletes.

use crate::clock::now;
use crate::core::Core;
use crate::keys::WriterId;
use crate::manifest::Manifest;
use crate::names::{self, Hash};
use crate::signed::{self, Kind};
use crate::write::Lease;
use crate::{BackupId, RepositoryError};
use bytes::Bytes;
use essrun_store::{Cause, ObjectName, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

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

/// Takes the tombstone of a forgotten backup away again, within the grace time that prune is run with.
///
/// Prune deletes a forgotten manifest when its tombstone is older than the grace time; a while before that it is too
/// late here, so the two do not meet. Should a prune with a shorter grace time have come in between, the tombstone is
/// put back.
pub(crate) async fn undo(core: &Arc<Core>, manifest: &Manifest, grace: Duration) -> Result<(), RepositoryError> {
    core.writer()?;
    let object = names::tombstone(&manifest.writer, manifest.claim.sequence)?;
    let backup = &manifest.claim.backup;
    let not_forgotten = || RepositoryError::NoBackup {
        wanted: backup.to_string(),
        why: "it is not forgotten".into(),
    };
    let info = core.store.head(&object).await?.ok_or_else(not_forgotten)?;
    let bytes = core.store.get(&object).await?;
    let margin = (grace / 10).min(Duration::from_secs(3600));
    let seconds = i64::try_from(grace.saturating_sub(margin).as_secs()).unwrap_or(i64::MAX);
    if crate::prune::store_now(core).await? >= info.modified_unix_seconds.saturating_add(seconds) {
        return Err(RepositoryError::refused(
            format!("backup {backup} was forgotten too long ago: a prune may be deleting what it needs"),
            "give the grace time that `prune` is run with, if it is longer",
        ));
    }
    let gone = |missing: Vec<String>| {
        RepositoryError::refused(
            format!(
                "backup {backup} is no longer whole: {} objects are gone, {} among them",
                missing.len(),
                missing.first().cloned().unwrap_or_default()
            ),
            "it stays forgotten",
        )
    };
    let missing = missing_of(core, manifest).await?;
    if !missing.is_empty() {
        return Err(gone(missing));
    }
    let lease = Lease::begin(core.clone(), backup.clone()).await?;
    lease.commits();
    let undone = async {
        core.store.delete(&object).await?;
        let missing = missing_of(core, manifest).await?;
        if missing.is_empty() {
            return Ok::<(), RepositoryError>(());
        }
        core.store.put_new(&object, bytes).await?;
        lease.committed();
        Err(gone(missing))
    };
    let undone = undone.await;
    if undone.is_ok() {
        lease.committed();
    }
    lease.close().await;
    undone
}

/// What a backup needs and the store does not list in full size, its manifest included.
async fn missing_of(core: &Core, manifest: &Manifest) -> Result<Vec<String>, RepositoryError> {
    if core.store.head(&manifest.object).await?.is_none() {
        return Ok(vec![manifest.object.to_string()]);
    }
    let list = manifest.list.object()?;
    let mut needed = match crate::read::read_list(core, &manifest.list).await {
        Ok(needed) => needed,
        Err(RepositoryError::Store(e)) if e.cause == Cause::Missing => return Ok(vec![list.to_string()]),
        Err(e) => return Err(e),
    };
    let there: HashMap<String, u64> = core
        .store
        .list("")
        .await?
        .into_iter()
        .map(|info| (info.name.to_string(), info.bytes))
        .collect();
    needed.retain(|name| there.get(name).copied() != names::sum_in_name(name).map(|sum| sum.bytes));
    Ok(needed)
}

async fn read(core: &Core, object: &ObjectName, set_at: i64) -> Result<(WriterId, Tombstone), RepositoryError> {
    parse(core, object, &core.store.get(object).await?, set_at)
}

pub(crate) fn parse(
    core: &Core,
    object: &ObjectName,
    bytes: &Bytes,
    set_at: i64,
) -> Result<(WriterId, Tombstone), RepositoryError> {
    let bad = |why: &str| RepositoryError::damaged(object, why);
    let (writer, sequence) = names::parse_sequenced(object.as_str(), "tombstones", "tombstone")
        .ok_or_else(|| bad("its name is not one of a tombstone"))?;
    let claim: Claim = signed::read(object.as_str(), Kind::Tombstone, bytes)?.trusted(&core.trusted)?;
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
            // Taken back between the listing and now.
            Err(RepositoryError::Store(e)) if e.cause == Cause::Missing => {}
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
