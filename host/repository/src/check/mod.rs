//! Checking: every object against what was signed, then what opens with the keys at hand, then every byte.
//!
//! It never stops at the first thing that is wrong, changes nothing, and names objects, not guesses.

mod chain;
mod contents;
mod documents;
mod sealed;
#[cfg(test)]
mod tests;

use crate::core::Core;
use crate::envelope::Header;
use crate::forget::{self, Tombstones};
use crate::makers::Makers;
use crate::manifest::{self, Manifest};
use crate::names::{self, PackName};
use crate::{BackupId, CheckMode, CheckReport, Finding, FindingKind, RepositoryError, read};
use bytes::Bytes;
use essrun_store::{Cause, ObjectInfo, ObjectName};
use futures_util::StreamExt;
use std::collections::{BTreeMap, HashSet};
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
    let there = check.there().await?;
    check.documents(&there, &manifests, &tombstones).await;
    manifests.retain(|m| !forget::is_forgotten(&tombstones, m));
    check.report.backups = manifests.len() as u64;
    check.known_damage(&manifests);
    check.lists(&manifests).await;
    check.objects(&there, of).await;
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

    /// Everything the store holds, by name.
    async fn there(&self) -> Result<BTreeMap<String, ObjectInfo>, RepositoryError> {
        let all = self.core.store.list("").await?.into_iter();
        Ok(all.map(|info| (info.name.to_string(), info)).collect())
    }

    /// Every needed object: there, of the right size, of the right hash. What is needed by nothing is told apart.
    async fn objects(&mut self, there: &BTreeMap<String, ObjectInfo>, part: Option<(u32, u32)>) {
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

fn why(e: &RepositoryError) -> String {
    match e {
        RepositoryError::Damaged { why, .. } => why.clone(),
        other => other.to_string(),
    }
}
