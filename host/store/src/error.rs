//! What went wrong with which object, and what to do about it.

use crate::ObjectName;

/// The kind of failure, for whoever has to decide whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// No such object.
    Missing,
    /// The store refuses us.
    Denied,
    /// No room, or the store is read-only: trying again will not help.
    Full,
    /// Bytes came that cannot be right: fewer than the range asked for.
    Short,
    /// The connection or the disk failed in a way that may pass.
    Transient,
    /// Anything else; trying again is not expected to help.
    Other,
}

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object} in {store}: {why}{}", hint.map(|h| format!("; {h}")).unwrap_or_default())]
pub struct StoreError {
    /// What was tried: "write", "read", "list", "delete", "look at", "open".
    pub action: &'static str,
    /// The object's name or the listed prefix.
    pub object: String,
    /// The store, as it describes itself.
    pub store: String,
    pub cause: Cause,
    pub why: String,
    pub hint: Option<&'static str>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    pub(crate) fn new(
        action: &'static str,
        object: impl Into<String>,
        store: impl Into<String>,
        cause: Cause,
        why: impl Into<String>,
    ) -> Self {
        let hint = match cause {
            Cause::Missing => None,
            Cause::Denied => Some("check the owner and mode of the directory, or the key's rights on the bucket"),
            Cause::Full => Some("make room or make the store writable, then run again; finished packs are reused"),
            Cause::Short => Some("run `check` on the repository"),
            Cause::Transient => Some("run again; finished packs are reused"),
            Cause::Other => None,
        };
        StoreError {
            action,
            object: object.into(),
            store: store.into(),
            cause,
            why: why.into(),
            hint,
            source: None,
        }
    }

    pub(crate) fn from_object_store(
        action: &'static str,
        name: &ObjectName,
        store: &str,
        error: object_store::Error,
    ) -> Self {
        Self::from_object_store_str(action, name.as_str(), store, error)
    }

    pub(crate) fn from_object_store_str(
        action: &'static str,
        object: &str,
        store: &str,
        error: object_store::Error,
    ) -> Self {
        use object_store::Error as E;
        let cause = match &error {
            E::NotFound { .. } => Cause::Missing,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Cause::Denied,
            E::NotSupported { .. } | E::NotImplemented { .. } | E::InvalidPath { .. } => Cause::Other,
            other => io_cause(other).unwrap_or(Cause::Other),
        };
        let mut e = StoreError::new(action, object, store, cause, shortened(chain(&error)));
        e.source = Some(Box::new(error));
        e
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        self.cause == Cause::Transient
    }
}

/// More of a reason is not told: a server's whole answer may be in it.
pub(crate) const LONGEST_REASON: usize = 2000;

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_REASON {
        text.truncate(text.floor_char_boundary(LONGEST_REASON));
        text.push('…');
    }
    text
}

/// The whole chain of causes in one line; libraries hide the reason (`No space left on device`) at its end.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        let part = e.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = e.source();
    }
    text
}

/// Looks for an operating system error at the bottom; network errors without one count as passing.
fn io_cause(error: &(dyn std::error::Error + 'static)) -> Option<Cause> {
    use std::io::ErrorKind as K;
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return Some(match io.kind() {
                K::NotFound => Cause::Missing,
                K::PermissionDenied => Cause::Denied,
                K::StorageFull | K::ReadOnlyFilesystem | K::QuotaExceeded | K::FileTooLarge => Cause::Full,
                K::Interrupted
                | K::TimedOut
                | K::ConnectionReset
                | K::ConnectionAborted
                | K::ConnectionRefused
                | K::BrokenPipe
                | K::HostUnreachable
                | K::NetworkUnreachable
                | K::UnexpectedEof
                | K::WouldBlock
                | K::StaleNetworkFileHandle => Cause::Transient,
                _ => Cause::Other,
            });
        }
        next = e.source();
    }
    // The HTTP client says in words what it gave up on. Numbers are only looked for where a status stands: object names
    // are full of digits.
    let text = chain(error);
    let status = text
        .split_once("status code: ")
        .and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    match status {
        Some(408 | 429 | 500 | 502 | 503 | 504) => return Some(Cause::Transient),
        Some(507) => return Some(Cause::Full),
        Some(_) => return None,
        None => {}
    }
    let passing = [
        "timed out",
        "connection",
        "error sending request",
        "HTTP error",
        "decoding response body",
    ];
    passing.iter().any(|p| text.contains(p)).then_some(Cause::Transient)
}
