//! PostgreSQL: a consistent instant, rows out, a database back.
//!
//! What this room is for: reading whole databases at one instant, in parallel, into artifacts; making them again as new
//! databases; swapping those in; and lending components bounded read-only looks. It writes artifacts through
//! [`essrun_artifact`]'s traits and knows nothing of repositories, pipelines or guests.
//!
//! What it must never do: print a connection string or password; write to a live database; call something done whose
//! end it has not seen; stand in the way of a migration.
#![deny(unsafe_code)]

pub mod connection;
pub mod dump;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod inspect;
mod names;
pub mod respond;
pub mod restore;
pub mod snapshot;
mod sqltext;

pub use connection::{Connection, Session};
pub use error::{Error, Result};
pub use inspect::{Cell, DatabaseInfo, Inspector, QueryLimits, RoleDangers, Rows, TableInfo, TableKind};
pub use names::{TableName, quote_ident};
pub use snapshot::{Consistency, ConsistencyRequest, FenceTables, Reached, Snapshot, SnapshotGroup};
