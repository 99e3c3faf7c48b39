//! Failing on purpose: a decorator for tests that breaks a store in the ways real ones break, the same way each time.
//!
//! Two ways to say when: a chance per call drawn from a seed, or a count after which the store is dead for good (the
//! power cut at an exact step). What breaks is a [`Fault`]; "acted but said it failed" is the one people forget.

use crate::{Cause, ObjectInfo, ObjectName, Outcome, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The operations of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Put,
    Get,
    GetRange,
    Head,
    List,
    Delete,
}

/// How a call breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and the call fails in passing.
    Refused,
    /// It is done, and the call says that it failed in passing.
    DoneButFailed,
    /// Nothing is done, and no room is the reason.
    Full,
    /// A read answers with one bit flipped; other calls are refused.
    BitFlip,
    /// It is done, after so long.
    Slow(Duration),
}

/// When and how to break.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    pub seed: u64,
    /// The chance of each call to break, 0.0 to 1.0.
    pub chance: f64,
    /// Drawn from evenly.
    pub faults: Vec<Fault>,
    /// Calls that may break; empty means all.
    pub only: Vec<Op>,
    /// After this many changing calls (put and delete) every call fails, as if the machine were gone.
    pub dead_after_changes: Option<u64>,
}

impl FaultPlan {
    /// A store that works until it has changed `changes` objects, and then is dead.
    pub fn dead_after(changes: u64) -> Self {
        FaultPlan {
            seed: 0,
            chance: 0.0,
            faults: Vec::new(),
            only: Vec::new(),
            dead_after_changes: Some(changes),
        }
    }

    /// A store whose calls fail in passing with this chance.
    pub fn flaky(seed: u64, chance: f64) -> Self {
        FaultPlan {
            seed,
            chance,
            faults: vec![Fault::Refused, Fault::DoneButFailed],
            only: Vec::new(),
            dead_after_changes: None,
        }
    }
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    changes: u64,
    broken: u64,
    put_bytes: u64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    plan: FaultPlan,
    state: Mutex<State>,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>, plan: FaultPlan) -> Self {
        let rng = StdRng::seed_from_u64(plan.seed);
        Faulty {
            inner,
            plan,
            state: Mutex::new(State {
                rng,
                changes: 0,
                broken: 0,
                put_bytes: 0,
            }),
        }
    }

    /// How many calls were broken so far: a test that meant to break some can see that it did.
    pub fn broken_calls(&self) -> u64 {
        self.state().broken
    }

    /// How many changing calls were let through.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Bytes of objects created.
    pub fn put_bytes(&self) -> u64 {
        self.state().put_bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How this call breaks, once what only slows it down is over.
    async fn fails(&self, op: Op) -> Option<Fault> {
        match self.draw(op) {
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                if matches!(op, Op::Put | Op::Delete) {
                    self.state().changes += 1;
                }
                None
            }
            drawn => drawn,
        }
    }

    fn draw(&self, op: Op) -> Option<Fault> {
        let mut state = self.state();
        let changing = matches!(op, Op::Put | Op::Delete);
        if let Some(limit) = self.plan.dead_after_changes
            && (state.changes >= limit)
        {
            state.broken += 1;
            return Some(Fault::Full);
        }
        let may = self.plan.only.is_empty() || self.plan.only.contains(&op);
        if may && self.plan.chance > 0.0 && state.rng.random_bool(self.plan.chance.clamp(0.0, 1.0)) {
            let pick = if self.plan.faults.is_empty() {
                Fault::Refused
            } else {
                let at = state.rng.random_range(0..self.plan.faults.len());
                self.plan.faults.get(at).copied().unwrap_or(Fault::Refused)
            };
            state.broken += 1;
            return Some(pick);
        }
        if changing {
            state.changes += 1;
        }
        None
    }

    fn error(&self, action: &'static str, object: &str, fault: Fault) -> StoreError {
        let cause = if fault == Fault::Full {
            Cause::Full
        } else {
            Cause::Transient
        };
        let why = format!("broken on purpose ({fault:?})");
        StoreError::new(action, object, self.describe(), cause, why)
    }

    fn flip(&self, bytes: Bytes) -> Bytes {
        let mut copy = bytes.to_vec();
        let at = if copy.is_empty() {
            0
        } else {
            self.state().rng.random_range(0..copy.len())
        };
        if let Some(byte) = copy.get_mut(at) {
            *byte ^= 0x10;
        }
        Bytes::from(copy)
    }
}

#[async_trait]
impl Store for Faulty {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        let length = bytes.len() as u64;
        match self.fails(Op::Put).await {
            None => {
                let outcome = self.inner.put_new(name, bytes).await?;
                if outcome == Outcome::Created {
                    self.state().put_bytes += length;
                }
                Ok(outcome)
            }
            Some(fault) => {
                if fault == Fault::DoneButFailed {
                    self.inner.put_new(name, bytes).await?;
                }
                Err(self.error("write", name.as_str(), fault))
            }
        }
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        match self.fails(Op::Get).await {
            None => self.inner.get(name).await,
            Some(Fault::BitFlip) => Ok(self.flip(self.inner.get(name).await?)),
            Some(fault) => Err(self.error("read", name.as_str(), fault)),
        }
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self.fails(Op::GetRange).await {
            None => self.inner.get_range(name, range).await,
            Some(Fault::BitFlip) => Ok(self.flip(self.inner.get_range(name, range).await?)),
            Some(fault) => Err(self.error("read", name.as_str(), fault)),
        }
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        match self.fails(Op::Head).await {
            None => self.inner.head(name).await,
            Some(fault) => Err(self.error("look at", name.as_str(), fault)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        match self.fails(Op::List).await {
            None => self.inner.list(prefix).await,
            Some(fault) => Err(self.error("list", prefix, fault)),
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        match self.fails(Op::Delete).await {
            None => self.inner.delete(name).await,
            Some(fault) => {
                if fault == Fault::DoneButFailed {
                    self.inner.delete(name).await?;
                }
                Err(self.error("delete", name.as_str(), fault))
            }
        }
    }
}
