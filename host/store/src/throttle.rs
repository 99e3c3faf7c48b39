//! Slowing down: a decorator that keeps uploads and downloads each under a number of bytes per second.
//!
//! An object goes out as fast as the line lets it and the pause comes with it, so the rate holds over a few objects, not
//! within one.
//!
//! A debt is kept rather than a bucket: whoever transfers pays its bytes onto one clock and sleeps until the clock is
//! due. Many callers at once therefore share the rate and none can starve the others for longer than its own object.
//!
//! Small objects pay and do not wait: a lease that is announced, or a listing's few bytes, must not stand in a line of
//! packs until it is too late. What they took is made up for by the next large one.

use crate::{ObjectInfo, ObjectName, Outcome, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Whatever is smaller goes at once.
const SMALL: usize = 64 << 10;

/// One direction.
#[derive(Debug)]
struct Clock {
    bytes_per_second: u64,
    due: Mutex<Instant>,
}

impl Clock {
    /// A rate of zero is taken as one byte a second rather than as "never".
    fn new(bytes_per_second: u64) -> Self {
        Clock {
            bytes_per_second: bytes_per_second.max(1),
            due: Mutex::new(Instant::now()),
        }
    }

    async fn pay(&self, bytes: usize) {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            *due = (*due).max(Instant::now()) + cost;
            *due
        };
        if bytes >= SMALL {
            tokio::time::sleep_until(until).await;
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Throttled {
    inner: Arc<dyn Store>,
    up: Option<Clock>,
    down: Option<Clock>,
}

impl Throttled {
    /// Bytes per second; `None` is as fast as it goes.
    pub fn new(inner: Arc<dyn Store>, up: Option<u64>, down: Option<u64>) -> Self {
        Throttled {
            inner,
            up: up.map(Clock::new),
            down: down.map(Clock::new),
        }
    }
}

async fn pay(clock: &Option<Clock>, bytes: usize) {
    if let Some(clock) = clock {
        clock.pay(bytes).await;
    }
}

#[async_trait]
impl Store for Throttled {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        pay(&self.up, bytes.len()).await;
        self.inner.put_new(name, bytes).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let got = self.inner.get(name).await?;
        pay(&self.down, got.len()).await;
        Ok(got)
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let got = self.inner.get_range(name, range).await?;
        pay(&self.down, got.len()).await;
        Ok(got)
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.inner.head(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }
}
