//! How much of an artifact is new: the bytes in chunks that another backup's does not have.

use super::Backups;
use crate::error::PipelineError;
use essrun_artifact::{ArtifactRecord, Content};
use essrun_postgres::dump;
use essrun_repository::OpenBackup;
use std::collections::HashSet;

/// Chunks that are remembered of one artifact, some 64 MB of memory. A table of more than about 100 GB has more; how much
/// of it is new is then not told.
const REMEMBERED: usize = 4_000_000;

fn contents(record: &ArtifactRecord) -> Result<Vec<Content>, PipelineError> {
    match record.kind.as_str() {
        dump::KIND_TABLE => {
            dump::table_contents(record).map_err(|e| PipelineError::repository(format!("{}: {e}", record.name)))
        }
        _ => Ok(vec![record.content.clone()]),
    }
}

/// The first eight bytes of a chunk's name: one in 10^12 would be taken for another, in a figure for people.
fn short(id: &essrun_artifact::ChunkId) -> u64 {
    id.0.iter().take(8).fold(0, |n, byte| (n << 8) | u64::from(*byte))
}

/// Every chunk of an artifact.
async fn each(
    backup: &OpenBackup,
    record: &ArtifactRecord,
    mut visit: impl FnMut(u64, u32) -> bool,
) -> Result<bool, PipelineError> {
    for content in contents(record)? {
        let mut chunks = backup.chunks(&content).map_err(PipelineError::repository)?;
        while let Some(chunk) = chunks.next().await.map_err(PipelineError::repository)? {
            if !visit(short(&chunk.id), chunk.bytes) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Bytes of `to` in chunks that `from` does not have, each chunk counted once; `None` where there are too many to tell.
pub async fn new(
    backups: &Backups<'_>,
    from: Option<&ArtifactRecord>,
    to: &ArtifactRecord,
) -> Result<Option<u64>, PipelineError> {
    let mut known = HashSet::new();
    if let Some(from) = from {
        let remember = |id, _| {
            known.insert(id);
            known.len() <= REMEMBERED
        };
        if !each(backups.from, from, remember).await? {
            return Ok(None);
        }
    }
    let mut bytes = 0u64;
    let count = |id, length| {
        if known.insert(id) {
            bytes = bytes.saturating_add(u64::from(length));
        }
        known.len() <= 2 * REMEMBERED
    };
    Ok(each(backups.to, to, count).await?.then_some(bytes))
}
