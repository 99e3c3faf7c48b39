//! A world written down: tables, rows, files and settings, so that a plugin can be tried without a server.
//!
//! Files become a real folder behind the real volume room. Tables become a real SQLite file; for a database that is
//! described as PostgreSQL the plugin's SQL is put into SQLite's words first, as far as that is a matter of names and
//! notation (`public.t`, `$1`, `::type`, `ONLY`). What SQLite does not understand is an error that says so: then the
//! description gives the answer itself. Nothing here reaches a network or any file the description does not hold.

use super::bad_file;
use crate::error::PipelineError;
use crate::world::{Database, Granted};
use async_trait::async_trait;
use essrun_sandbox::contract::inspect::{Cell, DatabaseInfo, Engine, Entry, FileDigest, Level, TableInfo, TableKind};
use essrun_sandbox::{Limits, ListingSource, LookError, RowSource, World};
use essrun_volume::Volume;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of one table that are only counted.
const MOST_ROWS: u64 = 1_000_000;
/// A description is written by hand.
const MOST_BYTES: u64 = 64 << 20;

/// The file's shape, TOML or JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Description {
    #[serde(default)]
    pub settings: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    pub databases: BTreeMap<String, DescribedDatabase>,
    #[serde(default)]
    pub volumes: BTreeMap<String, DescribedVolume>,
    #[serde(default)]
    pub limits: Limits,
    pub backup: Option<DescribedBackup>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum DescribedEngine {
    #[default]
    Postgres,
    Sqlite,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DescribedDatabase {
    #[serde(default)]
    pub engine: DescribedEngine,
    pub server_version_number: Option<u32>,
    pub encoding: Option<String>,
    pub collate: Option<String>,
    pub ctype: Option<String>,
    /// By `schema.name`; by `name` for SQLite.
    #[serde(default)]
    pub tables: BTreeMap<String, DescribedTable>,
    /// The first whose text is in the query answers it.
    #[serde(default)]
    pub answers: Vec<Answer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DescribedTable {
    pub columns: Vec<String>,
    #[serde(default)]
    pub rows: Vec<Vec<serde_json::Value>>,
    /// As many rows, those beyond `rows` of nothing but NULL.
    pub count: Option<u64>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Answer {
    pub query: String,
    #[serde(default)]
    pub rows: Vec<Vec<serde_json::Value>>,
    /// The query fails with this text instead.
    pub fails: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DescribedVolume {
    /// Text by path.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// What `plan-restore`, `verify` and `respond` are told of the backup; without it, what the plan would have made.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DescribedBackup {
    #[serde(default)]
    pub component_version: Option<String>,
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
    #[serde(default)]
    pub artifacts: Vec<DescribedArtifact>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DescribedArtifact {
    pub name: String,
    pub kind: String,
    pub items: Option<u64>,
    #[serde(default)]
    pub size_bytes: u64,
}

impl DescribedTable {
    pub fn rows(&self) -> u64 {
        self.count.unwrap_or(0).max(self.rows.len() as u64)
    }
}

/// Reads a description, TOML or (by its name) JSON.
pub fn read(file: &Path) -> Result<Description, PipelineError> {
    let hint = "docs/PLUGINS.md tells how a world is described";
    let bytes = super::read_file(file, MOST_BYTES).map_err(|problem| bad_file(file, problem, hint))?;
    parse(file, bytes)
}

/// What such a file holds.
pub(crate) fn parse(file: &Path, bytes: Vec<u8>) -> Result<Description, PipelineError> {
    let hint = "docs/PLUGINS.md tells how a world is described";
    let text = String::from_utf8(bytes).map_err(|_| bad_file(file, "is not UTF-8".to_owned(), hint))?;
    if file.extension().is_some_and(|e| e == "json") {
        return serde_json::from_str(&text).map_err(|e| bad_file(file, e.to_string(), hint));
    }
    toml::from_str(&text).map_err(|e: toml::de::Error| bad_file(file, e.to_string(), hint))
}

/// The described world, standing.
pub struct Standing {
    granted: Granted,
    postgres: BTreeMap<String, Postgres>,
    answers: BTreeMap<String, Vec<Answer>>,
    log: Mutex<Vec<(Level, String)>>,
    // Last: the folder goes when nothing looks into it any more.
    _dir: tempfile::TempDir,
}

/// What is told of a database that is described as PostgreSQL.
struct Postgres {
    info: DatabaseInfo,
    tables: Vec<TableInfo>,
    schemas: BTreeSet<String>,
}

/// Makes the described world in a temporary folder.
pub async fn stand(file: &Path, name: &str, described: &Description) -> Result<Standing, PipelineError> {
    let wrong = |problem: String| bad_file(file, problem, "docs/PLUGINS.md tells how a world is described");
    let dir = tempfile::tempdir().map_err(|e| PipelineError::source("a temporary folder", e))?;
    let mut granted = Granted::new(name, &described.settings, &described.limits);
    let (mut postgres, mut answers) = (BTreeMap::new(), BTreeMap::new());
    for (label, database) in &described.databases {
        let path = dir.path().join(format!("database-{}", granted.databases.len()));
        fill(&path, database).map_err(|problem| wrong(format!("databases.{label}: {problem}")))?;
        let sqlite = essrun_sqlite::Sqlite::open(&path)
            .await
            .map_err(|e| PipelineError::source(format!("databases.{label}"), e))?;
        if database.engine == DescribedEngine::Postgres {
            postgres.insert(label.clone(), told(database));
        }
        answers.insert(label.clone(), database.answers.clone());
        granted.databases.insert(label.clone(), Database::Sqlite(sqlite));
    }
    for (label, volume) in &described.volumes {
        let root = dir.path().join(format!("volume-{}", granted.volumes.len()));
        write_files(&root, volume).map_err(|problem| wrong(format!("volumes.{label}: {problem}")))?;
        let volume = Volume::open(&root).map_err(|e| PipelineError::source(format!("volumes.{label}"), e))?;
        granted.volumes.insert(label.clone(), Arc::new(volume));
    }
    Ok(Standing {
        granted,
        postgres,
        answers,
        log: Mutex::default(),
        _dir: dir,
    })
}

fn write_files(root: &Path, volume: &DescribedVolume) -> Result<(), String> {
    std::fs::create_dir(root).map_err(|e| e.to_string())?;
    for (path, text) in &volume.files {
        // Of two ways to write one path one would be lost: neither `a/./b` nor `a//b` is taken for `a/b`.
        let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !plain {
            return Err(format!("files: {path:?} is no path below the volume"));
        }
        let full = root.join(path);
        let made = full.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.and_then(|()| std::fs::write(&full, text))
            .map_err(|e| format!("files: {path:?}: {e}"))?;
    }
    Ok(())
}

/// `schema.name` → (schema, name); SQLite's have no schema.
fn split(full: &str) -> (&str, &str) {
    full.split_once('.').unwrap_or(("main", full))
}

fn told(database: &DescribedDatabase) -> Postgres {
    let or = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.to_owned());
    let tables = database.tables.iter().map(|(full, table)| {
        let (schema, name) = split(full);
        TableInfo {
            schema: schema.to_owned(),
            name: name.to_owned(),
            kind: TableKind::Table,
            estimated_rows: Some(table.rows()),
            size_bytes: table.rows().saturating_mul(100),
            columns: table.columns.clone(),
        }
    });
    let mut tables: Vec<TableInfo> = tables.collect();
    tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Postgres {
        info: DatabaseInfo {
            engine: Engine::Postgres,
            server_version_number: database.server_version_number.unwrap_or(150_000),
            encoding: or(&database.encoding, "UTF8"),
            collate: or(&database.collate, "C"),
            ctype: or(&database.ctype, "C"),
            size_bytes: tables.iter().map(|t| t.size_bytes).sum(),
        },
        schemas: tables.iter().map(|t| t.schema.clone()).collect(),
        tables,
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Makes the SQLite file.
fn fill(path: &Path, database: &DescribedDatabase) -> Result<(), String> {
    let failed = |e: rusqlite::Error| e.to_string();
    let mut connection = rusqlite::Connection::open(path).map_err(failed)?;
    let all = connection.transaction().map_err(failed)?;
    let mut names = BTreeSet::new();
    for (full, table) in &database.tables {
        let (_, name) = split(full);
        if !names.insert(name.to_ascii_lowercase()) {
            return Err(format!(
                "tables.{full:?}: two tables of this name in different schemas cannot both stand; describe one, and \
                 answers for the other"
            ));
        }
        if table.columns.is_empty() || table.rows() > MOST_ROWS {
            return Err(format!(
                "tables.{full:?}: it needs columns, and at most {MOST_ROWS} rows"
            ));
        }
        let columns: Vec<String> = table.columns.iter().map(|c| quoted(c)).collect();
        let create = format!("CREATE TABLE {} ({})", quoted(name), columns.join(", "));
        let failed = |e: rusqlite::Error| format!("tables.{full:?}: {e}");
        all.execute(&create, []).map_err(failed)?;
        let places = vec!["?"; table.columns.len()].join(", ");
        let mut insert = all
            .prepare(&format!("INSERT INTO {} VALUES ({places})", quoted(name)))
            .map_err(failed)?;
        for row in &table.rows {
            if row.len() != table.columns.len() {
                return Err(format!(
                    "tables.{full:?}: a row of {} values for {} columns",
                    row.len(),
                    table.columns.len()
                ));
            }
            let values = row.iter().map(value).collect::<Result<Vec<_>, _>>()?;
            insert.execute(rusqlite::params_from_iter(values)).map_err(failed)?;
        }
        for _ in table.rows.len() as u64..table.rows() {
            let nulls = table.columns.iter().map(|_| rusqlite::types::Value::Null);
            insert.execute(rusqlite::params_from_iter(nulls)).map_err(failed)?;
        }
    }
    all.commit().map_err(failed)
}

fn value(json: &serde_json::Value) -> Result<rusqlite::types::Value, String> {
    use rusqlite::types::Value;
    Ok(match cell(json)? {
        Cell::Null => Value::Null,
        Cell::Boolean(b) => Value::Integer(i64::from(b)),
        Cell::Integer(i) => Value::Integer(i),
        Cell::Real(r) => Value::Real(r),
        Cell::Text(t) => Value::Text(t),
        Cell::Bytes(b) => Value::Blob(b),
    })
}

fn cell(json: &serde_json::Value) -> Result<Cell, String> {
    Ok(match json {
        serde_json::Value::Null => Cell::Null,
        serde_json::Value::Bool(b) => Cell::Boolean(*b),
        serde_json::Value::String(t) if t == "NULL" => Cell::Null,
        serde_json::Value::String(t) => Cell::Text(t.clone()),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Cell::Integer(i),
            (None, Some(r)) => Cell::Real(r),
            _ => return Err(format!("{n} is no number a database has")),
        },
        other => return Err(format!("{other} is no value of a cell")),
    })
}

/// PostgreSQL's notation in SQLite's, outside of quotes: schemas dropped, `$1` → `?1`, `::type` and `ONLY` dropped.
pub(crate) fn to_sqlite(sql: &str, schemas: &BTreeSet<String>) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        let word: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '$'))
            .collect();
        let taken = if c == '\'' || c == '"' {
            let end = rest.get(1..).and_then(|r| r.find(c)).map_or(rest.len(), |at| at + 2);
            let text = rest.get(..end).unwrap_or(rest);
            let inner = text.trim_matches('"');
            let schema = c == '"' && schemas.contains(inner) && rest.get(end..).is_some_and(|r| r.starts_with('.'));
            if schema {
                end + 1
            } else {
                out.push_str(text);
                end
            }
        } else if rest.starts_with("::") {
            let name = rest.get(2..).unwrap_or_default();
            2 + name
                .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '"' | '[' | ']')))
                .unwrap_or(name.len())
        } else if let Some(number) = word.strip_prefix('$').filter(|n| is_number(n)) {
            out.push('?');
            out.push_str(number);
            word.len()
        } else if word.is_empty() {
            out.push(c);
            c.len_utf8()
        } else {
            let after = rest.get(word.len()..).unwrap_or_default();
            if schemas.contains(&word) && after.starts_with('.') {
                word.len() + 1
            } else {
                if !word.eq_ignore_ascii_case("only") {
                    out.push_str(&word);
                }
                word.len()
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Rows written down.
struct Written {
    columns: Vec<String>,
    rows: VecDeque<Vec<Cell>>,
}

#[async_trait]
impl RowSource for Written {
    fn columns(&self) -> Vec<String> {
        self.columns.clone()
    }
    async fn next(&mut self, max_rows: u32, _: u64) -> Result<Vec<Vec<Cell>>, LookError> {
        let rows = self.rows.len().min(max_rows as usize);
        Ok(self.rows.drain(..rows).collect())
    }
    fn held_bytes(&self) -> u64 {
        0
    }
}

impl Standing {
    /// What the plugin wrote to the log.
    pub fn log(&self) -> Vec<(Level, String)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it stands.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn folder(&self) -> &Path {
        self._dir.path()
    }

    fn answer(&self, label: &str, sql: &str) -> Option<Result<Box<dyn RowSource>, LookError>> {
        let answer = self.answers.get(label)?.iter().find(|a| sql.contains(&a.query))?;
        if let Some(why) = &answer.fails {
            return Some(Err(LookError::Failed(why.clone())));
        }
        let rows = answer.rows.iter().map(|row| row.iter().map(cell).collect());
        Some(match rows.collect::<Result<VecDeque<Vec<Cell>>, String>>() {
            Err(problem) => Err(LookError::Failed(problem)),
            Ok(rows) => {
                let width = rows.front().map_or(0, Vec::len);
                let columns = (1..=width).map(|n| format!("column{n}")).collect();
                Ok(Box::new(Written { columns, rows }) as Box<dyn RowSource>)
            }
        })
    }
}

#[async_trait]
impl World for Standing {
    async fn info(&self, label: &str) -> Result<DatabaseInfo, LookError> {
        match self.postgres.get(label) {
            Some(told) => Ok(told.info.clone()),
            None => self.granted.info(label).await,
        }
    }

    async fn tables(&self, label: &str) -> Result<Vec<TableInfo>, LookError> {
        match self.postgres.get(label) {
            Some(told) => Ok(told.tables.clone()),
            None => self.granted.tables(label).await,
        }
    }

    async fn query(&self, label: &str, sql: &str, params: Vec<Cell>) -> Result<Box<dyn RowSource>, LookError> {
        if let Some(answer) = self.answer(label, sql) {
            return answer;
        }
        let Some(told) = self.postgres.get(label) else {
            return self.granted.query(label, sql, params).await;
        };
        let here = to_sqlite(sql, &told.schemas);
        self.granted.query(label, &here, params).await.map_err(|e| {
            let why = match e {
                LookError::Limit(_) | LookError::Denied(_) => return e,
                LookError::Invalid(t) | LookError::Failed(t) | LookError::Other(t) => t,
            };
            LookError::Invalid(format!(
                "no answer to {sql:?}: tried on SQLite: {why}; describe it under [[databases.{label}.answers]]"
            ))
        })
    }

    async fn walk(&self, label: &str, directory: &str, recursive: bool) -> Result<Box<dyn ListingSource>, LookError> {
        self.granted.walk(label, directory, recursive).await
    }

    async fn look(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<Entry>>, LookError> {
        self.granted.look(label, paths).await
    }

    async fn read(&self, label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, LookError> {
        self.granted.read(label, path, max_bytes).await
    }

    async fn digest(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError> {
        self.granted.digest(label, paths).await
    }

    fn settings(&self) -> String {
        self.granted.settings()
    }

    fn log(&self, level: Level, line: &str) {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((level, line.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_notation_are_sqlites_and_quotes_are_left_alone() {
        let schemas = BTreeSet::from(["public".to_owned()]);
        for (postgres, sqlite) in [
            ("SELECT count(*) FROM public.t", "SELECT count(*) FROM t"),
            (
                "SELECT a::bigint, $2 FROM ONLY \"public\".\"T x\"",
                "SELECT a, ?2 FROM  \"T x\"",
            ),
            (
                "SELECT 'public.t $1 ::x only', \"public\"",
                "SELECT 'public.t $1 ::x only', \"public\"",
            ),
            (
                "SELECT publicity.x, other.y FROM other.t",
                "SELECT publicity.x, other.y FROM other.t",
            ),
            ("SELECT 'it''s public.t' || '☃'::text", "SELECT 'it''s public.t' || '☃'"),
            ("SELECT 'unclosed public.", "SELECT 'unclosed public."),
            ("$", "$"),
        ] {
            assert_eq!(to_sqlite(postgres, &schemas), sqlite);
        }
    }

    #[test]
    fn paths_stay_below_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for (n, bad) in ["../x", "/x", "", "a/../../x", ".", "a/./b", "a//b", "a/"]
            .into_iter()
            .enumerate()
        {
            let volume = DescribedVolume {
                files: BTreeMap::from([(bad.to_owned(), String::new())]),
            };
            assert!(write_files(&dir.path().join(n.to_string()), &volume).is_err(), "{bad}");
        }
    }
}
