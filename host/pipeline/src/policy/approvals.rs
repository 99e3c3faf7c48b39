//! Approval files: what somebody wrote, and who that was.
//!
//! A restore may be made to wait for another person: they write a file into the directory `approvals` names, and the
//! policy decides what it must say. Who owns the file is the one thing the writer cannot claim, so a file that others
//! than its owner can write is left out, and links are not followed.

use super::person;
use crate::config::Pipeline;
use crate::error::PipelineError;
use rustix::fs::OFlags;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What is larger, or the file after so many, was not written to approve something.
pub(crate) const MOST_BYTES: u64 = 64 << 10;
const MOST_FILES: usize = 100;

/// One approval file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Approval {
    /// Its file name.
    pub name: String,
    /// The user who owns it.
    pub owner: String,
    pub text: String,
    pub modified_unix_seconds: i64,
}

/// The approval files there are, by name. No directory is no approval.
pub fn read(pipeline: &Pipeline) -> Result<Vec<Approval>, PipelineError> {
    let Some(policy) = &pipeline.policy else {
        return Ok(Vec::new());
    };
    let Some(dir) = &policy.approvals else {
        return Ok(Vec::new());
    };
    let failed = |e: std::io::Error| PipelineError::Config {
        at: policy.at.clone(),
        problem: format!("approvals: {} cannot be read: {e}", dir.display()),
        hint: "name a directory essrun may read; whoever approves must be able to write into it".to_owned(),
    };
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let mut approvals = Vec::new();
    for path in paths {
        match one(&path) {
            Ok(Some(approval)) if approvals.len() < MOST_FILES => approvals.push(approval),
            Ok(Some(_)) => tracing::warn!("{}: left out, there are {MOST_FILES} approvals already", path.display()),
            Ok(None) => {}
            Err(why) => tracing::warn!("{}: left out of the approvals: {why}", path.display()),
        }
    }
    Ok(approvals)
}

/// `None` for what is no file.
pub(crate) fn one(path: &Path) -> Result<Option<Approval>, String> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| e.to_string())?;
    // Of the open file, so that nothing can be put in its place between the two looks.
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Ok(None);
    }
    if meta.mode() & 0o022 != 0 {
        return Err("others than its owner can write it (chmod go-w)".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    Ok(Some(Approval {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        owner: person::name(meta.uid()),
        text: String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?,
        modified_unix_seconds: meta.mtime(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_files_their_owner_alone_could_write_approve() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, mode: u32, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("good", 0o644, b"approve x\n");
        write("group", 0o664, b"approve x\n");
        write("world", 0o646, b"approve x\n");
        write("binary", 0o644, b"\xff\xfe");
        write("large", 0o644, &vec![b'x'; 65_537]);
        write("largest", 0o644, &vec![b'x'; 65_536]);
        symlink(dir.path().join("good"), dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        let text = format!(
            "version = 1\nname = \"x\"\n[repository]\nurl = \"r\"\n[components.x]\nuse = \"generic\"\n\
             [policy]\nfiles = [\"x.rego\"]\napprovals = {:?}\n",
            dir.path()
        );
        let pipeline = Pipeline::parse(Path::new("p.toml"), &text).unwrap();
        let read = super::read(&pipeline).unwrap();
        let names: Vec<_> = read.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, ["good", "largest"]);
        assert_eq!(read[0].text, "approve x\n");
        assert_eq!(read[0].owner, person::name(rustix::process::geteuid().as_raw()));
        let gone = Pipeline::parse(
            Path::new("p.toml"),
            &text.replace("approvals = \"", "approvals = \"/nowhere"),
        )
        .unwrap();
        assert_eq!(super::read(&gone).unwrap(), []);
    }
}
