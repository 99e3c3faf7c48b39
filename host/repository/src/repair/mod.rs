//! Repair: does what can be done about damage, and never makes it worse.
//!
//! What it does, each only where it helps: an index that is gone is made again from its pack (with an identity); what
//! can still be read of a damaged pack is kept in a new one (with an identity); a backup is pointed to other packs that
//! hold the same chunks, so that what a later backup stored anew mends the earlier ones. For what then is still
//! missing a signed revision says which objects are lost and which artifacts are no longer whole, so that the rest can
//! be restored and a check is not drowned by what is known. When what was lost comes back, repair takes that back.
//!
//! It deletes nothing and rewrites nothing: revisions are added, and damaged packs are marked, so that no later backup
//! relies on them. A store that fails while it is looked at, or reads differently each time, proves nothing; then nothing
//! is decided. What is torn is called lost only by who could look into it, with an identity; else it stays on the list. Of
//! another writer's backup without its list nobody else can tell what it needs: it is left alone.

mod look;
mod salvage;
#[cfg(test)]
mod tests;

use crate::core::Core;
use crate::index_object::PackIndex;
use crate::keys::Recipients;
use crate::makers::{self, Locate, Makers};
use crate::manifest::{Damaged, Manifest, Sealed};
use crate::names::{Hash, IndexName, PackName};
use crate::revision::{self, Draft, Reason};
use crate::write::Lease;
use crate::{BackupId, Finding, FindingKind, OpenBackup, RepositoryError, prune, sync};
use essrun_artifact::{BackupReader, KeepError};
use essrun_store::Cause;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What repair would do, or did, for one backup.
#[derive(Clone, Debug, Serialize)]
pub struct BackupRepair {
    pub backup: BackupId,
    /// Artifacts that cannot be read in full; empty: the backup is whole again.
    pub damaged: Vec<Damaged>,
    /// Objects that are lost for good.
    pub lost: Vec<String>,
    /// Artifacts that are whole.
    pub whole_artifacts: u64,
}

/// What repair would do, or did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RepairReport {
    /// What a check without keys finds now.
    pub findings: Vec<Finding>,
    /// Indexes that are made again from their packs.
    pub indexes: Vec<String>,
    /// Damaged packs of which something can be read.
    pub salvaged: Vec<String>,
    pub backups: Vec<BackupRepair>,
    /// What is left alone, and why.
    pub left_alone: Vec<String>,
    /// Whether it was done, or only planned.
    pub done: bool,
}

struct Work {
    core: Arc<Core>,
    confirm: bool,
    report: RepairReport,
    /// Objects a backup needs, or needed before they were lost, that are missing or wrong.
    bad: BTreeMap<String, FindingKind>,
    /// Of a pack whose index was made again: the new index.
    made_again: HashMap<Hash, (PackIndex, String)>,
    /// Packs looked through and found to be what they were.
    verified: HashSet<u32>,
    /// The indexes there are, by their packs; listed when first needed.
    there: Option<HashMap<Hash, Vec<IndexName>>>,
}

/// A backup that needs something done.
struct Patient {
    manifest: Manifest,
    sealed: Sealed,
    /// Of the writer at hand, or of one it was rotated from: its chunks may be looked for in all of that one's packs.
    own: bool,
    /// Its list is lost.
    unlisted: bool,
    /// What it needs, as far as that is known: its list, or nothing.
    list: BTreeSet<String>,
    /// Lost by an earlier repair, and whole again.
    back: BTreeSet<String>,
    /// Lost by an earlier repair, and still missing or wrong.
    gone: BTreeSet<String>,
    /// What the revision that counts calls lost.
    lost_before: Vec<String>,
}

/// Where a backup's chunks are.
struct Located {
    packs: HashSet<u32>,
    /// Artifacts of which some are nowhere.
    damaged: Vec<Damaged>,
    /// Whether all kinds of artifacts are known, so that it is known what else they need.
    known: bool,
}

impl Located {
    fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.known
    }
}

fn is_torn(kind: &FindingKind) -> bool {
    matches!(kind, FindingKind::WrongContent | FindingKind::WrongSize)
}

pub(crate) async fn repair(
    core: Arc<Core>,
    confirm: bool,
    makers: &dyn Makers,
) -> Result<RepairReport, RepositoryError> {
    core.writer()?;
    let lease = match confirm {
        true => Some(Lease::begin(core.clone(), BackupId::make(jiff::Timestamp::now())).await?),
        false => None,
    };
    let work = Work {
        core,
        confirm,
        report: RepairReport::default(),
        bad: BTreeMap::new(),
        made_again: HashMap::new(),
        verified: HashSet::new(),
        there: None,
    };
    let done = work.run(lease.as_ref(), makers).await;
    if let Some(lease) = lease {
        lease.close().await;
    }
    done
}

fn is_damage(e: &RepositoryError) -> bool {
    match e {
        RepositoryError::Damaged { .. } => true,
        RepositoryError::Store(e) => matches!(e.cause, Cause::Missing | Cause::Short),
        RepositoryError::Keep(KeepError { source: None, .. }) => true,
        RepositoryError::Keep(KeepError { source: Some(e), .. }) => {
            e.downcast_ref::<RepositoryError>().is_some_and(is_damage)
        }
        _ => false,
    }
}

impl Work {
    async fn run(mut self, lease: Option<&Lease>, makers: &dyn Makers) -> Result<RepairReport, RepositoryError> {
        self.look().await?;
        let patients = self.patients().await?;
        self.indexes(&patients).await?;
        let salvaged = self.salvage(&patients).await?;
        for patient in &patients {
            self.treat(patient, &salvaged, lease, makers).await?;
        }
        if self.confirm {
            self.mark_bad().await?;
            self.report.done = true;
        } else {
            // What was only thought of is in no store.
            let made: Vec<Hash> = self.made_again.keys().copied().collect();
            for pack in made {
                self.drop_from_cache(&pack)?;
            }
        }
        Ok(self.report)
    }

    /// Of these packs those that were not found bad; with `torn` also those of which something may be readable.
    fn reliable(&self, packs: &HashSet<u32>, torn: bool) -> Result<HashSet<u32>, RepositoryError> {
        let index = self.core.index()?;
        let mut good = HashSet::new();
        for number in packs {
            let pack = index.pack(*number)?;
            let index_gone = self.bad.contains_key(&pack.index);
            let fit = match self.bad.get(pack.name.object()?.as_str()) {
                None => true,
                Some(kind) => torn && is_torn(kind),
            };
            if fit && !index_gone {
                good.insert(*number);
            }
        }
        Ok(good)
    }

    async fn treat(
        &mut self,
        patient: &Patient,
        salvaged: &HashSet<u32>,
        lease: Option<&Lease>,
        makers: &dyn Makers,
    ) -> Result<(), RepositoryError> {
        let core = self.core.clone();
        let index = core.index()?;
        let backup = &patient.manifest.claim.backup;
        let listed: BTreeSet<String> = patient.list.union(&patient.back).cloned().collect();
        let good: Vec<String> = listed.iter().filter(|n| !self.bad.contains_key(*n)).cloned().collect();
        // First what takes packs that are gone out of the local index, then what enters those that are wanted.
        let own = match patient.own {
            true => sync::own_packs(&core).await?,
            false => HashSet::new(),
        };
        let mut usable = sync::listed_packs(&core, &good).await?;
        for name in good.iter().filter_map(|n| IndexName::parse(n)) {
            // A good index that does not open tells nothing of its pack: neither that it is whole nor that it is lost.
            if index.number(&name.pack)?.is_none() {
                let note = format!("backup {backup}: {} does not open: nothing is decided", name.object()?);
                self.report.left_alone.push(note);
                return Ok(());
            }
        }
        for hash in listed.iter().filter_map(|n| PackName::parse(n)).map(|p| p.sum.hash) {
            if let Some(made) = self.made_again.get(&hash) {
                usable.extend(index.add(std::slice::from_ref(made))?);
            }
        }
        let own_list = usable.clone();
        usable.extend(own);
        usable.extend(salvaged);
        let sound = self.reliable(&usable, false)?;
        let mut located = self.search(patient, &good, sound, &own_list, makers).await?;
        // What is torn can only be looked into with an identity. Until then it is not lost.
        let keeps_torn = !core.reads_contents && !located.is_whole();
        if keeps_torn {
            let all = self.reliable(&usable, true)?;
            located = self.search(patient, &good, all, &own_list, makers).await?;
        }
        let mut objects: BTreeSet<String> = good.iter().cloned().collect();
        if keeps_torn {
            let torn = listed.iter().filter(|n| self.bad.get(*n).is_some_and(is_torn));
            objects.extend(torn.cloned());
        }
        // An index without its pack says nothing.
        let packs: HashSet<Hash> = objects
            .iter()
            .filter_map(|n| PackName::parse(n))
            .map(|p| p.sum.hash)
            .collect();
        objects.retain(|n| IndexName::parse(n).is_none_or(|index| packs.contains(&index.pack)));
        for number in &located.packs {
            let pack = index.pack(*number)?;
            objects.insert(pack.name.object()?.to_string());
            objects.insert(pack.index);
        }
        let Some(lost) = self.lost(patient, &located, &objects)? else {
            return Ok(());
        };
        let damaged = located.damaged;
        let same = !patient.unlisted
            && objects == patient.list
            && lost.iter().eq(patient.lost_before.iter().collect::<BTreeSet<_>>())
            && damaged == patient.sealed.damaged;
        if same {
            return Ok(());
        }
        self.report.backups.push(BackupRepair {
            backup: backup.clone(),
            whole_artifacts: (patient.sealed.artifacts.len() - damaged.len()) as u64,
            damaged: damaged.clone(),
            lost: lost.iter().cloned().collect(),
        });
        let Some(lease) = lease else { return Ok(()) };
        lease.still_held()?;
        let sealed = Sealed {
            damaged,
            ..patient.sealed.clone()
        };
        let recipients = Recipients::parse(&sealed.recipients)?;
        let draft = Draft {
            manifest: &patient.manifest,
            reason: Reason::Repair,
            objects: &objects,
            lost: lost.into_iter().collect(),
            sealed: &sealed,
            recipients: &recipients,
        };
        lease.commits();
        revision::write(&core, draft).await?;
        lease.committed();
        Ok(())
    }

    /// What is lost of a backup that needs `objects` from now on. `None`: it is left alone.
    fn lost(
        &mut self,
        patient: &Patient,
        located: &Located,
        objects: &BTreeSet<String>,
    ) -> Result<Option<BTreeSet<String>>, RepositoryError> {
        if located.is_whole() {
            return Ok(Some(BTreeSet::new()));
        }
        let backup = &patient.manifest.claim.backup;
        if patient.unlisted && !self.core.reads_contents {
            self.report.left_alone.push(format!(
                "backup {backup}: its list is lost and not all it needs was found: repair it with an identity"
            ));
            return Ok(None);
        }
        let now = patient.list.iter().filter(|n| self.bad.contains_key(*n));
        let renewed = |n: &&String| {
            let index = IndexName::parse(n);
            index.is_none_or(|index| !self.made_again.contains_key(&index.pack))
        };
        let all = now.chain(&patient.gone).filter(renewed);
        let mut lost: BTreeSet<String> = all.filter(|n| !objects.contains(*n)).cloned().collect();
        if patient.unlisted {
            lost.insert(patient.manifest.list.object()?.to_string());
        }
        if !lost.is_empty() || located.damaged.is_empty() {
            return Ok(Some(lost));
        }
        // That artifacts are damaged must be seen by who cannot read which: an earlier version did not see to it.
        if located.damaged == patient.sealed.damaged {
            lost.insert(patient.manifest.claim.list.clone());
            return Ok(Some(lost));
        }
        let first = located.damaged.first();
        self.report.left_alone.push(format!(
            "backup {backup}: {} cannot be read in full ({}), and no object is known to be lost: nothing is decided",
            first.map_or("an artifact", |d| d.artifact.as_str()),
            first.map_or("", |d| d.why.as_str()),
        ));
        Ok(None)
    }

    /// Where the chunks of a backup are, the packs that no list brought along looked through.
    async fn search(
        &mut self,
        patient: &Patient,
        list: &[String],
        mut usable: HashSet<u32>,
        own_list: &HashSet<u32>,
        makers: &dyn Makers,
    ) -> Result<Located, RepositoryError> {
        let index = self.core.index()?;
        loop {
            let located = self.locate(patient, list, &usable, makers).await?;
            // A pack that no backup needed was not looked through yet.
            let unseen: Vec<u32> = located
                .packs
                .iter()
                .filter(|n| !own_list.contains(n) && !self.verified.contains(n))
                .copied()
                .collect();
            if unseen.is_empty() {
                return Ok(located);
            }
            for number in unseen {
                match self.core.get_summed(&index.pack(number)?.name.object()?).await {
                    Ok(_) => {
                        self.verified.insert(number);
                    }
                    Err(e) if is_damage(&e) => {
                        usable.remove(&number);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// Where the chunks of a backup are among the usable packs.
    async fn locate(
        &self,
        patient: &Patient,
        list: &[String],
        usable: &HashSet<u32>,
        makers: &dyn Makers,
    ) -> Result<Located, RepositoryError> {
        let index = self.core.index()?;
        let open = OpenBackup::among(
            self.core.clone(),
            patient.manifest.clone(),
            patient.sealed.clone(),
            list.to_vec(),
            usable.clone(),
        )?;
        let mut all = Located {
            packs: HashSet::new(),
            damaged: Vec::new(),
            known: true,
        };
        for artifact in open.artifacts() {
            let mut again = true;
            let why = loop {
                let mut locate = Locate {
                    index: &index,
                    usable,
                    found: HashSet::new(),
                    missing: 0,
                };
                let read = makers::chunks(&open, artifact, makers, &mut locate).await;
                all.packs.extend(locate.found);
                match read {
                    Ok(understood) => {
                        all.known &= understood;
                        break (locate.missing > 0).then(|| format!("{} chunks of it are lost", locate.missing));
                    }
                    // It may have been read wrongly.
                    Err(e) if is_damage(&e) && again => again = false,
                    Err(e) if is_damage(&e) => break Some(e.to_string()),
                    Err(e) => return Err(e),
                }
            };
            all.damaged.extend(why.map(|why| Damaged {
                artifact: artifact.name.to_string(),
                why,
            }));
        }
        Ok(all)
    }

    /// Damaged objects that are still there must not be relied on by later backups; those that are whole again may be.
    async fn mark_bad(&self) -> Result<(), RepositoryError> {
        let mut known: HashSet<String> = HashSet::new();
        for (mark, objects) in prune::marked_damaged(&self.core).await? {
            let mut still = BTreeSet::new();
            for name in &objects {
                let whole = match essrun_store::ObjectName::new(name.as_str()) {
                    Ok(object) if !self.bad.contains_key(name) => self.core.get_summed(&object).await.is_ok(),
                    _ => false,
                };
                if !whole {
                    still.insert(name.clone());
                }
            }
            if still.len() < objects.len() {
                if !still.is_empty() {
                    prune::mark_damaged(&self.core, still.iter().cloned().collect()).await?;
                }
                prune::let_go(&self.core, &mark).await?;
            }
            known.extend(still);
        }
        let there = self.bad.iter().filter(|(_, kind)| is_torn(kind));
        let new: Vec<String> = there
            .map(|(name, _)| name.clone())
            .filter(|n| !known.contains(n))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        prune::mark_damaged(&self.core, new).await
    }
}
