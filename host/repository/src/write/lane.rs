//! Lanes: from a flow of bytes to chunks, and from chunks to the name of a finished piece.

use super::flow::Flow;
use super::packer::Packer;
use crate::RepositoryError;
use crate::cutter::Cutter;
use crate::index_object::{ENTRY, encode_ref};
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use essrun_artifact::{ChunkList, ChunkRef, Content, Cut, Domain, KeepError, Lane, LaneSpec};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Content of at most this many chunks carries its list in place.
pub(crate) const INLINE_CHUNKS: usize = 8;
/// References held in memory before they are chunked themselves.
const SPILL_AT: usize = 8192;
/// One ordered flow of bytes into packs of its own.
pub(super) struct RepositoryLane {
    flow: Arc<Flow>,
    cutter: Cutter,
    packer: Packer,
    pending: BytesMut,
    piece_bytes: u64,
    refs: RefList,
    closed: bool,
}

impl RepositoryLane {
    pub fn open(flow: Arc<Flow>, spec: LaneSpec) -> Self {
        flow.open_lanes.fetch_add(1, SeqCst);
        RepositoryLane {
            cutter: match spec.cut {
                Cut::Fine => flow.fine.clone(),
                Cut::Coarse => flow.coarse.clone(),
            },
            packer: Packer::new(flow.clone(), spec.domain, spec.cut),
            refs: RefList::new(flow.clone()),
            pending: BytesMut::new(),
            piece_bytes: 0,
            closed: false,
            flow,
        }
    }

    async fn take(&mut self, mut bytes: Bytes) -> Result<(), RepositoryError> {
        self.flow.counters.read.fetch_add(bytes.len() as u64, Relaxed);
        self.piece_bytes += bytes.len() as u64;
        let window = self.cutter.window();
        // What the write before left is cut together with as much of this one as the decision takes.
        while !self.pending.is_empty() {
            let left = self.pending.len();
            let more = bytes.len().min(window.saturating_sub(left));
            self.pending.extend_from_slice(bytes.get(..more).unwrap_or_default());
            if self.pending.len() < window {
                return Ok(());
            }
            let length = self.cutter.next(&self.pending);
            let kept = self.packer.keep(self.pending.get(..length).unwrap_or_default()).await?;
            self.refs.push(kept).await?;
            match length.checked_sub(left) {
                Some(of_this) => {
                    self.pending.clear();
                    bytes.advance(of_this);
                }
                // The rest of what was left; what was borrowed of this write is still in it.
                None => {
                    self.pending.truncate(left);
                    self.pending.advance(length);
                }
            }
        }
        // From here on chunks are cut where they lie, and only the end is copied.
        while bytes.len() >= window {
            let length = self.cutter.next(bytes.get(..window).unwrap_or_default());
            let chunk = bytes.split_to(length);
            let kept = self.packer.keep(&chunk).await?;
            self.refs.push(kept).await?;
        }
        self.pending.extend_from_slice(&bytes);
        Ok(())
    }

    async fn cut_one(&mut self) -> Result<(), RepositoryError> {
        let window = self.pending.len().min(self.cutter.window());
        let length = self.cutter.next(self.pending.get(..window).unwrap_or_default());
        let kept = self.packer.keep(self.pending.get(..length).unwrap_or_default()).await?;
        self.pending.advance(length);
        self.refs.push(kept).await
    }

    async fn end_piece(&mut self) -> Result<Content, RepositoryError> {
        while !self.pending.is_empty() {
            self.cut_one().await?;
        }
        let refs = std::mem::replace(&mut self.refs, RefList::new(self.flow.clone()));
        Ok(Content {
            bytes: std::mem::take(&mut self.piece_bytes),
            chunks: refs.finish().await?,
        })
    }
}

#[async_trait]
impl Lane for RepositoryLane {
    async fn write(&mut self, bytes: Bytes) -> Result<(), KeepError> {
        Ok(self.take(bytes).await?)
    }

    async fn cut(&mut self) -> Result<Content, KeepError> {
        Ok(self.end_piece().await?)
    }

    async fn close(mut self: Box<Self>) -> Result<(), KeepError> {
        if self.piece_bytes > 0 {
            return Err(KeepError::new("lane", "closed with bytes that were not cut"));
        }
        self.packer.flush().await?;
        self.closed = true;
        Ok(())
    }
}

impl Drop for RepositoryLane {
    fn drop(&mut self) {
        if !self.closed {
            self.flow.spoiled.store(true, SeqCst);
        }
        self.flow.open_lanes.fetch_sub(1, SeqCst);
    }
}

/// The chunk references of a piece in the making; many of them become content themselves, so memory stays bounded.
struct RefList {
    flow: Arc<Flow>,
    refs: Vec<ChunkRef>,
    spill: Option<Spill>,
}

/// A list being chunked like any other content, in the writer-readable domain.
struct Spill {
    pending: BytesMut,
    count: u64,
    bytes: u64,
    refs: Vec<ChunkRef>,
}

impl RefList {
    fn new(flow: Arc<Flow>) -> Self {
        RefList {
            flow,
            refs: Vec::new(),
            spill: None,
        }
    }

    async fn push(&mut self, chunk: ChunkRef) -> Result<(), RepositoryError> {
        self.refs.push(chunk);
        if self.refs.len() >= SPILL_AT {
            self.spill_refs().await?;
        }
        Ok(())
    }

    async fn spill_refs(&mut self) -> Result<(), RepositoryError> {
        let spill = self.spill.get_or_insert_with(|| Spill {
            pending: BytesMut::new(),
            count: 0,
            bytes: 0,
            refs: Vec::new(),
        });
        spill.pending.reserve(self.refs.len() * ENTRY);
        self.refs.iter().for_each(|r| encode_ref(r, &mut spill.pending));
        spill.count += self.refs.len() as u64;
        spill.bytes += (self.refs.len() * ENTRY) as u64;
        self.refs.clear();
        spill.cut(&self.flow, false).await
    }

    async fn finish(mut self) -> Result<ChunkList, RepositoryError> {
        if self.spill.is_none() && self.refs.len() <= INLINE_CHUNKS {
            return Ok(ChunkList::Inline(self.refs));
        }
        self.spill_refs().await?;
        let Some(mut spill) = self.spill.take() else {
            return Err(RepositoryError::Internal("a list vanished".into()));
        };
        spill.cut(&self.flow, true).await?;
        // The list's own chunks: a few thousand for a terabyte, so they fit in memory; listed again if they are many.
        let mut above = RefList::new(self.flow);
        above.refs = spill.refs;
        Ok(ChunkList::Stored {
            count: spill.count,
            list: Box::new(Content {
                bytes: spill.bytes,
                chunks: Box::pin(above.finish()).await?,
            }),
        })
    }
}

impl Spill {
    async fn cut(&mut self, flow: &Arc<Flow>, to_the_end: bool) -> Result<(), RepositoryError> {
        let cutter = &flow.fine;
        let mut lists = flow.lists.lock().await;
        let packer = lists.get_or_insert_with(|| Packer::new(flow.clone(), Domain::Meta, Cut::Fine));
        while self.pending.len() >= cutter.window() || (to_the_end && !self.pending.is_empty()) {
            let window = self.pending.len().min(cutter.window());
            let length = cutter.next(self.pending.get(..window).unwrap_or_default());
            self.refs
                .push(packer.keep(self.pending.get(..length).unwrap_or_default()).await?);
            self.pending.advance(length);
        }
        Ok(())
    }
}
