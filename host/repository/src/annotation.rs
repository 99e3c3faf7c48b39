//! Annotations: what became known of a backup after it was committed, such as the result of a drill.
//!
//! The claim ties one to its backup and to its manifest's hash, so it can neither be moved to another backup nor
//! survive a replaced one. What it says is sealed like a manifest.
//!
//! When recipients change, `rekey` seals what an annotation says anew, in another annotation that names the one it
//! stands for; that one counts for nothing from then on, and prune deletes it. Whom an annotation is sealed to is in its
//! claim as a tag that only who holds the writer key can make sense of: a claim is public, and recipients are not.

use crate::clock::now;
use crate::core::Core;
use crate::keys::{Recipients, WriterId, WriterKey};
use crate::manifest::Manifest;
use crate::names::Hash;
use crate::signed::{self, Kind};
use crate::{Annotation, BackupId, RepositoryError, envelope, names};
use bytes::Bytes;
use essrun_artifact::KeepError;
use essrun_store::{Cause, ObjectInfo, ObjectName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

const LIMIT: usize = 4 << 20;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub repository: String,
    pub backup: BackupId,
    pub manifest: String,
    pub kind: String,
    pub created_at: i64,
    /// Whom it is sealed to, see [`tag`]. Not in those of the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_to: Option<String>,
    /// The annotation object it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

/// Equal for equal recipients, and telling nothing to who does not hold the key that chunks are named by.
fn tag(recipients: &Recipients, key: &WriterKey) -> String {
    let texts: BTreeSet<&str> = recipients.texts().collect();
    let mut hasher = blake3::Hasher::new_keyed(&key.chunk_key().naming());
    hasher.update(b"essrun annotation sealed to\n");
    for text in texts {
        hasher.update(text.as_bytes());
        hasher.update(b"\n");
    }
    hasher.finalize().to_hex().chars().take(32).collect()
}

pub(crate) async fn write(
    core: &Core,
    manifest: &Manifest,
    kind: &str,
    body: &serde_json::Value,
) -> Result<(), RepositoryError> {
    let word = !kind.is_empty()
        && kind.len() <= 32
        && kind
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !word {
        return Err(RepositoryError::refused(
            format!("{kind:?} is not a kind of annotation"),
            "use a short word of a-z, 0-9 and `-`",
        ));
    }
    let json = serde_json::to_vec(body).map_err(|e| KeepError::new("annotation", e.to_string()))?;
    if json.len() > LIMIT {
        return Err(RepositoryError::refused(
            "the annotation is too large",
            "annotations are small notes",
        ));
    }
    put(core, manifest, (kind, now()), &json, None).await
}

async fn put(
    core: &Core,
    manifest: &Manifest,
    (kind, created_at): (&str, i64),
    json: &[u8],
    replaces: Option<String>,
) -> Result<(), RepositoryError> {
    let key = core.writer()?;
    let claim = Claim {
        repository: core.config.id.clone(),
        backup: manifest.claim.backup.clone(),
        manifest: hex::encode(manifest.hash),
        kind: kind.to_owned(),
        created_at,
        sealed_to: Some(tag(&core.recipients, key)),
        replaces,
    };
    let recipients = core.recipients.with_native(key.index_recipient());
    let sealed = envelope::seal(&recipients, json, core.options.compression_level)?;
    let object = names::annotation(&claim.backup, kind, claim.created_at)?;
    core.store
        .put_new(&object, signed::write(Kind::Annotation, &claim, &sealed.bytes, key)?)
        .await?;
    Ok(())
}

/// An annotation whose signature and place are good; what it says is still sealed.
pub(crate) struct Note {
    pub object: ObjectName,
    pub signer: WriterId,
    pub claim: Claim,
    payload: Bytes,
}

/// Reads an annotation of this manifest.
pub(crate) fn note(
    core: &Core,
    (backup, manifest): (&BackupId, &Hash),
    object: ObjectName,
    bytes: &Bytes,
) -> Result<Note, RepositoryError> {
    let document = signed::read(object.as_str(), Kind::Annotation, bytes)?;
    let claim: Claim = document.trusted(&core.trusted)?;
    let fits = claim.repository == core.config.id && claim.backup == *backup && claim.manifest == hex::encode(manifest);
    if !fits {
        return Err(RepositoryError::damaged(object, "it was written for another backup"));
    }
    Ok(Note {
        object,
        signer: document.signer.id(),
        claim,
        payload: document.payload,
    })
}

impl Note {
    fn open(&self, core: &Core) -> Result<Vec<u8>, RepositoryError> {
        envelope::open(self.object.as_str(), &core.identities, &self.payload, LIMIT)
    }

    pub fn read(&self, core: &Core) -> Result<Annotation, RepositoryError> {
        let plain = self.open(core)?;
        Ok(Annotation {
            backup: self.claim.backup.clone(),
            kind: self.claim.kind.clone(),
            created_at: self.claim.created_at,
            writer: self.signer.clone(),
            body: serde_json::from_slice(&plain).map_err(|e| RepositoryError::damaged(&self.object, e.to_string()))?,
        })
    }

    /// Whether it is sealed to the recipients of today, as far as is known.
    pub fn is_current(&self, core: &Core) -> Result<bool, RepositoryError> {
        Ok(self.claim.sealed_to.as_deref() == Some(tag(&core.recipients, core.writer()?).as_str()))
    }
}

/// Reads an annotation and opens it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(
    core: &Core,
    manifest: &Manifest,
    object: ObjectName,
    bytes: &Bytes,
) -> Result<Annotation, RepositoryError> {
    note(core, (&manifest.claim.backup, &manifest.hash), object, bytes)?.read(core)
}

/// A backup's annotations that count: well signed, and no other stands for them. A foreign or damaged one is left out
/// with a warning: it proves nothing.
pub(crate) async fn notes(core: &Core, manifest: &Manifest) -> Result<Vec<Note>, RepositoryError> {
    let mut all = Vec::new();
    for info in core
        .store
        .list(&format!("annotations/{}", manifest.claim.backup))
        .await?
    {
        let bytes = match core.store.get(&info.name).await {
            Ok(bytes) => bytes,
            // A prune took one that another stands for.
            Err(e) if e.cause == Cause::Missing => continue,
            Err(e) => return Err(e.into()),
        };
        match note(core, (&manifest.claim.backup, &manifest.hash), info.name, &bytes) {
            Ok(note) => all.push(note),
            Err(e) => tracing::warn!(error = %e, "an annotation is left out"),
        }
    }
    let replaced = replaced(&all);
    all.retain(|n| !replaced.contains(n.object.as_str()));
    all.sort_by_key(|n| n.claim.created_at);
    Ok(all)
}

/// What others stand for.
fn replaced(all: &[Note]) -> HashSet<String> {
    all.iter().filter_map(|n| n.claim.replaces.clone()).collect()
}

/// Seals what an annotation says to the recipients of today, in another that stands for it.
pub(crate) async fn seal_anew(core: &Core, manifest: &Manifest, note: &Note) -> Result<(), RepositoryError> {
    let plain = note.open(core)?;
    let said = (note.claim.kind.as_str(), note.claim.created_at);
    put(core, manifest, said, &plain, Some(note.object.to_string())).await
}

/// Annotations that have had their day: another stands for them, or their backup's manifest is gone. `live` and `buried`
/// tell which backups there are and which were forgotten and pruned.
pub(crate) async fn dead(
    core: &Core,
    live: &[Manifest],
    buried: &HashSet<BackupId>,
    before: i64,
) -> Result<Vec<ObjectName>, RepositoryError> {
    let mut of_backup: BTreeMap<String, Vec<ObjectInfo>> = BTreeMap::new();
    for info in core.store.list("annotations").await? {
        if let Some(backup) = info.name.as_str().split('/').nth(1) {
            of_backup.entry(backup.to_owned()).or_default().push(info);
        }
    }
    let mut dead = Vec::new();
    for manifest in live {
        let Some(infos) = of_backup.remove(manifest.claim.backup.as_str()) else {
            continue;
        };
        // One alone is replaced by none.
        if infos.len() < 2 {
            continue;
        }
        let (mut all, mut set_at) = (Vec::new(), HashMap::new());
        for info in infos {
            let bytes = match core.store.get(&info.name).await {
                Ok(bytes) => bytes,
                // Another prune took it.
                Err(e) if e.cause == Cause::Missing => continue,
                Err(e) => return Err(e.into()),
            };
            set_at.insert(info.name.to_string(), info.modified_unix_seconds);
            all.extend(note(core, (&manifest.claim.backup, &manifest.hash), info.name, &bytes).ok());
        }
        let replaced = replaced(&all);
        // Only after those who were reading have read it.
        let due = |n: &&Note| set_at.get(n.object.as_str()).is_some_and(|at| *at <= before);
        let gone = all.iter().filter(|n| replaced.contains(n.object.as_str()));
        dead.extend(gone.filter(due).map(|n| n.object.clone()));
    }
    for (backup, infos) in of_backup {
        if BackupId::new(backup).is_ok_and(|id| buried.contains(&id)) {
            dead.extend(infos.into_iter().map(|info| info.name));
        }
    }
    Ok(dead)
}
