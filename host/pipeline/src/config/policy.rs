//! `[policy]`: which scripts decide, with what limits. Files are named here and read when the policy is loaded.

use super::raw;
use super::{Checker, Use};
use crate::error::{At, PipelineError};
use crate::policy::Question;
use std::path::PathBuf;

/// The language of a policy that does not say which interpreter runs it.
pub const REGO: &str = "rego";

/// `[policy]`.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    pub at: At,
    /// The interpreter: a language essrun brings, or a component pinned by hash.
    pub origin: Use,
    /// Scripts, or directories of them, in the order given.
    pub files: Vec<PolicyFile>,
    /// JSON documents the scripts may look things up in.
    pub data: Vec<PolicyFile>,
    /// The questions the policy must answer; `None`: those its scripts answer.
    pub questions: Option<Vec<(At, Question)>>,
    /// Becomes `input.settings`.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// The directory approval files are read from when a restore is asked for.
    pub approvals: Option<PathBuf>,
    pub limits: essrun_sandbox::Limits,
}

/// A file the policy is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    pub at: At,
    pub path: PathBuf,
}

impl Checker<'_> {
    pub(super) fn policy(&self, raw: toml::Spanned<raw::Policy>) -> Result<PolicyConfig, PipelineError> {
        let at = self.places.of(&raw);
        let raw = raw.into_inner();
        let origin = match raw.origin {
            None => Use::BuiltIn(REGO.to_owned()),
            Some(given) => {
                let at = self.places.of(&given);
                match self.origin("policy", given)? {
                    Use::BuiltIn(language) if language != REGO => {
                        return Err(self.places.error(
                            at,
                            format!("policy: essrun brings no interpreter for {language:?}"),
                            "use = \"rego\", or a component that exports ess:policy: { path = \"x.wasm\", sha256 = \"…\" }",
                        ));
                    }
                    origin => origin,
                }
            }
        };
        let file = |given: toml::Spanned<String>| PolicyFile {
            at: self.places.of(&given),
            path: self.path(given.get_ref()),
        };
        let files: Vec<PolicyFile> = raw.files.into_iter().map(file).collect();
        if files.is_empty() && matches!(origin, Use::BuiltIn(_)) {
            return Err(self.places.error(
                at,
                "[policy] names no files",
                "files = [\"retention.rego\"]; docs/POLICY.md has examples",
            ));
        }
        // An empty list is a list: it names none, and a policy that answers one is then one too many.
        let mut questions = raw.questions.is_some().then(Vec::new);
        for given in raw.questions.into_iter().flatten() {
            let place = self.places.of(&given);
            let known: &mut Vec<(At, Question)> = questions.get_or_insert_default();
            if known.iter().any(|(_, q)| q == given.get_ref()) {
                return Err(self.places.error(
                    place,
                    format!("question {} is named twice", given.get_ref()),
                    "name it once",
                ));
            }
            known.push((place, given.into_inner()));
        }
        let mut settings = serde_json::Map::new();
        for (key, value) in raw.settings {
            let place = self.places.of(&key);
            settings.insert(key.into_inner(), self.json(&place, value)?);
        }
        Ok(PolicyConfig {
            at,
            origin,
            files,
            data: raw.data.into_iter().map(file).collect(),
            questions,
            settings,
            approvals: raw.approvals.map(|dir| self.path(&dir)),
            limits: raw.limits.unwrap_or_default(),
        })
    }

    /// A value of TOML as JSON: dates become their text, as a policy compares them.
    fn json(&self, at: &At, value: toml::Value) -> Result<serde_json::Value, PipelineError> {
        use serde_json::Value;
        Ok(match value {
            toml::Value::String(text) => Value::String(text),
            toml::Value::Integer(number) => Value::from(number),
            toml::Value::Boolean(truth) => Value::Bool(truth),
            toml::Value::Datetime(time) => Value::String(time.to_string()),
            toml::Value::Float(number) => serde_json::Number::from_f64(number).map(Value::Number).ok_or_else(|| {
                self.places.error(
                    at.clone(),
                    format!("{number} is no number a policy could be given"),
                    "JSON knows neither infinity nor nan: use a finite number",
                )
            })?,
            toml::Value::Array(list) => {
                Value::Array(list.into_iter().map(|v| self.json(at, v)).collect::<Result<_, _>>()?)
            }
            toml::Value::Table(table) => Value::Object(
                table
                    .into_iter()
                    .map(|(key, v)| Ok((key, self.json(at, v)?)))
                    .collect::<Result<_, PipelineError>>()?,
            ),
        })
    }
}
