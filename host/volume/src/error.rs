//! What can go wrong with a file tree: what, where, and what to do.

use essrun_artifact::KeepError;
use std::io;

/// Any failure of this room. Paths in it are shown with control characters escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The request itself is wrong: a path with `..`, a pattern that does not parse.
    #[error("{what}: {why}")]
    Invalid { what: String, why: String },
    /// Not there, or behind a symbolic link or on another device: on purpose one case.
    #[error("{path}: not there, or not within the volume")]
    Denied { path: String },
    /// A limit was reached.
    #[error("{what}: longer than the limit of {limit} bytes")]
    Limit { what: String, limit: u64 },
    /// The file system refused.
    #[error("cannot {action} {path}: {source}{}", hint_for(source))]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    /// Files could not be read, and the request does not allow to go on without them.
    #[error(
        "{count} entries could not be read, first: {first}; run essrun as a user who may read them, or leave them out by a rule that says why"
    )]
    Unreadable { count: u64, first: String },
    /// The keeper failed.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// A listing in a backup is damaged or was not made by this tool.
    #[error("listing of {artifact}, entry {entry}: {why}; check the repository, then restore from another backup")]
    Listing { artifact: String, entry: u64, why: String },
    /// The destination is not fit to restore to.
    #[error("{path}: {why}; {hint}")]
    Destination { path: String, why: String, hint: String },
    /// A worker of ours died.
    #[error("internal: {0}")]
    Internal(String),
}

fn hint_for(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run essrun as a user who may",
        io::ErrorKind::StorageFull => "; free some space and start again",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable",
        _ => "",
    }
}

impl VolumeError {
    pub(crate) fn io(action: &'static str, path: impl AsRef<[u8]>, source: impl Into<io::Error>) -> Self {
        VolumeError::Io {
            action,
            path: crate::path::show(path.as_ref()),
            source: source.into(),
        }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        VolumeError::Invalid {
            what: what.into(),
            why: why.into(),
        }
    }
}
