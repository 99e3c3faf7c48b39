//! An artifact becomes a database again: staged, checked, then renamed into place.
//!
//! The staged file stands beside the destination, so that the last step is a rename. What was there is moved away first,
//! the database before its `-wal` and `-journal`: killed in between, the destination is visibly missing rather than
//! there without its last transactions, and never is a log left beside a database it does not belong to.

use crate::backup::{BESIDE, FORMAT, Remove, beside, describe, hex_id};
use crate::guard::{self, failed, io, show};
use crate::look::blocking;
use crate::{Sqlite, SqliteError, SqliteMeta};
use essrun_artifact::{ArtifactRecord, BackupReader, Progress};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whose the restored file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Owner {
    /// The numeric owner of the backup; when it cannot be set, [`Staged::warnings`] says so.
    #[default]
    Recorded,
    /// Whoever restores.
    Current,
    /// This one.
    Numeric { uid: u32, gid: u32 },
}

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Swap out a database that is there, keeping it under a dated name. Without it a non-empty file is refused.
    pub replace: bool,
    pub owner: Owner,
}

/// A restored and checked database that is not yet in place. Dropped without a swap, its file is removed.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    destination: PathBuf,
    replace: bool,
    warnings: Vec<String>,
    _remove: Remove,
    _alive: Option<File>,
}

/// What the swap did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    pub destination: PathBuf,
    /// Where the database that was there before is kept, with its `-wal` and `-journal` beside it.
    pub kept: Option<PathBuf>,
}

fn refuse(path: &Path, why: impl Into<String>, hint: impl Into<String>) -> SqliteError {
    SqliteError::Destination {
        path: show(path),
        why: why.into(),
        hint: hint.into(),
    }
}

fn meta_of(record: &ArtifactRecord) -> Result<SqliteMeta, SqliteError> {
    let refuse = |why: String| SqliteError::Artifact {
        artifact: record.name.to_string(),
        why,
    };
    if record.kind != crate::KIND {
        return Err(refuse(format!("is a {:?}, not an SQLite database", record.kind)));
    }
    let format = record.meta.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        return Err(refuse(format!(
            "has format {format:?}, this essrun reads {FORMAT}; use the essrun that wrote it or a later one"
        )));
    }
    let meta: SqliteMeta = serde_json::from_value(record.meta.clone())
        .map_err(|e| refuse(format!("its description does not parse: {e}")))?;
    if meta.bytes != record.content.bytes {
        return Err(refuse(format!(
            "its description says {} bytes, its content has {}",
            meta.bytes, record.content.bytes
        )));
    }
    Ok(meta)
}

/// Parent and file name, with the parent known to be there.
fn place(destination: &Path) -> Result<(PathBuf, std::ffi::OsString), SqliteError> {
    let absolute = std::path::absolute(destination).map_err(io("find", destination))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if parent.is_dir() => Ok((parent.to_owned(), name.to_owned())),
        (Some(parent), Some(_)) => Err(refuse(
            parent,
            "is not there",
            "create it, with the owner it should have",
        )),
        _ => Err(refuse(&absolute, "is no file name", "name a file")),
    }
}

/// Whether a database worth keeping is there; refused when it may not be replaced.
fn occupied(destination: &Path, replace: bool) -> Result<bool, SqliteError> {
    let found = match destination.symlink_metadata() {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(io("look at", destination)(e)),
    };
    if !found.is_file() {
        return Err(refuse(
            destination,
            "is no regular file",
            "move it away or name another destination",
        ));
    }
    if found.len() > 0 && !replace {
        return Err(refuse(
            destination,
            "is not empty",
            "give leave to replace it (what is there will be kept under a dated name), or name another destination",
        ));
    }
    Ok(true)
}

const STAGED: &str = ".essrun-restore-";

/// Refuses a destination that [`restore`] or [`Staged::swap`] would refuse, and answers the directory both work in. Changes
/// nothing.
pub async fn plan(destination: &Path, replace: bool) -> Result<PathBuf, SqliteError> {
    let destination = destination.to_owned();
    blocking(move || {
        let (parent, name) = place(&destination)?;
        occupied(&parent.join(name), replace)?;
        writable(&parent)?;
        Ok(parent)
    })
    .await
}

fn writable(directory: &Path) -> Result<(), SqliteError> {
    use rustix::fs::{Access, AtFlags, CWD};
    match rustix::fs::accessat(CWD, directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => Err(refuse(
            directory,
            "may not be written to by this user",
            "run essrun as a user who may, as root for the owner of the backup",
        )),
        Err(Errno::ROFS) => Err(refuse(
            directory,
            "is on a file system that is mounted read-only",
            "mount it writable",
        )),
        Err(e) => Err(io("look at", directory)(e.into())),
    }
}

/// Writes the artifact to a file beside `destination` and has SQLite check it.
pub async fn restore(
    reader: Arc<dyn BackupReader>,
    record: &ArtifactRecord,
    destination: &Path,
    options: RestoreOptions,
    progress: Arc<dyn Progress>,
) -> Result<Staged, SqliteError> {
    let meta = meta_of(record)?;
    let what = record.name.to_string();
    let (parent, name) = place(destination)?;
    let destination = parent.join(&name);
    occupied(&destination, options.replace)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(&name);
    hidden.push(format!("{STAGED}{}", hex_id()));
    let path = parent.join(hidden);
    let alive = alive(&parent).await?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(io("create", &path))?;
    let remove = Remove(path.clone());
    progress.started(&what, Some(meta.bytes));
    if record.content.bytes > 0 {
        let mut content = reader.open(&record.content).await?;
        while let Some(bytes) = content.next().await? {
            progress.advanced(&what, bytes.len() as u64, 0);
            let at = path.clone();
            file = blocking(move || {
                file.write_all(&bytes).map_err(io("write", &at))?;
                Ok(file)
            })
            .await?;
        }
    }
    let at = path.clone();
    let warnings = blocking(move || check(file, &at, &meta, options.owner)).await?;
    progress.finished(&what);
    Ok(Staged {
        path,
        destination,
        replace: options.replace,
        warnings,
        _remove: remove,
        _alive: alive,
    })
}

/// Says, as long as it is open, that somebody has a staged file in this directory. The directory is locked and not the
/// file, since SQLite has locks of its own on that.
async fn alive(parent: &Path) -> Result<Option<File>, SqliteError> {
    let parent = parent.to_owned();
    blocking(move || {
        let directory = match File::open(&parent) {
            Ok(directory) => directory,
            // Written to but not read: nobody looks for leftovers there.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(None),
            Err(e) => return Err(io("open", &parent)(e)),
        };
        match rustix::fs::flock(&directory, FlockOperation::LockShared) {
            Ok(()) => Ok(Some(directory)),
            // Some network file systems lock no directories.
            Err(Errno::BADF | Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => Ok(None),
            Err(e) => Err(io("lock the directory", &parent)(e.into())),
        }
    })
    .await
}

/// Has SQLite check the staged file, compares it with its description, gives it its owner.
fn check(file: File, path: &Path, meta: &SqliteMeta, owner: Owner) -> Result<Vec<String>, SqliteError> {
    let mut warnings = Vec::new();
    let length = file.metadata().map_err(io("look at", path))?.len();
    let damaged = |first: String| SqliteError::Damaged {
        path: show(path),
        first,
        hint: "restore from another backup, and have the repository checked",
    };
    if length != meta.bytes {
        return Err(damaged(format!("{length} bytes came, {} were backed up", meta.bytes)));
    }
    let connection = guard::open_own(path)?;
    let found = describe(&connection).map_err(|e| failed(path, "check", &e))?;
    connection.close().map_err(|(_, e)| failed(path, "close", &e))?;
    if let Some(first) = found.integrity_problems.first() {
        if meta.integrity_problems.is_empty() {
            return Err(damaged(first.clone()));
        }
        warnings.push(format!(
            "the database was damaged already when it was backed up: {first}"
        ));
    }
    if (found.user_version, found.application_id, &found.sequences)
        != (meta.user_version, meta.application_id, &meta.sequences)
    {
        return Err(damaged(format!(
            "user_version {}, application_id {} and {} sequences, backed up were {}, {} and {}",
            found.user_version,
            found.application_id,
            found.sequences.len(),
            meta.user_version,
            meta.application_id,
            meta.sequences.len()
        )));
    }
    if found.foreign_key_violations > 0 {
        warnings.push(format!(
            "{} rows refer to rows that are not there; {} did when it was backed up",
            found.foreign_key_violations, meta.foreign_key_violations
        ));
    }
    let wanted = match owner {
        Owner::Recorded => Some((meta.uid, meta.gid)),
        Owner::Current => None,
        Owner::Numeric { uid, gid } => Some((uid, gid)),
    };
    if let Some((uid, gid)) = wanted
        && let Err(e) = std::os::unix::fs::fchown(&file, Some(uid), Some(gid))
    {
        if owner != Owner::Recorded {
            return Err(io("set the owner of", path)(e));
        }
        warnings.push(format!(
            "the owner {uid}:{gid} could not be set: {e}; set it before the service starts"
        ));
    }
    file.set_permissions(std::fs::Permissions::from_mode(meta.mode & 0o777))
        .map_err(io("set the mode of", path))?;
    file.sync_all().map_err(io("sync", path))?;
    Ok(warnings)
}

/// What a restore plan's statements may not do: leave the transaction, the file, or change how SQLite works.
fn may_mend(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::CreateVtable { .. }
        | AuthAction::DropVtable { .. } => Authorization::Deny,
        AuthAction::Pragma { pragma_name, .. }
            if !pragma_name.eq_ignore_ascii_case("user_version")
                && !pragma_name.eq_ignore_ascii_case("application_id") =>
        {
            Authorization::Deny
        }
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    }
}

impl Staged {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the restored database for looks.
    pub async fn open(&self) -> Result<Sqlite, SqliteError> {
        Sqlite::open(&self.path).await
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Runs statements of a restore plan in one transaction.
    pub async fn run_sql(&self, statements: &[String]) -> Result<(), SqliteError> {
        let (path, statements) = (self.path.clone(), statements.to_vec());
        blocking(move || {
            let mut connection = guard::open_own(&path)?;
            let sql = |e: rusqlite::Error| failed(&path, "run SQL in", &e);
            connection.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
            connection.authorizer(Some(may_mend)).map_err(sql)?;
            for statement in &statements {
                let done = connection.prepare(statement).and_then(|mut s| {
                    let mut rows = s.query([])?;
                    while rows.next()?.is_some() {}
                    Ok(())
                });
                // Dropping the connection undoes the transaction.
                done.map_err(|e| SqliteError::Invalid {
                    what: format!("SQL {statement:?}"),
                    why: e.to_string(),
                })?;
            }
            let none: Option<fn(AuthContext<'_>) -> Authorization> = None;
            connection.authorizer(none).map_err(sql)?;
            connection.execute_batch("COMMIT").map_err(sql)?;
            connection.close().map_err(|(_, e)| sql(e))
        })
        .await
    }

    /// Refuses what [`Staged::swap`] would refuse, as things are now. Changes nothing.
    pub async fn swap_ready(&self) -> Result<(), SqliteError> {
        plan(&self.destination, self.replace).await.map(|_| ())
    }

    /// Puts the database in place; what was there is kept under a dated name.
    pub async fn swap(self) -> Result<Swapped, SqliteError> {
        blocking(move || swap(&self)).await
    }

    /// Removes the staged file.
    pub async fn discard(self) -> Result<(), SqliteError> {
        blocking(move || self._remove.now().map_err(io("remove", &self.path))).await
    }
}

fn swap(staged: &Staged) -> Result<Swapped, SqliteError> {
    let destination = &staged.destination;
    let parent = destination.parent().unwrap_or(destination);
    // Looks may have left an empty log beside the staged file; a log with something in it would be part of it.
    let log = beside(&staged.path, "-wal");
    if log.metadata().is_ok_and(|m| m.len() > 0) {
        let connection = guard::open_own(&staged.path)?;
        connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .map_err(|e| failed(&staged.path, "check", &e))?;
        connection.close().map_err(|(_, e)| failed(&staged.path, "close", &e))?;
    }
    File::open(&staged.path)
        .and_then(|f| f.sync_all())
        .map_err(io("sync", &staged.path))?;

    let there = occupied(destination, staged.replace)?;
    let empty = there && destination.metadata().map_err(io("look at", destination))?.len() == 0;
    let logs: Vec<&str> = BESIDE
        .into_iter()
        .filter(|suffix| beside(destination, suffix).symlink_metadata().is_ok())
        .collect();
    let mut kept = None;
    // A log without a database is kept too: it is somebody's data, and must not meet ours.
    if (there && !empty) || !logs.is_empty() {
        let mut name = destination.as_os_str().to_owned();
        name.push(format!(
            ".before-{}",
            jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ")
        ));
        let to = PathBuf::from(name);
        if there {
            rename_new(destination, &to)?;
        }
        for suffix in logs {
            rename_new(&beside(destination, suffix), &beside(&to, suffix))?;
        }
        kept = Some(to);
    }
    std::fs::rename(&staged.path, destination).map_err(io("put in place", destination))?;
    File::open(parent)
        .and_then(|d| d.sync_all())
        .map_err(io("sync", parent))?;
    Ok(Swapped {
        destination: destination.clone(),
        kept,
    })
}

fn rename_new(from: &Path, to: &Path) -> Result<(), SqliteError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if to.symlink_metadata().is_err() => {
            std::fs::rename(from, to).map_err(io("move away", from))
        }
        Err(e) => Err(io("move away", from)(e.into())),
    }
}

/// Staged files that interrupted restores to `destination` left behind; each is safe to remove. As long as somebody is at
/// work in that directory there are none: which of them are theirs cannot be told.
pub async fn list_leftovers(destination: &Path) -> Result<Vec<PathBuf>, SqliteError> {
    let (parent, name) = place(destination)?;
    blocking(move || {
        let mut prefix = vec![b'.'];
        prefix.extend_from_slice(name.as_bytes());
        prefix.extend_from_slice(STAGED.as_bytes());
        let mut found = Vec::new();
        // Held while looking, so that what is found was there before anybody who begins now.
        let directory = File::open(&parent).map_err(io("open", &parent))?;
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Ok(found);
        }
        for entry in parent.read_dir().map_err(io("read the directory", &parent))? {
            let entry = entry.map_err(io("read the directory", &parent))?;
            if entry.file_name().as_bytes().starts_with(&prefix) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    })
    .await
}
