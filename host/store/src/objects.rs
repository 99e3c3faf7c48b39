//! The one real store: `object_store`'s implementations behind our contract.
//!
//! The local directory is written with fsync on. Verified in object_store 0.14: a create writes a staging file beside
//! the target, syncs it, hard-links it to its name (which fails if the name is taken) and syncs the directory, new
//! parent directories included; so it is atomic, durable and create-if-absent. Deletion is not synced, and need not
//! be: an object that comes back after a power cut is deleted again by the next prune.

use crate::{Cause, ObjectInfo, ObjectName, Outcome, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::ops::Range;
use std::sync::Arc;

/// A store on top of `object_store`.
#[derive(Clone)]
pub struct Objects {
    inner: Arc<dyn ObjectStore>,
    what: String,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Objects({})", self.what)
    }
}

impl Objects {
    /// A local directory, made if it is not there (mode 0700: packs are ciphertext, names of lists are not).
    pub fn directory(path: &std::path::Path) -> Result<Self, StoreError> {
        let what = path.display().to_string();
        make_private_dir(path).map_err(|e| open_error(&what, &e))?;
        let inner = object_store::local::LocalFileSystem::new_with_prefix(path)
            .map_err(|e| StoreError::from_object_store_str("open", "the directory", &what, e))?
            .with_fsync(true);
        Ok(Objects {
            inner: Arc::new(inner),
            what,
        })
    }

    /// Memory only, for tests.
    pub fn memory() -> Self {
        Objects {
            inner: Arc::new(object_store::memory::InMemory::new()),
            what: "memory".into(),
        }
    }

    #[cfg(feature = "s3")]
    pub(crate) fn from_object_store(inner: Arc<dyn ObjectStore>, what: String) -> Self {
        Objects { inner, what }
    }

    fn path(&self, action: &'static str, name: &ObjectName) -> Result<Path, StoreError> {
        Path::parse(name.as_str())
            .map_err(|e| StoreError::new(action, name.as_str(), &self.what, Cause::Other, e.to_string()))
    }

    fn info(&self, meta: object_store::ObjectMeta) -> Option<ObjectInfo> {
        Some(ObjectInfo {
            name: ObjectName::new(meta.location.as_ref()).ok()?,
            bytes: meta.size,
            modified_unix_seconds: meta.last_modified.timestamp(),
        })
    }
}

fn open_error(what: &str, e: &std::io::Error) -> StoreError {
    let cause = match e.kind() {
        std::io::ErrorKind::PermissionDenied => Cause::Denied,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::ReadOnlyFilesystem => Cause::Full,
        _ => Cause::Other,
    };
    StoreError::new("open", "the directory", what, cause, e.to_string())
}

#[cfg(unix)]
fn make_private_dir(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn make_private_dir(path: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)
}

#[async_trait]
impl Store for Objects {
    fn describe(&self) -> String {
        self.what.clone()
    }

    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        let path = self.path("write", name)?;
        let options = PutOptions::from(PutMode::Create);
        match self.inner.put_opts(&path, PutPayload::from_bytes(bytes), options).await {
            Ok(_) => Ok(Outcome::Created),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Outcome::AlreadyThere)
            }
            Err(e) => Err(StoreError::from_object_store("write", name, &self.what, e)),
        }
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let path = self.path("read", name)?;
        let failed = |e| StoreError::from_object_store("read", name, &self.what, e);
        self.inner
            .get(&path)
            .await
            .map_err(failed)?
            .bytes()
            .await
            .map_err(failed)
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path("read", name)?;
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let got = self.inner.get_range(&path, range.clone()).await.map_err(|e| {
            match self.out_of_range(name, &range, &e) {
                Some(short) => short,
                None => StoreError::from_object_store("read", name, &self.what, e),
            }
        })?;
        if got.len() as u64 == wanted {
            Ok(got)
        } else {
            Err(self.short(name, &range, got.len() as u64))
        }
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        let path = self.path("look at", name)?;
        match self.inner.head(&path).await {
            Ok(meta) => Ok(self.info(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(StoreError::from_object_store("look at", name, &self.what, e)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let failed = |e| StoreError::from_object_store_str("list", prefix, &self.what, e);
        let path = if prefix.is_empty() {
            None
        } else {
            let trimmed = prefix.trim_end_matches('/');
            Some(Path::parse(trimmed).map_err(|e| failed(e.into()))?)
        };
        let mut found: Vec<ObjectInfo> = self
            .inner
            .list(path.as_ref())
            .try_filter_map(|meta| futures_util::future::ready(Ok(self.info(meta))))
            .try_collect()
            .await
            .map_err(failed)?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let path = self.path("delete", name)?;
        match self.inner.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(StoreError::from_object_store("delete", name, &self.what, e)),
        }
    }
}

impl Objects {
    fn short(&self, name: &ObjectName, range: &Range<u64>, got: u64) -> StoreError {
        let why = format!("bytes {}..{} were asked for and {got} came", range.start, range.end);
        StoreError::new("read", name.as_str(), &self.what, Cause::Short, why)
    }

    fn out_of_range(&self, name: &ObjectName, range: &Range<u64>, e: &object_store::Error) -> Option<StoreError> {
        let text = format!("{e} {e:?}");
        (text.contains("OutOfRange") || text.contains("Range") || text.contains("range"))
            .then(|| self.short(name, range, 0))
    }
}
