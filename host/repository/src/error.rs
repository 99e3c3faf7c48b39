//! One error for the whole room: what, where, why, and what to do.

use essrun_artifact::KeepError;
use essrun_store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store failed; its own words say it all.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// A key, recipient or identity could not be used.
    #[error("{what}: {why}; {hint}")]
    Key { what: String, why: String, hint: String },

    /// The place is not (yet) or already a repository, or not ours.
    #[error("{place}: {why}; {hint}")]
    Place { place: String, why: String, hint: String },

    /// An object is not what it must be: damaged, truncated, swapped or forged.
    #[error("object {object}: {why}; run `check` on the repository")]
    Damaged { object: String, why: String },

    /// History is not what this host remembers or what the signatures say.
    #[error("repository history: {why}; {hint}")]
    History { why: String, hint: String },

    /// No such backup, or more than one matches.
    #[error("backup {wanted:?}: {why}; `list` shows the backups there are")]
    NoBackup { wanted: String, why: String },

    /// A request that must not be carried out.
    #[error("refused: {why}; {hint}")]
    Refused { why: String, hint: String },

    /// The local chunk index cannot be used. It holds nothing that cannot be rebuilt.
    #[error("chunk index {path}: {why}; this file can be deleted, the next run rebuilds it")]
    Cache { path: String, why: String },

    /// What this host remembers of the repository's history cannot be used. It is not in the repository.
    #[error(
        "remembered history {path}: {why}; without it a repository that was rolled back is not noticed: bring it back from \
         a copy, or move it away if this place was never used before"
    )]
    State { path: String, why: String },

    /// Making or reading an artifact's bytes failed.
    #[error(transparent)]
    Keep(#[from] KeepError),

    /// A part of our own machinery stopped working (a worker task died).
    #[error("inside essrun: {0}; please report this")]
    Internal(String),
}

impl RepositoryError {
    pub(crate) fn damaged(object: impl ToString, why: impl Into<String>) -> Self {
        RepositoryError::Damaged {
            object: object.to_string(),
            why: why.into(),
        }
    }

    pub(crate) fn key(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        RepositoryError::Key {
            what: what.into(),
            why: why.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn refused(why: impl Into<String>, hint: impl Into<String>) -> Self {
        RepositoryError::Refused {
            why: why.into(),
            hint: hint.into(),
        }
    }
}

impl From<tokio::task::JoinError> for RepositoryError {
    fn from(e: tokio::task::JoinError) -> Self {
        RepositoryError::Internal(format!("a worker task ended: {e}"))
    }
}

/// Makers of artifacts see one kind of error; the cause stays attached.
impl From<RepositoryError> for KeepError {
    fn from(e: RepositoryError) -> Self {
        match e {
            RepositoryError::Keep(e) => e,
            RepositoryError::Damaged { object, why } => {
                KeepError::new(format!("object {object}"), why).hint("run `check` on the repository")
            }
            RepositoryError::Refused { why, hint } => KeepError::new("repository", why).hint(hint),
            other => KeepError::new("repository", other.to_string()).caused_by(other),
        }
    }
}
