//! Carrying out what was chosen: chunks into new packs, then a revision for each backup, then the notes beside backups.
//!
//! In this order, so that whatever it is cut short at, every revision names only what is there.

use super::{READ_AHEAD, Rewrite, Work, place_key, summed};
use crate::index_object::{PackIndex, Place};
use crate::keys::Recipients;
use crate::manifest;
use crate::names::{Hash, IndexName, PackName};
use crate::read::{Fetcher, Pick, Run};
use crate::revision::{self, Draft, Reason};
use crate::write::flow::Flow;
use crate::write::packer::Packer;
use crate::{BackupId, RepositoryError, annotation, forget, sync};
use essrun_artifact::{Cut, Domain, Progress};
use futures_util::StreamExt;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, RwLock};

/// Plain bytes read from a pack at one time.
const STRETCH: u64 = 4 << 20;

impl Work<'_> {
    /// Whether a chunk of a pack that is written anew is kept.
    fn keeps(&self, number: u32, frame: u32, offset: u32) -> bool {
        match self.what {
            Rewrite::Rekey => true,
            Rewrite::Repack { .. } => self
                .live
                .places
                .get(&number)
                .is_some_and(|places| places.contains(&place_key(frame, offset))),
        }
    }

    /// Packs that may be relied on instead of being written again: sealed as we would, and not to be written anew. What
    /// an earlier run that was killed left behind is among them.
    async fn usable(&self) -> Result<HashSet<u32>, RepositoryError> {
        let index = self.core.index()?;
        let mut candidates = Vec::new();
        for number in sync::own_packs(&self.core).await? {
            let pack = index.pack(number)?;
            let replaced = self.rewrite.contains_key(&pack.name.sum.hash);
            if let Some(name) = IndexName::parse(&pack.index).filter(|_| !replaced) {
                candidates.push((number, name));
            }
        }
        let core = self.core.clone();
        let mut read = futures_util::stream::iter(candidates)
            .map(|(number, name)| {
                let core = core.clone();
                async move {
                    let found = sync::read_index(&core, &name).await?;
                    Ok::<_, RepositoryError>((number, summed(found)))
                }
            })
            .buffer_unordered(READ_AHEAD);
        let mut usable = HashSet::new();
        while let Some(one) = read.next().await {
            let (number, found) = one?;
            if self.is_current(found.pack.meta, &found.recipients) {
                usable.insert(number);
            }
        }
        Ok(usable)
    }

    /// Writes what is kept into new packs. Gives, for each old pack, the packs that hold it now.
    pub(super) async fn write_packs(
        &mut self,
        progress: &dyn Progress,
    ) -> Result<HashMap<Hash, BTreeSet<String>>, RepositoryError> {
        let index = self.core.index()?;
        let usable = self.usable().await?;
        let flow = Arc::new(Flow::new(self.core.clone(), index.clone(), usable)?);
        // Which packs may be read from is told by number below; the set is for look-ups, and there are none.
        let nothing = Arc::new(RwLock::new(HashSet::new()));
        let fetcher = Arc::new(Fetcher::new(self.core.clone(), index.clone(), nothing, flow.naming_key));
        for domain in [Domain::Data, Domain::Meta] {
            let mut packer = Packer::new(flow.clone(), domain, Cut::Fine);
            let packs = self
                .rewrite
                .values()
                .filter(|(p, _)| p.meta == (domain == Domain::Meta));
            for (pack, name) in packs {
                let object = pack.object()?.to_string();
                let number = self.number(pack)?;
                let said = sync::read_index(&self.core, name).await?;
                let total = said.chunks.iter().map(|(_, p)| u64::from(p.bytes)).sum();
                progress.started(&object, Some(total));
                for run in self.runs(number, &said) {
                    for chunk in fetcher.clone().fetch(run).await? {
                        packer.keep(&chunk).await?;
                        progress.advanced(&object, chunk.len() as u64, 1);
                    }
                }
                progress.finished(&object);
            }
            packer.flush().await?;
        }
        self.report.stored_bytes = flow.stats().bytes_stored;
        let mut replaced = HashMap::new();
        for (hash, (pack, name)) in &self.rewrite {
            let number = self.number(pack)?;
            let mut now_in = BTreeSet::new();
            for (id, place) in &sync::read_index(&self.core, name).await?.chunks {
                if !self.keeps(number, place.frame, place.offset) {
                    continue;
                }
                let found = index.find(id, |n| flow.is_usable(n))?;
                let (found, _) = found.ok_or_else(|| RepositoryError::Internal(format!("chunk {id} was not kept")))?;
                let holder = index.pack(found)?;
                now_in.insert(holder.name.object()?.to_string());
                now_in.insert(holder.index);
            }
            replaced.insert(*hash, now_in);
        }
        Ok(replaced)
    }

    /// The kept chunks of a pack, in order, in stretches.
    fn runs(&self, number: u32, pack: &PackIndex) -> Vec<Run> {
        stretches(number, pack, |place| self.keeps(number, place.frame, place.offset))
    }

    /// What this writer said beside backups, its own and others', and sealed to others than the recipients of today.
    pub(super) async fn annotations(&mut self, confirm: bool) -> Result<(), RepositoryError> {
        if !matches!(self.what, Rewrite::Rekey) {
            return Ok(());
        }
        let core = self.core.clone();
        let own = core.own_writers();
        let (tombstones, _) = forget::read_all(&core).await?;
        for (_, manifest) in manifest::read_all(&core).await? {
            let Ok(manifest) = manifest else { continue };
            // What was said of a forgotten backup goes with it.
            if forget::is_forgotten(&tombstones, &manifest) {
                continue;
            }
            for note in annotation::notes(&core, &manifest).await? {
                if note.is_current(&core)? {
                    continue;
                }
                if !own.contains(&note.signer) {
                    let text = format!(
                        "{} is of writer {}: run this with that writer's key",
                        note.object, note.signer
                    );
                    self.report.left_alone.push(text);
                    continue;
                }
                if confirm {
                    annotation::seal_anew(&core, &manifest, &note).await?;
                }
                self.report.annotations.push(note.object.to_string());
            }
        }
        Ok(())
    }

    /// Writes the revisions, one backup after the other.
    pub(super) async fn revise(&mut self, replaced: &HashMap<Hash, BTreeSet<String>>) -> Result<(), RepositoryError> {
        // Looked at again: another run may have written revisions of its own meanwhile.
        let ours = self.ours().await?;
        self.report.left_alone.sort();
        self.report.left_alone.dedup();
        let planned: HashSet<BackupId> = self.report.backups.drain(..).collect();
        for backup in &ours {
            let claim = &backup.manifest.claim;
            if !planned.contains(&claim.backup) || !self.concerns(backup)? {
                continue;
            }
            let mut objects = BTreeSet::new();
            for name in &backup.list {
                let pack = match (PackName::parse(name), IndexName::parse(name)) {
                    (Some(pack), _) => Some(pack.sum.hash),
                    (_, Some(index)) => Some(index.pack),
                    _ => None,
                };
                match pack.and_then(|p| replaced.get(&p)) {
                    Some(now_in) => objects.extend(now_in.iter().cloned()),
                    None => {
                        objects.insert(name.clone());
                    }
                }
            }
            let mut sealed = backup.manifest.open(&self.core)?;
            let (reason, recipients) = match self.what {
                Rewrite::Rekey => (Reason::Rekey, self.core.recipients.clone()),
                // As it was: who could read the manifest still can, and nobody else.
                Rewrite::Repack { .. } => (Reason::Repack, Recipients::parse(&sealed.recipients)?),
            };
            sealed.recipients = recipients.texts().map(str::to_owned).collect();
            let lost = backup.manifest.revision.as_ref().map(|r| r.lost.clone());
            let draft = Draft {
                manifest: &backup.manifest,
                reason,
                objects: &objects,
                lost: lost.unwrap_or_default(),
                sealed: &sealed,
                recipients: &recipients,
            };
            revision::write(&self.core, draft).await?;
            self.report.backups.push(claim.backup.clone());
        }
        Ok(())
    }
}

/// Chunks of a pack, in order, in stretches of bounded size. What counts is not the chunks but the frames they lie in:
/// those are opened whole, and what lies between them is read too.
fn stretches(number: u32, pack: &PackIndex, keeps: impl Fn(&Place) -> bool) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let (mut plain, mut begin) = (0u64, 0u64);
    for (id, place) in pack.chunks.iter().filter(|(_, place)| keeps(place)) {
        let pick = Pick { id: *id, place: *place };
        let frame = pack.frames.get(place.frame as usize);
        let (bytes, from, to) = frame.map_or((0, 0, 0), |f| {
            (u64::from(f.plain), f.offset, f.offset + u64::from(f.compressed))
        });
        match runs.last_mut() {
            Some(run) if run.last == place.frame => run.picks.push(pick),
            Some(run) if plain + bytes <= STRETCH && to.saturating_sub(begin) <= STRETCH => {
                plain += bytes;
                run.last = place.frame;
                run.picks.push(pick);
            }
            _ => {
                (plain, begin) = (bytes, from);
                runs.push(Run {
                    pack: number,
                    first: place.frame,
                    last: place.frame,
                    picks: vec![pick],
                });
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index_object::FrameSpan;
    use crate::names::Sum;
    use essrun_artifact::ChunkId;

    #[test]
    fn a_stretch_is_bounded_by_its_frames() {
        const FRAME: u32 = 1 << 20;
        let frames = (0..100u32).map(|n| FrameSpan {
            offset: u64::from(n) * 1000,
            compressed: 1000,
            plain: FRAME,
        });
        // Two small chunks of every frame are looked at, as when little of a pack is kept.
        let chunks = (0..200u32).map(|n| {
            let place = Place {
                frame: n / 2,
                offset: n % 2,
                bytes: 1,
            };
            (ChunkId([n as u8; 32]), place)
        });
        let mut pack = PackIndex {
            pack: PackName {
                meta: false,
                sum: Sum {
                    hash: [0; 32],
                    bytes: 0,
                },
            },
            payload_offset: 0,
            recipients: Vec::new(),
            frames: frames.collect(),
            chunks: chunks.collect(),
        };
        let runs = stretches(0, &pack, |_| true);
        assert_eq!(runs.iter().map(|r| r.picks.len()).sum::<usize>(), 200);
        assert!(runs.iter().all(|r| r.last - r.first < 4 && r.picks.len() == 8));
        // Little to open and much between.
        for (n, frame) in pack.frames.iter_mut().enumerate() {
            (frame.offset, frame.compressed, frame.plain) = (n as u64 * 3_000_000, 3_000_000, 1);
        }
        let runs = stretches(0, &pack, |place| place.frame % 3 == 0);
        assert_eq!(runs.len(), 34);
    }
}
