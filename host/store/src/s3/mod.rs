//! S3 and what speaks like it: from what a person configured to an [`Objects`].
//!
//! What this room promises: keys are never part of an address, an error or a log line; nothing goes over plain HTTP
//! unless that was asked for by name; an instance's metadata service is only asked when that was asked for. Requests
//! are made once: trying again is [`crate::Retrying`]'s, so that it is seen and bounded in one place.
//!
//! An object goes up in one request, not in parts. Packs are tens of megabytes, far below S3's 5 GiB for one request;
//! one request is atomic, can be conditional, carries the SHA-256 of all its bytes, and a killed writer leaves nothing
//! behind that is paid for and never seen, as parts of an unfinished upload are.

mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use credentials::fuzz_credentials;
mod inspect;
mod lock;

pub use credentials::Credentials;
pub(crate) use inspect::{Bucket, BucketState};
pub(crate) use lock::Retain;

use crate::{Cause, Objects, StoreError};
use object_store::ClientOptions;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use std::sync::Arc;
use std::time::Duration;

/// Beyond any pack on any line one would back up over; single operations have shorter limits of their own.
const LONGEST_REQUEST: Duration = Duration::from_secs(30 * 60);

/// How to reach a bucket. Anything left out comes from the usual `AWS_*` variables.
#[derive(Clone, Debug, Default)]
pub struct S3Options {
    /// `https://s3.example.org`; AWS itself when there is none.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// The bucket in the path rather than in the host's name. Left out: with an endpoint yes, on AWS no.
    pub path_style: Option<bool>,
    /// Plain HTTP, for a store on the same machine or a private line.
    pub allow_http: bool,
    pub credentials: Credentials,
    /// Every object but the short-lived ones is written with this retention (Object Lock, compliance mode).
    pub object_lock: Option<Duration>,
    /// Names under these first segments are short-lived and never locked.
    pub unlocked: Vec<String>,
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// A bucket, opened: the objects in it, and a way to ask for its settings.
pub(crate) struct Opened {
    pub objects: Objects,
    pub bucket: Bucket,
}

/// Opens a bucket. Nothing is asked of the store yet.
pub(crate) fn open(bucket: &str, prefix: &str, options: &S3Options) -> Result<Opened, StoreError> {
    let what = format!("s3://{bucket}/{prefix}");
    let refuse = |why: String, hint: &'static str| StoreError {
        hint: Some(hint),
        ..StoreError::new("open", "the bucket", what.clone(), Cause::Other, why)
    };
    let valid = (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
    if !valid {
        return Err(refuse(
            format!("{bucket:?} is no name of a bucket"),
            "buckets have 3 to 63 of a-z, 0-9, `-` and `.`",
        ));
    }
    // Somebody else may have chosen already; then that is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let region = options
        .region
        .clone()
        .or_else(|| env("AWS_REGION"))
        .or_else(|| env("AWS_DEFAULT_REGION"))
        .unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = options
        .endpoint
        .clone()
        .or_else(|| env("AWS_ENDPOINT_URL_S3"))
        .or_else(|| env("AWS_ENDPOINT_URL"))
        .map(|e| e.trim_end_matches('/').to_owned());
    if let Some(e) = &endpoint {
        let (scheme, rest) = e.split_once("://").unwrap_or(("", e));
        match scheme {
            "https" => {}
            "http" if options.allow_http => {}
            "http" => {
                return Err(refuse(
                    format!("{e} is plain HTTP"),
                    "use https://, or set allow-http = true where nobody else is on the line",
                ));
            }
            _ => {
                return Err(refuse(
                    format!("{e} is no address"),
                    "write https://host or https://host:port",
                ));
            }
        }
        if rest.is_empty() || rest.contains(['@', '?', '#', '/', ' ']) {
            return Err(refuse(
                "the endpoint is more than a host and a port".to_owned(),
                "write https://host or https://host:port; keys come from elsewhere, the bucket from url",
            ));
        }
    }
    let path_style = options.path_style.unwrap_or(endpoint.is_some());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&region)
        .with_virtual_hosted_style_request(!path_style)
        .with_allow_http(options.allow_http)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // What a bucket with a default retention asks for; made in the same pass as the signature's.
        .with_checksum_algorithm(Checksum::SHA256)
        // One by one is what every store can do, and what names the object that could not go.
        .with_disable_bulk_delete(true)
        .with_retry(object_store::RetryConfig {
            max_retries: 0,
            ..Default::default()
        })
        .with_client_options(
            ClientOptions::new()
                .with_allow_http(options.allow_http)
                .with_connect_timeout(Duration::from_secs(15))
                .with_timeout(LONGEST_REQUEST),
        );
    let base = match &endpoint {
        Some(e) if path_style => format!("{e}/{bucket}"),
        Some(e) => e.replacen("://", &format!("://{bucket}."), 1),
        None if path_style => format!("https://s3.{region}.amazonaws.com/{bucket}"),
        None => format!("https://{bucket}.s3.{region}.amazonaws.com"),
    };
    if let Some(e) = &endpoint {
        builder = builder.with_endpoint(if path_style { e } else { &base });
    }
    builder = options
        .credentials
        .apply(builder)
        .map_err(|(why, hint)| refuse(why, hint))?;
    let failed = |e| StoreError::from_object_store_str("open", "the bucket", &what, e);
    let plain: AmazonS3 = builder.clone().build().map_err(failed)?;
    let signer = lock::Signer {
        credentials: plain.credentials().clone(),
        region: builder
            .get_config_value(&AmazonS3ConfigKey::Region)
            .unwrap_or_else(|| region.clone()),
    };
    let store = match options.object_lock {
        None => plain,
        Some(_) => builder
            .with_credentials(plain.credentials().clone())
            .with_http_connector(lock::LockingConnector(signer.clone()))
            .build()
            .map_err(failed)?,
    };
    let inner: Arc<dyn object_store::ObjectStore> = if prefix.is_empty() {
        Arc::new(store)
    } else {
        Arc::new(object_store::prefix::PrefixStore::new(store, prefix.to_owned()))
    };
    let objects = Objects::remote(inner, what.clone()).with_retention(
        options.object_lock.map(Retain),
        [&options.unlocked[..], &[crate::elected::CLAIMS.to_owned()]].concat(),
    );
    let bucket = Bucket::new(what, base, signer, options.allow_http)?;
    Ok(Opened { objects, bucket })
}
