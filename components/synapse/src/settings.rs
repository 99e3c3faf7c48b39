//! What a site may decide.

use essrun_guest::prelude::*;
use serde::Deserialize;

/// The settings, with the defaults that `describe` tells.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Groups or tables whose data is left out; `None` is [`crate::leave_out::DEFAULT`].
    pub leave_out: Option<Vec<String>>,
    /// Whether local thumbnails are taken.
    pub thumbnails: bool,
    /// Whether the cache of other servers' media is taken.
    pub remote_media: bool,
    /// Where the signing key is in `config`.
    pub signing_key_file: String,
    /// Where server_name is in `config`.
    pub homeserver_file: String,
    /// How many media files verify digests.
    pub digest_media_files: u32,
    /// How many more media faults than at backup time are only warned of.
    pub tolerated_media_faults: u32,
    /// The Synapse that is running; empty where not told.
    pub version: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            leave_out: None,
            thumbnails: true,
            remote_media: false,
            signing_key_file: "*.signing.key".into(),
            homeserver_file: "homeserver.yaml".into(),
            digest_media_files: 2000,
            tolerated_media_faults: 10,
            version: String::new(),
        }
    }
}

impl Settings {
    /// Reads and checks them.
    pub fn get() -> Result<Self, Error> {
        let settings: Settings = settings::get()?;
        settings::check_version("version", &settings.version)?;
        for (name, value) in [
            ("signing-key-file", &settings.signing_key_file),
            ("homeserver-file", &settings.homeserver_file),
        ] {
            if value.is_empty() || value.starts_with('/') || value.split('/').any(|s| s == "..") {
                return Err(Error::invalid_setting(
                    name,
                    format!(
                        "{value:?} must be a path below the volume `config`, without `..`; `*` stands for anything"
                    ),
                ));
            }
        }
        Ok(settings)
    }
}
