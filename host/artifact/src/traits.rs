//! The hand-over between makers and the keeper.

use crate::{ArtifactName, Content};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io::Read;

/// What an artifact gives away when it leaks. Ordered: a greater one needs greater care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitivity {
    /// Nothing about persons and no secret: schema, versions, counts.
    Internal,
    /// Personal data: messages, media, user names.
    Personal,
    /// Opens accounts, speaks for the server or decrypts other data: tokens, keys, password hashes.
    Secret,
}

/// Who can read what a lane writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// Contents: the recipients only.
    Data,
    /// Listings and lists of chunks: the recipients and the writer itself, so that the next run can compare.
    Meta,
}

/// How finely content is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// Small chunks (16–64 KiB) for table data and listings: a day's scattered changes must not re-upload the table.
    Fine,
    /// Large chunks (about 1 MiB) for media and other files that change as a whole.
    Coarse,
}

/// What a lane is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSpec {
    pub domain: Domain,
    pub cut: Cut,
}

impl LaneSpec {
    pub const TABLE: LaneSpec = LaneSpec {
        domain: Domain::Data,
        cut: Cut::Fine,
    };
    pub const FILES: LaneSpec = LaneSpec {
        domain: Domain::Data,
        cut: Cut::Coarse,
    };
    pub const LISTING: LaneSpec = LaneSpec {
        domain: Domain::Meta,
        cut: Cut::Fine,
    };
}

/// An artifact as it stands in a backup's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    pub name: ArtifactName,
    /// What it is, in the maker's words: `postgres-ddl`, `postgres-table`, `volume`, `sqlite`, …
    pub kind: String,
    pub sensitivity: Sensitivity,
    /// What the maker needs to read it again (columns, row count, format…), in the maker's own shape.
    pub meta: serde_json::Value,
    pub content: Content,
}

/// Keeping or reading failed. `what` names the object or artifact, `why` the cause, `hint` what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}{}", hint.as_deref().map(|h| format!("; {h}")).unwrap_or_default())]
pub struct KeepError {
    pub what: String,
    pub why: String,
    pub hint: Option<String>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl KeepError {
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        KeepError {
            what: what.into(),
            why: why.into(),
            hint: None,
            source: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The keeper's side of one backup in the making. Shared by all workers of a run.
#[async_trait]
pub trait BackupWriter: Send + Sync {
    /// Opens a lane: one ordered flow of bytes with packs of its own. A worker keeps one lane for many small pieces.
    fn lane(&self, spec: LaneSpec) -> Result<Box<dyn Lane>, KeepError>;

    /// Takes over content of an earlier backup without its bytes. `false`: not (any more) all there, so write it anew.
    async fn adopt(&self, content: &Content) -> Result<bool, KeepError>;

    /// Enters a finished artifact in the manifest to be. Refused when the name is taken.
    async fn record(&self, artifact: ArtifactRecord) -> Result<(), KeepError>;
}

/// One ordered flow of bytes into the repository.
#[async_trait]
pub trait Lane: Send {
    /// Adds bytes to the piece in the making. Returns when they are taken, not when they are stored.
    async fn write(&mut self, bytes: Bytes) -> Result<(), KeepError>;

    /// Ends the piece in the making and names it. The next write begins another piece.
    async fn cut(&mut self) -> Result<Content, KeepError>;

    /// Stores what is left. A lane dropped without `close` makes the backup impossible to commit.
    async fn close(self: Box<Self>) -> Result<(), KeepError>;
}

/// The keeper's side of one committed backup, opened with an identity (contents) or the writer key (listings).
#[async_trait]
pub trait BackupReader: Send + Sync {
    /// All artifacts, in the order they were recorded.
    fn artifacts(&self) -> &[ArtifactRecord];

    /// Opens content for reading, in order, every chunk checked against its id before it is handed out.
    async fn open(&self, content: &Content) -> Result<Box<dyn ContentReader>, KeepError>;

    /// Whether bytes at hand are this content, to their end. A keeper that can tell without fetching the content does.
    async fn same(&self, content: &Content, at_hand: &mut (dyn std::io::Read + Send)) -> Result<bool, KeepError> {
        let mut stream = self.open(content).await?;
        let mut here = Vec::new();
        while let Some(bytes) = stream.next().await? {
            if read_full(at_hand, bytes.len(), &mut here)? != bytes.len() || here != bytes {
                return Ok(false);
            }
        }
        Ok(read_full(at_hand, 1, &mut here)? == 0)
    }

    fn artifact(&self, name: &ArtifactName) -> Option<&ArtifactRecord> {
        self.artifacts().iter().find(|a| &a.name == name)
    }
}

/// Reads so many bytes, fewer only at the end; gives how many.
pub fn read_full(from: &mut dyn std::io::Read, length: usize, into: &mut Vec<u8>) -> Result<usize, KeepError> {
    into.clear();
    std::io::Read::take(from, length as u64)
        .read_to_end(into)
        .map_err(|e| KeepError::new("what is at hand", format!("cannot be read: {e}")).caused_by(e))
}

/// Reads content in order.
#[async_trait]
pub trait ContentReader: Send {
    /// The next bytes, or `None` at the end, which is only reported when all bytes of the content have come.
    async fn next(&mut self) -> Result<Option<Bytes>, KeepError>;
}
