//! Where a connection string comes from. It is fetched at the last moment, and nothing here can print it.

use crate::error::{At, PipelineError};
use std::path::PathBuf;

/// A connection string, or where to get it.
#[derive(Clone)]
pub enum Secret {
    /// Written in pipeline.toml.
    Inline { at: At, value: String },
    /// In an environment variable.
    Env { at: At, variable: String },
    /// In a file, its whole trimmed text.
    File { at: At, path: PathBuf },
    /// A libpq service.
    Service { at: At, name: String },
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.origin())
    }
}

impl Secret {
    /// Says where it comes from, never what it is.
    pub fn origin(&self) -> String {
        match self {
            Secret::Inline { .. } => "url in the pipeline file".to_owned(),
            Secret::Env { variable, .. } => format!("environment variable {variable}"),
            Secret::File { path, .. } => format!("file {}", path.display()),
            Secret::Service { name, .. } => format!("libpq service {name}"),
        }
    }

    pub fn at(&self) -> &At {
        match self {
            Secret::Inline { at, .. }
            | Secret::Env { at, .. }
            | Secret::File { at, .. }
            | Secret::Service { at, .. } => at,
        }
    }

    /// The connection string. A service becomes `service=NAME`.
    pub fn fetch(&self) -> Result<String, PipelineError> {
        let fail = |problem: String, hint: &str| PipelineError::Config {
            at: self.at().clone(),
            problem,
            hint: hint.to_owned(),
        };
        let text = match self {
            Secret::Inline { value, .. } => value.clone(),
            Secret::Env { variable, .. } => std::env::var(variable).map_err(|e| match e {
                std::env::VarError::NotPresent => fail(
                    format!("environment variable {variable} is not set"),
                    "export it, or use url-file; under systemd use LoadCredential or EnvironmentFile",
                ),
                std::env::VarError::NotUnicode(_) => fail(
                    format!("environment variable {variable} is not UTF-8"),
                    "percent-encode it",
                ),
            })?,
            Secret::File { path, .. } => std::fs::read_to_string(path).map_err(|e| {
                fail(
                    format!("{} cannot be read: {e}", path.display()),
                    "name a file that holds a connection string",
                )
            })?,
            Secret::Service { name, .. } => format!("service='{}'", name.replace('\\', "\\\\").replace('\'', "\\'")),
        };
        let text = text.trim().to_owned();
        if text.is_empty() {
            return Err(fail(
                format!("{} is empty", self.origin()),
                "give postgresql://user@host/database",
            ));
        }
        Ok(text)
    }
}
