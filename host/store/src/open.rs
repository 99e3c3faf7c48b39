//! From what stands in pipeline.toml to a store.

use crate::{Cause, Objects, RetryPolicy, Retrying, Store, StoreError};
use std::path::PathBuf;
use std::sync::Arc;

/// A store's place, as people write it: a path, `file:///path`, or `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Directory(PathBuf),
    /// Endpoint, region and keys come from the usual `AWS_*` environment variables.
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

/// Opens a store by path or URL. Remote stores come with the default [`Retrying`].
pub fn open(url_or_path: &str) -> Result<Arc<dyn Store>, StoreError> {
    match url_or_path.parse()? {
        Location::Directory(path) => {
            let absolute = std::path::absolute(&path)
                .map_err(|e| StoreError::new("open", "the directory", url_or_path, Cause::Other, e.to_string()))?;
            Ok(Arc::new(Objects::directory(&absolute)?))
        }
        Location::S3 { bucket, prefix } => {
            let store = s3(&bucket, &prefix)?;
            Ok(Arc::new(Retrying::new(Arc::new(store), RetryPolicy::default())))
        }
    }
}

#[cfg(feature = "s3")]
fn s3(bucket: &str, prefix: &str) -> Result<Objects, StoreError> {
    use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
    let what = format!("s3://{bucket}/{prefix}");
    let built = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .build()
        .map_err(|e| StoreError::from_object_store_str("open", "the bucket", &what, e))?;
    if prefix.is_empty() {
        Ok(Objects::from_object_store(Arc::new(built), what))
    } else {
        let inner = object_store::prefix::PrefixStore::new(built, prefix.to_owned());
        Ok(Objects::from_object_store(Arc::new(inner), what))
    }
}

#[cfg(not(feature = "s3"))]
fn s3(bucket: &str, prefix: &str) -> Result<Objects, StoreError> {
    let what = format!("s3://{bucket}/{prefix}");
    Err(StoreError {
        hint: Some("build with the cargo feature `s3`"),
        ..StoreError::new("open", "the bucket", what, Cause::Other, "this build does not speak S3")
    })
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
