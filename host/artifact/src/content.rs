//! What a finished piece of an artifact is called: the ordered list of its chunks.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A chunk's name: keyed BLAKE3 of its plain bytes. Keyed, so that whoever sees names cannot test guesses of contents.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

impl Serialize for ChunkId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for ChunkId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        let mut id = [0u8; 32];
        hex::decode_to_slice(text.as_bytes(), &mut id)
            .map_err(|_| serde::de::Error::custom("a chunk id is 64 hexadecimal digits"))?;
        Ok(ChunkId(id))
    }
}

/// One chunk in a piece of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    pub id: ChunkId,
    /// Length of the chunk's plain bytes.
    pub bytes: u32,
}

/// A finished run of bytes, named by its chunks. Made by [`crate::Lane::cut`], read by [`crate::BackupReader::open`].
///
/// It is plain data: makers put it in listings and records; only the keeper can turn it back into bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Length of the plain bytes.
    pub bytes: u64,
    pub chunks: ChunkList,
}

/// The chunks of a [`Content`]: in place when few, or, when many, as content of its own (a chunked stream of
/// [`ChunkRef`]s in the keeper's encoding), so that a table of any size needs bounded memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkList {
    Inline(Vec<ChunkRef>),
    Stored { count: u64, list: Box<Content> },
}

impl Content {
    /// Content without bytes.
    pub fn empty() -> Self {
        Content {
            bytes: 0,
            chunks: ChunkList::Inline(Vec::new()),
        }
    }
}
