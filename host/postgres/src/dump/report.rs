//! What a dump leaves behind: the shapes kept in artifact records, and the report of a run.

use crate::error::{Error, Result};
use essrun_artifact::{ArtifactRecord, Content};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// COPY's format of a table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    Text,
    Binary,
}

impl Format {
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Binary => "binary",
        }
    }
}

/// A further part of a table's rows: the artifact's own content is the first, these follow in order, and all of them
/// one after the other are one COPY stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TablePart {
    pub rows: u64,
    pub bytes: u64,
    /// BLAKE3 of the part's bytes, hexadecimal.
    pub digest: String,
    /// Absent for the first part, whose content is the artifact's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
}

/// `meta` of a table's artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableMeta {
    pub schema: String,
    pub table: String,
    /// In COPY's order; generated columns are not among them.
    pub columns: Vec<String>,
    pub format: Format,
    /// Of all parts.
    pub rows: u64,
    /// Of all parts.
    pub bytes: u64,
    /// The condition rows had to meet, when not all were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_where: Option<String>,
    /// Whether the table belongs to an extension, whose script fills it before our rows come.
    #[serde(default)]
    pub of_extension: bool,
    pub parts: Vec<TablePart>,
}

impl TableMeta {
    /// Reads it from an artifact's record.
    pub fn of(record: &ArtifactRecord) -> Result<TableMeta> {
        let meta: TableMeta = serde_json::from_value(record.meta.clone())
            .map_err(|e| Error::damaged(record.name.to_string(), e.to_string()))?;
        if meta.parts.is_empty() || meta.parts.iter().skip(1).any(|p| p.content.is_none()) {
            return Err(Error::damaged(record.name.to_string(), "a part has no content"));
        }
        Ok(meta)
    }
}

/// All contents of a table's artifact, in order; one after the other they are one COPY stream.
pub fn table_contents(record: &ArtifactRecord) -> Result<Vec<Content>> {
    let meta = TableMeta::of(record)?;
    let mut all = vec![record.content.clone()];
    all.extend(meta.parts.into_iter().skip(1).filter_map(|p| p.content));
    Ok(all)
}

/// What must be known to make the database again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    pub database: String,
    pub server_version_number: u32,
    pub owner: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// `c` libc, `i` ICU, `b` builtin.
    pub locale_provider: String,
    pub icu_locale: Option<String>,
    /// The collation library's version, where it has one.
    pub collation_version: Option<String>,
    /// Extensions and their versions.
    pub extensions: BTreeMap<String, String>,
    /// Roles that own something or are granted something.
    pub roles: Vec<String>,
    /// `ALTER DATABASE … SET`: role (empty for all) and `name=value`.
    pub settings: Vec<(String, String)>,
    /// Grants on the database: role (empty for PUBLIC) and privilege.
    pub grants: Vec<(String, String)>,
    pub block_size: u32,
    pub large_objects: u64,
    pub size_bytes: u64,
    /// Over the definitions of all relations, before and after the rows were read.
    pub schema_digest: String,
    pub schema_digest_after: String,
    pub snapshot: String,
    pub pg_dump_version: String,
}

/// One table of a finished dump.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableReport {
    pub table: String,
    pub rows: u64,
    pub bytes: u64,
    /// BLAKE3 over the parts' digests, hexadecimal.
    pub digest: String,
    pub format: Format,
    pub parts: usize,
}

/// A finished dump.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DumpReport {
    pub database: String,
    pub tables: Vec<TableReport>,
    pub rows: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub schema_digest: String,
}
