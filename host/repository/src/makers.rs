//! What only the makers of artifacts know: which contents an artifact is made of.
//!
//! A volume's artifact is a listing whose lines name the contents of files; a large table is several contents, named
//! in its record. The repository understands neither, and must not. But whoever writes packs anew, or says what of a
//! damaged backup is left, has to know which chunks are needed; so the makers are asked, through [`Makers`].

use crate::chunk_index::ChunkIndex;
use crate::read::{Fetcher, RefReader};
use crate::{OpenBackup, RepositoryError};
use async_trait::async_trait;
use essrun_artifact::{ArtifactRecord, BackupReader, ChunkList, ChunkRef, Content, KeepError};
use std::collections::HashSet;
use std::sync::Arc;

/// Takes contents, one after the other.
#[async_trait]
pub trait Visit: Send {
    async fn content(&mut self, content: &Content) -> Result<(), KeepError>;
}

/// Knows what artifacts are made of.
#[async_trait]
pub trait Makers: Send + Sync {
    /// Hands every content of an artifact to `visit`, also those that other contents name. `false`: this kind of
    /// artifact is not known, so what else it may name is not known either.
    async fn contents(
        &self,
        artifact: &ArtifactRecord,
        from: &dyn BackupReader,
        visit: &mut dyn Visit,
    ) -> Result<bool, KeepError>;
}

/// Every artifact is its own content and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainArtifacts;

#[async_trait]
impl Makers for PlainArtifacts {
    async fn contents(
        &self,
        artifact: &ArtifactRecord,
        _: &dyn BackupReader,
        visit: &mut dyn Visit,
    ) -> Result<bool, KeepError> {
        visit.content(&artifact.content).await?;
        Ok(true)
    }
}

/// Says of each chunk of a backup, lists of chunks included, what is found out about it.
pub(crate) trait TakeChunk: Send {
    fn chunk(&mut self, chunk: &ChunkRef) -> Result<(), RepositoryError>;
}

struct Walk<'a, T: TakeChunk> {
    fetcher: Arc<Fetcher>,
    take: &'a mut T,
}

impl<T: TakeChunk> Walk<'_, T> {
    async fn all(&mut self, content: &Content) -> Result<(), RepositoryError> {
        if let ChunkList::Stored { list, .. } = &content.chunks {
            Box::pin(self.all(list)).await?;
        }
        let mut refs = RefReader::new(self.fetcher.clone(), content)?;
        while let Some(chunk) = refs.next().await? {
            self.take.chunk(&chunk)?;
        }
        Ok(())
    }
}

#[async_trait]
impl<T: TakeChunk> Visit for Walk<'_, T> {
    async fn content(&mut self, content: &Content) -> Result<(), KeepError> {
        Ok(self.all(content).await?)
    }
}

/// Shows every chunk of an artifact. `false`: its kind is not known.
pub(crate) async fn chunks<T: TakeChunk>(
    backup: &OpenBackup,
    artifact: &ArtifactRecord,
    makers: &dyn Makers,
    take: &mut T,
) -> Result<bool, RepositoryError> {
    let mut walk = Walk {
        fetcher: backup.fetcher(),
        take,
    };
    Ok(makers.contents(artifact, backup, &mut walk).await?)
}

/// Looks every chunk up among some packs: the packs that hold them, and how many are in none.
pub(crate) struct Locate<'a> {
    pub index: &'a ChunkIndex,
    pub usable: &'a HashSet<u32>,
    pub found: HashSet<u32>,
    pub missing: u64,
}

impl TakeChunk for Locate<'_> {
    fn chunk(&mut self, chunk: &ChunkRef) -> Result<(), RepositoryError> {
        match self.index.find(&chunk.id, |pack| self.usable.contains(&pack))? {
            Some((pack, place)) if place.bytes == chunk.bytes => {
                self.found.insert(pack);
            }
            _ => self.missing += 1,
        }
        Ok(())
    }
}
