//! Object Lock: retention set in the same request that writes the object, so that no moment is without it.
//!
//! The client has no word for it, so a decorator around its HTTP service adds the two headers to requests that carry
//! [`Retain`] and signs them anew: headers of that kind must be signed. The body's hash is taken from the first
//! signature, so nothing is hashed twice.

use object_store::ClientOptions;
use object_store::HeaderValue;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use std::time::Duration;

/// On a request: keep what it writes for so long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retain(pub Duration);

/// What signs requests. Its `Debug` says nothing: the provider's would say the keys.
#[derive(Clone)]
pub(crate) struct Signer {
    pub credentials: AwsCredentialProvider,
    pub region: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.region)
    }
}

impl Signer {
    pub async fn sign(&self, request: &mut HttpRequest, body_digest: Option<&[u8]>) -> object_store::Result<()> {
        let credential = self.credentials.get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(request, body_digest)
    }
}

/// Makes the usual HTTP client, and puts [`Locking`] around it.
#[derive(Debug)]
pub(super) struct LockingConnector(pub Signer);

impl HttpConnector for LockingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Locking {
            inner: ReqwestConnector::default().connect(options)?,
            signer: self.0.clone(),
        }))
    }
}

#[derive(Debug)]
struct Locking {
    inner: HttpClient,
    signer: Signer,
}

#[async_trait::async_trait]
impl HttpService for Locking {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(Retain(length)) = request.extensions().get::<Retain>().copied() {
            let until = retain_until(length)?;
            let headers = request.headers_mut();
            headers.insert("x-amz-object-lock-mode", HeaderValue::from_static("COMPLIANCE"));
            headers.insert("x-amz-object-lock-retain-until-date", until);
            headers.remove("authorization");
            let digest = headers
                .get("x-amz-content-sha256")
                .and_then(|v| hex::decode(v.as_bytes()).ok())
                .filter(|d| d.len() == 32);
            self.signer
                .sign(&mut request, digest.as_deref())
                .await
                .map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        }
        self.inner.execute(request).await
    }
}

fn retain_until(length: Duration) -> Result<HeaderValue, HttpError> {
    let unknown = |e: jiff::Error| HttpError::new(HttpErrorKind::Unknown, e);
    let until = jiff::Timestamp::now().checked_add(length).map_err(unknown)?;
    let text = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    HeaderValue::from_str(&text).map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))
}
