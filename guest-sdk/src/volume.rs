//! Listing and small reads on granted volumes.

use crate::paged::Paged;
use crate::{Error, InspectError, host};

pub use crate::bindings::ess::inspect::volume::{Entry, EntryKind, FileDigest};

/// Paths one look or digest may name.
pub const PATHS_A_CALL: usize = 1000;

/// Whether a label is granted.
pub fn granted(label: &str) -> Result<bool, InspectError> {
    // A grant whose folder is gone reads the same as no grant; the host refuses such pipelines before it asks us.
    match host::walk(label, "", false) {
        Ok(_) => Ok(true),
        Err(InspectError::Denied(_)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Lists a directory (empty: the root), with `recursive` the whole tree below it.
pub fn walk(label: &str, directory: &str, recursive: bool) -> Result<Listing, InspectError> {
    let listing = host::walk(label, directory, recursive)?;
    Ok(Listing(Paged::new(listing, format!("{label}/{directory}"))))
}

/// Like [`walk`], or nothing where the directory does not exist.
pub fn walk_if_there(label: &str, directory: &str, recursive: bool) -> Result<Option<Listing>, InspectError> {
    match walk(label, directory, recursive) {
        Ok(listing) => Ok(Some(listing)),
        Err(InspectError::Denied(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Looks at a single path.
pub fn look(label: &str, path: &str) -> Result<Option<Entry>, InspectError> {
    Ok(host::look(label, &[path.to_owned()])?.pop().flatten())
}

/// Looks at many paths, as many calls as it takes; the answers are in the order of the paths.
pub fn look_all(label: &str, paths: &[String]) -> Result<Vec<Option<Entry>>, InspectError> {
    in_calls(paths, |some| host::look(label, some))
}

/// Digests many files, as many calls as it takes; `None` for what is no regular file.
pub fn digest_all(label: &str, paths: &[String]) -> Result<Vec<Option<FileDigest>>, InspectError> {
    in_calls(paths, |some| host::digest(label, some))
}

/// Reads a whole small file.
pub fn read(label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, InspectError> {
    host::read(label, path, max_bytes)
}

/// Reads a whole small file as text.
pub fn read_text(label: &str, path: &str, max_bytes: u32) -> Result<String, Error> {
    String::from_utf8(host::read(label, path, max_bytes)?)
        .map_err(|_| Error::Other(format!("{label}/{path} is not UTF-8 text")))
}

/// A tree beyond this is no directory of configuration, and not searched.
const MOST_SEARCHED: usize = 20_000;

/// The regular files of a volume that match a pattern (`*` for any run of characters): over the whole path if the
/// pattern has a `/`, else over the file's name, in any directory. Sorted.
///
/// Symbolic links are not followed; where Kubernetes mounts a secret, the file itself is found in a directory beside.
pub fn find(label: &str, pattern: &str) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for (seen, entry) in walk(label, "", true)?.enumerate() {
        let entry = entry?;
        if seen >= MOST_SEARCHED {
            return Err(Error::Unsupported(format!(
                "`{label}` has more than {MOST_SEARCHED} entries, too many to look for {pattern:?}: grant the directory \
                 of the configuration only"
            )));
        }
        let name = entry.path.rsplit('/').next().unwrap_or(&entry.path);
        let subject = if pattern.contains('/') {
            entry.path.as_str()
        } else {
            name
        };
        if entry.kind == EntryKind::File && crate::matches(pattern, subject) {
            found.push(entry.path);
        }
    }
    found.sort();
    Ok(found)
}

fn in_calls<T>(
    paths: &[String],
    mut call: impl FnMut(&[String]) -> Result<Vec<T>, InspectError>,
) -> Result<Vec<T>, InspectError> {
    let mut all = Vec::with_capacity(paths.len());
    for some in paths.chunks(PATHS_A_CALL) {
        let answers = call(some)?;
        if answers.len() != some.len() {
            return Err(InspectError::Other(format!(
                "asked about {} paths, got {} answers",
                some.len(),
                answers.len()
            )));
        }
        all.extend(answers);
    }
    Ok(all)
}

/// The entries of a directory. An iterator; dropping it ends the walk.
pub struct Listing(Paged<host::Listing>);

impl Iterator for Listing {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}
