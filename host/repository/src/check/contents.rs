//! Everything read back: every chunk of every artifact, as a restore would, a part of them at a time where that is asked.
//!
//! The makers say what an artifact is made of. An error they hand through keeps the object it is about, so that the
//! object is named and not the artifact it was met in.

use super::{Check, in_part, kind_of, why};
use crate::makers::{Makers, Visit};
use crate::manifest;
use crate::read::{OpenBackup, RefReader};
use crate::{FindingKind, RepositoryError};
use async_trait::async_trait;
use essrun_artifact::{BackupReader, Content, KeepError};
use std::collections::HashSet;

impl Check {
    /// Reads back the chunks of every artifact that belong to the part, those of files and of split tables included.
    pub(super) async fn contents(&mut self, part: u32, of: u32, makers: &dyn Makers) -> Result<(), RepositoryError> {
        let mut seen: HashSet<essrun_artifact::ChunkId> = HashSet::new();
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
                if let Err(e) = makers.contents(artifact, &backup, &mut visit).await {
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

    async fn read_back(
        &mut self,
        backup: &OpenBackup,
        content: &Content,
        part: (u32, u32),
        seen: &mut HashSet<essrun_artifact::ChunkId>,
    ) -> Result<(), RepositoryError> {
        use essrun_artifact::ChunkList;
        let mut refs = RefReader::new(backup.fetcher(), content)?;
        // Chunks in the order of the content, in stretches, so that neighbours are fetched together.
        loop {
            let mut stretch = Vec::new();
            let mut bytes = 0u64;
            while stretch.len() < 256 {
                let Some(chunk) = refs.next().await? else { break };
                if in_part(&chunk.id.to_string(), part) && seen.insert(chunk.id) {
                    bytes += u64::from(chunk.bytes);
                    stretch.push(chunk);
                }
            }
            if stretch.is_empty() {
                return Ok(());
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
        }
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
    seen: &'a mut HashSet<essrun_artifact::ChunkId>,
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
