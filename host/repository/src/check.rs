//! Checking: every object against what was signed, then what opens with the keys at hand, then every byte.
//!
//! It never stops at the first thing that is wrong, changes nothing, and names objects, not guesses.

use crate::core::Core;
use crate::envelope::Header;
use crate::forget::{self, Tombstones};
use crate::keys::{Recipients, StanzaKind, WriterId};
use crate::makers::{Makers, Visit};
use crate::manifest::{self, Manifest};
use crate::names::{self, Hash, IndexName, PackName};
use crate::read::{OpenBackup, RefReader};
use crate::{BackupId, CheckMode, CheckReport, Finding, FindingKind, RepositoryError, read, state, sync};
use async_trait::async_trait;
use bytes::Bytes;
use essrun_artifact::{BackupReader, Content, KeepError};
use essrun_store::{Cause, ObjectInfo, ObjectName};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

struct Check {
    core: Arc<Core>,
    report: CheckReport,
    /// Every needed object and the backups that need it.
    needed: BTreeMap<String, Vec<BackupId>>,
    /// Objects found wrong; one finding each.
    bad: HashSet<String>,
}

pub(crate) async fn check(
    core: Arc<Core>,
    mode: CheckMode,
    makers: &dyn Makers,
) -> Result<CheckReport, RepositoryError> {
    let of = match mode {
        CheckMode::Full { part, of } => {
            if of == 0 || part == 0 || part > of {
                return Err(RepositoryError::refused(
                    format!("{part}/{of} is no part"),
                    "use 1/7 to 7/7, or 1/1 for everything",
                ));
            }
            if !core.reads_contents {
                return Err(RepositoryError::refused(
                    "reading everything back needs an identity",
                    "give the identity of a recipient, or check without one",
                ));
            }
            Some((part, of))
        }
        CheckMode::Writer if core.identities.is_empty() => {
            return Err(RepositoryError::refused(
                "opening indexes and manifests needs the writer key or an identity",
                "give one, or check without keys",
            ));
        }
        CheckMode::Public | CheckMode::Writer => None,
    };
    let mut check = Check {
        core,
        report: CheckReport::default(),
        needed: BTreeMap::new(),
        bad: HashSet::new(),
    };
    let tombstones = check.tombstones().await?;
    let mut manifests = check.manifests().await?;
    check.chain(&manifests, &tombstones)?;
    manifests.retain(|m| !forget::is_forgotten(&tombstones, m));
    check.report.backups = manifests.len() as u64;
    check.known_damage(&manifests);
    check.lists(&manifests).await;
    check.objects(of).await?;
    if mode != CheckMode::Public {
        check.open_manifests(&manifests).await;
        check.indexes().await?;
    }
    if let Some((part, of)) = of {
        check.contents(part, of, makers).await?;
    }
    check.report.findings.sort_by(|a, b| a.object.cmp(&b.object));
    Ok(check.report)
}

impl Check {
    fn found(&mut self, object: impl ToString, kind: FindingKind, detail: impl Into<String>) {
        let object = object.to_string();
        if !self.bad.insert(object.clone()) {
            return;
        }
        let affects = self.needed.get(&object).cloned().unwrap_or_default();
        self.report.findings.push(Finding {
            object,
            kind,
            detail: detail.into(),
            affects,
        });
    }

    async fn manifests(&mut self) -> Result<Vec<Manifest>, RepositoryError> {
        let mut good = Vec::new();
        for (object, manifest) in manifest::read_all(&self.core).await? {
            self.report.objects += 1;
            match manifest {
                Ok(manifest) => good.push(manifest),
                Err(e) => self.found(object, FindingKind::Forged, why(&e)),
            }
        }
        Ok(good)
    }

    async fn tombstones(&mut self) -> Result<Tombstones, RepositoryError> {
        let (good, bad) = forget::read_all(&self.core).await?;
        for (object, e) in bad {
            self.found(object, FindingKind::Forged, why(&e));
        }
        Ok(good)
    }

    /// Each writer's chain: every manifest, or the tombstone in its stead, follows the one before, none is missing, and
    /// the end is what we remember.
    fn chain(&mut self, manifests: &[Manifest], tombstones: &Tombstones) -> Result<(), RepositoryError> {
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
                    let detail = format!("backups {expected} to {} of writer {writer} are gone", sequence - 1);
                    self.found(names::manifest(writer, expected)?, FindingKind::ChainBroken, detail);
                } else if names::parse_hash(previous)
                    != Some(before.map_or_else(|| self.core.origin(writer), |(_, hash)| hash))
                {
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
            let writer = follows.writer.id();
            let last = chains.get(&writer).and_then(|c| c.last_key_value());
            let (sequence, hash) = last.map_or((0, self.core.origin(&writer)), |(s, (hash, ..))| (*s, *hash));
            if (sequence, hash) != (follows.head.sequence, follows.head.hash) {
                let detail = format!(
                    "the chain of writer {writer} was given up at backup {} and now ends with {sequence}",
                    follows.head.sequence
                );
                let object = names::manifest(&writer, follows.head.sequence.max(1))?;
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
                    self.found(
                        object,
                        FindingKind::Forged,
                        "it is not the manifest this host wrote or saw",
                    );
                }
                None if last < head.sequence => {
                    let seen = head.sequence;
                    let detail = format!("this host saw backup {seen} of writer {writer}, and the newest is {last}");
                    self.found(object, FindingKind::RolledBack, detail);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn known_damage(&mut self, manifests: &[Manifest]) {
        for manifest in manifests {
            let lost = manifest.revision.as_ref().map_or(0, |r| r.lost.len());
            if lost > 0 {
                let object = manifest.sealed_in();
                self.needed
                    .entry(object.clone())
                    .or_default()
                    .push(manifest.claim.backup.clone());
                let detail = format!("{lost} objects are lost for good; `show` says which artifacts that concerns");
                self.found(&object, FindingKind::KnownDamage, detail);
                // A note about the backup, not about this object.
                self.bad.remove(&object);
                self.needed.remove(&object);
            }
        }
    }

    async fn lists(&mut self, manifests: &[Manifest]) {
        for manifest in manifests {
            let backup = &manifest.claim.backup;
            let list = match manifest.list.object() {
                Ok(object) => object.to_string(),
                Err(_) => continue,
            };
            self.needed.entry(list.clone()).or_default().push(backup.clone());
            match read::read_list(&self.core, &manifest.list).await {
                Ok(objects) => {
                    for object in objects {
                        self.needed.entry(object).or_default().push(backup.clone());
                    }
                }
                Err(e) => {
                    let kind = kind_of(&e);
                    self.found(&list, kind, why(&e));
                }
            }
        }
    }

    /// Every needed object: there, of the right size, of the right hash. What is needed by nothing is told apart.
    async fn objects(&mut self, part: Option<(u32, u32)>) -> Result<(), RepositoryError> {
        let mut there: BTreeMap<String, ObjectInfo> = BTreeMap::new();
        for info in self.core.store.list("").await? {
            there.insert(info.name.to_string(), info);
        }
        for name in there.keys() {
            if names::sum_in_name(name).is_some() && !self.needed.contains_key(name) {
                self.found(
                    name,
                    FindingKind::Unused,
                    "no backup needs it; an interrupted run left it for the next",
                );
            }
        }
        let mut to_read: Vec<ObjectName> = Vec::new();
        for name in self.needed.keys().cloned().collect::<Vec<_>>() {
            self.report.objects += 1;
            let Some(sum) = names::sum_in_name(&name) else {
                self.found(
                    &name,
                    FindingKind::Undecodable,
                    "a list names an object of no known kind",
                );
                continue;
            };
            match there.get(&name) {
                None => self.found(&name, FindingKind::Missing, "it is needed and not there"),
                Some(info) if info.bytes != sum.bytes => {
                    let detail = format!("it has {} bytes and was written with {}", info.bytes, sum.bytes);
                    self.found(&name, FindingKind::WrongSize, detail);
                }
                Some(info) if part.is_none_or(|p| in_part(&name, p)) => to_read.push(info.name.clone()),
                Some(_) => {}
            }
        }
        let core = self.core.clone();
        let mut read = futures_util::stream::iter(to_read)
            .map(|name| {
                let core = core.clone();
                async move {
                    let bytes = core.store.get(&name).await;
                    let hashed = match bytes {
                        Ok(bytes) => {
                            core.compute(move || Ok((names::sha256(&bytes), head_of(&bytes), bytes.len())))
                                .await
                        }
                        Err(e) => Err(e.into()),
                    };
                    (name, hashed)
                }
            })
            .buffer_unordered(4);
        let mut done = Vec::new();
        while let Some(one) = read.next().await {
            done.push(one);
        }
        drop(read);
        for (name, hashed) in done {
            match hashed {
                Ok((hash, head, length)) => {
                    self.report.bytes_read += length as u64;
                    if names::sum_in_name(name.as_str()).map(|s| s.hash) != Some(hash) {
                        self.found(
                            &name,
                            FindingKind::WrongContent,
                            "its bytes are not those that were written",
                        );
                    } else if PackName::parse(name.as_str()).is_some()
                        && let Err(e) = head
                    {
                        self.found(&name, FindingKind::Undecodable, e);
                    }
                }
                Err(e) => {
                    let kind = kind_of(&e);
                    self.found(&name, kind, why(&e));
                }
            }
        }
        Ok(())
    }

    /// The sealed parts of manifests.
    async fn open_manifests(&mut self, manifests: &[Manifest]) {
        for manifest in manifests {
            if let Err(e) = manifest.open(&self.core) {
                // Another writer's manifests are sealed to the recipients and to that writer only.
                if self.core.reads_contents || !matches!(e, RepositoryError::Key { .. }) {
                    self.found(manifest.sealed_in(), FindingKind::Undecodable, why(&e));
                }
            }
        }
    }

    /// Every index: opens, is signed, and fits its pack's header, recipients included.
    async fn indexes(&mut self) -> Result<(), RepositoryError> {
        let own = self.core.own_writers();
        let names: Vec<IndexName> = self.needed.keys().filter_map(|n| IndexName::parse(n)).collect();
        let packs: BTreeMap<[u8; 32], PackName> = self
            .needed
            .keys()
            .filter_map(|n| PackName::parse(n))
            .map(|p| (p.sum.hash, p))
            .collect();
        let mut sealed = SealedTo::default();
        for name in names {
            if !self.core.reads_contents && !own.contains(&name.writer) {
                continue;
            }
            let object = name.object()?;
            if self.bad.contains(object.as_str()) {
                continue;
            }
            let index = match sync::read_index(&self.core, &name).await {
                Ok(index) => index,
                Err(e) => {
                    let kind = kind_of(&e);
                    self.found(&object, kind, why(&e));
                    continue;
                }
            };
            let Some(pack) = packs.get(&name.pack) else {
                self.found(&object, FindingKind::Undecodable, "a list names it without its pack");
                continue;
            };
            let pack_object = pack.object()?;
            if index.pack != *pack {
                self.found(&object, FindingKind::Undecodable, "it says another name for its pack");
            } else if !self.bad.contains(pack_object.as_str()) {
                self.header(&pack_object, &index.recipients, index.payload_offset).await;
            }
            if !pack.meta {
                let backups = self.needed.get(pack_object.as_str()).cloned().unwrap_or_default();
                sealed.compare(&index.recipients, &self.core.recipients, &backups);
            }
        }
        for (recipient, (packs, backups)) in sealed.others {
            let detail = format!("reads {packs} packs of contents and is not named as a recipient; `rekey` ends that");
            self.note(&recipient, detail, backups);
        }
        for (recipient, (packs, backups)) in sealed.lacking {
            let detail =
                format!("is named as a recipient and cannot read {packs} packs of contents; `rekey` mends that");
            self.note(&recipient, detail, backups);
        }
        Ok(())
    }

    fn note(&mut self, recipient: &str, detail: String, backups: BTreeSet<BackupId>) {
        self.report.findings.push(Finding {
            object: format!("recipient {recipient}"),
            kind: FindingKind::OtherRecipients,
            detail,
            affects: backups.into_iter().collect(),
        });
    }

    async fn header(&mut self, pack: &ObjectName, recipients: &[String], payload_offset: u64) {
        let expected = match Recipients::parse(recipients) {
            Ok(recipients) => recipients.kinds(),
            // A plugin that is not installed here: only the number can be compared.
            Err(_) => recipients.iter().map(|r| kind_by_text(r)).collect(),
        };
        let header = match self.core.store.get_range(pack, 0..payload_offset).await {
            Ok(bytes) => Header::parse(&bytes),
            Err(e) => return self.found(pack, FindingKind::Unreadable, e.to_string()),
        };
        match header {
            Ok(header) => {
                if let Err(e) = header.fits(&expected) {
                    self.found(pack, FindingKind::ForeignRecipient, e);
                }
            }
            Err(e) => self.found(pack, FindingKind::Undecodable, e),
        }
    }

    /// Reads back the chunks of every artifact that belong to the part, those of files and of split tables included.
    async fn contents(&mut self, part: u32, of: u32, makers: &dyn Makers) -> Result<(), RepositoryError> {
        let mut seen: HashSet<essrun_artifact::ChunkId> = HashSet::new();
        for (object, manifest) in manifest::read_all(&self.core).await? {
            let Ok(manifest) = manifest else { continue };
            let forgotten = !self.needed.contains_key(manifest.list.object()?.as_str());
            if forgotten || self.bad.contains(object.as_str()) {
                continue;
            }
            let backup = match OpenBackup::open(self.core.clone(), manifest).await {
                Ok(backup) => backup,
                Err(e) => {
                    let object = object_of(&e).unwrap_or_else(|| object.to_string());
                    self.found(object, FindingKind::Undecodable, why(&e));
                    continue;
                }
            };
            for artifact in backup.artifacts() {
                // Known and said already.
                if backup.damaged().iter().any(|d| d.artifact == artifact.name.as_str()) {
                    continue;
                }
                let mut visit = ReadBack {
                    check: self,
                    backup: &backup,
                    part: (part, of),
                    seen: &mut seen,
                };
                if let Err(e) = makers.contents(artifact, &backup, &mut visit).await {
                    let e = cause(e);
                    let backup = &backup.summary().id;
                    let object = match object_of(&e) {
                        // No object is to blame by itself. Where one of the backup's is missing, that is why.
                        Some(chunk) if chunk.starts_with("chunk ") => {
                            if self.report.findings.iter().any(|f| f.affects.contains(backup)) {
                                continue;
                            }
                            chunk
                        }
                        Some(object) => object,
                        None => format!("{} in {backup}", artifact.name),
                    };
                    let kind = match &e {
                        RepositoryError::Store(_) => kind_of(&e),
                        _ => FindingKind::Undecodable,
                    };
                    self.found(object, kind, format!("{} (artifact {})", why(&e), artifact.name));
                }
            }
        }
        Ok(())
    }

    async fn read_back(
        &mut self,
        backup: &OpenBackup,
        content: &Content,
        part: (u32, u32),
        seen: &mut HashSet<essrun_artifact::ChunkId>,
    ) -> Result<(), RepositoryError> {
        use essrun_artifact::ChunkList;
        let mut refs = RefReader::new(backup.fetcher(), content)?;
        // Chunks in the order of the content, in stretches, so that neighbours are fetched together.
        loop {
            let mut stretch = Vec::new();
            let mut bytes = 0u64;
            while stretch.len() < 256 {
                let Some(chunk) = refs.next().await? else { break };
                if in_part(&chunk.id.to_string(), part) && seen.insert(chunk.id) {
                    bytes += u64::from(chunk.bytes);
                    stretch.push(chunk);
                }
            }
            if stretch.is_empty() {
                return Ok(());
            }
            self.report.chunks_verified += stretch.len() as u64;
            let piece = Content {
                bytes,
                chunks: ChunkList::Inline(stretch),
            };
            let mut reader = backup.open(&piece).await?;
            while let Some(bytes) = reader.next().await? {
                self.report.bytes_read += bytes.len() as u64;
            }
        }
    }
}

/// The repository's own error, where a maker handed one through.
fn cause(e: KeepError) -> RepositoryError {
    let KeepError {
        what,
        why,
        hint,
        source,
    } = e;
    match source.map(|source| source.downcast::<RepositoryError>()) {
        Some(Ok(own)) => *own,
        Some(Err(other)) => KeepError {
            what,
            why,
            hint,
            source: Some(other),
        }
        .into(),
        None => match what.strip_prefix("object ") {
            Some(object) => RepositoryError::damaged(object, why),
            None => KeepError {
                what,
                why,
                hint,
                source: None,
            }
            .into(),
        },
    }
}

/// Reads contents back as a maker names them.
struct ReadBack<'a> {
    check: &'a mut Check,
    backup: &'a OpenBackup,
    part: (u32, u32),
    seen: &'a mut HashSet<essrun_artifact::ChunkId>,
}

#[async_trait]
impl Visit for ReadBack<'_> {
    async fn content(&mut self, content: &Content) -> Result<(), KeepError> {
        Ok(self.check.read_back(self.backup, content, self.part, self.seen).await?)
    }
}

/// Who reads contents today and should not, and who should and does not: packs and backups of each.
#[derive(Default)]
struct SealedTo {
    others: BTreeMap<String, (u64, BTreeSet<BackupId>)>,
    lacking: BTreeMap<String, (u64, BTreeSet<BackupId>)>,
}

impl SealedTo {
    /// Without recipients there is nothing to compare with: whoever only reads names none.
    fn compare(&mut self, sealed_to: &[String], wanted: &Recipients, backups: &[BackupId]) {
        if wanted.is_empty() {
            return;
        }
        let wanted: BTreeSet<&str> = wanted.texts().collect();
        let found: BTreeSet<&str> = sealed_to.iter().map(String::as_str).collect();
        let count = |into: &mut BTreeMap<String, (u64, BTreeSet<BackupId>)>, who: &str| {
            let entry = into.entry(who.to_owned()).or_default();
            entry.0 += 1;
            entry.1.extend(backups.iter().cloned());
        };
        found.difference(&wanted).for_each(|r| count(&mut self.others, r));
        wanted.difference(&found).for_each(|r| count(&mut self.lacking, r));
    }
}

fn kind_by_text(recipient: &str) -> StanzaKind {
    match recipient.split(' ').next().unwrap_or_default() {
        "ssh-rsa" => StanzaKind::Tag("ssh-rsa"),
        "ssh-ed25519" => StanzaKind::Tag("ssh-ed25519"),
        word if word.parse::<age::x25519::Recipient>().is_ok() => StanzaKind::Tag("X25519"),
        _ => StanzaKind::Plugin,
    }
}

fn head_of(bytes: &Bytes) -> Result<(), String> {
    Header::parse(bytes).map(drop)
}

/// Parts are chosen by name, so that they stay the same as the repository grows.
fn in_part(name: &str, (part, of): (u32, u32)) -> bool {
    let hash = names::sha256(name.as_bytes());
    let word = hash
        .first_chunk::<4>()
        .map(|four| u32::from_be_bytes(*four))
        .unwrap_or(0);
    word % of.max(1) == part.saturating_sub(1)
}

fn kind_of(e: &RepositoryError) -> FindingKind {
    match e {
        RepositoryError::Store(e) if e.cause == Cause::Missing => FindingKind::Missing,
        RepositoryError::Store(_) => FindingKind::Unreadable,
        RepositoryError::Damaged { .. } => FindingKind::WrongContent,
        _ => FindingKind::Undecodable,
    }
}

/// The object an error is about.
fn object_of(e: &RepositoryError) -> Option<String> {
    match e {
        RepositoryError::Damaged { object, .. } => Some(object.clone()),
        RepositoryError::Store(e) => Some(e.object.clone()),
        _ => None,
    }
}

fn why(e: &RepositoryError) -> String {
    match e {
        RepositoryError::Damaged { why, .. } => why.clone(),
        other => other.to_string(),
    }
}
