//! Paths below a root: bytes, relative, without tricks.
//!
//! A name in a file tree is any bytes but `/` and NUL. We keep it so, exactly; text is made of it only to show it
//! or for guests. In JSON a path is a string where it is UTF-8 and `{"hex": "…"}` where it is not.

use crate::VolumeError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;

/// A checked path relative to a volume's root; empty means the root itself. No empty, `.` or `..` components, no NUL.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

/// The longest path we handle. Paths longer than the kernel's 4096 bytes are reached piece by piece.
const LONGEST_PATH: usize = 1 << 20;
/// The longest name in a directory (NAME_MAX of every Linux file system).
const LONGEST_NAME: usize = 255;

impl TreePath {
    /// The volume's root.
    pub fn root() -> Self {
        TreePath(Vec::new())
    }

    /// Checks a path from outside.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, VolumeError> {
        let path = path.into();
        let why = if path.is_empty() {
            None
        } else if path.len() > LONGEST_PATH {
            Some("is longer than 1 MiB")
        } else if path.contains(&0) {
            Some("contains a NUL byte")
        } else if path.starts_with(b"/") {
            Some("is absolute; write it relative to the volume's root")
        } else {
            path.split(|b| *b == b'/').find_map(|name| match name {
                b"" => Some("has an empty component"),
                b"." | b".." => Some("has a `.` or `..` component"),
                name if name.len() > LONGEST_NAME => Some("has a component longer than 255 bytes"),
                _ => None,
            })
        };
        match why {
            None => Ok(TreePath(path)),
            Some(why) => Err(VolumeError::invalid(show(&path), why)),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, none for the root.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|name| !name.is_empty())
    }

    /// Parent directory and name; `None` for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(split_bytes(&self.0))
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_within(&self, other: &TreePath) -> bool {
        other.is_root()
            || self
                .0
                .strip_prefix(other.0.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    /// The path of an entry a directory named; the kernel gives no name with a slash.
    pub(crate) fn of_entry(directory: &[u8], name: &[u8]) -> TreePath {
        TreePath(join_bytes(directory, name))
    }

    /// The path of a directory the walk came to.
    pub(crate) fn of_directory(path: Vec<u8>) -> TreePath {
        TreePath(path)
    }

    /// The text for people and guests: what is not UTF-8 becomes U+FFFD.
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

pub(crate) fn join_bytes(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

pub(crate) fn split_bytes(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => {
            let (parent, name) = path.split_at(at);
            (parent, name.get(1..).unwrap_or_default())
        }
        None => (b"", path),
    }
}

/// The order of listings: by parent directory (components compared as bytes, a directory before what is below it),
/// then by name. All entries of a directory thus stand together, before those of its subdirectories.
impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.split(), other.split()) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some((a_parent, a)), Some((b_parent, b))) => order_directories(a_parent, b_parent).then_with(|| a.cmp(b)),
        }
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn order_directories(a: &[u8], b: &[u8]) -> Ordering {
    // `/` is the separator, so it must sort before every byte a name can hold; NUL cannot be in a name.
    let low = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(low).cmp(b.iter().map(low))
}

/// A directory's path in the order in which listings come to directories.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DirectoryPath(pub Vec<u8>);

impl Ord for DirectoryPath {
    fn cmp(&self, other: &Self) -> Ordering {
        order_directories(&self.0, &other.0)
    }
}

impl PartialOrd for DirectoryPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Text safe for a terminal and a log.
pub(crate) fn show(path: &[u8]) -> String {
    if path.is_empty() {
        return "(root)".into();
    }
    String::from_utf8_lossy(path)
        .chars()
        .flat_map(|c| {
            let escape = c.is_control();
            let escaped = escape.then(|| c.escape_default());
            escaped.into_iter().flatten().chain((!escape).then_some(c))
        })
        .collect()
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Bytes in JSON: a string where they are UTF-8, otherwise an object with their hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TextOrHex(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form<'a> {
    Text(std::borrow::Cow<'a, str>),
    Hex { hex: String },
}

impl Serialize for TextOrHex {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => Form::Hex {
                hex: hex::encode(&self.0),
            }
            .serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for TextOrHex {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(TextOrHex(match Form::deserialize(d)? {
            Form::Text(text) => text.into_owned().into_bytes(),
            Form::Hex { hex } => hex::decode(hex).map_err(serde::de::Error::custom)?,
        }))
    }
}

impl Serialize for TreePath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => TextOrHex(self.0.clone()).serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        TreePath::new(TextOrHex::deserialize(d)?.0).map_err(serde::de::Error::custom)
    }
}
