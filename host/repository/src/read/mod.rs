//! A committed backup, opened for reading.

mod fetch;
mod stream;

pub(crate) use fetch::{Fetcher, Pick, Run};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use stream::ContentStream;
pub(crate) use stream::RefReader;

use crate::core::Core;
use crate::cutter::CHUNK_LIMIT;
use crate::manifest::{Damaged, Manifest, Sealed};
use crate::names::{self, ListName};
use crate::{BackupSummary, Body, RepositoryError, sync};
use async_trait::async_trait;
use essrun_artifact::{ArtifactRecord, BackupReader, ChunkRef, Content, ContentReader, KeepError};
use std::collections::HashSet;
use std::sync::{Arc, RwLock};

/// A committed backup, opened for reading.
pub struct OpenBackup {
    summary: BackupSummary,
    artifacts: Vec<ArtifactRecord>,
    damaged: Vec<Damaged>,
    body: serde_json::Value,
    list: Vec<String>,
    fetcher: Arc<Fetcher>,
}

impl std::fmt::Debug for OpenBackup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenBackup({})", self.summary.id)
    }
}

/// Reads a list of needed objects; every line's hash must be the one in the object's name.
pub(crate) async fn read_list(core: &Core, list: &ListName) -> Result<Vec<String>, RepositoryError> {
    let object = list.object()?;
    parse_list(object.as_str(), &core.get_summed(&object).await?)
}

/// The names on a list.
pub(crate) fn parse_list(object: &str, bytes: &[u8]) -> Result<Vec<String>, RepositoryError> {
    let text = std::str::from_utf8(bytes).map_err(|_| RepositoryError::damaged(object, "it is no text"))?;
    let parse = |line: &str| {
        let (hash, name) = line.split_once("  ")?;
        let sum = names::sum_in_name(name)?;
        (names::parse_hash(hash)? == sum.hash).then(|| name.to_owned())
    };
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| parse(line).ok_or_else(|| RepositoryError::damaged(object, "a line of it is not `hash  object`")))
        .collect()
}

impl OpenBackup {
    pub(crate) async fn open(core: Arc<Core>, manifest: Manifest) -> Result<Self, RepositoryError> {
        let sealed: Sealed = manifest.open(&core)?;
        let list = read_list(&core, &manifest.list).await?;
        let usable = sync::listed_packs(&core, &list).await?;
        Self::among(core, manifest, sealed, list, usable)
    }

    /// With what is known of it already, and the packs that may be read.
    pub(crate) fn among(
        core: Arc<Core>,
        manifest: Manifest,
        sealed: Sealed,
        list: Vec<String>,
        usable: HashSet<u32>,
    ) -> Result<Self, RepositoryError> {
        let naming_key = crate::write::naming_key(&sealed, manifest.object.as_str())?;
        let fetcher = Fetcher::new(core.clone(), core.index()?, Arc::new(RwLock::new(usable)), naming_key);
        Ok(OpenBackup {
            summary: manifest.summary(Some(Body::of(&sealed.body)), sealed.stats),
            artifacts: sealed.artifacts,
            damaged: sealed.damaged,
            body: sealed.body,
            list,
            fetcher: Arc::new(fetcher),
        })
    }

    /// What is known of the backup; its body is always there.
    pub fn summary(&self) -> &BackupSummary {
        &self.summary
    }

    /// Artifacts that cannot be read in full any more, as a repair found.
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// What the pipeline stored with it.
    pub fn body(&self) -> &serde_json::Value {
        &self.body
    }

    /// The names of the objects a restore of it needs, besides the manifest.
    pub fn needed_objects(&self) -> &[String] {
        &self.list
    }

    /// The chunks of a content, in order, without their bytes.
    pub fn chunks(&self, content: &Content) -> Result<Chunks, RepositoryError> {
        Ok(Chunks {
            refs: RefReader::new(self.fetcher.clone(), content)?,
        })
    }

    pub(crate) fn fetcher(&self) -> Arc<Fetcher> {
        self.fetcher.clone()
    }
}

/// The chunks of a content, one after the other.
pub struct Chunks {
    refs: RefReader,
}

impl Chunks {
    /// The next one, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ChunkRef>, RepositoryError> {
        self.refs.next().await
    }
}

#[async_trait]
impl BackupReader for OpenBackup {
    fn artifacts(&self) -> &[ArtifactRecord] {
        &self.artifacts
    }

    async fn open(&self, content: &Content) -> Result<Box<dyn ContentReader>, KeepError> {
        Ok(Box::new(stream::ContentStream::new(self.fetcher.clone(), content, 0)?))
    }

    /// By the names of its chunks: whoever can read the backup can name bytes as its writer did.
    async fn same(&self, content: &Content, at_hand: &mut (dyn std::io::Read + Send)) -> Result<bool, KeepError> {
        let mut refs = RefReader::new(self.fetcher.clone(), content)?;
        let (mut here, mut length) = (Vec::new(), 0u64);
        while let Some(chunk) = refs.next().await? {
            // Longer than any chunk may be: only a damaged list says so, and reading it whole will tell.
            if chunk.bytes as usize > CHUNK_LIMIT {
                return Ok(false);
            }
            let wanted = chunk.bytes as usize;
            if essrun_artifact::read_full(at_hand, wanted, &mut here)? != wanted || self.fetcher.name(&here) != chunk.id
            {
                return Ok(false);
            }
            length += u64::from(chunk.bytes);
        }
        Ok(length == content.bytes && essrun_artifact::read_full(at_hand, 1, &mut here)? == 0)
    }
}
