//! Secret files: made private and never over another file, read only when private.

use crate::RepositoryError;
use std::io::{Read, Write};
use std::path::Path;
use zeroize::Zeroizing;

/// No key file is larger; whatever is was named by mistake.
const LIMIT: u64 = 1 << 20;

fn refuse(path: &Path, why: impl std::fmt::Display, hint: &str) -> RepositoryError {
    RepositoryError::key(format!("key file {}", path.display()), why.to_string(), hint)
}

/// Writes a new file with mode 0600, synced.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), RepositoryError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path).map_err(|e| {
        let hint = "name a file that does not exist, in a directory you may write to; keys are never overwritten";
        refuse(path, e, hint)
    })?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|e| refuse(path, e, "make room on the disk and make the key again"))
}

/// Reads a key file, refusing one that others than its owner can read.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, RepositoryError> {
    let file = std::fs::File::open(path).map_err(|e| refuse(path, e, "check the path; `keygen` makes keys"))?;
    let meta = file.metadata().map_err(|e| refuse(path, e, "check the path"))?;
    if !meta.is_file() || meta.len() > LIMIT {
        return Err(refuse(
            path,
            "this is not a key file",
            "name the file that `keygen` made",
        ));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if meta.mode() & 0o077 != 0 {
            let why = format!("others may read it (mode {:03o})", meta.mode() & 0o777);
            return Err(refuse(path, why, "chmod 600 it, and think about who may have read it"));
        }
    }
    let mut text = Zeroizing::new(String::with_capacity(meta.len() as usize + 1));
    file.take(LIMIT)
        .read_to_string(&mut text)
        .map_err(|e| refuse(path, e, "name the file that `keygen` made"))?;
    Ok(text)
}
