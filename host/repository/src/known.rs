//! What was read and verified before: a local cache of small objects, so that a list of a thousand backups does not
//! read a thousand manifests.
//!
//! Objects are written once and never rewritten, so what one said when it was read is what it says. An entry belongs to
//! an object's name, size and time in the store, and to the writers that were trusted when its signature was checked;
//! with any of these different it counts for nothing, and the object is read again.
//!
//! What is kept is what the writer key opens, nothing that takes an identity; and it is kept encrypted and
//! authenticated under a key made from the writer key, so the file alone tells nothing and cannot be forged. Without a
//! writer key there is no such cache. The file can be deleted at any time. It serves lists: whoever checks, prunes,
//! repairs or restores reads the objects themselves.

use crate::core::Core;
use crate::keys::WriterKey;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use essrun_store::ObjectInfo;
use redb::{ConcurrencyMode, Database, ReadableDatabase, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::path::Path;

/// An object's name to a nonce and what it said, sealed.
const SAID: TableDefinition<&str, &[u8]> = TableDefinition::new("said");
const NONCE: usize = 24;
/// No entry is larger when opened; what is larger is not worth keeping.
const LIMIT: usize = 4 << 20;

/// See the module's page.
pub(crate) struct Known {
    db: Database,
    cipher: XChaCha20Poly1305,
    /// Stands for the writers that are trusted.
    trust: [u8; 32],
}

/// Stands for whom the repository trusts now.
fn trust(core: &Core) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&core.config_hash);
    let mut trusted: Vec<String> = core.trusted.iter().map(ToString::to_string).collect();
    let follows = core.follows.iter();
    trusted
        .extend(follows.map(|(by, f)| format!("{by} {} {} {}", f.writer, f.head.sequence, hex::encode(f.head.hash))));
    trusted.sort();
    trusted.dedup();
    for line in trusted {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    hasher.finalize().into()
}

impl Known {
    /// Opens the cache at `path`, or makes it. It is never needed: what is wrong with it is a warning.
    pub fn open(path: &Path, core: &Core, key: &WriterKey) -> Option<Self> {
        let opened = match Self::database(path) {
            Err(redb::Error::DatabaseAlreadyOpen) => return None,
            Err(_) if path.exists() => {
                let _ = std::fs::remove_file(path);
                Self::database(path)
            }
            opened => opened,
        };
        match opened {
            Ok(db) => Some(Known {
                db,
                cipher: XChaCha20Poly1305::new(
                    &blake3::derive_key("essrun 2026 known objects v1", &key.chunk_key().0).into(),
                ),
                trust: trust(core),
            }),
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "what was read before cannot be kept; every list reads all");
                None
            }
        }
    }

    fn database(path: &Path) -> Result<Database, redb::Error> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        options.open(path)?;
        let db = redb::Builder::new()
            .set_cache_size(4 << 20)
            .set_concurrency_mode(ConcurrencyMode::MultiWriter)
            .create(path)?;
        let write = db.begin_write()?;
        write.open_table(SAID)?;
        write.commit()?;
        Ok(db)
    }

    /// What an entry is bound to.
    fn bound(&self, info: &ObjectInfo) -> Vec<u8> {
        let mut bound = self.trust.to_vec();
        bound.extend(info.bytes.to_le_bytes());
        bound.extend(info.modified_unix_seconds.to_le_bytes());
        bound.extend(info.name.as_str().as_bytes());
        bound
    }

    /// What these objects said, where it is known.
    pub fn said<T: DeserializeOwned>(&self, objects: &[ObjectInfo]) -> Vec<Option<T>> {
        let none = || objects.iter().map(|_| None).collect();
        let read = || -> Result<Vec<Option<T>>, redb::Error> {
            let read = self.db.begin_read()?;
            let table = read.open_table(SAID)?;
            let one = |info: &ObjectInfo| -> Result<Option<T>, redb::Error> {
                let found = table.get(info.name.as_str())?;
                Ok(found.and_then(|sealed| self.unsealed(info, sealed.value())))
            };
            objects.iter().map(one).collect()
        };
        read().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "what was read before is unreadable; it is read again");
            none()
        })
    }

    fn unsealed<T: DeserializeOwned>(&self, info: &ObjectInfo, sealed: &[u8]) -> Option<T> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE)?;
        let bound = self.bound(info);
        let payload = Payload {
            msg: sealed,
            aad: &bound,
        };
        let packed = self.cipher.decrypt(XNonce::from_slice(nonce), payload).ok()?;
        serde_json::from_slice(&zstd::bulk::decompress(&packed, LIMIT).ok()?).ok()
    }

    fn sealed(&self, info: &ObjectInfo, said: &impl Serialize) -> Option<Vec<u8>> {
        let json = serde_json::to_vec(said).ok().filter(|json| json.len() <= LIMIT)?;
        let nonce: [u8; NONCE] = rand::random();
        let (packed, bound) = (zstd::bulk::compress(&json, 1).ok()?, self.bound(info));
        let payload = Payload {
            msg: &packed,
            aad: &bound,
        };
        let sealed = self.cipher.encrypt(XNonce::from_slice(&nonce), payload).ok()?;
        Some([nonce.as_slice(), &sealed].concat())
    }

    /// Keeps what objects said, and lets go of what is not among `there` below `prefix`.
    pub fn keep<T: Serialize>(&self, prefix: &str, fresh: &[(ObjectInfo, T)], there: &HashSet<&str>) {
        let kept = (|| -> Result<(), redb::Error> {
            let gone: Vec<String> = {
                let read = self.db.begin_read()?;
                let table = read.open_table(SAID)?;
                let mut gone = Vec::new();
                for row in table.range::<&str>(prefix..)? {
                    let (name, _) = row?;
                    let name = name.value();
                    if !name.starts_with(prefix) {
                        break;
                    }
                    if !there.contains(name) {
                        gone.push(name.to_owned());
                    }
                }
                gone
            };
            if gone.is_empty() && fresh.is_empty() {
                return Ok(());
            }
            let write = self.db.begin_write()?;
            {
                let mut table = write.open_table(SAID)?;
                for name in &gone {
                    table.remove(name.as_str())?;
                }
                for (info, said) in fresh {
                    if let Some(sealed) = self.sealed(info, said) {
                        table.insert(info.name.as_str(), sealed.as_slice())?;
                    }
                }
            }
            Ok(write.commit()?)
        })();
        if let Err(e) = kept {
            tracing::warn!(error = %e, "what was read could not be kept for the next time");
        }
    }
}
