//! Fetching chunks: a run of neighbouring frames of one pack at a time, decrypted, decompressed and checked off the
//! async threads.
//!
//! Only the needed stretch of a pack is read (age files can be entered at any 64 KiB block), so reading one small
//! table, or a listing scattered over a year of packs, does not read whole packs.

use crate::chunk_index::{ChunkIndex, Pack};
use crate::core::Core;
use crate::index_object::{FrameSpan, Place};
use crate::{RepositoryError, envelope};
use bytes::Bytes;
use essrun_artifact::{ChunkId, ChunkRef};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Frames kept decompressed: content that jumps between packs comes back to the same frame.
const FRAMES_KEPT: usize = 6;
/// Pack headers kept; a few hundred bytes each.
const HEADERS_KEPT: usize = 512;

/// A chunk wanted from a run, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick {
    pub id: ChunkId,
    pub place: Place,
}

/// Chunks of one pack, in frames `first..=last`.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub pack: u32,
    pub first: u32,
    pub last: u32,
    pub picks: Vec<Pick>,
}

/// Keeps the newest few of something.
struct Recent<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
    limit: usize,
}

impl<K: Clone + Eq + std::hash::Hash, V: Clone> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Recent {
            map: HashMap::new(),
            order: VecDeque::new(),
            limit,
        }
    }

    fn get(&self, key: &K) -> Option<V> {
        self.map.get(key).cloned()
    }

    fn put(&mut self, key: K, value: V) {
        if self.map.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
            if self.order.len() > self.limit
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
            }
        }
    }
}

/// See the module's page.
pub(crate) struct Fetcher {
    pub core: Arc<Core>,
    index: Arc<ChunkIndex>,
    usable: Arc<RwLock<HashSet<u32>>>,
    naming_key: [u8; 32],
    packs: Mutex<Recent<u32, Arc<Pack>>>,
    headers: Mutex<Recent<u32, Bytes>>,
    frames: Mutex<Recent<(u32, u32), Bytes>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fetcher {
    pub fn new(
        core: Arc<Core>,
        index: Arc<ChunkIndex>,
        usable: Arc<RwLock<HashSet<u32>>>,
        naming_key: [u8; 32],
    ) -> Self {
        Fetcher {
            core,
            index,
            usable,
            naming_key,
            packs: Mutex::new(Recent::new(HEADERS_KEPT)),
            headers: Mutex::new(Recent::new(HEADERS_KEPT)),
            frames: Mutex::new(Recent::new(FRAMES_KEPT)),
        }
    }

    /// The name these bytes have as a chunk.
    pub(super) fn name(&self, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.naming_key, plain).as_bytes())
    }

    /// Where a chunk is.
    pub(crate) fn locate(&self, chunk: &ChunkRef) -> Result<(u32, Place), RepositoryError> {
        let found = {
            let usable = self.usable.read().unwrap_or_else(PoisonError::into_inner);
            self.index.find(&chunk.id, |pack| usable.contains(&pack))?
        };
        match found {
            Some((pack, place)) if place.bytes == chunk.bytes => Ok((pack, place)),
            Some(_) => Err(RepositoryError::damaged(
                format!("chunk {}", chunk.id),
                "it has another length than is said",
            )),
            None => Err(RepositoryError::damaged(
                format!("chunk {}", chunk.id),
                "no pack of this backup that can be read holds it",
            )),
        }
    }

    /// Tells of a pack that is in no index.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn knows(&self, number: u32, pack: Pack) {
        locked(&self.packs).put(number, Arc::new(pack));
    }

    /// The object's name of a pack.
    pub(crate) fn pack_name(&self, number: u32) -> Result<String, RepositoryError> {
        Ok(self.pack(number)?.name.object()?.to_string())
    }

    fn pack(&self, number: u32) -> Result<Arc<Pack>, RepositoryError> {
        if let Some(pack) = locked(&self.packs).get(&number) {
            return Ok(pack);
        }
        let pack = Arc::new(self.index.pack(number)?);
        locked(&self.packs).put(number, pack.clone());
        Ok(pack)
    }

    /// Compressed bytes of a frame; planning bounds runs by it.
    pub(super) fn frame(&self, pack: u32, frame: u32) -> Result<FrameSpan, RepositoryError> {
        let pack = self.pack(pack)?;
        let span = pack.frames.get(frame as usize).copied();
        span.ok_or_else(|| RepositoryError::damaged(&pack.index, "it places a chunk in a frame that is not there"))
    }

    async fn header(&self, number: u32, pack: &Pack) -> Result<Bytes, RepositoryError> {
        if let Some(header) = locked(&self.headers).get(&number) {
            return Ok(header);
        }
        let range = 0..pack.payload_offset;
        Ok(self.core.store.get_range(&pack.name.object()?, range).await?)
    }

    /// The chunks of a run, in the order of its picks, each checked against its id.
    pub(crate) async fn fetch(self: Arc<Self>, run: Run) -> Result<Vec<Bytes>, RepositoryError> {
        let pack = self.pack(run.pack)?;
        let frames = self.frames_of(&run, &pack).await?;
        let naming_key = self.naming_key;
        let object = pack.name.object()?.to_string();
        self.core
            .compute(move || {
                let cut = |pick: &Pick| {
                    let from = pick.place.offset as usize;
                    let frame = frames.get(&pick.place.frame)?;
                    let to = from.checked_add(pick.place.bytes as usize)?;
                    (to <= frame.len()).then(|| frame.slice(from..to))
                };
                run.picks
                    .iter()
                    .map(|pick| {
                        let bytes = cut(pick).ok_or_else(|| {
                            RepositoryError::damaged(&object, format!("chunk {} is not within its frame", pick.id))
                        })?;
                        if blake3::keyed_hash(&naming_key, &bytes).as_bytes() != &pick.id.0 {
                            return Err(RepositoryError::damaged(
                                &object,
                                format!("the bytes of chunk {} are not those that were written", pick.id),
                            ));
                        }
                        Ok(bytes)
                    })
                    .collect()
            })
            .await
    }

    async fn frames_of(&self, run: &Run, pack: &Arc<Pack>) -> Result<HashMap<u32, Bytes>, RepositoryError> {
        let wanted: HashSet<u32> = run.picks.iter().map(|p| p.place.frame).collect();
        let mut have: HashMap<u32, Bytes> = HashMap::new();
        {
            let kept = locked(&self.frames);
            for frame in &wanted {
                have.extend(kept.get(&(run.pack, *frame)).map(|bytes| (*frame, bytes)));
            }
        }
        let missing: Vec<u32> = wanted.iter().copied().filter(|f| !have.contains_key(f)).collect();
        let (Some(first), Some(last)) = (missing.iter().min().copied(), missing.iter().max().copied()) else {
            return Ok(have);
        };
        let (from, end) = (self.frame(run.pack, first)?, self.frame(run.pack, last)?);
        let (from, to) = (from.offset, end.offset + u64::from(end.compressed));
        let object = pack.name.object()?;
        let header = self.header(run.pack, pack).await?;
        let range = envelope::sealed_range(pack.payload_offset, pack.name.sum.bytes, from, to);
        let blocks = self.core.store.get_range(&object, range.clone()).await?;
        let identities = self.core.identities.clone();
        let spans = pack.clone();
        let opening = header.clone();
        let opened = self.core.compute(move || {
            let object = object.to_string();
            let plain = envelope::open_range(&object, &identities, opening, blocks, range.start, from, to)?;
            let mut opened = Vec::with_capacity(missing.len());
            for number in missing {
                let span = spans.frames.get(number as usize).copied();
                let bytes = span.and_then(|span| {
                    let start = usize::try_from(span.offset.checked_sub(from)?).ok()?;
                    let compressed = plain.get(start..start.checked_add(span.compressed as usize)?)?;
                    let frame = zstd::bulk::decompress(compressed, span.plain as usize).ok()?;
                    (frame.len() == span.plain as usize).then_some(frame)
                });
                let bytes = bytes.ok_or_else(|| {
                    RepositoryError::damaged(&object, format!("its frame {number} cannot be decompressed"))
                })?;
                opened.push((number, Bytes::from(bytes)));
            }
            Ok(opened)
        });
        let opened = opened.await?;
        // Only what opened something is worth keeping: another may come when it is asked for again.
        locked(&self.headers).put(run.pack, header);
        let mut kept = locked(&self.frames);
        for (number, bytes) in opened {
            kept.put((run.pack, number), bytes.clone());
            have.insert(number, bytes);
        }
        Ok(have)
    }
}
