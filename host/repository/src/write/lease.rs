//! Leases: a running backup says that it runs, so that prune does not take from under it what it relies on.
//!
//! A lease is a small object, announced anew every few minutes under the next number. Whoever prunes first makes its
//! plan visible and then looks for leases; a backup first announces itself and then looks for plans: one of the two
//! sees the other. A backup that could not renew in time does not commit.
//!
//! Whatever ends, ends its lease, so that nobody waits for it; also what fails. Only where it is not known whether the
//! last write took place is the lease left to run out: what was written then still needs what it names.

use crate::clock::now;
use crate::core::Core;
use crate::signed::{self, Kind};
use crate::{BackupId, RepositoryError, names};
use essrun_store::ObjectName;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseClaim {
    pub repository: String,
    pub backup: BackupId,
    /// By this host's clock, as are all times here.
    pub began_at: i64,
    pub announced_at: i64,
    pub valid_seconds: u64,
}

/// When something was, by two clocks: one that never goes back, and one that goes on while the machine is suspended.
#[derive(Clone, Copy, Debug)]
struct Moment {
    steady: Instant,
    wall: i64,
}

impl Moment {
    fn now() -> Self {
        Moment {
            steady: Instant::now(),
            wall: now(),
        }
    }

    /// How long ago it was, by the clock that says more.
    fn age(&self) -> Duration {
        let wall = u64::try_from(now().saturating_sub(self.wall)).unwrap_or(0);
        self.steady.elapsed().max(Duration::from_secs(wall))
    }
}

#[derive(Debug)]
struct State {
    announced: Moment,
    last: ObjectName,
    number: u64,
    /// It ran out once. Announcing it anew does not undo that: a prune may have gone on meanwhile.
    lapsed: bool,
    /// What needs the lease is being written, or may have been.
    committing: bool,
    ended: bool,
}

/// The lease of one running backup; ends with it.
#[derive(Debug)]
pub(crate) struct Lease {
    core: Arc<Core>,
    backup: BackupId,
    state: Arc<Mutex<State>>,
    renewing: tokio::task::JoinHandle<()>,
}

async fn announce(core: &Core, backup: &BackupId, began_at: i64, number: u64) -> Result<ObjectName, RepositoryError> {
    let claim = LeaseClaim {
        repository: core.config.id.clone(),
        backup: backup.clone(),
        began_at,
        announced_at: now(),
        valid_seconds: core.options.lease_valid.as_secs(),
    };
    let name = names::lease(backup, number)?;
    core.store
        .put_new(&name, signed::write(Kind::Lease, &claim, b"", core.writer()?)?)
        .await?;
    Ok(name)
}

impl Lease {
    pub async fn begin(core: Arc<Core>, backup: BackupId) -> Result<Self, RepositoryError> {
        // The clock starts before the object is written: the lease must never look longer to us than to others.
        let announced = Moment::now();
        let began_at = announced.wall;
        let last = announce(&core, &backup, began_at, 1).await?;
        let state = Arc::new(Mutex::new(State {
            announced,
            last,
            number: 1,
            lapsed: false,
            committing: false,
            ended: false,
        }));
        let renewing = tokio::spawn(renew(core.clone(), backup.clone(), began_at, state.clone()));
        Ok(Lease {
            core,
            backup,
            state,
            renewing,
        })
    }

    /// Refused when the lease ran out: prune may have gone on without us.
    pub fn still_held(&self) -> Result<(), RepositoryError> {
        let (age, lapsed) = {
            let state = self.state();
            (state.announced.age(), state.lapsed)
        };
        if !lapsed && age < self.core.options.lease_valid / 2 {
            return Ok(());
        }
        if lapsed {
            return Err(RepositoryError::refused(
                format!(
                    "the announcement of backup {} ran out, and a prune may have gone on without it",
                    self.backup
                ),
                "run again; finished packs are reused",
            ));
        }
        Err(RepositoryError::refused(
            format!(
                "backup {} could not announce itself for {} minutes",
                self.backup,
                age.as_secs() / 60
            ),
            "run again; finished packs are reused",
        ))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What needs the lease is written from here on. Until [`Lease::committed`] it is not known whether it was.
    pub fn commits(&self) {
        self.state().committing = true;
    }

    /// It was written, or it certainly was not.
    pub fn committed(&self) {
        self.state().committing = false;
    }

    /// Ends the lease, unless it is not known whether what needs it was written.
    pub async fn close(&self) {
        let (committing, ended) = {
            let state = self.state();
            (state.committing, state.ended)
        };
        if committing {
            self.renewing.abort();
        } else if !ended {
            self.end().await;
        }
    }

    /// Takes the announcement back. Failing to is harmless: it runs out.
    pub async fn end(&self) {
        self.renewing.abort();
        let last = {
            let mut state = self.state();
            state.ended = true;
            state.last.clone()
        };
        take_back(&self.core, &last).await;
    }
}

async fn take_back(core: &Core, lease: &ObjectName) {
    if let Err(e) = core.store.delete(lease).await {
        tracing::debug!(error = %e, "a lease was left to run out");
    }
}

/// What fails on its way is dropped: that ends its lease, too, as long as there is something to run it.
impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
        let state = self.state();
        if state.ended || state.committing {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (core, last) = (self.core.clone(), state.last.clone());
            runtime.spawn(async move { take_back(&core, &last).await });
        }
    }
}

async fn renew(core: Arc<Core>, backup: BackupId, began_at: i64, state: Arc<Mutex<State>>) {
    loop {
        tokio::time::sleep(core.options.lease_refresh).await;
        let announced = Moment::now();
        let number = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.number += 1;
            state.number
        };
        match announce(&core, &backup, began_at, number).await {
            Ok(name) => {
                let old = {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    // The one before must not have run out when this one was there.
                    state.lapsed |= state.announced.age() >= core.options.lease_valid;
                    state.announced = announced;
                    std::mem::replace(&mut state.last, name)
                };
                take_back(&core, &old).await;
            }
            Err(e) => tracing::warn!(error = %e, "the backup could not announce that it still runs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspended_machine_does_not_stop_the_clock() {
        let here = Moment::now();
        assert!(here.age() < Duration::from_secs(60));
        // The steady clock stood still for an hour; the other did not.
        let suspended = Moment {
            wall: here.wall - 3600,
            ..here
        };
        assert!(suspended.age() >= Duration::from_secs(3600));
        // A clock that was set back makes nothing younger.
        let set_back = Moment {
            wall: here.wall + 3600,
            ..here
        };
        assert!(set_back.age() < Duration::from_secs(60));
    }
}
