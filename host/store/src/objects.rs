//! The one real store: `object_store`'s implementations behind our contract.
//!
//! The local directory is written with fsync on. Verified in object_store 0.14: a create writes a staging file beside
//! the target, syncs it, hard-links it to its name (which fails if the name is taken) and syncs the directory, new
//! parent directories included; so it is atomic, durable and create-if-absent. Deletion is not synced, and need not
//! be: an object that comes back after a power cut is deleted again by the next prune.

use crate::{Cause, ObjectInfo, ObjectName, Outcome, Store, StoreError};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Bytes per second; a slower answer is taken for none.
const SLOWEST_LINE: u64 = 64 << 10;
/// No object of a repository comes near it: what is larger is not ours, and not read.
const LARGEST: u64 = 1 << 30;
/// No repository has near as many objects: a listing that goes on beyond them is a server's that never ends one, and would
/// fill the memory of whoever reads it.
const MOST: usize = 4_000_000;

/// A store on top of `object_store`.
#[derive(Clone)]
pub struct Objects {
    inner: Inner,
    what: String,
    /// Over a network: requests may hang and answers may be lost.
    remote: bool,
    /// Overwrites instead of creating.
    blind: bool,
    retain: Option<crate::s3::Retain>,
    /// First segments of names that are never retained.
    unlocked: Vec<String>,
    /// How many entries a listing may have.
    most: usize,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Objects({})", self.what)
    }
}

#[derive(Clone)]
enum Inner {
    Open(Arc<dyn ObjectStore>),
    /// A directory that was not there: it is made with the first object, so that nothing that only looks makes it.
    NotYet(Arc<NotYet>),
}

struct NotYet {
    path: std::path::PathBuf,
    open: OnceLock<Arc<dyn ObjectStore>>,
}

impl Objects {
    /// A local directory, made with its first object if it is not there (mode 0700: packs are ciphertext, names of lists
    /// are not).
    pub fn directory(path: &std::path::Path) -> Result<Self, StoreError> {
        let what = path.display().to_string();
        let inner = match path.try_exists().map_err(|e| open_error(&what, &e))? {
            true => Inner::Open(local(path, &what)?),
            false => Inner::NotYet(Arc::new(NotYet {
                path: path.to_owned(),
                open: OnceLock::new(),
            })),
        };
        Ok(Objects::with(inner, what, false))
    }

    /// Memory only, for tests.
    pub fn memory() -> Self {
        Objects::on(Arc::new(object_store::memory::InMemory::new()), "memory".into(), false)
    }

    fn on(inner: Arc<dyn ObjectStore>, what: String, remote: bool) -> Self {
        Objects::with(Inner::Open(inner), what, remote)
    }

    /// The store, for looking; as long as there is no directory, one without objects.
    fn inner(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        match &self.inner {
            Inner::Open(inner) => Ok(inner.clone()),
            Inner::NotYet(later) => match later.open.get() {
                Some(open) => Ok(open.clone()),
                // Somebody else may have made it meanwhile.
                None if later.path.exists() => self.opened(later),
                None => Ok(Arc::new(object_store::memory::InMemory::new())),
            },
        }
    }

    /// The store, for writing.
    fn made(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        if let Inner::NotYet(later) = &self.inner
            && later.open.get().is_none()
        {
            make_private_dir(&later.path).map_err(|e| open_error(&self.what, &e))?;
            return self.opened(later);
        }
        self.inner()
    }

    fn opened(&self, later: &NotYet) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let open = local(&later.path, &self.what)?;
        Ok(later.open.get_or_init(|| open).clone())
    }

    fn with(inner: Inner, what: String, remote: bool) -> Self {
        Objects {
            inner,
            what,
            remote,
            blind: false,
            retain: None,
            unlocked: Vec::new(),
            most: MOST,
        }
    }

    pub(crate) fn remote(inner: Arc<dyn ObjectStore>, what: String) -> Self {
        Objects::on(inner, what, true)
    }

    pub(crate) fn with_retention(self, retain: Option<crate::s3::Retain>, unlocked: Vec<String>) -> Self {
        Objects {
            retain,
            unlocked,
            ..self
        }
    }

    /// The same place, but [`Store::put_new`] overwrites: only for [`crate::Elected`], which sees to it that there is
    /// nothing to overwrite.
    pub fn blind(&self) -> Self {
        Objects {
            blind: true,
            ..self.clone()
        }
    }

    fn put_options(&self, name: &ObjectName) -> PutOptions {
        let mut options = PutOptions::from(if self.blind {
            PutMode::Overwrite
        } else {
            PutMode::Create
        });
        let first = name.as_str().split('/').next().unwrap_or_default();
        if let Some(retain) = self.retain
            && !self.unlocked.iter().any(|u| u == first)
        {
            options.extensions.insert(retain);
        }
        options
    }

    /// Gives up on a remote request in time for somebody to try again.
    async fn in_time<T>(
        &self,
        action: &'static str,
        object: &str,
        bytes: u64,
        request: impl Future<Output = object_store::Result<T>> + Send,
    ) -> Result<T, StoreError> {
        let done = if self.remote {
            let limit = Duration::from_secs(45 + bytes / SLOWEST_LINE);
            tokio::time::timeout(limit, request).await.map_err(|_| {
                let why = format!("there was no answer in {} seconds", limit.as_secs());
                StoreError::new(action, object, &self.what, Cause::Transient, why)
            })?
        } else {
            request.await
        };
        done.map_err(|e| StoreError::from_object_store_str(action, object, &self.what, e))
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

/// Part of an object. A server that sends more than it was asked for is not listened to for longer than it takes to see.
async fn at_most(inner: &dyn ObjectStore, path: &Path, range: Range<u64>) -> object_store::Result<Bytes> {
    let wanted = range.end.saturating_sub(range.start);
    let options = GetOptions {
        range: Some(range.into()),
        ..GetOptions::default()
    };
    listen(inner.get_opts(path, options).await?, wanted).await
}

/// What comes, until there is more of it than was to come.
async fn listen(opened: GetResult, wanted: u64) -> object_store::Result<Bytes> {
    let mut stream = opened.into_stream();
    let mut read = BytesMut::with_capacity(wanted.min(16 << 20) as usize);
    while read.len() as u64 <= wanted
        && let Some(more) = stream.try_next().await?
    {
        read.extend_from_slice(&more);
    }
    Ok(read.freeze())
}

fn local(path: &std::path::Path, what: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let inner = object_store::local::LocalFileSystem::new_with_prefix(path)
        .map_err(|e| StoreError::from_object_store_str("open", "the directory", what, e))?
        .with_fsync(true);
    Ok(Arc::new(inner))
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
        let length = bytes.len() as u64;
        let options = self.put_options(name);
        let inner = self.made()?;
        let request = async {
            match inner.put_opts(&path, PutPayload::from_bytes(bytes), options).await {
                Ok(_) => Ok(Outcome::Created),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(Outcome::AlreadyThere)
                }
                Err(e) => Err(e),
            }
        };
        let outcome = self.in_time("write", name.as_str(), length, request).await?;
        // S3 also answers "conflict" while another create of the same name is under way, which may yet fail.
        if self.remote && outcome == Outcome::AlreadyThere && self.head(name).await?.is_none() {
            let why = "another writer is creating it";
            return Err(StoreError::new(
                "write",
                name.as_str(),
                &self.what,
                Cause::Transient,
                why,
            ));
        }
        Ok(outcome)
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let path = self.path("read", name)?;
        let failed = |e| StoreError::from_object_store("read", name, &self.what, e);
        let inner = self.inner()?;
        let opened = self.in_time("read", name.as_str(), 0, inner.get(&path)).await?;
        let length = opened.meta.size;
        if length > LARGEST {
            return Err(self.not_ours(
                name,
                format!("it has {length} bytes, and nothing here has more than {LARGEST}"),
            ));
        }
        if !self.remote {
            return opened.bytes().await.map_err(failed);
        }
        let got = self
            .in_time("read", name.as_str(), length, listen(opened, length))
            .await?;
        match got.len() as u64 > length {
            true => Err(self.not_ours(
                name,
                format!("the server said that it has {length} bytes, and sends more"),
            )),
            false => Ok(got),
        }
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path("read", name)?;
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let inner = self.inner()?;
        let request = async {
            let read = match self.remote {
                true => at_most(&*inner, &path, range.clone()).await,
                false => inner.get_range(&path, range.clone()).await,
            };
            Ok(match read {
                Err(e) => match self.out_of_range(name, &range, &e) {
                    Some(short) => Err(short),
                    None => return Err(e),
                },
                Ok(got) => Ok(got),
            })
        };
        let got = self.in_time("read", name.as_str(), wanted, request).await??;
        if got.len() as u64 == wanted {
            Ok(got)
        } else {
            Err(self.short(name, &range, got.len() as u64))
        }
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        let path = self.path("look at", name)?;
        let inner = self.inner()?;
        let request = async {
            match inner.head(&path).await {
                Ok(meta) => Ok(self.info(meta)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        };
        self.in_time("look at", name.as_str(), 0, request).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let failed = |e| StoreError::from_object_store_str("list", prefix, &self.what, e);
        let path = if prefix.is_empty() {
            None
        } else {
            let trimmed = prefix.trim_end_matches('/');
            Some(Path::parse(trimmed).map_err(|e| failed(e.into()))?)
        };
        let inner = self.inner()?;
        let mut entries = inner.list(path.as_ref());
        let mut found = Vec::new();
        let mut seen = 0;
        // Each page is a request of its own, and may hang like any.
        while let Some(meta) = self.in_time("list", prefix, 0, entries.try_next()).await? {
            seen += 1;
            if seen > self.most {
                let why = format!(
                    "it names more than {} objects, and no repository has as many",
                    self.most
                );
                return Err(StoreError::new("list", prefix, &self.what, Cause::Other, why));
            }
            found.extend(self.info(meta));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let path = self.path("delete", name)?;
        let inner = self.inner()?;
        let request = async {
            match inner.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(e),
            }
        };
        self.in_time("delete", name.as_str(), 0, request).await
    }
}

impl Objects {
    fn short(&self, name: &ObjectName, range: &Range<u64>, got: u64) -> StoreError {
        let why = format!("bytes {}..{} were asked for and {got} came", range.start, range.end);
        self.not_ours(name, why)
    }

    fn not_ours(&self, name: &ObjectName, why: String) -> StoreError {
        StoreError::new("read", name.as_str(), &self.what, Cause::Short, why)
    }

    fn out_of_range(&self, name: &ObjectName, range: &Range<u64>, e: &object_store::Error) -> Option<StoreError> {
        let text = format!("{e} {e:?}");
        (text.contains("OutOfRange") || text.contains("Range") || text.contains("range"))
            .then(|| self.short(name, range, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream::{BoxStream, StreamExt};
    use object_store::{CopyOptions, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutResult, Result};

    /// Answers everything but the rest of a listing.
    #[derive(Debug)]
    struct HangingList(object_store::memory::InMemory);

    impl std::fmt::Display for HangingList {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a store that hangs")
        }
    }

    #[async_trait]
    impl ObjectStore for HangingList {
        async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.0.put_opts(at, payload, options).await
        }
        async fn put_multipart_opts(&self, at: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(at, o).await
        }
        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(at, options).await
        }
        fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(at)
        }
        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix).chain(futures_util::stream::pending()).boxed()
        }
        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    /// Sends without end, whatever range it is asked for, and lists without end.
    #[derive(Debug)]
    struct Endless(object_store::memory::InMemory);

    impl std::fmt::Display for Endless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a store that does not stop")
        }
    }

    #[async_trait]
    impl ObjectStore for Endless {
        async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.0.put_opts(at, payload, options).await
        }
        async fn put_multipart_opts(&self, at: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(at, o).await
        }
        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            let mut result = self.0.get_opts(at, options).await?;
            let more = futures_util::stream::repeat_with(|| Ok(Bytes::from_static(&[0; 1024])));
            result.payload = object_store::GetResultPayload::Stream(more.boxed());
            Ok(result)
        }
        fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(at)
        }
        fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            let entry = || ObjectMeta {
                location: Path::from("a/b"),
                last_modified: Default::default(),
                size: 1,
                e_tag: None,
                version: None,
            };
            futures_util::stream::repeat_with(move || Ok(entry())).boxed()
        }
        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn more_than_was_asked_for_is_not_read_to_its_end() {
        let inner = Arc::new(Endless(object_store::memory::InMemory::new()));
        let store = Objects::remote(inner, "endless".into());
        let name = ObjectName::new("a/b").unwrap();
        store.put_new(&name, Bytes::from_static(&[0; 100])).await.unwrap();
        let refused = store.get_range(&name, 10..20).await.unwrap_err();
        assert_eq!(refused.cause, Cause::Short);
        assert!(
            refused
                .to_string()
                .contains("bytes 10..20 were asked for and 1024 came"),
            "{refused}"
        );
        let refused = store.get(&name).await.unwrap_err();
        assert_eq!(refused.cause, Cause::Short);
        assert!(refused.to_string().contains("100 bytes, and sends more"), "{refused}");
    }

    #[tokio::test]
    async fn what_is_larger_than_any_object_is_not_read() {
        let place = tempfile::tempdir().unwrap();
        let store = Objects::directory(place.path()).unwrap();
        // Of nothing but a hole.
        let file = std::fs::File::create(place.path().join("huge")).unwrap();
        file.set_len(1 << 40).unwrap();
        let refused = store.get(&ObjectName::new("huge").unwrap()).await.unwrap_err();
        assert!(refused.to_string().contains("nothing here has more than"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_hangs_is_given_up_in_time() {
        let inner = Arc::new(HangingList(object_store::memory::InMemory::new()));
        let store = Objects::remote(inner, "hanging".into());
        let name = ObjectName::new("a/b").unwrap();
        store.put_new(&name, Bytes::from_static(b"x")).await.unwrap();
        let failed = store.list("a").await.unwrap_err();
        assert_eq!(failed.cause, Cause::Transient);
        assert!(
            failed.to_string().contains("there was no answer in 45 seconds"),
            "{failed}"
        );
    }

    #[tokio::test]
    async fn a_listing_that_never_ends_is_left() {
        let mut store = Objects::remote(
            Arc::new(Endless(object_store::memory::InMemory::new())),
            "endless".into(),
        );
        store.most = 1000;
        let refused = store.list("a").await.unwrap_err();
        assert_eq!(refused.cause, Cause::Other);
        assert!(refused.to_string().contains("more than 1000 objects"), "{refused}");
    }
}
