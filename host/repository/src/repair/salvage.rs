//! What an identity can still get out of damage: an index made again from its pack, the frames of a torn pack that read.
//!
//! Both only add: a new index beside the pack, a new pack with what was saved. Nothing here decides what a backup needs.

use super::{Patient, Work, is_damage, is_torn};
use crate::index_object::{self, PackIndex};
use crate::keys::Recipients;
use crate::names::{Hash, IndexName, PackName, Sum};
use crate::read::{Fetcher, Pick, Run};
use crate::write::{Flow, Packer, naming_key};
use crate::{RepositoryError, envelope, sync};
use essrun_artifact::{Cut, Domain};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, RwLock};

/// No pack is larger when decrypted.
const PACK_LIMIT: usize = 1 << 30;

impl Work {
    /// Makes indexes again whose packs are good.
    pub(super) async fn indexes(&mut self, patients: &[Patient]) -> Result<(), RepositoryError> {
        for patient in patients {
            // Also packs whose index an earlier repair had to leave out.
            let listed: BTreeSet<&String> = patient.list.union(&patient.back).collect();
            let indexed: HashSet<Hash> = listed
                .iter()
                .filter(|n| !self.bad.contains_key(**n))
                .filter_map(|n| IndexName::parse(n))
                .map(|index| index.pack)
                .collect();
            for pack in listed.iter().filter_map(|n| PackName::parse(n)) {
                let hash = pack.sum.hash;
                let object = pack.object()?;
                let known = indexed.contains(&hash) || self.made_again.contains_key(&hash);
                if known || self.bad.contains_key(object.as_str()) {
                    continue;
                }
                if !self.core.reads_contents && !pack.meta {
                    let note = format!("the index of {object} can be made again from it with an identity");
                    self.report.left_alone.push(note);
                    continue;
                }
                match self.make_index(patient, &pack).await {
                    Ok(made) => {
                        self.report.indexes.push(object.to_string());
                        // A cache that knew the lost index would name it.
                        self.drop_from_cache(&hash)?;
                        self.made_again.insert(hash, made);
                    }
                    Err(e @ (RepositoryError::Damaged { .. } | RepositoryError::Key { .. })) => {
                        self.report.left_alone.push(format!("the index of {object}: {e}"));
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    pub(super) fn drop_from_cache(&self, pack: &Hash) -> Result<(), RepositoryError> {
        let index = self.core.index()?;
        match index.number(pack)? {
            Some(number) => index.remove(&HashMap::from([(*pack, number)])),
            None => Ok(()),
        }
    }

    /// Makes the index of a pack from its bytes; with `confirm` stores it.
    async fn make_index(&self, patient: &Patient, pack: &PackName) -> Result<(PackIndex, String), RepositoryError> {
        let core = self.core.clone();
        let bytes = core.get_summed(&pack.object()?).await?;
        let naming = naming_key(&patient.sealed, patient.manifest.object.as_str())?;
        let recipients = Recipients::parse(&patient.sealed.recipients)?;
        let pack = *pack;
        let worker = core.clone();
        let made = core.compute(move || {
            let object = pack.object()?.to_string();
            let key = worker.writer()?;
            let header = envelope::Header::parse(&bytes).map_err(|why| RepositoryError::damaged(&object, why))?;
            let plain = envelope::open_sealed(&object, &worker.identities, &bytes, PACK_LIMIT)?;
            let frames = index_object::recover(&object, &plain, &naming)?;
            let readers = recipients.with_native(key.index_recipient());
            let sealed_to = match (pack.meta, recipients.is_empty()) {
                (false, false) => recipients,
                _ => readers.clone(),
            };
            let id = &worker.config.id;
            let text = index_object::encode(id, &pack, header.payload_offset, &sealed_to, &frames, key)?;
            let decoded = index_object::decode("a new index", &text, id, &[key.public()])?;
            let sealed = envelope::seal(&readers, &text, worker.options.compression_level)?.bytes;
            let name = IndexName {
                writer: key.id(),
                pack: pack.sum.hash,
                sum: Sum::of(&sealed),
            };
            Ok((name, sealed, decoded))
        });
        let (name, sealed, decoded) = made.await?;
        let object = name.object()?;
        if self.confirm {
            core.store.put_new(&object, sealed).await?;
        }
        Ok((decoded, object.to_string()))
    }

    /// Keeps what can still be read of damaged packs. Gives the packs that hold it now.
    pub(super) async fn salvage(&mut self, patients: &[Patient]) -> Result<HashSet<u32>, RepositoryError> {
        let mut torn: BTreeMap<String, IndexName> = BTreeMap::new();
        for patient in patients.iter().filter(|p| p.own) {
            // Also what an earlier repair called lost, which left its index off the list.
            for name in patient.list.union(&patient.gone) {
                let Some(pack) = PackName::parse(name) else { continue };
                if !self.bad.get(name).is_some_and(is_torn) || torn.contains_key(name) {
                    continue;
                }
                for index in self.indexes_of(&pack.sum.hash).await? {
                    let object = index.object()?.to_string();
                    if !self.bad.contains_key(&object) && self.core.own_writers().contains(&index.writer) {
                        torn.insert(name.clone(), index);
                    }
                }
            }
        }
        if torn.is_empty() || !self.core.reads_contents || self.core.recipients.is_empty() {
            for object in torn.keys() {
                let note = format!("what can still be read of {object} could be kept with an identity and recipients");
                self.report.left_alone.push(note);
            }
            return Ok(HashSet::new());
        }
        let index = self.core.index()?;
        let usable = self.reliable(&sync::own_packs(&self.core).await?, false)?;
        let flow = Arc::new(Flow::new(self.core.clone(), index.clone(), usable)?);
        let none = Arc::new(RwLock::new(HashSet::new()));
        let fetcher = Arc::new(Fetcher::new(self.core.clone(), index.clone(), none, flow.naming_key));
        let sealed_to: BTreeSet<&str> = self.core.recipients.texts().collect();
        for domain in [Domain::Data, Domain::Meta] {
            let mut packer = Packer::new(flow.clone(), domain, Cut::Fine);
            for (object, name) in &torn {
                let said = match sync::read_index(&self.core, name).await {
                    Ok(said) => said,
                    Err(e) if is_damage(&e) => {
                        self.report.left_alone.push(format!("the index of {object}: {e}"));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                if said.pack.meta != (domain == Domain::Meta) {
                    continue;
                }
                if domain == Domain::Data
                    && said.recipients.iter().map(String::as_str).collect::<BTreeSet<_>>() != sealed_to
                {
                    let note =
                        format!("{object} is sealed to others than the recipients of today: name them to salvage it");
                    self.report.left_alone.push(note);
                    continue;
                }
                if self.salvage_pack((&flow, &fetcher), &said, name, &mut packer).await? {
                    self.report.salvaged.push(object.clone());
                }
            }
            if self.confirm {
                packer.flush().await?;
            }
        }
        let new = flow
            .usable
            .read()
            .map_err(|e| RepositoryError::Internal(e.to_string()))?
            .clone();
        Ok(if self.confirm { new } else { HashSet::new() })
    }

    /// Frame by frame, what reads and is in no other pack; with `confirm` into the packer. Whether there was any.
    async fn salvage_pack(
        &self,
        (flow, fetcher): (&Flow, &Arc<Fetcher>),
        said: &PackIndex,
        name: &IndexName,
        packer: &mut Packer,
    ) -> Result<bool, RepositoryError> {
        let index = self.core.index()?;
        let number = match index.number(&said.pack.sum.hash)? {
            Some(number) => number,
            None => {
                let numbers = index.add(&[(said.clone(), name.object()?.to_string())])?;
                numbers.first().copied().unwrap_or(u32::MAX)
            }
        };
        let mut any = false;
        let mut at = 0usize;
        while let Some((_, first)) = said.chunks.get(at) {
            let rest = said.chunks.get(at..).unwrap_or_default();
            let picks: Vec<Pick> = rest
                .iter()
                .take_while(|(_, place)| place.frame == first.frame)
                .map(|(id, place)| Pick { id: *id, place: *place })
                .collect();
            at += picks.len();
            let mut wanted = Vec::with_capacity(picks.len());
            for pick in picks {
                if index.find(&pick.id, |n| flow.is_usable(n))?.is_none() {
                    wanted.push(pick);
                }
            }
            if wanted.is_empty() {
                continue;
            }
            let run = Run {
                pack: number,
                first: first.frame,
                last: first.frame,
                picks: wanted,
            };
            match fetcher.clone().fetch(run).await {
                Ok(chunks) => {
                    any = true;
                    for chunk in chunks.iter().filter(|_| self.confirm) {
                        packer.keep(chunk).await?;
                    }
                }
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(any)
    }
}
