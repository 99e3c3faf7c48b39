//! What lists show: every backup as it is now, with its revision, its tombstone and what was noted beside it, without
//! reading again what was read and verified before (see [`crate::known`]).
//!
//! The store is asked for names each time, so what is gone is gone and what is new is read. Only what is shown comes
//! from here: an object that something is done with is read and verified anew.

use crate::annotation;
use crate::core::Core;
use crate::forget::{self, Tombstone, Tombstones};
use crate::keys::WriterId;
use crate::manifest::{self, Claim, Manifest, Sealed};
use crate::names::{self, Hash, ListName};
use crate::{Annotation, BackupId, BackupStats, BackupSummary, Body, RepositoryError, revision};
use bytes::Bytes;
use essrun_store::{Cause, ObjectInfo, ObjectName};
use futures_util::{StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Objects read at one time.
const READ_AHEAD: usize = 8;

/// A backup as a list has it.
#[derive(Clone)]
pub(crate) struct Seen {
    pub object: ObjectName,
    pub writer: WriterId,
    pub hash: Hash,
    pub claim: Claim,
    pub revision: Option<revision::Claim>,
    /// What the pipeline stored, where a key at hand opens it.
    pub body: Option<Body>,
    /// What the run took, where that is sealed and a key at hand opens it.
    pub stats: Option<BackupStats>,
}

impl Seen {
    pub fn summary(&self) -> BackupSummary {
        manifest::summary(
            &self.writer,
            &self.claim,
            self.revision.as_ref(),
            self.body.clone(),
            self.stats,
        )
    }
}

/// What is sealed, as JSON text, where a key at hand opened it.
#[derive(Clone, Serialize, Deserialize)]
enum Opened {
    No,
    Text(String),
}

impl From<Option<Value>> for Opened {
    fn from(value: Option<Value>) -> Self {
        value.map_or(Opened::No, |value| Opened::Text(value.to_string()))
    }
}

impl Opened {
    fn into_body(self) -> Option<Body> {
        match self {
            Opened::No => None,
            Opened::Text(text) => Some(Body::from_text(text)),
        }
    }

    fn is(&self) -> bool {
        matches!(self, Opened::Text(_))
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct SaidManifest {
    hash: String,
    claim: Claim,
    body: Opened,
    #[serde(default)]
    stats: Option<BackupStats>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SaidRevision {
    manifest: String,
    claim: revision::Claim,
    body: Opened,
    #[serde(default)]
    stats: Option<BackupStats>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SaidTombstone {
    claim: forget::Claim,
}

#[derive(Clone, Serialize, Deserialize)]
struct SaidNote {
    signer: WriterId,
    claim: annotation::Claim,
    body: Opened,
}

/// Whether another key could tell more than is known.
trait Said: Serialize + DeserializeOwned {
    fn is_opened(&self) -> bool;
}

impl Said for SaidManifest {
    fn is_opened(&self) -> bool {
        self.body.is()
    }
}

impl Said for SaidRevision {
    fn is_opened(&self) -> bool {
        self.body.is()
    }
}

impl Said for SaidTombstone {
    fn is_opened(&self) -> bool {
        true
    }
}

impl Said for SaidNote {
    fn is_opened(&self) -> bool {
        self.body.is()
    }
}

/// The objects below a prefix: what is known of each, and what was read for want of that.
struct Shelf<'a, T> {
    core: &'a Core,
    prefix: &'static str,
    infos: Vec<ObjectInfo>,
    /// Taken out by who asks: there is a thousand of them, and one asker for each.
    known: Mutex<HashMap<ObjectName, T>>,
}

impl<'a, T: Said + Clone> Shelf<'a, T> {
    async fn look(core: &'a Core, prefix: &'static str) -> Result<Self, RepositoryError> {
        let infos = core.store.list(prefix).await?;
        let said: Vec<Option<T>> = core.known().map(|k| k.said(&infos)).unwrap_or_default();
        let known = infos.iter().zip(said).filter_map(|(info, said)| {
            // A key that was not at hand then may open it now.
            let said = said.filter(|said| said.is_opened() || !core.reads_contents)?;
            Some((info.name.clone(), said))
        });
        Ok(Shelf {
            core,
            prefix,
            known: Mutex::new(known.collect()),
            infos,
        })
    }

    /// What an object says, and whether it had to be read. `None`: it is gone since it was listed.
    async fn said(
        &self,
        object: &ObjectName,
        read: impl FnOnce(&Bytes) -> Result<T, RepositoryError>,
    ) -> Result<Option<(T, bool)>, RepositoryError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
        if let Some(said) = known {
            return Ok(Some((said, false)));
        }
        match self.core.store.get(object).await {
            Ok(bytes) => Ok(Some((read(&bytes)?, true))),
            Err(e) if e.cause == Cause::Missing => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Keeps what was read for the next time.
    fn keep(&self, fresh: HashMap<ObjectName, T>) {
        // What an identity opened stays with the identity.
        let Some(known) = self.core.known().filter(|_| !self.core.reads_contents) else {
            return;
        };
        let fresh: Vec<(ObjectInfo, T)> = self
            .infos
            .iter()
            .filter_map(|info| Some((info.clone(), fresh.get(&info.name)?.clone())))
            .collect();
        let there: HashSet<&str> = self.infos.iter().map(|info| info.name.as_str()).collect();
        known.keep(&format!("{}/", self.prefix), &fresh, &there);
    }
}

/// What is sealed in a manifest, where a key at hand opens it.
fn open(core: &Core, manifest: &Manifest) -> Option<Sealed> {
    match manifest.open(core) {
        Ok(sealed) => Some(sealed),
        Err(RepositoryError::Key { .. }) => None,
        Err(e) => {
            tracing::warn!(error = %e, "the sealed part of a manifest cannot be read");
            None
        }
    }
}

/// As far as lists need it.
fn opened(sealed: Option<Sealed>) -> (Opened, Option<BackupStats>) {
    let stats = sealed.as_ref().and_then(|s| s.stats);
    (sealed.map(|s| s.body).into(), stats)
}

/// An object that cannot be believed is passed over with a warning; a store that fails is an error.
fn passed_over(e: RepositoryError, what: &str) -> Result<(), RepositoryError> {
    match e {
        RepositoryError::Store(_) => Err(e),
        e => {
            tracing::warn!(error = %e, "{what}");
            Ok(())
        }
    }
}

/// All tombstones that count.
pub(crate) async fn tombstones(core: &Core) -> Result<Tombstones, RepositoryError> {
    let shelf: Shelf<'_, SaidTombstone> = Shelf::look(core, "tombstones").await?;
    let mut all = Tombstones::new();
    let mut fresh = HashMap::new();
    for info in &shelf.infos {
        let said = shelf
            .said(&info.name, |bytes| {
                let (_, tombstone) = forget::parse(core, &info.name, bytes, 0)?;
                Ok(SaidTombstone { claim: tombstone.claim })
            })
            .await;
        let (said, read) = match said {
            Ok(Some(said)) => said,
            Ok(None) => continue,
            Err(e) => {
                passed_over(e, "a tombstone counts for nothing")?;
                continue;
            }
        };
        let place = names::parse_sequenced(info.name.as_str(), "tombstones", "tombstone");
        if let (Some(place), Some(manifest)) = (place, names::parse_hash(&said.claim.manifest)) {
            let tombstone = Tombstone {
                claim: said.claim.clone(),
                manifest,
                set_at: info.modified_unix_seconds,
            };
            all.insert(place, tombstone);
            if read {
                fresh.insert(info.name.clone(), said);
            }
        }
    }
    shelf.keep(fresh);
    Ok(all)
}

/// Every trusted manifest with its revision, oldest first; and whether it is forgotten.
pub(crate) async fn backups(core: &Core) -> Result<Vec<(Seen, bool)>, RepositoryError> {
    let tombstones = tombstones(core).await?;
    let manifests: &Shelf<'_, SaidManifest> = &Shelf::look(core, "manifests").await?;
    let revisions: &Shelf<'_, SaidRevision> = &Shelf::look(core, "revisions").await?;
    let mut revised: BTreeMap<(WriterId, u64), BTreeMap<u64, ObjectName>> = BTreeMap::new();
    for info in &revisions.infos {
        if let Some((writer, sequence, number)) = names::parse_revision(info.name.as_str()) {
            let place = revised.entry((writer, sequence)).or_default();
            place.insert(number, info.name.clone());
        }
    }
    let revised = &revised;
    let looks = manifests.infos.iter().filter_map(|info| {
        let place = names::parse_sequenced(info.name.as_str(), "manifests", "manifest")?;
        Some((info.name.clone(), place))
    });
    let looks: Vec<_> = looks.collect();
    let found: Vec<_> = futures_util::stream::iter(looks)
        .map(|(object, place)| one(core, manifests, revisions, object, place.clone(), revised.get(&place)))
        .buffered(READ_AHEAD)
        .try_collect()
        .await?;
    let (mut all, mut fresh_manifests, mut fresh_revisions) = (Vec::new(), HashMap::new(), HashMap::new());
    for found in found.into_iter().flatten() {
        let forgotten = tombstones
            .get(&(found.seen.writer.clone(), found.seen.claim.sequence))
            .is_some_and(|t| t.manifest == found.seen.hash);
        fresh_manifests.extend(found.manifest.map(|said| (found.seen.object.clone(), said)));
        fresh_revisions.extend(found.revision);
        all.push((found.seen, forgotten));
    }
    manifests.keep(fresh_manifests);
    revisions.keep(fresh_revisions);
    // Backups of one second: one writer's are told apart by their place in its chain.
    all.sort_by_cached_key(|(seen, _)| {
        let c = &seen.claim;
        (c.created_at, c.committed_at, c.sequence, c.backup.clone())
    });
    Ok(all)
}

/// A backup, and what had to be read for it.
struct Found {
    seen: Seen,
    manifest: Option<SaidManifest>,
    revision: Option<(ObjectName, SaidRevision)>,
}

async fn one(
    core: &Core,
    manifests: &Shelf<'_, SaidManifest>,
    revisions: &Shelf<'_, SaidRevision>,
    object: ObjectName,
    (writer, _): (WriterId, u64),
    revised: Option<&BTreeMap<u64, ObjectName>>,
) -> Result<Option<Found>, RepositoryError> {
    let said = manifests
        .said(&object, |bytes| {
            let manifest = Manifest::read(core, &object, bytes)?;
            let (body, stats) = opened(open(core, &manifest));
            Ok(SaidManifest {
                hash: hex::encode(manifest.hash),
                body,
                stats: stats.or(manifest.claim.stats),
                claim: manifest.claim,
            })
        })
        .await;
    let (said, read) = match said {
        Ok(Some(said)) => said,
        Ok(None) => return Ok(None),
        Err(e) => {
            passed_over(e, "a manifest is left out")?;
            return Ok(None);
        }
    };
    let Some(hash) = names::parse_hash(&said.hash) else {
        return Ok(None);
    };
    let manifest = read.then(|| said.clone());
    let mut seen = Seen {
        object,
        writer,
        hash,
        claim: said.claim,
        revision: None,
        body: said.body.into_body(),
        stats: said.stats,
    };
    let mut fresh_revision = None;
    for name in revised.into_iter().flat_map(|all| all.values().rev()) {
        let said = revisions
            .said(name, |bytes| {
                let revision = revision::parse(core, name, bytes)?;
                let (body, stats) = opened(revision.open(core, name));
                Ok(SaidRevision {
                    manifest: hex::encode(revision.manifest),
                    claim: revision.claim,
                    body,
                    stats,
                })
            })
            .await;
        match said {
            Ok(Some((said, read))) if names::parse_hash(&said.manifest) == Some(hash) => {
                if ListName::parse(&said.claim.list).is_none() {
                    continue;
                }
                fresh_revision = read.then(|| (name.clone(), said.clone()));
                seen.revision = Some(said.claim);
                seen.body = said.body.into_body();
                seen.stats = said.stats.or(seen.stats);
                break;
            }
            Ok(Some(_)) => {
                tracing::warn!(object = %name, "a revision is for another manifest than the one in its place")
            }
            Ok(None) => {}
            Err(e) => passed_over(e, "a revision is left out")?,
        }
    }
    Ok(Some(Found {
        seen,
        manifest,
        revision: fresh_revision,
    }))
}

/// What was noted beside backups.
#[derive(Default)]
pub(crate) struct Notes {
    /// Of each, oldest first.
    pub read: HashMap<BackupId, Vec<Annotation>>,
    /// Those of which a note is left out, because no key at hand opens it or it does not read.
    pub unread: BTreeSet<BackupId>,
}

/// What was noted beside these backups.
pub(crate) async fn annotations(core: &Core, backups: &[Seen]) -> Result<Notes, RepositoryError> {
    let shelf: &Shelf<'_, SaidNote> = &Shelf::look(core, "annotations").await?;
    let by_id: HashMap<&str, &Seen> = backups.iter().map(|b| (b.claim.backup.as_str(), b)).collect();
    let by_id = &by_id;
    let found: Vec<_> = futures_util::stream::iter(shelf.infos.iter().map(|info| info.name.clone()))
        .map(|object| async move {
            let of = object.as_str().split('/').nth(1).and_then(|id| by_id.get(id));
            let Some(of) = of else { return Ok(None) };
            let said = shelf
                .said(&object, |bytes| {
                    let note = annotation::note(core, (&of.claim.backup, &of.hash), object.clone(), bytes)?;
                    let body = match note.read(core) {
                        Ok(annotation) => Some(annotation.body),
                        Err(RepositoryError::Key { .. }) => None,
                        Err(e) => return Err(e),
                    };
                    Ok(SaidNote {
                        signer: note.signer,
                        claim: note.claim,
                        body: body.into(),
                    })
                })
                .await;
            match said {
                Ok(said) => Ok(said.map(|(said, read)| (object, said, read))),
                Err(e) => passed_over(e, "an annotation is left out").map(|()| None),
            }
        })
        .buffered(READ_AHEAD)
        .try_collect()
        .await?;
    let found: Vec<(ObjectName, SaidNote, bool)> = found.into_iter().flatten().collect();
    let replaced: HashSet<String> = found
        .iter()
        .filter_map(|(_, said, _)| said.claim.replaces.clone())
        .collect();
    let mut all = Notes::default();
    let mut fresh = HashMap::new();
    for (object, said, read) in found {
        if read {
            fresh.insert(object.clone(), said.clone());
        }
        let SaidNote { signer, claim, body } = said;
        // Of the same manifest as when it was read.
        let fits = by_id
            .get(claim.backup.as_str())
            .is_some_and(|of| claim.manifest == hex::encode(of.hash));
        if !fits || replaced.contains(object.as_str()) {
            continue;
        }
        let Some(body) = body.into_body() else {
            tracing::warn!(%object, "an annotation is left out: none of the given keys opens it");
            all.unread.insert(claim.backup);
            continue;
        };
        let body: Value = match body.read() {
            Ok(value) => value,
            Err(e) => {
                tracing::warn!(%object, error = %e, "an annotation is left out");
                all.unread.insert(claim.backup);
                continue;
            }
        };
        all.read.entry(claim.backup.clone()).or_default().push(Annotation {
            backup: claim.backup,
            kind: claim.kind,
            created_at: claim.created_at,
            writer: signer,
            body,
        });
    }
    shelf.keep(fresh);
    for of in all.read.values_mut() {
        of.sort_by_key(|a| a.created_at);
    }
    Ok(all)
}
