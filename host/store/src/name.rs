//! Object names: what every store and every file system can hold, and nothing that leads anywhere else.

use std::fmt;

/// A checked object name: segments of `a-z 0-9 . _ -` joined by `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("object name {name:?} {problem}; names are lower-case segments of a-z, 0-9, `.`, `_`, `-` joined by `/`")]
pub struct NameError {
    pub name: String,
    pub problem: &'static str,
}

impl ObjectName {
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let problem = if name.is_empty() {
            Some("is empty")
        } else if name.len() > 512 {
            Some("is longer than 512 bytes")
        } else if !name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'/'))
        {
            Some("has a character that is not allowed")
        } else if name.split('/').any(|s| s.is_empty() || s.starts_with('.')) {
            Some("has an empty segment or one that begins with a dot")
        } else if name.split('/').any(|s| s.len() > 200) {
            Some("has a segment of more than 200 bytes")
        } else {
            None
        };
        match problem {
            Some(problem) => Err(NameError { name, problem }),
            None => Ok(ObjectName(name)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "data/3f/3fab.17.age", "manifests/w/0000000001.manifest"] {
            assert_eq!(ObjectName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "", "/a", "a/", "a//b", "../a", "a/../b", "a/.", ".hidden", "A", "a b", "a#1", "a\\b", "ä", "a\0",
        ] {
            assert!(ObjectName::new(bad).is_err(), "{bad:?}");
        }
        assert!(ObjectName::new("a".repeat(201)).is_err());
        assert!(ObjectName::new("a/".repeat(300) + "a").is_err());
    }
}
