//! Writing packs anew: `repack` leaves out what nothing needs, `rekey` encrypts to the recipients of today.
//!
//! Both read packs with an identity, keep what is to be kept through the same packers as a backup, and then write one
//! revision for each backup concerned. Nothing is deleted and nothing rewritten: the old packs are left for prune.
//!
//! Killed at any step it leaves a good repository: packs and indexes that nothing needs yet, which the next run finds
//! and relies on, then revisions, one backup after the other, each whole by itself. It announces itself like a running
//! backup, so that prune takes nothing from under it.
//!
//! Only this writer's backups are touched (those of the keys it was rotated from included): another writer could
//! neither open the new indexes nor name its chunks by our key. What is sealed to recipients goes to recipients again;
//! the writer key at hand signs and is never added to whom contents are sealed to.

mod carry;

use super::lease::Lease;
use crate::core::Core;
use crate::index_object::PackIndex;
use crate::keys::Recipients;
use crate::makers::{self, Makers, TakeChunk};
use crate::manifest::{self, Manifest};
use crate::names::{self, Hash, IndexName, PackName};
use crate::read::Fetcher;
use crate::{BackupId, OpenBackup, RepositoryError, forget, read, sync};
use essrun_artifact::{BackupReader, ChunkRef, Progress};
use futures_util::StreamExt;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Indexes read at one time.
const READ_AHEAD: usize = 8;

/// What to write anew.
#[derive(Clone, Copy, Debug)]
pub enum Rewrite {
    /// Packs of which at least this part of the plain bytes is needed by no backup, in percent.
    Repack { unused_percent: u8 },
    /// Packs and manifests that are sealed to others than the recipients of today.
    Rekey,
}

/// A pack that is to be written anew.
#[derive(Clone, Debug, Serialize)]
pub struct PackToRewrite {
    pub object: String,
    /// Of the object.
    pub bytes: u64,
    /// Plain bytes in it, and those of them that are kept.
    pub plain_bytes: u64,
    pub kept_bytes: u64,
    pub why: String,
}

/// What writing anew would do, or did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RewriteReport {
    pub packs: Vec<PackToRewrite>,
    /// Backups that get a revision.
    pub backups: Vec<BackupId>,
    /// Annotation objects whose words are sealed anew.
    pub annotations: Vec<String>,
    /// What is left alone, and why.
    pub left_alone: Vec<String>,
    /// Whether it was done, or only planned.
    pub done: bool,
    /// Bytes of the objects written.
    pub stored_bytes: u64,
}

/// Which chunks of which packs are needed, by their place: memory is a few bytes for each chunk in the repository.
#[derive(Default)]
struct Live {
    places: HashMap<u32, HashSet<u64>>,
    bytes: HashMap<u32, u64>,
    /// Packs of backups with artifacts nobody here understands: all of it is needed.
    wholly: HashSet<u32>,
}

fn place_key(frame: u32, offset: u32) -> u64 {
    u64::from(frame) << 32 | u64::from(offset)
}

struct Mark<'a> {
    live: &'a mut Live,
    fetcher: Arc<Fetcher>,
}

impl TakeChunk for Mark<'_> {
    fn chunk(&mut self, chunk: &ChunkRef) -> Result<(), RepositoryError> {
        let (pack, place) = self.fetcher.locate(chunk)?;
        let fresh = self
            .live
            .places
            .entry(pack)
            .or_default()
            .insert(place_key(place.frame, place.offset));
        if fresh {
            *self.live.bytes.entry(pack).or_default() += u64::from(place.bytes);
        }
        Ok(())
    }
}

/// What of an index decides whether its pack is written anew.
struct Summed {
    pack: PackName,
    recipients: Vec<String>,
    plain: u64,
}

fn summed(index: PackIndex) -> Summed {
    Summed {
        plain: index.frames.iter().map(|f| u64::from(f.plain)).sum(),
        pack: index.pack,
        recipients: index.recipients,
    }
}

/// One of our backups and the packs on its list.
struct Ours {
    manifest: Manifest,
    list: Vec<String>,
}

struct Work<'a> {
    core: Arc<Core>,
    what: Rewrite,
    makers: &'a dyn Makers,
    /// Texts of whom data and meta packs are sealed to today.
    data: BTreeSet<String>,
    meta: BTreeSet<String>,
    report: RewriteReport,
    /// The packs to write anew, and their indexes.
    rewrite: BTreeMap<Hash, (PackName, IndexName)>,
    live: Live,
}

fn texts(recipients: &Recipients) -> BTreeSet<String> {
    recipients.texts().map(str::to_owned).collect()
}

/// Plans, and with `confirm` carries out.
pub(crate) async fn rewrite(
    core: Arc<Core>,
    what: Rewrite,
    confirm: bool,
    makers: &dyn Makers,
    progress: &dyn Progress,
) -> Result<RewriteReport, RepositoryError> {
    let key = core.writer()?.clone();
    if !core.reads_contents {
        return Err(RepositoryError::refused(
            "writing packs anew needs an identity to read them",
            "run it where the identity is, with a copy of the writer key; the writer key opens no contents",
        ));
    }
    if core.recipients.is_empty() {
        return Err(RepositoryError::refused(
            "there is no recipient to encrypt to",
            "name the recipients in the pipeline",
        ));
    }
    let mut work = Work {
        data: texts(&core.recipients),
        meta: texts(&core.recipients.with_native(key.index_recipient())),
        core,
        what,
        makers,
        report: RewriteReport::default(),
        rewrite: BTreeMap::new(),
        live: Live::default(),
    };
    if !confirm {
        let ours = work.ours().await?;
        work.choose(&ours).await?;
        work.annotations(false).await?;
        return Ok(work.report);
    }
    // First be seen, then look: as a backup does.
    let lease = Lease::begin(work.core.clone(), BackupId::make(jiff::Timestamp::now())).await?;
    let done = work.carry_out(&lease, progress).await;
    lease.close().await;
    done?;
    work.report.done = true;
    Ok(work.report)
}

impl Work<'_> {
    async fn carry_out(&mut self, lease: &Lease, progress: &dyn Progress) -> Result<(), RepositoryError> {
        let ours = self.ours().await?;
        self.choose(&ours).await?;
        let replaced = self.write_packs(progress).await?;
        lease.still_held()?;
        lease.commits();
        self.revise(&replaced).await?;
        lease.committed();
        self.annotations(true).await
    }

    fn is_current(&self, meta: bool, recipients: &[String]) -> bool {
        let sealed_to: BTreeSet<&String> = recipients.iter().collect();
        let wanted = if meta { &self.meta } else { &self.data };
        sealed_to == wanted.iter().collect()
    }

    /// Our backups that are not forgotten, with their lists.
    async fn ours(&mut self) -> Result<Vec<Ours>, RepositoryError> {
        let own = self.core.own_writers();
        let (tombstones, _) = forget::read_all(&self.core).await?;
        let mut ours = Vec::new();
        for (object, manifest) in manifest::read_all(&self.core).await? {
            let manifest = manifest.map_err(|e| {
                RepositoryError::refused(
                    format!("{object} cannot be trusted ({e})"),
                    "run `check`, and put right what it names first",
                )
            })?;
            if forget::is_forgotten(&tombstones, &manifest) {
                continue;
            }
            if !own.contains(&manifest.writer) {
                let note = format!(
                    "backup {} is of writer {}: run this with that writer's key",
                    manifest.claim.backup, manifest.writer
                );
                self.report.left_alone.push(note);
                continue;
            }
            let list = read::read_list(&self.core, &manifest.list).await?;
            ours.push(Ours { manifest, list });
        }
        Ok(ours)
    }

    /// Decides which packs are written anew, and which backups get a revision for it.
    async fn choose(&mut self, ours: &[Ours]) -> Result<(), RepositoryError> {
        let mut listed: BTreeMap<String, IndexName> = BTreeMap::new();
        for backup in ours {
            for name in &backup.list {
                if let Some(index) = IndexName::parse(name) {
                    listed.insert(name.clone(), index);
                }
            }
        }
        for backup in ours {
            match self.what {
                Rewrite::Repack { .. } => self.mark(backup).await?,
                // So that every pack has its number.
                Rewrite::Rekey => drop(sync::listed_packs(&self.core, &backup.list).await?),
            }
        }
        let mut wanted = Vec::new();
        for name in listed.into_values() {
            if self.is_candidate(&name)? {
                wanted.push(name);
            }
        }
        let core = self.core.clone();
        let mut read = futures_util::stream::iter(wanted)
            .map(|name| {
                let core = core.clone();
                async move {
                    let found = sync::read_index(&core, &name).await?;
                    // The chunks are asked for again, pack by pack, when it comes to writing.
                    Ok::<_, RepositoryError>((name, summed(found)))
                }
            })
            .buffered(READ_AHEAD);
        while let Some(one) = read.next().await {
            let (name, found) = one?;
            self.decide(name, found)?;
        }
        drop(read);
        for backup in ours {
            if self.concerns(backup)? {
                self.report.backups.push(backup.manifest.claim.backup.clone());
            }
        }
        Ok(())
    }

    /// Whether a pack may have to be written anew, as far as is known without its index.
    fn is_candidate(&self, name: &IndexName) -> Result<bool, RepositoryError> {
        let Rewrite::Repack { unused_percent } = self.what else {
            return Ok(true);
        };
        let index = self.core.index()?;
        let Some(number) = index.number(&name.pack)? else {
            return Ok(false);
        };
        if self.live.wholly.contains(&number) {
            return Ok(false);
        }
        let plain: u64 = index.pack(number)?.frames.iter().map(|f| u64::from(f.plain)).sum();
        let unused = plain.saturating_sub(self.live_bytes(number));
        Ok(unused > 0 && unused.saturating_mul(100) >= plain.saturating_mul(u64::from(unused_percent)))
    }

    fn live_bytes(&self, number: u32) -> u64 {
        self.live.bytes.get(&number).copied().unwrap_or(0)
    }

    fn decide(&mut self, name: IndexName, found: Summed) -> Result<(), RepositoryError> {
        let object = found.pack.object()?.to_string();
        let current = self.is_current(found.pack.meta, &found.recipients);
        let (kept, why) = match self.what {
            Rewrite::Rekey if current => return Ok(()),
            Rewrite::Rekey => (
                found.plain,
                "it is sealed to others than the recipients of today".to_owned(),
            ),
            Rewrite::Repack { .. } if !current => {
                let note = format!("{object} is sealed to others than the recipients of today: `rekey` first");
                self.report.left_alone.push(note);
                return Ok(());
            }
            Rewrite::Repack { .. } => {
                let live = self.live_bytes(self.number(&found.pack)?);
                let unused = found.plain.saturating_sub(live);
                let percent = unused.saturating_mul(100) / found.plain.max(1);
                (live, format!("{percent} % of it is needed by no backup"))
            }
        };
        self.report.packs.push(PackToRewrite {
            object,
            bytes: found.pack.sum.bytes,
            plain_bytes: found.plain,
            kept_bytes: kept,
            why,
        });
        self.rewrite.insert(found.pack.sum.hash, (found.pack, name));
        Ok(())
    }

    fn concerns(&self, backup: &Ours) -> Result<bool, RepositoryError> {
        let packs = backup.list.iter().filter_map(|n| PackName::parse(n));
        if packs.into_iter().any(|p| self.rewrite.contains_key(&p.sum.hash)) {
            return Ok(true);
        }
        if !matches!(self.what, Rewrite::Rekey) {
            return Ok(false);
        }
        let sealed = backup.manifest.open(&self.core)?;
        Ok(sealed.recipients.into_iter().collect::<BTreeSet<_>>() != self.data)
    }

    /// Marks what a backup needs.
    async fn mark(&mut self, backup: &Ours) -> Result<(), RepositoryError> {
        let open = OpenBackup::open(self.core.clone(), backup.manifest.clone()).await?;
        // Of a backup that is known to be damaged it is not known what it would need when what was lost comes back.
        let whole = backup.manifest.revision.as_ref().is_none_or(|r| r.lost.is_empty());
        let mut known = whole;
        for artifact in open.artifacts().iter().filter(|_| whole) {
            let mut mark = Mark {
                live: &mut self.live,
                fetcher: open.fetcher(),
            };
            known &= makers::chunks(&open, artifact, self.makers, &mut mark).await?;
        }
        if !known {
            let index = self.core.index()?;
            for name in backup.list.iter().filter_map(|n| IndexName::parse(n)) {
                self.live.wholly.extend(index.number(&name.pack)?);
            }
            let note = format!(
                "backup {} is damaged or has artifacts of a kind not known here: its packs stay as they are",
                backup.manifest.claim.backup
            );
            self.report.left_alone.push(note);
        }
        Ok(())
    }

    fn number(&self, pack: &PackName) -> Result<u32, RepositoryError> {
        let number = self.core.index()?.number(&pack.sum.hash)?;
        number.ok_or_else(|| RepositoryError::Internal("a pack's number is not known".into()))
    }
}

/// The hash in a manifest's key: chunks are named by it.
pub(crate) fn naming_key(sealed: &manifest::Sealed, object: &str) -> Result<[u8; 32], RepositoryError> {
    names::parse_hash(&sealed.chunk_id_key).ok_or_else(|| RepositoryError::damaged(object, "its chunk key is broken"))
}
