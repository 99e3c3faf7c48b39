//! Revisions: what a backup needs now, where that is no longer what its manifest said.
//!
//! A manifest is written once and its list of objects is part of what was signed. When packs are written anew (a
//! repack, a rekey) or were lost (a repair), a signed revision names another list for the same manifest, and its payload
//! takes the place of the manifest's sealed part. The manifest stays, as the chain and the tombstones know it. Of
//! several revisions the one with the greatest number counts; it is written last, after everything it names.
//!
//! A revision that is taken away brings an older list back: what has been pruned since is then missing, and is named.

use crate::clock::now;
use crate::core::Core;
use crate::keys::{Recipients, WriterId};
use crate::manifest::{Manifest, Sealed};
use crate::names::{self, Hash, ListName, Sum};
use crate::signed::{self, Kind};
use crate::{BackupId, RepositoryError, envelope, prune};
use bytes::Bytes;
use essrun_store::{Cause, ObjectName, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Why a revision was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    Repack,
    Rekey,
    Repair,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub repository: String,
    pub backup: BackupId,
    /// The manifest it is for.
    pub writer: WriterId,
    pub sequence: u64,
    pub manifest: String,
    /// From 1; the greatest counts.
    pub number: u64,
    pub made_at: i64,
    pub reason: Reason,
    pub list: String,
    pub needed_objects: u64,
    pub needed_bytes: u64,
    /// Objects that are gone for good: the backup is no longer whole. The payload says which artifacts that concerns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// A revision with a trusted signature.
#[derive(Clone, Debug)]
pub(crate) struct Revision {
    pub claim: Claim,
    pub manifest: Hash,
    pub list: ListName,
    pub payload: Bytes,
}

/// Where revisions are kept: by the manifest's writer and sequence.
type Place = (WriterId, u64);

/// Which revisions the store holds, by place and number, with the store's time, without reading them.
pub(crate) async fn places(core: &Core) -> Result<BTreeMap<Place, BTreeMap<u64, (ObjectName, i64)>>, RepositoryError> {
    let mut all: BTreeMap<Place, BTreeMap<u64, (ObjectName, i64)>> = BTreeMap::new();
    for info in core.store.list("revisions").await? {
        if let Some((writer, sequence, number)) = names::parse_revision(info.name.as_str()) {
            all.entry((writer, sequence))
                .or_default()
                .insert(number, (info.name, info.modified_unix_seconds));
        }
    }
    Ok(all)
}

pub(crate) fn parse(core: &Core, object: &ObjectName, bytes: &Bytes) -> Result<Revision, RepositoryError> {
    let bad = |why: &str| RepositoryError::damaged(object, why);
    let place = names::parse_revision(object.as_str()).ok_or_else(|| bad("its name is not one of a revision"))?;
    let document = signed::read(object.as_str(), Kind::Revision, bytes)?;
    let claim: Claim = document.trusted(&core.trusted)?;
    let said = (claim.writer.clone(), claim.sequence, claim.number);
    if claim.repository != core.config.id || said != place {
        return Err(bad("it was written for another place"));
    }
    Ok(Revision {
        manifest: names::parse_hash(&claim.manifest).ok_or_else(|| bad("it names no manifest"))?,
        list: ListName::parse(&claim.list).ok_or_else(|| bad("it names no list"))?,
        payload: document.payload,
        claim,
    })
}

impl Revision {
    /// What is sealed in it; `None` where no key at hand opens it.
    pub fn open(&self, core: &Core, object: &ObjectName) -> Option<Sealed> {
        let sealed = Sealed::open(core, object.as_str(), &self.payload);
        match sealed {
            Ok(sealed) => Some(sealed),
            Err(RepositoryError::Key { .. }) => None,
            Err(e) => {
                tracing::warn!(error = %e, "the sealed part of a revision cannot be read");
                None
            }
        }
    }
}

/// The revision that counts for a manifest, if there is one; and what is wrong with those passed over.
pub(crate) async fn of(
    core: &Core,
    there: &BTreeMap<Place, BTreeMap<u64, (ObjectName, i64)>>,
    manifest: &Manifest,
) -> Result<(Option<Revision>, Vec<(ObjectName, RepositoryError)>), RepositoryError> {
    let mut bad = Vec::new();
    let place = (manifest.writer.clone(), manifest.claim.sequence);
    for (object, _) in there.get(&place).into_iter().flat_map(|all| all.values().rev()) {
        let bytes = match core.store.get(object).await {
            Ok(bytes) => bytes,
            // A prune took a superseded one between the listing and now.
            Err(e) if e.cause == Cause::Missing => continue,
            Err(e) => return Err(e.into()),
        };
        match parse(core, object, &bytes) {
            Ok(revision) if revision.manifest == manifest.hash => return Ok((Some(revision), bad)),
            Ok(_) => bad.push((
                object.clone(),
                RepositoryError::damaged(object, "it is for another manifest than the one in its place"),
            )),
            Err(e) => bad.push((object.clone(), e)),
        }
    }
    Ok((None, bad))
}

/// Stores a list of needed objects, in the form `sha256sum -c` reads. Gives its name, and number and size of what it
/// names.
pub(crate) async fn put_list(core: &Core, objects: &BTreeSet<String>) -> Result<(ListName, u64, u64), RepositoryError> {
    let (mut text, mut bytes) = (String::new(), 0u64);
    for object in objects {
        let sum = names::sum_in_name(object)
            .ok_or_else(|| RepositoryError::Internal(format!("{object} carries no hash in its name")))?;
        bytes += sum.bytes;
        text.push_str(&format!("{}  {object}\n", hex::encode(sum.hash)));
    }
    for _ in 0..100 {
        let list = ListName(Sum::of(text.as_bytes()));
        let object = list.object()?;
        core.store.put_new(&object, Bytes::from(text.clone())).await?;
        // The same list, of a backup that was forgotten, may be about to be pruned, and it must not be relied on. That it
        // was created says nothing: a store that tried again says so of one that was there, and a mark may outlive what
        // it names. Another list with the same meaning has another name.
        if !prune::marked(core).await?.contains(object.as_str()) {
            return Ok((list, objects.len() as u64, bytes));
        }
        let again = text.lines().next_back().unwrap_or_default().to_owned();
        text.push_str(&again);
        text.push('\n');
    }
    Err(RepositoryError::Internal("no list could be written".into()))
}

/// What a revision is to say.
pub(crate) struct Draft<'a> {
    pub manifest: &'a Manifest,
    pub reason: Reason,
    pub objects: &'a BTreeSet<String>,
    pub lost: Vec<String>,
    pub sealed: &'a Sealed,
    /// Whom the sealed part goes to, besides the writer.
    pub recipients: &'a Recipients,
}

/// Writes a revision under the next number, its list first.
pub(crate) async fn write(core: &Core, draft: Draft<'_>) -> Result<(), RepositoryError> {
    let key = core.writer()?;
    let (list, needed_objects, needed_bytes) = put_list(core, draft.objects).await?;
    let json = serde_json::to_vec(draft.sealed).map_err(|e| RepositoryError::Internal(e.to_string()))?;
    let readers = draft.recipients.with_native(key.index_recipient());
    let payload = envelope::seal(&readers, &json, core.options.compression_level)?.bytes;
    let claim = &draft.manifest.claim;
    let place = (draft.manifest.writer.clone(), claim.sequence);
    for _ in 0..100 {
        let there = places(core).await?;
        let last = there.get(&place).and_then(|all| all.last_key_value());
        let number = last.map_or(0, |(number, _)| *number) + 1;
        let revised = Claim {
            repository: core.config.id.clone(),
            backup: claim.backup.clone(),
            writer: draft.manifest.writer.clone(),
            sequence: claim.sequence,
            manifest: hex::encode(draft.manifest.hash),
            number,
            made_at: now(),
            reason: draft.reason,
            list: list.object()?.to_string(),
            needed_objects,
            needed_bytes,
            lost: draft.lost.clone(),
        };
        let object = names::revision(&draft.manifest.writer, claim.sequence, number)?;
        let bytes = signed::write(Kind::Revision, &revised, &payload, key)?;
        if core.store.put_new(&object, bytes).await? == Outcome::Created {
            return Ok(());
        }
    }
    Err(RepositoryError::Internal(
        "the next number of a revision could not be reached".into(),
    ))
}
