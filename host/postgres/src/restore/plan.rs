//! What must hold before a restore begins, and what it will do.
//!
//! Every precondition is a finding with a stable name, so that a dry run prints the same list a real run stops at.

use super::checks;
use super::journal::Origin;
use super::scratch::Purpose;
use super::service::{self, Marker};
use crate::connection::{Connection, Session};
use crate::dump::{DatabaseFacts, KIND_TABLE, TableMeta};
use crate::error::{Error, Result};
use crate::names::TableName;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupReader};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a restore is to go.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Which run this is: the backup's id or a drill's; letters, digits and dashes. Part of the scratch name.
    pub run: String,
    /// The name the database has in the end.
    pub database: String,
    pub purpose: Purpose,
    /// Who is to own everything; `None`: the owners recorded in the backup.
    pub owner: Option<String>,
    /// Leave out GRANT and REVOKE; implied by `owner`.
    pub no_privileges: bool,
    /// Sessions that load rows and build indexes at once.
    pub jobs: usize,
    /// Let extensions have other versions than in the backup: the findings become warnings. Another version of a collation
    /// is one always.
    pub allow_drift: bool,
    /// Let a live database with tables in it be replaced at the swap.
    pub replace: bool,
    /// The database to be connected to while databases are created and renamed.
    pub maintenance_database: String,
    /// `maintenance_work_mem` of each session, in MiB.
    pub index_memory_mib: u32,
    /// Go on with what a stopped restore of the same backup into the same place left.
    pub resume: bool,
    /// The caller drops what stopped restores left before it begins, so that this does not stand in the way. A dry run
    /// says so with its plan, and drops nothing.
    pub clears: bool,
    /// When it fails, leave what was done, so that it can be gone on with.
    pub keep_unfinished: bool,
    /// What else must be the same for a resume, by name.
    pub origin: Origin,
}

impl RestoreOptions {
    pub fn new(run: impl Into<String>, database: impl Into<String>, purpose: Purpose) -> Self {
        let jobs = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8);
        RestoreOptions {
            run: run.into(),
            database: database.into(),
            purpose,
            owner: None,
            no_privileges: false,
            jobs,
            allow_drift: false,
            replace: false,
            maintenance_database: "postgres".to_owned(),
            // A gibibyte of the server's memory in all. Half of it for one index took an eighth less processor time than a
            // quarter where three million rows are sorted, all of it took more again.
            index_memory_mib: u32::try_from(1024 / jobs).unwrap_or(128).min(512),
            resume: false,
            clears: false,
            keep_unfinished: false,
            origin: Origin::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    /// The restore must not begin.
    Error,
}

/// One precondition, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `target-not-empty`, `locale-missing`, …
    pub check: String,
    pub severity: Severity,
    pub message: String,
    /// What to do; empty when nothing.
    pub remedy: String,
}

/// One table that will be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreTable {
    pub table: String,
    pub rows: u64,
    pub bytes: u64,
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// `component/label`.
    pub prefix: String,
    /// The name in the end.
    pub database: String,
    /// The name until the swap.
    pub scratch: String,
    /// `host:port/database`.
    pub target: String,
    pub findings: Vec<Finding>,
    /// Largest first.
    pub tables: Vec<RestoreTable>,
    pub rows: u64,
    pub bytes: u64,
    pub jobs: usize,
    pub facts: DatabaseFacts,
    /// A resume found that the stopped restore had come to its end with this database and put it in service then.
    #[serde(default)]
    pub in_service: Option<String>,
    /// The server's data directory, where it is on this machine and can be looked at.
    #[serde(default)]
    pub data_directory: Option<PathBuf>,
}

impl RestorePlan {
    /// Whether a finding forbids the restore.
    pub fn blocked(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Error)
    }
}

/// Checks what must hold. Changes nothing.
pub async fn plan(
    reader: &dyn BackupReader,
    prefix: &str,
    target: &Connection,
    options: &RestoreOptions,
) -> Result<RestorePlan> {
    let name = |rest: &str| ArtifactName::new(format!("{prefix}/{rest}"));
    for rest in ["database", "ddl-pre-data", "ddl-post-data", "sequences"] {
        if reader.artifact(&name(rest)?).is_none() {
            return Err(Error::damaged(format!("{prefix}/{rest}"), "it is missing"));
        }
    }
    let facts: DatabaseFacts = serde_json::from_slice(&read_small(reader, &name("database")?).await?)
        .map_err(|e| Error::damaged(format!("{prefix}/database"), e.to_string()))?;
    let mut tables = Vec::new();
    for (_, meta) in table_artifacts(reader, prefix)? {
        tables.push(RestoreTable {
            table: TableName::new(meta.schema, meta.table).to_string(),
            rows: meta.rows,
            bytes: meta.bytes,
        });
    }
    tables.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.table.cmp(&b.table)));
    let scratch = scratch_name(&options.database, &options.run)?;
    let admin = Session::open(&target.with_database(&options.maintenance_database)).await?;
    let described = target.with_database(&options.database).describe();
    let owner = options.owner.clone().unwrap_or_else(|| facts.owner.clone());
    let in_service = match options.resume && options.purpose == Purpose::Restore {
        true => {
            let origin = origin(reader, (prefix, &described), options, &owner)?;
            service::since(&admin, &options.database, &Marker::of(&options.run, prefix, &origin)).await?
        }
        false => None,
    };
    let data_directory = checks::data_directory(&admin).await;
    let mut findings = match &in_service {
        Some(since) => vec![checks::in_service(&options.database, since)],
        None => {
            let mut found = checks::server(&admin, &facts, options).await?;
            if data_directory.is_none() {
                found.push(checks::space_unknown(&facts));
            }
            found.extend(checks::target(&admin, target, options, (prefix, &scratch)).await?);
            found
        }
    };
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.check.cmp(&b.check)));
    Ok(RestorePlan {
        prefix: prefix.to_owned(),
        database: options.database.clone(),
        scratch,
        target: described,
        findings,
        rows: tables.iter().map(|t| t.rows).sum(),
        bytes: tables.iter().map(|t| t.bytes).sum(),
        tables,
        jobs: options.jobs.clamp(1, 64),
        facts,
        in_service,
        data_directory,
    })
}

/// What must be the same for a resume; of a prefix in the backup and a target, described.
pub(super) fn origin(
    reader: &dyn BackupReader,
    (prefix, target): (&str, &str),
    options: &RestoreOptions,
    owner: &str,
) -> Result<Origin> {
    let mut origin = options.origin.clone();
    let mut artifacts = blake3::Hasher::new();
    let under = format!("{prefix}/");
    for record in reader
        .artifacts()
        .iter()
        .filter(|a| a.name.as_str().starts_with(&under))
    {
        let text = serde_json::to_vec(record).map_err(|e| Error::damaged(record.name.to_string(), e.to_string()))?;
        artifacts.update(&(text.len() as u64).to_le_bytes()).update(&text);
    }
    for (name, value) in [
        ("journal format", "1".to_owned()),
        ("backup", options.run.clone()),
        ("backup's contents", artifacts.finalize().to_hex().to_string()),
        ("target", target.to_owned()),
        ("owner", owner.to_owned()),
        ("owner for all", options.owner.is_some().to_string()),
        ("privileges", (!options.no_privileges).to_string()),
    ] {
        origin.insert(name.to_owned(), value);
    }
    Ok(origin)
}

/// The tables' artifacts under a prefix.
pub(super) fn table_artifacts<'a>(
    reader: &'a dyn BackupReader,
    prefix: &str,
) -> Result<Vec<(&'a ArtifactRecord, TableMeta)>> {
    let under = format!("{prefix}/");
    reader
        .artifacts()
        .iter()
        .filter(|a| a.kind == KIND_TABLE && a.name.as_str().starts_with(&under))
        .map(|a| Ok((a, TableMeta::of(a)?)))
        .collect()
}

/// Reads an artifact that must fit in memory.
pub(super) async fn read_small(reader: &dyn BackupReader, name: &ArtifactName) -> Result<Vec<u8>> {
    const MOST: u64 = 128 << 20;
    let record = reader
        .artifact(name)
        .ok_or_else(|| Error::damaged(name.to_string(), "it is missing"))?;
    if record.content.bytes > MOST {
        return Err(Error::damaged(
            name.to_string(),
            format!("it is longer than {MOST} bytes"),
        ));
    }
    let mut content = reader.open(&record.content).await?;
    let mut bytes = Vec::new();
    while let Some(more) = content.next().await? {
        bytes.extend_from_slice(&more);
        if bytes.len() as u64 > MOST {
            return Err(Error::damaged(
                name.to_string(),
                format!("it is longer than {MOST} bytes"),
            ));
        }
    }
    if let Some(digest) = record.meta.get("digest").and_then(|d| d.as_str())
        && blake3::hash(&bytes).to_hex().as_str() != digest
    {
        return Err(Error::damaged(name.to_string(), "its digest differs"));
    }
    Ok(bytes)
}

/// `<database>_essrun_<run>`, within the server's 63 bytes for a name.
pub(super) fn scratch_name(database: &str, run: &str) -> Result<String> {
    let fits = (1..=32).contains(&run.len()) && run.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !fits {
        return Err(Error::refused(
            "restore",
            "the run's id must be 1 to 32 letters, digits and dashes",
            "use the backup's id",
        ));
    }
    Ok(limited(database, &format!("_essrun_{run}")))
}

/// `base` cut so that with `tail` it is a name of at most 63 bytes.
pub(super) fn limited(base: &str, tail: &str) -> String {
    let mut end = base.len().min(63usize.saturating_sub(tail.len()));
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", base.get(..end).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        assert_eq!(scratch_name("synapse", "b-1").unwrap(), "synapse_essrun_b-1");
        let long = scratch_name(&"ä".repeat(31), &"r".repeat(32)).unwrap();
        assert!(long.len() <= 63 && long.ends_with(&"r".repeat(32)), "{long}");
        for bad in ["", "a b", "x\"", &"r".repeat(33)] {
            assert!(scratch_name("x", bad).is_err());
        }
    }
}
