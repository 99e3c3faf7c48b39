//! The writer key: what the backup host needs to write, and no more than that.
//!
//! Three secrets, each for one thing: an age identity that opens indexes, manifests and listings (so the next run can
//! compare), a chunk key that names chunks and decides where they are cut, a signing key that vouches for what is
//! written. None of them opens contents.

use super::file;
use crate::RepositoryError;
use age::secrecy::ExposeSecret;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const TITLE: &str = "essrun writer key 1";
const PUBLIC_PREFIX: &str = "essrun-writer-";

/// A writer's short name: the first 16 hexadecimal digits of the SHA-256 of its public signing key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WriterId(String);

impl WriterId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WriterId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() == 16 && hex {
            Ok(WriterId(text))
        } else {
            Err("a writer id is 16 lower-case hexadecimal digits")
        }
    }
}

impl From<WriterId> for String {
    fn from(id: WriterId) -> String {
        id.0
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A writer's public signing key: what its signatures are checked against. Written `essrun-writer-<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WriterPublic(VerifyingKey);

impl WriterPublic {
    pub fn id(&self) -> WriterId {
        let digest = Sha256::digest(self.0.as_bytes());
        WriterId(hex::encode(digest).chars().take(16).collect())
    }

    /// Strict verification: no malleable or weak-key signatures.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for WriterPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", hex::encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for WriterPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WriterPublic {
    type Err = RepositoryError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: &str| {
            RepositoryError::key(
                "writer's public key",
                why,
                "copy the line that begins with `essrun-writer-` from the writer key file or from keygen",
            )
        };
        let digits = text
            .trim()
            .strip_prefix(PUBLIC_PREFIX)
            .ok_or_else(|| refuse("has another beginning"))?;
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| refuse("is not 64 hexadecimal digits"))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| refuse("is not a point on the curve"))?;
        if key.is_weak() {
            return Err(refuse("is a weak key"));
        }
        Ok(WriterPublic(key))
    }
}

impl Serialize for WriterPublic {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WriterPublic {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The key that chunk names and cut points derive from. Readers find it in the manifest.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct ChunkKey(pub(crate) [u8; 32]);

impl ChunkKey {
    /// The key for naming chunks (keyed BLAKE3).
    pub(crate) fn naming(&self) -> [u8; 32] {
        blake3::derive_key("essrun 2026 chunk id v1", &self.0)
    }
}

impl fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkKey(…)")
    }
}

struct Secrets {
    index: age::x25519::Identity,
    chunk: ChunkKey,
    signing: SigningKey,
    /// Of the keys this one was rotated from: who they were, and what opens the listings they wrote. Oldest first.
    former: Vec<Former>,
}

#[derive(Clone)]
struct Former {
    public: WriterPublic,
    index: age::x25519::Identity,
}

/// See the module's page. Clones share the secrets.
#[derive(Clone)]
pub struct WriterKey(Arc<Secrets>);

impl fmt::Debug for WriterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriterKey({})", self.id())
    }
}

impl WriterKey {
    /// Makes a new writer key.
    pub fn generate() -> Self {
        let signing = Zeroizing::new(rand::random::<[u8; 32]>());
        WriterKey(Arc::new(Secrets {
            index: age::x25519::Identity::generate(),
            chunk: ChunkKey(rand::random()),
            signing: SigningKey::from_bytes(&signing),
            former: Vec::new(),
        }))
    }

    /// Makes the key that takes this one's place: it signs anew and seals listings anew, still opens the old listings,
    /// and names chunks as before, so that nothing has to be stored again.
    pub fn rotated(&self) -> Self {
        let signing = Zeroizing::new(rand::random::<[u8; 32]>());
        let mut former = self.0.former.clone();
        former.push(Former {
            public: self.public(),
            index: self.0.index.clone(),
        });
        WriterKey(Arc::new(Secrets {
            index: age::x25519::Identity::generate(),
            chunk: self.0.chunk.clone(),
            signing: SigningKey::from_bytes(&signing),
            former,
        }))
    }

    /// Whether this key was made by rotating `other`, at once or in several steps.
    pub fn follows(&self, other: &WriterPublic) -> bool {
        self.0.former.iter().any(|f| &f.public == other)
    }

    /// This writer and those it was rotated from: their backups are its own.
    pub(crate) fn ids(&self) -> Vec<WriterId> {
        let former = self.0.former.iter().map(|f| f.public.id());
        former.chain([self.id()]).collect()
    }

    /// Its own index identity, then those of the keys it was rotated from.
    pub(crate) fn index_identities(&self) -> impl Iterator<Item = &age::x25519::Identity> {
        [&self.0.index]
            .into_iter()
            .chain(self.0.former.iter().rev().map(|f| &f.index))
    }

    /// Writes the key to a new file with mode 0600; refused when the file exists.
    pub fn save(&self, path: &Path) -> Result<(), RepositoryError> {
        file::write_secret(path, &self.to_text())
    }

    /// Reads a key file; refused when others can read it.
    pub fn load(path: &Path) -> Result<Self, RepositoryError> {
        let text = file::read_secret(path)?;
        Self::from_text(&text).map_err(|e| match e {
            RepositoryError::Key { why, hint, .. } => {
                RepositoryError::key(format!("writer key {}", path.display()), why, hint)
            }
            other => other,
        })
    }

    /// The text of a key file.
    pub fn to_text(&self) -> Zeroizing<String> {
        let public = self.public();
        let index = self.0.index.to_string();
        let chunk = Zeroizing::new(hex::encode(self.0.chunk.0));
        let signing = Zeroizing::new(hex::encode(self.0.signing.as_bytes()));
        let mut text = Zeroizing::new(format!(
            "# {TITLE}\n\
             # Keep this on the backup host, readable by its user only. It cannot open contents.\n\
             # public: {public}\n\
             index: {}\n\
             chunk: {}\n\
             signing: {}\n",
            index.expose_secret(),
            chunk.as_str(),
            signing.as_str(),
        ));
        for former in &self.0.former {
            let index = former.index.to_string();
            text.push_str(&format!("former: {} {}\n", former.public, index.expose_secret()));
        }
        text
    }

    /// Reads the text of a key file.
    pub fn from_text(text: &str) -> Result<Self, RepositoryError> {
        let refuse = |why: &str| {
            RepositoryError::key(
                "writer key",
                why,
                "restore the file from its copy, or make a new one with keygen",
            )
        };
        let mut lines = text.lines();
        let title = lines.next().unwrap_or_default();
        if title.trim_start_matches("# ") != TITLE {
            let known = title.contains("essrun writer key");
            return Err(refuse(if known {
                "its version is newer than this program"
            } else {
                "it does not begin with the line of a writer key"
            }));
        }
        let (mut index, mut chunk, mut signing, mut former) = (None, None, None, Vec::new());
        for line in lines.map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| refuse("a line is not `name: value`"))?;
            let slot = match name.trim() {
                "index" => &mut index,
                "chunk" => &mut chunk,
                "signing" => &mut signing,
                "former" => {
                    let read = value.trim().split_once(' ').and_then(|(public, index)| {
                        Some(Former {
                            public: public.parse().ok()?,
                            index: age::x25519::Identity::from_str(index.trim()).ok()?,
                        })
                    });
                    former.push(read.ok_or_else(|| refuse("a key it was rotated from is broken"))?);
                    continue;
                }
                _ => return Err(refuse("it has a line of unknown name")),
            };
            if slot.replace(value.trim()).is_some() {
                return Err(refuse("it names a part twice"));
            }
        }
        let digits = |text: Option<&str>, what: &str| -> Result<Zeroizing<[u8; 32]>, RepositoryError> {
            let mut bytes = Zeroizing::new([0u8; 32]);
            hex::decode_to_slice(text.ok_or_else(|| refuse(what))?, bytes.as_mut()).map_err(|_| refuse(what))?;
            Ok(bytes)
        };
        let index = index
            .and_then(|t| age::x25519::Identity::from_str(t).ok())
            .ok_or_else(|| refuse("its index identity is missing or broken"))?;
        let chunk = digits(chunk, "its chunk key is missing or broken")?;
        let signing = digits(signing, "its signing key is missing or broken")?;
        Ok(WriterKey(Arc::new(Secrets {
            index,
            chunk: ChunkKey(*chunk),
            signing: SigningKey::from_bytes(&signing),
            former,
        })))
    }

    pub fn public(&self) -> WriterPublic {
        WriterPublic(self.0.signing.verifying_key())
    }

    pub fn id(&self) -> WriterId {
        self.public().id()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.signing.sign(message).to_bytes()
    }

    pub(crate) fn chunk_key(&self) -> &ChunkKey {
        &self.0.chunk
    }

    pub(crate) fn index_recipient(&self) -> age::x25519::Recipient {
        self.0.index.to_public()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_hides_in_debug() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("writer.key");
        let key = WriterKey::generate();
        key.save(&path).unwrap();
        let back = WriterKey::load(&path).unwrap();
        assert_eq!(key.public(), back.public());
        assert_eq!(key.to_text().as_str(), back.to_text().as_str());
        assert!(key.save(&path).is_err(), "a key file is never overwritten");
        let secret = key.to_text().lines().nth(4).unwrap().to_owned();
        assert!(!format!("{key:?}").contains(secret.split(' ').next_back().unwrap()));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let said = WriterKey::load(&path).unwrap_err().to_string();
        assert!(said.contains("644"), "{said}");
    }

    #[test]
    fn a_rotated_key_keeps_what_it_needs_and_nothing_else() {
        let old = WriterKey::generate();
        let new = WriterKey::from_text(&old.rotated().rotated().to_text()).unwrap();
        assert!(new.follows(&old.public()) && !old.follows(&new.public()));
        assert_eq!((new.ids().len(), new.ids()[0].clone()), (3, old.id()));
        assert_eq!(new.chunk_key().naming(), old.chunk_key().naming());
        assert_eq!(new.index_identities().count(), 3);
        let signing = old
            .to_text()
            .lines()
            .find(|l| l.starts_with("signing:"))
            .unwrap()
            .to_owned();
        assert!(!new.to_text().contains(&signing), "the old signing key is gone");
    }

    #[test]
    fn broken_key_texts_are_refused() {
        let text = WriterKey::generate().to_text();
        for (from, to) in [
            ("writer key 1", "writer key 2"),
            ("index:", "indx:"),
            ("chunk: ", "chunk: zz"),
            ("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-2"),
            ("signing:", "chunk:"),
            ("signing:", "former: essrun-writer-00 x\nsigning:"),
        ] {
            assert!(WriterKey::from_text(&text.replacen(from, to, 1)).is_err(), "{from}");
        }
        assert!(WriterKey::from_text("").is_err());
        let cut = text.lines().take(5).collect::<Vec<_>>().join("\n");
        assert!(WriterKey::from_text(&cut).is_err());
    }

    #[test]
    fn public_keys_are_read_back() {
        let public = WriterKey::generate().public();
        assert_eq!(public.to_string().parse::<WriterPublic>().unwrap(), public);
        assert!("essrun-writer-00".parse::<WriterPublic>().is_err());
        assert!("nonsense".parse::<WriterPublic>().is_err());
    }
}
