//! Packers: from new chunks to uploaded packs, in order, with bounded memory and both cores at work.
//!
//! A chunk is copied into the open frame. Full frames are compressed on blocking threads, a few at a time per packer;
//! finished ones are appended, in order, to the pack in the making, which is encrypted as it grows. A full pack is
//! hashed, checked and uploaded in the background, then its index; after that its chunks can be found by anyone.

use super::flow::Flow;
use crate::RepositoryError;
use crate::envelope::{self, Sealer};
use crate::index_object::{self, COARSE_FRAME_TARGET, FRAME_TARGET, FrameChunks, lengths_frame};
use crate::names::{IndexName, PackName, Sum};
use essrun_artifact::{ChunkId, ChunkRef, Cut, Domain};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Frames of one packer being compressed at a time.
const COMPRESSING: usize = 2;
/// What a frame may add to a pack after its size was last looked at.
const SLACK: usize = 2 << 20;

/// A frame's plain bytes and what is in them.
#[derive(Default)]
struct Frame {
    plain: Vec<u8>,
    chunks: Vec<ChunkRef>,
}

struct Compressed {
    bytes: Vec<u8>,
    chunks: Vec<ChunkRef>,
}

struct PackInMaking {
    sealer: Sealer,
    frames: Vec<FrameChunks>,
}

/// See the module's page.
pub(crate) struct Packer {
    flow: Arc<Flow>,
    domain: Domain,
    /// Plain bytes at which a frame is ended.
    target: usize,
    open: Frame,
    compressing: VecDeque<JoinHandle<Result<Compressed, RepositoryError>>>,
    pack: Option<PackInMaking>,
    uploads: VecDeque<JoinHandle<Result<(), RepositoryError>>>,
}

impl Packer {
    pub fn new(flow: Arc<Flow>, domain: Domain, cut: Cut) -> Self {
        Packer {
            flow,
            domain,
            target: match cut {
                Cut::Fine => FRAME_TARGET,
                Cut::Coarse => COARSE_FRAME_TARGET,
            },
            open: Frame::default(),
            compressing: VecDeque::new(),
            pack: None,
            uploads: VecDeque::new(),
        }
    }

    /// Keeps bytes as a chunk: known ones are counted, new ones are packed.
    pub async fn keep(&mut self, bytes: &[u8]) -> Result<ChunkRef, RepositoryError> {
        let id = ChunkId(*blake3::keyed_hash(&self.flow.naming_key, bytes).as_bytes());
        let length = u32::try_from(bytes.len()).map_err(|_| RepositoryError::Internal("a chunk of 4 GiB".into()))?;
        let chunk = ChunkRef { id, bytes: length };
        if !self.flow.claim(&chunk)? {
            return Ok(chunk);
        }
        if self.open.plain.capacity() == 0 {
            self.open.plain = self.flow.buffer();
        }
        self.open.plain.extend_from_slice(bytes);
        self.open.chunks.push(chunk);
        if self.open.plain.len() >= self.target {
            self.end_frame().await?;
        }
        Ok(chunk)
    }

    async fn end_frame(&mut self) -> Result<(), RepositoryError> {
        if self.open.chunks.is_empty() {
            return Ok(());
        }
        let frame = std::mem::take(&mut self.open);
        let flow = self.flow.clone();
        let permit = flow.core.cpu.clone().acquire_owned().await;
        let permit = permit.map_err(|e| RepositoryError::Internal(e.to_string()))?;
        self.compressing.push_back(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut bytes = lengths_frame(&frame.chunks)?;
            bytes.extend_from_slice(&flow.compress(&frame.plain)?);
            flow.give_back(frame.plain);
            Ok(Compressed {
                bytes,
                chunks: frame.chunks,
            })
        }));
        while self.compressing.len() > COMPRESSING {
            self.append_oldest().await?;
        }
        Ok(())
    }

    async fn append_oldest(&mut self) -> Result<(), RepositoryError> {
        let Some(job) = self.compressing.pop_front() else {
            return Ok(());
        };
        let frame = job.await??;
        let pack = match self.pack.take() {
            Some(pack) => pack,
            None => PackInMaking {
                sealer: Sealer::new(
                    self.flow.recipients(self.domain),
                    self.flow.core.options.pack_bytes + SLACK,
                )?,
                frames: Vec::new(),
            },
        };
        let pack = self.flow.core.compute(move || {
            let mut pack = pack;
            pack.sealer.write(&frame.bytes)?;
            let compressed = u32::try_from(frame.bytes.len());
            pack.frames.push(FrameChunks {
                compressed: compressed.map_err(|_| RepositoryError::Internal("a frame of 4 GiB".into()))?,
                chunks: frame.chunks,
            });
            Ok(pack)
        });
        let pack = pack.await?;
        if pack.sealer.written() >= self.flow.core.options.pack_bytes as u64 {
            self.upload(pack).await
        } else {
            self.pack = Some(pack);
            Ok(())
        }
    }

    /// Hands a full pack to a background task; waits while too many are on their way.
    async fn upload(&mut self, pack: PackInMaking) -> Result<(), RepositoryError> {
        while self.uploads.front().is_some_and(JoinHandle::is_finished) {
            self.await_oldest_upload().await?;
        }
        let permit = self.flow.uploading.clone().acquire_owned().await;
        let permit = permit.map_err(|e| RepositoryError::Internal(e.to_string()))?;
        let (flow, domain) = (self.flow.clone(), self.domain);
        self.uploads.push_back(tokio::spawn(async move {
            let _permit = permit;
            finish_pack(&flow, domain, pack).await
        }));
        Ok(())
    }

    async fn await_oldest_upload(&mut self) -> Result<(), RepositoryError> {
        match self.uploads.pop_front() {
            Some(upload) => upload.await?,
            None => Ok(()),
        }
    }

    /// Ends the open frame and pack and waits until everything is stored and can be found.
    pub async fn flush(&mut self) -> Result<(), RepositoryError> {
        self.end_frame().await?;
        while !self.compressing.is_empty() {
            self.append_oldest().await?;
        }
        if let Some(pack) = self.pack.take() {
            self.upload(pack).await?;
        }
        while !self.uploads.is_empty() {
            self.await_oldest_upload().await?;
        }
        Ok(())
    }
}

/// The pack, then its index, then the local chunk index: in this order, so that nothing is findable before it exists.
async fn finish_pack(flow: &Arc<Flow>, domain: Domain, pack: PackInMaking) -> Result<(), RepositoryError> {
    let core = &flow.core;
    let worker = flow.clone();
    let made = core.compute(move || {
        let sealed = pack.sealer.finish()?;
        let name = PackName::new(domain, Sum::of(&sealed.bytes));
        let key = worker.core.writer()?;
        let recipients = worker.recipients(domain);
        let id = &worker.core.config.id;
        let plain = index_object::encode(id, &name, sealed.payload_offset, recipients, &pack.frames, key)?;
        // Read back what will be read back later: an index that does not decode must never be uploaded.
        let decoded = index_object::decode("a new index", &plain, id, &[key.public()])?;
        let index = envelope::seal(
            worker.recipients(Domain::Meta),
            &plain,
            worker.core.options.compression_level,
        )?;
        let index_name = IndexName {
            writer: key.id(),
            pack: name.sum.hash,
            sum: Sum::of(&index.bytes),
        };
        Ok((name, sealed.bytes, index_name, index.bytes, decoded))
    });
    let (name, pack_bytes, index_name, index_bytes, decoded) = made.await?;
    let stored = (pack_bytes.len() + index_bytes.len()) as u64;
    core.store.put_new(&name.object()?, pack_bytes).await?;
    let index_object = index_name.object()?;
    core.store.put_new(&index_object, index_bytes).await?;
    let worker = flow.clone();
    core.compute(move || worker.stored(decoded, index_object.to_string(), stored))
        .await
}
