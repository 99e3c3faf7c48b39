//! The local chunk index: where each chunk is, on disk, so that memory does not grow with the repository.
//!
//! It is a cache. Everything in it comes from index objects and can be rebuilt from them; deleting it costs time, not
//! data. Several processes may use it at once. A chunk may lie in several packs (writers that raced, a repack), so
//! packs are part of the key, and which of them may be used is asked of the caller at each look-up: a pack that has
//! gone from the store, or is about to be pruned, is never relied on.

use crate::RepositoryError;
use crate::index_object::{FrameSpan, PackIndex, Place};
use crate::names::{Hash, PackName};
use essrun_artifact::ChunkId;
use redb::{ConcurrencyMode, Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Chunk id and pack number (big-endian) to frame, offset, length.
const CHUNKS: TableDefinition<[u8; 36], (u32, u32, u32)> = TableDefinition::new("chunks");
/// Pack number to what is known of it, as JSON.
const PACKS: TableDefinition<u32, &[u8]> = TableDefinition::new("packs");
/// A pack's hash to its number.
const NUMBERS: TableDefinition<[u8; 32], u32> = TableDefinition::new("numbers");
/// The next pack number.
const COUNTERS: TableDefinition<&str, u32> = TableDefinition::new("counters");

/// redb's page cache; the operating system's is beside it and is not ours.
const CACHE_BYTES: usize = 48 << 20;

/// What is kept of a pack.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    pack: String,
    index: String,
    payload_offset: u64,
    /// Compressed and plain bytes of each frame.
    frames: Vec<(u32, u32)>,
}

/// A pack, as readers need it.
#[derive(Clone, Debug)]
pub(crate) struct Pack {
    pub name: PackName,
    /// The name of its index object.
    pub index: String,
    pub payload_offset: u64,
    pub frames: Vec<FrameSpan>,
}

struct View {
    chunks: ReadOnlyTable<[u8; 36], (u32, u32, u32)>,
    packs: ReadOnlyTable<u32, &'static [u8]>,
    numbers: ReadOnlyTable<[u8; 32], u32>,
}

/// See the module's page.
pub(crate) struct ChunkIndex {
    path: PathBuf,
    db: Database,
    view: RwLock<Arc<View>>,
}

impl std::fmt::Debug for ChunkIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkIndex({})", self.path.display())
    }
}

fn key(id: &ChunkId, pack: u32) -> [u8; 36] {
    let mut key = [0u8; 36];
    for (to, from) in key.iter_mut().zip(id.0.iter().copied().chain(pack.to_be_bytes())) {
        *to = from;
    }
    key
}

fn pack_of(key: &[u8; 36]) -> u32 {
    key.last_chunk::<4>()
        .map(|n| u32::from_be_bytes(*n))
        .unwrap_or(u32::MAX)
}

impl ChunkIndex {
    /// Opens the index at `path`, or makes it. One that cannot be opened is put aside and made anew.
    pub fn open(path: &Path) -> Result<Self, RepositoryError> {
        match Self::try_open(path) {
            Ok(index) => Ok(index),
            Err(redb::Error::DatabaseAlreadyOpen) => Err(cache_error(path, "another program holds it open")),
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "the chunk index is unusable and is made anew");
                if path.exists() {
                    std::fs::remove_file(path).map_err(|e| cache_error(path, e))?;
                }
                Self::try_open(path).map_err(|e| cache_error(path, e))
            }
        }
    }

    fn try_open(path: &Path) -> Result<Self, redb::Error> {
        let db = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_concurrency_mode(ConcurrencyMode::MultiWriter)
            .create(path)?;
        let write = db.begin_write()?;
        write.open_table(CHUNKS)?;
        write.open_table(PACKS)?;
        write.open_table(NUMBERS)?;
        write.open_table(COUNTERS)?;
        write.commit()?;
        let view = RwLock::new(Arc::new(Self::look(&db)?));
        Ok(ChunkIndex {
            path: path.to_owned(),
            db,
            view,
        })
    }

    fn look(db: &Database) -> Result<View, redb::Error> {
        let read = db.begin_read()?;
        Ok(View {
            chunks: read.open_table(CHUNKS)?,
            packs: read.open_table(PACKS)?,
            numbers: read.open_table(NUMBERS)?,
        })
    }

    fn error(&self, e: impl std::fmt::Display) -> RepositoryError {
        cache_error(&self.path, e)
    }

    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes what was committed, also by other processes, visible to look-ups.
    fn refresh(&self) -> Result<(), RepositoryError> {
        let view = Arc::new(Self::look(&self.db).map_err(|e| self.error(e))?);
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        Ok(())
    }

    /// Where a chunk is, in a pack that may be used.
    pub fn find(&self, id: &ChunkId, usable: impl Fn(u32) -> bool) -> Result<Option<(u32, Place)>, RepositoryError> {
        let view = self.view();
        let range = view
            .chunks
            .range(key(id, 0)..=key(id, u32::MAX))
            .map_err(|e| self.error(e))?;
        for row in range {
            let (key, place) = row.map_err(|e| self.error(e))?;
            let pack = pack_of(&key.value());
            if usable(pack) {
                let (frame, offset, bytes) = place.value();
                return Ok(Some((pack, Place { frame, offset, bytes })));
            }
        }
        Ok(None)
    }

    /// What is known of a pack.
    pub fn pack(&self, number: u32) -> Result<Pack, RepositoryError> {
        let view = self.view();
        let row = view.packs.get(number).map_err(|e| self.error(e))?;
        let row = row.ok_or_else(|| self.error(format!("pack {number} is missing")))?;
        let row: Row = serde_json::from_slice(row.value()).map_err(|e| self.error(e))?;
        let mut offset = 0u64;
        let frames = row.frames.iter().map(|(compressed, plain)| {
            let span = FrameSpan {
                offset,
                compressed: *compressed,
                plain: *plain,
            };
            offset += u64::from(*compressed);
            span
        });
        Ok(Pack {
            frames: frames.collect(),
            name: PackName::parse(&row.pack).ok_or_else(|| self.error("a pack's name is broken"))?,
            index: row.index,
            payload_offset: row.payload_offset,
        })
    }

    /// The number of a pack, if it is known.
    pub fn number(&self, pack: &Hash) -> Result<Option<u32>, RepositoryError> {
        let view = self.view();
        let found = view.numbers.get(pack).map_err(|e| self.error(e))?;
        Ok(found.map(|n| n.value()))
    }

    /// All packs that are known, by hash.
    pub fn numbers(&self) -> Result<HashMap<Hash, u32>, RepositoryError> {
        self.refresh()?;
        let view = self.view();
        let mut all = HashMap::new();
        for row in view.numbers.range::<[u8; 32]>(..).map_err(|e| self.error(e))? {
            let (hash, number) = row.map_err(|e| self.error(e))?;
            all.insert(hash.value(), number.value());
        }
        Ok(all)
    }

    /// Enters packs; a known one keeps its number. Gives their numbers, in order.
    pub fn add(&self, packs: &[(PackIndex, String)]) -> Result<Vec<u32>, RepositoryError> {
        let numbers = self.try_add(packs).map_err(|e| self.error(e))?;
        self.refresh()?;
        Ok(numbers)
    }

    fn try_add(&self, packs: &[(PackIndex, String)]) -> Result<Vec<u32>, redb::Error> {
        let mut given = Vec::with_capacity(packs.len());
        let write = self.db.begin_write()?;
        {
            let mut chunks = write.open_table(CHUNKS)?;
            let mut rows = write.open_table(PACKS)?;
            let mut numbers = write.open_table(NUMBERS)?;
            let mut counters = write.open_table(COUNTERS)?;
            for (index, object) in packs {
                let known = numbers.get(index.pack.sum.hash)?.map(|n| n.value());
                if let Some(number) = known {
                    given.push(number);
                    continue;
                }
                let number = counters.get("next_pack")?.map(|n| n.value()).unwrap_or(0);
                counters.insert("next_pack", number.saturating_add(1))?;
                let row = Row {
                    pack: index.pack.object().map(|o| o.to_string()).unwrap_or_default(),
                    index: object.clone(),
                    payload_offset: index.payload_offset,
                    frames: index.frames.iter().map(|f| (f.compressed, f.plain)).collect(),
                };
                let row = serde_json::to_vec(&row).map_err(|e| redb::Error::Corrupted(e.to_string()))?;
                rows.insert(number, row.as_slice())?;
                numbers.insert(index.pack.sum.hash, number)?;
                // In key order: a B-tree likes it.
                let mut sorted: Vec<_> = index
                    .chunks
                    .iter()
                    .map(|(id, place)| (key(id, number), place))
                    .collect();
                sorted.sort_unstable_by_key(|(key, _)| *key);
                for (key, place) in sorted {
                    chunks.insert(key, (place.frame, place.offset, place.bytes))?;
                }
                given.push(number);
            }
        }
        write.commit()?;
        Ok(given)
    }

    /// Removes packs that are gone from the store.
    pub fn remove(&self, gone: &HashMap<Hash, u32>) -> Result<(), RepositoryError> {
        if gone.is_empty() {
            return Ok(());
        }
        let removed = (|| -> Result<(), redb::Error> {
            let dead: HashSet<u32> = gone.values().copied().collect();
            let write = self.db.begin_write()?;
            {
                write
                    .open_table(CHUNKS)?
                    .retain(|key, _| !dead.contains(&pack_of(&key)))?;
                let mut rows = write.open_table(PACKS)?;
                let mut numbers = write.open_table(NUMBERS)?;
                for (hash, number) in gone {
                    rows.remove(*number)?;
                    numbers.remove(*hash)?;
                }
            }
            write.commit()?;
            Ok(())
        })();
        removed.map_err(|e| self.error(e))?;
        self.refresh()
    }
}

fn cache_error(path: &Path, why: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::Cache {
        path: path.display().to_string(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Sum;

    fn index(pack: u8, chunks: &[u8]) -> (PackIndex, String) {
        let place = Place {
            frame: 0,
            offset: 0,
            bytes: 5,
        };
        let index = PackIndex {
            pack: PackName {
                meta: false,
                sum: Sum {
                    hash: [pack; 32],
                    bytes: 10,
                },
            },
            payload_offset: 3,
            recipients: vec![],
            frames: vec![FrameSpan {
                offset: 0,
                compressed: 4,
                plain: 5,
            }],
            chunks: chunks.iter().map(|c| (ChunkId([*c; 32]), place)).collect(),
        };
        (index, format!("index-{pack}"))
    }

    #[test]
    fn chunks_are_found_in_usable_packs_only_and_survive_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunks.redb");
        {
            let cache = ChunkIndex::open(&path).unwrap();
            assert_eq!(cache.add(&[index(1, &[1, 2]), index(2, &[2, 3])]).unwrap(), [0, 1]);
            assert_eq!(
                cache.add(&[index(1, &[1, 2])]).unwrap(),
                [0],
                "a known pack keeps its number"
            );
        }
        let cache = ChunkIndex::open(&path).unwrap();
        let find = |n: u8, usable: &[u32]| {
            cache
                .find(&ChunkId([n; 32]), |p| usable.contains(&p))
                .unwrap()
                .map(|f| f.0)
        };
        assert_eq!(find(2, &[0, 1]), Some(0));
        assert_eq!(find(2, &[1]), Some(1));
        assert_eq!(find(1, &[1]), None);
        assert_eq!(find(9, &[0, 1]), None);
        assert_eq!(cache.pack(1).unwrap().index, "index-2");
        cache.remove(&HashMap::from([([1; 32], 0)])).unwrap();
        assert_eq!(find(2, &[0, 1]), Some(1));
        assert_eq!(find(1, &[0, 1]), None);
        assert_eq!(cache.numbers().unwrap().len(), 1);
    }

    #[test]
    fn a_broken_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunks.redb");
        std::fs::write(&path, b"not a database").unwrap();
        let cache = ChunkIndex::open(&path).unwrap();
        assert!(cache.numbers().unwrap().is_empty());
    }
}
