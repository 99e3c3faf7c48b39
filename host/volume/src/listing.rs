//! The listing: what stands in a `volume` artifact.
//!
//! An artifact of kind `volume` is a stream of JSON lines, one entry each, ordered by parent directory (components
//! compared as bytes, a directory before what is below it) and then by name; see [`crate::TreePath`]. The first line
//! is the root itself, with an empty path. Files' bytes are content of their own, named in their line. [`SCHEMA`]
//! describes a line; numbers are exact, unknown members are ignored, and a reader refuses a listing out of order.
//!
//! The order makes two listings comparable by one pass over both, and equal trees make equal bytes.

use crate::{TreePath, VolumeError};
use essrun_artifact::{ArtifactRecord, BackupReader, Content};
use serde::{Deserialize, Serialize};

/// The version of the listing's format, in the artifact's `meta.format`.
pub const FORMAT: u32 = 1;

/// What a line means, for docs and for people with only `age` and `zstd` at hand.
pub const SCHEMA: &str = r#"One JSON object a line:
path      string, or {"hex": "…"} when the bytes are not UTF-8; relative to the root, "" is the root
kind      "file", "directory" or "symlink"
mode      permission bits (decimal; 420 is 0644)
uid, gid  numeric owner and group
mtime     [seconds since 1970-01-01 UTC, nanoseconds]
ctime     the same, of the last change of the inode; only to recognise an unchanged file
ino       inode number; only to recognise an unchanged file
size      length in bytes of a file
content   of a file: {"bytes": …, "chunks": …}, absent when the file is empty
extents   of a sparse file: [[offset, length], …]; the content is these ranges in order, all else is a hole
hardlink  of a file: the path (like "path") of an earlier entry that is the same file; content is given all the same
target    of a symlink: what it points to (like "path")
xattrs    [[name (like "path"), value in base64], …]
unstable  true: the file changed while it was read, twice; its content is a mixture
fresh     true: the file changed so shortly before it was read that a further change might not show in its times;
          the next run reads it again
"#;

/// A moment as the file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "(i64, u32)", try_from = "(i64, u32)")]
pub struct Stamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl From<Stamp> for (i64, u32) {
    fn from(stamp: Stamp) -> Self {
        (stamp.seconds, stamp.nanoseconds)
    }
}

impl TryFrom<(i64, u32)> for Stamp {
    type Error = &'static str;
    fn try_from((seconds, nanoseconds): (i64, u32)) -> Result<Self, Self::Error> {
        if nanoseconds >= 1_000_000_000 {
            return Err("nanoseconds of a time are below 1000000000");
        }
        Ok(Stamp { seconds, nanoseconds })
    }
}

/// What a listed entry is, with what only such an entry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    File {
        size: u64,
        content: Content,
        /// Ranges that hold data; `None`: all of it.
        extents: Option<Vec<(u64, u64)>>,
        /// An earlier entry that is the same file.
        hardlink: Option<TreePath>,
        unstable: bool,
    },
}

/// One entry of an artifact, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    pub path: TreePath,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub ino: u64,
    pub fresh: bool,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The `meta` of a `volume` artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMeta {
    pub format: u32,
    /// All lines of the listing, the root's included.
    pub entries: u64,
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    /// Entries that are further names of an earlier file; counted in `files` too.
    pub hardlinks: u64,
    /// Length of all files in sum, each hard-linked file once.
    pub bytes: u64,
    pub unstable: u64,
    /// The rules it was taken by, with their reasons.
    pub take: Vec<crate::PathRule>,
    pub leave_out: Vec<crate::PathRule>,
}

/// Reads an artifact's entries, in order, each checked.
pub struct Entries {
    _record: ArtifactRecord,
}

impl Entries {
    /// Opens the listing of `record`; refused when it is no volume or of a later format.
    pub async fn open(reader: &dyn BackupReader, record: &ArtifactRecord) -> Result<Self, VolumeError> {
        let _ = reader;
        Ok(Entries {
            _record: record.clone(),
        })
    }

    /// The next entry, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ListedEntry>, VolumeError> {
        Err(VolumeError::Internal("not built yet".into()))
    }
}
