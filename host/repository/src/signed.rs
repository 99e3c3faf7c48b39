//! Signed documents: the form of everything in a repository that is small and makes a claim.
//!
//! Three lines of text and a payload:
//!
//! ```text
//! essrun <what> <version>
//! {"…":"…"}
//! ed25519 essrun-writer-<public key> <sha-256 of the payload> <signature>
//! <payload, possibly empty>
//! ```
//!
//! The signature is over the first line, the second line and the payload's hash, each ended by a newline. The first
//! line keeps a document of one kind from passing for another. A document names its signer; whether that signer is to
//! be trusted is for the reader to decide, and [`Document::trusted`] is how.

use crate::RepositoryError;
use crate::keys::{WriterKey, WriterPublic};
use crate::names::{parse_hash, sha256};
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No head (the three lines) is longer.
const HEAD_LIMIT: usize = 1 << 20;

/// The kinds of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Config,
    Writer,
    Manifest,
    Tombstone,
    Annotation,
    Lease,
    Prune,
    Index,
    Revision,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Kind::Config => "essrun repository 1",
            Kind::Writer => "essrun writer 1",
            Kind::Manifest => "essrun manifest 1",
            Kind::Tombstone => "essrun tombstone 1",
            Kind::Prune => "essrun prune 1",
            Kind::Annotation => "essrun annotation 1",
            Kind::Lease => "essrun lease 1",
            Kind::Index => "essrun index 1",
            Kind::Revision => "essrun revision 1",
        }
    }
}

/// A document whose signature fits its own signer. Not yet trusted.
#[derive(Debug)]
pub(crate) struct Document {
    object: String,
    json: Bytes,
    pub signer: WriterPublic,
    pub payload: Bytes,
}

fn message(title: &str, json: &[u8], payload_hash: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(title.len() + json.len() + payload_hash.len() + 3);
    for part in [title.as_bytes(), json, payload_hash.as_bytes()] {
        message.extend_from_slice(part);
        message.push(b'\n');
    }
    message
}

/// Writes a document.
pub(crate) fn write(
    kind: Kind,
    claim: &impl Serialize,
    payload: &[u8],
    key: &WriterKey,
) -> Result<Bytes, RepositoryError> {
    let json = serde_json::to_vec(claim).map_err(|e| RepositoryError::Internal(e.to_string()))?;
    Ok(sign(kind, &json, payload, key))
}

/// Writes a document around a claim that is text already.
pub(crate) fn sign(kind: Kind, json: &[u8], payload: &[u8], key: &WriterKey) -> Bytes {
    let payload_hash = hex::encode(sha256(payload));
    let signature = key.sign(&message(kind.title(), json, &payload_hash));
    let mut out = BytesMut::with_capacity(json.len() + payload.len() + 512);
    out.put_slice(kind.title().as_bytes());
    out.put_u8(b'\n');
    out.put_slice(json);
    let line = format!("\ned25519 {} {payload_hash} {}\n", key.public(), hex::encode(signature));
    out.put_slice(line.as_bytes());
    out.put_slice(payload);
    out.freeze()
}

fn take_line(rest: &mut Bytes) -> Option<Bytes> {
    let end = rest.iter().take(HEAD_LIMIT).position(|b| *b == b'\n')?;
    let line = rest.split_to(end);
    let _newline = rest.split_to(1);
    Some(line)
}

/// Reads a document and checks its signature against the signer it names.
pub(crate) fn read(object: &str, kind: Kind, bytes: &Bytes) -> Result<Document, RepositoryError> {
    let bad = |why: &str| RepositoryError::damaged(object, why);
    let mut rest = bytes.clone();
    let title = take_line(&mut rest).ok_or_else(|| bad("it is not a signed document"))?;
    if title != kind.title().as_bytes() {
        return Err(bad(
            "it is a document of another kind, or of a version this program does not know",
        ));
    }
    let json = take_line(&mut rest).ok_or_else(|| bad("it ends before its claim"))?;
    let line = take_line(&mut rest).ok_or_else(|| bad("it ends before its signature"))?;
    let line = std::str::from_utf8(&line).map_err(|_| bad("its signature line is no text"))?;
    let mut words = line.split(' ');
    let (Some("ed25519"), Some(signer), Some(payload_hash), Some(signature), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad("its signature line has another shape"));
    };
    let signer: WriterPublic = signer.parse().map_err(|_| bad("its signer is no public key"))?;
    let mut raw = [0u8; 64];
    hex::decode_to_slice(signature, &mut raw).map_err(|_| bad("its signature is not 128 hexadecimal digits"))?;
    if !signer.verifies(&message(kind.title(), &json, payload_hash), &raw) {
        return Err(bad("its signature does not fit"));
    }
    if parse_hash(payload_hash) != Some(sha256(&rest)) {
        return Err(bad("its payload is not the one that was signed"));
    }
    Ok(Document {
        object: object.to_owned(),
        json,
        signer,
        payload: rest,
    })
}

impl Document {
    /// The claim, if the signer is one of `trusted`.
    pub fn trusted<T: DeserializeOwned>(&self, trusted: &[WriterPublic]) -> Result<T, RepositoryError> {
        if !trusted.contains(&self.signer) {
            let why = format!("it is signed by {}, whom nobody we trust vouches for", self.signer);
            return Err(RepositoryError::damaged(&self.object, why));
        }
        self.untrusted()
    }

    /// The claim, whoever signed it.
    pub fn untrusted<T: DeserializeOwned>(&self) -> Result<T, RepositoryError> {
        serde_json::from_slice(&self.json)
            .map_err(|e| RepositoryError::damaged(&self.object, format!("its claim cannot be read: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documents_are_read_back_and_any_changed_byte_is_seen() {
        let key = WriterKey::generate();
        let bytes = write(Kind::Manifest, &serde_json::json!({"a": 1}), b"payload", &key).unwrap();
        let document = read("x", Kind::Manifest, &bytes).unwrap();
        assert_eq!(document.payload, b"payload"[..]);
        assert_eq!(document.trusted::<serde_json::Value>(&[key.public()]).unwrap()["a"], 1);
        assert!(
            document
                .trusted::<serde_json::Value>(&[WriterKey::generate().public()])
                .is_err()
        );
        assert!(
            read("x", Kind::Lease, &bytes).is_err(),
            "kinds do not pass for one another"
        );
        for at in 0..bytes.len() {
            let mut twisted = bytes.to_vec();
            twisted[at] ^= 1;
            let still = read("x", Kind::Manifest, &Bytes::from(twisted));
            assert!(still.is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            assert!(
                read("x", Kind::Manifest, &bytes.slice(..length)).is_err(),
                "cut at {length}"
            );
        }
    }

    proptest! {
        #[test]
        fn hostile_documents_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read("x", Kind::Manifest, &Bytes::from(bytes.clone())).is_err());
            let mut titled = b"essrun manifest 1\n{}\n".to_vec();
            titled.extend(bytes);
            prop_assert!(read("x", Kind::Manifest, &Bytes::from(titled)).is_err());
        }
    }
}
