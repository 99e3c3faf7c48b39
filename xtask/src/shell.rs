//! Running other programs: shown before they run, failing with what they said.

use std::path::PathBuf;
use std::process::{Command, Output};

#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot run {program}: {cause}")]
    NotRun { program: String, cause: std::io::Error },
    #[error("{program} ended with {status}{said}")]
    Failed {
        program: String,
        status: std::process::ExitStatus,
        said: String,
    },
    #[error("{0}")]
    Other(String),
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Problem::Other(text)
    }
}

pub type Result<T = ()> = std::result::Result<T, Problem>;

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Shows the command, runs it with our own output, and fails when it fails.
pub fn show(command: &mut Command) -> Result {
    println!("$ {}", line(command));
    let program = line(command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Problem::Failed {
            program,
            status,
            said: String::new(),
        }),
        Err(cause) => Err(Problem::NotRun { program, cause }),
    }
}

/// Runs it quietly; what it said is part of the failure.
pub fn quiet(command: &mut Command) -> Result<Output> {
    let program = line(command);
    let output = command.output().map_err(|cause| Problem::NotRun {
        program: program.clone(),
        cause,
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = format!(
        ":\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Err(Problem::Failed {
        program,
        status: output.status,
        said,
    })
}

/// Whether a program is on the path.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(essrun_testkit::workspace());
    command
}

/// Where cargo puts what it builds, by the profile's folder (`debug`, `release`).
pub fn target_dir(profile: &str) -> Result<PathBuf> {
    let output = quiet(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| Problem::Other(format!("cargo metadata: {e}")))?;
    match metadata.get("target_directory").and_then(serde_json::Value::as_str) {
        Some(dir) => Ok(PathBuf::from(dir).join(profile)),
        None => Err(Problem::Other("cargo metadata names no target directory".to_owned())),
    }
}

/// The essrun binary of a profile, built now; or the one `$ESSRUN_BIN` names, as it is.
pub fn essrun(profile: &str) -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("ESSRUN_BIN") {
        return Ok(PathBuf::from(binary));
    }
    let mut build = cargo();
    if profile == "release" {
        build.args(["build", "--locked", "--release", "--package", "essrun"]);
    } else {
        // With the features of the workspace, as for the tests: what is built for one serves the other.
        build.args(["build", "--locked", "--workspace", "--bin", "essrun"]);
    }
    show(&mut build)?;
    Ok(target_dir(profile)?.join("essrun"))
}
