//! What objects are called, and reading those names back.
//!
//! Bulky objects carry their SHA-256 and size in their names, so a listing alone shows truncation and a hash of the
//! bytes shows any change, without a key and without another object. Names from a store are hostile until parsed here.

use crate::keys::WriterId;
use crate::{BackupId, RepositoryError};
use essrun_artifact::Domain;
use essrun_store::ObjectName;
use sha2::{Digest, Sha256};

/// First segments of names whose objects live only for hours or until the next prune: never put under retention.
pub const SHORT_LIVED: [&str; 2] = ["leases", "prunes"];

pub(crate) const CONFIG: &str = "essrun-repository";

/// SHA-256 of an object's bytes.
pub(crate) type Hash = [u8; 32];

pub(crate) fn sha256(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// A checked name from parts we made ourselves; they are hexadecimal, decimal and fixed words only.
fn made(text: String) -> Result<ObjectName, RepositoryError> {
    ObjectName::new(text).map_err(|e| RepositoryError::Internal(e.to_string()))
}

pub(crate) fn config() -> Result<ObjectName, RepositoryError> {
    made(CONFIG.to_owned())
}

pub(crate) fn parse_hash(text: &str) -> Option<Hash> {
    if text.len() != 64 || text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let mut hash = [0u8; 32];
    hex::decode_to_slice(text, &mut hash).ok()?;
    Some(hash)
}

/// A decimal number as we write it: no sign, no leading zero.
fn parse_size(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    (plain && !padded).then(|| text.parse().ok()).flatten()
}

/// Hash and size, as bulky objects carry them in their names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Sum {
    pub hash: Hash,
    pub bytes: u64,
}

impl Sum {
    pub fn of(bytes: &[u8]) -> Self {
        Sum {
            hash: sha256(bytes),
            bytes: bytes.len() as u64,
        }
    }

    /// Reads `<hash>.<bytes>`.
    fn parse(text: &str) -> Option<Self> {
        let (hash, bytes) = text.split_once('.')?;
        Some(Sum {
            hash: parse_hash(hash)?,
            bytes: parse_size(bytes)?,
        })
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", hex::encode(self.hash), self.bytes)
    }
}

/// `data/3f/3f….16777216.age` or `meta/…`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct PackName {
    pub meta: bool,
    pub sum: Sum,
}

impl PackName {
    pub fn new(domain: Domain, sum: Sum) -> Self {
        PackName {
            meta: domain == Domain::Meta,
            sum,
        }
    }

    pub fn object(&self) -> Result<ObjectName, RepositoryError> {
        let first = self.sum.hash.first().copied().unwrap_or(0);
        made(format!(
            "{}/{first:02x}/{}.age",
            if self.meta { "meta" } else { "data" },
            self.sum
        ))
    }

    pub fn parse(name: &str) -> Option<Self> {
        let (domain, rest) = name.split_once('/')?;
        let meta = match domain {
            "data" => false,
            "meta" => true,
            _ => return None,
        };
        let (shard, file) = rest.split_once('/')?;
        let sum = Sum::parse(file.strip_suffix(".age")?)?;
        (hex::encode(sum.hash).get(..2) == Some(shard)).then_some(PackName { meta, sum })
    }
}

/// `index/<writer>/<pack's hash>.<own hash>.<bytes>.age`: which chunks are in a pack.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct IndexName {
    pub writer: WriterId,
    pub pack: Hash,
    pub sum: Sum,
}

impl IndexName {
    pub fn object(&self) -> Result<ObjectName, RepositoryError> {
        made(format!(
            "index/{}/{}.{}.age",
            self.writer,
            hex::encode(self.pack),
            self.sum
        ))
    }

    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("index/")?;
        let (writer, file) = rest.split_once('/')?;
        let (pack, sum) = file.strip_suffix(".age")?.split_once('.')?;
        Some(IndexName {
            writer: writer.to_owned().try_into().ok()?,
            pack: parse_hash(pack)?,
            sum: Sum::parse(sum)?,
        })
    }
}

/// `lists/<hash>.<bytes>.txt`: the names of the objects a backup needs, as `sha256sum -c` reads them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct ListName(pub Sum);

impl ListName {
    pub fn object(&self) -> Result<ObjectName, RepositoryError> {
        made(format!("lists/{}.txt", self.0))
    }

    pub fn parse(name: &str) -> Option<Self> {
        Sum::parse(name.strip_prefix("lists/")?.strip_suffix(".txt")?).map(ListName)
    }
}

/// The sum that an object's name says its bytes have; `None` for signed documents, which vouch for themselves.
pub(crate) fn sum_in_name(name: &str) -> Option<Sum> {
    PackName::parse(name)
        .map(|p| p.sum)
        .or_else(|| IndexName::parse(name).map(|i| i.sum))
        .or_else(|| ListName::parse(name).map(|l| l.0))
}

/// `manifests/<writer>/<sequence>.manifest` and `tombstones/<writer>/<sequence>.tombstone`.
pub(crate) fn manifest(writer: &WriterId, sequence: u64) -> Result<ObjectName, RepositoryError> {
    made(format!("manifests/{writer}/{sequence:010}.manifest"))
}

pub(crate) fn tombstone(writer: &WriterId, sequence: u64) -> Result<ObjectName, RepositoryError> {
    made(format!("tombstones/{writer}/{sequence:010}.tombstone"))
}

/// Reads `<dir>/<writer>/<sequence>.<ending>`.
pub(crate) fn parse_sequenced(name: &str, dir: &str, ending: &str) -> Option<(WriterId, u64)> {
    let (writer, file) = name.strip_prefix(dir)?.strip_prefix('/')?.split_once('/')?;
    let digits = file.strip_suffix(ending)?.strip_suffix('.')?;
    let sequence: u64 = digits.parse().ok()?;
    let canonical = format!("{sequence:010}") == digits && sequence > 0;
    canonical.then_some((writer.to_owned().try_into().ok()?, sequence))
}

/// `revisions/<writer>/<sequence>.<number>.revision`.
pub(crate) fn revision(writer: &WriterId, sequence: u64, number: u64) -> Result<ObjectName, RepositoryError> {
    made(format!("revisions/{writer}/{sequence:010}.{number:06}.revision"))
}

pub(crate) fn parse_revision(name: &str) -> Option<(WriterId, u64, u64)> {
    let (writer, file) = name.strip_prefix("revisions/")?.split_once('/')?;
    let (sequence, number) = file.strip_suffix(".revision")?.split_once('.')?;
    let (s, n): (u64, u64) = (sequence.parse().ok()?, number.parse().ok()?);
    let canonical = format!("{s:010}.{n:06}") == format!("{sequence}.{number}") && s > 0 && n > 0;
    canonical.then_some((writer.to_owned().try_into().ok()?, s, n))
}

pub(crate) fn writer_card(writer: &WriterId) -> Result<ObjectName, RepositoryError> {
    made(format!("writers/{writer}.writer"))
}

pub(crate) fn annotation(backup: &BackupId, kind: &str, unix_seconds: i64) -> Result<ObjectName, RepositoryError> {
    let nonce = hex::encode(rand::random::<[u8; 4]>());
    made(format!(
        "annotations/{backup}/{unix_seconds:012}-{kind}-{nonce}.annotation"
    ))
}

pub(crate) fn lease(backup: &BackupId, number: u64) -> Result<ObjectName, RepositoryError> {
    made(format!("leases/{backup}.{number:06}.lease"))
}

pub(crate) fn prune(unix_seconds: i64) -> Result<ObjectName, RepositoryError> {
    let nonce = hex::encode(rand::random::<[u8; 4]>());
    made(format!("prunes/{unix_seconds:012}-{nonce}.prune"))
}

/// An object that is written, looked at and deleted, to learn the store's time.
pub(crate) fn probe() -> Result<ObjectName, RepositoryError> {
    made(format!("leases/probe-{}.lease", hex::encode(rand::random::<[u8; 8]>())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_survive_their_text() {
        let sum = Sum::of(b"x");
        for domain in [Domain::Data, Domain::Meta] {
            let pack = PackName::new(domain, sum);
            assert_eq!(PackName::parse(pack.object().unwrap().as_str()), Some(pack));
        }
        let writer: WriterId = "0123456789abcdef".to_owned().try_into().unwrap();
        let index = IndexName {
            writer: writer.clone(),
            pack: [7; 32],
            sum,
        };
        assert_eq!(IndexName::parse(index.object().unwrap().as_str()), Some(index));
        let list = ListName(sum);
        assert_eq!(ListName::parse(list.object().unwrap().as_str()), Some(list));
        let name = manifest(&writer, 42).unwrap();
        assert_eq!(
            parse_sequenced(name.as_str(), "manifests", "manifest"),
            Some((writer.clone(), 42))
        );
        let name = revision(&writer, 42, 3).unwrap();
        assert_eq!(parse_revision(name.as_str()), Some((writer, 42, 3)));
        assert_eq!(parse_revision(&name.as_str().replace("000003", "3")), None);
    }

    #[test]
    fn twisted_names_are_refused() {
        let good = PackName::new(Domain::Data, Sum::of(b"x")).object().unwrap().to_string();
        assert!(PackName::parse(&good).is_some());
        for bad in [
            good.replace("data/", "dato/"),
            good.replace(".1.", ".01."),
            good.replace(".1.", ".+1."),
            good.replace(".1.", ".."),
            good.replace("data/2d", "data/2e"),
            good.replace(".age", ""),
            format!("{good}x"),
        ] {
            assert_eq!(PackName::parse(&bad), None, "{bad}");
        }
        for bad in [
            "manifests/0123456789abcdef/42.manifest",
            "manifests/0123456789abcdef/0000000000.manifest",
            "manifests/x/0000000001.manifest",
            "manifests/0123456789abcdef/-000000001.manifest",
        ] {
            assert_eq!(parse_sequenced(bad, "manifests", "manifest"), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_any_text_never_panics_and_is_exact(text in ".{0,200}") {
            if let Some(pack) = PackName::parse(&text) {
                prop_assert_eq!(pack.object().unwrap().to_string(), text.clone());
            }
            if let Some(index) = IndexName::parse(&text) {
                prop_assert_eq!(index.object().unwrap().to_string(), text.clone());
            }
            if let Some((writer, sequence, number)) = parse_revision(&text) {
                prop_assert_eq!(revision(&writer, sequence, number).unwrap().to_string(), text.clone());
            }
            let _ = (ListName::parse(&text), parse_sequenced(&text, "manifests", "manifest"), sum_in_name(&text));
        }
    }
}
