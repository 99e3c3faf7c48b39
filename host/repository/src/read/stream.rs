//! Content in order: references are planned into runs, a few runs are fetched ahead, chunks come out checked.

use super::fetch::{Fetcher, Pick, Run};
use crate::RepositoryError;
use crate::index_object::{ENTRY, decode_ref};
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use essrun_artifact::{ChunkList, ChunkRef, Content, ContentReader, KeepError};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Runs fetched ahead of the one being handed out.
const AHEAD: usize = 3;
/// A run ends when its frames hold this much, so what is fetched ahead stays small.
const RUN_PLAIN: u64 = 4 << 20;
/// A run ends when its compressed stretch is this long.
const RUN_SEALED: u64 = 4 << 20;
/// Lists of lists of lists: more levels than any content we could have written.
const DEPTH_LIMIT: u32 = 4;

/// The chunk references of a content, in order, wherever they are.
pub(crate) struct RefReader {
    source: Source,
}

enum Source {
    Inline(std::vec::IntoIter<ChunkRef>),
    Stored {
        list: Box<ContentStream>,
        rest: BytesMut,
        left: u64,
    },
}

impl RefReader {
    pub fn new(fetcher: Arc<Fetcher>, content: &Content) -> Result<Self, RepositoryError> {
        Self::at_depth(fetcher, content, 0)
    }

    fn at_depth(fetcher: Arc<Fetcher>, content: &Content, depth: u32) -> Result<Self, RepositoryError> {
        let bad = |why: &str| RepositoryError::damaged("a list of chunks", why);
        let source = match &content.chunks {
            ChunkList::Inline(refs) => Source::Inline(refs.clone().into_iter()),
            ChunkList::Stored { count, list } => {
                if depth >= DEPTH_LIMIT {
                    return Err(bad("it is nested too deep"));
                }
                if count.checked_mul(ENTRY as u64) != Some(list.bytes) {
                    return Err(bad("its length does not fit the number of chunks"));
                }
                Source::Stored {
                    list: Box::new(ContentStream::new(fetcher, list, depth + 1)?),
                    rest: BytesMut::new(),
                    left: *count,
                }
            }
        };
        Ok(RefReader { source })
    }

    pub async fn next(&mut self) -> Result<Option<ChunkRef>, RepositoryError> {
        match &mut self.source {
            Source::Inline(refs) => Ok(refs.next()),
            Source::Stored { left: 0, list, rest } => {
                // The end is only the end when the list agrees.
                if !rest.is_empty() || Box::pin(list.next_bytes()).await?.is_some() {
                    return Err(RepositoryError::damaged(
                        "a list of chunks",
                        "it is longer than was said",
                    ));
                }
                Ok(None)
            }
            Source::Stored { list, rest, left } => {
                while rest.len() < ENTRY {
                    match Box::pin(list.next_bytes()).await? {
                        Some(more) => rest.extend_from_slice(&more),
                        None => {
                            return Err(RepositoryError::damaged(
                                "a list of chunks",
                                "it is shorter than was said",
                            ));
                        }
                    }
                }
                let entry = rest.get(..ENTRY).and_then(decode_ref);
                rest.advance(ENTRY);
                *left -= 1;
                entry
                    .map(Some)
                    .ok_or_else(|| RepositoryError::damaged("a list of chunks", "an entry is impossible"))
            }
        }
    }
}

/// See the module's page.
pub(crate) struct ContentStream {
    fetcher: Arc<Fetcher>,
    refs: RefReader,
    /// A located chunk that did not fit the last run.
    held: Option<(u32, Pick)>,
    planned_all: bool,
    ahead: VecDeque<JoinHandle<Result<Vec<Bytes>, RepositoryError>>>,
    ready: VecDeque<Bytes>,
    /// Bytes the content still owes.
    left: u64,
}

impl ContentStream {
    pub(crate) fn new(fetcher: Arc<Fetcher>, content: &Content, depth: u32) -> Result<Self, RepositoryError> {
        Ok(ContentStream {
            refs: RefReader::at_depth(fetcher.clone(), content, depth)?,
            fetcher,
            held: None,
            planned_all: false,
            ahead: VecDeque::new(),
            ready: VecDeque::new(),
            left: content.bytes,
        })
    }

    async fn next_pick(&mut self) -> Result<Option<(u32, Pick)>, RepositoryError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        match self.refs.next().await? {
            Some(chunk) => {
                let (pack, place) = self.fetcher.locate(&chunk)?;
                Ok(Some((pack, Pick { id: chunk.id, place })))
            }
            None => {
                self.planned_all = true;
                Ok(None)
            }
        }
    }

    /// The next run, or `None` when all is planned.
    async fn plan(&mut self) -> Result<Option<Run>, RepositoryError> {
        let Some((pack, pick)) = self.next_pick().await? else {
            return Ok(None);
        };
        let frame = pick.place.frame;
        let mut run = Run {
            pack,
            first: frame,
            last: frame,
            picks: vec![pick],
        };
        let begin = self.fetcher.frame(pack, frame)?;
        let mut plain = u64::from(begin.plain);
        while let Some((pack, pick)) = self.next_pick().await? {
            let frame = pick.place.frame;
            let fits = if pack != run.pack || frame < run.first || frame > run.last.saturating_add(2) {
                false
            } else if frame <= run.last {
                true
            } else {
                let end = self.fetcher.frame(pack, frame)?;
                plain += u64::from(end.plain);
                plain <= RUN_PLAIN && end.offset + u64::from(end.compressed) - begin.offset <= RUN_SEALED
            };
            if !fits || run.picks.len() >= 4096 {
                self.held = Some((pack, pick));
                break;
            }
            run.last = run.last.max(frame);
            run.picks.push(pick);
        }
        Ok(Some(run))
    }

    pub(crate) async fn next_bytes(&mut self) -> Result<Option<Bytes>, RepositoryError> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                let length = bytes.len() as u64;
                self.left = self.left.checked_sub(length).ok_or_else(|| {
                    RepositoryError::damaged("a content", "its chunks are longer than the content was said to be")
                })?;
                return Ok(Some(bytes));
            }
            while !self.planned_all && self.ahead.len() < AHEAD {
                if let Some(run) = self.plan().await? {
                    self.ahead.push_back(tokio::spawn(self.fetcher.clone().fetch(run)));
                }
            }
            match self.ahead.pop_front() {
                Some(run) => self.ready.extend(run.await??),
                None if self.left == 0 => return Ok(None),
                None => {
                    return Err(RepositoryError::damaged(
                        "a content",
                        format!("{} bytes of it are in none of its chunks", self.left),
                    ));
                }
            }
        }
    }
}

impl Drop for ContentStream {
    fn drop(&mut self) {
        self.ahead.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl ContentReader for ContentStream {
    async fn next(&mut self) -> Result<Option<Bytes>, KeepError> {
        Ok(self.next_bytes().await?)
    }
}
