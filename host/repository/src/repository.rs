//! The repository as its users see it. (Signatures first; the rooms behind them follow.)

use crate::*;
use async_trait::async_trait;
use essrun_artifact::*;
use essrun_store::Store;
use std::sync::Arc;

fn soon<T>() -> Result<T, RepositoryError> {
    Err(RepositoryError::Internal("not built yet".into()))
}

/// An open repository. Clones share it.
#[derive(Clone, Debug)]
pub struct Repository {
    store: Arc<dyn Store>,
}

/// A backup in the making. Share it as `Arc<Backup>`; all methods take `&self`.
#[derive(Debug)]
pub struct Backup {}

/// A committed backup, opened for reading.
#[derive(Debug)]
pub struct OpenBackup {}

impl Repository {
    /// Makes a repository: writes its signed configuration object. Refused when there is one.
    pub async fn init(
        store: Arc<dyn Store>,
        writer: &WriterKey,
        recipients: &Recipients,
    ) -> Result<(), RepositoryError> {
        let _ = (store, writer, recipients);
        soon()
    }

    /// Opens a repository with the keys at hand.
    pub async fn open(store: Arc<dyn Store>, access: Access) -> Result<Self, RepositoryError> {
        let _ = access;
        Ok(Repository { store })
    }

    /// All committed and not forgotten backups, oldest first. Bodies are there when a key reads them.
    pub async fn backups(&self) -> Result<Vec<BackupSummary>, RepositoryError> {
        let _ = &self.store;
        soon()
    }

    /// Begins a backup.
    pub async fn begin(&self, start: BackupStart) -> Result<Backup, RepositoryError> {
        let _ = start;
        soon()
    }

    /// Opens a backup by its id, the beginning of its id, or `latest`.
    pub async fn read(&self, wanted: &str) -> Result<OpenBackup, RepositoryError> {
        let _ = wanted;
        soon()
    }

    /// Looks the repository over.
    pub async fn check(&self, mode: CheckMode) -> Result<CheckReport, RepositoryError> {
        let _ = mode;
        soon()
    }

    /// Stores a small signed object beside a backup. `kind` is a short word of a-z, 0-9 and `-`.
    pub async fn annotate(
        &self,
        backup: &BackupId,
        kind: &str,
        body: serde_json::Value,
    ) -> Result<(), RepositoryError> {
        let _ = (backup, kind, body);
        soon()
    }

    /// The annotations of a backup, oldest first, those with a good signature only.
    pub async fn annotations(&self, backup: &BackupId) -> Result<Vec<Annotation>, RepositoryError> {
        let _ = backup;
        soon()
    }
}

impl Backup {
    pub fn id(&self) -> &BackupId {
        unreachable!()
    }

    /// What it took so far.
    pub fn stats(&self) -> BackupStats {
        BackupStats::default()
    }

    /// Commits: waits for all uploads, then writes the manifest. Refused when a lane was dropped unclosed, when lanes
    /// are still open, or when it was committed before.
    pub async fn commit(&self, body: serde_json::Value) -> Result<BackupSummary, RepositoryError> {
        let _ = body;
        soon()
    }
}

#[async_trait]
impl BackupWriter for Backup {
    fn lane(&self, _: LaneSpec) -> Result<Box<dyn Lane>, KeepError> {
        Ok(soon()?)
    }
    async fn adopt(&self, _: &Content) -> Result<bool, KeepError> {
        Ok(soon()?)
    }
    async fn record(&self, _: ArtifactRecord) -> Result<(), KeepError> {
        Ok(soon()?)
    }
}

impl OpenBackup {
    /// What is known of the backup; its body is always there.
    pub fn summary(&self) -> &BackupSummary {
        unreachable!()
    }

    /// What the pipeline stored with it.
    pub fn body(&self) -> &serde_json::Value {
        unreachable!()
    }
}

#[async_trait]
impl BackupReader for OpenBackup {
    fn artifacts(&self) -> &[ArtifactRecord] {
        unreachable!()
    }
    async fn open(&self, _: &Content) -> Result<Box<dyn ContentReader>, KeepError> {
        Ok(soon()?)
    }
}
