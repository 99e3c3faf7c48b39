//! pipeline.toml: what it says, checked before anything is opened.
//!
//! Two steps: [`raw`] is the file's shape as serde reads it, unknown keys refused; here it becomes a [`Pipeline`] in
//! which every value was checked, or an error with file, line and a hint. Nothing outside the file is touched, so a
//! pipeline can be read without servers, keys or secrets. Secrets are fetched by [`Secret::fetch`], at the last moment.

mod policy;
mod raw;
mod secret;
mod store;

use crate::error::{At, PipelineError};
use crate::plugin::SignedBy;
use essrun_sandbox::Limits;
use essrun_store::Location;
pub use policy::{PolicyConfig, PolicyFile, REGO};
pub use secret::Secret;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// zstd's level where the pipeline names none.
const COMPRESSION_LEVEL: i32 = 2;

/// A whole pipeline.toml.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub file: PathBuf,
    pub name: String,
    pub repository: RepositoryConfig,
    pub run: RunConfig,
    /// In the order of their names.
    pub components: Vec<ComponentConfig>,
    pub groups: Vec<GroupConfig>,
    pub retention: Option<RetentionConfig>,
    pub status: StatusConfig,
    pub policy: Option<PolicyConfig>,
}

/// Where backups go, and for whom.
#[derive(Debug, Clone)]
pub struct RepositoryConfig {
    pub at: At,
    /// A directory or `s3://bucket/prefix`.
    pub url: String,
    pub recipients: Vec<String>,
    /// Those of them whose identity is said to be kept where no network reaches it.
    pub offline: BTreeSet<String>,
    pub writer_key: Option<PathBuf>,
    /// Writers to be believed, told from outside; empty: whom the repository itself names.
    pub trusted_writers: Vec<essrun_repository::WriterPublic>,
    /// Writers not to be believed, whoever lets them in.
    pub distrusted_writers: Vec<essrun_repository::WriterPublic>,
    pub cache: PathBuf,
    /// Where this host remembers the repository's history.
    pub state: PathBuf,
    pub compression_level: i32,
    /// How the store is reached.
    pub store: essrun_store::OpenOptions,
}

/// How a run behaves.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Parallel workers for a database or volume.
    pub jobs: usize,
    /// As many when a backup is taken. Each holds a pack and frames in the making, 32 MiB at most: so with four, what is
    /// held stays the same whatever the number of cores or the size of what is read.
    pub takers: usize,
    /// Names a person gives to the machine; kept in the manifest.
    pub host: Option<String>,
}

/// One `[components.NAME]`.
#[derive(Debug, Clone)]
pub struct ComponentConfig {
    pub name: String,
    pub at: At,
    pub origin: Use,
    pub databases: BTreeMap<String, DatabaseGrant>,
    pub volumes: BTreeMap<String, VolumeGrant>,
    pub settings: serde_json::Map<String, serde_json::Value>,
    pub settings_at: BTreeMap<String, At>,
    pub limits: Limits,
}

/// Where a component's code comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    BuiltIn(String),
    File {
        path: PathBuf,
        sha256: String,
        /// Who must have signed it, where that is asked for.
        signed: Option<SignedBy>,
    },
}

/// One database granted under a label.
#[derive(Debug, Clone)]
pub struct DatabaseGrant {
    pub at: At,
    pub source: DatabaseSource,
    /// A connection that may create and rename databases, for restores; without it the grant's own.
    pub admin: Option<Secret>,
    /// Large objects the role cannot read, and the like, are errors; this is the owner of restored databases.
    pub owner: Option<String>,
}

#[derive(Debug, Clone)]
pub enum DatabaseSource {
    Postgres(Secret),
    Sqlite(PathBuf),
}

/// One file tree granted under a label.
#[derive(Debug, Clone)]
pub struct VolumeGrant {
    pub at: At,
    pub path: PathBuf,
}

/// Components whose databases are taken at one instant.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    pub at: At,
    pub name: String,
    pub components: Vec<String>,
    /// The weakest consistency that is still accepted.
    pub accept: Accept,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accept {
    /// Equal snapshots on one cluster.
    Instant,
    /// Or a lock fence over several servers.
    Fence,
    /// Or one after the other in the order given, the gap recorded.
    Ordered,
}

/// `[retention]`: restic's words with restic's meaning.
#[derive(Debug, Clone, Default)]
pub struct RetentionConfig {
    pub at: Option<At>,
    pub last: Option<u32>,
    pub hourly: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
    pub within: Option<String>,
    pub time_zone: Option<String>,
}

/// `[status]`: from when on `essrun status` says that something is wrong, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatusConfig {
    /// Of each component's newest backup.
    pub max_age: Option<u64>,
    /// Of the newest passed drill.
    pub max_drill_age: Option<u64>,
}

impl Pipeline {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Pipeline, PipelineError> {
        let text = std::fs::read_to_string(file).map_err(|e| PipelineError::Config {
            at: At {
                file: file.to_owned(),
                line: 0,
            },
            problem: format!("cannot be read: {e}"),
            hint: "name an existing pipeline file; examples/ has some to start from".into(),
        })?;
        Pipeline::parse(file, &text)
    }

    /// Checks the text of a file.
    pub fn parse(file: &Path, text: &str) -> Result<Pipeline, PipelineError> {
        let places = Places { file, text };
        let raw: raw::File = toml::from_str(text).map_err(|e| places.toml_error(&e))?;
        Checker {
            places,
            base: file.parent().unwrap_or(Path::new(".")),
        }
        .pipeline(raw)
    }

    pub fn component(&self, name: &str) -> Option<&ComponentConfig> {
        self.components.iter().find(|c| c.name == name)
    }
}

/// Turns byte offsets into lines.
struct Places<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Places<'_> {
    fn at(&self, span: std::ops::Range<usize>) -> At {
        let before = self.text.get(..span.start.min(self.text.len())).unwrap_or(self.text);
        At {
            file: self.file.to_owned(),
            line: before.bytes().filter(|b| *b == b'\n').count() + 1,
        }
    }

    fn of<T>(&self, value: &Spanned<T>) -> At {
        self.at(value.span())
    }

    fn error(&self, at: At, problem: impl Into<String>, hint: impl Into<String>) -> PipelineError {
        PipelineError::Config {
            at,
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    fn toml_error(&self, e: &toml::de::Error) -> PipelineError {
        let at = e.span().map_or(
            At {
                file: self.file.to_owned(),
                line: 0,
            },
            |s| self.at(s),
        );
        let message = without_text(&e.message().trim().replace('\n', " "));
        let hint = if message.contains("unknown field") || message.contains("unknown variant") {
            "check the spelling; the message lists what is known here".to_owned()
        } else if message.contains("missing field `sha256`") {
            "a plugin is pinned: look at it with `essrun plugin inspect`, then `essrun plugin pin` writes its hash"
                .to_owned()
        } else if message.contains("missing field") {
            "add the missing key; examples/ has complete files".to_owned()
        } else if message.contains("duplicate key") {
            "each key or table may be given once; merge the two".to_owned()
        } else {
            "see https://toml.io for the syntax, and examples/ for complete files".to_owned()
        };
        // serde names fields and variants, but not the key whose value has the wrong type.
        let problem = match e.span().and_then(|s| self.key_before(s.start)) {
            Some(key) if message.contains("invalid type") || message.contains("invalid value") => {
                format!("{key}: {message}")
            }
            _ => message,
        };
        PipelineError::Config { at, problem, hint }
    }

    /// The key whose value begins at `offset`, where both are on one line.
    fn key_before(&self, offset: usize) -> Option<&str> {
        let line = self.text.get(..offset)?.lines().next_back()?;
        let (left, between) = line.rsplit_once('=')?;
        let key = left.rsplit(['{', ',', '[']).next()?.trim();
        (between.trim_matches([' ', '\t', '[', '"', '\'']).is_empty() && !key.is_empty()).then_some(key)
    }
}

struct Checker<'a> {
    places: Places<'a>,
    base: &'a Path,
}

impl Checker<'_> {
    fn pipeline(&self, raw: raw::File) -> Result<Pipeline, PipelineError> {
        if *raw.version.get_ref() != 1 {
            return Err(self.places.error(
                self.places.of(&raw.version),
                format!("version {} is not known", raw.version.get_ref()),
                "this essrun reads version = 1",
            ));
        }
        self.name(&raw.name, "pipeline name")?;
        let mut components = Vec::new();
        if raw.components.is_empty() {
            return Err(self.places.error(
                At {
                    file: self.places.file.to_owned(),
                    line: 0,
                },
                "no components",
                "add at least one [components.NAME] with use = \"synapse\" or another",
            ));
        }
        for (name, component) in raw.components {
            self.name(&name, "component name")?;
            components.push(self.component(self.places.of(&name), name.into_inner(), component)?);
        }
        let mut groups: Vec<GroupConfig> = Vec::new();
        for (name, group) in raw.groups {
            let at = self.places.of(&name);
            for member in &group.consistent {
                if !components.iter().any(|c: &ComponentConfig| &c.name == member.get_ref()) {
                    return Err(self.places.error(
                        self.places.of(member),
                        format!(
                            "group {} names component {:?}, which is not there",
                            name.get_ref(),
                            member.get_ref()
                        ),
                        format!("known here: {}", names(components.iter().map(|c| c.name.as_str()))),
                    ));
                }
                if let Some(other) = groups.iter().find(|g| g.components.contains(member.get_ref())) {
                    return Err(self.places.error(
                        self.places.of(member),
                        format!("component {:?} is already in group {}", member.get_ref(), other.name),
                        "a component has one instant: put both groups together",
                    ));
                }
            }
            let mut members: Vec<String> = Vec::new();
            for member in group.consistent {
                if members.contains(member.get_ref()) {
                    return Err(self.places.error(
                        self.places.of(&member),
                        format!("component {:?} is named twice", member.get_ref()),
                        "name it once",
                    ));
                }
                members.push(member.into_inner());
            }
            groups.push(GroupConfig {
                at,
                name: name.into_inner(),
                components: members,
                accept: group.accept.unwrap_or(Accept::Fence),
            });
        }
        Ok(Pipeline {
            file: self.places.file.to_owned(),
            name: raw.name.into_inner(),
            repository: self.repository(raw.repository)?,
            run: self.run(raw.run.unwrap_or_default())?,
            components,
            groups,
            retention: raw.retention.map(|r| self.retention(r)).transpose()?,
            status: raw.status.map(|s| self.status(s)).transpose()?.unwrap_or_default(),
            policy: raw.policy.map(|p| self.policy(p)).transpose()?,
        })
    }

    fn repository(&self, raw: Spanned<raw::Repository>) -> Result<RepositoryConfig, PipelineError> {
        let at = self.places.of(&raw);
        let raw = raw.into_inner();
        let store = self.store(&at, &raw)?;
        let url = raw.url.get_ref();
        if url.is_empty() {
            return Err(self.places.error(
                self.places.of(&raw.url),
                "url is empty",
                "give a directory or s3://bucket/prefix",
            ));
        }
        let url = match url.split_once("://") {
            // Only how it begins is shown: keys may stand in an address, where they should not.
            Some((scheme, _)) => match url.parse::<Location>() {
                Ok(_) => url.clone(),
                Err(e) => {
                    return Err(self.places.error(
                        self.places.of(&raw.url),
                        format!("url begins with {:?}: {}", format!("{scheme}://"), e.why),
                        e.hint.unwrap_or("write a directory, or s3://bucket/prefix"),
                    ));
                }
            },
            None => self.path(url).display().to_string(),
        };
        let mut recipients = Vec::new();
        let mut offline = BTreeSet::new();
        for recipient in raw.recipients.unwrap_or_default() {
            let key = recipient.get_ref().key.trim();
            if key.starts_with("AGE-SECRET-KEY-") {
                return Err(self.places.error(
                    self.places.of(&recipient),
                    "this is an identity (a secret key), not a recipient",
                    "put the public key (age1…) here and keep the identity away from this host",
                ));
            }
            if recipient.get_ref().offline {
                offline.insert(key.to_owned());
            }
            recipients.push(key.to_owned());
        }
        if let Some(file) = raw.recipients_file {
            let path = self.path(file.get_ref());
            let text = std::fs::read_to_string(&path).map_err(|e| {
                self.places.error(
                    self.places.of(&file),
                    format!("recipients-file {} cannot be read: {e}", path.display()),
                    "give a file with one age recipient a line",
                )
            })?;
            recipients.extend(
                text.lines()
                    .map(str::trim)
                    .filter(|l| !l.is_empty() && !l.starts_with('#'))
                    .map(str::to_owned),
            );
        }
        let writers = |named: Option<Vec<Spanned<String>>>| {
            let read = |writer: Spanned<String>| {
                let parsed = writer.get_ref().parse::<essrun_repository::WriterPublic>();
                parsed.map_err(|e| {
                    self.places.error(
                        self.places.of(&writer),
                        e.to_string(),
                        "a writer's public key stands in the head of its key file: essrun-writer-…",
                    )
                })
            };
            named
                .unwrap_or_default()
                .into_iter()
                .map(read)
                .collect::<Result<Vec<_>, _>>()
        };
        let trusted_writers = writers(raw.trusted_writers)?;
        let distrusted_writers = writers(raw.distrusted_writers)?;
        let level = raw
            .compression_level
            .as_ref()
            .map_or(COMPRESSION_LEVEL, |l| *l.get_ref());
        if let Some(given) = &raw.compression_level
            && !(1..=19).contains(&level)
        {
            return Err(self.places.error(
                self.places.of(given),
                "compression-level is out of range",
                format!("use 1 to 19; {COMPRESSION_LEVEL} is the default"),
            ));
        }
        Ok(RepositoryConfig {
            at,
            url,
            recipients,
            offline,
            trusted_writers,
            distrusted_writers,
            writer_key: raw.writer_key.map(|p| self.path(p.get_ref())),
            cache: raw.cache.map_or_else(default_cache, |p| self.path(p.get_ref())),
            state: raw.state.map_or_else(default_state, |p| self.path(p.get_ref())),
            compression_level: level,
            store,
        })
    }

    fn run(&self, raw: raw::Run) -> Result<RunConfig, PipelineError> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let jobs = match &raw.jobs {
            None => cores.clamp(1, 8),
            Some(n) if (1..=64).contains(n.get_ref()) => *n.get_ref(),
            Some(n) => {
                return Err(self
                    .places
                    .error(self.places.of(n), "jobs is out of range", "use 1 to 64"));
            }
        };
        let takers = if raw.jobs.is_some() { jobs } else { jobs.min(4) };
        Ok(RunConfig {
            jobs,
            takers,
            host: raw.host,
        })
    }

    fn status(&self, raw: raw::Status) -> Result<StatusConfig, PipelineError> {
        let seconds = |given: Option<Spanned<String>>| given.map(|g| self.seconds(&g)).transpose();
        Ok(StatusConfig {
            max_age: seconds(raw.max_age)?,
            max_drill_age: seconds(raw.max_drill_age)?,
        })
    }

    /// A length of time as people write it; a day has 24 hours.
    fn seconds(&self, given: &Spanned<String>) -> Result<u64, PipelineError> {
        let text = given.get_ref();
        let length = text
            .parse::<jiff::Span>()
            .and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()));
        match length.map(|l| u64::try_from(l.as_secs())) {
            Ok(Ok(seconds)) if seconds > 0 => Ok(seconds),
            _ => Err(self.places.error(
                self.places.of(given),
                format!("{text:?} is no length of time"),
                "write 26h, 36h, 8d, 2 weeks or the like",
            )),
        }
    }

    fn retention(&self, raw: Spanned<raw::Retention>) -> Result<RetentionConfig, PipelineError> {
        let at = Some(self.places.of(&raw));
        let r = raw.into_inner();
        Ok(RetentionConfig {
            at,
            last: r.keep_last,
            hourly: r.keep_hourly,
            daily: r.keep_daily,
            weekly: r.keep_weekly,
            monthly: r.keep_monthly,
            yearly: r.keep_yearly,
            within: r.keep_within,
            time_zone: r.time_zone,
        })
    }

    /// Where code comes from; a file is pinned by its hash.
    fn origin(&self, what: &str, given: Spanned<raw::Use>) -> Result<Use, PipelineError> {
        let at = self.places.of(&given);
        match given.into_inner() {
            raw::Use::Name(builtin) => Ok(Use::BuiltIn(builtin)),
            raw::Use::File(file) => {
                let sha256 = file.sha256.to_ascii_lowercase();
                if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(self.places.error(
                        at,
                        format!("{what}: sha256 is not 64 hexadecimal digits"),
                        "`essrun plugin pin` with this file writes it",
                    ));
                }
                let wrong = |problem: String| {
                    self.places.error(
                        at.clone(),
                        format!("{what}: {problem}"),
                        "give both: signature = \"x.wasm.minisig\", public-key = \"RW…\" (the second line of minisign.pub)",
                    )
                };
                let signed = match (&file.signature, &file.public_key) {
                    (None, None) => None,
                    (Some(signature), Some(key)) => {
                        SignedBy::check_key(key).map_err(wrong)?;
                        Some(SignedBy {
                            file: self.path(signature),
                            public_key: key.clone(),
                        })
                    }
                    (Some(_), None) => return Err(wrong("it has a signature and no public-key".to_owned())),
                    (None, Some(_)) => return Err(wrong("it has a public-key and no signature".to_owned())),
                };
                Ok(Use::File {
                    path: self.path(&file.path),
                    sha256,
                    signed,
                })
            }
        }
    }

    fn component(&self, at: At, name: String, raw: raw::Component) -> Result<ComponentConfig, PipelineError> {
        let origin = self.origin(&format!("component {name}"), raw.origin)?;
        let mut databases = BTreeMap::new();
        for (label, grant) in raw.databases {
            self.name(&label, "label")?;
            let at = self.places.of(&label);
            databases.insert(label.into_inner(), self.database(at, grant)?);
        }
        let mut volumes = BTreeMap::new();
        for (label, grant) in raw.volumes {
            self.name(&label, "label")?;
            let at = self.places.of(&label);
            if databases.contains_key(label.get_ref()) {
                return Err(self.places.error(
                    at,
                    format!("label {:?} is given to a database and a volume", label.get_ref()),
                    "labels name artifacts: use each once in a component",
                ));
            }
            let path = self.path(grant.path.get_ref());
            if grant.path.get_ref().is_empty() || path == Path::new("/") {
                return Err(self.places.error(
                    self.places.of(&grant.path),
                    "a volume's path is empty or /",
                    "name the directory the component needs, not more",
                ));
            }
            volumes.insert(label.into_inner(), VolumeGrant { at, path });
        }
        let mut settings = serde_json::Map::new();
        let mut settings_at = BTreeMap::new();
        for (key, value) in raw.settings {
            let place = self.places.of(&key);
            settings_at.insert(key.get_ref().clone(), place.clone());
            let json = serde_json::to_value(value).map_err(|e| {
                self.places.error(
                    place,
                    format!("setting {} cannot be passed on: {e}", key.get_ref()),
                    "use strings, numbers, booleans, lists and tables",
                )
            })?;
            settings.insert(key.into_inner(), json);
        }
        let usual = match &origin {
            Use::BuiltIn(_) => Limits::built_in(),
            Use::File { .. } => Limits::default(),
        };
        Ok(ComponentConfig {
            name,
            at,
            origin,
            databases,
            volumes,
            settings,
            settings_at,
            limits: raw.limits.over(usual),
        })
    }

    fn database(&self, at: At, raw: raw::Database) -> Result<DatabaseGrant, PipelineError> {
        let given: Vec<&str> = [
            raw.url.as_ref().map(|_| "url"),
            raw.url_env.as_ref().map(|_| "url-env"),
            raw.url_file.as_ref().map(|_| "url-file"),
            raw.service.as_ref().map(|_| "service"),
            raw.sqlite.as_ref().map(|_| "sqlite"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if given.len() != 1 {
            let problem = if given.is_empty() {
                "a database needs to be told where it is".to_owned()
            } else {
                format!(
                    "a database is told where it is {} times: {}",
                    given.len(),
                    given.join(", ")
                )
            };
            return Err(self.places.error(
                at,
                problem,
                "give one of url-env (a variable with a connection string), url-file, service (pg_service.conf), url, or sqlite (a file)",
            ));
        }
        let admin = match (raw.admin_url_env, raw.admin_url_file) {
            (None, None) => None,
            (Some(env), None) => Some(Secret::Env {
                at: at.clone(),
                variable: self.variable("admin-url-env", env)?,
            }),
            (None, Some(file)) => Some(Secret::File {
                at: at.clone(),
                path: self.path(&self.no_address("admin-url-file", file)?),
            }),
            (Some(_), Some(_)) => {
                return Err(self
                    .places
                    .error(at, "admin-url-env and admin-url-file are both given", "give one"));
            }
        };
        let source = if let Some(url) = raw.url {
            DatabaseSource::Postgres(Secret::Inline {
                at: at.clone(),
                value: url,
            })
        } else if let Some(variable) = raw.url_env {
            DatabaseSource::Postgres(Secret::Env {
                at: at.clone(),
                variable: self.variable("url-env", variable)?,
            })
        } else if let Some(file) = raw.url_file {
            DatabaseSource::Postgres(Secret::File {
                at: at.clone(),
                path: self.path(&self.no_address("url-file", file)?),
            })
        } else if let Some(service) = raw.service {
            DatabaseSource::Postgres(Secret::Service {
                at: at.clone(),
                name: self.no_address("service", service)?,
            })
        } else {
            let file = raw.sqlite.map(|file| self.no_address("sqlite", file)).transpose()?;
            DatabaseSource::Sqlite(self.path(&file.unwrap_or_default()))
        };
        if matches!(source, DatabaseSource::Sqlite(_)) && (admin.is_some() || raw.owner.is_some()) {
            return Err(self.places.error(
                at,
                "admin-url-… and owner have no meaning for an SQLite file",
                "remove them",
            ));
        }
        Ok(DatabaseGrant {
            at,
            source,
            admin,
            owner: raw.owner,
        })
    }

    /// The name of an environment variable. What is none is not shown: it may be the connection string itself.
    fn variable(&self, key: &str, given: Spanned<String>) -> Result<String, PipelineError> {
        let text = given.get_ref();
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if plain {
            return Ok(given.into_inner());
        }
        Err(self.places.error(
            self.places.of(&given),
            format!("{key} is not the name of an environment variable"),
            "name the variable that holds the connection string (letters, digits, underscores); the string itself is for url",
        ))
    }

    /// The name of a file or a service. A connection string put here by mistake is not shown.
    fn no_address(&self, key: &str, given: Spanned<String>) -> Result<String, PipelineError> {
        let mut text = given.get_ref().to_ascii_lowercase();
        text.retain(|c| !c.is_whitespace());
        if !text.contains("://") && !text.contains("password=") {
            return Ok(given.into_inner());
        }
        Err(self.places.error(
            self.places.of(&given),
            format!("{key} holds a connection string"),
            "url-env and url-file name where the connection string is; the string itself is for url",
        ))
    }

    /// Names end in artifact names, file names and log lines: keep them plain.
    fn name(&self, name: &Spanned<String>, what: &str) -> Result<(), PipelineError> {
        let text = name.get_ref();
        let plain = !text.is_empty()
            && text.len() <= 64
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-');
        if plain {
            Ok(())
        } else {
            let shown = if text.contains("://") { "…" } else { text };
            Err(self.places.error(
                self.places.of(name),
                format!("{what} {shown:?} is not allowed"),
                "use lower-case letters, digits and dashes, at most 64, not beginning with a dash",
            ))
        }
    }

    /// Relative paths are relative to the pipeline file.
    fn path(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }
}

/// serde's message without the text it was given: that may be a connection string in the wrong place.
fn without_text(message: &str) -> String {
    let cut = |before: &str, quote: char| {
        let (left, text) = message.split_once(before)?;
        let end = text.rfind(&format!("{quote}, expected "))?;
        Some(format!(
            "{left}{}{}",
            before.trim_end(),
            text.get(end + quote.len_utf8()..)?
        ))
    };
    let typed = ["invalid type: string ", "invalid value: string "];
    match typed.into_iter().find_map(|before| cut(before, '"')) {
        Some(cut) => cut,
        None if message.contains("://") => ["unknown field ", "unknown variant "]
            .into_iter()
            .find_map(|before| cut(before, '`'))
            .unwrap_or_else(|| "not as it must be".to_owned()),
        None => message.to_owned(),
    }
}

/// Where compiled code and indexes are kept unless the pipeline says otherwise.
pub(crate) fn default_cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("CACHE_DIRECTORY").or_else(|| std::env::var_os("ESSRUN_CACHE")) {
        return PathBuf::from(dir);
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")));
    base.unwrap_or_else(|| PathBuf::from("/var/cache")).join("essrun")
}

/// Where history is remembered unless the pipeline says otherwise: not in the cache, which anybody may empty.
fn default_state() -> PathBuf {
    let given = ["STATE_DIRECTORY", "ESSRUN_STATE"];
    if let Some(dir) = given.into_iter().find_map(std::env::var_os) {
        return PathBuf::from(dir);
    }
    let root = rustix::process::geteuid().is_root();
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").filter(|_| !root)?;
        Some(PathBuf::from(home).join(".local/state"))
    });
    base.unwrap_or_else(|| PathBuf::from("/var/lib")).join("essrun")
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
