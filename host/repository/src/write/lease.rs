//! Leases: a running backup says that it runs, so that prune does not take from under it what it relies on.
//!
//! A lease is a small object, announced anew every few minutes under the next number. Whoever prunes first makes its
//! plan visible and then looks for leases; a backup first announces itself and then looks for plans: one of the two
//! sees the other. A backup that could not renew in time does not commit.

use crate::core::{Core, now};
use crate::signed::{self, Kind};
use crate::{BackupId, RepositoryError, names};
use essrun_store::ObjectName;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseClaim {
    pub repository: String,
    pub backup: BackupId,
    /// By this host's clock, as are all times here.
    pub began_at: i64,
    pub announced_at: i64,
    pub valid_seconds: u64,
}

#[derive(Debug)]
struct State {
    announced: Instant,
    last: ObjectName,
    number: u64,
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
        let (announced, began_at) = (Instant::now(), now());
        let last = announce(&core, &backup, began_at, 1).await?;
        let state = Arc::new(Mutex::new(State {
            announced,
            last,
            number: 1,
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
        let age = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .announced
            .elapsed();
        if age < self.core.options.lease_valid / 2 {
            return Ok(());
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

    /// Takes the announcement back. Failing to is harmless: it runs out.
    pub async fn end(&self) {
        self.renewing.abort();
        let last = self.state.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        if let Err(e) = self.core.store.delete(&last).await {
            tracing::debug!(error = %e, "a lease was left to run out");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn renew(core: Arc<Core>, backup: BackupId, began_at: i64, state: Arc<Mutex<State>>) {
    loop {
        tokio::time::sleep(core.options.lease_refresh).await;
        let announced = Instant::now();
        let number = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.number += 1;
            state.number
        };
        match announce(&core, &backup, began_at, number).await {
            Ok(name) => {
                let old = {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.announced = announced;
                    std::mem::replace(&mut state.last, name)
                };
                if let Err(e) = core.store.delete(&old).await {
                    tracing::debug!(error = %e, "an old lease was left to run out");
                }
            }
            Err(e) => tracing::warn!(error = %e, "the backup could not announce that it still runs"),
        }
    }
}
