//! Databases that a restore put in service: their comment says which.
//!
//! A restore of several databases can be stopped when some are in service and others are not. The one that goes on must
//! know the first from any other database that stands in its way. The rows are not compared again: they were before the
//! database was put in service, and whoever it serves may have written since.

use super::journal::Origin;
use super::scratch::comment;
use crate::connection::Session;
use crate::error::Result;
use serde::{Deserialize, Serialize};

const MARK: &str = "essrun restored ";

/// Which restore it was, without the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    backup: String,
    /// Which database of the backup it is, as `component/label`.
    of: String,
    /// Digest of all that must be the same for a resume.
    origin: String,
}

#[derive(Serialize, Deserialize)]
struct Dated {
    at: String,
    #[serde(flatten)]
    marker: Marker,
}

impl Marker {
    pub fn of(run: &str, prefix: &str, origin: &Origin) -> Marker {
        let text = serde_json::to_vec(origin).unwrap_or_default();
        Marker {
            backup: run.to_owned(),
            of: prefix.to_owned(),
            origin: blake3::hash(&text).to_hex().to_string(),
        }
    }

    /// The comment, with the time of now.
    pub fn comment(&self) -> String {
        let dated = Dated {
            at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            marker: self.clone(),
        };
        format!("{MARK}{}", serde_json::to_string(&dated).unwrap_or_default())
    }

    /// The time in a comment, if it is this restore's.
    pub fn since(&self, comment: &str) -> Option<String> {
        let dated: Dated = serde_json::from_str(comment.strip_prefix(MARK)?).ok()?;
        // It is shown to people, and anybody who owns the database can write it.
        (&dated.marker == self).then(|| dated.at.chars().filter(|c| !c.is_control()).take(32).collect())
    }
}

/// Since when the database is in service, if this very restore put it there.
pub(super) async fn since(admin: &Session, database: &str, marker: &Marker) -> Result<Option<String>> {
    let text = comment(admin, database).await?.flatten();
    Ok(text.and_then(|text| marker.since(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_read_back() {
        let origin = Origin::from([("backup".to_owned(), "b".to_owned())]);
        let marker = Marker::of("b", "synapse/main", &origin);
        let comment = marker.comment();
        assert_eq!(
            marker.since(&comment).map(|at| at.len()),
            Some("2026-01-31T04:15:00Z".len())
        );
        assert_eq!(Marker::of("c", "synapse/main", &origin).since(&comment), None);
        let dated: Dated = serde_json::from_str(comment.strip_prefix(MARK).unwrap()).unwrap();
        assert_eq!(dated.marker, marker);
        assert_ne!(marker, Marker::of("b", "synapse/main", &Origin::new()));
        assert_ne!(marker, Marker::of("b", "synapse/state", &origin));
    }
}
