//! Tests of policies: those the scripts carry, and inputs with the answers that are expected.
//!
//! A policy is code that decides over backups, so it is tested where it is written. Two kinds: rules `test_…` in files
//! `X_test.rego` beside `X.rego`; and pairs `QUESTION.NAME.input.json`, `QUESTION.NAME.expected.json` beside the scripts,
//! for any language. They run in the very interpreter, with the very limits, that decide later. Finding no test at all
//! is a failure: it would look like success.

use super::{Policy, Question, scripts};
use crate::config::{Pipeline, PolicyConfig, PolicyFile, Use};
use crate::error::{At, PipelineError};
use crate::load;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

const INPUT: &str = ".input.json";
const EXPECTED: &str = ".expected.json";

/// How one test went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OneTest {
    pub event: &'static str,
    pub name: String,
    pub passed: bool,
    /// Why it failed, or what it printed.
    pub detail: String,
}

/// How they went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tested {
    pub event: &'static str,
    pub passed: usize,
    pub failed: usize,
    #[serde(skip)]
    pub tests: Vec<OneTest>,
}

/// Runs the tests of a pipeline's policy, or of the scripts in a directory.
pub async fn run(target: &Path) -> Result<Tested, PipelineError> {
    let (config, engine) = if target.is_dir() {
        (
            in_directory(target)?,
            load::engine_with(&crate::config::default_cache())?,
        )
    } else {
        let pipeline = Pipeline::load(target)?;
        let engine = load::engine(&pipeline)?;
        match pipeline.policy {
            Some(policy) => (policy, engine),
            None => {
                return Err(PipelineError::refused(
                    format!("{} has no [policy]", target.display()),
                    "name a pipeline file that has one, or a directory of .rego files",
                ));
            }
        }
    };
    let policy = Policy::of(&config, scripts::read_with_tests(&config)?, &engine).await?;
    let mut tests: Vec<OneTest> = policy
        .guest
        .run_tests()
        .await
        .map_err(|e| PipelineError::Config {
            at: config.at.clone(),
            problem: e.to_string(),
            hint: "the tests could not be run at all".to_owned(),
        })?
        .into_iter()
        .map(|t| OneTest {
            event: "policy-test",
            name: t.name,
            passed: t.passed,
            detail: t.detail,
        })
        .collect();
    for input in golden(&config)? {
        tests.push(compare(&policy, &input).await);
    }
    if tests.is_empty() {
        return Err(PipelineError::refused(
            format!("{} has no tests", target.display()),
            "write rules test_… into X_test.rego, or pairs QUESTION.NAME.input.json and QUESTION.NAME.expected.json",
        ));
    }
    let failed = tests.iter().filter(|t| !t.passed).count();
    Ok(Tested {
        event: "policy-tested",
        passed: tests.len() - failed,
        failed,
        tests,
    })
}

/// All scripts and data of a directory, as if a pipeline named them.
fn in_directory(dir: &Path) -> Result<PolicyConfig, PipelineError> {
    let at = At {
        file: dir.to_owned(),
        line: 0,
    };
    let file = |path: PathBuf| PolicyFile { at: at.clone(), path };
    let data = scripts::names(&at, dir, |n| {
        n.ends_with(".json") && !n.ends_with(INPUT) && !n.ends_with(EXPECTED)
    })?;
    Ok(PolicyConfig {
        at: at.clone(),
        origin: Use::BuiltIn(crate::config::REGO.to_owned()),
        files: vec![file(dir.to_owned())],
        data: data.into_iter().map(file).collect(),
        questions: None,
        settings: serde_json::Map::new(),
        approvals: None,
        limits: essrun_sandbox::Limits::default(),
    })
}

/// The golden inputs beside the scripts.
fn golden(config: &PolicyConfig) -> Result<Vec<PathBuf>, PipelineError> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let own = match &config.origin {
        Use::File { path, .. } => vec![path],
        Use::BuiltIn(_) => Vec::new(),
    };
    for path in config.files.iter().map(|f| &f.path).chain(own) {
        let dir = match path.parent() {
            _ if path.is_dir() => path.as_path(),
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !dirs.iter().any(|d| d == dir) {
            dirs.push(dir.to_owned());
        }
    }
    let mut inputs = Vec::new();
    for dir in dirs {
        inputs.extend(scripts::names(&config.at, &dir, |n| n.ends_with(INPUT))?);
    }
    Ok(inputs)
}

async fn compare(policy: &Policy, input: &Path) -> OneTest {
    let name = input.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let outcome = try_compare(policy, input, &name).await;
    OneTest {
        event: "policy-test",
        name: name.trim_end_matches(INPUT).to_owned(),
        passed: outcome.is_ok(),
        detail: outcome.err().unwrap_or_default(),
    }
}

/// What is wrong, if anything.
async fn try_compare(policy: &Policy, input: &Path, name: &str) -> Result<(), String> {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok::<_, String>((text, value))
    };
    let word = name.split('.').next().unwrap_or_default();
    let Some(question) = Question::ALL.into_iter().find(|q| q.name() == word) else {
        let known: Vec<_> = Question::ALL.iter().map(|q| q.name()).collect();
        return Err(format!(
            "its name begins with {word:?}, not with one of {}",
            known.join(", ")
        ));
    };
    let (text, _) = read(input)?;
    let stem = input.to_string_lossy();
    let expected = format!("{}{EXPECTED}", stem.strip_suffix(INPUT).unwrap_or(&stem));
    let (_, expected) = read(Path::new(&expected))?;
    let answer = policy.guest.evaluate(question.to_guest(), &text).await;
    let answer = answer.map_err(|e| e.to_string())?;
    let answer: Value = serde_json::from_str(&answer).map_err(|e| e.to_string())?;
    match difference("", &expected, &answer) {
        None => Ok(()),
        Some(why) => Err(why),
    }
}

/// The first place where the answer is not as expected. An answer may hold more than is expected of it, since helper
/// rules are part of it; lists of reasons are sets.
pub(crate) fn difference(at: &str, expected: &Value, answer: &Value) -> Option<String> {
    match (expected, answer) {
        (Value::Object(expected), Value::Object(answer)) if at.is_empty() => {
            expected.iter().find_map(|(key, value)| match answer.get(key) {
                Some(found) => difference(key, value, found),
                None => Some(format!("{key} is not in the answer, expected {value}")),
            })
        }
        (Value::Object(expected), Value::Object(answer)) => {
            let keys = expected
                .keys()
                .chain(answer.keys().filter(|k| !expected.contains_key(*k)));
            keys.map(|k| (k, expected.get(k), answer.get(k)))
                .find_map(|(k, e, a)| match (e, a) {
                    (Some(e), Some(a)) => difference(&format!("{at}.{k}"), e, a),
                    (Some(e), None) => Some(format!("{at}.{k} is not in the answer, expected {e}")),
                    (None, Some(a)) => Some(format!("{at}.{k} is {a}, and is not expected")),
                    (None, None) => None,
                })
        }
        (Value::Array(expected), Value::Array(answer)) => {
            let sorted = |list: &[Value]| {
                let mut texts: Vec<String> = list.iter().map(Value::to_string).collect();
                texts.sort();
                texts
            };
            let (e, a) = (sorted(expected), sorted(answer));
            (e != a).then(|| format!("{at} is [{}], expected [{}]", a.join(", "), e.join(", ")))
        }
        (expected, answer) => (expected != answer).then(|| format!("{at} is {answer}, expected {expected}")),
    }
}

impl Tested {
    pub fn text(&self) -> String {
        let mut t = String::new();
        for test in &self.tests {
            t.push_str(&test.text());
        }
        t.push_str(&format!("{} passed, {} failed\n", self.passed, self.failed));
        t
    }

    pub fn into_error(self) -> Result<(), PipelineError> {
        if self.failed == 0 {
            return Ok(());
        }
        let failed = self.tests.into_iter().filter(|t| !t.passed);
        Err(PipelineError::Findings {
            what: "policy test".into(),
            errors: self.failed,
            findings: failed.map(|t| format!("{}: {}", t.name, t.detail)).collect(),
        })
    }
}

impl OneTest {
    fn text(&self) -> String {
        let word = if self.passed { "ok  " } else { "FAIL" };
        let mut t = format!("{word} {}\n", self.name);
        for line in self.detail.lines() {
            t.push_str(&format!("       {line}\n"));
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_may_hold_more_and_reasons_come_in_any_order() {
        let answer = json!({"allow": false, "reasons": ["b", "a"], "helper": 1, "keep": {"x": ["1"], "y": ["2"]}});
        for good in [
            json!({}),
            json!({"allow": false}),
            json!({"reasons": ["a", "b"]}),
            json!({"keep": {"x": ["1"], "y": ["2"]}}),
        ] {
            assert_eq!(difference("", &good, &answer), None, "{good}");
        }
        for (bad, says) in [
            (json!({"allow": true}), "allow is false, expected true"),
            (json!({"deny": []}), "deny is not in the answer"),
            (json!({"reasons": ["a"]}), "reasons is"),
            (json!({"reasons": ["a", "b", "b"]}), "reasons is"),
            (json!({"keep": {"x": ["1"]}}), "keep.y is [\"2\"], and is not expected"),
            (
                json!({"keep": {"x": ["1"], "y": ["2"], "z": []}}),
                "keep.z is not in the answer",
            ),
            (json!([]), "expected []"),
        ] {
            let said = difference("", &bad, &answer).unwrap_or_default();
            assert!(said.contains(says), "{bad}: {said}");
        }
    }
}
