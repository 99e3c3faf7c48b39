//! What a bucket says of itself: versioning and Object Lock. Not needed to work, only to tell a person.

use super::lock::Signer;
use crate::{Cause, StoreError};
use futures_util::TryStreamExt;
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use std::time::Duration;

/// No setting takes more to tell.
const LONGEST_ANSWER: usize = 64 << 10;

/// A bucket's own address.
#[derive(Debug)]
pub(crate) struct Bucket {
    what: String,
    base: String,
    signer: Signer,
    client: HttpClient,
}

/// A setting of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BucketState {
    /// What the store's answer holds of it.
    Said(String),
    /// It is not set.
    Unset,
    /// The store does not say, and why.
    Untold(String),
}

impl Bucket {
    pub fn new(what: String, base: String, signer: Signer, allow_http: bool) -> Result<Self, StoreError> {
        let options = ClientOptions::new()
            .with_allow_http(allow_http)
            .with_timeout(Duration::from_secs(30));
        let client = ReqwestConnector::default()
            .connect(&options)
            .map_err(|e| StoreError::from_object_store_str("open", "the bucket", &what, e))?;
        Ok(Bucket {
            what,
            base,
            signer,
            client,
        })
    }

    /// Whether old versions are kept: `Enabled` or `Suspended`.
    pub async fn versioning(&self) -> Result<BucketState, StoreError> {
        self.setting("versioning", &["Status"]).await
    }

    /// Whether objects can be locked, and the retention they get by default.
    pub async fn object_lock(&self) -> Result<BucketState, StoreError> {
        self.setting("object-lock", &["ObjectLockEnabled", "Mode", "Days", "Years"])
            .await
    }

    async fn setting(&self, name: &str, fields: &[&str]) -> Result<BucketState, StoreError> {
        let failed = |why: String| StoreError::new("look at", name, self.what.as_str(), Cause::Transient, why);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = format!("{}?{name}=", self.base)
            .parse()
            .map_err(|_| failed(format!("{} is no address", self.base)))?;
        self.signer
            .sign(&mut request, None)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let answer = self.client.execute(request).await.map_err(|e| failed(e.to_string()))?;
        let status = answer.status().as_u16();
        let mut stream = answer.into_body().bytes_stream();
        let mut body = Vec::new();
        while body.len() < LONGEST_ANSWER
            && let Some(more) = stream.try_next().await.map_err(|e| failed(e.to_string()))?
        {
            body.extend_from_slice(&more);
        }
        Ok(BucketState::of(status, &body, fields))
    }
}

impl BucketState {
    /// What an answer says of these fields.
    pub fn of(status: u16, body: &[u8], fields: &[&str]) -> BucketState {
        let text = String::from_utf8_lossy(body.get(..body.len().min(LONGEST_ANSWER)).unwrap_or_default());
        match status {
            200..=299 => {
                let said: Vec<String> = fields
                    .iter()
                    .filter_map(|f| Some((f, element(&text, f)?)))
                    .map(|(f, v)| format!("{} {v}", f.to_lowercase()))
                    .collect();
                match said.is_empty() {
                    true => BucketState::Unset,
                    false => BucketState::Said(said.join(", ")),
                }
            }
            404 if text.contains("ObjectLockConfigurationNotFound") => BucketState::Unset,
            403 => BucketState::Untold("the key may not ask".to_owned()),
            other => BucketState::Untold(format!("the store answered {other}")),
        }
    }
}

/// The text of the first element of this name, when it is a plain word.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once('<')?;
    let plain = !value.is_empty() && value.len() <= 40 && value.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::element;

    #[test]
    fn words_are_read_from_answers() {
        let xml = "<V xmlns=\"x\"><Status>Enabled</Status><Days>30</Days><Evil>\u{1b}[2J</Evil><Mode></Mode></V>";
        assert_eq!(element(xml, "Status").as_deref(), Some("Enabled"));
        assert_eq!(element(xml, "Days").as_deref(), Some("30"));
        for none in ["Evil", "Mode", "Years"] {
            assert_eq!(element(xml, none), None);
        }
    }
}
