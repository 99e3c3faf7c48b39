//! Index objects: which chunks a pack holds, and where. One beside each pack, uploaded right after it.
//!
//! An index is a signed document inside an envelope that the writer can open: the signature keeps whoever can write
//! to the store from making us believe that a pack holds what it does not. Decoding checks everything that can be
//! checked without the pack: that lengths add up, to the byte, to the pack's size.

use crate::RepositoryError;
use crate::cutter::CHUNK_LIMIT;
use crate::envelope::{HEADER_LIMIT, NONCE};
use crate::keys::{Recipients, WriterKey, WriterPublic};
use crate::names::{PackName, parse_hash};
use crate::signed::{self, Kind};
use bytes::Bytes;
use essrun_artifact::{ChunkId, ChunkRef};
use serde::{Deserialize, Serialize};

/// An index's entry: a chunk's id and the length of its plain bytes.
pub(crate) const ENTRY: usize = 36;
/// Frames are ended at this many plain bytes, or a chunk later. Measured (docs/BENCHMARKS.md): rows in frames of 4 MiB
/// take 1 % more than in one stream, of 2 MiB 5 %; readers hold a few frames, so they are no larger.
pub(crate) const FRAME_TARGET: usize = 4 << 20;
/// The same for large chunks, as of media: most is compressed already, and a frame may overshoot by a chunk of 4 MiB.
pub(crate) const COARSE_FRAME_TARGET: usize = 2 << 20;
/// No frame holds more.
pub(crate) const FRAME_LIMIT: usize = FRAME_TARGET + CHUNK_LIMIT;
/// No index object is larger when opened: a 64 MiB pack of the smallest chunks fits.
pub(crate) const INDEX_LIMIT: usize = 64 << 20;

/// Marks a skippable frame that holds the lengths of the chunks in the frame behind it. zstd skips it; with it an index
/// that was lost can be made again from its pack.
const LENGTHS_MAGIC: u32 = 0x184D_2A55;

/// The skippable frame before a frame of these chunks.
pub(crate) fn lengths_frame(chunks: &[ChunkRef]) -> Result<Vec<u8>, RepositoryError> {
    let size = u32::try_from(chunks.len() * 4).map_err(|_| RepositoryError::Internal("a frame of 4 GiB".into()))?;
    let mut out = Vec::with_capacity(chunks.len() * 4 + 8);
    out.extend(LENGTHS_MAGIC.to_le_bytes());
    out.extend(size.to_le_bytes());
    chunks.iter().for_each(|c| out.extend(c.bytes.to_le_bytes()));
    Ok(out)
}

/// Makes a pack's frames and chunks from its decrypted bytes alone: the lengths are in it, the ids are computed.
pub(crate) fn recover(object: &str, pack: &[u8], naming_key: &[u8; 32]) -> Result<Vec<FrameChunks>, RepositoryError> {
    let bad = |why: &str| RepositoryError::damaged(object, why);
    let word = |at: usize| -> Option<u32> {
        let four = pack.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(four.try_into().ok()?))
    };
    let (mut at, mut frames) = (0usize, Vec::new());
    while at < pack.len() {
        if word(at) != Some(LENGTHS_MAGIC) {
            return Err(bad("a frame does not tell the lengths of its chunks"));
        }
        let size = word(at + 4).ok_or_else(|| bad("it is cut off"))? as usize;
        let table = pack.get(at + 8..at + 8 + size).ok_or_else(|| bad("it is cut off"))?;
        let body = pack.get(at + 8 + size..).unwrap_or_default();
        let length = zstd::zstd_safe::find_frame_compressed_size(body).map_err(|_| bad("a frame of it is none"))?;
        let frame = body.get(..length).unwrap_or_default();
        let plain = zstd::bulk::decompress(frame, FRAME_LIMIT).map_err(|_| bad("a frame cannot be decompressed"))?;
        let (mut rest, mut chunks) = (plain.as_slice(), Vec::with_capacity(size / 4));
        for length in table.chunks_exact(4) {
            let bytes = u32::from_le_bytes(length.try_into().map_err(|_| bad("it is cut off"))?);
            let sane = bytes > 0 && bytes as usize <= CHUNK_LIMIT;
            let split = sane.then(|| rest.split_at_checked(bytes as usize)).flatten();
            let (chunk, behind) = split.ok_or_else(|| bad("the lengths of its chunks do not fit"))?;
            let id = ChunkId(*blake3::keyed_hash(naming_key, chunk).as_bytes());
            chunks.push(ChunkRef { id, bytes });
            rest = behind;
        }
        if !rest.is_empty() || !size.is_multiple_of(4) {
            return Err(bad("the lengths of its chunks do not fit"));
        }
        let compressed = u32::try_from(8 + size + length).map_err(|_| bad("a frame is too large"))?;
        frames.push(FrameChunks { compressed, chunks });
        at += 8 + size + length;
    }
    Ok(frames)
}

/// One frame of a pack: the lengths of its chunks, then the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameSpan {
    /// Where it begins in the pack's decrypted bytes.
    pub offset: u64,
    pub compressed: u32,
    pub plain: u32,
}

/// Where a chunk lies within its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub frame: u32,
    /// Where it begins in the frame's plain bytes.
    pub offset: u32,
    pub bytes: u32,
}

/// What an index object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackIndex {
    pub pack: PackName,
    pub payload_offset: u64,
    pub recipients: Vec<String>,
    pub frames: Vec<FrameSpan>,
    pub chunks: Vec<(ChunkId, Place)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    repository: String,
    pack: String,
    payload_offset: u64,
    recipients: Vec<String>,
    /// Of each frame: compressed bytes, plain bytes, chunks.
    frames: Vec<[u32; 3]>,
}

/// The chunks of one finished frame, in order.
#[derive(Clone, Debug)]
pub(crate) struct FrameChunks {
    pub compressed: u32,
    pub chunks: Vec<ChunkRef>,
}

/// Encodes references in the keeper's own form: 32 bytes of id, 4 of length (little-endian), each.
pub(crate) fn encode_ref(r: &ChunkRef, out: &mut impl Extend<u8>) {
    out.extend(r.id.0);
    out.extend(r.bytes.to_le_bytes());
}

/// Decodes one reference.
pub(crate) fn decode_ref(entry: &[u8]) -> Option<ChunkRef> {
    let (id, length) = entry.split_first_chunk::<32>()?;
    let bytes = u32::from_le_bytes(length.try_into().ok()?);
    let sane = bytes > 0 && bytes as usize <= CHUNK_LIMIT;
    sane.then_some(ChunkRef {
        id: ChunkId(*id),
        bytes,
    })
}

/// Writes the plain document of an index.
pub(crate) fn encode(
    repository: &str,
    pack: &PackName,
    payload_offset: u64,
    recipients: &Recipients,
    frames: &[FrameChunks],
    key: &WriterKey,
) -> Result<Bytes, RepositoryError> {
    let mut payload = Vec::with_capacity(frames.iter().map(|f| f.chunks.len() * ENTRY).sum());
    let mut spans = Vec::with_capacity(frames.len());
    for frame in frames {
        let plain = frame.chunks.iter().map(|c| c.bytes).fold(0u32, u32::saturating_add);
        let count = u32::try_from(frame.chunks.len()).unwrap_or(u32::MAX);
        spans.push([frame.compressed, plain, count]);
        frame.chunks.iter().for_each(|c| encode_ref(c, &mut payload));
    }
    let claim = Claim {
        repository: repository.to_owned(),
        pack: pack.object()?.to_string(),
        payload_offset,
        recipients: recipients.texts().map(str::to_owned).collect(),
        frames: spans,
    };
    signed::write(Kind::Index, &claim, &payload, key)
}

/// Reads the plain document of an index, for this repository and pack, signed by one of `trusted`.
pub(crate) fn decode(
    object: &str,
    bytes: &Bytes,
    repository: &str,
    trusted: &[WriterPublic],
) -> Result<PackIndex, RepositoryError> {
    let bad = |why: &str| RepositoryError::damaged(object, why);
    let document = signed::read(object, Kind::Index, bytes)?;
    let claim: Claim = document.trusted(trusted)?;
    if claim.repository != repository {
        return Err(bad("it belongs to another repository"));
    }
    let pack = PackName::parse(&claim.pack).ok_or_else(|| bad("it names no pack"))?;
    // Readers fetch as much and hold it.
    if claim.payload_offset > HEADER_LIMIT as u64 + NONCE {
        return Err(bad("the header of its pack is too large"));
    }
    let entries = document.payload.chunks_exact(ENTRY);
    if !entries.remainder().is_empty() {
        return Err(bad("its entries are cut off"));
    }
    let mut entries = entries.map(decode_ref);
    let mut frames = Vec::new();
    let mut chunks = Vec::with_capacity(document.payload.len() / ENTRY);
    let mut offset = 0u64;
    for (number, [compressed, plain, count]) in claim.frames.iter().copied().enumerate() {
        let number = u32::try_from(number).map_err(|_| bad("it has too many frames"))?;
        let longest = (FRAME_LIMIT + FRAME_LIMIT / 128 + 1024) as u64 + u64::from(count) * 4;
        if plain as usize > FRAME_LIMIT || u64::from(compressed) > longest {
            return Err(bad("a frame is too large"));
        }
        let mut at = 0u32;
        for _ in 0..count {
            let entry = entries
                .next()
                .flatten()
                .ok_or_else(|| bad("an entry is missing or impossible"))?;
            let place = Place {
                frame: number,
                offset: at,
                bytes: entry.bytes,
            };
            chunks.push((entry.id, place));
            at = at.checked_add(entry.bytes).ok_or_else(|| bad("a frame overflows"))?;
        }
        if at != plain {
            return Err(bad("a frame's chunks do not add up"));
        }
        frames.push(FrameSpan {
            offset,
            compressed,
            plain,
        });
        offset += u64::from(compressed);
    }
    if entries.next().is_some() {
        return Err(bad("it has entries of no frame"));
    }
    // age: blocks of 64 KiB, each 16 bytes longer when sealed; an empty file has one empty block.
    let sealed = offset.checked_add(offset.div_ceil(64 * 1024).max(1) * 16);
    if sealed.and_then(|s| s.checked_add(claim.payload_offset)) != Some(pack.sum.bytes) {
        return Err(bad("its frames do not add up to the pack's size"));
    }
    Ok(PackIndex {
        pack,
        payload_offset: claim.payload_offset,
        recipients: claim.recipients,
        frames,
        chunks,
    })
}

impl PackIndex {
    /// The pack's sum as its index's name repeats it.
    pub fn is_for(&self, pack_hash: &[u8; 32]) -> bool {
        &self.pack.sum.hash == pack_hash
    }
}

/// Reads a hash a claim carries as text.
pub(crate) fn claim_hash(object: &str, text: &str) -> Result<[u8; 32], RepositoryError> {
    parse_hash(text).ok_or_else(|| RepositoryError::damaged(object, "a hash in its claim is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Sum;
    use essrun_artifact::Domain;
    use proptest::prelude::*;

    fn sample(key: &WriterKey) -> (PackName, Bytes, Vec<FrameChunks>) {
        let chunk = |n: u8, bytes| ChunkRef {
            id: ChunkId([n; 32]),
            bytes,
        };
        let frames = vec![
            FrameChunks {
                compressed: 70_000,
                chunks: vec![chunk(1, 500_000), chunk(2, 600_000)],
            },
            FrameChunks {
                compressed: 10,
                chunks: vec![chunk(3, 1)],
            },
        ];
        let size = 200 + 70_010 + 2 * 16;
        let pack = PackName::new(
            Domain::Data,
            Sum {
                hash: [9; 32],
                bytes: size,
            },
        );
        let bytes = encode("r", &pack, 200, &Recipients::none(), &frames, key).unwrap();
        (pack, bytes, frames)
    }

    #[test]
    fn an_index_is_read_back() {
        let key = WriterKey::generate();
        let (pack, bytes, _) = sample(&key);
        let index = decode("x", &bytes, "r", &[key.public()]).unwrap();
        assert_eq!(index.pack, pack);
        assert_eq!(
            index.frames[1],
            FrameSpan {
                offset: 70_000,
                compressed: 10,
                plain: 1
            }
        );
        assert_eq!(
            index.chunks[1],
            (
                ChunkId([2; 32]),
                Place {
                    frame: 0,
                    offset: 500_000,
                    bytes: 600_000
                }
            )
        );
        assert!(decode("x", &bytes, "other", &[key.public()]).is_err());
        assert!(decode("x", &bytes, "r", &[WriterKey::generate().public()]).is_err());
    }

    #[test]
    fn what_an_index_says_can_be_recovered_from_the_pack() {
        let key = [7u8; 32];
        let mut pack = Vec::new();
        let mut wanted = Vec::new();
        for lengths in [vec![5u32, 70_000, 1], vec![300_000]] {
            let mut plain = Vec::new();
            let mut chunks = Vec::new();
            for bytes in lengths {
                let chunk: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
                let id = ChunkId(*blake3::keyed_hash(&key, &chunk).as_bytes());
                chunks.push(ChunkRef { id, bytes });
                plain.extend(chunk);
            }
            let mut frame = lengths_frame(&chunks).unwrap();
            frame.extend(zstd::bulk::compress(&plain, 3).unwrap());
            assert_eq!(
                zstd::bulk::decompress(&frame, plain.len()).unwrap(),
                plain,
                "zstd skips the lengths"
            );
            wanted.push((frame.len() as u32, chunks));
            pack.extend(frame);
        }
        let found = recover("x", &pack, &key).unwrap();
        let found: Vec<_> = found.into_iter().map(|f| (f.compressed, f.chunks)).collect();
        assert_eq!(found, wanted);
        for length in 1..pack.len() {
            if length != wanted[0].0 as usize {
                assert!(recover("x", &pack[..length], &key).is_err(), "cut at {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn recovering_from_hostile_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = recover("x", &bytes, &[0; 32]);
            let mut begun = LENGTHS_MAGIC.to_le_bytes().to_vec();
            begun.extend(&bytes);
            let _ = recover("x", &begun, &[0; 32]);
            let mut framed = lengths_frame(&[ChunkRef { id: ChunkId([0; 32]), bytes: 9 }]).unwrap();
            framed.extend(0xFD2F_B528u32.to_le_bytes());
            framed.extend(&bytes);
            prop_assert!(recover("x", &framed, &[0; 32]).is_err());
        }

        /// Signed, so that decoding gets past the signature: the numbers themselves are hostile.
        #[test]
        fn hostile_numbers_never_panic(
            frames in proptest::collection::vec(any::<[u32; 3]>(), 0..5),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            payload_offset: u64, size: u64,
        ) {
            let key = WriterKey::generate();
            let pack = PackName::new(Domain::Data, Sum { hash: [9; 32], bytes: size }).object().unwrap().to_string();
            let claim = Claim { repository: "r".into(), pack, payload_offset, recipients: vec![], frames };
            let bytes = signed::write(Kind::Index, &claim, &payload, &key).unwrap();
            let _ = decode("x", &bytes, "r", &[key.public()]);
        }
    }
}
