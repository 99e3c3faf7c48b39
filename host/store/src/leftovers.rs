//! What killed writers leave in a directory: staging files beside the objects they were to become (`name#1`).
//!
//! They are no objects and harm nothing but the disk's free space. A living writer has some too, for seconds; only old
//! ones are leftovers.

use crate::{Cause, ObjectName, StoreError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A staging file that nobody will finish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub path: PathBuf,
    pub bytes: u64,
}

/// Staging files below a directory store's root that were not written to for `age`. Follows no symbolic links.
pub fn leftovers(root: &Path, age: Duration) -> Result<Vec<Leftover>, StoreError> {
    let failed = |path: &Path, e: std::io::Error| {
        StoreError::new(
            "list",
            path.display().to_string(),
            root.display().to_string(),
            Cause::Other,
            e.to_string(),
        )
    };
    let before = SystemTime::now().checked_sub(age);
    let (mut found, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|e| failed(&dir, e))? {
            let entry = entry.map_err(|e| failed(&dir, e))?;
            let path = entry.path();
            // Not followed: this is the link's own metadata.
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(&path, e)),
            };
            if meta.is_dir() {
                dirs.push(path);
            } else if meta.is_file() && is_staging(root, &path) {
                let old = meta
                    .modified()
                    .ok()
                    .zip(before)
                    .is_some_and(|(then, before)| then <= before);
                if old {
                    found.push(Leftover {
                        path,
                        bytes: meta.len(),
                    });
                }
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// `<object name>#<digits>`, nothing else.
pub(crate) fn is_staging(root: &Path, path: &Path) -> bool {
    let name = path.strip_prefix(root).ok().and_then(Path::to_str);
    name.and_then(|name| name.rsplit_once('#'))
        .is_some_and(|(object, digits)| {
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && ObjectName::new(object).is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_staging_files_are_found() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data/3f");
        std::fs::create_dir_all(&dir).unwrap();
        for name in [
            "3f00.12.age",
            "3f00.12.age#1",
            "3f00.12.age#x",
            "#1",
            "README#1",
            "3f.age~",
        ] {
            std::fs::write(dir.join(name), b"x").unwrap();
        }
        std::os::unix::fs::symlink(dir.join("3f00.12.age#1"), dir.join("link#1")).unwrap();
        std::os::unix::fs::symlink(&dir, root.path().join("around")).unwrap();
        let found = |age| leftovers(root.path(), age).unwrap();
        assert_eq!(found(Duration::from_secs(3600)), []);
        let names: Vec<_> = found(Duration::ZERO).into_iter().map(|l| l.path).collect();
        assert_eq!(names, [dir.join("3f00.12.age#1")]);
    }
}
