//! Chunks read out of a pack by somebody who does not get what was written: the index lies, the pack was sealed anew
//! with other bytes in it, the store answers with other bytes than were asked for.
//!
//! An index is decoded first, as it is when it is synchronized, so only lies that add up come this far. Whatever happens
//! on the way, what is handed out for an id must be the bytes that have this id; no more is asked of the store than the
//! frames are long; and where nothing lied, everything is read.

use super::{Place, place};
use crate::RepositoryError;
use crate::chunk_index::Pack;
use crate::cutter::CHUNK_LIMIT;
use crate::envelope::{HEADER_LIMIT, Sealer};
use crate::index_object::{self, ENTRY, FrameChunks, PackIndex};
use crate::names::{PackName, Sum};
use crate::read::{Fetcher, Pick, Run};
use crate::signed::{self, Kind};
use async_trait::async_trait;
use bytes::Bytes;
use essrun_artifact::{ChunkId, ChunkRef, Domain};
use essrun_store::{ObjectInfo, ObjectName, Outcome, Store, StoreError};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock};

const NAMING_KEY: [u8; 32] = [7; 32];
/// What a frame of bytes from outside may claim to hold.
const RAW_LIMIT: u64 = 1 << 20;

fn name(plain: &[u8]) -> ChunkId {
    ChunkId(*blake3::keyed_hash(&NAMING_KEY, plain).as_bytes())
}

/// Numbers of three bytes, then zeros.
struct Numbers<'a>(std::slice::ChunksExact<'a, u8>);

impl Numbers<'_> {
    fn next(&mut self) -> u64 {
        self.maybe().unwrap_or(0)
    }

    fn maybe(&mut self) -> Option<u64> {
        let n = self.0.next()?;
        Some(u64::from(u32::from_be_bytes([0, n[0], n[1], n[2]])))
    }
}

/// An even number forward, an odd one back.
fn shifted(at: u64, by: u64) -> u64 {
    match by % 2 {
        0 => at.saturating_add(by / 2),
        _ => at.saturating_sub(by / 2 + 1),
    }
}

/// Flips bits of one byte; whether there is one.
fn flip(bytes: &mut [u8], at: u64, bits: u64) -> bool {
    let byte = bytes.get_mut(at as usize);
    let changes = byte.is_some() && bits as u8 != 0;
    byte.into_iter().for_each(|b| *b ^= bits as u8);
    changes
}

/// A pack in the making: what is in it, and what is said of it.
struct Draft {
    /// Compressed frames, as they are sealed.
    bodies: Vec<Vec<u8>>,
    /// What the index says of each.
    said: Vec<FrameChunks>,
    /// The bytes of every chunk that was really written.
    written: BTreeMap<[u8; 32], Vec<u8>>,
}

impl Draft {
    fn new(numbers: &mut Numbers<'_>, raw: &[u8]) -> Draft {
        let mut draft = Draft {
            bodies: Vec::new(),
            said: Vec::new(),
            written: BTreeMap::new(),
        };
        for frame in 0..numbers.next() % 4 {
            let (mut plain, mut chunks) = (Vec::new(), Vec::new());
            for chunk in 0..=numbers.next() % 3 {
                let length = numbers.next() % 90_000 + 1;
                let bytes: Vec<u8> = (0..length).map(|n| (n * (frame * 3 + chunk + 1) % 251) as u8).collect();
                chunks.push(ChunkRef {
                    id: name(&bytes),
                    bytes: length as u32,
                });
                plain.extend(&bytes);
                draft.written.insert(name(&bytes).0, bytes);
            }
            let mut body = index_object::lengths_frame(&chunks).unwrap();
            body.extend(zstd::bulk::compress(&plain, 1).unwrap());
            draft.push(body, chunks);
        }
        if !raw.is_empty() || draft.said.is_empty() {
            // Somebody who has the keys names whatever comes out; a chunk may be any length that is said of it.
            let said = (numbers.next() % RAW_LIMIT + 1) as usize;
            let plain = zstd::bulk::decompress(raw, said).unwrap_or_default();
            let chunk = ChunkRef {
                id: name(&plain),
                bytes: said as u32,
            };
            draft.written.insert(chunk.id.0, plain);
            draft.push(raw.to_vec(), vec![chunk]);
        }
        draft
    }

    fn push(&mut self, body: Vec<u8>, chunks: Vec<ChunkRef>) {
        let compressed = body.len() as u32;
        self.bodies.push(body);
        self.said.push(FrameChunks { compressed, chunks });
    }
}

/// What the store does instead of what it is asked for.
#[derive(Debug, Default)]
struct Lies {
    /// Ranges begin elsewhere, by so much.
    shift: u64,
    /// Ranges are longer or shorter, by so much.
    length: u64,
    asked: Vec<Range<u64>>,
}

/// One object, of whatever name.
#[derive(Debug)]
struct Liar {
    object: Bytes,
    lies: Mutex<Lies>,
}

#[async_trait]
impl Store for Liar {
    fn describe(&self) -> String {
        "a liar".into()
    }

    async fn put_new(&self, _: &ObjectName, _: Bytes) -> Result<Outcome, StoreError> {
        unreachable!("nothing is written here")
    }

    async fn get(&self, _: &ObjectName) -> Result<Bytes, StoreError> {
        unreachable!("no pack is read whole")
    }

    async fn get_range(&self, _: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let mut lies = self.lies.lock().unwrap();
        lies.asked.push(range.clone());
        let end = self.object.len() as u64;
        let from = shifted(range.start, lies.shift).min(end);
        let wanted = range.end.saturating_sub(range.start);
        let to = from.saturating_add(shifted(wanted, lies.length)).min(end);
        Ok(self.object.slice(from as usize..to.max(from) as usize))
    }

    async fn head(&self, _: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        Ok(None)
    }

    async fn list(&self, _: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        Ok(Vec::new())
    }

    async fn delete(&self, _: &ObjectName) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The index of a pack of such frames, as it is after its signature was looked at.
fn index_of(here: &Place, said: &[FrameChunks], payload_offset: u64) -> Option<PackIndex> {
    let sealed: u64 = said.iter().map(|f| u64::from(f.compressed)).sum();
    let bytes = payload_offset
        .saturating_add(sealed)
        .saturating_add(sealed.div_ceil(64 * 1024).max(1) * 16);
    let pack = PackName::new(Domain::Data, Sum { hash: [9; 32], bytes });
    let (id, recipients) = (&here.core.config.id, &here.recipients);
    let text = index_object::encode(id, &pack, payload_offset, recipients, said, &here.key).unwrap();
    assert!(signed::read("x", Kind::Index, &text).is_ok());
    index_object::decode("x", &text, id, &here.core.trusted).ok()
}

/// See the module's page. The first byte says how many numbers follow; what is behind them is a frame's bytes.
pub fn frames(data: &[u8]) {
    let here = place();
    let Some((count, rest)) = data.split_first() else {
        return;
    };
    let (numbers, raw) = rest.split_at(rest.len().min(usize::from(*count) * 3));
    let mut numbers = Numbers(numbers.chunks_exact(3));
    let mut draft = Draft::new(&mut numbers, raw);
    let mut lies = Lies::default();
    // Said by no honest writer, or not delivered by an honest store.
    let mut honest = raw.is_empty() && draft.bodies.iter().all(|b| !b.is_empty());
    let (mut offset_lie, mut sealed_lies) = (0, Vec::new());
    let mut picks_lies = Vec::new();
    let frames = draft.said.len();
    while let Some(kind) = numbers.maybe() {
        let (a, b) = (numbers.next(), numbers.next());
        let frame = a as usize % frames;
        match kind % 10 {
            0 => honest &= !flip(&mut draft.bodies[frame], b >> 8, b),
            1 => {
                let said = &mut draft.said[frame].compressed;
                honest &= shifted(u64::from(*said), b) == u64::from(*said);
                *said = shifted(u64::from(*said), b) as u32;
            }
            2 => {
                let chunks = &mut draft.said[frame].chunks;
                if let Some(chunk) = chunks.last_mut() {
                    let said = shifted(u64::from(chunk.bytes), b) as u32;
                    honest &= said == chunk.bytes;
                    chunk.bytes = said;
                }
            }
            3 => {
                let last = draft.bodies.len() - 1;
                honest &= frame == last;
                draft.bodies.swap(frame, last);
            }
            4 => offset_lie = b,
            5 => (lies.shift, honest) = (b, honest && b == 0),
            6 => (lies.length, honest) = (b, honest && b == 0),
            7 | 8 => sealed_lies.push((kind % 2, a, b)),
            _ => picks_lies.push((a as usize, b as usize)),
        }
    }
    let mut sealer = Sealer::new(&here.recipients, 1024).unwrap();
    draft.bodies.iter().for_each(|body| sealer.write(body).unwrap());
    let sealed = sealer.finish().unwrap();
    let mut object = sealed.bytes.to_vec();
    for (kind, a, b) in sealed_lies {
        match kind {
            0 => honest &= !flip(&mut object, a, b),
            _ => {
                honest = false;
                object.truncate(a as usize);
            }
        }
    }
    let payload_offset = shifted(sealed.payload_offset, offset_lie);
    honest &= offset_lie == 0;
    let index = index_of(here, &draft.said, payload_offset);
    assert!(index.is_some() || !honest, "an honest index is refused");
    let Some(index) = index else { return };
    let mut picks: Vec<Pick> = index
        .chunks
        .iter()
        .map(|(id, place)| Pick { id: *id, place: *place })
        .collect();
    for (a, b) in picks_lies {
        // Another's place: the id is asked for where it is not. One's own: in another order.
        let count = picks.len();
        let (a, b) = (a % count, b % (count * 2));
        if b >= count {
            picks.swap(a, b - count);
        } else {
            honest &= picks[a].id == picks[b].id;
            picks[a].id = picks[b].id;
        }
    }
    fetched(here, index, object.into(), lies, picks, &draft.written, honest);
}

fn fetched(
    here: &Place,
    index: PackIndex,
    object: Bytes,
    lies: Lies,
    picks: Vec<Pick>,
    written: &BTreeMap<[u8; 32], Vec<u8>>,
    honest: bool,
) {
    let store = Arc::new(Liar {
        object,
        lies: Mutex::new(lies),
    });
    let core = Arc::new(here.core.with_store(store.clone()));
    let nothing = Arc::new(RwLock::new(HashSet::new()));
    let fetcher = Arc::new(Fetcher::new(core, here.core.index().unwrap(), nothing, NAMING_KEY));
    let longest: u64 = index.frames.iter().map(|f| u64::from(f.compressed)).sum();
    fetcher.knows(
        0,
        Pack {
            name: index.pack,
            index: "x".into(),
            payload_offset: index.payload_offset,
            frames: index.frames,
        },
    );
    assert!(index.chunks.len() * ENTRY <= index_object::INDEX_LIMIT);
    let run = Run {
        pack: 0,
        first: 0,
        last: u32::MAX,
        picks: picks.clone(),
    };
    // The second time some of it is at hand, whatever came of the first; the third time the store is honest.
    for round in 0..3 {
        if round == 2 {
            *store.lies.lock().unwrap() = Lies::default();
        }
        let fetched = here.runtime.block_on(fetcher.clone().fetch(run.clone()));
        match fetched {
            Ok(chunks) => {
                assert_eq!(chunks.len(), picks.len());
                for (chunk, pick) in chunks.iter().zip(&picks) {
                    assert!(!chunk.is_empty() && chunk.len() <= CHUNK_LIMIT);
                    assert_eq!(name(chunk), pick.id, "other bytes than were asked for");
                    assert_eq!(written.get(&pick.id.0).map(Vec::as_slice), Some(&chunk[..]));
                }
            }
            Err(e) => {
                assert!(!honest, "{e}");
                // A worker that panicked would be one of the others.
                let known = matches!(
                    e,
                    RepositoryError::Damaged { .. } | RepositoryError::Key { .. } | RepositoryError::Store(_)
                );
                assert!(known, "{e}");
            }
        }
        for range in &store.lies.lock().unwrap().asked {
            let asked = range.end.saturating_sub(range.start);
            let header = range.start == 0 && asked <= HEADER_LIMIT as u64 + 16;
            // With the tags, and whole blocks at both ends.
            let blocks = asked <= longest + (longest / (64 << 10) + 3) * 16 + (3 << 16);
            assert!(header || blocks, "{asked} bytes of {longest} were asked for");
        }
    }
}
