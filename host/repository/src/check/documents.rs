//! The small signed documents that no list names, and what is none of the repository's objects.
//!
//! A note beside a backup (a drill that failed, a suspicion) is left out by whoever cannot believe it; only here is it
//! said that there was one. The same holds for leases, marks and cards.

use super::{Check, why};
use crate::core::Card;
use crate::forget::Tombstones;
use crate::manifest::Manifest;
use crate::names::{self, Hash};
use crate::signed::{self, Kind};
use crate::{BackupId, FindingKind, RepositoryError, annotation, prune, revision};
use bytes::Bytes;
use essrun_store::{Cause, ObjectInfo};
use futures_util::StreamExt;
use std::collections::{BTreeMap, HashMap};

/// Documents read at one time.
const READ_AHEAD: usize = 8;

/// What a name says it is.
enum Document {
    Annotation(BackupId),
    Card,
    Lease,
    Prune,
    Revision,
    /// Looked at where it belongs.
    Seen,
    Stray,
}

fn document(name: &str) -> Document {
    let numbered = |dir: &str, ending: &str| names::parse_sequenced(name, dir, ending).is_some();
    let mut parts = name.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(names::CONFIG), None, ..) => Document::Seen,
        (Some("annotations"), Some(backup), Some(file), None) if file.ends_with(".annotation") => {
            BackupId::new(backup).map_or(Document::Stray, Document::Annotation)
        }
        (Some("writers"), Some(file), None, _) if file.ends_with(".writer") => Document::Card,
        (Some("leases"), Some(file), None, _) if file.ends_with(".lease") => Document::Lease,
        (Some("prunes"), Some(file), None, _) if file.ends_with(".prune") => Document::Prune,
        _ if names::parse_revision(name).is_some() => Document::Revision,
        _ if names::sum_in_name(name).is_some()
            || numbered("manifests", "manifest")
            || numbered("tombstones", "tombstone") =>
        {
            Document::Seen
        }
        _ => Document::Stray,
    }
}

impl Check {
    pub(super) async fn documents(
        &mut self,
        there: &BTreeMap<String, ObjectInfo>,
        manifests: &[Manifest],
        tombstones: &Tombstones,
    ) {
        let mut backups: HashMap<BackupId, Vec<Hash>> = HashMap::new();
        for manifest in manifests {
            backups
                .entry(manifest.claim.backup.clone())
                .or_default()
                .push(manifest.hash);
        }
        for tombstone in tombstones.values() {
            backups
                .entry(tombstone.claim.backup.clone())
                .or_default()
                .push(tombstone.manifest);
        }
        let mut to_read = Vec::new();
        for (name, info) in there {
            match document(name) {
                Document::Seen => {}
                Document::Stray => self.found(name, FindingKind::Stray, "essrun writes no object of this name"),
                document => to_read.push((info.clone(), document)),
            }
        }
        let core = self.core.clone();
        let mut read = futures_util::stream::iter(to_read)
            .map(|(info, document)| {
                let core = core.clone();
                async move {
                    let bytes = core.store.get(&info.name).await;
                    (info, document, bytes)
                }
            })
            .buffer_unordered(READ_AHEAD);
        let mut done = Vec::new();
        while let Some(one) = read.next().await {
            done.push(one);
        }
        drop(read);
        for (info, document, bytes) in done {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                // Leases and marks come and go.
                Err(e) if e.cause == Cause::Missing => continue,
                Err(e) => {
                    self.found(&info.name, FindingKind::Unreadable, e.to_string());
                    continue;
                }
            };
            self.report.objects += 1;
            self.report.bytes_read += bytes.len() as u64;
            if let Err(e) = self.believed(&document, &info, &bytes, &backups) {
                self.found(&info.name, FindingKind::Forged, why(&e));
            }
        }
    }

    fn believed(
        &self,
        document: &Document,
        info: &ObjectInfo,
        bytes: &Bytes,
        backups: &HashMap<BackupId, Vec<Hash>>,
    ) -> Result<(), RepositoryError> {
        let core = &self.core;
        let signed = |kind: Kind| signed::read(info.name.as_str(), kind, bytes);
        let of_here = |repository: Option<&str>| match repository == Some(core.config.id.as_str()) {
            true => Ok(()),
            false => Err(RepositoryError::damaged(&info.name, "it is of another repository")),
        };
        match document {
            Document::Annotation(backup) => {
                let claim: annotation::Claim = signed(Kind::Annotation)?.trusted(&core.trusted)?;
                of_here(Some(&claim.repository))?;
                // Where the manifest itself cannot be believed, that is what is said.
                let Some(manifests) = backups.get(backup) else {
                    return Ok(());
                };
                let fits = |hash: &Hash| claim.manifest == hex::encode(hash);
                match claim.backup == *backup && manifests.iter().any(fits) {
                    true => Ok(()),
                    false => Err(RepositoryError::damaged(
                        &info.name,
                        "it was written for another backup",
                    )),
                }
            }
            Document::Card => of_here(Some(&signed(Kind::Writer)?.trusted::<Card>(&core.trusted)?.repository)),
            Document::Lease => {
                let claim: serde_json::Value = signed(Kind::Lease)?.trusted(&core.trusted)?;
                of_here(claim.get("repository").and_then(|id| id.as_str()))
            }
            Document::Prune => prune::parse(core, info.name.clone(), bytes, info.modified_unix_seconds).map(drop),
            Document::Revision => revision::parse(core, &info.name, bytes).map(drop),
            Document::Seen | Document::Stray => Ok(()),
        }
    }
}
