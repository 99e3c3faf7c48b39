//! Lanes that end in order even where the component that used them failed.
//!
//! The repository refuses to commit when a lane was dropped half-way: what was in it may be named by others, since equal
//! chunks are stored once. So a component that fails in the middle of a table must not simply drop its lanes, or one
//! component's failure (a row filter that divides by zero is enough) would cost the backup of all. Here every call runs
//! to its end in a task of its own, also when the caller gave up, and a lane that is dropped is cut and closed in the
//! background; what was cut is named by no artifact. A lane in which the repository itself failed is still dropped as it
//! is: then nothing may be committed.

use async_trait::async_trait;
use bytes::Bytes;
use essrun_artifact::{ArtifactRecord, BackupWriter, Content, KeepError, Lane, LaneSpec};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

type Shared = Arc<tokio::sync::Mutex<Option<Box<dyn Lane>>>>;
type Ending = Arc<Mutex<Vec<JoinHandle<Result<(), KeepError>>>>>;

/// A backup whose lanes always end.
pub struct Orderly {
    inner: Arc<dyn BackupWriter>,
    ending: Ending,
    runtime: Handle,
}

impl Orderly {
    /// Must be called within the runtime.
    pub fn new(inner: Arc<dyn BackupWriter>) -> Orderly {
        Orderly {
            inner,
            ending: Ending::default(),
            runtime: Handle::current(),
        }
    }

    /// Waits for the lanes that were dropped.
    pub async fn ended(&self) -> Result<(), KeepError> {
        loop {
            let next = self.ending.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match next {
                Some(ending) => finished(ending.await)?,
                None => return Ok(()),
            }
        }
    }
}

fn finished<T>(joined: Result<Result<T, KeepError>, tokio::task::JoinError>) -> Result<T, KeepError> {
    joined.map_err(|e| KeepError::new("lane", "its task died").caused_by(e))?
}

fn gone() -> KeepError {
    KeepError::new("lane", "the repository failed in it before")
}

#[async_trait]
impl BackupWriter for Orderly {
    fn lane(&self, spec: LaneSpec) -> Result<Box<dyn Lane>, KeepError> {
        Ok(Box::new(OrderlyLane {
            lane: Arc::new(tokio::sync::Mutex::new(Some(self.inner.lane(spec)?))),
            ending: self.ending.clone(),
            runtime: self.runtime.clone(),
            closed: false,
        }))
    }

    async fn adopt(&self, content: &Content) -> Result<bool, KeepError> {
        self.inner.adopt(content).await
    }

    async fn record(&self, artifact: ArtifactRecord) -> Result<(), KeepError> {
        self.inner.record(artifact).await
    }
}

struct OrderlyLane {
    lane: Shared,
    ending: Ending,
    runtime: Handle,
    closed: bool,
}

#[async_trait]
impl Lane for OrderlyLane {
    async fn write(&mut self, bytes: Bytes) -> Result<(), KeepError> {
        let shared = self.lane.clone();
        let call = self.runtime.spawn(async move {
            let mut lane = shared.lock().await;
            let written = lane.as_mut().ok_or_else(gone)?.write(bytes).await;
            if written.is_err() {
                *lane = None;
            }
            written
        });
        finished(call.await)
    }

    async fn cut(&mut self) -> Result<Content, KeepError> {
        let shared = self.lane.clone();
        let call = self.runtime.spawn(async move {
            let mut lane = shared.lock().await;
            let content = lane.as_mut().ok_or_else(gone)?.cut().await;
            if content.is_err() {
                *lane = None;
            }
            content
        });
        finished(call.await)
    }

    async fn close(mut self: Box<Self>) -> Result<(), KeepError> {
        self.closed = true;
        let shared = self.lane.clone();
        let call = self.runtime.spawn(async move {
            let lane = shared.lock().await.take();
            lane.ok_or_else(gone)?.close().await
        });
        finished(call.await)
    }
}

impl Drop for OrderlyLane {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let shared = self.lane.clone();
        let ending = self.runtime.spawn(async move {
            // Behind a call that is still running.
            let Some(mut lane) = shared.lock().await.take() else {
                return Ok(());
            };
            lane.cut().await?;
            lane.close().await
        });
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).push(ending);
    }
}
