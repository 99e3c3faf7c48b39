//! One artifact out of a backup, without any server: definitions as SQL, tables as COPY data, volumes as files.
//!
//! It hands out data as a restore does, so the policy is asked the same question, before the first byte is written.

use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::policy::{Policy, input};
use crate::repo;
use crate::report::Reporter;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader, Content, NoProgress};
use essrun_postgres::{TableName, dump, quote_ident};
use essrun_repository::OpenBackup;
use essrun_volume::TreePath;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};

#[derive(Debug, Clone)]
pub struct ExtractOptions {
    pub backup: String,
    pub identities: Vec<PathBuf>,
    pub artifact: String,
    /// Also of a component that failed when the backup was taken.
    pub incomplete: bool,
    /// One path of a volume.
    pub path: Option<String>,
    pub output: Option<PathBuf>,
}

/// Writes the artifact out and says what it was.
pub async fn run(
    pipeline: &Pipeline,
    options: ExtractOptions,
    reporter: &dyn Reporter,
) -> Result<String, PipelineError> {
    // Before anything is opened: without the policy nothing is done.
    let policy = Policy::about_restores(pipeline).await?;
    let repository = repo::open_to_read(pipeline, &options.identities).await?;
    let backup = Arc::new(repo::read(pipeline, &repository, &options.backup).await?);
    let record = record(&backup, &options)?;
    let name = &record.name;
    if let Some(policy) = &policy {
        let input = input::may_restore(pipeline, &repository, &backup, asked(&record, &options)).await?;
        policy.may_restore(&input, reporter).await?.or_refuse()?;
    }
    if record.kind == essrun_volume::KIND {
        return volume(backup, &record, options).await;
    }
    let contents = match record.kind.as_str() {
        dump::KIND_TABLE => dump::table_contents(&record).map_err(|e| PipelineError::restoring(name.to_string(), e))?,
        _ => vec![record.content.clone()],
    };
    let bytes = match &options.output {
        None => copy(backup.as_ref(), &contents, &mut tokio::io::stdout(), "standard output").await?,
        Some(path) => to_file(backup.as_ref(), &contents, path).await?,
    };
    Ok(format!(
        "{name} ({}): {bytes} bytes{}",
        record.kind,
        how_to_read(&record)
    ))
}

/// The artifact that is meant, if it can be written where it is wanted.
pub(crate) fn record(backup: &OpenBackup, options: &ExtractOptions) -> Result<ArtifactRecord, PipelineError> {
    let refused = |problem: String, hint: &str| Err(PipelineError::refused(problem, hint));
    let name = ArtifactName::new(options.artifact.clone())
        .map_err(|e| PipelineError::refused(e.to_string(), "`essrun show --artifacts` lists them"))?;
    let Some(record) = backup.artifact(&name).cloned() else {
        return refused(
            format!("backup {} holds no artifact {name}", backup.summary().id),
            "`essrun show --artifacts` lists them",
        );
    };
    if let (Some(why), false) = (repo::body(backup.summary())?.failed(&name), options.incomplete) {
        return refused(
            format!(
                "component {} failed when backup {} was taken ({why}): {name} was finished before, and what belongs with it \
                 may not be there",
                name.component(),
                backup.summary().id
            ),
            "take it from a backup that `essrun list` calls whole, or give --incomplete to have it all the same",
        );
    }
    if record.kind != essrun_volume::KIND && options.path.is_some() {
        return refused(format!("{name} is no volume"), "leave --path away");
    }
    if record.kind == essrun_volume::KIND && options.output.is_none() {
        return refused(
            format!("{name} is a volume: it does not fit on standard output"),
            "give --output a directory that does not exist yet",
        );
    }
    Ok(record)
}

/// What the policy is asked: as of a restore of one artifact to where nothing is.
pub(crate) fn asked(record: &ArtifactRecord, options: &ExtractOptions) -> input::Asked {
    let place = options.output.as_ref().map(|path| {
        // Only for the reader's sake: a folder that is gone leaves the path as it was given.
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        whole.display().to_string()
    });
    let mut parts = record.name.as_str().split('/');
    let component = parts.next().unwrap_or_default().to_owned();
    let label = parts.next().unwrap_or_default().to_owned();
    let only = options.path.as_ref().map(|p| format!(", only {p}")).unwrap_or_default();
    let step = format!(
        "{} ({}){only} → {}",
        record.name,
        record.kind,
        place.as_deref().unwrap_or("standard output")
    );
    input::Asked {
        verb: input::Verb::Extract,
        artifact: Some(record.name.to_string()),
        sensitivity: Some(record.sensitivity),
        targets: vec![input::Target {
            component: component.clone(),
            label,
            kind: match (&place, record.kind == essrun_volume::KIND) {
                (_, true) => "volume",
                (Some(_), false) => "file",
                (None, false) => "stdout",
            },
            place: place.unwrap_or_default(),
            live: false,
        }],
        steps: vec![input::Step { component, step }],
        ..input::Asked::default()
    }
}

/// Into a new file, which has its name only once it is whole: one that broke off must not be taken for the artifact.
async fn to_file(backup: &dyn BackupReader, contents: &[Content], path: &Path) -> Result<u64, PipelineError> {
    let what = path.display().to_string();
    let unmade = |e: std::io::Error| PipelineError::source(what.clone(), format!("cannot be made: {e}"));
    if path.symlink_metadata().is_ok() {
        return Err(unmade(std::io::ErrorKind::AlreadyExists.into()));
    }
    let name = path
        .file_name()
        .ok_or_else(|| unmade(std::io::ErrorKind::InvalidInput.into()))?;
    let beside = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let aside = tempfile::Builder::new()
        .prefix(&format!(".{}.", name.to_string_lossy()))
        .suffix(".part")
        .tempfile_in(beside)
        .map_err(unmade)?;
    let mut file = tokio::fs::File::from_std(aside.as_file().try_clone().map_err(unmade)?);
    let bytes = copy(backup, contents, &mut file, &what).await?;
    file.sync_all()
        .await
        .map_err(|e| PipelineError::source(what.clone(), e))?;
    // What somebody else put there meanwhile stays.
    aside.persist_noclobber(path).map_err(|e| unmade(e.error))?;
    Ok(bytes)
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
    backup: Arc<OpenBackup>,
    record: &ArtifactRecord,
    options: ExtractOptions,
) -> Result<String, PipelineError> {
    let Some(output) = options.output else {
        return Err(PipelineError::Internal(format!("no place for {}", record.name)));
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
        dump::KIND_TABLE => match dump::TableMeta::of(record) {
            Ok(meta) => load_with(&meta),
            Err(e) => format!("; how to load it is not known: {e}"),
        },
        _ => String::new(),
    }
}

/// The table may be named like a word of SQL, have columns in another order where it is loaded, or generated ones.
fn load_with(meta: &dump::TableMeta) -> String {
    let columns: Vec<String> = meta.columns.iter().map(|c| quote_ident(c)).collect();
    let columns = match columns.is_empty() {
        true => String::new(),
        false => format!(" ({})", columns.join(", ")),
    };
    format!(
        "; load with: \\copy {}{columns} FROM 'FILE' WITH (FORMAT {}, ENCODING 'UTF8')",
        TableName::new(meta.schema.as_str(), meta.table.as_str()).quoted(),
        match meta.format {
            dump::Format::Text => "text",
            dump::Format::Binary => "binary",
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use essrun_artifact::memory::MemoryBackup;
    use essrun_artifact::{BackupWriter, LaneSpec};

    async fn content(backup: &MemoryBackup, text: &'static str) -> Content {
        let mut lane = backup.lane(LaneSpec::TABLE).unwrap();
        lane.write(text.into()).await.unwrap();
        let content = lane.cut().await.unwrap();
        lane.close().await.unwrap();
        content
    }

    #[tokio::test]
    async fn a_file_has_its_name_only_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.txt");
        let (good, other) = (MemoryBackup::new(), MemoryBackup::new());
        let first = content(&good, "1\tfirst\n").await;
        // Two more in the other, so that the second is a chunk the first backup does not have.
        content(&other, "x").await;
        let lost = content(&other, "2\tlost\n").await;
        let backup = good.commit().unwrap();

        let broken = to_file(&backup, &[first.clone(), lost], &file).await.unwrap_err();
        assert!(broken.to_string().contains("not in this backup"), "{broken}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "nothing is left of it");

        assert_eq!(to_file(&backup, std::slice::from_ref(&first), &file).await.unwrap(), 8);
        assert_eq!(std::fs::read(&file).unwrap(), b"1\tfirst\n");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        std::fs::write(&file, "somebody's").unwrap();
        to_file(&backup, &[first], &file).await.unwrap_err();
        assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn names_are_quoted_and_columns_listed() {
        let meta = |schema: &str, table: &str, columns: &[&str], format| dump::TableMeta {
            schema: schema.into(),
            table: table.into(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            format,
            rows: 0,
            bytes: 0,
            keep_where: None,
            of_extension: false,
            parts: vec![],
        };
        assert_eq!(
            load_with(&meta("public", "user", &["order", "Id", "a\"b"], dump::Format::Text)),
            "; load with: \\copy \"public\".\"user\" (\"order\", \"Id\", \"a\"\"b\") FROM 'FILE' WITH (FORMAT text, ENCODING 'UTF8')"
        );
        assert_eq!(
            load_with(&meta("public", "t", &[], dump::Format::Binary)),
            "; load with: \\copy \"public\".\"t\" FROM 'FILE' WITH (FORMAT binary, ENCODING 'UTF8')"
        );
    }
}
