//! What a dump will do, before it does it.
//!
//! Every table is either taken, with a reason for how, or left out, with a reason for that. Patterns that match nothing
//! are said, because a rule that silently stopped matching is how one-time keys end up in a backup.

use super::report::Format;
use crate::error::{Error, Result};
use crate::names::{TableName, matches};
use crate::snapshot::Snapshot;
use crate::sqltext;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Tables whose rows are left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRule {
    /// `schema.name`, unquoted, `*` for any run of characters.
    pub table: String,
    pub why: String,
}

/// A table of which only some rows are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowFilter {
    /// `schema.name`, unquoted, exact.
    pub table: String,
    pub keep_where: String,
    pub why: String,
}

/// Which COPY format tables get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FormatPolicy {
    /// Binary where it is safe and faster, else text.
    #[default]
    Auto,
    /// Text always: readable by `psql` of any version.
    Text,
}

/// What is asked of a dump.
#[derive(Debug, Clone)]
pub struct DumpRequest {
    pub leave_out_data: Vec<TableRule>,
    pub row_filters: Vec<RowFilter>,
    /// Sessions that read rows at once.
    pub jobs: usize,
    pub format: FormatPolicy,
    /// How long to wait for a lock before giving up.
    pub lock_timeout: Duration,
    /// Tables smaller than this are not split.
    pub split_over_bytes: u64,
}

impl Default for DumpRequest {
    fn default() -> Self {
        DumpRequest {
            leave_out_data: Vec::new(),
            row_filters: Vec::new(),
            jobs: std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8),
            format: FormatPolicy::Auto,
            lock_timeout: Duration::from_secs(10),
            split_over_bytes: 64 << 20,
        }
    }
}

/// A run of a table's blocks; `None` for the end means all that follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPart {
    pub from_block: u32,
    pub to_block: Option<u32>,
}

/// A table whose rows are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedTable {
    pub table: TableName,
    pub columns: Vec<String>,
    pub estimated_rows: Option<u64>,
    /// On the server's disk, with TOAST, without indexes.
    pub size_bytes: u64,
    pub format: Format,
    /// One for a table that is not split.
    pub parts: Vec<PlannedPart>,
    pub keep_where: Option<String>,
    /// Why only some rows are taken; empty otherwise.
    pub why: String,
    pub of_extension: bool,
}

/// A relation whose rows are not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub table: TableName,
    pub size_bytes: u64,
    pub why: String,
}

/// What a dump will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DumpPlan {
    pub database: String,
    pub server_version_number: u32,
    /// Largest first.
    pub tables: Vec<PlannedTable>,
    pub left_out: Vec<LeftOut>,
    pub sequences: Vec<TableName>,
    pub large_objects: u64,
    pub jobs: usize,
    pub lock_timeout_ms: u64,
    /// Rules that match no table, and the like.
    pub remarks: Vec<String>,
    /// What `pg_dump` wrote of the schema, once [`super::hold`] has asked it.
    #[serde(skip)]
    pub(super) definitions: Option<std::sync::Arc<super::ddl::Definitions>>,
}

impl DumpPlan {
    /// On the server's disk.
    pub fn size_bytes(&self) -> u64 {
        self.tables.iter().map(|t| t.size_bytes).sum()
    }
}

impl fmt::Display for DumpPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "database {}: {} tables, {} on disk, {} sequences, {} large objects, {} sessions",
            self.database,
            self.tables.len(),
            human(self.size_bytes()),
            self.sequences.len(),
            self.large_objects,
            self.jobs
        )?;
        for t in &self.tables {
            write!(f, "  take      {:<50} {:>10}", t.table.to_string(), human(t.size_bytes))?;
            match t.estimated_rows {
                Some(rows) => write!(f, "  ~{rows} rows")?,
                None => write!(f, "  rows unknown")?,
            }
            write!(f, ", {}", t.format.sql())?;
            if t.parts.len() > 1 {
                write!(f, ", {} parts", t.parts.len())?;
            }
            if let Some(filter) = &t.keep_where {
                write!(f, ", only where {filter}: {}", t.why)?;
            }
            writeln!(f)?;
        }
        for t in &self.left_out {
            writeln!(
                f,
                "  leave out {:<50} {:>10}  {}",
                t.table.to_string(),
                human(t.size_bytes),
                t.why
            )?;
        }
        for remark in &self.remarks {
            writeln!(f, "  note: {remark}")?;
        }
        Ok(())
    }
}

fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Types whose binary form is the same on every supported server and architecture.
const SAFE_IN_BINARY: &str = "'{16,17,18,19,20,21,23,25,26,114,700,701,869,1042,1043,1082,1083,1114,1184,1186,1266,1700,\
     2950,3802,1000,1001,1005,1007,1009,1015,1016,1021,1022,1028,1115,1182,1185,1231,2951}'";

/// Types for which text costs most: long text, JSON, bytea (twice its size in text).
const WIDE: &str = "'{17,25,114,1042,1043,3802}'";

const RELATIONS: &str = "SELECT n.nspname::text, c.relname::text, c.relkind::text, c.oid::int8, \
       CASE WHEN c.reltuples >= 0 THEN c.reltuples::int8 END, \
       CASE WHEN c.relkind = 'r' THEN pg_catalog.pg_table_size(c.oid) ELSE 0 END, \
       CASE WHEN c.relkind = 'r' THEN pg_catalog.pg_relation_size(c.oid) / \
            pg_catalog.current_setting('block_size')::int8 ELSE 0 END, \
       COALESCE((SELECT am.amname FROM pg_catalog.pg_am am WHERE am.oid = c.relam) = 'heap', false), \
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
             AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum), \
       (SELECT pg_catalog.bool_and(a.atttypid = ANY (SAFE::oid[])) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), \
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
         AND NOT a.attisdropped AND a.attgenerated = '' AND a.atttypid = ANY (WIDE::oid[])), \
       EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
         AND d.objid = c.oid AND d.deptype = 'e'), \
       (SELECT e.extcondition[pg_catalog.array_position(e.extconfig, c.oid)] FROM pg_catalog.pg_extension e \
         WHERE c.oid = ANY (e.extconfig) LIMIT 1), \
       EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE c.oid = ANY (e.extconfig)) \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'f', 'm', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
       AND n.nspname <> 'information_schema' \
     ORDER BY 6 DESC, n.nspname::text COLLATE \"C\", c.relname::text COLLATE \"C\"";

/// Reads the catalog at the snapshot and decides.
pub async fn plan(snapshot: &Snapshot, request: &DumpRequest) -> Result<DumpPlan> {
    // Without one that fits there is no dump: better said before anything is read.
    super::ddl::find(snapshot.version()).await?;
    let session = snapshot.worker().await?;
    let jobs = request.jobs.clamp(1, 64);
    let database = snapshot.connection().database().to_owned();
    let lock_timeout_ms = u64::try_from(request.lock_timeout.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    // Even asking for a table's size waits for whoever alters it.
    session
        .run("lock timeout", &format!("SET LOCAL lock_timeout = {lock_timeout_ms}"))
        .await?;
    let rows = session
        .query(&RELATIONS.replace("SAFE", SAFE_IN_BINARY).replace("WIDE", WIDE), &[])
        .await
        .map_err(|e| match e.code().map(|c| c.code()) {
            Some("55P03") => locked_by_other(&database),
            _ => session.error("list of tables", &e),
        })?;
    let mut out = DumpPlan {
        database,
        server_version_number: snapshot.version(),
        tables: Vec::new(),
        left_out: Vec::new(),
        sequences: Vec::new(),
        large_objects: 0,
        jobs,
        lock_timeout_ms: u64::try_from(request.lock_timeout.as_millis())
            .unwrap_or(u64::MAX)
            .max(1),
        remarks: Vec::new(),
        definitions: None,
    };
    let mut used_rules = vec![false; request.leave_out_data.len()];
    let mut used_filters = vec![false; request.row_filters.len()];
    let total: i64 = rows.iter().map(|r| r.get::<_, Option<i64>>(5).unwrap_or(0)).sum();
    // A table of at most a worker's share stays whole: a part is read through the server's executor and, unlike a whole
    // table, through its shared buffers instead of a small ring, so it costs the server more and pushes out what others use.
    // A larger one is cut into parts of half a share, so that no worker is left alone at the end with more than that.
    let fair = (u64::try_from(total).unwrap_or(0) / jobs as u64).max(request.split_over_bytes);
    let share = (fair / 2).max(request.split_over_bytes);
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let size_bytes = u64::try_from(row.get::<_, Option<i64>>(5).unwrap_or(0)).unwrap_or(0);
        let (of_extension, configured): (bool, bool) = (row.get(11), row.get(13));
        let left = |why: &str| LeftOut {
            table: table.clone(),
            size_bytes,
            why: why.to_owned(),
        };
        match row.get::<_, &str>(2) {
            "S" if of_extension && !configured => continue,
            "S" => {
                out.sequences.push(table);
                continue;
            }
            "f" => {
                out.left_out
                    .push(left("a foreign table: its rows live on another server"));
                continue;
            }
            "m" => {
                out.left_out
                    .push(left("a materialized view: computed again after the restore"));
                continue;
            }
            _ if of_extension && !configured => {
                out.left_out.push(left("belongs to an extension, which makes it again"));
                continue;
            }
            _ => {}
        }
        let full = table.to_string();
        let mut rule = None;
        for (r, used) in request.leave_out_data.iter().zip(&mut used_rules) {
            if matches(&r.table, &full) {
                *used = true;
                rule.get_or_insert(r);
            }
        }
        if let Some(rule) = rule {
            out.left_out.push(left(&rule.why));
            continue;
        }
        let mut filters: Vec<(String, String)> = Vec::new();
        for (f, used) in request.row_filters.iter().zip(&mut used_filters) {
            if f.table == full {
                *used = true;
                check_filter(&session, &table, &f.keep_where).await?;
                filters.push((f.keep_where.clone(), f.why.clone()));
            }
        }
        if let Some(condition) = row.get::<_, Option<String>>(12).filter(|c| !c.is_empty()) {
            // Stored by the extension as `WHERE …`.
            let condition = condition.trim_start();
            let bare = match condition.get(..5) {
                Some(w) if w.eq_ignore_ascii_case("where") => condition.get(5..).unwrap_or("").to_owned(),
                _ => condition.to_owned(),
            };
            check_filter(&session, &table, &bare).await?;
            filters.push((bare, "the extension keeps the other rows itself".to_owned()));
        }
        let keep_where = (!filters.is_empty()).then(|| {
            filters
                .iter()
                .map(|(w, _)| format!("(\n{w}\n)"))
                .collect::<Vec<_>>()
                .join(" AND ")
        });
        let why = filters.into_iter().map(|(_, w)| w).collect::<Vec<_>>().join("; ");
        // The catalog is read at the snapshot, sizes as of now: a table dropped in between has none.
        let Some(blocks) = row.get::<_, Option<i64>>(6) else {
            return Err(Error::Changed { database: out.database });
        };
        let blocks = u32::try_from(blocks).unwrap_or(0);
        let heap: bool = row.get(7);
        let splittable = heap && snapshot.version() >= 140_000 && blocks >= 2;
        let parts = if splittable && size_bytes > fair {
            split(blocks, size_bytes.div_ceil(share))
        } else {
            split(blocks, 1)
        };
        let estimated_rows = row.get::<_, Option<i64>>(4).and_then(|n| u64::try_from(n).ok());
        let safe = row.get::<_, Option<bool>>(9).unwrap_or(false);
        let columns: Vec<String> = row.get(8);
        let wide = usize::try_from(row.get::<_, i64>(10)).unwrap_or(0);
        let average = estimated_rows.filter(|n| *n > 0).map_or(0, |n| size_bytes / n);
        let format = match request.format {
            FormatPolicy::Auto if safe && binary_pays(columns.len(), wide, average) => Format::Binary,
            _ => Format::Text,
        };
        out.tables.push(PlannedTable {
            table,
            columns,
            estimated_rows,
            size_bytes,
            format,
            parts,
            keep_where,
            why,
            of_extension,
        });
    }
    for (rule, used) in request.leave_out_data.iter().zip(used_rules) {
        if !used {
            out.remarks.push(format!(
                "no table matches `{}`, whose rows were to be left out ({})",
                rule.table, rule.why
            ));
        }
    }
    for (filter, used) in request.row_filters.iter().zip(used_filters) {
        if !used {
            out.remarks.push(format!(
                "there is no table `{}` to take only some rows of",
                filter.table
            ));
        }
    }
    out.large_objects = count_large_objects(&session).await?;
    Ok(out)
}

/// What a row costs on disk besides its columns: header and line pointer.
const ROW_OVERHEAD: u64 = 28;

/// Measured on PostgreSQL 15 (processor seconds of the server, text → binary). `event_json`, 270 bytes a column: dump
/// 0.8 → 0.4, load 3.2 → 2.2. `event_auth`, 43: dump 0.46 → 0.36, load 1.4 → 1.05. `state_groups_state`, 26: dump
/// 1.0 → 1.2, load 2.6 → 2.4, but 17 % more bytes to hash, compress and decrypt and 4 % more to store.
fn binary_pays(columns: usize, wide: usize, average_row_bytes: u64) -> bool {
    wide > 0 && average_row_bytes.saturating_sub(ROW_OVERHEAD) >= 32 * columns as u64
}

/// Whoever alters a table has the right of way.
pub(super) fn locked_by_other(database: &str) -> Error {
    Error::refused(
        format!("database {database}"),
        "a table is locked by somebody else, probably a migration",
        "wait for it to finish and run again",
    )
}

/// Cuts blocks into about equal runs; the last has no end, since a live table grows.
fn split(blocks: u32, wanted: u64) -> Vec<PlannedPart> {
    let wanted = u32::try_from(wanted)
        .unwrap_or(u32::MAX)
        .clamp(1, blocks.max(1))
        .min(256);
    let step = blocks.div_ceil(wanted).max(1);
    (0..wanted)
        .filter(|i| i * step < blocks || *i == 0)
        .map(|i| PlannedPart {
            from_block: i * step,
            to_block: (i + 1 < wanted && (i + 1) * step < blocks).then_some((i + 1) * step),
        })
        .collect()
}

/// A condition from outside must be closed in itself, fit the table and only look.
async fn check_filter(session: &crate::Session, table: &TableName, condition: &str) -> Result<()> {
    sqltext::closed(condition)
        .map_err(|why| Error::Invalid(format!("the row filter of {table} is not one closed condition: {why}")))?;
    let what = format!("the row filter of {table}");
    crate::inspect::refuse_filter(session, &what, &table.quoted(), condition).await
}

/// How many there are; an error when any cannot be read, since leaving them out would lose them silently.
async fn count_large_objects(session: &crate::Session) -> Result<u64> {
    let answer = session
        .query_one(
            "SELECT pg_catalog.count(pg_catalog.lo_close(pg_catalog.lo_open(oid, 262144))) \
             FROM pg_catalog.pg_largeobject_metadata",
            &[],
        )
        .await;
    match answer {
        Ok(row) => Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)),
        Err(e) if e.code().is_some_and(|c| c.code() == "42501") => Err(Error::refused(
            format!("{}: large objects", session.server()),
            "the role may not read all of them, and a backup without them would be incomplete",
            "back up as their owner, or GRANT SELECT ON LARGE OBJECT … to the role",
        )),
        Err(e) => Err(session.error("large objects", &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_block_once() {
        for (blocks, wanted) in [
            (0, 1),
            (1, 1),
            (1, 7),
            (10, 3),
            (1000, 7),
            (5, 5),
            (7, 4),
            (100_000, 1000),
        ] {
            let parts = split(blocks, wanted);
            assert_eq!(parts.first().unwrap().from_block, 0);
            assert_eq!(parts.last().unwrap().to_block, None);
            for pair in parts.windows(2) {
                assert_eq!(pair[0].to_block, Some(pair[1].from_block));
                assert!(pair[1].from_block > pair[0].from_block && pair[1].from_block < blocks);
            }
        }
    }

    #[test]
    fn binary_is_for_wide_columns() {
        // event_json, event_auth; state_groups_state, events, all numbers, an empty table.
        assert!(binary_pays(5, 4, 1380));
        assert!(binary_pays(3, 3, 157));
        assert!(!binary_pays(5, 4, 157));
        assert!(!binary_pays(13, 6, 210));
        assert!(!binary_pays(2, 0, 4000));
        assert!(!binary_pays(3, 3, 0));
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(human(5), "5 B");
        assert_eq!(human(3 << 30), "3.0 GiB");
    }
}
