//! What can go wrong in this room: what, where, and what to do.
//!
//! Never in a message: passwords, connection strings, contents of rows. The server's DETAIL and CONTEXT lines quote
//! rows, so they stay out as well; its code and message go in.

use essrun_artifact::{KeepError, NameError};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection as the pipeline gives it cannot be used.
    #[error("database connection: {why}; {hint}")]
    Spec { why: String, hint: String },

    /// The server could not be reached or refused us.
    #[error("{server}: {why}; {hint}")]
    Connect { server: String, why: String, hint: String },

    /// The server refused a statement. `code` is its SQLSTATE.
    #[error("{what}: {why} (SQLSTATE {code})")]
    Server { what: String, code: String, why: String },

    /// A connection ended in the middle of work.
    #[error("{what}: the connection was lost: {why}; what depended on it does not count, run again")]
    Lost { what: String, why: String },

    /// A guest's request that cannot be granted: SQL that does not parse, parameters that do not fit, forbidden functions.
    #[error("{0}")]
    Invalid(String),

    /// A guest's request names what is not there, or not any more.
    #[error("{0}")]
    Gone(String),

    /// A limit on a guest's request was reached.
    #[error("{0}")]
    Limit(String),

    /// A guest's query took longer than it may.
    #[error("{0}")]
    Slow(String),

    /// Something stands in the way; nothing was changed.
    #[error("{what}: {why}; {hint}")]
    Refused { what: String, why: String, hint: String },

    /// A program we called failed.
    #[error("{program}: {why}; {hint}")]
    Child { program: String, why: String, hint: String },

    /// A table the snapshot shows was dropped or rewritten before it could be locked. A new snapshot mends it.
    #[error(
        "database {database}: a table was dropped or altered while the backup began; take the snapshot again, and when \
         it happens each time, wait until the migration or background update that does it has ended"
    )]
    Changed { database: String },

    /// What the backup holds does not agree with itself.
    #[error("{what} in the backup is not as recorded: {why}; try another backup and run `essrun check`")]
    Damaged { what: String, why: String },

    /// The repository failed.
    #[error(transparent)]
    Keep(#[from] KeepError),

    /// A name that cannot be an artifact's.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Error {
    /// Wraps the driver's error. `what` says what was being done, and where.
    pub(crate) fn sql(what: impl Into<String>, error: &tokio_postgres::Error) -> Self {
        let what = what.into();
        match error.as_db_error() {
            Some(db) => Error::Server {
                what,
                code: db.code().code().to_owned(),
                why: match db.hint() {
                    Some(hint) => format!("{} ({hint})", db.message()),
                    None => db.message().to_owned(),
                },
            },
            None if error.is_closed() => Error::Lost {
                what,
                why: "the server closed it".to_owned(),
            },
            None => Error::Lost {
                what,
                why: chain(error),
            },
        }
    }

    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Refused {
            what: what.into(),
            why: why.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn damaged(what: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Damaged {
            what: what.into(),
            why: why.into(),
        }
    }

    /// The SQLSTATE, when the server gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Server { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}
