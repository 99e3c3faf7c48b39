//! The shape of pipeline.toml as serde reads it. Unknown keys are refused everywhere; meaning is checked one room up.

use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub version: Spanned<u32>,
    pub name: Spanned<String>,
    pub repository: Spanned<Repository>,
    pub run: Option<Run>,
    #[serde(default)]
    pub components: BTreeMap<Spanned<String>, Component>,
    #[serde(default)]
    pub groups: BTreeMap<Spanned<String>, Group>,
    pub retention: Option<Spanned<Retention>>,
    pub status: Option<Status>,
    pub policy: Option<Spanned<Policy>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Repository {
    pub url: Spanned<String>,
    pub recipients: Option<Vec<Spanned<Recipient>>>,
    pub recipients_file: Option<Spanned<String>>,
    pub writer_key: Option<Spanned<String>>,
    pub trusted_writers: Option<Vec<Spanned<String>>>,
    pub distrusted_writers: Option<Vec<Spanned<String>>>,
    pub cache: Option<Spanned<String>>,
    pub state: Option<Spanned<String>>,
    pub compression_level: Option<Spanned<i32>>,
    pub limit_upload: Option<Spanned<String>>,
    pub limit_download: Option<Spanned<String>>,
    pub s3: Option<Spanned<S3>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct S3 {
    pub endpoint: Option<Spanned<String>>,
    pub region: Option<String>,
    pub path_style: Option<bool>,
    #[serde(default)]
    pub allow_http: bool,
    pub credentials_file: Option<Spanned<String>>,
    pub profile: Option<String>,
    #[serde(default)]
    pub instance_credentials: bool,
    pub object_lock: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Run {
    pub jobs: Option<Spanned<usize>>,
    pub host: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Component {
    #[serde(rename = "use")]
    pub origin: Spanned<Use>,
    #[serde(default)]
    pub databases: BTreeMap<Spanned<String>, Database>,
    #[serde(default)]
    pub volumes: BTreeMap<Spanned<String>, Volume>,
    #[serde(default)]
    pub settings: BTreeMap<Spanned<String>, toml::Value>,
    #[serde(default)]
    pub limits: essrun_sandbox::Overrides,
}

pub(super) enum Use {
    Name(String),
    File(UseFile),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct UseFile {
    pub path: String,
    pub sha256: String,
    pub signature: Option<String>,
    pub public_key: Option<String>,
}

impl<'de> Deserialize<'de> for Use {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Use;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a built-in component, or { path = \"x.wasm\", sha256 = \"…\" }")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Use, E> {
                Ok(Use::Name(name.to_owned()))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Use, A::Error> {
                UseFile::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Use::File)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Database {
    pub url: Option<String>,
    pub url_env: Option<Spanned<String>>,
    pub url_file: Option<Spanned<String>>,
    pub service: Option<Spanned<String>>,
    pub sqlite: Option<Spanned<String>>,
    pub admin_url_env: Option<Spanned<String>>,
    pub admin_url_file: Option<Spanned<String>>,
    pub owner: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Volume {
    pub path: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Group {
    pub consistent: Vec<Spanned<String>>,
    pub accept: Option<super::Accept>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Retention {
    pub keep_last: Option<u32>,
    pub keep_hourly: Option<u32>,
    pub keep_daily: Option<u32>,
    pub keep_weekly: Option<u32>,
    pub keep_monthly: Option<u32>,
    pub keep_yearly: Option<u32>,
    pub keep_within: Option<String>,
    pub time_zone: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Status {
    pub max_age: Option<Spanned<String>>,
    pub max_drill_age: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Policy {
    #[serde(rename = "use")]
    pub origin: Option<Spanned<Use>>,
    #[serde(default)]
    pub files: Vec<Spanned<String>>,
    #[serde(default)]
    pub data: Vec<Spanned<String>>,
    pub questions: Option<Vec<Spanned<crate::policy::Question>>>,
    #[serde(default)]
    pub settings: BTreeMap<Spanned<String>, toml::Value>,
    pub approvals: Option<String>,
    pub limits: Option<essrun_sandbox::Limits>,
}

/// A recipient: its key, or a table with its key and what is known of its identity.
pub(super) struct Recipient {
    pub key: String,
    pub offline: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RecipientTable {
    key: String,
    #[serde(default)]
    offline: bool,
}

impl<'de> Deserialize<'de> for Recipient {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Recipient;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a recipient (age1…), or { key = \"age1…\", offline = true }")
            }
            fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Recipient, E> {
                Ok(Recipient {
                    key: key.to_owned(),
                    offline: false,
                })
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Recipient, A::Error> {
                let RecipientTable { key, offline } =
                    RecipientTable::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Recipient { key, offline })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
