//! Create-if-absent on a store that cannot do it: writers elect who may create a name, and the others see who won.
//!
//! The inner store is *blind*: its create overwrites. So nobody creates a name before being alone with it:
//!
//! 1. If the object is there, somebody was first.
//! 2. Write a claim of an unheard-of name below `claims/<name's hash>/`, then list that place. (The hash, because some
//!    stores cannot hold names much longer than the repository's own.)
//! 3. Somebody else's live claim is there: the smallest claim waits, all others withdraw theirs and begin again.
//! 4. Alone: look once more whether the object is there; if not, write it, and withdraw the claim.
//!
//! Of two writers, the one whose claim was written later finds the other's claim in its listing, or, if that is
//! withdrawn already, the finished object in step 4. This needs a store whose listing shows what was written before
//! it was asked for, which every S3 promises by now; one that does not show our own claim is refused.
//!
//! A writer that dies leaves its claim. A claim therefore says for how many seconds it counts, by the store's own clock;
//! its writer must be done with the object within half of that, by its own. The other half is for a request that is
//! still on its way when its sender has given it up. Objects of up to a megabyte are read back before the claim goes.
//!
//! It costs four small requests for each object, and lasting failure to write delays the next attempt by minutes. Use
//! it only where the store leaves no choice.

use crate::{Cause, ObjectInfo, ObjectName, Outcome, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where claims lie.
pub(crate) const CLAIMS: &str = "claims";
/// A claim counts for so long, and longer for a large object.
const CLAIM_SECONDS: u64 = 240;
/// A slower line than this, in bytes per second, cannot be used this way.
const SLOWEST: u64 = 64 << 10;
/// Read back after writing.
const READ_BACK: usize = 1 << 20;
/// How often one tries to be alone.
const TRIES: u32 = 500;

/// See the module's page.
#[derive(Debug)]
pub struct Elected {
    blind: Arc<dyn Store>,
}

/// What a look at the claims told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Alone,
    First,
    Behind,
}

impl Elected {
    /// `blind` is a store whose [`Store::put_new`] overwrites and always says `Created`.
    pub fn new(blind: Arc<dyn Store>) -> Self {
        Elected { blind }
    }

    fn error(&self, name: &ObjectName, cause: Cause, why: &str) -> StoreError {
        StoreError::new("write", name.as_str(), self.blind.describe(), cause, why)
    }

    fn claim_name(&self, name: &ObjectName, seconds: u64) -> Result<ObjectName, StoreError> {
        let random = hex::encode(rand::random::<[u8; 8]>());
        ObjectName::new(format!("{}/{random}.{seconds}", claims_for(name)))
            .map_err(|e| self.error(name, Cause::Other, &e.to_string()))
    }

    async fn standing(&self, name: &ObjectName, mine: &ObjectName) -> Result<Option<Standing>, StoreError> {
        let claims = self.blind.list(&claims_for(name)).await?;
        let Some((standing, dead)) = standing_among(&claims, mine) else {
            return Ok(None);
        };
        for old in dead {
            // Whoever sees it may take it away; failing to changes nothing.
            if let Err(e) = self.blind.delete(old).await {
                tracing::debug!(error = %e, "an old claim stays");
            }
        }
        Ok(Some(standing))
    }

    async fn withdraw(&self, claim: &ObjectName) {
        if let Err(e) = self.blind.delete(claim).await {
            tracing::warn!(error = %e, "a claim could not be withdrawn; until it runs out nobody can create that object");
        }
    }

    /// Waits until nobody else wants to create this name. `None`: give way and begin again.
    async fn alone(
        &self,
        name: &ObjectName,
        claim: &ObjectName,
        begun: Instant,
        patience: Duration,
    ) -> Result<Option<()>, StoreError> {
        loop {
            match self.standing(name, claim).await? {
                Some(Standing::Alone) => return Ok(Some(())),
                Some(Standing::First) if begun.elapsed() < patience => pause(100).await,
                Some(Standing::First | Standing::Behind) => return Ok(None),
                None => {
                    let why = "its listing does not show what was written a moment ago, so that several writers could \
                               lose each other's objects";
                    return Err(StoreError {
                        hint: Some("use a store with conditional writes, or whose listing is consistent"),
                        ..self.error(name, Cause::Other, why)
                    });
                }
            }
        }
    }
}

/// Where the claims to a name lie.
fn claims_for(name: &ObjectName) -> String {
    let hash: [u8; 32] = Sha256::digest(name.as_str()).into();
    format!("{CLAIMS}/{}", hex::encode(hash.first_chunk::<16>().unwrap_or(&[0; 16])))
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(rand::random_range(
        milliseconds / 2..=milliseconds,
    )))
    .await;
}

/// What a listing of claims says of mine, and which of them were left by writers that died; `None`: it does not show mine.
pub(crate) fn standing_among<'a>(
    claims: &'a [ObjectInfo],
    mine: &ObjectName,
) -> Option<(Standing, Vec<&'a ObjectName>)> {
    let own = claims.iter().find(|c| c.name == *mine)?;
    let (mut dead, mut others, mut first) = (Vec::new(), 0, true);
    for other in claims.iter().filter(|c| c.name != *mine) {
        if counts_until(other) < own.modified_unix_seconds {
            dead.push(&other.name);
            continue;
        }
        others += 1;
        first &= *mine < other.name;
    }
    let standing = match others {
        0 => Standing::Alone,
        _ if first => Standing::First,
        _ => Standing::Behind,
    };
    Some((standing, dead))
}

/// The last second a claim counts, by the store's clock, with a second for rounding. One whose name says nothing that
/// can be understood counts for a day.
pub(crate) fn counts_until(claim: &ObjectInfo) -> i64 {
    let said = claim
        .name
        .as_str()
        .rsplit_once('.')
        .and_then(|(_, s)| s.parse::<u32>().ok());
    let seconds = said.filter(|s| *s <= 86_400).unwrap_or(86_400);
    claim.modified_unix_seconds.saturating_add(i64::from(seconds) + 1)
}

#[async_trait]
impl Store for Elected {
    fn describe(&self) -> String {
        self.blind.describe()
    }

    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        let seconds = CLAIM_SECONDS + 2 * (bytes.len() as u64 / SLOWEST);
        let half = Duration::from_secs(seconds / 2);
        for attempt in 0..TRIES {
            if self.blind.head(name).await?.is_some() {
                return Ok(Outcome::AlreadyThere);
            }
            // The clock starts before the claim is written: it must never look longer to us than to others.
            let begun = Instant::now();
            let claim = self.claim_name(name, seconds)?;
            self.blind.put_new(&claim, Bytes::new()).await?;
            let alone = self.alone(name, &claim, begun, half / 4).await;
            if !matches!(alone, Ok(Some(()))) {
                self.withdraw(&claim).await;
                alone?;
                pause(200 * u64::from(attempt.min(15) + 1)).await;
                continue;
            }
            match self.blind.head(name).await {
                Ok(None) => {}
                seen => {
                    self.withdraw(&claim).await;
                    return seen.map(|_| Outcome::AlreadyThere);
                }
            }
            let left = half.saturating_sub(begun.elapsed());
            // From here on a failure leaves the claim: the request may still be on its way.
            let put = tokio::time::timeout(left, self.blind.put_new(name, bytes.clone())).await;
            put.map_err(|_| self.error(name, Cause::Transient, "it took too long to write"))??;
            let outcome = match bytes.len() <= READ_BACK && self.blind.get(name).await? != bytes {
                true => Outcome::AlreadyThere,
                false => Outcome::Created,
            };
            self.withdraw(&claim).await;
            return Ok(outcome);
        }
        Err(self.error(
            name,
            Cause::Transient,
            "other writers claimed that name again and again",
        ))
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.blind.get(name).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.blind.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.blind.head(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.blind.list(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.blind.delete(name).await
    }
}
