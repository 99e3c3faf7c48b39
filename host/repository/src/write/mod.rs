//! A backup in the making: lanes in, one manifest out.

mod flow;
mod lane;
mod lease;
mod packer;
mod rewrite;

use crate::clock::{now, time};
use crate::core::Core;
use crate::manifest::{self, Claim, Head, Manifest, Sealed};
use crate::names::{self, ListName};
use crate::read::{Fetcher, RefReader};
use crate::revision;
use crate::signed::{self, Kind};
use crate::state;
use crate::sync;
use crate::{BackupId, BackupStart, BackupStats, BackupSummary, Body, RepositoryError, envelope};
use async_trait::async_trait;
use bytes::Bytes;
use essrun_artifact::{ArtifactRecord, BackupWriter, ChunkList, Content, KeepError, Lane, LaneSpec, Sensitivity};
use essrun_store::Outcome;
pub(crate) use flow::Flow;
pub(crate) use lease::{Lease, LeaseClaim};
pub(crate) use packer::Packer;
pub use rewrite::{PackToRewrite, Rewrite, RewriteReport};
pub(crate) use rewrite::{naming_key, rewrite};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

/// A backup in the making. Share it as `Arc<Backup>`; all methods take `&self`.
pub struct Backup {
    id: BackupId,
    created_at: i64,
    flow: Arc<Flow>,
    fetcher: Arc<Fetcher>,
    lease: Lease,
    artifacts: Mutex<Vec<ArtifactRecord>>,
    committing: tokio::sync::Mutex<bool>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backup({})", self.id)
    }
}

fn needs_recipient(core: &Core, sensitivity: Sensitivity, what: &str) -> Result<(), RepositoryError> {
    if core.recipients.is_empty() && sensitivity > Sensitivity::Internal {
        return Err(RepositoryError::refused(
            format!("{what} is sensitive ({sensitivity:?}) and there is no recipient to encrypt it to"),
            "name at least one recipient; `keygen` makes an identity and prints its recipient",
        ));
    }
    Ok(())
}

impl Backup {
    pub(crate) async fn begin(core: Arc<Core>, start: BackupStart) -> Result<Self, RepositoryError> {
        needs_recipient(&core, start.sensitivity, "what this backup takes")?;
        let writer = core.writer()?.clone();
        let time = time();
        let id = BackupId::make(time);
        // First be seen, then look: see the leases' own page.
        let lease = Lease::begin(core.clone(), id.clone()).await?;
        let looked = async {
            let usable = sync::own_packs(&core).await?;
            // Seen early, so that a swapped head fails the run before the work rather than after.
            manifest::own_head(&core, &writer.id()).await?;
            Ok::<_, RepositoryError>(usable)
        };
        let usable = match looked.await {
            Ok(usable) => usable,
            Err(e) => {
                lease.close().await;
                return Err(e);
            }
        };
        let index = core.index()?;
        let flow = Arc::new(Flow::new(core.clone(), index.clone(), usable)?);
        let fetcher = Fetcher::new(core.clone(), index, flow.usable.clone(), flow.naming_key);
        Ok(Backup {
            id,
            created_at: time.as_second(),
            flow,
            fetcher: Arc::new(fetcher),
            lease,
            artifacts: Mutex::default(),
            committing: tokio::sync::Mutex::new(false),
        })
    }

    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// What it took so far.
    pub fn stats(&self) -> BackupStats {
        self.flow.stats()
    }

    /// What was recorded so far.
    pub fn recorded(&self) -> Vec<ArtifactRecord> {
        self.artifacts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the backup up: whoever waits for it need not any longer. What was stored is found again by the next run.
    pub async fn abandon(&self) {
        self.lease.close().await;
    }

    /// Commits: waits for all uploads, then writes the manifest. Refused when a lane was dropped unclosed, when lanes
    /// are still open, or when it was committed before.
    pub async fn commit(&self, body: serde_json::Value) -> Result<BackupSummary, RepositoryError> {
        let mut committed = self.committing.lock().await;
        if *committed {
            return Err(RepositoryError::refused(
                "this backup is committed already",
                "begin another one",
            ));
        }
        if self.flow.open_lanes.load(SeqCst) > 0 {
            return Err(RepositoryError::refused(
                "lanes are still open",
                "close every lane before committing",
            ));
        }
        if self.flow.spoiled.load(SeqCst) {
            return Err(RepositoryError::refused(
                "a lane was dropped before it was closed, so an artifact may be incomplete",
                "run again; finished packs are reused",
            ));
        }
        if let Some(packer) = self.flow.lists.lock().await.as_mut() {
            packer.flush().await?;
        }
        let list = self.put_list().await?;
        let stats = self.flow.stats();
        let sealed = self.seal(body.clone(), stats).await?;
        let manifest = self.put_manifest(list, sealed).await?;
        *committed = true;
        let head = Head {
            sequence: manifest.claim.sequence,
            hash: manifest.hash,
        };
        // The backup exists from here on; failing to remember it must not make it look failed.
        if let Err(e) = state::remember(&self.flow.core, &manifest.writer, head) {
            tracing::warn!(error = %e, "this host could not remember the new head of its chain");
        }
        self.lease.end().await;
        Ok(manifest.summary(Some(Body::of(&body)), Some(stats)))
    }

    /// Writes the list of needed objects.
    async fn put_list(&self) -> Result<(ListName, u64, u64), RepositoryError> {
        let mut objects = BTreeSet::new();
        for number in self.flow.needed() {
            let pack = self.flow.index.pack(number)?;
            objects.insert(pack.name.object()?.to_string());
            objects.insert(pack.index);
        }
        revision::put_list(&self.flow.core, &objects).await
    }

    async fn seal(&self, body: serde_json::Value, stats: BackupStats) -> Result<Bytes, RepositoryError> {
        let artifacts = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let flow = self.flow.clone();
        let work = move || {
            let sealed = Sealed {
                chunk_id_key: hex::encode(flow.naming_key),
                recipients: flow.core.recipients.texts().map(str::to_owned).collect(),
                artifacts,
                body,
                stats: Some(stats),
                damaged: Vec::new(),
            };
            let json = serde_json::to_vec(&sealed).map_err(|e| RepositoryError::Internal(e.to_string()))?;
            let recipients = flow.recipients(essrun_artifact::Domain::Meta);
            Ok(envelope::seal(recipients, &json, flow.core.options.compression_level)?.bytes)
        };
        self.flow.core.compute(work).await
    }

    /// Writes the manifest at the end of the chain; another run with the same key may be faster, then at the next end.
    async fn put_manifest(&self, list: (ListName, u64, u64), sealed: Bytes) -> Result<Manifest, RepositoryError> {
        let core = &self.flow.core;
        let key = core.writer()?;
        let (list, needed_objects, needed_bytes) = list;
        for _ in 0..1000 {
            let head = manifest::own_head(core, &key.id()).await?;
            let claim = Claim {
                repository: core.config.id.clone(),
                backup: self.id.clone(),
                sequence: head.sequence + 1,
                previous: hex::encode(head.hash),
                created_at: self.created_at,
                committed_at: now(),
                list: list.object()?.to_string(),
                needed_objects,
                needed_bytes,
                stats: None,
            };
            let object = names::manifest(&key.id(), claim.sequence)?;
            let bytes = signed::write(Kind::Manifest, &claim, &sealed, key)?;
            self.lease.still_held()?;
            let ours = Manifest::read(core, &object, &bytes)?;
            self.lease.commits();
            match core.store.put_new(&object, bytes.clone()).await {
                Ok(Outcome::Created) => return Ok(ours),
                Ok(Outcome::AlreadyThere) => {
                    // Ours after all, if an attempt of ours was carried out and its answer lost.
                    if core.store.get(&object).await? == bytes {
                        return Ok(ours);
                    }
                    self.lease.committed();
                    tracing::debug!(%object, "another run was faster; trying the next place in the chain");
                }
                Err(e) => match core.store.get(&object).await {
                    Ok(there) if there == bytes => return Ok(ours),
                    _ => return Err(e.into()),
                },
            }
        }
        Err(RepositoryError::Internal(
            "the end of the chain could not be reached".into(),
        ))
    }

    /// Whether every chunk of a content, and of its list, can be relied on.
    async fn rely_on_all(&self, content: &Content) -> Result<bool, RepositoryError> {
        if let ChunkList::Stored { list, .. } = &content.chunks
            && !Box::pin(self.rely_on_all(list)).await?
        {
            return Ok(false);
        }
        let mut refs = RefReader::new(self.fetcher.clone(), content)?;
        let mut bytes = 0u64;
        let mut count = 0u64;
        while let Some(chunk) = refs.next().await? {
            if !self.flow.rely_on(&chunk)? {
                return Ok(false);
            }
            bytes += u64::from(chunk.bytes);
            count += 1;
        }
        self.flow.counters.chunks_reused.fetch_add(count, Relaxed);
        Ok(bytes == content.bytes)
    }
}

#[async_trait]
impl BackupWriter for Backup {
    fn lane(&self, spec: LaneSpec) -> Result<Box<dyn Lane>, KeepError> {
        Ok(Box::new(lane::RepositoryLane::open(self.flow.clone(), spec)))
    }

    async fn adopt(&self, content: &Content) -> Result<bool, KeepError> {
        match self.rely_on_all(content).await {
            Ok(true) => {
                self.flow.counters.adopted.fetch_add(content.bytes, Relaxed);
                Ok(true)
            }
            Ok(false) => Ok(false),
            // A list that is damaged or cannot be read is as good as gone: the caller writes the content anew.
            Err(RepositoryError::Damaged { object, why }) => {
                tracing::warn!(object, why, "content of an earlier backup cannot be taken over");
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn record(&self, artifact: ArtifactRecord) -> Result<(), KeepError> {
        needs_recipient(&self.flow.core, artifact.sensitivity, artifact.name.as_str())?;
        let mut artifacts = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner);
        if artifacts.iter().any(|a| a.name == artifact.name) {
            return Err(KeepError::new(artifact.name.to_string(), "recorded twice"));
        }
        artifacts.push(artifact);
        Ok(())
    }
}
