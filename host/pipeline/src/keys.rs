//! Keys on disk: making them, loading them, saying what is wrong with one.

use crate::config::Pipeline;
use crate::error::{At, PipelineError};
use essrun_repository::{Identity, NewIdentity, Recipients, WriterKey};
use std::path::{Path, PathBuf};

/// Makes the identity that opens backups; answers its recipient.
pub fn new_identity(output: &Path) -> Result<String, PipelineError> {
    let identity = NewIdentity::generate();
    identity.save(output).map_err(|e| key_error(output, e))?;
    Ok(identity.recipient())
}

/// Makes a writer key; answers its public half.
pub fn new_writer(output: &Path) -> Result<String, PipelineError> {
    let key = WriterKey::generate();
    key.save(output).map_err(|e| key_error(output, e))?;
    Ok(key.public().to_string())
}

/// Makes the key that takes the place of the pipeline's writer key. A file that an earlier, interrupted rotation of the
/// same key wrote is taken.
pub fn rotated_writer(old: &WriterKey, output: &Path) -> Result<WriterKey, PipelineError> {
    if output.exists() {
        let there = WriterKey::load(output).map_err(|e| key_error(output, e))?;
        return match there.follows(&old.public()) {
            true => Ok(there),
            false => Err(key_error(output, "it is there and holds another key")),
        };
    }
    let new = old.rotated();
    new.save(output).map_err(|e| key_error(output, e))?;
    Ok(new)
}

/// The recipients of a pipeline; a pipeline may have none, until something sensitive is to be written.
pub fn recipients(pipeline: &Pipeline) -> Result<Recipients, PipelineError> {
    Recipients::parse(&pipeline.repository.recipients).map_err(|e| PipelineError::Config {
        at: pipeline.repository.at.clone(),
        problem: e.to_string(),
        hint: "a recipient is a public key: age1…, ssh-ed25519 … or ssh-rsa …; `essrun keygen identity` prints one"
            .into(),
    })
}

/// The writer key the pipeline names.
pub fn writer(pipeline: &Pipeline) -> Result<WriterKey, PipelineError> {
    let Some(path) = &pipeline.repository.writer_key else {
        return Err(PipelineError::Config {
            at: pipeline.repository.at.clone(),
            problem: "writer-key is missing from [repository]".into(),
            hint: "make one with `essrun keygen writer --output FILE` and name it".into(),
        });
    };
    WriterKey::load(path).map_err(|e| key_error(path, e))
}

/// The writer key, where the pipeline names one and it is there: reading verbs do without it on another machine.
pub fn writer_if_there(pipeline: &Pipeline) -> Result<Option<WriterKey>, PipelineError> {
    match &pipeline.repository.writer_key {
        Some(path) if path.exists() => writer(pipeline).map(Some),
        _ => Ok(None),
    }
}

/// Identities from files.
pub fn identities(files: &[PathBuf]) -> Result<Vec<Identity>, PipelineError> {
    let mut all = Vec::new();
    for file in files {
        all.extend(Identity::load(file).map_err(|e| key_error(file, e))?);
    }
    Ok(all)
}

fn key_error(file: &Path, e: impl std::fmt::Display) -> PipelineError {
    PipelineError::Config {
        at: At {
            file: file.to_owned(),
            line: 0,
        },
        problem: e.to_string(),
        hint: "keys are made with `essrun keygen`; each key file is written once and never replaced".into(),
    }
}
