//! A real Synapse on a real Postgres: its folder, its process.
//!
//! A `Home` is everything a Synapse needs to come back: `config/` (homeserver.yaml, log.yaml, signing key) and
//! `media_store/`. The two are the volumes a backup takes; its log and pid stay outside them. The same home can be
//! started, stopped, destroyed, restored and started again: port and server name are fixed when it is made.

mod client;
mod fill;
mod writer;

pub use client::{ApiError, Download, Session, SynapseClient};
pub use fill::{Account, Fate, Filled, KeyBackup, Medium, Message, Room, ToDevice, awkward_texts, fill};
pub use writer::{Entry, Writer, Written};

use crate::python::Environment;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How Synapse reaches its database.
#[derive(Clone, Debug)]
pub struct Database {
    /// `127.0.0.1`, or the directory of the unix socket.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: String,
    pub name: String,
}

impl Database {
    /// As a connection string for libpq and essrun.
    pub fn url(&self) -> String {
        let encode =
            |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        format!(
            "postgresql://{}:{}@{}:{}/{}",
            encode(&self.user),
            encode(&self.password),
            encode(&self.host),
            self.port,
            self.name
        )
    }
}

/// A Synapse's folder.
#[derive(Clone, Debug)]
pub struct Home {
    pub root: PathBuf,
    pub server_name: String,
    pub port: u16,
    pub registration_secret: String,
    /// `ed25519:a_XXXX`
    pub signing_key_id: String,
}

impl Home {
    /// Writes configuration and signing key for a new server below `root`.
    pub fn create(root: &Path, server_name: &str, database: &Database) -> Home {
        let seed: [u8; 32] = rand::random();
        let key_version = format!("a_{}", hex::encode(&seed[..2]));
        let home = Home {
            root: root.to_owned(),
            server_name: server_name.to_owned(),
            port: crate::free_port(),
            registration_secret: hex::encode(rand::random::<[u8; 16]>()),
            signing_key_id: format!("ed25519:{key_version}"),
        };
        std::fs::create_dir_all(home.config()).expect("creating Synapse's config folder");
        std::fs::create_dir_all(home.media_store()).expect("creating Synapse's media folder");
        std::fs::create_dir_all(home.run()).expect("creating Synapse's run folder");
        // Any 32 bytes are an ed25519 seed; the file is `ed25519 VERSION UNPADDED-BASE64`.
        std::fs::write(
            home.signing_key(),
            format!(
                "ed25519 {key_version} {}\n",
                unpadded_base64(&rand::random::<[u8; 32]>())
            ),
        )
        .expect("writing the signing key");
        std::fs::write(
            home.config().join("log.yaml"),
            LOG_CONFIG.replace("@RUN@", &text(&home.run())),
        )
        .expect("writing log.yaml");
        std::fs::write(home.config_file(), home.homeserver_yaml(database)).expect("writing homeserver.yaml");
        home
    }

    /// The volume with homeserver.yaml, log configuration and signing key.
    pub fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    /// The volume with all media.
    pub fn media_store(&self) -> PathBuf {
        self.root.join("media_store")
    }

    /// Log, pid: not part of a backup.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub fn config_file(&self) -> PathBuf {
        self.config().join("homeserver.yaml")
    }

    pub fn signing_key(&self) -> PathBuf {
        self.config().join(format!("{}.signing.key", self.server_name))
    }

    pub fn log_file(&self) -> PathBuf {
        self.run().join("homeserver.log")
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> SynapseClient {
        SynapseClient::new(&self.url(), &self.server_name, &self.registration_secret)
    }

    fn homeserver_yaml(&self, database: &Database) -> String {
        HOMESERVER_YAML
            .replace("@SERVER_NAME@", &self.server_name)
            .replace("@PORT@", &self.port.to_string())
            .replace("@CONFIG@", &text(&self.config()))
            .replace("@MEDIA@", &text(&self.media_store()))
            .replace("@RUN@", &text(&self.run()))
            .replace("@REGISTRATION@", &self.registration_secret)
            .replace("@MACAROON@", &hex::encode(rand::random::<[u8; 16]>()))
            .replace("@FORM@", &hex::encode(rand::random::<[u8; 16]>()))
            .replace("@PEPPER@", &hex::encode(rand::random::<[u8; 16]>()))
            .replace("@DB_USER@", &database.user)
            .replace("@DB_PASSWORD@", &database.password)
            .replace("@DB_NAME@", &database.name)
            .replace("@DB_HOST@", &database.host)
            .replace("@DB_PORT@", &database.port.to_string())
    }

    /// Starts the server and waits until it answers. Panics with the end of its log when it does not.
    pub fn start(&self) -> Synapse {
        self.try_start()
            .unwrap_or_else(|log| panic!("Synapse did not start:\n{log}"))
    }

    /// Starts the server and waits until it answers; gives the end of its output when it ended instead.
    pub fn try_start(&self) -> Result<Synapse, String> {
        std::fs::create_dir_all(self.run()).expect("creating Synapse's run folder");
        let output = self.run().join("output.log");
        let out = std::fs::File::create(&output).expect("creating Synapse's output file");
        let err = out.try_clone().expect("sharing Synapse's output file");
        let child = Command::new(Environment::Synapse.python())
            .args(["-m", "synapse.app.homeserver", "--config-path"])
            .arg(self.config_file())
            .current_dir(self.run())
            .env("SYNAPSE_DISABLE_SHUTDOWN_GC", "1")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("spawning Synapse");
        let mut server = Synapse {
            child,
            home: self.clone(),
        };
        let begun = Instant::now();
        while begun.elapsed() < START_LIMIT {
            if let Some(status) = server.child.try_wait().expect("waiting for Synapse") {
                return Err(format!(
                    "ended with {status}\n{}\n{}",
                    tail(&output),
                    tail(&self.log_file())
                ));
            }
            if self.client().is_up() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(format!(
            "no answer within {START_LIMIT:?}\n{}\n{}",
            tail(&output),
            tail(&self.log_file())
        ))
    }
}

/// The first start makes all tables; on a loaded machine that takes a while.
const START_LIMIT: Duration = Duration::from_secs(240);

/// A running Synapse; killed when dropped.
pub struct Synapse {
    child: Child,
    home: Home,
}

impl Synapse {
    pub fn home(&self) -> &Home {
        &self.home
    }

    pub fn client(&self) -> SynapseClient {
        self.home.client()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Orderly shutdown.
    pub fn stop(mut self) {
        let asked = Command::new("kill")
            .arg("-TERM")
            .arg(self.child.id().to_string())
            .status();
        assert!(asked.is_ok_and(|status| status.success()), "cannot signal Synapse");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            if self.child.try_wait().expect("waiting for Synapse").is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("Synapse did not stop within a minute:\n{}", tail(&self.home.log_file()));
    }

    /// As a power cut would.
    pub fn kill(mut self) {
        self.child.kill().expect("killing Synapse");
        self.child.wait().expect("waiting for Synapse");
    }
}

impl Drop for Synapse {
    fn drop(&mut self) {
        // Already stopped, or the test is over: nothing to report to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("test folders have UTF-8 names").to_owned()
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn unpadded_base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes)
}

const LOG_CONFIG: &str = "\
version: 1
formatters:
  precise: {format: '%(asctime)s %(name)s %(lineno)d %(levelname)s %(request)s %(message)s'}
handlers:
  file: {class: logging.FileHandler, formatter: precise, filename: '@RUN@/homeserver.log', encoding: utf8}
root: {level: WARNING, handlers: [file]}
disable_existing_loggers: false
";

const HOMESERVER_YAML: &str = "\
server_name: '@SERVER_NAME@'
public_baseurl: 'http://127.0.0.1:@PORT@/'
pid_file: '@RUN@/homeserver.pid'
log_config: '@CONFIG@/log.yaml'
media_store_path: '@MEDIA@'
signing_key_path: '@CONFIG@/@SERVER_NAME@.signing.key'
listeners:
  - {port: @PORT@, type: http, tls: false, bind_addresses: ['127.0.0.1'], resources: [{names: [client, federation], compress: false}]}
database:
  name: psycopg2
  args: {user: '@DB_USER@', password: '@DB_PASSWORD@', dbname: '@DB_NAME@', host: '@DB_HOST@', port: @DB_PORT@, cp_min: 1, cp_max: 5}
registration_shared_secret: '@REGISTRATION@'
macaroon_secret_key: '@MACAROON@'
form_secret: '@FORM@'
password_config: {pepper: '@PEPPER@'}
bcrypt_rounds: 4
enable_registration: false
trusted_key_servers: []
suppress_key_server_warning: true
federation_domain_whitelist: []
report_stats: false
max_upload_size: 20M
url_preview_enabled: false
presence: {enabled: true}
user_directory: {enabled: true, search_all_users: true}
rc_message: {per_second: 100000, burst_count: 100000}
rc_registration: {per_second: 100000, burst_count: 100000}
rc_login:
  address: {per_second: 100000, burst_count: 100000}
  account: {per_second: 100000, burst_count: 100000}
  failed_attempts: {per_second: 100000, burst_count: 100000}
rc_joins:
  local: {per_second: 100000, burst_count: 100000}
rc_joins_per_room: {per_second: 100000, burst_count: 100000}
rc_invites:
  per_room: {per_second: 100000, burst_count: 100000}
  per_user: {per_second: 100000, burst_count: 100000}
  per_issuer: {per_second: 100000, burst_count: 100000}
rc_admin_redaction: {per_second: 100000, burst_count: 100000}
rc_key_requests: {per_second: 100000, burst_count: 100000}
rc_presence:
  per_user: {per_second: 100000, burst_count: 100000}
rc_room_creation: {per_second: 100000, burst_count: 100000}
rc_media_create: {per_second: 100000, burst_count: 100000}
rc_delayed_event_mgmt: {per_second: 100000, burst_count: 100000}
rc_user_directory: {per_second: 100000, burst_count: 100000}
rc_profile: {per_second: 100000, burst_count: 100000}
";
