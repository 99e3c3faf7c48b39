//! What this host remembers of a repository's history: which configuration it saw first under an address, and where
//! each writer's chain ended when it last looked. Only so is a rollback noticed, and a repository swapped as a whole.
//!
//! It is small, cannot be rebuilt, and lies in a directory of its own, so that deleting the cache loses nothing. Files
//! are written whole or not at all, and never go back: of two heads the later one stays.

use crate::RepositoryError;
use crate::core::Core;
use crate::keys::WriterId;
use crate::names::{self, Hash};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const HEAD: &str = "head-";
const PLACE: &str = "place-";

/// The end of a writer's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub sequence: u64,
    #[serde(with = "hex_hash")]
    pub hash: Hash,
}

mod hex_hash {
    pub fn serialize<S: serde::Serializer>(hash: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex::encode(hash))
    }
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        crate::names::parse_hash(&text).ok_or_else(|| serde::de::Error::custom("not a hash"))
    }
}

fn head_path(core: &Core, writer: &WriterId) -> PathBuf {
    core.state_dir.join(format!("{HEAD}{writer}.json"))
}

/// What this host remembers of a writer's chain.
pub(crate) fn remembered(core: &Core, writer: &WriterId) -> Result<Option<Head>, RepositoryError> {
    read_head(&head_path(core, writer))
}

fn read_head(path: &Path) -> Result<Option<Head>, RepositoryError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| state_failed(path, &e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(state_failed(path, &e)),
    }
}

/// Remembers a head, never going back.
pub(crate) fn remember(core: &Core, writer: &WriterId, head: Head) -> Result<(), RepositoryError> {
    write_head(&head_path(core, writer), head)
}

fn write_head(path: &Path, head: Head) -> Result<(), RepositoryError> {
    if read_head(path)?.is_some_and(|old| old.sequence >= head.sequence) {
        return Ok(());
    }
    let json = serde_json::to_vec(&head).map_err(|e| RepositoryError::Internal(e.to_string()))?;
    write_state(path, &json)
}

/// Makes a directory that only its owner can look into.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), RepositoryError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path).map_err(|e| RepositoryError::Place {
        place: path.display().to_string(),
        why: format!("cannot be made: {e}"),
        hint: "name a directory that lasts as `state`, and one as `cache`, in [repository]".into(),
    })
}

/// Heads and places: what is remembered, and cannot be rebuilt. (The chunk index can, and says so itself.)
pub(crate) fn state_failed(path: &Path, e: &dyn std::fmt::Display) -> RepositoryError {
    RepositoryError::State {
        path: path.display().to_string(),
        why: e.to_string(),
    }
}

/// Writes a small state file: whole or not at all, and durable.
pub(crate) fn write_state(path: &Path, bytes: &[u8]) -> Result<(), RepositoryError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let written = (|| {
        use std::io::Write;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        std::fs::File::open(dir)?.sync_all()
    })();
    written.map_err(|e: std::io::Error| state_failed(path, &e))
}

/// Trust on first use: the same place must keep its configuration.
pub(crate) fn remember_config(state_dir: &Path, place: &str, bytes: &Bytes) -> Result<(), RepositoryError> {
    let seen = hex::encode(names::sha256(bytes));
    let file: String = hex::encode(names::sha256(place.as_bytes())).chars().take(16).collect();
    let path = state_dir.join(format!("{PLACE}{file}"));
    match std::fs::read_to_string(&path) {
        Ok(remembered) if remembered.trim() == seen => Ok(()),
        Ok(_) => Err(RepositoryError::History {
            why: format!("{place} holds another repository than when this host first saw it"),
            hint: format!(
                "if that is right, delete {}; if not, somebody swapped it",
                path.display()
            ),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_state(&path, seen.as_bytes()),
        Err(e) => Err(state_failed(&path, &e)),
    }
}

/// Files in a directory whose names begin so.
fn files(dir: &Path, prefix: &str) -> Result<Vec<(PathBuf, String)>, RepositoryError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| state_failed(dir, &e))? {
        let entry = entry.map_err(|e| state_failed(dir, &e))?;
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with(prefix)
        {
            found.push((entry.path(), name));
        }
    }
    Ok(found)
}

fn moved(old: &Path, new: &Path) -> Result<(), RepositoryError> {
    match std::fs::remove_file(old) {
        Ok(()) => tracing::info!(from = %old.display(), to = %new.display(), "remembered history was moved"),
        // Another run moves it as well.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(state_failed(old, &e)),
    }
    Ok(())
}

/// Moves the heads that earlier versions kept in the cache.
pub(crate) fn move_heads(cache: &Path, state: &Path) -> Result<(), RepositoryError> {
    if cache == state {
        return Ok(());
    }
    for (old, name) in files(cache, HEAD)? {
        let new = state.join(name);
        if let Some(head) = read_head(&old)? {
            write_head(&new, head)?;
        }
        moved(&old, &new)?;
    }
    Ok(())
}

/// Moves what earlier versions remembered of places in the cache.
pub(crate) fn move_places(cache: &Path, state: &Path) -> Result<(), RepositoryError> {
    if cache == state {
        return Ok(());
    }
    for (old, name) in files(cache, PLACE)? {
        let new = state.join(name);
        if !new.exists() {
            match std::fs::read(&old) {
                Ok(bytes) => write_state(&new, &bytes)?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(state_failed(&old, &e)),
            }
        }
        moved(&old, &new)?;
    }
    Ok(())
}
