//! The listing: what stands in a `volume` artifact.
//!
//! An artifact of kind `volume` is a stream of JSON lines, one entry each, ordered by parent directory (components
//! compared as bytes, a directory before what is below it) and then by name; see [`crate::TreePath`]. The first line
//! is the root itself, with an empty path. Files' bytes are content of their own, named in their line. [`SCHEMA`]
//! describes a line; numbers are exact, unknown members are ignored, and a reader refuses a listing out of order.
//!
//! The order makes two listings comparable by one pass over both, and equal trees make equal bytes.

use crate::path::TextOrHex;
use crate::{TreePath, VolumeError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use essrun_artifact::{ArtifactRecord, BackupReader, Content, ContentReader};
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

/// Name and value of an extended attribute.
pub type Attribute = (Vec<u8>, Vec<u8>);

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
    pub xattrs: Vec<Attribute>,
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
    /// Entries that could not be read and are missing.
    pub unreadable: u64,
    /// The rules it was taken by, with their reasons.
    pub take: Vec<crate::PathRule>,
    pub leave_out: Vec<crate::PathRule>,
}

/// A line as it stands in the listing.
#[derive(Serialize, Deserialize)]
struct Line {
    path: TreePath,
    kind: LineKind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Stamp,
    ctime: Stamp,
    ino: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<(u64, u64)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hardlink: Option<TreePath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<TextOrHex>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(TextOrHex, String)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unstable: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fresh: bool,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum LineKind {
    File,
    Directory,
    Symlink,
}

/// Longer lines are refused: names and attributes are bounded by the kernel, lists of chunks by the keeper.
const LONGEST_LINE: usize = 64 << 20;

impl ListedEntry {
    /// Appends the entry's line.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let mut line = Line {
            path: self.path.clone(),
            kind: LineKind::Directory,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            ctime: self.ctime,
            ino: self.ino,
            size: None,
            content: None,
            extents: None,
            hardlink: None,
            target: None,
            xattrs: self
                .xattrs
                .iter()
                .map(|(name, value)| (TextOrHex(name.clone()), BASE64.encode(value)))
                .collect(),
            unstable: false,
            fresh: self.fresh,
        };
        match &self.kind {
            Kind::Directory => {}
            Kind::Symlink { target } => {
                line.kind = LineKind::Symlink;
                line.target = Some(TextOrHex(target.clone()));
            }
            Kind::File {
                size,
                content,
                extents,
                hardlink,
                unstable,
            } => {
                line.kind = LineKind::File;
                line.size = Some(*size);
                line.content = (content.bytes > 0).then(|| content.clone());
                line.extents = extents.clone();
                line.hardlink = hardlink.clone();
                line.unstable = *unstable;
            }
        }
        serde_json::to_writer(&mut *into, &line)?;
        into.push(b'\n');
        Ok(())
    }

    /// Reads a line and checks all that can be checked about it alone.
    pub fn decode(line: &[u8]) -> Result<ListedEntry, String> {
        let line: Line = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        if line.mode > 0o7777 {
            return Err(format!("mode {:o} is no permission bits", line.mode));
        }
        if line.kind != LineKind::File
            && (line.size.is_some() || line.content.is_some() || line.extents.is_some() || line.hardlink.is_some())
        {
            return Err("has contents but is no file".into());
        }
        if (line.kind == LineKind::Symlink) != line.target.is_some() {
            return Err("a symlink, and nothing else, has a target".into());
        }
        let kind = match line.kind {
            LineKind::Directory => Kind::Directory,
            LineKind::Symlink => Kind::Symlink {
                target: checked_target(line.target)?,
            },
            LineKind::File => {
                let size = line.size.ok_or("a file has a size")?;
                let content = line.content.unwrap_or_else(Content::empty);
                check_extents(size, &content, line.extents.as_deref())?;
                if let Some(first) = &line.hardlink
                    && (*first >= line.path || first.is_root())
                {
                    return Err("a hard link names an earlier entry".into());
                }
                Kind::File {
                    size,
                    content,
                    extents: line.extents,
                    hardlink: line.hardlink,
                    unstable: line.unstable,
                }
            }
        };
        if line.path.is_root() && kind != Kind::Directory {
            return Err("the root is a directory".into());
        }
        Ok(ListedEntry {
            path: line.path,
            kind,
            mode: line.mode,
            uid: line.uid,
            gid: line.gid,
            mtime: line.mtime,
            ctime: line.ctime,
            ino: line.ino,
            fresh: line.fresh,
            xattrs: checked_xattrs(line.xattrs)?,
        })
    }
}

fn checked_target(target: Option<TextOrHex>) -> Result<Vec<u8>, String> {
    let target = target.map(|t| t.0).unwrap_or_default();
    if target.is_empty() || target.len() > 4095 || target.contains(&0) {
        return Err("a symlink's target has 1 to 4095 bytes and no NUL".into());
    }
    Ok(target)
}

fn checked_xattrs(xattrs: Vec<(TextOrHex, String)>) -> Result<Vec<Attribute>, String> {
    xattrs
        .into_iter()
        .map(|(name, value)| {
            if name.0.is_empty() || name.0.len() > 255 || name.0.contains(&0) {
                return Err("an extended attribute's name has 1 to 255 bytes and no NUL".to_owned());
            }
            let value = BASE64.decode(value).map_err(|e| format!("extended attribute: {e}"))?;
            if value.len() > 65536 {
                return Err("an extended attribute has at most 65536 bytes".to_owned());
            }
            Ok((name.0, value))
        })
        .collect()
}

fn check_extents(size: u64, content: &Content, extents: Option<&[(u64, u64)]>) -> Result<(), String> {
    if i64::try_from(size).is_err() {
        return Err("the size is beyond any file system".into());
    }
    let Some(extents) = extents else {
        return if content.bytes == size {
            Ok(())
        } else {
            Err(format!("size {size} but {} bytes of content", content.bytes))
        };
    };
    let (mut end, mut sum) = (0u64, 0u64);
    for &(offset, length) in extents {
        let next = offset.checked_add(length).filter(|next| *next <= size);
        match next {
            Some(next) if offset >= end && length > 0 => {
                end = next;
                sum += length;
            }
            _ => return Err("extents are ordered, apart, not empty and within the file".into()),
        }
    }
    if sum == content.bytes {
        Ok(())
    } else {
        Err(format!("extents of {sum} but {} bytes of content", content.bytes))
    }
}

/// Splits a stream into lines and checks what only their sequence tells.
#[derive(Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    /// What of `buffer` has been handed out.
    used: usize,
    /// What of `buffer` is known to hold no line end.
    searched: usize,
    last: Option<TreePath>,
    pub(crate) entries: u64,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.used);
        self.searched -= self.used;
        self.used = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line's entry, `None` when more bytes are needed.
    pub fn next(&mut self) -> Result<Option<ListedEntry>, String> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(at) = unsearched.iter().position(|b| *b == b'\n') else {
            self.searched = self.buffer.len();
            if self.buffer.len() - self.used > LONGEST_LINE {
                return Err(format!("a line longer than {LONGEST_LINE} bytes"));
            }
            return Ok(None);
        };
        let end = self.searched + at;
        let line = self.buffer.get(self.used..end).unwrap_or_default();
        let entry = ListedEntry::decode(line)?;
        self.used = end + 1;
        self.searched = self.used;
        match &self.last {
            None if !entry.path.is_root() => return Err("the first entry is not the root".into()),
            Some(last) if entry.path <= *last => {
                return Err(format!("{} comes after {last}, out of order or twice", entry.path));
            }
            _ => {}
        }
        self.last = Some(entry.path.clone());
        self.entries += 1;
        Ok(Some(entry))
    }

    /// Called at the end of the stream.
    pub fn end(&self) -> Result<(), String> {
        if self.used < self.buffer.len() {
            return Err("the listing ends within a line".into());
        }
        if self.last.is_none() {
            return Err("the listing is empty".into());
        }
        Ok(())
    }
}

/// Reads an artifact's entries, in order, each checked.
pub struct Entries {
    artifact: String,
    meta: VolumeMeta,
    content: Box<dyn ContentReader>,
    decoder: Decoder,
    ended: bool,
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries")
            .field("artifact", &self.artifact)
            .finish_non_exhaustive()
    }
}

/// The meta of a volume artifact; refused when it is no volume or of a later format.
pub fn meta_of(record: &ArtifactRecord) -> Result<VolumeMeta, VolumeError> {
    let refuse = |why: String| VolumeError::Listing {
        artifact: record.name.to_string(),
        entry: 0,
        why,
    };
    if record.kind != crate::KIND {
        return Err(refuse(format!("is a {:?}, not a volume", record.kind)));
    }
    // The format first: a later one may have another shape.
    let format = record.meta.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        let found = format.map_or("no".to_owned(), |f| f.to_string());
        return Err(refuse(format!(
            "has format {found}, this essrun reads {FORMAT}; use the essrun that wrote it or a later one"
        )));
    }
    serde_json::from_value(record.meta.clone()).map_err(|e| refuse(format!("its description does not parse: {e}")))
}

impl Entries {
    /// Opens the listing of `record`; refused when it is no volume or of a later format.
    pub async fn open(reader: &dyn BackupReader, record: &ArtifactRecord) -> Result<Self, VolumeError> {
        let meta = meta_of(record)?;
        Ok(Entries {
            artifact: record.name.to_string(),
            meta,
            content: reader.open(&record.content).await?,
            decoder: Decoder::default(),
            ended: false,
        })
    }

    pub fn meta(&self) -> &VolumeMeta {
        &self.meta
    }

    /// The next entry, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ListedEntry>, VolumeError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            if let Some(entry) = self.decoder.next().map_err(|why| self.damaged(why))? {
                return Ok(Some(entry));
            }
            match self.content.next().await? {
                Some(bytes) => self.decoder.push(&bytes),
                None => {
                    self.decoder.end().map_err(|why| self.damaged(why))?;
                    if self.decoder.entries != self.meta.entries {
                        return Err(self.damaged(format!(
                            "has {} entries, its description says {}",
                            self.decoder.entries, self.meta.entries
                        )));
                    }
                    self.ended = true;
                    return Ok(None);
                }
            }
        }
    }

    fn damaged(&self, why: String) -> VolumeError {
        VolumeError::Listing {
            artifact: self.artifact.clone(),
            entry: self.decoder.entries + 1,
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essrun_artifact::{ChunkId, ChunkList, ChunkRef};
    use proptest::prelude::*;

    fn content(bytes: u64) -> Content {
        if bytes == 0 {
            return Content::empty();
        }
        Content {
            bytes,
            chunks: ChunkList::Inline(vec![ChunkRef {
                id: ChunkId([7; 32]),
                bytes: u32::try_from(bytes).unwrap(),
            }]),
        }
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>().prop_filter("name byte", |b| *b != 0 && *b != b'/'), 1..12)
            .prop_filter("no dots", |n| n != b"." && n != b"..")
    }

    fn path() -> impl Strategy<Value = TreePath> {
        proptest::collection::vec(name(), 1..5).prop_map(|names| TreePath::new(names.join(&b'/')).unwrap())
    }

    fn entry() -> impl Strategy<Value = ListedEntry> {
        let kind = prop_oneof![
            Just(Kind::Directory),
            proptest::collection::vec(1u8..=255, 1..20).prop_map(|target| Kind::Symlink { target }),
            (0u64..1000, any::<bool>()).prop_map(|(size, unstable)| Kind::File {
                size,
                content: content(size),
                extents: None,
                hardlink: None,
                unstable
            }),
            (1u64..1000, 1u64..1000).prop_map(|(hole, data)| Kind::File {
                size: hole + data + 5,
                content: content(data),
                extents: Some(vec![(hole, data)]),
                hardlink: None,
                unstable: false
            }),
        ];
        let stamp =
            (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanoseconds)| Stamp { seconds, nanoseconds });
        let xattrs = proptest::collection::vec(
            (
                proptest::collection::vec(1u8..=255, 1..10),
                proptest::collection::vec(any::<u8>(), 0..20),
            ),
            0..3,
        );
        (
            path(),
            kind,
            0u32..=0o7777,
            any::<(u32, u32, u64, bool)>(),
            stamp.clone(),
            stamp,
            xattrs,
        )
            .prop_map(
                |(path, kind, mode, (uid, gid, ino, fresh), mtime, ctime, xattrs)| ListedEntry {
                    path,
                    kind,
                    mode,
                    uid,
                    gid,
                    mtime,
                    ctime,
                    ino,
                    fresh,
                    xattrs,
                },
            )
    }

    fn line(json: &str) -> Result<ListedEntry, String> {
        ListedEntry::decode(json.as_bytes())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entry in entry()) {
            let mut bytes = Vec::new();
            entry.encode(&mut bytes).unwrap();
            prop_assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert_eq!(ListedEntry::decode(&bytes).unwrap(), entry);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..20) {
            let mut decoder = Decoder::default();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Ok(Some(_)) = decoder.next() {}
            }
            let _ = decoder.end();
        }

        /// Damage to a good line is refused or gives an entry that is still within bounds.
        #[test]
        fn damaged_lines_stay_checked(entry in entry(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = Vec::new();
            entry.encode(&mut bytes).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = ListedEntry::decode(&bytes) {
                prop_assert!(TreePath::new(read.path.as_bytes()).is_ok());
                if let Kind::File { size, content, extents, .. } = read.kind {
                    prop_assert!(check_extents(size, &content, extents.as_deref()).is_ok());
                }
            }
        }

        /// Lines may arrive cut anywhere.
        #[test]
        fn boundaries_do_not_matter(mut entries in proptest::collection::vec(entry(), 1..8), cut in 1usize..50) {
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            entries.dedup_by(|a, b| a.path == b.path);
            let mut root = entries[0].clone();
            root.path = TreePath::root();
            root.kind = Kind::Directory;
            entries.insert(0, root);
            let mut bytes = Vec::new();
            for entry in &entries {
                entry.encode(&mut bytes).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(entry) = decoder.next().unwrap() {
                    read.push(entry);
                }
            }
            decoder.end().unwrap();
            prop_assert_eq!(read, entries);
        }

        /// The order is total, puts parents first, and keeps a directory's entries together.
        #[test]
        fn order_is_by_directory(a in path(), b in path()) {
            prop_assert_eq!(a == b, a.cmp(&b).is_eq());
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if b.is_within(&a) && a != b {
                prop_assert!(a < b);
            }
            let names = |p: &TreePath| p.components().map(<[u8]>::to_vec).collect::<Vec<_>>();
            let (mut x, mut y) = (names(&a), names(&b));
            let (x_name, y_name) = (x.pop(), y.pop());
            prop_assert_eq!(a.cmp(&b), x.cmp(&y).then(x_name.cmp(&y_name)));
        }
    }

    const REST: &str = r#""mode":420,"uid":1,"gid":2,"mtime":[1,2],"ctime":[3,4],"ino":5"#;

    #[test]
    fn hostile_lines_are_refused() {
        assert!(line(&format!(r#"{{"path":"a","kind":"directory",{REST}}}"#)).is_ok());
        assert!(line(&format!(r#"{{"path":{{"hex":"ff"}},"kind":"directory",{REST}}}"#)).is_ok());
        for path in [
            r#""/a""#,
            r#""../a""#,
            r#""a/../b""#,
            r#""a//b""#,
            r#""./a""#,
            r#""a\u0000b""#,
            r#"{"hex":"2e2e"}"#,
        ] {
            let e = line(&format!(r#"{{"path":{path},"kind":"directory",{REST}}}"#));
            assert!(e.is_err(), "{path}");
        }
        for rest in [
            r#""kind":"file""#,
            r#""kind":"file","size":5"#,
            r#""kind":"file","size":18446744073709551615,"extents":[]"#,
            r#""kind":"file","size":9,"extents":[[3,0]]"#,
            r#""kind":"file","size":9,"extents":[[18446744073709551615,2]]"#,
            r#""kind":"file","size":0,"hardlink":"b""#,
            r#""kind":"file","size":0,"hardlink":"a""#,
            r#""kind":"file","size":0,"hardlink":"""#,
            r#""kind":"file","size":0,"hardlink":"../x""#,
            r#""kind":"symlink""#,
            r#""kind":"symlink","target":"""#,
            r#""kind":"symlink","target":"a\u0000""#,
            r#""kind":"directory","target":"x""#,
            r#""kind":"directory","size":0"#,
            r#""kind":"device""#,
        ] {
            assert!(line(&format!(r#"{{"path":"a",{rest},{REST}}}"#)).is_err(), "{rest}");
        }
        let mode = REST.replace("420", "65535");
        assert!(line(&format!(r#"{{"path":"a","kind":"directory",{mode}}}"#)).is_err());
        let time = REST.replace("[1,2]", "[1,1000000000]");
        assert!(line(&format!(r#"{{"path":"a","kind":"directory",{time}}}"#)).is_err());
    }

    #[test]
    fn sequences_are_checked() {
        let dir = |p: &str| format!("{{\"path\":\"{p}\",\"kind\":\"directory\",{REST}}}\n");
        let read = |text: String| -> Result<u64, String> {
            let mut decoder = Decoder::default();
            decoder.push(text.as_bytes());
            while decoder.next()?.is_some() {}
            decoder.end()?;
            Ok(decoder.entries)
        };
        assert_eq!(read(dir("") + &dir("a") + &dir("b") + &dir("a/x") + &dir("b/x")), Ok(5));
        assert!(read(String::new()).is_err());
        assert!(read(dir("a")).is_err(), "no root");
        assert!(read(dir("") + &dir("a") + &dir("a")).is_err(), "twice");
        assert!(read(dir("") + &dir("")).is_err(), "root twice");
        assert!(read(dir("") + &dir("b") + &dir("a")).is_err(), "out of order");
        assert!(
            read(dir("") + &dir("a/x") + &dir("b")).is_err(),
            "child before its siblings above"
        );
        assert!(read(dir("") + dir("a").trim_end()).is_err(), "cut off");
    }
}
