//! Artifact names: `component/label` or `component/label/rest`, printable, without path tricks.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of an artifact within a backup, unique in it. The first segment is the component's name in pipeline.toml.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactName(String);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "artifact name {name:?} {problem}; use component/label or component/label/rest, at most 512 bytes, without control characters, empty segments, `.` or `..`"
)]
pub struct NameError {
    name: String,
    problem: &'static str,
}

impl ArtifactName {
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let problem = if name.is_empty() {
            Some("is empty")
        } else if name.len() > 512 {
            Some("is too long")
        } else if name.chars().any(char::is_control) {
            Some("has a control character")
        } else if name.split('/').any(|s| s.is_empty() || s == "." || s == "..") {
            Some("has an empty, `.` or `..` segment")
        } else if !name.contains('/') {
            Some("has no label")
        } else {
            None
        };
        match problem {
            Some(problem) => Err(NameError { name, problem }),
            None => Ok(ArtifactName(name)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The component's name: what stands before the first slash.
    pub fn component(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ArtifactName {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        ArtifactName::new(name)
    }
}

impl From<ArtifactName> for String {
    fn from(name: ArtifactName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in [
            "synapse/main",
            "synapse/main/public.events",
            "synapse/main/public.\"Odd Name\"",
            "x/ä",
        ] {
            assert_eq!(ArtifactName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "synapse",
            "/x",
            "x/",
            "x//y",
            "x/../y",
            "x/./y",
            "x/\u{1b}[2J",
            &"x/".repeat(300),
        ] {
            assert!(ArtifactName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hostile_json_is_refused() {
        assert!(serde_json::from_str::<ArtifactName>("\"../../etc\"").is_err());
        assert_eq!(
            serde_json::from_str::<ArtifactName>("\"a/b\"").unwrap().component(),
            "a"
        );
    }
}
