//! Pruning: deleting what no backup needs, in two phases, so that a running backup never loses what it relies on.
//!
//! *Mark*: a signed prune object names what is not needed. Backups that begin from then on do not rely on it. *Sweep*:
//! once the mark is older than the grace time, and no backup that began before it still runs, what is still not needed
//! is deleted. A backup announces itself (its lease) before it looks for marks, and a mark is visible before leases are
//! looked at: whichever comes first, one sees the other.
//!
//! A mark that names something a backup came to need after all is taken back, and the rest of it marked anew. Not so a
//! mark that repair sets on what is damaged: it only says that nothing new may rely on it, and deletes nothing.
//!
//! What a repair declared lost is not needed, and is not deleted either as long as its backup is kept: it may come back
//! from a copy, or be torn and hold what a repair with an identity can still save.
//!
//! While something runs, what was written since it began is not marked: it is most likely its own, and would be marked
//! only for the next backup not to rely on it.
//!
//! Times are the store's own, so hosts' clocks do not matter, except for when a backup began, where an hour is allowed.
//! Planning changes nothing. Sweeping looks at everything again and deletes only what both looks agree on. Deletion
//! goes manifest first, then index, then pack: whatever is cut short leaves a repository that is whole.
//!
//! A store may refuse to delete (Object Lock). What it keeps is reported and the rest goes on; what a kept manifest
//! needs is kept with it, so that taking back its tombstone still brings the backup back.

use crate::core::Core;
use crate::forget::{self, Tombstones};
use crate::keys::WriterId;
use crate::manifest::{self, Manifest};
use crate::names::{self, Hash, IndexName, PackName};
use crate::signed::{self, Kind};
use crate::write::LeaseClaim;
use crate::{BackupId, RepositoryError, annotation, read, revision};
use bytes::Bytes;
use essrun_store::{Cause, ObjectInfo, ObjectName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// What hosts' clocks may differ by.
const SKEW_SECONDS: i64 = 3600;
/// How long an announcement that ran out is left lying, so that whoever wonders about it finds it.
const EXPIRED_SECONDS: i64 = 24 * 3600;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claim {
    repository: String,
    planned_at: i64,
    objects: Vec<String>,
    /// Repair found them damaged: not to be relied on, and not deleted for this mark.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    damaged: bool,
}

/// A prune object with a trusted signature.
pub(crate) struct Mark {
    object: ObjectName,
    /// When it was written, by the store's clock.
    set_at: i64,
    planned_at: i64,
    objects: BTreeSet<String>,
    damaged: bool,
}

/// What a prune would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PrunePlan {
    /// Objects nothing needs that will be marked now and deleted by a prune after the grace time.
    pub mark: Vec<String>,
    pub mark_bytes: u64,
    /// Objects marked long enough ago that are deleted now; forgotten backups' manifests first.
    pub delete: Vec<String>,
    pub delete_bytes: u64,
    /// Why marked objects are not deleted yet.
    pub waiting: Vec<String>,
    /// Objects that backups need.
    pub needed: u64,
    /// Marks that name what a backup came to need after all; what else they name is marked anew.
    pub renew: Vec<String>,
    /// Announcements that ran out long ago.
    #[serde(skip)]
    expired: Vec<ObjectName>,
    grace: Duration,
}

/// What a prune did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PruneReport {
    pub marked: u64,
    pub deleted: u64,
    pub deleted_bytes: u64,
    /// Planned, but needed or in use by now.
    pub spared: Vec<String>,
    /// The store did not let go of these (retention, or keys that may not delete); a later prune tries again.
    pub kept: Vec<String>,
}

pub(crate) fn parse(core: &Core, object: ObjectName, bytes: &Bytes, set_at: i64) -> Result<Mark, RepositoryError> {
    let claim: Claim = signed::read(object.as_str(), Kind::Prune, bytes)?.trusted(&core.trusted)?;
    if claim.repository != core.config.id {
        return Err(RepositoryError::damaged(object, "it is of another repository"));
    }
    Ok(Mark {
        object,
        set_at,
        planned_at: claim.planned_at,
        objects: claim.objects.into_iter().collect(),
        damaged: claim.damaged,
    })
}

async fn marks(core: &Core) -> Result<Vec<Mark>, RepositoryError> {
    let mut all = Vec::new();
    for info in core.store.list("prunes").await? {
        let bytes = match core.store.get(&info.name).await {
            Ok(bytes) => bytes,
            // A prune that ended between the listing and now took its mark with it.
            Err(e) if e.cause == Cause::Missing => continue,
            Err(e) => return Err(e.into()),
        };
        match parse(core, info.name, &bytes, info.modified_unix_seconds) {
            Ok(mark) => all.push(mark),
            Err(e) => tracing::warn!(error = %e, "a prune object is ignored"),
        }
    }
    Ok(all)
}

/// Names of objects that are about to be deleted: no new backup may rely on them.
pub(crate) async fn marked(core: &Core) -> Result<HashSet<String>, RepositoryError> {
    Ok(marks(core).await?.into_iter().flat_map(|m| m.objects).collect())
}

/// The store's clock: the time it gives an object written now.
pub(crate) async fn store_now(core: &Core) -> Result<i64, RepositoryError> {
    let probe = names::probe()?;
    let claim = serde_json::json!({"repository": core.config.id});
    core.store
        .put_new(&probe, signed::write(Kind::Lease, &claim, b"", core.writer()?)?)
        .await?;
    let seen = core.store.head(&probe).await?;
    let_go(core, &probe).await?;
    seen.map(|info| info.modified_unix_seconds)
        .ok_or_else(|| RepositoryError::damaged(probe, "it vanished between writing and looking"))
}

/// Announcements, as a prune sees them.
#[derive(Default)]
struct Announced {
    /// What runs, and when it began by its host's clock.
    running: Vec<(String, i64)>,
    /// What ran out long ago, and forgotten looks at the store's clock.
    expired: Vec<ObjectName>,
}

async fn announced(core: &Core, now: i64) -> Result<Announced, RepositoryError> {
    let mut all = Announced::default();
    for info in core.store.list("leases").await? {
        let bytes = match core.store.get(&info.name).await {
            Ok(bytes) => bytes,
            Err(e) if e.cause == Cause::Missing => continue,
            Err(e) => return Err(e.into()),
        };
        let Ok(document) = signed::read(info.name.as_str(), Kind::Lease, &bytes) else {
            continue;
        };
        if document.trusted::<serde_json::Value>(&core.trusted).is_err() {
            continue;
        }
        // A look at the store's clock announces nothing.
        let claim = document.untrusted::<LeaseClaim>().ok();
        let valid = claim.as_ref().map_or(0, |c| c.valid_seconds);
        let ends = info
            .modified_unix_seconds
            .saturating_add(i64::try_from(valid).unwrap_or(i64::MAX));
        match claim {
            Some(claim) if ends > now => all.running.push((claim.backup.to_string(), claim.began_at)),
            _ if ends.saturating_add(EXPIRED_SECONDS) <= now => all.expired.push(info.name),
            _ => {}
        }
    }
    Ok(all)
}

/// The backups that run now.
pub(crate) async fn running_now(core: &Core) -> Result<Vec<String>, RepositoryError> {
    let now = store_now(core).await?;
    let all = announced(core, now).await?;
    Ok(all.running.into_iter().map(|(backup, _)| backup).collect())
}

struct View {
    now: i64,
    there: BTreeMap<String, ObjectInfo>,
    /// Needed by backups that are not forgotten.
    live: HashSet<String>,
    /// Needed by these or by backups forgotten less than the grace time ago.
    protected: HashSet<String>,
    /// Manifests forgotten longer ago, then revisions and annotations that went with them or were long superseded.
    dead: Vec<ObjectName>,
    marks: Vec<Mark>,
    running: Vec<(String, i64)>,
    expired: Vec<ObjectName>,
}

async fn needs(core: &Core, manifest: &Manifest, into: &mut HashSet<String>) -> Result<(), RepositoryError> {
    into.extend(read::read_list(core, &manifest.list).await?);
    into.insert(manifest.list.object()?.to_string());
    Ok(())
}

/// What was declared lost of a backup, by object; of a list also what it names, where it is there again.
async fn lost(core: &Core, manifest: &Manifest, into: &mut HashSet<String>) -> Result<(), RepositoryError> {
    for name in manifest.revision.iter().flat_map(|r| &r.lost) {
        if let Some(list) = names::ListName::parse(name) {
            match read::read_list(core, &list).await {
                Ok(names) => into.extend(names),
                Err(RepositoryError::Store(e)) if e.cause != Cause::Missing => return Err(e.into()),
                Err(e) => tracing::debug!(error = %e, "a list that was lost is still lost"),
            }
        }
        into.insert(name.clone());
    }
    Ok(())
}

async fn look(core: &Core, grace: Duration) -> Result<View, RepositoryError> {
    let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    // Marks first, then leases, then manifests: a backup that commits in between is seen as running or as committed.
    let marks = marks(core).await?;
    let now = store_now(core).await?;
    let Announced { running, expired } = announced(core, now).await?;
    let (tombstones, _): (Tombstones, _) = forget::read_all(core).await?;
    let revisions = revision::places(core).await?;
    let (mut live, mut protected, mut dead) = (HashSet::new(), HashSet::new(), Vec::new());
    let mut declared_lost = HashSet::new();
    let mut counts: BTreeMap<(WriterId, u64), u64> = BTreeMap::new();
    let mut manifests = Vec::new();
    for (object, manifest) in manifest::read_all(core).await? {
        // A manifest that cannot be read might need anything: then nothing is deleted.
        let manifest = manifest.map_err(|e| RepositoryError::Refused {
            why: format!("{object} cannot be trusted, so it cannot be known what is needed ({e})"),
            hint: "run `check`, and put right or remove that manifest first".into(),
        })?;
        let place = (manifest.writer.clone(), manifest.claim.sequence);
        if !forget::is_forgotten(&tombstones, &manifest) {
            needs(core, &manifest, &mut live).await?;
        } else if tombstones
            .get(&place)
            .is_none_or(|t| t.set_at.saturating_add(grace) > now)
        {
            needs(core, &manifest, &mut protected).await?;
        } else {
            dead.push(object);
            continue;
        }
        lost(core, &manifest, &mut declared_lost).await?;
        counts.insert(place, manifest.revision.as_ref().map_or(0, |r| r.number));
        manifests.push(manifest);
    }
    let kept: HashSet<&BackupId> = manifests.iter().map(|m| &m.claim.backup).collect();
    let buried = tombstones.values().map(|t| &t.claim.backup);
    let buried = buried.filter(|b| !kept.contains(b)).cloned().collect();
    dead.extend(annotation::dead(core, &manifests, &buried, now.saturating_sub(grace)).await?);
    // A revision goes with its manifest, or when a later one has counted for the grace time.
    for (place, revisions) in revisions {
        let number = counts.get(&place).copied();
        let buried = tombstones.contains_key(&place);
        for (this, (object, set_at)) in revisions {
            let superseded = number.is_some_and(|n| this < n) && set_at.saturating_add(grace) <= now;
            if superseded || (number.is_none() && buried) {
                dead.push(object);
            }
        }
    }
    protected.extend(live.iter().cloned());
    let there: BTreeMap<String, ObjectInfo> = core
        .store
        .list("")
        .await?
        .into_iter()
        .map(|info| (info.name.to_string(), info))
        .collect();
    // Without its index a pack cannot be looked through.
    let packs: HashSet<Hash> = declared_lost
        .iter()
        .filter_map(|n| PackName::parse(n))
        .map(|pack| pack.sum.hash)
        .collect();
    let indexes = there
        .keys()
        .filter(|n| IndexName::parse(n).is_some_and(|index| packs.contains(&index.pack)));
    protected.extend(indexes.cloned());
    protected.extend(declared_lost);
    Ok(View {
        now,
        there,
        live,
        protected,
        dead,
        marks,
        running,
        expired,
    })
}

/// The order in which objects go: a list before the indexes, an index before its pack.
fn rank(name: &str) -> u8 {
    if names::ListName::parse(name).is_some() {
        0
    } else if IndexName::parse(name).is_some() {
        1
    } else {
        2
    }
}

impl View {
    /// A mark that names something a backup came to need. It must not lie in wait for the day that backup is forgotten:
    /// by then running backups may have begun after it and rely on the object.
    fn is_stale(&self, mark: &Mark) -> bool {
        !mark.damaged && mark.objects.iter().any(|n| self.live.contains(n))
    }

    /// Whether something that runs may have written it.
    fn is_fresh(&self, info: &ObjectInfo) -> bool {
        let first = self.running.iter().map(|(_, began)| *began).min();
        first.is_some_and(|began| info.modified_unix_seconds >= began.saturating_sub(SKEW_SECONDS))
    }

    /// What may be deleted now, and why other marked objects may not.
    fn sweep(&self, grace: Duration) -> (BTreeSet<String>, Vec<String>) {
        let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let (mut delete, mut waiting) = (BTreeSet::new(), Vec::new());
        for mark in self.marks.iter().filter(|m| !m.damaged && !self.is_stale(m)) {
            if mark.set_at.saturating_add(grace) > self.now {
                let left = mark.set_at.saturating_add(grace) - self.now;
                waiting.push(format!(
                    "{} is within its grace time for {left} more seconds",
                    mark.object
                ));
                continue;
            }
            let began_before = |(_, began): &&(String, i64)| *began <= mark.planned_at.saturating_add(SKEW_SECONDS);
            if let Some((backup, _)) = self.running.iter().find(began_before) {
                waiting.push(format!("{} waits for backup {backup}, which still runs", mark.object));
                continue;
            }
            let free = |name: &&String| self.there.contains_key(*name) && !self.protected.contains(*name);
            delete.extend(
                mark.objects
                    .iter()
                    .filter(free)
                    .filter(|n| names::sum_in_name(n).is_some())
                    .cloned(),
            );
        }
        (delete, waiting)
    }

    fn bytes<'a>(&self, names: impl Iterator<Item = &'a String>) -> u64 {
        names.filter_map(|n| self.there.get(n)).map(|info| info.bytes).sum()
    }
}

pub(crate) async fn plan(core: &Core, grace: Duration) -> Result<PrunePlan, RepositoryError> {
    let view = look(core, grace).await?;
    let (sweep, waiting) = view.sweep(grace);
    let marked: HashSet<&String> = view
        .marks
        .iter()
        .filter(|m| !m.damaged && !view.is_stale(m))
        .flat_map(|m| &m.objects)
        .collect();
    let mark: Vec<String> = view
        .there
        .iter()
        .filter(|(n, _)| names::sum_in_name(n).is_some() && !view.live.contains(*n) && !marked.contains(n))
        .filter(|(_, info)| !view.is_fresh(info))
        .map(|(n, _)| n.clone())
        .collect();
    let mut delete: Vec<String> = view.dead.iter().map(ToString::to_string).collect();
    let mut ranked: Vec<String> = sweep.into_iter().collect();
    ranked.sort_by_key(|n| rank(n));
    delete.extend(ranked);
    Ok(PrunePlan {
        mark_bytes: view.bytes(mark.iter()),
        delete_bytes: view.bytes(delete.iter()),
        mark,
        delete,
        waiting,
        needed: view.live.len() as u64,
        renew: view
            .marks
            .iter()
            .filter(|m| view.is_stale(m))
            .map(|m| m.object.to_string())
            .collect(),
        expired: view.expired,
        grace,
    })
}

/// What repair marked as damaged: no new backup may rely on it, needed or not.
pub(crate) async fn mark_damaged(core: &Core, objects: Vec<String>) -> Result<(), RepositoryError> {
    mark(core, objects, true).await
}

/// The marks of what was found damaged, and what they name.
pub(crate) async fn marked_damaged(core: &Core) -> Result<Vec<(ObjectName, BTreeSet<String>)>, RepositoryError> {
    let all = marks(core).await?.into_iter().filter(|m| m.damaged);
    Ok(all.map(|m| (m.object, m.objects)).collect())
}

/// Marks objects: what is begun from now on does not rely on them.
async fn mark(core: &Core, objects: Vec<String>, damaged: bool) -> Result<(), RepositoryError> {
    let planned_at = crate::clock::now();
    let claim = Claim {
        repository: core.config.id.clone(),
        planned_at,
        objects,
        damaged,
    };
    let bytes = signed::write(Kind::Prune, &claim, b"", core.writer()?)?;
    core.store.put_new(&names::prune(planned_at)?, bytes).await?;
    Ok(())
}

pub(crate) async fn carry_out(core: &Core, plan: &PrunePlan) -> Result<PruneReport, RepositoryError> {
    let mut report = PruneReport::default();
    core.writer()?;
    if !plan.mark.is_empty() {
        mark(core, plan.mark.clone(), false).await?;
        report.marked = plan.mark.len() as u64;
    }
    for name in &plan.renew {
        let object = ObjectName::new(name.as_str()).map_err(|e| RepositoryError::Internal(e.to_string()))?;
        // A mark that stays although it is stale is passed over by every later plan.
        let_go(core, &object).await?;
    }
    for lease in &plan.expired {
        let_go(core, lease).await?;
    }
    if plan.delete.is_empty() {
        return Ok(report);
    }
    let view = look(core, plan.grace).await?;
    let (sweep, _) = view.sweep(plan.grace);
    // Needed by manifests that the store keeps.
    let mut bound: HashSet<String> = HashSet::new();
    for name in &plan.delete {
        let dead = view.dead.iter().any(|m| m.as_str() == name);
        if !dead && !sweep.contains(name) {
            report.spared.push(name.clone());
            continue;
        }
        let Some(info) = view.there.get(name) else { continue };
        if bound.contains(name) || !let_go(core, &info.name).await? {
            if dead && names::parse_sequenced(name, "manifests", "manifest").is_some() {
                bound.extend(needed_by(core, &info.name).await?);
            }
            report.kept.push(name.clone());
            continue;
        }
        report.deleted += 1;
        report.deleted_bytes += info.bytes;
    }
    // A mark all of whose objects are gone has done its work.
    for mark in &view.marks {
        let left = mark
            .objects
            .iter()
            .any(|n| view.there.contains_key(n) && !plan.delete.contains(n));
        let spared = mark
            .objects
            .iter()
            .any(|n| report.spared.contains(n) || report.kept.contains(n));
        let old = mark
            .set_at
            .saturating_add(i64::try_from(plan.grace.as_secs()).unwrap_or(i64::MAX))
            <= view.now;
        if old && !spared && !left {
            let_go(core, &mark.object).await?;
        }
    }
    Ok(report)
}

/// Deletes an object; `false` when the store refuses to.
pub(crate) async fn let_go(core: &Core, object: &ObjectName) -> Result<bool, RepositoryError> {
    match core.store.delete(object).await {
        Ok(()) => Ok(true),
        Err(e) if e.cause == Cause::Denied => {
            tracing::debug!(error = %e, "the store keeps an object");
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// What a manifest needs, its list included. Nothing when that is not there any more.
async fn needed_by(core: &Core, object: &ObjectName) -> Result<HashSet<String>, RepositoryError> {
    let bytes = core.store.get(object).await?;
    let list = Manifest::read(core, object, &bytes)?.list;
    match read::read_list(core, &list).await {
        Ok(names) => Ok(names.into_iter().chain([list.object()?.to_string()]).collect()),
        Err(RepositoryError::Store(e)) if e.cause != Cause::Missing => Err(e.into()),
        Err(e) => {
            tracing::debug!(error = %e, "a forgotten backup is incomplete already");
            Ok(HashSet::new())
        }
    }
}
