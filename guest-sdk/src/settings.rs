//! The component's settings from pipeline.toml.
//!
//! The host has checked the names against `describe`, nobody has checked the values. A settings type has a default
//! for every field and refuses unknown ones:
//!
//! ```
//! #[derive(serde::Deserialize)]
//! #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
//! struct Settings { sample_files: u32 }
//! impl Default for Settings { fn default() -> Self { Settings { sample_files: 1000 } } }
//! ```

use crate::{Error, host};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A version a site tells as a setting, because nothing that can be looked at says it: as programs write theirs, or
/// nothing.
pub fn check_version(name: &str, version: &str) -> Result<(), Error> {
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_' | '~');
    match version.len() <= 64 && version.chars().all(usual) {
        true => Ok(()),
        false => Err(Error::invalid_setting(
            name,
            format!("{version:?} is no version: write it as the program does, as \"1.22.0\""),
        )),
    }
}

/// The settings. An error names the setting, what it is and what was expected.
pub fn get<T: DeserializeOwned>() -> Result<T, Error> {
    let text = host::settings();
    let all: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::Other(format!("the host's settings are no JSON object: {e}")))?;
    serde_json::from_value(Value::Object(all.clone())).map_err(|whole| {
        // Which one is it? With a default for every field, each can be tried alone.
        for (name, value) in &all {
            let alone = Map::from_iter([(name.clone(), value.clone())]);
            if let Err(e) = serde_json::from_value::<T>(Value::Object(alone)) {
                return Error::invalid_setting(name, format!("{value} is not understood: {e}"));
            }
        }
        Error::InvalidSetting(whole.to_string())
    })
}
