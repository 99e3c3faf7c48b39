//! One artifact out of a backup, without any server: definitions as SQL, tables as COPY data, volumes as files.

use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::repo;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, Content, NoProgress};
use essrun_postgres::dump;
use essrun_volume::TreePath;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};

#[derive(Debug, Clone)]
pub struct ExtractOptions {
    pub backup: String,
    pub identities: Vec<PathBuf>,
    pub artifact: String,
    /// One path of a volume.
    pub path: Option<String>,
    pub output: Option<PathBuf>,
}

/// Writes the artifact out and says what it was.
pub async fn run(pipeline: &Pipeline, options: ExtractOptions) -> Result<String, PipelineError> {
    let repository = repo::open_to_read(pipeline, &options.identities).await?;
    let backup = Arc::new(repo::read(pipeline, &repository, &options.backup).await?);
    let name = ArtifactName::new(options.artifact.clone())
        .map_err(|e| PipelineError::refused(e.to_string(), "`essrun show --artifacts` lists them"))?;
    let Some(record) = backup.artifact(&name).cloned() else {
        return Err(PipelineError::refused(
            format!("backup {} holds no artifact {name}", backup.summary().id),
            "`essrun show --artifacts` lists them",
        ));
    };
    if record.kind == essrun_volume::KIND {
        return volume(backup, &record, options).await;
    }
    if options.path.is_some() {
        return Err(PipelineError::refused(
            format!("{name} is no volume"),
            "leave --path away",
        ));
    }
    let contents = match record.kind.as_str() {
        dump::KIND_TABLE => dump::table_contents(&record).map_err(|e| PipelineError::restoring(name.to_string(), e))?,
        _ => vec![record.content.clone()],
    };
    let bytes = match &options.output {
        None => copy(backup.as_ref(), &contents, &mut tokio::io::stdout(), "standard output").await?,
        Some(path) => {
            let what = path.display().to_string();
            let mut file = tokio::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .await
                .map_err(|e| PipelineError::source(what.clone(), format!("cannot be made: {e}")))?;
            let bytes = copy(backup.as_ref(), &contents, &mut file, &what).await?;
            file.sync_all().await.map_err(|e| PipelineError::source(what, e))?;
            bytes
        }
    };
    Ok(format!(
        "{name} ({}): {bytes} bytes{}",
        record.kind,
        how_to_read(&record)
    ))
}

async fn copy(
    backup: &dyn BackupReader,
    contents: &[Content],
    out: &mut (impl AsyncWrite + Unpin),
    what: &str,
) -> Result<u64, PipelineError> {
    let failed = |e: std::io::Error| PipelineError::source(what, e);
    let mut total = 0u64;
    for content in contents {
        let mut reader = backup.open(content).await.map_err(PipelineError::repository)?;
        while let Some(bytes) = reader.next().await.map_err(PipelineError::repository)? {
            out.write_all(&bytes).await.map_err(failed)?;
            total += bytes.len() as u64;
        }
    }
    out.flush().await.map_err(failed)?;
    Ok(total)
}

async fn volume(
    backup: Arc<essrun_repository::OpenBackup>,
    record: &ArtifactRecord,
    options: ExtractOptions,
) -> Result<String, PipelineError> {
    let Some(output) = options.output else {
        return Err(PipelineError::refused(
            format!("{} is a volume: it does not fit on standard output", record.name),
            "give --output a directory that does not exist yet",
        ));
    };
    let path = options.path.unwrap_or_default();
    let tree_path = TreePath::new(path.as_bytes())
        .map_err(|e| PipelineError::refused(e.to_string(), "give a path relative to the volume's root"))?;
    let findings = essrun_volume::restore::extract(
        backup,
        record,
        &tree_path,
        &output,
        essrun_volume::RestoreOptions {
            jobs: 2,
            ..Default::default()
        },
        Arc::new(NoProgress),
    )
    .await
    .map_err(|e| PipelineError::restoring(record.name.to_string(), e))?;
    let mut said = format!("{} extracted to {}", record.name, output.display());
    for f in findings {
        said.push_str(&format!("\n{}: {} {}", f.check, f.message, f.remedy));
    }
    Ok(said)
}

/// What to do with the bytes.
fn how_to_read(record: &ArtifactRecord) -> String {
    match record.kind.as_str() {
        dump::KIND_DDL | dump::KIND_SEQUENCES => "; SQL for psql".to_owned(),
        dump::KIND_TABLE => {
            let text = |key: &str| {
                record
                    .meta
                    .get(key)
                    .and_then(serde_json::Value::as_str)
                    .unwrap_or("?")
                    .to_owned()
            };
            format!(
                "; load with: \\copy {}.{} FROM 'FILE' WITH (FORMAT {})",
                text("schema"),
                text("table"),
                text("format")
            )
        }
        _ => String::new(),
    }
}
