//! How objects are created on a remote store: conditionally where it can, by election where it cannot.
//!
//! All hosts must do it the same way, or a conditional create and an elected one could meet. So the way is recorded in
//! the place itself when the first object is created there, in an object `essrun-store` of this room's own:
//!
//! ```text
//! essrun store 1
//! {"create":"conditional"}
//! ```
//!
//! or `"elected"`; which of them is found out by a race of a dozen requests for one name. Before a host's first write it reads that, and where it says conditional tries once whether that
//! still holds: a store that lost the ability (moved behind a proxy, say) is refused. Reading needs none of this.
//! `essrun-store` and the claims of [`Elected`] are this room's own and are left out of listings.

use crate::elected::CLAIMS;
use crate::{Cause, Elected, ObjectInfo, ObjectName, Outcome, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

const RECORD: &str = "essrun-store";
/// Who create one object at once, to see what the store says.
const RACERS: usize = 12;
const HEAD: &str = "essrun store 1\n";

/// How a store creates objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// The store itself refuses to overwrite.
    Conditional,
    /// See [`Elected`].
    Elected,
}

impl Creation {
    fn record(self) -> String {
        let word = match self {
            Creation::Conditional => "conditional",
            Creation::Elected => "elected",
        };
        format!("{HEAD}{{\"create\":\"{word}\"}}\n")
    }

    /// Reads a record; lines after the second are left over from trials.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        [Creation::Conditional, Creation::Elected]
            .into_iter()
            .find(|c| bytes.starts_with(c.record().as_bytes()))
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Remote {
    conditional: Arc<dyn Store>,
    blind: Arc<dyn Store>,
    elected: Elected,
    creation: tokio::sync::OnceCell<Creation>,
}

fn name(text: String) -> Result<ObjectName, StoreError> {
    ObjectName::new(text.clone()).map_err(|e| StoreError::new("write", text, "", Cause::Other, e.to_string()))
}

impl Remote {
    /// The same place twice: creating if absent, as far as the store knows how, and overwriting.
    pub fn new(conditional: Arc<dyn Store>, blind: Arc<dyn Store>) -> Self {
        Remote {
            conditional,
            elected: Elected::new(blind.clone()),
            blind,
            creation: tokio::sync::OnceCell::new(),
        }
    }

    /// How objects are created here; found out once, before the first write. Records it where nobody has.
    pub async fn creation(&self) -> Result<Creation, StoreError> {
        self.creation.get_or_try_init(|| self.find_out()).await.copied()
    }

    fn refuse(&self, why: &str, hint: &'static str) -> StoreError {
        StoreError {
            hint: Some(hint),
            ..StoreError::new("write", RECORD, self.describe(), Cause::Other, why)
        }
    }

    async fn find_out(&self) -> Result<Creation, StoreError> {
        let record = name(RECORD.to_owned())?;
        let creation = match self.recorded(&record).await? {
            Some(creation) => creation,
            None => {
                let able = self.try_it().await?;
                let bytes = Bytes::from(able.record());
                match able {
                    Creation::Conditional => self.conditional.put_new(&record, bytes).await?,
                    Creation::Elected => self.elected.put_new(&record, bytes).await?,
                };
                // Another host may have been first; what it wrote counts.
                self.recorded(&record)
                    .await?
                    .ok_or_else(|| self.refuse("it vanished after it was written", "run again"))?
            }
        };
        if creation == Creation::Conditional {
            // Other bytes than are there, so that a repeated attempt is not taken for our own first one.
            let trial = format!(
                "{}trial {}\n",
                creation.record(),
                hex::encode(rand::random::<[u8; 8]>())
            );
            if self.conditional.put_new(&record, Bytes::from(trial)).await? == Outcome::Created {
                return Err(self.refuse(
                    "the store overwrites although it did not when the repository was made; several writers could \
                     lose each other's backups",
                    "find out what changed (a proxy that drops If-None-Match?); reading and restoring still work",
                ));
            }
        } else {
            tracing::warn!(store = %self.describe(), "the store cannot create conditionally; writers elect who may");
        }
        Ok(creation)
    }

    async fn recorded(&self, record: &ObjectName) -> Result<Option<Creation>, StoreError> {
        match self.conditional.get(record).await {
            Ok(bytes) => match Creation::read(&bytes) {
                Some(creation) => Ok(Some(creation)),
                None => Err(self.refuse(
                    "it is not one this version can read",
                    "use a newer essrun, or another prefix",
                )),
            },
            Err(e) if e.cause == Cause::Missing => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Several at once create one object, and once more after that: exactly one may be told that it did. A store that
    /// looks first and writes then passes for one that can, until two writers meet.
    async fn try_it(&self) -> Result<Creation, StoreError> {
        let probe = name(format!("{CLAIMS}/probe-{}", hex::encode(rand::random::<[u8; 8]>())))?;
        let create = |n: usize| self.conditional.put_new(&probe, Bytes::from(format!("trial {n}")));
        let mut told = futures_util::future::join_all((0..RACERS).map(create)).await;
        told.push(create(RACERS).await);
        let created = told.iter().filter(|t| matches!(t, Ok(Outcome::Created))).count();
        let mut failures = told.into_iter().filter_map(Result::err).peekable();
        let able = match failures.peek() {
            None if created == 1 => Creation::Conditional,
            None => Creation::Elected,
            // A store may refuse what it does not know; one that is merely out of reach is no reason to do without.
            Some(e) if e.cause == Cause::Other => {
                self.blind.put_new(&probe, Bytes::from_static(b"blind")).await?;
                tracing::debug!(error = %e, "conditional creation is refused");
                Creation::Elected
            }
            Some(_) => match failures.next() {
                Some(e) => return Err(e),
                None => Creation::Elected,
            },
        };
        match self.blind.delete(&probe).await {
            Err(e) if able == Creation::Elected => Err(StoreError {
                hint: Some("let the key delete below claims/, or use a store with conditional writes"),
                ..e
            }),
            Err(e) => {
                tracing::debug!(error = %e, "a probe stays");
                Ok(able)
            }
            Ok(()) => Ok(able),
        }
    }
}

#[async_trait]
impl Store for Remote {
    fn describe(&self) -> String {
        self.conditional.describe()
    }

    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        match self.creation().await? {
            Creation::Conditional => self.conditional.put_new(name, bytes).await,
            Creation::Elected => self.elected.put_new(name, bytes).await,
        }
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.conditional.get(name).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.conditional.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        self.conditional.head(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut found = self.conditional.list(prefix).await?;
        found.retain(|info| {
            let name = info.name.as_str();
            name != RECORD && name.split('/').next() != Some(CLAIMS)
        });
        Ok(found)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.conditional.delete(name).await
    }
}
