//! The client-server API of Matrix and Synapse's admin API, as far as tests use them, over plain HTTP.
//!
//! Thin on purpose: a call says what the API says. Nothing is retried, so a server that answers wrongly is seen.

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ureq::http::Request;

/// An answer that was not 2xx, or no answer at all (`status` 0).
#[derive(Clone, Debug)]
pub struct ApiError {
    pub call: String,
    pub status: u16,
    pub errcode: String,
    pub body: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {} {}", self.call, self.status, self.errcode, self.body)
    }
}

impl std::error::Error for ApiError {}

/// Bytes with their content type.
pub struct Download {
    pub content_type: String,
    pub bytes: Vec<u8>,
}

/// Talks to one Synapse.
#[derive(Clone)]
pub struct SynapseClient {
    base: String,
    pub server_name: String,
    registration_secret: String,
    agent: ureq::Agent,
    transactions: Arc<AtomicU64>,
}

/// What a login or registration gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub user_id: String,
    pub token: String,
    pub device_id: String,
}

impl SynapseClient {
    pub fn new(base: &str, server_name: &str, registration_secret: &str) -> SynapseClient {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .proxy(None)
            .build()
            .new_agent();
        SynapseClient {
            base: base.to_owned(),
            server_name: server_name.to_owned(),
            registration_secret: registration_secret.to_owned(),
            agent,
            // Transaction ids must differ between clients of the same token, also across restarts of a test.
            transactions: Arc::new(AtomicU64::new(rand::random::<u32>().into())),
        }
    }

    // --- plumbing

    fn raw(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Download, ApiError> {
        let call = format!("{method} {path}");
        let failed = |problem: String| ApiError {
            call: call.clone(),
            status: 0,
            errcode: String::new(),
            body: problem,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", content_type);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = if method == "GET" || method == "DELETE" && body.is_empty() {
            self.agent.run(request.body(()).map_err(|e| failed(e.to_string()))?)
        } else {
            self.agent.run(request.body(body).map_err(|e| failed(e.to_string()))?)
        };
        let mut response = response.map_err(|e| failed(e.to_string()))?;
        let status = response.status().as_u16();
        let content_type = response
            .headers()
            .get("content-type")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let bytes = response
            .body_mut()
            .with_config()
            .limit(256 << 20)
            .read_to_vec()
            .map_err(|e| failed(e.to_string()))?;
        if (200..300).contains(&status) {
            return Ok(Download { content_type, bytes });
        }
        let body = String::from_utf8_lossy(&bytes).into_owned();
        let errcode = serde_json::from_str::<Value>(&body)
            .ok()
            .and_then(|v| v.get("errcode").and_then(Value::as_str).map(str::to_owned))
            .unwrap_or_default();
        Err(ApiError {
            call,
            status,
            errcode,
            body,
        })
    }

    /// One JSON call.
    pub fn call(&self, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Result<Value, ApiError> {
        let bytes = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let answer = self.raw(method, path, token, "application/json", bytes)?;
        serde_json::from_slice(&answer.bytes).map_err(|e| ApiError {
            call: format!("{method} {path}"),
            status: 200,
            errcode: String::new(),
            body: format!("not JSON ({e}): {}", String::from_utf8_lossy(&answer.bytes)),
        })
    }

    pub fn get(&self, path: &str, token: &str) -> Result<Value, ApiError> {
        self.call("GET", path, Some(token), None)
    }

    pub fn put(&self, path: &str, token: &str, body: &Value) -> Result<Value, ApiError> {
        self.call("PUT", path, Some(token), Some(body))
    }

    pub fn post(&self, path: &str, token: &str, body: &Value) -> Result<Value, ApiError> {
        self.call("POST", path, Some(token), Some(body))
    }

    fn transaction(&self) -> String {
        format!("t{}", self.transactions.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the server answers at all. Not a sign of health: /sync can be broken behind it.
    pub fn is_up(&self) -> bool {
        self.raw("GET", "/_matrix/client/versions", None, "application/json", Vec::new())
            .is_ok()
    }

    // --- accounts

    /// Registers through the admin API with the shared secret.
    pub fn register(&self, localpart: &str, password: &str, admin: bool) -> Result<Session, ApiError> {
        let path = "/_synapse/admin/v1/register";
        let nonce = self.call("GET", path, None, None)?;
        let nonce = nonce["nonce"].as_str().unwrap_or_default();
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(self.registration_secret.as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(
            [nonce, localpart, password, if admin { "admin" } else { "notadmin" }]
                .join("\0")
                .as_bytes(),
        );
        let body = json!({
            "nonce": nonce, "username": localpart, "password": password, "admin": admin,
            "mac": hex::encode(mac.finalize().into_bytes()),
        });
        self.call("POST", path, None, Some(&body)).map(|v| session(&v))
    }

    pub fn login(&self, localpart: &str, password: &str) -> Result<Session, ApiError> {
        let body = json!({
            "type": "m.login.password", "password": password,
            "identifier": {"type": "m.id.user", "user": localpart},
        });
        self.call("POST", "/_matrix/client/v3/login", None, Some(&body))
            .map(|v| session(&v))
    }

    pub fn logout(&self, token: &str) -> Result<Value, ApiError> {
        self.post("/_matrix/client/v3/logout", token, &json!({}))
    }

    pub fn whoami(&self, token: &str) -> Result<Session, ApiError> {
        let answer = self.get("/_matrix/client/v3/account/whoami", token)?;
        Ok(Session {
            token: token.to_owned(),
            ..session(&answer)
        })
    }

    // --- rooms and events

    pub fn create_room(&self, token: &str, body: &Value) -> Result<String, ApiError> {
        self.post("/_matrix/client/v3/createRoom", token, body)
            .map(|v| text(&v, "room_id"))
    }

    pub fn join(&self, token: &str, room: &str) -> Result<Value, ApiError> {
        self.post(
            &format!("/_matrix/client/v3/rooms/{}/join", enc(room)),
            token,
            &json!({}),
        )
    }

    /// Sends any event; gives its id once the server has acknowledged it.
    pub fn send(&self, token: &str, room: &str, kind: &str, content: &Value) -> Result<String, ApiError> {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/send/{}/{}",
            enc(room),
            enc(kind),
            self.transaction()
        );
        self.put(&path, token, content).map(|v| text(&v, "event_id"))
    }

    pub fn send_text(&self, token: &str, room: &str, body: &str) -> Result<String, ApiError> {
        self.send(
            token,
            room,
            "m.room.message",
            &json!({"msgtype": "m.text", "body": body}),
        )
    }

    pub fn redact(&self, token: &str, room: &str, event: &str) -> Result<String, ApiError> {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/redact/{}/{}",
            enc(room),
            enc(event),
            self.transaction()
        );
        self.put(&path, token, &json!({"reason": "test"}))
            .map(|v| text(&v, "event_id"))
    }

    pub fn event(&self, token: &str, room: &str, event: &str) -> Result<Value, ApiError> {
        self.get(
            &format!("/_matrix/client/v3/rooms/{}/event/{}", enc(room), enc(event)),
            token,
        )
    }

    pub fn set_state(&self, token: &str, room: &str, kind: &str, content: &Value) -> Result<String, ApiError> {
        let path = format!("/_matrix/client/v3/rooms/{}/state/{}", enc(room), enc(kind));
        self.put(&path, token, content).map(|v| text(&v, "event_id"))
    }

    pub fn state(&self, token: &str, room: &str, kind: &str) -> Result<Value, ApiError> {
        self.get(
            &format!("/_matrix/client/v3/rooms/{}/state/{}", enc(room), enc(kind)),
            token,
        )
    }

    /// A sync without waiting; with `since` the changes after it.
    pub fn sync(&self, token: &str, since: Option<&str>) -> Result<Value, ApiError> {
        let since = since.map(|s| format!("&since={}", enc(s))).unwrap_or_default();
        self.get(&format!("/_matrix/client/v3/sync?timeout=0{since}"), token)
    }

    pub fn search(&self, token: &str, term: &str) -> Result<Value, ApiError> {
        let body = json!({"search_categories": {"room_events": {"search_term": term, "keys": ["content.body"]}}});
        self.post("/_matrix/client/v3/search", token, &body)
    }

    pub fn send_to_device(
        &self,
        token: &str,
        kind: &str,
        user: &str,
        device: &str,
        content: &Value,
    ) -> Result<Value, ApiError> {
        let path = format!("/_matrix/client/v3/sendToDevice/{}/{}", enc(kind), self.transaction());
        self.put(&path, token, &json!({"messages": {user: {device: content}}}))
    }

    // --- media

    /// Uploads and gives the media id.
    pub fn upload(&self, token: &str, file_name: &str, content_type: &str, bytes: Vec<u8>) -> Result<String, ApiError> {
        let path = format!("/_matrix/media/v3/upload?filename={}", enc(file_name));
        let answer = self.raw("POST", &path, Some(token), content_type, bytes)?;
        let uri = serde_json::from_slice::<Value>(&answer.bytes)
            .map(|v| text(&v, "content_uri"))
            .unwrap_or_default();
        uri.rsplit_once('/')
            .map(|(_, id)| id.to_owned())
            .ok_or_else(|| ApiError {
                call: path,
                status: 200,
                errcode: String::new(),
                body: format!("no content_uri in {}", String::from_utf8_lossy(&answer.bytes)),
            })
    }

    pub fn download(&self, token: &str, media_id: &str) -> Result<Download, ApiError> {
        let path = format!(
            "/_matrix/client/v1/media/download/{}/{}",
            self.server_name,
            enc(media_id)
        );
        self.raw("GET", &path, Some(token), "application/json", Vec::new())
    }

    pub fn thumbnail(&self, token: &str, media_id: &str) -> Result<Download, ApiError> {
        let path = format!(
            "/_matrix/client/v1/media/thumbnail/{}/{}?width=32&height=32&method=crop",
            self.server_name,
            enc(media_id)
        );
        self.raw("GET", &path, Some(token), "application/json", Vec::new())
    }

    // --- end-to-end keys

    pub fn upload_keys(&self, token: &str, body: &Value) -> Result<Value, ApiError> {
        self.post("/_matrix/client/v3/keys/upload", token, body)
    }

    pub fn query_keys(&self, token: &str, user: &str) -> Result<Value, ApiError> {
        self.post(
            "/_matrix/client/v3/keys/query",
            token,
            &json!({"device_keys": {user: []}}),
        )
    }

    /// Claims one signed key of a device; gives `(key id, key)`, or nothing when none is left.
    pub fn claim_key(&self, token: &str, user: &str, device: &str) -> Result<Option<(String, Value)>, ApiError> {
        let body = json!({"one_time_keys": {user: {device: "signed_curve25519"}}});
        let answer = self.post("/_matrix/client/v3/keys/claim", token, &body)?;
        let keys = answer["one_time_keys"][user][device].as_object();
        Ok(keys.and_then(|keys| keys.iter().next().map(|(id, key)| (id.clone(), key.clone()))))
    }

    pub fn create_key_backup(&self, token: &str, auth_data: &Value) -> Result<String, ApiError> {
        let body = json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": auth_data});
        self.post("/_matrix/client/v3/room_keys/version", token, &body)
            .map(|v| text(&v, "version"))
    }

    pub fn put_key_backup(&self, token: &str, version: &str, keys: &Value) -> Result<Value, ApiError> {
        self.put(
            &format!("/_matrix/client/v3/room_keys/keys?version={}", enc(version)),
            token,
            keys,
        )
    }

    pub fn key_backup(&self, token: &str, version: &str) -> Result<Value, ApiError> {
        self.get(
            &format!("/_matrix/client/v3/room_keys/keys?version={}", enc(version)),
            token,
        )
    }

    pub fn key_backup_version(&self, token: &str) -> Result<Value, ApiError> {
        self.get("/_matrix/client/v3/room_keys/version", token)
    }

    // --- profile and account data

    pub fn set_display_name(&self, token: &str, user: &str, name: &str) -> Result<Value, ApiError> {
        self.put(
            &format!("/_matrix/client/v3/profile/{}/displayname", enc(user)),
            token,
            &json!({"displayname": name}),
        )
    }

    pub fn profile(&self, token: &str, user: &str) -> Result<Value, ApiError> {
        self.get(&format!("/_matrix/client/v3/profile/{}", enc(user)), token)
    }

    pub fn set_account_data(&self, token: &str, user: &str, kind: &str, content: &Value) -> Result<Value, ApiError> {
        self.put(
            &format!("/_matrix/client/v3/user/{}/account_data/{}", enc(user), enc(kind)),
            token,
            content,
        )
    }

    pub fn account_data(&self, token: &str, user: &str, kind: &str) -> Result<Value, ApiError> {
        self.get(
            &format!("/_matrix/client/v3/user/{}/account_data/{}", enc(user), enc(kind)),
            token,
        )
    }
}

fn session(answer: &Value) -> Session {
    Session {
        user_id: text(answer, "user_id"),
        token: text(answer, "access_token"),
        device_id: text(answer, "device_id"),
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn enc(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
