//! From what stands in pipeline.toml to a store.

use crate::{Cause, Objects, Remote, RetryPolicy, Retrying, Store, StoreError, Throttled};
use std::path::PathBuf;
use std::sync::Arc;

/// A store's place, as people write it: a path, `file:///path`, or `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Directory(PathBuf),
    /// Endpoint, region and keys come from [`OpenOptions`], else from the usual `AWS_*` environment variables.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl std::str::FromStr for Location {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let refuse = |why: &str| StoreError {
            hint: Some("write a directory, file:///directory, or s3://bucket/prefix"),
            ..StoreError::new("open", "the store", text, Cause::Other, why)
        };
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() || bucket.contains(['@', '?', '#']) {
                return Err(refuse("no bucket is named, or keys stand in the address"));
            }
            return Ok(Location::S3 {
                bucket: bucket.to_owned(),
                prefix: prefix.trim_matches('/').to_owned(),
            });
        }
        let path = match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => path,
            Some(_) => return Err(refuse("a file address names no host")),
            None if text.contains("://") => return Err(refuse("this kind of address is not known")),
            None => text,
        };
        if path.is_empty() {
            return Err(refuse("nothing is named"));
        }
        Ok(Location::Directory(PathBuf::from(path)))
    }
}

/// What a store is opened with besides its place.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    pub s3: crate::s3::S3Options,
    /// Bytes per second.
    pub limit_upload: Option<u64>,
    pub limit_download: Option<u64>,
}

/// Opens a store by path or URL, with what the environment says.
pub fn open(url_or_path: &str) -> Result<Arc<dyn Store>, StoreError> {
    open_with(url_or_path, &OpenOptions::default())
}

/// Opens a store by path or URL. Remote stores come with [`Retrying`] and [`crate::Remote`].
pub fn open_with(url_or_path: &str, options: &OpenOptions) -> Result<Arc<dyn Store>, StoreError> {
    let store: Arc<dyn Store> = match url_or_path.parse()? {
        Location::Directory(path) => Arc::new(directory(url_or_path, &path)?),
        Location::S3 { bucket, prefix } => Arc::new(s3(&bucket, &prefix, options)?.0),
    };
    Ok(match (options.limit_upload, options.limit_download) {
        (None, None) => store,
        (up, down) => Arc::new(Throttled::new(store, up, down)),
    })
}

pub(crate) fn directory(text: &str, path: &std::path::Path) -> Result<Objects, StoreError> {
    let absolute = std::path::absolute(path)
        .map_err(|e| StoreError::new("open", "the directory", text, Cause::Other, e.to_string()))?;
    Objects::directory(&absolute)
}

pub(crate) fn s3(bucket: &str, prefix: &str, options: &OpenOptions) -> Result<(Remote, crate::s3::Bucket), StoreError> {
    let opened = crate::s3::open(bucket, prefix, &options.s3)?;
    let again = |store: Objects| Arc::new(Retrying::new(Arc::new(store), RetryPolicy::default()));
    let blind = again(opened.objects.blind());
    Ok((Remote::new(again(opened.objects), blind), opened.bucket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!("/a/b".parse::<Location>().unwrap(), Location::Directory("/a/b".into()));
        assert_eq!(
            "file:///a".parse::<Location>().unwrap(),
            Location::Directory("/a".into())
        );
        let s3 = Location::S3 {
            bucket: "b".into(),
            prefix: "x/y".into(),
        };
        assert_eq!("s3://b/x/y/".parse::<Location>().unwrap(), s3);
        for bad in ["", "s3://", "s3://key:secret@b/x", "file://host/x", "ftp://x"] {
            assert!(bad.parse::<Location>().is_err(), "{bad:?}");
        }
    }
}
