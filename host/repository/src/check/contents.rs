//! Everything read back: every chunk of every artifact, as a restore would, a part of them at a time where that is asked.
//!
//! The makers say what an artifact is made of. An error they hand through keeps the object it is about, so that the
//! object is named and not the artifact it was met in.

use super::{Check, in_part, kind_of, why};
use crate::index_object::Place;
use crate::makers::{Makers, Visit};
use crate::manifest;
use crate::read::{OpenBackup, RefReader};
use crate::{BackupId, Finding, FindingKind, RepositoryError};
use async_trait::async_trait;
use essrun_artifact::{ArtifactRecord, BackupReader, Content, KeepError};
use std::collections::HashMap;

impl Check {
    /// Reads back the chunks of every artifact that belong to the part, those of files and of split tables included.
    pub(super) async fn contents(&mut self, part: u32, of: u32, makers: &dyn Makers) -> Result<(), RepositoryError> {
        let mut seen = Seen::default();
        for (object, manifest) in manifest::read_all(&self.core).await? {
            let Ok(manifest) = manifest else { continue };
            let forgotten = !self.needed.contains_key(manifest.list.object()?.as_str());
            if forgotten || self.bad.contains(object.as_str()) {
                continue;
            }
            let backup = match OpenBackup::open(self.core.clone(), manifest).await {
                Ok(backup) => backup,
                Err(e) => {
                    let object = object_of(&e).unwrap_or_else(|| object.to_string());
                    self.found(object, FindingKind::Undecodable, why(&e));
                    continue;
                }
            };
            for artifact in backup.artifacts() {
                // Known and said already.
                if backup.damaged().iter().any(|d| d.artifact == artifact.name.as_str()) {
                    continue;
                }
                let mut visit = ReadBack {
                    check: self,
                    backup: &backup,
                    part: (part, of),
                    seen: &mut seen,
                };
                let read = makers.contents(artifact, &backup, &mut visit).await;
                if matches!(read, Ok(false)) {
                    self.not_read(artifact, &backup.summary().id);
                }
                if let Err(e) = read {
                    let e = cause(e);
                    let backup = &backup.summary().id;
                    let object = match object_of(&e) {
                        // No object is to blame by itself. Where one of the backup's is missing, that is why.
                        Some(chunk) if chunk.starts_with("chunk ") => {
                            if self.report.findings.iter().any(|f| f.affects.contains(backup)) {
                                continue;
                            }
                            chunk
                        }
                        Some(object) => object,
                        None => format!("{} in {backup}", artifact.name),
                    };
                    let kind = match &e {
                        RepositoryError::Store(_) => kind_of(&e),
                        _ => FindingKind::Undecodable,
                    };
                    self.found(object, kind, format!("{} (artifact {})", why(&e), artifact.name));
                }
            }
        }
        Ok(())
    }

    fn not_read(&mut self, artifact: &ArtifactRecord, backup: &BackupId) {
        self.report.findings.push(Finding {
            object: format!("artifact {} in {backup}", artifact.name),
            kind: FindingKind::NotRead,
            detail: format!(
                "it is of kind {:?}, which is not known here: what it names besides its own content was not read back",
                artifact.kind
            ),
            affects: Vec::new(),
        });
    }

    async fn read_back(
        &mut self,
        backup: &OpenBackup,
        content: &Content,
        part: (u32, u32),
        seen: &mut Seen,
    ) -> Result<(), RepositoryError> {
        use essrun_artifact::ChunkList;
        let fetcher = backup.fetcher();
        let mut refs = RefReader::new(fetcher.clone(), content)?;
        // Chunks in the order of the content, in stretches, so that neighbours are fetched together.
        loop {
            let mut stretch = Vec::new();
            let mut bytes = 0u64;
            let mut nowhere = None;
            while stretch.len() < 256 {
                let Some(chunk) = refs.next().await? else { break };
                let (pack, place) = match fetcher.locate(&chunk) {
                    Ok(found) => found,
                    // First what came before it: it counts as read from here on.
                    Err(e) => {
                        nowhere = Some(e);
                        break;
                    }
                };
                if seen.is_in_part(pack, part, || fetcher.pack_name(pack))? && seen.insert(pack, place) {
                    bytes += u64::from(chunk.bytes);
                    stretch.push(chunk);
                }
            }
            if stretch.is_empty() {
                return nowhere.map_or(Ok(()), Err);
            }
            self.report.chunks_verified += stretch.len() as u64;
            let piece = Content {
                bytes,
                chunks: ChunkList::Inline(stretch),
            };
            let mut reader = backup.open(&piece).await?;
            while let Some(bytes) = reader.next().await? {
                self.report.bytes_read += bytes.len() as u64;
            }
            if let Some(e) = nowhere {
                return Err(e);
            }
        }
    }
}

/// Chunks read back are known by their places, in a few bytes each: not again for every backup that holds them.
#[derive(Default)]
struct Seen {
    /// Of each frame of a pack: where in it the chunks read begin, in order.
    offsets: HashMap<(u32, u32), Vec<u32>>,
    count: usize,
    /// Whether a pack is of the part that is read.
    parts: HashMap<u32, bool>,
}

/// More places are not kept, about 100 MB of them; what is met again after that is read again.
const PLACES_KEPT: usize = 16 << 20;

impl Seen {
    /// `true`: it was not read yet.
    fn insert(&mut self, pack: u32, place: Place) -> bool {
        let full = self.count >= PLACES_KEPT;
        let offsets = match (self.offsets.get_mut(&(pack, place.frame)), full) {
            (Some(offsets), _) => offsets,
            (None, true) => return true,
            (None, false) => self.offsets.entry((pack, place.frame)).or_default(),
        };
        match offsets.binary_search(&place.offset) {
            Ok(_) => false,
            Err(_) if full => true,
            Err(at) => {
                offsets.insert(at, place.offset);
                self.count += 1;
                true
            }
        }
    }

    fn is_in_part(
        &mut self,
        pack: u32,
        part: (u32, u32),
        name: impl FnOnce() -> Result<String, RepositoryError>,
    ) -> Result<bool, RepositoryError> {
        if let Some(is) = self.parts.get(&pack) {
            return Ok(*is);
        }
        let is = in_part(&name()?, part);
        self.parts.insert(pack, is);
        Ok(is)
    }
}

/// The repository's own error, where a maker handed one through.
fn cause(e: KeepError) -> RepositoryError {
    let KeepError {
        what,
        why,
        hint,
        source,
    } = e;
    match source.map(|source| source.downcast::<RepositoryError>()) {
        Some(Ok(own)) => *own,
        Some(Err(other)) => KeepError {
            what,
            why,
            hint,
            source: Some(other),
        }
        .into(),
        None => match what.strip_prefix("object ") {
            Some(object) => RepositoryError::damaged(object, why),
            None => KeepError {
                what,
                why,
                hint,
                source: None,
            }
            .into(),
        },
    }
}

/// Reads contents back as a maker names them.
struct ReadBack<'a> {
    check: &'a mut Check,
    backup: &'a OpenBackup,
    part: (u32, u32),
    seen: &'a mut Seen,
}

#[async_trait]
impl Visit for ReadBack<'_> {
    async fn content(&mut self, content: &Content) -> Result<(), KeepError> {
        Ok(self.check.read_back(self.backup, content, self.part, self.seen).await?)
    }
}

/// The object an error is about.
fn object_of(e: &RepositoryError) -> Option<String> {
    match e {
        RepositoryError::Damaged { object, .. } => Some(object.clone()),
        RepositoryError::Store(e) => Some(e.object.clone()),
        _ => None,
    }
}
