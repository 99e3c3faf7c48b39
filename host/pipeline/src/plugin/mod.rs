//! Components that come from elsewhere: looked at before they are trusted, pinned to the bytes that were looked at.
//!
//! What this room promises: a plugin's file is read once, bounded, and what was hashed is what is compiled; a pin is
//! never moved without saying to what; looking at a file runs nothing of it but `describe`, in the sandbox, with nothing
//! granted. It must never make trusting easier than looking: no verb here pins what it could not load.

pub(crate) mod described;
pub mod inspect;
pub mod pin;
pub mod scaffold;
pub(crate) mod signature;
pub mod trial;
mod words;

use crate::error::{At, PipelineError};
use essrun_sandbox::Refusal;
use std::io::Read;
use std::path::Path;

pub use signature::{SignedBy, verify};

/// Reads a plugin's file, at most `most` bytes of it. Devices, pipes and folders are refused before they are opened.
pub fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let failed = |e: std::io::Error| format!("{shown} cannot be read: {e}");
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        return Err(format!("{shown} is no file"));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > most {
        let why = Refusal::TooLarge {
            bytes: found.len().max(bytes.len() as u64),
            limit: most,
        };
        return Err(format!("{shown}: {why}"));
    }
    Ok(bytes)
}

/// A file named on the command line cannot be used.
fn bad_file(path: &Path, problem: String, hint: &str) -> PipelineError {
    PipelineError::Config {
        at: At {
            file: path.to_owned(),
            line: 0,
        },
        problem,
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_read_and_only_so_far() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.wasm");
        std::fs::write(&file, [7u8; 10]).unwrap();
        assert_eq!(read_file(&file, 10).unwrap(), [7u8; 10]);
        let said = read_file(&file, 9).unwrap_err();
        assert!(said.contains("it has 10 bytes, at most 9"), "{said}");
        assert!(read_file(dir.path(), 10).unwrap_err().contains("is no file"));
        assert!(
            read_file(Path::new("/dev/zero"), 10)
                .unwrap_err()
                .contains("is no file")
        );
        let absent = read_file(&dir.path().join("y"), 10).unwrap_err();
        assert!(absent.contains("cannot be read"), "{absent}");
    }
}
