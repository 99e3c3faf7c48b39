//! What is wrong, and which backups that concerns.
//!
//! Nothing is believed that was seen once: a bad disk, cable or memory makes good objects look bad. Each object that a
//! check found wrong is read twice more, and only what is wrong in the same way both times is. A store that answers
//! differently each time proves nothing, and then nothing is decided.

use super::{Patient, Work, is_damage};
use crate::manifest::{self, Manifest, Sealed};
use crate::names::{self, Hash, IndexName, ListName, PackName};
use crate::{CheckMode, FindingKind, RepositoryError, check, forget, makers::PlainArtifacts, read};
use essrun_store::{Cause, ObjectName};
use std::collections::{BTreeSet, HashMap};

/// What one reading of an object showed.
#[derive(PartialEq, Eq)]
enum Read {
    Whole,
    /// Other bytes than were written, of this hash.
    Other(Hash),
    /// Not there, or less than the store says there is.
    Gone,
}

impl Work {
    /// Reads every byte that a backup needs.
    pub(super) async fn look(&mut self) -> Result<(), RepositoryError> {
        let report = check::check(self.core.clone(), CheckMode::Public, &PlainArtifacts).await?;
        for finding in report.findings.iter().filter(|f| !f.kind.is_harmless()) {
            if finding.kind == FindingKind::Unreadable {
                return Err(RepositoryError::refused(
                    format!("{} could not be read: {}", finding.object, finding.detail),
                    "a store that fails proves no loss; nothing was changed; run again when it answers",
                ));
            }
            if names::sum_in_name(&finding.object).is_none() {
                let note = format!("{}: {}: cannot be repaired here", finding.object, finding.detail);
                self.report.left_alone.push(note);
            } else if !self.believe(&finding.object, finding.kind).await? {
                let note = format!(
                    "{} was read wrongly once, and is whole: look at the disk or the way to it",
                    finding.object
                );
                self.report.left_alone.push(note);
            }
        }
        self.report.findings = report.findings;
        Ok(())
    }

    /// Looks at an object that is said to be wrong until that is certain. `false`: it is whole.
    async fn believe(&mut self, name: &str, said: FindingKind) -> Result<bool, RepositoryError> {
        // Its bytes are those that were signed, and hold what nobody can use.
        if said == FindingKind::Undecodable {
            self.bad.insert(name.to_owned(), said);
            return Ok(true);
        }
        let object = ObjectName::new(name).map_err(|e| RepositoryError::damaged(name, e.to_string()))?;
        let first = self.reading(&object).await?;
        if first == Read::Whole {
            return Ok(false);
        }
        let second = self.reading(&object).await?;
        if first != second {
            return Err(reads_differently(name));
        }
        let kind = match (second, said) {
            (Read::Gone, _) => FindingKind::Missing,
            (_, FindingKind::WrongSize) => said,
            _ => FindingKind::WrongContent,
        };
        self.bad.insert(name.to_owned(), kind);
        Ok(true)
    }

    async fn reading(&self, object: &ObjectName) -> Result<Read, RepositoryError> {
        let bytes = match self.core.store.get(object).await {
            Ok(bytes) => bytes,
            Err(e) if matches!(e.cause, Cause::Missing | Cause::Short) => return Ok(Read::Gone),
            Err(e) => return Err(e.into()),
        };
        let hash = names::sha256(&bytes);
        let right =
            names::sum_in_name(object.as_str()).is_some_and(|sum| sum.hash == hash && sum.bytes == bytes.len() as u64);
        // A list that was signed and is none is as good as lost.
        let list = ListName::parse(object.as_str()).is_some();
        if right && (!list || read::parse_list(object.as_str(), &bytes).is_ok()) {
            return Ok(Read::Whole);
        }
        Ok(Read::Other(hash))
    }

    /// The backups that need something done.
    pub(super) async fn patients(&mut self) -> Result<Vec<Patient>, RepositoryError> {
        let core = self.core.clone();
        let own = core.own_writers();
        let (tombstones, doubtful) = forget::read_all(&core).await?;
        let all = manifest::read_all(&core).await?;
        // Where what was said last about a backup cannot be believed, it is not known what holds.
        let mut unsure: BTreeSet<_> = doubtful
            .iter()
            .filter_map(|(object, _)| names::parse_sequenced(object.as_str(), "tombstones", "tombstone"))
            .collect();
        let bad = all.iter().filter(|(_, manifest)| manifest.is_err());
        unsure.extend(bad.filter_map(|(object, _)| {
            let (writer, sequence, _) = names::parse_revision(object.as_str())?;
            Some((writer, sequence))
        }));
        let mut patients = Vec::new();
        for (_, manifest) in all {
            // What is not trusted was found by the check already.
            let Ok(manifest) = manifest else { continue };
            if forget::is_forgotten(&tombstones, &manifest) {
                continue;
            }
            let backup = manifest.claim.backup.clone();
            if unsure.contains(&(manifest.writer.clone(), manifest.claim.sequence)) {
                let note =
                    format!("backup {backup}: a revision or tombstone of it cannot be believed: `check` names it");
                self.report.left_alone.push(note);
                continue;
            }
            let own = own.contains(&manifest.writer);
            match self.patient(manifest, own).await {
                Ok(patient) => patients.extend(patient),
                Err(e @ RepositoryError::Key { .. }) => self.report.left_alone.push(format!("backup {backup}: {e}")),
                Err(e) if is_damage(&e) => self.report.left_alone.push(format!("backup {backup}: {e}")),
                Err(e) => return Err(e),
            }
        }
        Ok(patients)
    }

    /// A backup, if it needs something done.
    async fn patient(&mut self, manifest: Manifest, own: bool) -> Result<Option<Patient>, RepositoryError> {
        let list_object = manifest.list.object()?.to_string();
        let unlisted = self.bad.contains_key(&list_object);
        let list: BTreeSet<String> = match unlisted {
            true => BTreeSet::new(),
            false => match read::read_list(&self.core, &manifest.list).await {
                Ok(list) => list.into_iter().collect(),
                Err(e) if is_damage(&e) => return Err(reads_differently(&list_object)),
                Err(e) => return Err(e),
            },
        };
        let lost_before = manifest.revision.as_ref().map(|r| r.lost.clone()).unwrap_or_default();
        let hurt = unlisted || !lost_before.is_empty() || list.iter().any(|n| self.bad.contains_key(n));
        let sealed: Sealed = match manifest.open(&self.core) {
            Ok(sealed) => sealed,
            // Only a revision says that artifacts are damaged, and another's backup is not for us to read. Of our own that
            // another revised it is said that an identity is needed.
            Err(RepositoryError::Key { .. }) if !hurt && !own => return Ok(None),
            Err(e) => return Err(e),
        };
        if !hurt && sealed.damaged.is_empty() {
            return Ok(None);
        }
        if unlisted && !own {
            self.report.left_alone.push(format!(
                "backup {} is of writer {} and its list is lost: what it needs is found with that writer's key only",
                manifest.claim.backup, manifest.writer
            ));
            return Ok(None);
        }
        let (back, gone) = self.back_again(&lost_before, &list).await?;
        Ok(Some(Patient {
            manifest,
            sealed,
            own,
            unlisted,
            list,
            back,
            gone,
            lost_before,
        }))
    }

    /// Of what was lost before, what is there again, whole, and what is not. Where that was a list, what it names.
    async fn back_again(
        &mut self,
        lost: &[String],
        list: &BTreeSet<String>,
    ) -> Result<(BTreeSet<String>, BTreeSet<String>), RepositoryError> {
        let mut wanted = BTreeSet::new();
        let (mut back, mut gone) = (BTreeSet::new(), BTreeSet::new());
        for name in lost {
            let Some(lost_list) = ListName::parse(name) else {
                wanted.insert(name.clone());
                continue;
            };
            match read::read_list(&self.core, &lost_list).await {
                Ok(names) => wanted.extend(names),
                Err(e) if is_damage(&e) => {
                    gone.insert(name.clone());
                }
                Err(e) => return Err(e),
            }
        }
        // What is on the list was looked at already.
        for name in wanted.into_iter().filter(|n| !list.contains(n)) {
            let known = self.bad.contains_key(&name);
            match known || self.believe(&name, FindingKind::Missing).await? {
                true => gone.insert(name),
                false => back.insert(name),
            };
        }
        // An index goes from the list with its pack, and is called lost only where it is.
        let packs: Vec<PackName> = back.iter().filter_map(|n| PackName::parse(n)).collect();
        for pack in packs {
            for index in self.indexes_of(&pack.sum.hash).await? {
                let object = index.object()?.to_string();
                if !self.bad.contains_key(&object) && !self.believe(&object, FindingKind::Missing).await? {
                    back.insert(object);
                    break;
                }
            }
        }
        Ok((back, gone))
    }

    /// The indexes of a pack that the store lists in full size.
    pub(super) async fn indexes_of(&mut self, pack: &Hash) -> Result<Vec<IndexName>, RepositoryError> {
        let there = match self.there.take() {
            Some(there) => there,
            None => {
                let mut there: HashMap<Hash, Vec<IndexName>> = HashMap::new();
                for info in self.core.store.list("index").await? {
                    if let Some(index) = IndexName::parse(info.name.as_str())
                        && index.sum.bytes == info.bytes
                    {
                        there.entry(index.pack).or_default().push(index);
                    }
                }
                there
            }
        };
        let found = there.get(pack).cloned().unwrap_or_default();
        self.there = Some(there);
        Ok(found)
    }
}

fn reads_differently(object: &str) -> RepositoryError {
    RepositoryError::refused(
        format!("{object} reads differently each time"),
        "a store that does not give back what it holds proves no loss; nothing was changed; look at the disk or the way to it",
    )
}
