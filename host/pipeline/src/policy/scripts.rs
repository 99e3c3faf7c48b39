//! The files a policy is made of, read and bounded.

use crate::config::{PolicyConfig, PolicyFile, Use};
use crate::error::{At, PipelineError};
use essrun_sandbox::policy::Script;
use std::path::{Path, PathBuf};

/// A script is written by a person; what is larger is something else.
const MOST_BYTES: u64 = 1 << 20;

const SCRIPT: &str = ".rego";
const TEST: &str = "_test.rego";

/// Scripts, data and the tests beside the scripts.
pub fn read_with_tests(config: &PolicyConfig) -> Result<Vec<Script>, PipelineError> {
    let mut scripts = read(config)?;
    for file in &config.files {
        let tests = if file.path.is_dir() {
            names(&file.at, &file.path, |n| n.ends_with(TEST))?
        } else {
            let text = file.path.to_string_lossy();
            let beside = text
                .strip_suffix(SCRIPT)
                .map(|stem| PathBuf::from(format!("{stem}{TEST}")));
            beside.into_iter().filter(|path| path.exists()).collect()
        };
        for path in tests {
            let test = script(&file.at, &path)?;
            if !scripts.iter().any(|s| s.name == test.name) {
                scripts.push(test);
            }
        }
    }
    Ok(scripts)
}

/// Scripts and data, in the order given.
pub fn read(config: &PolicyConfig) -> Result<Vec<Script>, PipelineError> {
    let mut scripts = Vec::new();
    for file in &config.files {
        if file.path.is_dir() {
            if let Use::File { .. } = config.origin {
                return Err(wrong(
                    file,
                    "is a directory, and only Rego files are found in one",
                    "name each file",
                ));
            }
            let found = names(&file.at, &file.path, |n| n.ends_with(SCRIPT) && !n.ends_with(TEST))?;
            if found.is_empty() {
                return Err(wrong(
                    file,
                    "has no .rego files in it",
                    "name files, or another directory",
                ));
            }
            for path in found {
                scripts.push(script(&file.at, &path)?);
            }
        } else {
            scripts.push(script(&file.at, &file.path)?);
        }
    }
    for file in &config.data {
        let script = script(&file.at, &file.path)?;
        if !script.name.ends_with(".json") {
            return Err(wrong(
                file,
                "is no .json file",
                "data is JSON, in a file whose name ends with .json",
            ));
        }
        is_data(&file.path, &script.text)?;
        scripts.push(script);
    }
    Ok(scripts)
}

/// Data is one JSON object.
pub(crate) fn is_data(file: &Path, text: &str) -> Result<(), PipelineError> {
    let read = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text);
    read.map(drop).map_err(|e| PipelineError::Config {
        at: At {
            file: file.to_owned(),
            line: e.line(),
        },
        problem: format!("policy data: {e}"),
        hint: "write one JSON object".to_owned(),
    })
}

/// The files of a directory whose names fit, in order.
pub fn names(at: &At, dir: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, PipelineError> {
    let failed = |e: std::io::Error| {
        let file = PolicyFile {
            at: at.clone(),
            path: dir.to_owned(),
        };
        wrong(
            &file,
            &format!("cannot be read: {e}"),
            "name a directory of .rego files",
        )
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.file_name().is_some_and(|n| fits(&n.to_string_lossy())) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn script(at: &At, path: &Path) -> Result<Script, PipelineError> {
    let file = PolicyFile {
        at: at.clone(),
        path: path.to_owned(),
    };
    let failed = |e: std::io::Error| wrong(&file, &format!("cannot be read: {e}"), "name a file that is there");
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > MOST_BYTES {
        return Err(wrong(
            &file,
            &format!("has {bytes} bytes, at most {MOST_BYTES} are read"),
            "a policy is a script, not a store",
        ));
    }
    Ok(Script {
        name: path.display().to_string(),
        text: std::fs::read_to_string(path).map_err(failed)?,
    })
}

fn wrong(file: &PolicyFile, problem: &str, hint: &str) -> PipelineError {
    PipelineError::Config {
        at: file.at.clone(),
        problem: format!("policy: {} {problem}", file.path.display()),
        hint: hint.to_owned(),
    }
}
