//! Trying again: a decorator that repeats what failed in passing, with growing, jittered pauses.
//!
//! Every operation of [`Store`] may be repeated. A repeated create that answers "already there" may be our own first
//! attempt whose answer was lost, so the bytes are compared before it is reported as somebody else's.

use crate::{ObjectInfo, ObjectName, Outcome, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How often and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts in all, the first included.
    pub attempts: u32,
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    /// Bridges about a minute, never less than 40 seconds: a store that is started anew must not end a run of hours.
    fn default() -> Self {
        RetryPolicy {
            attempts: 11,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(20),
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Retrying {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
}

impl Retrying {
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy) -> Self {
        Retrying { inner, policy }
    }

    /// Sleeps before attempt `next` (counted from 2), or gives the error back when there is none left.
    async fn pause(&self, attempt: u32, error: StoreError) -> Result<(), StoreError> {
        if !error.is_transient() || attempt >= self.policy.attempts {
            return Err(error);
        }
        let doubled = self
            .policy
            .first_pause
            .saturating_mul(1u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
        let ceiling = doubled.min(self.policy.longest_pause);
        let jittered = ceiling.mul_f64(rand::random_range(0.5..=1.0));
        tracing::warn!(attempt, pause_ms = jittered.as_millis() as u64, %error, "trying again");
        tokio::time::sleep(jittered).await;
        Ok(())
    }
}

/// Repeats `$call` until it succeeds or the policy is spent.
macro_rules! again {
    ($self:ident, $call:expr) => {{
        let mut attempt = 1;
        loop {
            match $call.await {
                Ok(done) => break Ok(done),
                Err(error) => $self.pause(attempt, error).await?,
            }
            attempt += 1;
        }
    }};
}

#[async_trait]
impl Store for Retrying {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        let mut attempt = 1;
        loop {
            match self.inner.put_new(name, bytes.clone()).await {
                Ok(Outcome::AlreadyThere) if attempt > 1 => {
                    let there = self.get(name).await?;
                    return Ok(if there == bytes {
                        Outcome::Created
                    } else {
                        Outcome::AlreadyThere
                    });
                }
                Ok(outcome) => return Ok(outcome),
                Err(error) => self.pause(attempt, error).await?,
            }
            attempt += 1;
        }
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        again!(self, self.inner.get(name))
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        again!(self, self.inner.get_range(name, range.clone()))
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        again!(self, self.inner.head(name))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        again!(self, self.inner.list(prefix))
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        again!(self, self.inner.delete(name))
    }
}
