//! What artifacts are made of, for whoever has to know which chunks a backup needs: writing packs anew, repairing,
//! reading everything back. Each kind is known to the room that makes it; here they are only asked.

use async_trait::async_trait;
use essrun_artifact::{ArtifactRecord, BackupReader, KeepError};
use essrun_postgres::dump;
use essrun_repository::{Makers, Visit};
use essrun_volume::VolumeError;
use essrun_volume::listing::{Entries, Kind};

/// All kinds of artifacts that essrun makes.
#[derive(Clone, Copy, Debug)]
pub struct AllMakers;

/// What the repository said stays what it said; anything else is told of the artifact.
fn of(artifact: &ArtifactRecord, e: VolumeError) -> KeepError {
    match e {
        VolumeError::Keep(e) => e,
        other => KeepError::new(artifact.name.to_string(), other.to_string()),
    }
}

#[async_trait]
impl Makers for AllMakers {
    async fn contents(
        &self,
        artifact: &ArtifactRecord,
        from: &dyn BackupReader,
        visit: &mut dyn Visit,
    ) -> Result<bool, KeepError> {
        match artifact.kind.as_str() {
            dump::KIND_TABLE => {
                let contents = dump::table_contents(artifact);
                for content in contents.map_err(|e| KeepError::new(artifact.name.to_string(), e.to_string()))? {
                    visit.content(&content).await?;
                }
            }
            essrun_volume::KIND => {
                visit.content(&artifact.content).await?;
                let mut entries = Entries::open(from, artifact).await.map_err(|e| of(artifact, e))?;
                while let Some(entry) = entries.next().await.map_err(|e| of(artifact, e))? {
                    if let Kind::File { content, .. } = &entry.kind {
                        visit.content(content).await?;
                    }
                }
            }
            dump::KIND_DDL
            | dump::KIND_SEQUENCES
            | dump::KIND_FACTS
            | dump::KIND_LARGE_OBJECTS
            | essrun_sqlite::KIND => visit.content(&artifact.content).await?,
            // Named, so that nothing is taken for all there is of it.
            _ => {
                visit.content(&artifact.content).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}
