//! What can go wrong in a pipeline, for the person in front of it.
//!
//! Each error says what failed, where, and what to do. Rooms below have errors of their own; here they get the
//! name of the component and label they belong to, and their exit code. No error carries a connection string.

use crate::exit::Exit;
use essrun_artifact::KeepError;
use essrun_repository::RepositoryError;
use essrun_store::Cause;
use std::path::PathBuf;

/// A place in pipeline.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    pub file: PathBuf,
    /// Counted from 1; 0 when the whole file is meant.
    pub line: usize,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line == 0 {
            write!(f, "{}", self.file.display())
        } else {
            write!(f, "{}:{}", self.file.display(), self.line)
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// pipeline.toml, a key file or an environment variable is wrong.
    #[error("{at}: {problem}\n  hint: {hint}")]
    Config { at: At, problem: String, hint: String },
    /// Forbidden by a precondition or policy.
    #[error("refused: {problem}\n  hint: {hint}")]
    Refused { problem: String, hint: String },
    /// A database or file tree failed.
    #[error("{what}: {problem}")]
    Source { what: String, problem: String },
    /// The place gave out: no room, a lost connection, a server that shuts down. Says nothing about what was to be put
    /// there.
    #[error("{what}: {problem}")]
    GaveOut { what: String, problem: String },
    /// The source changed its shape under the snapshot; a new snapshot mends it.
    #[error("{what}: {problem}")]
    Changed { what: String, problem: String },
    /// The repository, its store, or a key.
    #[error("repository: {problem}")]
    Repository { problem: String },
    /// The store is out of reach, or lets nobody in. Says nothing about what lies there.
    #[error("repository: {problem}")]
    OutOfReach { problem: String },
    /// A component failed or asked for what it may not have.
    #[error("component {component}: {problem}")]
    Component { component: String, problem: String },
    /// Verification or check found errors.
    #[error("{what}: {errors} error(s) found{}", listed(.findings))]
    Findings {
        what: String,
        errors: usize,
        findings: Vec<String>,
    },
    /// A backup was committed without some components.
    #[error("backup {backup} was committed without: {}", .failed.join("; "))]
    Incomplete { backup: String, failed: Vec<String> },
    /// A backup was committed that the policy finds odd.
    #[error("backup {backup} was committed, and is SUSPECT: {}\n  hint: look at it with `essrun show`; if it is as it should be, `essrun policy accept` says so", .reasons.join("; "))]
    Suspect { backup: String, reasons: Vec<String> },
    #[error("interrupted: what was begun is safe to run again")]
    Interrupted,
    #[error("internal fault: {0}")]
    Internal(String),
}

fn listed(findings: &[String]) -> String {
    findings.iter().map(|f| format!("\n  - {f}")).collect()
}

impl PipelineError {
    pub fn exit(&self) -> Exit {
        match self {
            PipelineError::Config { .. } => Exit::Config,
            PipelineError::Refused { .. } => Exit::Refused,
            PipelineError::Source { .. } | PipelineError::GaveOut { .. } | PipelineError::Changed { .. } => {
                Exit::Source
            }
            PipelineError::Repository { .. } | PipelineError::OutOfReach { .. } => Exit::Repository,
            PipelineError::Component { .. } => Exit::Component,
            PipelineError::Findings { .. } => Exit::Findings,
            PipelineError::Incomplete { .. } => Exit::Incomplete,
            PipelineError::Suspect { .. } => Exit::Suspect,
            PipelineError::Interrupted => Exit::Interrupted,
            PipelineError::Internal(_) => Exit::Internal,
        }
    }

    pub fn refused(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        PipelineError::Refused {
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    /// With something more to say.
    pub(crate) fn and_note(mut self, note: &str) -> Self {
        if let PipelineError::Source { problem, .. }
        | PipelineError::GaveOut { problem, .. }
        | PipelineError::Changed { problem, .. }
        | PipelineError::Refused { problem, .. }
        | PipelineError::Repository { problem }
        | PipelineError::OutOfReach { problem }
        | PipelineError::Component { problem, .. } = &mut self
        {
            problem.push_str("\n  ");
            problem.push_str(note);
        }
        self
    }

    pub fn component(component: &str, problem: impl std::fmt::Display) -> Self {
        PipelineError::Component {
            component: component.to_owned(),
            problem: chain(&problem),
        }
    }

    pub fn repository(problem: impl std::fmt::Display) -> Self {
        PipelineError::Repository {
            problem: chain(&problem),
        }
    }

    /// Of a restore: the backup's fault, the target's, or a precondition's.
    pub(crate) fn restoring(what: impl Into<String>, problem: impl Blame) -> Self {
        let what = what.into();
        match problem.blame() {
            Blamed::Backup => PipelineError::repository(format!("{what}: {problem}")),
            Blamed::Store => PipelineError::OutOfReach {
                problem: format!("{what}: {problem}"),
            },
            Blamed::Target => PipelineError::source(what, problem),
            Blamed::Circumstances => PipelineError::gave_out(what, problem),
            Blamed::Precondition { why, hint } => PipelineError::refused(format!("{what}: {why}"), hint),
        }
    }

    /// Of work on what was restored: the source's, and whether it gave out.
    pub(crate) fn at_target(what: impl Into<String>, problem: impl Blame) -> Self {
        match problem.blame() {
            Blamed::Circumstances => PipelineError::gave_out(what, problem),
            _ => PipelineError::source(what, problem),
        }
    }

    fn gave_out(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        PipelineError::GaveOut {
            what: what.into(),
            problem: chain(&problem),
        }
    }

    /// Of a backup: the repository's fault, or that of what is read.
    pub(crate) fn taking(what: impl Into<String>, problem: impl Blame) -> Self {
        let what = what.into();
        match problem.of_repository() {
            true => PipelineError::repository(format!("{what}: {problem}")),
            false => PipelineError::source(what, problem),
        }
    }

    pub fn source(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        PipelineError::Source {
            what: what.into(),
            problem: chain(&problem),
        }
    }
}

/// Whose fault an error of a restore is.
pub(crate) enum Blamed {
    /// The repository's, or of what it holds.
    Backup,
    /// The store's, which cannot be asked.
    Store,
    /// The server's or file system's that is restored to.
    Target,
    /// Nobody's: the place gave out while it was being worked in.
    Circumstances,
    /// Nobody's: something stands in the way, and nothing was changed.
    Precondition { why: String, hint: String },
}

/// Tells a backup that cannot be read from a target that cannot be written, or may not be.
pub(crate) trait Blame: std::fmt::Display {
    fn blame(&self) -> Blamed;

    /// The repository itself failed, whatever it was asked for.
    fn of_repository(&self) -> bool {
        false
    }
}

/// What lies in the repository is at fault, unless its store could not be asked. That an object is missing or short is
/// the store's answer.
fn keeper(error: &KeepError) -> Blamed {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(RepositoryError::Store(e)) = e.downcast_ref::<RepositoryError>() {
            return match e.cause {
                Cause::Transient | Cause::Denied | Cause::Full => Blamed::Store,
                Cause::Missing | Cause::Short | Cause::Other => Blamed::Backup,
            };
        }
        next = e.source();
    }
    Blamed::Backup
}

impl Blame for essrun_postgres::Error {
    fn blame(&self) -> Blamed {
        match self {
            essrun_postgres::Error::Keep(e) => keeper(e),
            essrun_postgres::Error::Damaged { .. } => Blamed::Backup,
            essrun_postgres::Error::Refused { what, why, hint } => Blamed::Precondition {
                why: format!("{what}: {why}"),
                hint: hint.clone(),
            },
            essrun_postgres::Error::Lost { .. } | essrun_postgres::Error::Connect { .. } => Blamed::Circumstances,
            essrun_postgres::Error::Server { code, .. } if gave_out(code) => Blamed::Circumstances,
            _ => Blamed::Target,
        }
    }

    fn of_repository(&self) -> bool {
        matches!(self, essrun_postgres::Error::Keep(_))
    }
}

/// SQLSTATE classes for lost connections, what there is not enough of, a server that is stopped, and what is outside of
/// it.
fn gave_out(code: &str) -> bool {
    matches!(code.get(..2), Some("08" | "53" | "57" | "58"))
}

impl Blame for std::io::Error {
    fn blame(&self) -> Blamed {
        use rustix::io::Errno;
        use std::io::ErrorKind;
        let kind = matches!(
            self.kind(),
            ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::OutOfMemory
                | ErrorKind::StaleNetworkFileHandle
                | ErrorKind::TimedOut
        );
        let errno = Errno::from_io_error(self).is_some_and(|e| {
            matches!(
                e,
                Errno::IO | Errno::NODEV | Errno::NXIO | Errno::MFILE | Errno::NFILE | Errno::NOTCONN | Errno::HOSTDOWN
            )
        });
        match kind || errno {
            true => Blamed::Circumstances,
            false => Blamed::Target,
        }
    }
}

impl Blame for essrun_volume::VolumeError {
    fn blame(&self) -> Blamed {
        match self {
            essrun_volume::VolumeError::Keep(e) => keeper(e),
            essrun_volume::VolumeError::Listing { .. } => Blamed::Backup,
            essrun_volume::VolumeError::Destination { path, why, hint } => Blamed::Precondition {
                why: format!("{path}: {why}"),
                hint: hint.clone(),
            },
            essrun_volume::VolumeError::Io { source, .. } => source.blame(),
            _ => Blamed::Target,
        }
    }

    fn of_repository(&self) -> bool {
        matches!(self, essrun_volume::VolumeError::Keep(_))
    }
}

impl Blame for essrun_sqlite::SqliteError {
    fn blame(&self) -> Blamed {
        match self {
            essrun_sqlite::SqliteError::Keep(e) => keeper(e),
            essrun_sqlite::SqliteError::Artifact { .. } => Blamed::Backup,
            essrun_sqlite::SqliteError::Destination { path, why, hint } => Blamed::Precondition {
                why: format!("{path}: {why}"),
                hint: hint.clone(),
            },
            essrun_sqlite::SqliteError::Io { source, .. } => source.blame(),
            _ => Blamed::Target,
        }
    }

    fn of_repository(&self) -> bool {
        matches!(self, essrun_sqlite::SqliteError::Keep(_))
    }
}

/// Errors of the rooms below print their own causes.
fn chain(problem: &impl std::fmt::Display) -> String {
    problem.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_place_that_gives_out_is_told_from_a_fault() {
        let server = |code: &str| essrun_postgres::Error::Server {
            what: "s: load t".into(),
            code: code.into(),
            why: "said".into(),
        };
        let io = |source: Error| essrun_volume::VolumeError::Io {
            action: "write",
            path: "f".into(),
            source,
        };
        let gave_out = |e: PipelineError| matches!(e, PipelineError::GaveOut { .. }) && e.exit() == Exit::Source;
        for code in ["08006", "53100", "53200", "53300", "57P01", "57014", "58030"] {
            assert!(gave_out(PipelineError::restoring("s", server(code))), "{code}");
        }
        for code in ["23505", "22021", "42601", "XX000", "40001", "5", ""] {
            assert!(!gave_out(PipelineError::restoring("s", server(code))), "{code}");
        }
        let lost = essrun_postgres::Error::Lost {
            what: "s".into(),
            why: "the server closed it".into(),
        };
        assert!(gave_out(PipelineError::at_target("s", lost)));
        for kind in [
            ErrorKind::StorageFull,
            ErrorKind::ReadOnlyFilesystem,
            ErrorKind::QuotaExceeded,
        ] {
            assert!(gave_out(PipelineError::restoring("s", io(kind.into()))), "{kind}");
        }
        assert!(gave_out(PipelineError::at_target(
            "s",
            io(rustix::io::Errno::IO.into())
        )));
        // These may be for what the backup holds.
        for kind in [
            ErrorKind::InvalidInput,
            ErrorKind::InvalidFilename,
            ErrorKind::AlreadyExists,
        ] {
            assert!(!gave_out(PipelineError::restoring("s", io(kind.into()))), "{kind}");
        }
    }
    #[test]
    fn a_store_out_of_reach_is_told_from_what_lies_in_it() {
        let read = |cause| {
            let store = essrun_store::StoreError {
                action: "read",
                object: "packs/x".into(),
                store: "s3://bucket".into(),
                cause,
                why: "said".into(),
                hint: None,
                source: None,
            };
            let keep = KeepError::from(RepositoryError::Store(store));
            PipelineError::restoring("s", essrun_volume::VolumeError::Keep(keep))
        };
        for cause in [Cause::Transient, Cause::Denied] {
            let e = read(cause);
            assert!(matches!(e, PipelineError::OutOfReach { .. }), "{cause:?}: {e}");
            assert_eq!(e.exit(), Exit::Repository);
        }
        for cause in [Cause::Missing, Cause::Short] {
            assert!(matches!(read(cause), PipelineError::Repository { .. }), "{cause:?}");
        }
        let damaged = KeepError::new("object x", "is not what it must be");
        let e = PipelineError::restoring("s", essrun_postgres::Error::Keep(damaged));
        assert!(matches!(e, PipelineError::Repository { .. }));
    }
}
