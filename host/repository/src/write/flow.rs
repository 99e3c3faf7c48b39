//! What all lanes of one backup share: who knows which chunk, what the backup needs, how much came through.

use super::packer::Packer;
use crate::chunk_index::ChunkIndex;
use crate::core::Core;
use crate::cutter::Cutter;
use crate::index_object::{FRAME_TARGET, PackIndex};
use crate::keys::Recipients;
use crate::{BackupStats, Options, RepositoryError};
use essrun_artifact::{ChunkId, ChunkRef, Cut, Domain, KeepError};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// What the level nobody chose is made of. Rows repeat in long stretches, so two of three places are looked at, and what
/// is shorter than seven bytes is left; zstd would then leave literals as they are, which are a third of every row.
const FOR_ROWS: [CParameter; 4] = [
    CParameter::HashLog(18),
    CParameter::MinMatch(7),
    CParameter::TargetLength(2),
    CParameter::LiteralCompressionMode(ParamSwitch::Enable),
];
/// Buffers kept for the next frames.
const SPARE_BUFFERS: usize = 4;

#[derive(Default)]
pub(super) struct Counters {
    pub read: AtomicU64,
    pub adopted: AtomicU64,
    new: AtomicU64,
    stored: AtomicU64,
    chunks_new: AtomicU64,
    pub chunks_reused: AtomicU64,
}

/// See the module's page.
pub(crate) struct Flow {
    pub core: Arc<Core>,
    pub index: Arc<ChunkIndex>,
    pub naming_key: [u8; 32],
    pub fine: Cutter,
    pub coarse: Cutter,
    data_recipients: Recipients,
    meta_recipients: Recipients,
    /// Packs that may be relied on, by their number in the index.
    pub usable: Arc<RwLock<HashSet<u32>>>,
    /// Packs this backup relies on.
    pub needed: Mutex<HashSet<u32>>,
    /// New chunks on their way into packs.
    claimed: Mutex<HashSet<ChunkId>>,
    pub uploading: Arc<tokio::sync::Semaphore>,
    compressors: Mutex<Vec<zstd::bulk::Compressor<'static>>>,
    buffers: Mutex<Vec<Vec<u8>>>,
    pub(super) counters: Counters,
    pub open_lanes: AtomicUsize,
    pub spoiled: AtomicBool,
    /// Lists of chunks of all lanes go to packs of their own. `None` until the first.
    pub(super) lists: tokio::sync::Mutex<Option<Packer>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flow {
    pub fn new(core: Arc<Core>, index: Arc<ChunkIndex>, usable: HashSet<u32>) -> Result<Self, RepositoryError> {
        let key = core.writer()?;
        let meta_recipients = core.recipients.with_native(key.index_recipient());
        // Without recipients only what gives nothing away is let in, and the writer itself may read it.
        let data_recipients = if core.recipients.is_empty() {
            meta_recipients.clone()
        } else {
            core.recipients.clone()
        };
        Ok(Flow {
            naming_key: key.chunk_key().naming(),
            fine: Cutter::new(key.chunk_key(), Cut::Fine),
            coarse: Cutter::new(key.chunk_key(), Cut::Coarse),
            data_recipients,
            meta_recipients,
            usable: Arc::new(RwLock::new(usable)),
            needed: Mutex::default(),
            claimed: Mutex::default(),
            uploading: Arc::new(tokio::sync::Semaphore::new(core.options.uploads.max(1))),
            compressors: Mutex::default(),
            buffers: Mutex::default(),
            counters: Counters::default(),
            open_lanes: AtomicUsize::new(0),
            spoiled: AtomicBool::new(false),
            lists: tokio::sync::Mutex::new(None),
            index,
            core,
        })
    }

    pub fn recipients(&self, domain: Domain) -> &Recipients {
        match domain {
            Domain::Data => &self.data_recipients,
            Domain::Meta => &self.meta_recipients,
        }
    }

    pub fn is_usable(&self, pack: u32) -> bool {
        self.usable
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&pack)
    }

    /// Whether a chunk is in the repository; if so, the backup now needs its pack.
    pub fn rely_on(&self, chunk: &ChunkRef) -> Result<bool, RepositoryError> {
        match self.index.find(&chunk.id, |pack| self.is_usable(pack))? {
            Some((pack, place)) if place.bytes == chunk.bytes => {
                locked(&self.needed).insert(pack);
                Ok(true)
            }
            // A length that does not fit is no chunk of ours: as good as unknown.
            Some(_) | None => Ok(false),
        }
    }

    /// `true`: the chunk is new, and the caller must pack it.
    pub fn claim(&self, chunk: &ChunkRef) -> Result<bool, RepositoryError> {
        let known = self.rely_on(chunk)? || !locked(&self.claimed).insert(chunk.id);
        if known {
            self.counters.chunks_reused.fetch_add(1, Relaxed);
        } else {
            self.counters.chunks_new.fetch_add(1, Relaxed);
            self.counters.new.fetch_add(u64::from(chunk.bytes), Relaxed);
        }
        Ok(!known)
    }

    /// A pack and its index are stored: its chunks can be found from now on.
    pub fn stored(&self, pack: PackIndex, index_object: String, bytes: u64) -> Result<(), RepositoryError> {
        let ids: Vec<ChunkId> = pack.chunks.iter().map(|(id, _)| *id).collect();
        let numbers = self.index.add(&[(pack, index_object)])?;
        self.usable
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(&numbers);
        locked(&self.needed).extend(&numbers);
        let mut claimed = locked(&self.claimed);
        ids.iter().for_each(|id| {
            claimed.remove(id);
        });
        drop(claimed);
        self.counters.stored.fetch_add(bytes, Relaxed);
        Ok(())
    }

    /// One zstd frame of these bytes.
    pub fn compress(&self, plain: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let failed = |e: std::io::Error| RepositoryError::Keep(KeepError::new("compressing", e.to_string()));
        let spare = locked(&self.compressors).pop();
        let mut compressor = match spare {
            Some(compressor) => compressor,
            None => {
                let level = self.core.options.compression_level;
                let mut new = zstd::bulk::Compressor::new(level).map_err(failed)?;
                // A window over the whole frame: low levels would look back a quarter as far.
                new.set_parameter(CParameter::WindowLog(FRAME_TARGET.ilog2()))
                    .map_err(failed)?;
                // The level nobody chose, made for frames of rows: as small as level 3 there, and half as fast again
                // (docs/BENCHMARKS.md).
                if level == Options::default().compression_level {
                    for parameter in FOR_ROWS {
                        new.set_parameter(parameter).map_err(failed)?;
                    }
                }
                new
            }
        };
        let frame = compressor.compress(plain).map_err(failed)?;
        locked(&self.compressors).push(compressor);
        Ok(frame)
    }

    /// A buffer for a frame.
    pub fn buffer(&self) -> Vec<u8> {
        locked(&self.buffers)
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(FRAME_TARGET + (128 << 10)))
    }

    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let mut spare = locked(&self.buffers);
        if spare.len() < SPARE_BUFFERS && buffer.capacity() <= 2 * FRAME_TARGET {
            buffer.clear();
            spare.push(buffer);
        }
    }

    pub fn stats(&self) -> BackupStats {
        let c = &self.counters;
        BackupStats {
            bytes_read: c.read.load(Relaxed),
            bytes_adopted: c.adopted.load(Relaxed),
            bytes_new: c.new.load(Relaxed),
            bytes_stored: c.stored.load(Relaxed),
            chunks_new: c.chunks_new.load(Relaxed),
            chunks_reused: c.chunks_reused.load(Relaxed),
        }
    }

    pub fn needed(&self) -> HashSet<u32> {
        locked(&self.needed).clone()
    }
}
