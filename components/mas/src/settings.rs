//! What a site may decide.

use essrun_guest::prelude::*;
use serde::Deserialize;

/// The settings, with the defaults that `describe` tells.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Queues whose pending jobs do not run after a restore.
    pub hold_back: Vec<String>,
    /// Where the configuration is in `config`.
    pub config_file: String,
    /// A file in `config` that holds nothing but secrets.encryption.
    pub encryption_file: String,
    /// The MAS that is running; empty where not told.
    pub version: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            hold_back: Vec::new(),
            config_file: "*.yaml".into(),
            encryption_file: String::new(),
            version: String::new(),
        }
    }
}

impl Settings {
    /// Reads and checks them.
    pub fn get() -> Result<Self, Error> {
        let settings: Settings = settings::get()?;
        settings::check_version("version", &settings.version)?;
        for queue in &settings.hold_back {
            // The pattern becomes part of a statement.
            if queue.is_empty()
                || !queue
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '*')
            {
                return Err(Error::invalid_setting(
                    "hold-back",
                    format!("{queue:?} is no queue: write its name, as in \"deactivate-user\", with `*` for anything"),
                ));
            }
        }
        Ok(settings)
    }
}
