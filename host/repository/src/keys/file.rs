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

/// Whether others than we and root can reach a key file. As libpq has it for `sslkey`: a file of root's may be readable by
/// its group, and that group must be one of ours; Kubernetes mounts a Secret so, for a Pod that is not root.
#[cfg(unix)]
fn exposed(mode: u32, owner: u32, group: u32, ours: &[u32]) -> bool {
    let allowed = match owner == 0 && ours.contains(&group) {
        true => 0o740,
        false => 0o700,
    };
    mode & 0o777 & !allowed != 0
}

#[cfg(unix)]
fn our_groups(path: &Path) -> Result<Vec<u32>, RepositoryError> {
    let groups =
        rustix::process::getgroups().map_err(|e| refuse(path, e, "the groups of this process are not known"))?;
    let own = rustix::process::getegid();
    Ok(groups.iter().chain([&own]).map(|g| g.as_raw()).collect())
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
        if exposed(meta.mode(), meta.uid(), meta.gid(), &our_groups(path)?) {
            let why = format!("others may read it (mode {:03o})", meta.mode() & 0o777);
            let hint =
                "chmod 600 it, and think about who may have read it; root's file may be 0640 for a group of ours";
            return Err(refuse(path, why, hint));
        }
    }
    let mut text = Zeroizing::new(String::with_capacity(meta.len() as usize + 1));
    file.take(LIMIT)
        .read_to_string(&mut text)
        .map_err(|e| refuse(path, e, "name the file that `keygen` made"))?;
    Ok(text)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn only_root_may_share_a_key_and_only_with_a_group_of_ours() {
        let ours = [10991, 7];
        for mode in [0o600, 0o400, 0o700] {
            assert!(
                !exposed(mode, 1000, 1000, &ours) && !exposed(mode, 0, 0, &ours),
                "{mode:o}"
            );
        }
        for mode in [0o640, 0o440] {
            assert!(!exposed(mode, 0, 10991, &ours), "{mode:o}: root's, for our group");
            assert!(exposed(mode, 0, 12, &ours), "{mode:o}: root's, for another group");
            assert!(exposed(mode, 10991, 10991, &ours), "{mode:o}: not root's");
        }
        for mode in [0o660, 0o650, 0o644, 0o604, 0o444, 0o641] {
            assert!(exposed(mode, 0, 10991, &ours), "{mode:o}");
        }
    }

    #[test]
    fn the_file_itself_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_secret(&path, "secret").unwrap();
        assert_eq!(read_secret(&path).unwrap().as_str(), "secret");
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o644);
        assert!(
            read_secret(&path)
                .unwrap_err()
                .to_string()
                .contains("others may read it")
        );
        // Made here, it is of a group of ours; whether it may be shared depends on whether we are root.
        mode(0o640);
        assert_eq!(read_secret(&path).is_ok(), path.metadata().unwrap().uid() == 0);
    }
}
