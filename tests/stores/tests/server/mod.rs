//! The stores these tests run against.
#![allow(dead_code)]

use essrun_store::OpenOptions;
use essrun_store::s3::{Credentials, S3Options};
use essrun_testkit::seaweed::{Key, Seaweed};
use hyper_util::rt::TokioIo;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn options(endpoint: String, credentials: Credentials) -> OpenOptions {
    OpenOptions {
        s3: S3Options {
            endpoint: Some(endpoint),
            allow_http: true,
            credentials,
            ..S3Options::default()
        },
        ..OpenOptions::default()
    }
}

/// Keys in a file, as on a real host.
pub fn seaweed_options(server: &Seaweed, dir: &Path, key: Key) -> OpenOptions {
    let path = dir.join(key.id);
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        key.id, key.secret
    );
    std::fs::write(&path, text).unwrap();
    options(server.endpoint(), Credentials::File { path, profile: None })
}

/// A folder behind S3, conditions honoured or not. What is not needed here is not implemented.
struct Folder {
    files: s3s_fs::FileSystem,
    conditional: bool,
    dropped: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl S3 for Folder {
    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        if !self.conditional && request.input.if_none_match.take().is_some() {
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
        self.files.put_object(request).await
    }
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.files.get_object(request).await
    }
    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(request).await
    }
    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.files.delete_object(request).await
    }
    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }
}

/// An S3 in this process.
pub struct InProcess {
    dir: tempfile::TempDir,
    endpoint: String,
    /// Conditions that were ignored.
    dropped: Arc<AtomicUsize>,
    running: tokio::task::JoinHandle<()>,
}

impl InProcess {
    /// `conditional`: whether it minds `If-None-Match`.
    pub async fn start(conditional: bool) -> InProcess {
        let dir = tempfile::tempdir().unwrap();
        // A bucket is a folder. The file system's 255 bytes hold a long name better when the bucket's is short.
        for bucket in ["data/backups", "data/ess"] {
            std::fs::create_dir_all(dir.path().join(bucket)).unwrap();
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut builder = s3s::service::S3ServiceBuilder::new(Folder {
            files: s3s_fs::FileSystem::new(dir.path().join("data")).unwrap(),
            conditional,
            dropped: dropped.clone(),
        });
        builder.set_auth(s3s::auth::SimpleAuth::from_single("some-key", "some secret"));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let running = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that hangs up is no failure of the test.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        InProcess {
            dir,
            endpoint,
            dropped,
            running,
        }
    }

    pub fn options(&self, dir: &Path) -> OpenOptions {
        let path = dir.join("credentials");
        let text = "[a-host]\naws_access_key_id = some-key\naws_secret_access_key = some secret\n";
        std::fs::write(&path, text).unwrap();
        let profile = Some("a-host".into());
        options(self.endpoint.clone(), Credentials::File { path, profile })
    }

    pub fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    /// The files behind the bucket.
    pub fn stored(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.dir.path().join("data/backups")];
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path)
                } else {
                    found.push(path)
                }
            }
        }
        found
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.running.abort();
    }
}
