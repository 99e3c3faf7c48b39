//! The repository as its users see it; each verb is carried out in a room of its own.

use crate::core::Core;
use crate::keys::{Recipients, WriterKey, WriterPublic};
use crate::makers::{Makers, PlainArtifacts};
use crate::manifest::{self, Manifest};
use crate::overview::{self, Seen};
use crate::read::OpenBackup;
use crate::write::Backup;
use crate::{
    Access, Annotation, BackupId, BackupStart, BackupSummary, CheckMode, CheckReport, PrunePlan, PruneReport,
    RepairReport, RepositoryError, Rewrite, RewriteReport, annotation, check, forget, prune,
};
use essrun_artifact::Progress;
use essrun_store::Store;
use std::collections::BTreeSet;
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

    /// Whether this writer may write here.
    pub fn knows(&self, writer: &WriterPublic) -> bool {
        self.core.trusted.contains(writer) && self.core.retired(&writer.id()).is_none()
    }

    /// Whether a backup is of the writer key at hand, or of one it was rotated from. Without a writer key all are as good
    /// as own.
    pub fn is_own(&self, backup: &BackupSummary) -> bool {
        self.core.writer.is_none() || self.core.own_writers().contains(&backup.writer)
    }

    /// Lets a further writer in; needs the key of one that is.
    pub async fn authorize(&self, writer: &WriterPublic) -> Result<(), RepositoryError> {
        self.core.authorize(writer).await
    }

    /// Gives the writer key at hand up in favour of `new`, made by [`WriterKey::rotated`] and saved before.
    pub async fn rotate(&self, new: &WriterKey) -> Result<(), RepositoryError> {
        self.core.rotate(new).await
    }

    /// Writes packs anew, leaving out what nothing needs or encrypting to the recipients of today; with `confirm`. Else it
    /// only says what it would do. Needs an identity and the writer key.
    pub async fn rewrite(
        &self,
        what: Rewrite,
        confirm: bool,
        makers: &dyn Makers,
        progress: &dyn Progress,
    ) -> Result<RewriteReport, RepositoryError> {
        crate::write::rewrite(self.core.clone(), what, confirm, makers, progress).await
    }

    /// All committed and not forgotten backups, oldest first. Bodies are there when a key reads them.
    ///
    /// A manifest that is damaged or forged is left out with a warning; `check` names it.
    pub async fn backups(&self) -> Result<Vec<BackupSummary>, RepositoryError> {
        Ok(self.seen(false).await?.iter().map(Seen::summary).collect())
    }

    /// The same with the annotations of each, oldest first: what a list needs, at the cost of one look.
    pub async fn backups_annotated(&self) -> Result<Vec<(BackupSummary, Vec<Annotation>)>, RepositoryError> {
        let seen = self.seen(false).await?;
        let mut notes = overview::annotations(&self.core, &seen).await?;
        let with = |s: &Seen| (s.summary(), notes.read.remove(&s.claim.backup).unwrap_or_default());
        Ok(seen.iter().map(with).collect())
    }

    /// Backups that are, or are not, forgotten, oldest first.
    async fn seen(&self, forgotten: bool) -> Result<Vec<Seen>, RepositoryError> {
        let mut all = overview::backups(&self.core).await?;
        all.retain(|(_, is)| *is == forgotten);
        Ok(all.into_iter().map(|(seen, _)| seen).collect())
    }

    /// Finds a backup by its id, the beginning of its id, or `latest`; it is read and verified anew.
    async fn find(&self, wanted: &str) -> Result<Manifest, RepositoryError> {
        let seen = Self::pick(wanted, self.seen(false).await?)?;
        manifest::read_one(&self.core, &seen.object).await
    }

    fn pick(wanted: &str, mut all: Vec<Seen>) -> Result<Seen, RepositoryError> {
        let none = |why: &str| RepositoryError::NoBackup {
            wanted: wanted.chars().take(64).filter(|c| !c.is_control()).collect(),
            why: why.to_owned(),
        };
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

    /// Looks the repository over; each artifact is taken to be its own content and nothing else.
    pub async fn check(&self, mode: CheckMode) -> Result<CheckReport, RepositoryError> {
        self.check_with(mode, &PlainArtifacts).await
    }

    /// Looks the repository over, asking the makers what artifacts are made of, so that all of it is read back.
    pub async fn check_with(&self, mode: CheckMode, makers: &dyn Makers) -> Result<CheckReport, RepositoryError> {
        check::check(self.core.clone(), mode, makers).await
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
        let seen = Self::pick(backup.as_str(), self.seen(false).await?)?;
        let mut notes = overview::annotations(&self.core, std::slice::from_ref(&seen)).await?;
        Ok(notes.read.remove(&seen.claim.backup).unwrap_or_default())
    }

    /// Backups beside which something was noted that no key at hand opens: what is known of them is not all.
    pub async fn with_unread_notes(&self) -> Result<BTreeSet<BackupId>, RepositoryError> {
        let seen = self.seen(false).await?;
        Ok(overview::annotations(&self.core, &seen).await?.unread)
    }

    /// Forgets a backup: sets its tombstone. What only it needs goes with a later [`Repository::prune`].
    pub async fn forget(&self, backup: &BackupId, reason: &str) -> Result<(), RepositoryError> {
        self.forget_all(&[(backup.clone(), reason.to_owned())]).await
    }

    /// Forgets backups, each for its reason, in this order, at the cost of one look at the repository and two requests
    /// for each. Where one fails, those before it are forgotten.
    pub async fn forget_all(&self, backups: &[(BackupId, String)]) -> Result<(), RepositoryError> {
        let seen = self.seen(false).await?;
        for (backup, reason) in backups {
            let of_that_name = seen.iter().filter(|s| s.claim.backup == *backup).cloned().collect();
            let found = Self::pick(backup.as_str(), of_that_name)?;
            let bytes = self.core.store.get(&found.object).await?;
            forget::set(&self.core, &Manifest::read(&self.core, &found.object, &bytes)?, reason).await?;
        }
        Ok(())
    }

    /// Brings a forgotten backup back, within the grace time that prunes are run with. Gives its name.
    pub async fn unforget(&self, wanted: &str, grace: Duration) -> Result<BackupId, RepositoryError> {
        let seen = Self::pick(wanted, self.seen(true).await?)?;
        let manifest = manifest::read_one(&self.core, &seen.object).await?;
        forget::undo(&self.core, &manifest, grace).await?;
        Ok(manifest.claim.backup)
    }

    /// Does what can be done about damage; with `confirm`. Else it only says what it would do. Needs the writer key, and
    /// for some of it an identity.
    pub async fn repair(&self, confirm: bool, makers: &dyn Makers) -> Result<RepairReport, RepositoryError> {
        crate::repair::repair(self.core.clone(), confirm, makers).await
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
