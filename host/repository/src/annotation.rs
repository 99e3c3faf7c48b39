//! Annotations: what became known of a backup after it was committed, such as the result of a drill.
//!
//! The claim ties one to its backup and to its manifest's hash, so it can neither be moved to another backup nor
//! survive a replaced one. What it says is sealed like a manifest.

use crate::core::{Core, now};
use crate::manifest::Manifest;
use crate::signed::{self, Kind};
use crate::{Annotation, BackupId, RepositoryError, envelope, names};
use bytes::Bytes;
use essrun_artifact::KeepError;
use serde::{Deserialize, Serialize};

const LIMIT: usize = 4 << 20;

#[derive(Serialize, Deserialize)]
struct Claim {
    repository: String,
    backup: BackupId,
    manifest: String,
    kind: String,
    created_at: i64,
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
    let key = core.writer()?;
    let claim = Claim {
        repository: core.config.id.clone(),
        backup: manifest.claim.backup.clone(),
        manifest: hex::encode(manifest.hash),
        kind: kind.to_owned(),
        created_at: now(),
    };
    let json = serde_json::to_vec(body).map_err(|e| KeepError::new("annotation", e.to_string()))?;
    if json.len() > LIMIT {
        return Err(RepositoryError::refused(
            "the annotation is too large",
            "annotations are small notes",
        ));
    }
    let recipients = core.recipients.with_native(key.index_recipient());
    let sealed = envelope::seal(&recipients, &json, core.options.compression_level)?;
    let object = names::annotation(&claim.backup, kind, claim.created_at)?;
    core.store
        .put_new(&object, signed::write(Kind::Annotation, &claim, &sealed.bytes, key)?)
        .await?;
    Ok(())
}

pub(crate) fn parse(
    core: &Core,
    manifest: &Manifest,
    object: &str,
    bytes: &Bytes,
) -> Result<Annotation, RepositoryError> {
    let document = signed::read(object, Kind::Annotation, bytes)?;
    let claim: Claim = document.trusted(&core.trusted)?;
    let fits = claim.repository == core.config.id
        && claim.backup == manifest.claim.backup
        && claim.manifest == hex::encode(manifest.hash);
    if !fits {
        return Err(RepositoryError::damaged(object, "it was written for another backup"));
    }
    let plain = envelope::open(object, &core.identities, &document.payload, LIMIT)?;
    Ok(Annotation {
        backup: claim.backup,
        kind: claim.kind,
        created_at: claim.created_at,
        writer: document.signer.id(),
        body: serde_json::from_slice(&plain).map_err(|e| RepositoryError::damaged(object, e.to_string()))?,
    })
}

/// Those with a good signature, oldest first. A foreign or damaged one is left out with a warning: it proves nothing.
pub(crate) async fn read(core: &Core, manifest: &Manifest) -> Result<Vec<Annotation>, RepositoryError> {
    let mut all = Vec::new();
    for info in core
        .store
        .list(&format!("annotations/{}", manifest.claim.backup))
        .await?
    {
        let bytes = core.store.get(&info.name).await?;
        match parse(core, manifest, info.name.as_str(), &bytes) {
            Ok(annotation) => all.push(annotation),
            Err(e) => tracing::warn!(error = %e, "an annotation is left out"),
        }
    }
    all.sort_by_key(|a| a.created_at);
    Ok(all)
}
