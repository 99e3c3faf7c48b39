//! Envelopes: standard age files around standard zstd frames, sealed and opened here and nowhere else.
//!
//! Promise: after sealing, the header that was written is read back and its stanzas are compared, in number and kind,
//! with the recipients asked for; an envelope that anyone else could open never leaves this module. Opening is
//! bounded: a hostile envelope can neither expand without limit nor make us read past what we have.

use crate::RepositoryError;
use crate::keys::{Identity, Recipients, StanzaKind};
use age::stream::StreamWriter;
use bytes::Bytes;
use std::io::{Read, Seek, SeekFrom, Write};

/// age's blocks: plain size and with their tag.
const BLOCK: u64 = 64 * 1024;
const SEALED_BLOCK: u64 = BLOCK + 16;

/// No header we make or read is longer: 20 recipients of the longest kind fit several times over.
pub(crate) const HEADER_LIMIT: usize = 64 * 1024;
/// What stands between a header and the first block.
pub(crate) const NONCE: u64 = 16;
const MAGIC: &str = "age-encryption.org/v1";

fn failed(what: &str, e: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::Keep(essrun_artifact::KeepError::new(what, e.to_string()))
}

/// What a header says in clear.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The tags of its stanzas, without age's random filling ("grease").
    pub tags: Vec<String>,
    /// Bytes before the payload's first block: the header and the 16 bytes of nonce behind it.
    pub payload_offset: u64,
}

impl Header {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut tags = Vec::new();
        let mut offset = 0usize;
        let mut first = true;
        loop {
            let rest = bytes.get(offset..bytes.len().min(HEADER_LIMIT)).unwrap_or_default();
            let length = rest
                .iter()
                .position(|b| *b == b'\n')
                .ok_or("the age header has no end")?;
            let line = rest
                .get(..length)
                .and_then(|l| std::str::from_utf8(l).ok())
                .ok_or("the age header is no text")?;
            offset += length + 1;
            if first {
                if line != MAGIC {
                    return Err("this is not an age file".into());
                }
                first = false;
            } else if let Some(stanza) = line.strip_prefix("-> ") {
                let tag = stanza.split(' ').next().unwrap_or_default();
                if !tag.ends_with("-grease") {
                    tags.push(tag.to_owned());
                }
            } else if line.starts_with("--- ") {
                let payload_offset = offset as u64 + NONCE;
                return Ok(Header { tags, payload_offset });
            }
        }
    }

    /// Whether the stanzas are those of exactly these recipients, by number and kind.
    pub fn fits(&self, kinds: &[StanzaKind]) -> Result<(), String> {
        let mut left = self.tags.clone();
        for kind in kinds {
            if let StanzaKind::Tag(tag) = kind {
                match left.iter().position(|t| t == tag) {
                    Some(at) => {
                        left.swap_remove(at);
                    }
                    None => return Err(format!("the header lacks a {tag} stanza")),
                }
            }
        }
        let plugins = kinds.iter().filter(|k| **k == StanzaKind::Plugin).count();
        // What is left must be the plugins'; no plugin speaks for the kinds built in.
        let native = left
            .iter()
            .find(|t| matches!(t.as_str(), "X25519" | "scrypt" | "ssh-rsa" | "ssh-ed25519"));
        match native {
            Some(tag) => Err(format!("the header has a {tag} stanza too many")),
            None if left.len() < plugins => Err("the header lacks a plugin's stanza".into()),
            None if plugins == 0 && !left.is_empty() => Err(format!("the header has foreign stanzas: {left:?}")),
            None => Ok(()),
        }
    }
}

/// An age file in the making, in memory.
pub(crate) struct Sealer {
    stream: StreamWriter<Vec<u8>>,
    kinds: Vec<StanzaKind>,
    written: u64,
}

/// A finished age file.
pub(crate) struct Sealed {
    pub bytes: Bytes,
    pub payload_offset: u64,
}

impl Sealer {
    /// `capacity` is what the file is expected to grow to.
    pub fn new(recipients: &Recipients, capacity: usize) -> Result<Self, RepositoryError> {
        let seal = |e: &dyn std::fmt::Display| failed("encrypting", e);
        let encryptor = age::Encryptor::with_recipients(recipients.as_age()).map_err(|e| seal(&e))?;
        let stream = encryptor
            .wrap_output(Vec::with_capacity(capacity))
            .map_err(|e| seal(&e))?;
        Ok(Sealer {
            stream,
            kinds: recipients.kinds(),
            written: 0,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.written += bytes.len() as u64;
        self.stream.write_all(bytes).map_err(|e| failed("encrypting", e))
    }

    /// Plain bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn finish(self) -> Result<Sealed, RepositoryError> {
        let bytes = self.stream.finish().map_err(|e| failed("encrypting", e))?;
        let header = Header::parse(&bytes).map_err(RepositoryError::Internal)?;
        header.fits(&self.kinds).map_err(|why| {
            RepositoryError::refused(
                format!("an object was encrypted to other recipients than asked for: {why}"),
                "do not use this build or this plugin; nothing was uploaded",
            )
        })?;
        Ok(Sealed {
            bytes: Bytes::from(bytes),
            payload_offset: header.payload_offset,
        })
    }
}

/// One zstd frame in one age file: for small objects.
pub(crate) fn seal(recipients: &Recipients, plain: &[u8], level: i32) -> Result<Sealed, RepositoryError> {
    let frame = zstd::bulk::compress(plain, level).map_err(|e| failed("compressing", e))?;
    let mut sealer = Sealer::new(recipients, frame.len() + 1024)?;
    sealer.write(&frame)?;
    sealer.finish()
}

fn ages(identities: &[Identity]) -> impl Iterator<Item = &dyn age::Identity> {
    identities.iter().map(Identity::as_age)
}

fn no_key(object: &str, e: age::DecryptError) -> RepositoryError {
    match e {
        age::DecryptError::NoMatchingKeys => RepositoryError::key(
            format!("object {object}"),
            "none of the given keys opens it",
            "give the identity of one of its recipients, or the writer key it was written with",
        ),
        other => RepositoryError::damaged(object, format!("cannot be decrypted: {other}")),
    }
}

/// Decrypts a whole age file and leaves its zstd frames as they are.
pub(crate) fn open_sealed(
    object: &str,
    identities: &[Identity],
    bytes: &[u8],
    limit: usize,
) -> Result<Vec<u8>, RepositoryError> {
    let decryptor = age::Decryptor::new_buffered(bytes).map_err(|e| no_key(object, e))?;
    let stream = decryptor.decrypt(ages(identities)).map_err(|e| no_key(object, e))?;
    let mut frames = Vec::new();
    let read = stream.take(limit as u64).read_to_end(&mut frames);
    read.map_err(|e| RepositoryError::damaged(object, format!("cannot be decrypted: {e}")))?;
    Ok(frames)
}

/// Opens a whole age file of zstd frames, refusing more than `limit` plain bytes.
pub(crate) fn open(
    object: &str,
    identities: &[Identity],
    bytes: &[u8],
    limit: usize,
) -> Result<Vec<u8>, RepositoryError> {
    let decryptor = age::Decryptor::new_buffered(bytes).map_err(|e| no_key(object, e))?;
    let stream = decryptor.decrypt(ages(identities)).map_err(|e| no_key(object, e))?;
    let bad = |e: std::io::Error| RepositoryError::damaged(object, format!("cannot be read: {e}"));
    let decoder = zstd::stream::read::Decoder::new(stream).map_err(bad)?;
    let mut plain = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(bad)?;
    if plain.len() > limit {
        return Err(RepositoryError::damaged(
            object,
            format!("expands to more than {limit} bytes"),
        ));
    }
    Ok(plain)
}

/// Entering a file exactly at the beginning of a block makes the age crate look at the file's end, which is not at
/// hand; so then one byte more is read, from the block before.
fn lead(from: u64) -> u64 {
    u64::from(from > 0 && from.is_multiple_of(BLOCK))
}

/// Which bytes of a file hold the blocks with the plain bytes `from..to`.
pub(crate) fn sealed_range(payload_offset: u64, file_bytes: u64, from: u64, to: u64) -> std::ops::Range<u64> {
    let first = from.saturating_sub(lead(from)) / BLOCK;
    let end = to.div_ceil(BLOCK);
    let start = payload_offset.saturating_add(first.saturating_mul(SEALED_BLOCK));
    let stop = payload_offset.saturating_add(end.saturating_mul(SEALED_BLOCK));
    start.min(file_bytes)..stop.min(file_bytes)
}

/// Decrypts the plain bytes `from..to` of a file of which only the header and the blocks around them are at hand.
pub(crate) fn open_range(
    object: &str,
    identities: &[Identity],
    header: Bytes,
    blocks: Bytes,
    blocks_at: u64,
    from: u64,
    to: u64,
) -> Result<Vec<u8>, RepositoryError> {
    let sparse = Sparse {
        header,
        blocks,
        blocks_at,
        position: 0,
    };
    let bad = |e: std::io::Error| RepositoryError::damaged(object, format!("cannot be decrypted: {e}"));
    let decryptor = age::Decryptor::new(sparse).map_err(|e| no_key(object, e))?;
    let mut stream = decryptor.decrypt(ages(identities)).map_err(|e| no_key(object, e))?;
    let lead = lead(from);
    stream.seek(SeekFrom::Start(from.saturating_sub(lead))).map_err(bad)?;
    if lead > 0 {
        stream.read_exact(&mut [0u8; 1]).map_err(bad)?;
    }
    let mut plain = vec![0u8; to.saturating_sub(from) as usize];
    stream.read_exact(&mut plain).map_err(bad)?;
    Ok(plain)
}

/// A file of which two stretches are at hand; reading elsewhere is an error, never a guess.
struct Sparse {
    header: Bytes,
    blocks: Bytes,
    blocks_at: u64,
    position: u64,
}

impl Read for Sparse {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let in_header = usize::try_from(self.position).ok().and_then(|at| self.header.get(at..));
        let source = match in_header {
            Some(rest) if !rest.is_empty() => rest,
            _ => {
                let at = self
                    .position
                    .checked_sub(self.blocks_at)
                    .and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| self.blocks.get(at..)).ok_or_else(|| {
                    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "reading outside of what was fetched")
                })?
            }
        };
        let length = source.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..length), source.get(..length)) {
            to.copy_from_slice(from);
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for Sparse {
    fn seek(&mut self, pos: SeekFrom) -> std::io::Result<u64> {
        let target = match pos {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.position = target.ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidInput, "the end of this file is not at hand")
        })?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewIdentity;
    use proptest::prelude::*;

    fn pair() -> (Vec<Identity>, Recipients) {
        let made = NewIdentity::generate();
        (vec![made.identity()], Recipients::parse([made.recipient()]).unwrap())
    }

    #[test]
    fn small_envelopes_open_with_the_right_key_and_within_their_limit() {
        let (identities, recipients) = pair();
        let sealed = seal(&recipients, &[7u8; 100_000], 3).unwrap();
        assert_eq!(
            open("x", &identities, &sealed.bytes, 100_000).unwrap(),
            vec![7u8; 100_000]
        );
        let said = open("x", &identities, &sealed.bytes, 99_999).unwrap_err().to_string();
        assert!(said.contains("expands"), "{said}");
        let said = open("x", &pair().0, &sealed.bytes, 100_000).unwrap_err().to_string();
        assert!(said.contains("none of the given keys"), "{said}");
    }

    #[test]
    fn headers_are_compared_with_what_was_asked_for() {
        let (_, one) = pair();
        let (_, other) = pair();
        let two = Recipients::parse(one.texts().chain(other.texts())).unwrap();
        let header = Header::parse(&seal(&two, b"x", 3).unwrap().bytes).unwrap();
        assert!(header.fits(&two.kinds()).is_ok());
        assert!(header.fits(&one.kinds()).unwrap_err().contains("too many"));
        let header = Header::parse(&seal(&one, b"x", 3).unwrap().bytes).unwrap();
        assert!(header.fits(&two.kinds()).unwrap_err().contains("lacks"));
        let plugin = Header {
            tags: vec!["X25519".into(), "piv-p256".into()],
            payload_offset: 0,
        };
        assert!(plugin.fits(&[StanzaKind::Tag("X25519"), StanzaKind::Plugin]).is_ok());
        assert!(plugin.fits(&one.kinds()).unwrap_err().contains("foreign"));
    }

    #[test]
    fn every_stretch_can_be_opened_by_itself() {
        let (identities, recipients) = pair();
        for length in [1usize, 65_535, 65_536, 65_537, 131_072, 300_000] {
            let plain: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
            let mut sealer = Sealer::new(&recipients, 0).unwrap();
            sealer.write(&plain).unwrap();
            let sealed = sealer.finish().unwrap();
            let header = sealed.bytes.slice(..sealed.payload_offset as usize);
            for (from, to) in [
                (0, 1),
                (0, length),
                (length - 1, length),
                (length / 3, length / 2 + 1),
                (length / 2, length),
                (length / 65_536 * 65_536, length),
                (65_536.min(length - 1), length),
            ] {
                if from >= to {
                    continue;
                }
                let range = sealed_range(sealed.payload_offset, sealed.bytes.len() as u64, from as u64, to as u64);
                let blocks = sealed.bytes.slice(range.start as usize..range.end as usize);
                let got = open_range(
                    "x",
                    &identities,
                    header.clone(),
                    blocks,
                    range.start,
                    from as u64,
                    to as u64,
                )
                .unwrap();
                assert_eq!(got, &plain[from..to], "{length} {from} {to}");
            }
        }
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Header::parse(&bytes);
            let mut titled = format!("{MAGIC}\n-> X25519 a\n").into_bytes();
            titled.extend(&bytes);
            let _ = Header::parse(&titled);
            let (identities, _) = pair();
            prop_assert!(open("x", &identities, &titled, 1000).is_err());
        }
    }
}
