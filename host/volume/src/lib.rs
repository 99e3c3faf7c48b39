//! File trees: looked at, archived, restored.
//!
//! A *volume* is one directory tree granted to a component: Synapse's media store, a bot's key directory, a
//! directory of configuration. This room walks it, turns it into one artifact and puts it back.
//!
//! What it promises:
//! - **Confined.** Everything below a volume's root is reached from the root's descriptor, one component after the
//!   other, no symbolic link followed, the root's device never left. A tree that changes under the walk can make
//!   entries vanish; it cannot lead the walk elsewhere. The same holds for restoring a hostile listing.
//! - **Nothing is skipped in silence.** What could not be read, what vanished, what changed while it was read, what is
//!   no file: each is counted and named in the report.
//! - **The live tree is untouched before the swap.** A restore fills a staging directory; only [`Staged::swap`] moves
//!   it into place, and what stood there is kept under a dated name.
//! - **Bounded memory.** Nothing grows with the tree but the names of one directory at a time (of the widest
//!   directory) and, up to a bound, the hard-linked files whose other names have not been met yet.
//!
//! What it must never do: follow a symbolic link, write outside the staging directory or the destination, read a
//! file through a path that was checked earlier, delete a tree that was live.
//!
//! The looks ([`Volume`]) are blocking calls: run them on a blocking thread. [`archive`] and [`restore`] are async and
//! bring their own threads.
#![deny(unsafe_code)]

pub mod archive;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod listing;
mod path;
mod pattern;
pub mod restore;
mod sys;
mod volume;
mod walk;

pub use archive::{Archive, ArchiveReport, ArchiveRequest, Estimate, Noted, OnUnreadable, PathRule, Watch};
pub use error::VolumeError;
pub use listing::{Entries, Kind, ListedEntry, Stamp, VolumeMeta};
pub use path::TreePath;
pub use pattern::{Patterns, Within};
pub use restore::{Difference, Finding, Leftover, LeftoverState, Owners, RestoreOptions, RestorePlan, Staged, Swapped};
pub use volume::{Entry, EntryKind, FileDigest, Volume, Walk};

/// The `kind` of the artifact a volume becomes.
pub const KIND: &str = "volume";
