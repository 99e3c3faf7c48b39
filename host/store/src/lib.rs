//! Where a repository's objects lie: a local directory or anything that speaks S3.
//!
//! What this room is for: one small contract, [`Store`], that the repository is written against. An object is bytes
//! under a checked name ([`ObjectName`]), written once and never rewritten; whoever comes second learns so
//! ([`Outcome::AlreadyThere`]). That create-if-absent is the only thing a commit needs from a store.
//!
//! What it promises: when [`Store::put_new`] returns, the object is whole and durable (files and their directories
//! are synced to disk), or an error says which object, why, and what to do. No half object is ever visible.
//!
//! What it must never do: interpret objects, overwrite one, follow a name out of its root, or hide a failure. Trying
//! again, slowing down, doing without conditional writes and failing on purpose are decorators ([`Retrying`],
//! [`Throttled`], [`Elected`], [`Faulty`]), not flags.
#![deny(unsafe_code)]
// Errors say what, where and what to do; they are rare, and being large costs nothing that counts.
#![allow(clippy::result_large_err)]

mod elected;
mod error;
mod faulty;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod inspect;
mod leftovers;
mod name;
mod objects;
mod open;
mod remote;
mod retry;
pub mod s3;
mod throttle;

pub use elected::Elected;
pub use error::{Cause, StoreError};
pub use faulty::{Fault, FaultPlan, Faulty, Op};
pub use inspect::{Ability, Grade, inspect};
pub use leftovers::{Leftover, leftovers};
pub use name::{NameError, ObjectName};
pub use objects::Objects;
pub use open::{Location, OpenOptions, open, open_with};
pub use remote::{Creation, Remote};
pub use retry::{RetryPolicy, Retrying};
pub use throttle::Throttled;

use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

/// What came of a create-if-absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The object did not exist and does now, durably.
    Created,
    /// An object of that name exists. Nothing was written; whether it holds the same bytes is for the caller to see.
    AlreadyThere,
}

/// What a listing or a look at an object tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    pub name: ObjectName,
    pub bytes: u64,
    /// When it was written by the store's own clock, in whole seconds since 1970.
    pub modified_unix_seconds: i64,
}

/// A place for objects. Object-safe; shared as `Arc<dyn Store>`.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Where this is, for people: a path or a URL without secrets.
    fn describe(&self) -> String;

    /// Writes an object that does not exist yet; atomic and durable.
    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError>;

    /// Reads a whole object. A missing one is an error with [`Cause::Missing`].
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError>;

    /// Reads part of an object; the answer has exactly the range's length, or it is an error.
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Looks at an object without reading it; `None` when there is none.
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError>;

    /// All objects whose name begins with the segments of `prefix` (`""` for all), sorted by name.
    ///
    /// Entries whose names are not checked object names (an editor's leftovers, say) are left out.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError>;

    /// Removes an object. One that is not there is no error: what was wanted is so.
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;
}
