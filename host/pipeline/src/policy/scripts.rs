//! The files a policy is made of, read and bounded.

use crate::config::{PolicyConfig, PolicyFile, Use};
use crate::error::{At, PipelineError};
use essrun_sandbox::policy::Script;
use std::path::{Path, PathBuf};

/// A script is written by a person; what is larger is something else.
const MOST_BYTES: u64 = 1 << 20;

const SCRIPT: &str = ".rego";
const TEST: &str = "_test.rego";

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
            let found = in_directory(file)?;
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
        if let Err(e) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&script.text) {
            return Err(PipelineError::Config {
                at: At {
                    file: file.path.clone(),
                    line: e.line(),
                },
                problem: format!("policy data: {e}"),
                hint: "write one JSON object".to_owned(),
            });
        }
        scripts.push(script);
    }
    Ok(scripts)
}

/// The scripts of a directory without their tests, in order of their names.
fn in_directory(file: &PolicyFile) -> Result<Vec<PathBuf>, PipelineError> {
    let failed = |e: std::io::Error| wrong(file, &format!("cannot be read: {e}"), "name a directory of .rego files");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&file.path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.to_string_lossy();
        if name.ends_with(SCRIPT) && !name.ends_with(TEST) {
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
