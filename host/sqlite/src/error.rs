//! What can go wrong with an SQLite database: what, where, and what to do.

use essrun_artifact::KeepError;
use std::io;

/// Any failure of this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqliteError {
    /// The request itself is wrong: SQL that does not parse, parameters that do not fit, writing.
    #[error("{what}: {why}")]
    Invalid { what: String, why: String },
    /// The file is not there.
    #[error("{path}: not there")]
    Absent { path: String },
    /// A limit was reached; the text names which, and its size.
    #[error("limit reached: {0}")]
    Limit(String),
    /// A query took longer than it may.
    #[error("limit reached: {0}")]
    Slow(String),
    /// SQLite failed.
    #[error("{path}: cannot {action}: {why}; {hint}")]
    Failed {
        path: String,
        action: &'static str,
        why: String,
        hint: &'static str,
    },
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    /// The database does not pass SQLite's own check.
    #[error("{path}: is damaged: {first}; {hint}")]
    Damaged {
        path: String,
        first: String,
        hint: &'static str,
    },
    /// The keeper failed.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The artifact is not one of ours, or of a later format.
    #[error("artifact {artifact}: {why}")]
    Artifact { artifact: String, why: String },
    /// The destination is not fit to restore to.
    #[error("{path}: {why}; {hint}")]
    Destination { path: String, why: String, hint: String },
    /// A worker of ours died.
    #[error("internal: {0}")]
    Internal(String),
}
