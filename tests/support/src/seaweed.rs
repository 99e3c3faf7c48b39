//! A real object store for tests: SeaweedFS, its S3 gateway on a free port of 127.0.0.1, gone at the end.
//!
//! As with Postgres, a shell watches the pipe to its standard input and takes the server down when the test process
//! ends, however it ends. Nothing is reported to anybody: its telemetry is off.

use crate::python::Environment;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An access key and what it may do.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub id: &'static str,
    pub secret: &'static str,
}

/// May do everything.
pub const ADMIN: Key = Key {
    id: "essrun-admin",
    secret: "an admin's secret",
};
/// May list, read and write `s3://backups/ess` and `s3://locked/ess`, and delete only leases there: the README's policy.
pub const WRITER: Key = Key {
    id: "essrun-writer",
    secret: "a writer's secret",
};

/// A running server.
pub struct Seaweed {
    port: u16,
    keeper: Option<Child>,
    dir: tempfile::TempDir,
}

impl Seaweed {
    /// Starts one; it has no buckets.
    #[track_caller]
    pub fn start() -> Seaweed {
        let weed = Environment::Seaweedfs.python().with_file_name("weed");
        let dir = tempfile::Builder::new()
            .prefix("essrun-s3-")
            .tempdir()
            .expect("a temporary folder");
        let config = serde_json::json!({"identities": [
            {"name": "admin", "credentials": [{"accessKey": ADMIN.id, "secretKey": ADMIN.secret}],
             "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
            {"name": "writer", "credentials": [{"accessKey": WRITER.id, "secretKey": WRITER.secret}],
             "policyNames": ["backups", "locked"]}],
            "policies": [{"name": "backups", "content": writer_policy("backups", "ess/").to_string()},
                         {"name": "locked", "content": writer_policy("locked", "ess/").to_string()}]});
        std::fs::write(dir.path().join("s3.json"), config.to_string()).expect("writing s3.json");
        std::fs::create_dir(dir.path().join("data")).expect("a folder");
        let mut seaweed = Seaweed {
            port: 0,
            keeper: None,
            dir,
        };
        let mut said = String::new();
        // A port found free can be taken by somebody else before the server binds it: try a few.
        for _ in 0..5 {
            match seaweed.launch(&weed) {
                Ok(()) => return seaweed,
                Err(log) => said = log,
            }
        }
        panic!("SeaweedFS did not start:\n{said}");
    }

    fn launch(&mut self, weed: &std::path::Path) -> Result<(), String> {
        let ports: Vec<u16> = (0..8).map(|_| crate::free_port()).collect();
        let log = self.dir.path().join("log");
        let mut arguments: Vec<String> = [
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-s3",
            "-s3.config=s3.json",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-dir=data",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
        ]
        .map(str::to_owned)
        .to_vec();
        let names = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port",
            "s3.port.grpc",
        ];
        arguments.extend(names.iter().zip(&ports).map(|(name, port)| format!("-{name}={port}")));
        arguments.push(format!(
            "-filer.localSocket={}",
            self.dir.path().join("filer.sock").display()
        ));
        let script = "log=$1; shift; \"$@\" >>\"$log\" 2>&1 </dev/null & server=$!\n\
                      cat >/dev/null\nkill -KILL $server 2>/dev/null; wait $server";
        let keeper = Command::new("/bin/sh")
            .args(["-c", script, "sh"])
            .arg(&log)
            .arg(weed)
            .args(&arguments)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", weed.display()))?;
        self.stop();
        self.keeper = Some(keeper);
        self.port = ports[6];
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(90) {
            // Ready is when it lets the admin make a bucket: until then its parts are still finding each other.
            if self
                .request(ADMIN, "PUT", "/ready", "", &[], b"")
                .is_ok_and(|(status, _)| status == 200)
            {
                self.expect("DELETE", "/ready", "", &[], b"");
                return Ok(());
            }
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("address already in use") {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.stop();
        Err(std::fs::read_to_string(&log).unwrap_or_default())
    }

    fn stop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            // It waits for the server it killed.
            let _ = keeper.wait();
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn make_bucket(&self, name: &str) {
        self.expect("PUT", &format!("/{name}"), "", &[], b"");
    }

    /// A bucket with Object Lock, which includes versioning.
    pub fn make_locked_bucket(&self, name: &str) {
        let lock = [("x-amz-bucket-object-lock-enabled", "true")];
        self.expect("PUT", &format!("/{name}"), "", &lock, b"");
    }

    /// The names of a bucket's objects below a prefix, as it lists them now; at most a thousand.
    pub fn objects(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let query = format!("list-type=2&max-keys=1000&prefix={}", prefix.replace('/', "%2F"));
        let text = self.expect("GET", &format!("/{bucket}"), &query, &[], b"");
        assert!(text.contains("<IsTruncated>false"), "more than a page of objects");
        text.split("<Key>")
            .skip(1)
            .filter_map(|rest| rest.split_once("</Key>"))
            .map(|(key, _)| key.to_owned())
            .collect()
    }

    /// A request that must succeed; gives the answer's body.
    #[track_caller]
    pub fn expect(&self, method: &str, path: &str, query: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
        match self.request(ADMIN, method, path, query, headers, body) {
            Ok((200..=299, text)) => text,
            Ok((status, text)) => panic!("{method} {path}: {status}: {text}"),
            Err(e) => panic!("{method} {path}: {e}"),
        }
    }

    /// A request signed as S3 wants it (SigV4); `query` must be sorted and encoded, `path` needs no encoding.
    pub fn request(
        &self,
        key: Key,
        method: &str,
        path: &str,
        query: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(u16, String), String> {
        let host = format!("127.0.0.1:{}", self.port);
        let stamp = stamp();
        let day = &stamp[..8];
        let digest = hex::encode(Sha256::digest(body));
        let mut signed: Vec<(String, String)> = headers
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        signed.push(("host".to_owned(), host.clone()));
        signed.push(("x-amz-content-sha256".to_owned(), digest.clone()));
        signed.push(("x-amz-date".to_owned(), stamp.clone()));
        signed.sort();
        let names: Vec<&str> = signed.iter().map(|(k, _)| k.as_str()).collect();
        let names = names.join(";");
        let lines: String = signed.iter().map(|(k, v)| format!("{k}:{v}\n")).collect();
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}");
        let scope = format!("{day}/us-east-1/s3/aws4_request");
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}",
            hex::encode(Sha256::digest(canonical.as_bytes()))
        );
        let mut signing = format!("AWS4{}", key.secret).into_bytes();
        for part in [day, "us-east-1", "s3", "aws4_request"] {
            signing = hmac(&signing, part.as_bytes());
        }
        let signature = hex::encode(hmac(&signing, to_sign.as_bytes()));
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{query}")
        };
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .build()
            .into();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{host}{path}{query}"))
            .header(
                "authorization",
                format!(
                    "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
                    key.id
                ),
            );
        for (name, value) in signed.iter().filter(|(k, _)| k != "host") {
            request = request.header(name, value);
        }
        let request = request.body(body.to_vec()).map_err(|e| e.to_string())?;
        let mut answer = agent.run(request).map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().map_err(|e| e.to_string())?;
        Ok((status, text))
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.stop();
    }
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key will do");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// Now, as `20260131T041500Z`.
fn stamp() -> String {
    let output = Command::new("date")
        .args(["-u", "+%Y%m%dT%H%M%SZ"])
        .output()
        .expect("date");
    String::from_utf8(output.stdout)
        .expect("date prints ASCII")
        .trim()
        .to_owned()
}

/// The least a backup host needs, as the README gives it: it can add, and take nothing away but its own leases.
pub fn writer_policy(bucket: &str, prefix: &str) -> serde_json::Value {
    let within = |what: &str| format!("arn:aws:s3:::{bucket}/{prefix}{what}");
    serde_json::json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [format!("arn:aws:s3:::{bucket}")]},
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": [within("*")]},
        {"Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": [within("leases/*"), within("claims/*")]}]})
}
