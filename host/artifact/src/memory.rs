//! A keeper in memory, for the makers' own tests: it cuts nothing, compresses nothing and forgets all at the end.
//!
//! It keeps the contract of [`BackupWriter`] and [`BackupReader`] strictly: names are unique, a lane dropped with
//! unfinished bytes spoils the backup, content must be whole.

use crate::{
    ArtifactRecord, BackupReader, BackupWriter, ChunkId, ChunkList, ChunkRef, Content, ContentReader, KeepError, Lane,
    LaneSpec,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Inner {
    chunks: HashMap<ChunkId, Bytes>,
    artifacts: Vec<ArtifactRecord>,
    next: u64,
    spoiled: bool,
}

/// A backup in memory; clones share it.
#[derive(Clone, Default)]
pub struct MemoryBackup {
    inner: Arc<Mutex<Inner>>,
}

/// A committed backup in memory.
#[derive(Clone)]
pub struct MemoryReader {
    chunks: HashMap<ChunkId, Bytes>,
    artifacts: Vec<ArtifactRecord>,
}

struct MemoryLane {
    inner: Arc<Mutex<Inner>>,
    open: BytesMut,
    closed: bool,
}

fn locked(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryBackup {
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the backup; refused when a lane was dropped unclosed.
    pub fn commit(self) -> Result<MemoryReader, KeepError> {
        let inner = locked(&self.inner);
        if inner.spoiled {
            return Err(KeepError::new("backup", "a lane was dropped before it was closed"));
        }
        Ok(MemoryReader {
            chunks: inner.chunks.clone(),
            artifacts: inner.artifacts.clone(),
        })
    }
}

#[async_trait]
impl BackupWriter for MemoryBackup {
    fn lane(&self, _: LaneSpec) -> Result<Box<dyn Lane>, KeepError> {
        Ok(Box::new(MemoryLane {
            inner: self.inner.clone(),
            open: BytesMut::new(),
            closed: false,
        }))
    }

    async fn adopt(&self, content: &Content) -> Result<bool, KeepError> {
        let inner = locked(&self.inner);
        Ok(match &content.chunks {
            ChunkList::Inline(refs) => refs.iter().all(|r| inner.chunks.contains_key(&r.id)),
            ChunkList::Stored { .. } => false,
        })
    }

    async fn record(&self, artifact: ArtifactRecord) -> Result<(), KeepError> {
        let mut inner = locked(&self.inner);
        if inner.artifacts.iter().any(|a| a.name == artifact.name) {
            return Err(KeepError::new(artifact.name.to_string(), "recorded twice"));
        }
        inner.artifacts.push(artifact);
        Ok(())
    }
}

#[async_trait]
impl Lane for MemoryLane {
    async fn write(&mut self, bytes: Bytes) -> Result<(), KeepError> {
        self.open.extend_from_slice(&bytes);
        Ok(())
    }

    async fn cut(&mut self) -> Result<Content, KeepError> {
        let bytes = std::mem::take(&mut self.open).freeze();
        if bytes.is_empty() {
            return Ok(Content::empty());
        }
        let length = u32::try_from(bytes.len()).map_err(|_| {
            KeepError::new(
                "memory backup",
                "a piece of 4 GiB or more does not fit this test double",
            )
        })?;
        let mut inner = locked(&self.inner);
        inner.next += 1;
        let mut id = [0u8; 32];
        for (to, from) in id.iter_mut().zip(inner.next.to_be_bytes()) {
            *to = from;
        }
        let id = ChunkId(id);
        inner.chunks.insert(id, bytes);
        Ok(Content {
            bytes: u64::from(length),
            chunks: ChunkList::Inline(vec![ChunkRef { id, bytes: length }]),
        })
    }

    async fn close(mut self: Box<Self>) -> Result<(), KeepError> {
        self.closed = true;
        if self.open.is_empty() {
            Ok(())
        } else {
            Err(KeepError::new("lane", "closed with bytes that were not cut"))
        }
    }
}

impl Drop for MemoryLane {
    fn drop(&mut self) {
        if !self.closed {
            locked(&self.inner).spoiled = true;
        }
    }
}

#[async_trait]
impl BackupReader for MemoryReader {
    fn artifacts(&self) -> &[ArtifactRecord] {
        &self.artifacts
    }

    async fn open(&self, content: &Content) -> Result<Box<dyn ContentReader>, KeepError> {
        let ChunkList::Inline(refs) = &content.chunks else {
            return Err(KeepError::new("memory backup", "holds no stored lists"));
        };
        let mut parts = Vec::new();
        for r in refs {
            let bytes = self
                .chunks
                .get(&r.id)
                .ok_or_else(|| KeepError::new(format!("chunk {}", r.id), "is not in this backup"))?;
            // Small parts, so that readers meet boundaries anywhere.
            let mut rest = bytes.clone();
            while !rest.is_empty() {
                parts.push(rest.split_to(rest.len().min(8191)));
            }
        }
        parts.reverse();
        Ok(Box::new(MemoryContent { parts }))
    }
}

struct MemoryContent {
    parts: Vec<Bytes>,
}

#[async_trait]
impl ContentReader for MemoryContent {
    async fn next(&mut self) -> Result<Option<Bytes>, KeepError> {
        Ok(self.parts.pop())
    }
}
