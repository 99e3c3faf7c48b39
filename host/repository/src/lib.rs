//! The room that keeps artifacts: chunked, compressed, encrypted, signed, and readable without us.
//!
//! What this room is for: it takes bytes through [`essrun_artifact::Lane`]s and gives them back through
//! [`essrun_artifact::ContentReader`]s; between the two lies a repository in a [`essrun_store::Store`]. The format is
//! written down in docs/FORMAT.md, and what it keeps from whom in docs/THREATS.md.
//!
//! What it promises: a backup exists when its one manifest object exists, and then everything it needs exists too.
//! Nobody without an identity reads contents, the writer included. Every byte handed out was checked against the name
//! of its chunk. Deletion, rollback and forgery are seen. Memory stays bounded whatever the repository's size.
//!
//! What it must never do: rewrite an object, delete what a backup needs, trust anything it reads from a store, or
//! know what a table or a file is.
#![deny(unsafe_code)]
// Errors say what, where and what to do; they are rare, and being large costs nothing that counts.
#![allow(clippy::result_large_err)]

mod annotation;
mod check;
mod chunk_index;
mod clock;
mod core;
mod cutter;
mod envelope;
mod error;
mod forget;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod hostile;
mod index_object;
pub mod keys;
mod known;
mod makers;
mod manifest;
mod names;
mod overview;
mod prune;
mod read;
mod repair;
mod repository;
pub mod retention;
mod revision;
mod signed;
mod state;
mod sync;
mod types;
mod write;

pub use error::RepositoryError;
pub use keys::{Identity, NewIdentity, Recipients, WriterId, WriterKey, WriterPublic};
pub use makers::{Makers, PlainArtifacts, Visit};
pub use manifest::Damaged;
pub use names::SHORT_LIVED;
pub use prune::{PrunePlan, PruneReport};
pub use read::{Chunks, OpenBackup};
pub use repair::{BackupRepair, RepairReport};
pub use repository::Repository;
pub use types::{
    Access, Annotation, BackupId, BackupStart, BackupStats, BackupSummary, Body, CheckMode, CheckReport, Finding,
    FindingKind, Options,
};
pub use write::{Backup, PackToRewrite, Rewrite, RewriteReport};
