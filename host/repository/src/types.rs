//! The words of the room's border: what is asked of a repository and what it answers.

use crate::RepositoryError;
use crate::keys::{Identity, Recipients, WriterId, WriterKey, WriterPublic};
use essrun_artifact::Sensitivity;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A backup's name: when it was begun (UTC) and four random bytes, `20260131t041500z-9f3a01c2`. Sorts by time.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    pub fn new(text: impl Into<String>) -> Result<Self, RepositoryError> {
        let text = text.into();
        let shaped = text.len() == 25
            && text.bytes().enumerate().all(|(at, b)| match at {
                8 => b == b't',
                15 => b == b'z',
                16 => b == b'-',
                0..=14 => b.is_ascii_digit(),
                _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
            });
        if shaped {
            Ok(BackupId(text))
        } else {
            Err(RepositoryError::NoBackup {
                wanted: text.chars().take(64).filter(|c| !c.is_control()).collect(),
                why: "is not the name of a backup (like 20260131t041500z-9f3a01c2)".into(),
            })
        }
    }

    pub(crate) fn make(now: jiff::Timestamp) -> Self {
        let time = now.strftime("%Y%m%dt%H%M%Sz");
        BackupId(format!("{time}-{}", hex::encode(rand::random::<[u8; 4]>())))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BackupId {
    type Error = RepositoryError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        BackupId::new(text)
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.0
    }
}

/// With which keys a repository is opened. Each may be missing; what needs it then says so.
#[derive(Debug)]
pub struct Access {
    /// To write, and to read listings.
    pub writer: Option<WriterKey>,
    /// To read contents.
    pub identities: Vec<Identity>,
    /// To whom contents are written.
    pub recipients: Recipients,
    /// Where the chunk index and what was read before are kept on this host; made if missing, deleted at no cost but time.
    pub cache_dir: PathBuf,
    /// Where this host remembers the repository's history, to notice a rollback; made if missing. What earlier versions
    /// kept of it in the cache is moved here.
    pub state_dir: PathBuf,
    pub options: Options,
}

/// What can be tuned. The defaults are meant to be right.
#[derive(Clone, Debug)]
pub struct Options {
    /// zstd's level, 1 to 19.
    pub compression_level: i32,
    /// A pack is finished when its ciphertext reaches this.
    pub pack_bytes: usize,
    /// Packs being uploaded at one time; each is held in memory.
    pub uploads: usize,
    /// Writers trusted besides those the repository's first writer vouches for: given from outside, so that a
    /// repository swapped as a whole is seen. Empty: whoever made the repository when this host first saw it.
    pub trusted_writers: Vec<WriterPublic>,
    /// Writers not believed whatever the repository says: neither what they signed, nor whom they vouch for, nor who
    /// vouches for them.
    pub distrusted_writers: Vec<WriterPublic>,
    /// A running backup announces itself anew this often; prune waits for announced backups.
    pub lease_refresh: Duration,
    /// An announcement older than this counts for nothing. A backup that could not renew in time does not commit.
    pub lease_valid: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            compression_level: 2,
            pack_bytes: 16 << 20,
            uploads: 2,
            trusted_writers: Vec::new(),
            distrusted_writers: Vec::new(),
            lease_refresh: Duration::from_secs(10 * 60),
            lease_valid: Duration::from_secs(2 * 60 * 60),
        }
    }
}

/// How a backup begins.
#[derive(Clone, Debug)]
pub struct BackupStart {
    /// The most sensitive artifact that will be recorded; refused here when there is no recipient for it.
    pub sensitivity: Sensitivity,
}

/// A committed backup, as a list shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupSummary {
    pub id: BackupId,
    /// When it was begun, seconds since 1970, by the writer's clock.
    pub created_at: i64,
    /// When it was committed, seconds since 1970, by the writer's clock.
    pub committed_at: i64,
    pub writer: WriterId,
    /// Its place in its writer's chain, from 1.
    pub sequence: u64,
    /// All zero when opened without a key that reads it: then `body` is `None`.
    pub stats: BackupStats,
    /// Objects a restore of it needs.
    pub needed_objects: u64,
    pub needed_bytes: u64,
    /// Objects of it that are lost for good, as a repair found; 0: it is whole as far as is known.
    #[serde(default)]
    pub lost_objects: u64,
    /// What the pipeline stored with it; `None` when opened without a key that reads it.
    pub body: Option<Body>,
}

/// What the pipeline stored with a backup, as JSON text. As values it takes ten times the memory, which for a list of a
/// thousand backups is more than a small host has: they are made of one at a time, by whoever looks into it.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(Arc<str>);

impl Body {
    pub(crate) fn of(value: &serde_json::Value) -> Self {
        Body(value.to_string().into())
    }

    pub(crate) fn from_text(text: String) -> Self {
        Body(text.into())
    }

    /// Reads it as what the pipeline takes it for.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.0)
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

impl Serialize for Body {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: serde_json::Value = self.read().map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Body::of(&serde_json::Value::deserialize(deserializer)?))
    }
}

/// What making a backup took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStats {
    /// Plain bytes that came through lanes.
    pub bytes_read: u64,
    /// Plain bytes taken over unread.
    pub bytes_adopted: u64,
    /// Plain bytes in chunks the repository did not have.
    pub bytes_new: u64,
    /// Bytes of the objects written for them.
    pub bytes_stored: u64,
    pub chunks_new: u64,
    pub chunks_reused: u64,
}

/// How deep to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// Every object against the signed public parts; needs no key. Reads every byte.
    Public,
    /// As `Public`, and every index, manifest and listing opened with the writer key (or an identity).
    Writer,
    /// As `Writer`, and everything read back with an identity; `part` of `of` of the packs, chosen by name, so that
    /// `1/7` to `7/7` are all of them. Lists of chunks and listings are read in every part.
    Full { part: u32, of: u32 },
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// An object a backup needs is not there.
    Missing,
    /// It is shorter or longer than it was written.
    WrongSize,
    /// Its bytes are not those that were written: a bit flip, or another object under its name.
    WrongContent,
    /// Its header names other recipients than it was written for.
    ForeignRecipient,
    /// A signature does not fit, or is nobody's we trust.
    Forged,
    /// The chain of backups has a hole or two ends, or is not the one this host remembers.
    ChainBroken,
    /// The repository is older than this host has seen it: rolled back, or its newest backups were deleted.
    RolledBack,
    /// It is whole, but what it holds is not what it must be.
    Undecodable,
    /// A repair found that a part of a backup is lost for good; it says so, and the rest is whole. Nothing new.
    KnownDamage,
    /// Contents can be read by others than the recipients of today, or not by all of these. Nothing is damaged.
    OtherRecipients,
    /// Nothing needs it: left by an interrupted run. Harmless.
    Unused,
    /// It is no object of a repository's; somebody else put it there. Harmless.
    Stray,
    /// An artifact of a kind not known here: what it names besides its own content was not read back.
    NotRead,
    /// The store failed while it was looked at.
    Unreadable,
}

impl FindingKind {
    /// Worth knowing, and no fault of the repository.
    pub fn is_harmless(self) -> bool {
        matches!(
            self,
            FindingKind::Unused
                | FindingKind::KnownDamage
                | FindingKind::OtherRecipients
                | FindingKind::Stray
                | FindingKind::NotRead
        )
    }
}

/// One thing that is wrong, by the object's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub object: String,
    pub kind: FindingKind,
    pub detail: String,
    /// Backups that cannot be fully restored because of it.
    pub affects: Vec<BackupId>,
}

/// What a check saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    pub backups: u64,
    pub objects: u64,
    pub bytes_read: u64,
    pub chunks_verified: u64,
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong. Unused objects are not, nor is what is known and said elsewhere.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|f| f.kind.is_harmless())
    }
}

/// A small signed object beside a backup, such as the result of a drill.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Annotation {
    pub backup: BackupId,
    /// A short word: `drill`, `verified`, `suspect`, …
    pub kind: String,
    /// Seconds since 1970, by the writer's clock.
    pub created_at: i64,
    pub writer: WriterId,
    pub body: serde_json::Value,
}
