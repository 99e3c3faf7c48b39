//! How a database is reached, and nothing of it in print.
//!
//! A [`Connection`] is made from whatever libpq takes: a URI, `keyword=value` words, a service name, the environment.
//! It promises that neither `Debug` nor `Display` nor an error shows a password or the string it was made from, and
//! that child programs get the same parameters by environment, never by argument, where `ps` would show them.

mod parse;
mod pooler;
mod reach;
mod same;
mod session;
mod tap;
mod tls;

pub use session::Session;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use tap::fuzz::fuzz_tap;
pub(crate) use tap::{BATCH, Form};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use tls::fuzz_certificate;

use crate::error::{Error, Result};
use parse::Params;
use reach::{Place, Timing};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// How to reach one database.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    params: Params,
}

/// Parameters we understand or can safely pass by.
const KNOWN: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "options",
    "application_name",
    "fallback_application_name",
    "connect_timeout",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "service",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "target_session_attrs",
    "client_encoding",
    "channel_binding",
    "gssencmode",
    "sslcompression",
    "sslsni",
    "krbsrvname",
    "load_balance_hosts",
];

/// Environment variables of libpq, the parameters they stand for, and whether a child program is given them as they
/// are: the others are found out here first, and what was found is given.
const ENVIRONMENT: &[(&str, &str, bool)] = &[
    ("PGHOST", "host", false),
    ("PGHOSTADDR", "hostaddr", true),
    ("PGPORT", "port", false),
    ("PGDATABASE", "dbname", false),
    ("PGUSER", "user", false),
    ("PGPASSWORD", "password", true),
    ("PGPASSFILE", "passfile", false),
    ("PGSERVICE", "service", false),
    ("PGOPTIONS", "options", true),
    ("PGCONNECT_TIMEOUT", "connect_timeout", true),
    ("PGTARGETSESSIONATTRS", "target_session_attrs", true),
    ("PGSSLMODE", "sslmode", true),
    ("PGSSLROOTCERT", "sslrootcert", true),
    ("PGSSLCERT", "sslcert", true),
    ("PGSSLKEY", "sslkey", true),
    ("PGSSLCRL", "sslcrl", true),
    ("PGSSLSNI", "sslsni", true),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version", true),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version", true),
    ("PGCHANNELBINDING", "channel_binding", true),
    ("PGGSSENCMODE", "gssencmode", false),
];

/// A connection string as far as it is read without looking at anything else, for fuzzers; and the files beside it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_parse(text: &str) {
    if let Ok(params) = parse::parse(text) {
        assert!(params.len() <= text.len());
    }
    if let Some(params) = parse::service(text, "a") {
        assert!(text.contains("[a]") && params.len() <= text.len());
    }
}

impl Connection {
    /// From a libpq URI or `keyword=value` words. Missing parameters come from the service it names, then from the
    /// environment (`PGHOST` …), then from the password file.
    pub fn parse(text: &str) -> Result<Self> {
        let params = parse::parse(text).map_err(|why| Error::Spec {
            why,
            hint: "write postgresql://user@host:port/database or `host=… dbname=… user=…`".to_owned(),
        })?;
        Self::complete(params)
    }

    /// From a service of pg_service.conf.
    pub fn service(name: &str) -> Result<Self> {
        Self::complete(Params::from([("service".to_owned(), name.to_owned())]))
    }

    /// From libpq's environment variables alone.
    pub fn from_env() -> Result<Self> {
        Self::complete(Params::new())
    }

    fn complete(mut params: Params) -> Result<Self> {
        if let Some(bad) = params.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            // A misplaced secret may stand where a name should; plain words only are shown.
            let shown = if bad.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && bad.len() < 40 {
                format!("`{bad}`")
            } else {
                "one of its parameters".to_owned()
            };
            return Err(Error::Spec {
                why: format!("{shown} is not known here"),
                hint: format!("known are {}", KNOWN.join(", ")),
            });
        }
        for (variable, name, _) in ENVIRONMENT.iter().filter(|(_, name, _)| *name == "service") {
            if let (Ok(value), false) = (std::env::var(variable), params.contains_key(*name)) {
                params.insert((*name).to_owned(), value);
            }
        }
        if let Some(service) = params.get("service").cloned() {
            for (name, value) in find_service(&service)? {
                params.entry(name).or_insert(value);
            }
        }
        for (variable, name, _) in ENVIRONMENT {
            if let (Ok(value), false) = (std::env::var(variable), params.contains_key(*name)) {
                params.insert((*name).to_owned(), value);
            }
        }
        params.retain(|_, value| !value.is_empty());
        let mut connection = Connection { params };
        if !connection.params.contains_key("user") {
            let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
            connection
                .params
                .insert("user".to_owned(), user.unwrap_or_else(|_| "postgres".to_owned()));
        }
        if !connection.params.contains_key("dbname") {
            let user = connection.user().to_owned();
            connection.params.insert("dbname".to_owned(), user);
        }
        if !connection.params.contains_key("password") {
            let file = match connection.params.get("passfile") {
                Some(file) => Some(PathBuf::from(file)),
                None => std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass")),
            };
            let host = match connection.host() {
                host if host.starts_with('/') => "localhost",
                host => host,
            };
            if let Some(password) = file.and_then(|file| {
                parse::passfile(&file, host, connection.port(), connection.database(), connection.user())
            }) {
                connection.params.insert("password".to_owned(), password);
            }
        }
        connection.config()?;
        connection.places()?;
        connection.timing()?;
        Ok(connection)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    /// The host as written; a path means a unix socket's directory.
    pub fn host(&self) -> &str {
        self.get("host")
            .or_else(|| self.get("hostaddr"))
            .unwrap_or_else(|| default_socket_dir())
    }

    pub fn port(&self) -> &str {
        self.get("port").unwrap_or("5432")
    }

    pub fn database(&self) -> &str {
        self.get("dbname").unwrap_or("postgres")
    }

    pub fn user(&self) -> &str {
        self.get("user").unwrap_or("postgres")
    }

    /// The same server and role, another database.
    pub fn with_database(&self, database: &str) -> Connection {
        let mut other = self.clone();
        other.params.insert("dbname".to_owned(), database.to_owned());
        other
    }

    /// The same server and database, another role.
    pub fn with_user(&self, user: &str, password: Option<&str>) -> Connection {
        let mut other = self.clone();
        other.params.insert("user".to_owned(), user.to_owned());
        match password {
            Some(password) => other.params.insert("password".to_owned(), password.to_owned()),
            None => other.params.remove("password"),
        };
        other
    }

    /// `host:port/database`, for messages: no user, no password.
    pub fn describe(&self) -> String {
        format!("{}:{}/{}", self.host(), self.port(), self.database())
    }

    fn bad(name: &str, expected: &str) -> Error {
        Error::Spec {
            why: format!("the value of `{name}` is not {expected}"),
            hint: format!("set `{name}` to {expected}"),
        }
    }

    fn seconds(&self, name: &str) -> Result<Option<Duration>> {
        self.get(name)
            .map(|v| {
                v.parse()
                    .map(Duration::from_secs)
                    .map_err(|_| Self::bad(name, "a whole number of seconds"))
            })
            .transpose()
    }

    /// Where the server may be, in the order in which it is looked for.
    fn places(&self) -> Result<Vec<Place>> {
        let hosts: Vec<&str> = self.host().split(',').collect();
        let addresses: Vec<&str> = match (self.get("hostaddr"), self.get("host")) {
            (Some(addresses), Some(_)) => addresses.split(',').collect(),
            _ => Vec::new(),
        };
        let ports: Vec<&str> = self.port().split(',').collect();
        if !addresses.is_empty() && addresses.len() != hosts.len() {
            return Err(Self::bad("hostaddr", "a list as long as that of `host`"));
        }
        if ports.len() > 1 && ports.len() != hosts.len() {
            return Err(Self::bad("port", "one number, or a list as long as that of `host`"));
        }
        let place = |(n, host): (usize, &&str)| {
            let port = ports.get(n).or(ports.first()).copied().unwrap_or_default();
            let port: u16 = match port {
                "" => 5432,
                port => match port.parse() {
                    Ok(port) if port > 0 => port,
                    _ => return Err(Self::bad("port", "a number from 1 to 65535")),
                },
            };
            let host = if host.is_empty() { default_socket_dir() } else { host };
            if host.starts_with('/') {
                return Ok(Place::Socket(PathBuf::from(host).join(format!(".s.PGSQL.{port}"))));
            }
            let address = match addresses.get(n).copied().unwrap_or_default() {
                "" => None,
                address => Some(address.parse().map_err(|_| Self::bad("hostaddr", "an IP address"))?),
            };
            Ok(Place::Host {
                name: host.to_owned(),
                address,
                port,
            })
        };
        hosts.iter().enumerate().map(place).collect()
    }

    fn timing(&self) -> Result<Timing> {
        let seconds =
            |name, default| -> Result<Duration> { Ok(self.seconds(name)?.unwrap_or(Duration::from_secs(default))) };
        Ok(Timing {
            // As libpq has it, zero is forever.
            connect: match seconds("connect_timeout", 15)? {
                Duration::ZERO => Duration::MAX,
                some => some,
            },
            keepalive_idle: seconds("keepalives_idle", 60)?,
            keepalive_interval: seconds("keepalives_interval", 10)?,
        })
    }

    /// The driver's configuration, for a stream that is made already: where the server is and TLS are not its business.
    pub(crate) fn config(&self) -> Result<tokio_postgres::Config> {
        let mut config = tokio_postgres::Config::new();
        config.user(self.user()).dbname(self.database());
        if let Some(password) = self.get("password") {
            config.password(password);
        }
        if let Some(options) = self.get("options") {
            config.options(options);
        }
        config.application_name(self.get("application_name").unwrap_or(our_name()));
        config
            .ssl_mode(tokio_postgres::config::SslMode::Require)
            .ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
        match self.get("target_session_attrs") {
            None | Some("any") => {}
            Some("read-write") => {
                config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
            }
            Some("read-only") => {
                config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadOnly);
            }
            Some(_) => return Err(Self::bad("target_session_attrs", "any, read-write or read-only")),
        }
        use tokio_postgres::config::ChannelBinding;
        config.channel_binding(match self.get("channel_binding") {
            None | Some("prefer") => ChannelBinding::Prefer,
            Some("disable") => ChannelBinding::Disable,
            Some("require") => ChannelBinding::Require,
            Some(_) => return Err(Self::bad("channel_binding", "disable, prefer or require")),
        });
        let tls = tls::Settings::of(&self.params)?;
        if tls.mode >= tls::Mode::Require && self.sockets() == Sockets::Some {
            return Err(Error::Spec {
                why: "`host` names unix sockets beside hosts, and `sslmode` asks for TLS, which sockets do not have"
                    .to_owned(),
                hint: "name only sockets or only hosts".to_owned(),
            });
        }
        Ok(config)
    }

    /// Which of the hosts are unix sockets.
    fn sockets(&self) -> Sockets {
        let mut hosts = self
            .host()
            .split(',')
            .map(|h| h.is_empty() || h.starts_with('/'))
            .peekable();
        match (hosts.clone().any(|socket| socket), hosts.all(|socket| socket)) {
            (_, true) => Sockets::All,
            (true, _) => Sockets::Some,
            (false, _) => Sockets::None,
        }
    }

    /// The environment for a child program of libpq; everything inherited beginning with `PG` must go first.
    pub(crate) fn environment(&self) -> Result<Environment> {
        let mut env = vec![
            ("PGHOST", self.host().to_owned()),
            ("PGPORT", self.port().to_owned()),
            ("PGDATABASE", self.database().to_owned()),
            ("PGUSER", self.user().to_owned()),
            ("PGAPPNAME", "essrun".to_owned()),
            // Not spoken by us; libpq would take it before TLS where there are credentials for it.
            ("PGGSSENCMODE", "disable".to_owned()),
        ];
        for (variable, name, _) in ENVIRONMENT.iter().filter(|(_, _, given)| *given) {
            if let Some(value) = self.get(name) {
                env.push((*variable, value.to_owned()));
            }
        }
        let roots = tls::Settings::of(&self.params)?.system_roots_file()?;
        if let Some(file) = &roots {
            env.retain(|(name, _)| !matches!(*name, "PGSSLROOTCERT" | "PGSSLMODE"));
            env.push(("PGSSLROOTCERT", file.path().display().to_string()));
            env.push(("PGSSLMODE", "verify-full".to_owned()));
        }
        Ok(Environment {
            variables: env,
            _roots: roots,
        })
    }
}

/// Which of a connection's hosts are unix sockets, where there is no TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sockets {
    All,
    Some,
    None,
}

/// What a child of libpq is given; must outlive the child.
pub(crate) struct Environment {
    pub variables: Vec<(&'static str, String)>,
    _roots: Option<tempfile::NamedTempFile>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.describe())
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// What this process's sessions are called where the pipeline says nothing else: no two processes are called the same, so
/// that a backup under way is somebody else to a restore.
pub(crate) fn our_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| format!("essrun {:08x}", RandomState::new().build_hasher().finish() as u32))
}

fn default_socket_dir() -> &'static str {
    if std::path::Path::new("/var/run/postgresql").is_dir() {
        "/var/run/postgresql"
    } else {
        "/tmp"
    }
}

fn find_service(name: &str) -> Result<Params> {
    let user = std::env::var_os("PGSERVICEFILE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pg_service.conf")));
    let system = std::env::var_os("PGSYSCONFDIR")
        .map_or_else(|| PathBuf::from("/etc/postgresql-common"), PathBuf::from)
        .join("pg_service.conf");
    user.into_iter()
        .chain([system])
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|text| parse::service(&text, name))
        .ok_or_else(|| Error::Spec {
            // A connection string put where a name is wanted may hold a password.
            why: match name.contains("://") || name.contains('=') {
                true => "what is given as a service is no name".to_owned(),
                false => format!("there is no service `{name}`"),
            },
            hint: "define it in ~/.pg_service.conf or the file PGSERVICEFILE names".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_secret() {
        let c = Connection::parse("postgresql://me:hunter2@127.0.0.1:5433/db?sslmode=disable").unwrap();
        assert_eq!(c.describe(), "127.0.0.1:5433/db");
        assert!(!format!("{c:?} {c}").contains("hunter2"));
        let environment = c.environment().unwrap().variables;
        for passed in [("PGPASSWORD", "hunter2"), ("PGSSLMODE", "disable")] {
            assert!(environment.contains(&(passed.0, passed.1.to_owned())));
        }
        let error = Connection::parse("service='postgresql://me:hunter2@h/db'").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        for bad in [
            "postgresql://me:hunter2@h/db?sslmode=yes",
            "postgresql://me:hunter2@h:port/db",
            "postgresql://me:hunter2@h/db?hunter2=hunter2",
            "password=hunter2 hunter2",
        ] {
            let error = Connection::parse(bad).unwrap_err();
            assert!(
                !format!("{error} {error:?}")
                    .replace("`hunter2`", "")
                    .contains("hunter2="),
                "{error}"
            );
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, said) in [
            ("host=h sslmode=always", "verify-full"),
            ("host=h sslrootcert=system sslmode=require", "sslmode=verify-full"),
            ("host=/tmp,h sslmode=require", "only sockets or only hosts"),
            ("host=h gssencmode=require", "GSSAPI"),
            ("host=h sslsni=yes", "0 or 1"),
            ("host=h channel_binding=yes", "require"),
            ("host=h ssl_max_protocol_version=TLSv1.1", "TLSv1.2"),
            (
                "host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
                "TLSv1.3",
            ),
        ] {
            let error = Connection::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(
            Connection::parse("host=/tmp sslmode=require").is_ok(),
            "a socket has no TLS and needs none"
        );
    }

    #[test]
    fn another_database_keeps_the_rest() {
        let c = Connection::parse("host=/tmp port=7 user=u password=p dbname=a").unwrap();
        let d = c.with_database("b");
        assert_eq!((d.host(), d.port(), d.user(), d.database()), ("/tmp", "7", "u", "b"));
        assert_eq!(d.with_user("w", None).get("password"), None);
    }
}
