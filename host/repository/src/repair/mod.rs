//! Repair: does what can be done about damage, and never makes it worse.
//!
//! What it does, each only where it helps: an index that is gone is made again from its pack (with an identity); what
//! can still be read of a damaged pack is kept in a new one (with an identity); a backup is pointed to other packs that
//! hold the same chunks, so that what a later backup stored anew mends the earlier ones. For what then is still
//! missing a signed revision says which objects are lost and which artifacts are no longer whole, so that the rest can
//! be restored and a check is not drowned by what is known. When what was lost comes back, repair takes that back.
//!
//! It deletes nothing and rewrites nothing: revisions are added, and damaged packs are marked, so that no later backup
//! relies on them. A store that fails while it is looked at proves nothing; then nothing is decided.

mod salvage;

use crate::core::Core;
use crate::index_object::PackIndex;
use crate::keys::Recipients;
use crate::makers::{self, Locate, Makers, PlainArtifacts};
use crate::manifest::{self, Damaged, Manifest, Sealed};
use crate::names::{self, Hash, IndexName, PackName};
use crate::revision::{self, Draft, Reason};
use crate::write::Lease;
use crate::{BackupId, CheckMode, Finding, FindingKind, OpenBackup, RepositoryError, check, forget, prune, read, sync};
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
    /// Objects a backup needs that are missing or wrong.
    bad: BTreeMap<String, FindingKind>,
    /// Of a pack whose index was made again: the new index.
    made_again: HashMap<Hash, (PackIndex, String)>,
    /// Packs looked through and found to be what they were.
    verified: HashSet<u32>,
}

/// A backup that needs something done.
struct Patient {
    manifest: Manifest,
    sealed: Sealed,
    /// What it needs, as far as that is known: its list, or the one it had before.
    list: BTreeSet<String>,
    /// Lost by an earlier repair.
    lost_before: Vec<String>,
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
    let mut work = Work {
        core,
        confirm,
        report: RepairReport::default(),
        bad: BTreeMap::new(),
        made_again: HashMap::new(),
        verified: HashSet::new(),
    };
    work.look().await?;
    let patients = work.patients().await?;
    work.indexes(&patients).await?;
    let salvaged = work.salvage(&patients).await?;
    for patient in &patients {
        if let Some(lease) = &lease {
            lease.still_held()?;
        }
        work.treat(patient, &salvaged, makers).await?;
    }
    if confirm {
        work.mark_bad().await?;
        work.report.done = true;
    } else {
        // What was only thought of is in no store.
        for pack in work.made_again.keys() {
            work.drop_from_cache(pack)?;
        }
    }
    if let Some(lease) = lease {
        lease.end().await;
    }
    Ok(work.report)
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
    /// Reads every byte that a backup needs.
    async fn look(&mut self) -> Result<(), RepositoryError> {
        let report = check::check(self.core.clone(), CheckMode::Public, &PlainArtifacts).await?;
        for finding in report.findings.iter().filter(|f| !f.kind.is_harmless()) {
            if finding.kind == FindingKind::Unreadable {
                return Err(RepositoryError::refused(
                    format!("{} could not be read: {}", finding.object, finding.detail),
                    "a store that fails proves no loss; nothing was changed; run again when it answers",
                ));
            }
            if names::sum_in_name(&finding.object).is_some() {
                self.bad.insert(finding.object.clone(), finding.kind);
            } else {
                let note = format!("{}: {}: cannot be repaired here", finding.object, finding.detail);
                self.report.left_alone.push(note);
            }
        }
        self.report.findings = report.findings;
        Ok(())
    }

    /// The backups that need something done.
    async fn patients(&mut self) -> Result<Vec<Patient>, RepositoryError> {
        let (tombstones, _) = forget::read_all(&self.core).await?;
        let mut patients = Vec::new();
        for (_, manifest) in manifest::read_all(&self.core).await? {
            // What is not trusted was found by the check already.
            let Ok(manifest) = manifest else { continue };
            if forget::is_forgotten(&tombstones, &manifest) {
                continue;
            }
            let lost_before = manifest.revision.as_ref().map(|r| r.lost.clone()).unwrap_or_default();
            let list = match read::read_list(&self.core, &manifest.list).await {
                Ok(list) => list.into_iter().collect(),
                Err(e) if is_damage(&e) => BTreeSet::new(),
                Err(e) => return Err(e),
            };
            let unlisted = self.bad.contains_key(manifest.list.object()?.as_str());
            if !unlisted && lost_before.is_empty() && list.iter().all(|n| !self.bad.contains_key(n)) {
                continue;
            }
            match manifest.open(&self.core) {
                Ok(sealed) => patients.push(Patient {
                    manifest,
                    sealed,
                    list,
                    lost_before,
                }),
                Err(e) => {
                    let note = format!("backup {}: {e}", manifest.claim.backup);
                    self.report.left_alone.push(note);
                }
            }
        }
        Ok(patients)
    }

    /// Of these packs those that were not found bad.
    fn reliable(&self, packs: HashSet<u32>) -> Result<HashSet<u32>, RepositoryError> {
        let index = self.core.index()?;
        let mut good = HashSet::new();
        for number in packs {
            let pack = index.pack(number)?;
            let index_gone = self.bad.contains_key(&pack.index);
            if !self.bad.contains_key(pack.name.object()?.as_str()) && !index_gone {
                good.insert(number);
            }
        }
        Ok(good)
    }

    /// Of what was lost before, what is there again, whole.
    async fn back_again(&self, lost: &[String]) -> Result<BTreeSet<String>, RepositoryError> {
        let mut back = BTreeSet::new();
        for name in lost {
            let object = essrun_store::ObjectName::new(name.as_str());
            let Ok(object) = object else { continue };
            match self.core.get_summed(&object).await {
                Ok(_) => {
                    back.insert(name.clone());
                }
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(back)
    }

    async fn treat(
        &mut self,
        patient: &Patient,
        salvaged: &HashSet<u32>,
        makers: &dyn Makers,
    ) -> Result<(), RepositoryError> {
        let core = self.core.clone();
        let index = core.index()?;
        let back = self.back_again(&patient.lost_before).await?;
        let listed: BTreeSet<String> = patient.list.union(&back).cloned().collect();
        let good: Vec<String> = listed.iter().filter(|n| !self.bad.contains_key(*n)).cloned().collect();
        // First what takes packs that are gone out of the local index, then what enters those that are wanted.
        let own = match core.own_writers().contains(&patient.manifest.writer) {
            true => sync::own_packs(&core).await?,
            false => HashSet::new(),
        };
        let mut usable = sync::listed_packs(&core, &good).await?;
        for hash in listed.iter().filter_map(|n| PackName::parse(n)).map(|p| p.sum.hash) {
            if let Some(made) = self.made_again.get(&hash) {
                usable.extend(index.add(std::slice::from_ref(made))?);
            }
        }
        let own_list = usable.clone();
        usable.extend(own);
        usable.extend(salvaged);
        let mut usable = self.reliable(usable)?;
        let (found, damaged, known) = loop {
            let (found, damaged, known) = self.locate(patient, &good, &usable, makers).await?;
            // A pack that no backup needed was not looked through yet.
            let unseen: Vec<u32> = found
                .iter()
                .filter(|n| !own_list.contains(n) && !self.verified.contains(n))
                .copied()
                .collect();
            if unseen.is_empty() {
                break (found, damaged, known);
            }
            for number in unseen {
                match core.get_summed(&index.pack(number)?.name.object()?).await {
                    Ok(_) => {
                        self.verified.insert(number);
                    }
                    Err(e) if is_damage(&e) => {
                        usable.remove(&number);
                    }
                    Err(e) => return Err(e),
                }
            }
        };
        let mut objects: BTreeSet<String> = good.iter().cloned().collect();
        // An index without its pack says nothing.
        objects.retain(|n| match IndexName::parse(n) {
            Some(index) => good
                .iter()
                .filter_map(|n| PackName::parse(n))
                .any(|p| p.sum.hash == index.pack),
            None => true,
        });
        for number in &found {
            let pack = index.pack(*number)?;
            objects.insert(pack.name.object()?.to_string());
            objects.insert(pack.index);
        }
        let whole = damaged.is_empty() && known;
        let gone = patient.lost_before.iter().filter(|n| !back.contains(*n));
        let lost: BTreeSet<String> = match whole {
            true => BTreeSet::new(),
            false => {
                let now = patient.list.iter().filter(|n| self.bad.contains_key(*n));
                let renewed = |n: &&String| {
                    let index = IndexName::parse(n);
                    index.is_none_or(|index| !self.made_again.contains_key(&index.pack))
                };
                now.chain(gone).filter(renewed).cloned().collect()
            }
        };
        let unlisted = self.bad.contains_key(patient.manifest.list.object()?.as_str());
        let same = !unlisted
            && objects == patient.list
            && lost.iter().eq(patient.lost_before.iter().collect::<BTreeSet<_>>())
            && damaged == patient.sealed.damaged;
        if same {
            return Ok(());
        }
        self.report.backups.push(BackupRepair {
            backup: patient.manifest.claim.backup.clone(),
            whole_artifacts: (patient.sealed.artifacts.len() - damaged.len()) as u64,
            damaged: damaged.clone(),
            lost: lost.iter().cloned().collect(),
        });
        if !self.confirm {
            return Ok(());
        }
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
        revision::write(&core, draft).await
    }

    /// Where the chunks of a backup are among the usable packs; which artifacts lack some; whether all kinds are known.
    async fn locate(
        &self,
        patient: &Patient,
        list: &[String],
        usable: &HashSet<u32>,
        makers: &dyn Makers,
    ) -> Result<(HashSet<u32>, Vec<Damaged>, bool), RepositoryError> {
        let index = self.core.index()?;
        let open = OpenBackup::among(
            self.core.clone(),
            patient.manifest.clone(),
            patient.sealed.clone(),
            list.to_vec(),
            usable.clone(),
        )?;
        let (mut all, mut damaged, mut known) = (HashSet::new(), Vec::new(), true);
        for artifact in open.artifacts() {
            let mut locate = Locate {
                index: &index,
                usable,
                found: HashSet::new(),
                missing: 0,
            };
            let why = match makers::chunks(&open, artifact, makers, &mut locate).await {
                Ok(understood) => {
                    known &= understood;
                    (locate.missing > 0).then(|| format!("{} chunks of it are lost", locate.missing))
                }
                Err(e) if is_damage(&e) => Some(e.to_string()),
                Err(e) => return Err(e),
            };
            all.extend(locate.found);
            damaged.extend(why.map(|why| Damaged {
                artifact: artifact.name.to_string(),
                why,
            }));
        }
        Ok((all, damaged, known))
    }

    /// Damaged packs that are still there must not be relied on by later backups.
    async fn mark_bad(&self) -> Result<(), RepositoryError> {
        let known = prune::marked(&self.core).await?;
        let there = self.bad.iter().filter(|(name, kind)| {
            matches!(kind, FindingKind::WrongContent | FindingKind::WrongSize) && !known.contains(*name)
        });
        let objects: Vec<String> = there.map(|(name, _)| name.clone()).collect();
        if objects.is_empty() {
            return Ok(());
        }
        prune::mark(&self.core, objects).await
    }
}
