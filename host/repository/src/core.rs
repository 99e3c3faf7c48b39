//! What everything in an open repository shares: the store, the keys, whom to trust, and the local state.
//!
//! Trust begins at the configuration object. It names the repository's first writer and is signed by it; further
//! writers are vouched for by signed cards. Whoever was let in can let in others; only readers that are told whom not to
//! believe ([`crate::Options::distrusted_writers`]) shut one out. Which configuration is the right one is told from outside
//! ([`crate::Options::trusted_writers`]), by holding the first writer's key, or by remembering what this host saw first.

use crate::chunk_index::ChunkIndex;
use crate::clock::now;
use crate::keys::{Identity, Recipients, WriterId, WriterKey, WriterPublic};
use crate::known::Known;
use crate::manifest::{self, Head};
use crate::names::Hash;
use crate::signed::{self, Kind};
use crate::state::{self, make_private_dir, remember_config};
use crate::{Access, Options, RepositoryError, names};
use bytes::Bytes;
use essrun_store::{Cause, ObjectName, Outcome, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// The claim of the configuration object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    pub id: String,
    pub created_at: i64,
    pub writer: WriterPublic,
}

/// The claim of a writer's card.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Card {
    pub repository: String,
    writer: WriterPublic,
    added_at: i64,
    /// The signer's key is given up, and the new writer goes on where the signer's chain ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    follows: Option<Follows>,
}

/// The end of a chain that another writer goes on from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Follows {
    pub writer: WriterPublic,
    #[serde(flatten)]
    pub head: Head,
}

pub(crate) struct Core {
    pub store: Arc<dyn Store>,
    pub writer: Option<WriterKey>,
    /// Everything that may open an envelope: the given identities and the writer's own.
    pub identities: Vec<Identity>,
    /// Whether an identity for contents was given.
    pub reads_contents: bool,
    pub recipients: Recipients,
    pub options: Options,
    pub config: Config,
    /// SHA-256 of the configuration object: what a first chain begins with.
    pub config_hash: Hash,
    pub trusted: Vec<WriterPublic>,
    /// Writers that took another's place, and where that one's chain ended.
    pub follows: BTreeMap<WriterId, Follows>,
    /// This repository's part of the cache directory.
    cache_dir: PathBuf,
    /// This repository's part of the state directory.
    pub state_dir: PathBuf,
    index: OnceLock<Arc<ChunkIndex>>,
    known: OnceLock<Option<Known>>,
    /// CPU-heavy jobs at one time.
    pub cpu: Arc<tokio::sync::Semaphore>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({} in {})", self.config.id, self.store.describe())
    }
}

impl Core {
    pub async fn init(store: &Arc<dyn Store>, writer: &WriterKey) -> Result<(), RepositoryError> {
        let exists = || RepositoryError::Place {
            place: store.describe(),
            why: "there is a repository already".into(),
            hint: "use it, or name an empty place; nothing was changed".into(),
        };
        // Whatever lies there already might be somebody's only copy.
        if store.head(&names::config()?).await?.is_some() {
            return Err(exists());
        }
        let others = store.list("").await?;
        if let Some(first) = others.first() {
            return Err(RepositoryError::Place {
                place: store.describe(),
                why: format!("it is not empty: it holds {}", first.name),
                hint: "name an empty directory or prefix; a repository without its configuration is mended from a copy of it"
                    .into(),
            });
        }
        let config = Config {
            id: hex::encode(rand::random::<[u8; 16]>()),
            created_at: now(),
            writer: writer.public(),
        };
        let bytes = signed::write(Kind::Config, &config, b"", writer)?;
        match store.put_new(&names::config()?, bytes).await? {
            Outcome::Created => Ok(()),
            Outcome::AlreadyThere => Err(exists()),
        }
    }

    pub async fn open(store: Arc<dyn Store>, access: Access) -> Result<Self, RepositoryError> {
        let level = access.options.compression_level;
        if !(1..=19).contains(&level) {
            return Err(RepositoryError::refused(
                format!("compression level {level} is not one"),
                "use 1 (fast) to 19 (small); 2 is a good start",
            ));
        }
        let bytes = match store.get(&names::config()?).await {
            Ok(bytes) => bytes,
            Err(e) if e.cause == Cause::Missing => {
                return Err(RepositoryError::Place {
                    place: store.describe(),
                    why: "there is no repository".into(),
                    hint: "check the address, or make one with `init`".into(),
                });
            }
            Err(e) => return Err(e.into()),
        };
        let document = signed::read(names::CONFIG, Kind::Config, &bytes)?;
        let config: Config = document.untrusted()?;
        let shaped = config.id.len() == 32 && config.id.bytes().all(|b| b.is_ascii_hexdigit());
        if config.writer != document.signer || !shaped {
            return Err(RepositoryError::damaged(
                names::CONFIG,
                "it is not signed by the writer it names",
            ));
        }
        make_private_dir(&access.cache_dir)?;
        make_private_dir(&access.state_dir)?;
        state::move_places(&access.cache_dir, &access.state_dir)?;
        let own = access.writer.as_ref().map(WriterKey::public);
        let given = &access.options.trusted_writers;
        let distrusted = &access.options.distrusted_writers;
        if let Some(both) = given.iter().find(|w| distrusted.contains(w)) {
            return Err(RepositoryError::refused(
                format!("writer {both} is named as trusted and as distrusted"),
                "name it in one of the two only",
            ));
        }
        if given.is_empty() && own != Some(config.writer) {
            remember_config(&access.state_dir, &store.describe(), &bytes)?;
        } else if !given.is_empty()
            && !given.contains(&config.writer)
            && !distrusted.contains(&config.writer)
            && own != Some(config.writer)
        {
            return Err(RepositoryError::History {
                why: format!(
                    "it was made by {}, who is not one of the trusted writers",
                    config.writer
                ),
                hint: "if that is right, add this writer to the trusted ones; if not, this is not your repository"
                    .into(),
            });
        }
        let (cache_dir, state_dir) = (access.cache_dir.join(&config.id), access.state_dir.join(&config.id));
        make_private_dir(&cache_dir)?;
        make_private_dir(&state_dir)?;
        state::move_heads(&cache_dir, &state_dir)?;
        let mut identities = access.identities;
        let reads_contents = !identities.is_empty();
        if let Some(key) = &access.writer {
            // First: it is the cheaper one to try.
            identities.splice(0..0, Identity::of_writer(key));
        }
        let cores = std::thread::available_parallelism().map(usize::from).unwrap_or(2);
        let mut core = Core {
            store,
            writer: access.writer,
            identities,
            reads_contents,
            recipients: access.recipients,
            config_hash: names::sha256(&bytes),
            follows: BTreeMap::new(),
            trusted: given
                .iter()
                .copied()
                .chain(Some(config.writer).filter(|first| !given.contains(first)))
                .filter(|w| !distrusted.contains(w))
                .collect(),
            options: access.options,
            config,
            cache_dir,
            state_dir,
            index: OnceLock::new(),
            known: OnceLock::new(),
            cpu: Arc::new(tokio::sync::Semaphore::new(cores.max(2))),
        };
        core.meet_writers().await?;
        Ok(core)
    }

    /// Takes in the writers that trusted ones vouch for, and those they vouch for in turn.
    async fn meet_writers(&mut self) -> Result<(), RepositoryError> {
        let mut cards = Vec::new();
        for info in self.store.list("writers").await? {
            let bytes = self.store.get(&info.name).await?;
            match signed::read(info.name.as_str(), Kind::Writer, &bytes) {
                Ok(document) => cards.push(document),
                Err(e) => tracing::warn!(object = %info.name, error = %e, "a writer's card is ignored"),
            }
        }
        let given = &self.options.trusted_writers;
        let distrusted = &self.options.distrusted_writers;
        loop {
            let known = self.trusted.len();
            for card in &cards {
                // Of one who is not believed only this counts: where a chain ended that somebody goes on from whom we were
                // told to trust.
                if distrusted.contains(&card.signer)
                    && let Ok(claim) = card.untrusted::<Card>()
                    && claim.repository == self.config.id
                    && given.contains(&claim.writer)
                    && let Some(follows) = claim.follows
                    && follows.writer == card.signer
                {
                    self.follows.insert(claim.writer.id(), follows);
                }
                if let Ok(claim) = card.trusted::<Card>(&self.trusted)
                    && claim.repository == self.config.id
                    && !distrusted.contains(&claim.writer)
                {
                    if !self.trusted.contains(&claim.writer) {
                        self.trusted.push(claim.writer);
                    }
                    // Only a writer itself gives its key up.
                    if let Some(follows) = claim.follows
                        && follows.writer == card.signer
                    {
                        self.follows.insert(claim.writer.id(), follows);
                    }
                }
            }
            if self.trusted.len() == known {
                return Ok(());
            }
        }
    }

    /// Lets a further writer in.
    pub async fn authorize(&self, writer: &WriterPublic) -> Result<(), RepositoryError> {
        let key = self.writer()?;
        let card = Card {
            repository: self.config.id.clone(),
            writer: *writer,
            added_at: now(),
            follows: None,
        };
        let bytes = signed::write(Kind::Writer, &card, b"", key)?;
        match self.store.put_new(&names::writer_card(&writer.id())?, bytes).await? {
            Outcome::Created => Ok(()),
            Outcome::AlreadyThere => Err(RepositoryError::refused(
                format!("writer {} has a card already", writer.id()),
                "nothing needs doing, unless `check` says that its card is not trusted",
            )),
        }
    }

    /// The writer key, which must be one the repository knows.
    pub fn writer(&self) -> Result<&WriterKey, RepositoryError> {
        let key = self.writer.as_ref().ok_or_else(|| {
            RepositoryError::key(
                "writer key",
                "none was given",
                "name the writer key file in the pipeline",
            )
        })?;
        if let Some(by) = self.retired(&key.id()) {
            return Err(RepositoryError::refused(
                format!("writer {} was rotated: writer {by} took its place", key.id()),
                "name the new writer key file in the pipeline",
            ));
        }
        if self.options.distrusted_writers.contains(&key.public()) {
            return Err(RepositoryError::refused(
                format!("writer {} is named under distrusted-writers", key.id()),
                "make a new key with `essrun keygen writer`, and name it under trusted-writers",
            ));
        }
        if self.trusted.contains(&key.public()) {
            Ok(key)
        } else {
            Err(RepositoryError::refused(
                format!("writer {} is not known to this repository", key.id()),
                format!(
                    "on a host whose key is known: `essrun authorize PIPELINE {new} --confirm`; when every such key is \
                     lost, name both under trusted-writers: {} and {new}",
                    self.config.writer,
                    new = key.public()
                ),
            ))
        }
    }

    /// The card by which a writer gave its key up. Whoever holds the old key can sign another such card; the one that
    /// ends the chain earliest counts, so a later one lets nothing more be added.
    fn given_up(&self, writer: &WriterId) -> Option<(&WriterId, &Follows)> {
        let cards = self.follows.iter().filter(|(_, f)| &f.writer.id() == writer);
        cards.min_by_key(|(_, f)| f.head.sequence)
    }

    /// The writer that took this one's place, if one did.
    pub fn retired(&self, writer: &WriterId) -> Option<&WriterId> {
        self.given_up(writer).map(|(by, _)| by)
    }

    /// Where a retired writer's chain ended.
    pub fn last_of(&self, writer: &WriterId) -> Option<Head> {
        self.given_up(writer).map(|(_, f)| f.head)
    }

    /// What a writer's first manifest follows.
    pub fn origin(&self, writer: &WriterId) -> Hash {
        self.follows.get(writer).map_or(self.config_hash, |f| f.head.hash)
    }

    /// The writer at hand and those it was rotated from.
    pub fn own_writers(&self) -> Vec<WriterId> {
        self.writer.as_ref().map(WriterKey::ids).unwrap_or_default()
    }

    /// Gives the writer key up in favour of `new`, which goes on where its chain ends.
    pub async fn rotate(&self, new: &WriterKey) -> Result<(), RepositoryError> {
        let old = self.writer()?;
        if !new.follows(&old.public()) {
            return Err(RepositoryError::refused(
                "the new writer key was not made from the present one",
                "make it with `rotate`",
            ));
        }
        let running = crate::prune::running_now(self).await?;
        if let Some(backup) = running.first() {
            return Err(RepositoryError::refused(
                format!("backup {backup} runs with the present key"),
                "wait until it ends; one that was killed is forgotten two hours later",
            ));
        }
        let card = Card {
            repository: self.config.id.clone(),
            writer: new.public(),
            added_at: now(),
            follows: Some(Follows {
                writer: old.public(),
                head: manifest::own_head(self, &old.id()).await?,
            }),
        };
        let bytes = signed::write(Kind::Writer, &card, b"", old)?;
        match self.store.put_new(&names::writer_card(&new.id())?, bytes).await? {
            Outcome::Created => Ok(()),
            Outcome::AlreadyThere => Err(RepositoryError::refused(
                format!("writer {} has a card already", new.id()),
                "rotate to a newly made key",
            )),
        }
    }

    /// The local chunk index, opened when first needed.
    pub fn index(&self) -> Result<Arc<ChunkIndex>, RepositoryError> {
        if let Some(index) = self.index.get() {
            return Ok(index.clone());
        }
        let name = match &self.writer {
            Some(key) => format!("chunks-{}.redb", key.id()),
            None => "chunks-reader.redb".to_owned(),
        };
        let opened = ChunkIndex::open(&self.cache_dir.join(name))?;
        Ok(self.index.get_or_init(|| Arc::new(opened)).clone())
    }

    /// What was read before, for lists; opened when first needed. None without a writer key.
    pub fn known(&self) -> Option<&Known> {
        let open = || {
            let key = self.writer.as_ref()?;
            Known::open(&self.cache_dir.join(format!("known-{}.redb", key.id())), self, key)
        };
        self.known.get_or_init(open).as_ref()
    }

    /// Runs CPU-heavy work off the async threads, bounded by the number of cores.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
    ) -> Result<T, RepositoryError> {
        let permit = self.cpu.clone().acquire_owned().await;
        let permit = permit.map_err(|e| RepositoryError::Internal(e.to_string()))?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await?
    }

    /// The same repository, with objects from elsewhere.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn with_store(&self, store: Arc<dyn Store>) -> Core {
        Core {
            store,
            writer: self.writer.clone(),
            identities: self.identities.clone(),
            reads_contents: self.reads_contents,
            recipients: self.recipients.clone(),
            options: self.options.clone(),
            config: self.config.clone(),
            config_hash: self.config_hash,
            trusted: self.trusted.clone(),
            follows: self.follows.clone(),
            cache_dir: self.cache_dir.clone(),
            state_dir: self.state_dir.clone(),
            index: OnceLock::new(),
            known: OnceLock::new(),
            cpu: self.cpu.clone(),
        }
    }

    /// Reads an object and checks it against the sum in its name.
    pub async fn get_summed(&self, name: &ObjectName) -> Result<Bytes, RepositoryError> {
        let bytes = self.store.get(name).await?;
        let sum = names::sum_in_name(name.as_str())
            .ok_or_else(|| RepositoryError::damaged(name, "its name carries no hash"))?;
        if sum.bytes != bytes.len() as u64 {
            let why = format!("it has {} bytes and was written with {}", bytes.len(), sum.bytes);
            return Err(RepositoryError::damaged(name, why));
        }
        if sum.hash != names::sha256(&bytes) {
            return Err(RepositoryError::damaged(
                name,
                "its bytes are not those that were written",
            ));
        }
        Ok(bytes)
    }
}
