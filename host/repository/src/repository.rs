//! The repository as its users see it; each verb is carried out in a room of its own.

use crate::core::Core;
use crate::keys::{Recipients, WriterKey, WriterPublic};
use crate::manifest::{self, Manifest};
use crate::read::OpenBackup;
use crate::write::Backup;
use crate::{
    Access, Annotation, BackupId, BackupStart, BackupSummary, CheckMode, CheckReport, PrunePlan, PruneReport,
    RepositoryError, annotation, check, forget, prune,
};
use essrun_store::Store;
use std::sync::Arc;
use std::time::Duration;

/// An open repository. Clones share it.
#[derive(Clone, Debug)]
pub struct Repository {
    core: Arc<Core>,
}

impl Repository {
    /// Makes a repository: writes its signed configuration object. Refused when the place is not empty.
    ///
    /// `recipients` are tried out, so that one that cannot be encrypted to is found before the first backup.
    pub async fn init(
        store: Arc<dyn Store>,
        writer: &WriterKey,
        recipients: &Recipients,
    ) -> Result<(), RepositoryError> {
        if !recipients.is_empty() {
            crate::envelope::seal(recipients, b"", 3)?;
        }
        Core::init(&store, writer).await
    }

    /// Opens a repository with the keys at hand.
    pub async fn open(store: Arc<dyn Store>, access: Access) -> Result<Self, RepositoryError> {
        let core = Core::open(store, access).await?;
        Ok(Repository { core: Arc::new(core) })
    }

    /// The repository's own name: 32 hexadecimal digits, made at random when it was.
    pub fn id(&self) -> &str {
        &self.core.config.id
    }

    /// Writers whose signatures count here.
    pub fn writers(&self) -> &[WriterPublic] {
        &self.core.trusted
    }

    /// Lets a further writer in; needs the key of one that is.
    pub async fn authorize(&self, writer: &WriterPublic) -> Result<(), RepositoryError> {
        self.core.authorize(writer).await
    }

    /// All committed and not forgotten backups, oldest first. Bodies are there when a key reads them.
    ///
    /// A manifest that is damaged or forged is left out with a warning; `check` names it.
    pub async fn backups(&self) -> Result<Vec<BackupSummary>, RepositoryError> {
        let mut all = Vec::new();
        for manifest in self.manifests().await? {
            let body = match manifest.open(&self.core) {
                Ok(sealed) => Some(sealed.body),
                Err(RepositoryError::Key { .. }) => None,
                Err(e) => {
                    tracing::warn!(error = %e, "the sealed part of a manifest cannot be read");
                    None
                }
            };
            all.push(manifest.summary(body));
        }
        Ok(all)
    }

    /// Trusted manifests that are not forgotten, oldest first.
    async fn manifests(&self) -> Result<Vec<Manifest>, RepositoryError> {
        let mut all = Vec::new();
        let (tombstones, odd) = forget::read_all(&self.core).await?;
        for (object, e) in odd {
            tracing::warn!(%object, error = %e, "a tombstone counts for nothing");
        }
        for (_, manifest) in manifest::read_all(&self.core).await? {
            match manifest {
                Ok(manifest) if forget::is_forgotten(&tombstones, &manifest) => {}
                Ok(manifest) => all.push(manifest),
                Err(e) => tracing::warn!(error = %e, "a manifest is left out"),
            }
        }
        // Backups of one second: one writer's are told apart by their place in its chain.
        all.sort_by_cached_key(|m| {
            let c = &m.claim;
            (c.created_at, c.committed_at, c.sequence, c.backup.clone())
        });
        Ok(all)
    }

    /// Finds a backup by its id, the beginning of its id, or `latest`.
    async fn find(&self, wanted: &str) -> Result<Manifest, RepositoryError> {
        let none = |why: &str| RepositoryError::NoBackup {
            wanted: wanted.chars().take(64).filter(|c| !c.is_control()).collect(),
            why: why.to_owned(),
        };
        let mut all = self.manifests().await?;
        if wanted == "latest" {
            return all.pop().ok_or_else(|| none("there are no backups yet"));
        }
        if wanted.is_empty() {
            return Err(none("no name was given"));
        }
        all.retain(|m| m.claim.backup.as_str().starts_with(wanted));
        match (all.pop(), all.is_empty()) {
            (None, _) => Err(none("there is none of that name")),
            (Some(found), true) => Ok(found),
            (Some(_), false) => Err(none("more than one begins like this")),
        }
    }

    /// Begins a backup.
    pub async fn begin(&self, start: BackupStart) -> Result<Backup, RepositoryError> {
        Backup::begin(self.core.clone(), start).await
    }

    /// Opens a backup by its id, the beginning of its id, or `latest`.
    pub async fn read(&self, wanted: &str) -> Result<OpenBackup, RepositoryError> {
        OpenBackup::open(self.core.clone(), self.find(wanted).await?).await
    }

    /// Looks the repository over.
    pub async fn check(&self, mode: CheckMode) -> Result<CheckReport, RepositoryError> {
        check::check(self.core.clone(), mode).await
    }

    /// Stores a small signed object beside a backup. `kind` is a short word of a-z, 0-9 and `-`.
    pub async fn annotate(
        &self,
        backup: &BackupId,
        kind: &str,
        body: serde_json::Value,
    ) -> Result<(), RepositoryError> {
        annotation::write(&self.core, &self.find(backup.as_str()).await?, kind, &body).await
    }

    /// The annotations of a backup, oldest first, those with a good signature only.
    pub async fn annotations(&self, backup: &BackupId) -> Result<Vec<Annotation>, RepositoryError> {
        annotation::read(&self.core, &self.find(backup.as_str()).await?).await
    }

    /// Forgets a backup: sets its tombstone. What only it needs goes with a later [`Repository::prune`].
    pub async fn forget(&self, backup: &BackupId, reason: &str) -> Result<(), RepositoryError> {
        forget::set(&self.core, &self.find(backup.as_str()).await?, reason).await
    }

    /// What a prune would do; changes nothing but a probe of the store's clock.
    ///
    /// `grace` is how long what nothing needs stays marked before it is deleted; longer than any backup runs.
    pub async fn plan_prune(&self, grace: Duration) -> Result<PrunePlan, RepositoryError> {
        prune::plan(&self.core, grace).await
    }

    /// Carries a plan out, as far as it still holds.
    pub async fn prune(&self, plan: &PrunePlan) -> Result<PruneReport, RepositoryError> {
        prune::carry_out(&self.core, plan).await
    }
}
