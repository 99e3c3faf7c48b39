//! The two errors of the contract as Rust errors.
//!
//! A look fails with [`InspectError`], a component's function with [`Error`]; `?` turns one into the other. An error
//! must carry a text a person can act on, so helpers add what they were about through [`Context`].

use crate::{Error, InspectError};
use std::fmt;

// The generated code already implements Display and std::error::Error with Debug texts; these are the texts for people.
impl InspectError {
    /// What the host said.
    pub fn text(&self) -> &str {
        match self {
            InspectError::Denied(t)
            | InspectError::Invalid(t)
            | InspectError::Limit(t)
            | InspectError::Failed(t)
            | InspectError::Other(t) => t,
        }
    }

    /// The case, in a word.
    pub fn case(&self) -> &'static str {
        match self {
            InspectError::Denied(_) => "denied",
            InspectError::Invalid(_) => "invalid",
            InspectError::Limit(_) => "limit",
            InspectError::Failed(_) => "failed",
            InspectError::Other(_) => "other",
        }
    }
}

impl Error {
    /// A setting is wrong: which, what was found, what to write.
    pub fn invalid_setting(name: &str, problem: impl fmt::Display) -> Self {
        Error::InvalidSetting(format!("setting `{name}`: {problem}"))
    }

    /// The text, whatever the case.
    pub fn text(&self) -> &str {
        match self {
            Error::InvalidSetting(t) | Error::Unsupported(t) | Error::Inspect(t) | Error::Other(t) => t,
        }
    }
}

impl From<InspectError> for Error {
    fn from(e: InspectError) -> Self {
        Error::Inspect(format!("{}: {}", e.case(), e.text()))
    }
}

impl From<std::str::Utf8Error> for Error {
    fn from(e: std::str::Utf8Error) -> Self {
        Error::Other(e.to_string())
    }
}
