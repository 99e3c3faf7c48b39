//! SQLite databases: looked at, copied, restored.
//!
//! What this room promises:
//! - A copy is made by SQLite itself (the online backup), never by copying the file: a file copied under a writer, or
//!   without its `-wal`, is not the database. The copy is a whole database, byte for byte its pages: `user_version`,
//!   `application_id`, `sqlite_sequence`, rowids and all. (A `.dump` loses the first of these, and Sydent then destroys
//!   its own tables.)
//! - Looks are read-only, bounded in rows, bytes and time, and go through an authorizer that knows only reading.
//! - A restore is staged, checked by SQLite, then renamed into place; what was there is kept under a dated name with its
//!   `-wal` and `-journal`, since one of those left beside another database destroys it.
//!
//! What it must never do: write to a live database, open one for writing, attach a second one, load an extension.
#![deny(unsafe_code)]

mod backup;
mod error;
mod guard;
mod look;
mod restore;

pub use backup::{BackupReport, Copy, SqliteMeta, backup};
pub use error::SqliteError;
pub use look::{Cell, DatabaseInfo, Limits, Rows, Sqlite, TableInfo, TableKind};
pub use restore::{Owner, RestoreOptions, Staged, Swapped, list_leftovers, plan as plan_restore, restore};

/// The `kind` of the artifact an SQLite database becomes.
pub const KIND: &str = "sqlite";
