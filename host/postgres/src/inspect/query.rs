//! A guest's query, under guard.
//!
//! What holds a hostile query: it is prepared alone first, so it must be one complete statement; its parentheses and
//! quotes must be closed in themselves; it runs only as `SELECT … FROM (<query>)` in a read-only transaction through
//! the extended protocol, so it can neither end the transaction nor COPY nor write; functions with side effects are
//! found in its text and in the server's own plan, and refused; it runs in a connection of its own that is thrown away;
//! every cell, row, byte and second is counted.

use super::{Cell, Inspector, effects};
use crate::connection::Session;
use crate::error::{Error, Result};
use crate::sqltext;
use futures_util::TryStreamExt;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, RowStream};

/// Bounds of one query.
#[derive(Debug, Clone)]
pub struct QueryLimits {
    /// Rows in all.
    pub max_rows: u64,
    /// Bytes of cells in all.
    pub max_bytes: u64,
    /// Rows of one page.
    pub max_page_rows: u32,
    /// Bytes of one page; a page ends early when the next row would exceed it.
    pub max_page_bytes: usize,
    /// Bytes of one cell; a greater one is an error, and is not even sent by the server.
    pub max_cell_bytes: u32,
    /// From the first statement to the last row.
    pub timeout: Duration,
}

impl Default for QueryLimits {
    fn default() -> Self {
        QueryLimits {
            max_rows: 1_000_000,
            max_bytes: 64 << 20,
            max_page_rows: 1000,
            max_page_bytes: 1 << 20,
            max_cell_bytes: 1 << 20,
            timeout: Duration::from_secs(60),
        }
    }
}

/// A query's rows, read page by page. Dropping it ends the query.
pub struct Rows {
    columns: Vec<String>,
    types: Vec<Type>,
    stream: Pin<Box<RowStream>>,
    // After the stream: the session ends when the rows are dropped.
    session: Session,
    limits: QueryLimits,
    until: Instant,
    rows: u64,
    bytes: u64,
    held: Option<Vec<Cell>>,
    done: bool,
    _permit: OwnedSemaphorePermit,
}

pub(super) async fn run(inspector: &Inspector, sql: &str, params: Vec<Cell>, limits: &QueryLimits) -> Result<Rows> {
    sqltext::closed(sql).map_err(|why| Error::Invalid(format!("the query is not one closed SELECT: {why}")))?;
    let permit = inspector
        .open
        .clone()
        .try_acquire_owned()
        .map_err(|_| Error::Limit("8 queries are open on this database already; drop one first".to_owned()))?;
    if params.iter().any(|p| matches!(p, Cell::Text(t) if t.contains('\0'))) {
        return Err(Error::Invalid("a text parameter holds a NUL character".to_owned()));
    }
    let until = Instant::now() + limits.timeout;
    let deadline = || slow(limits);
    let opening = async {
        let session = inspector.session().await?;
        // temp_file_limit is a superuser's setting, or since 15 of whom it was granted to: without that right the time
        // limit has to do. Asked, not tried: each refusal would be a line in the server's log.
        let may = match session.version().await? {
            150_000.. => "pg_catalog.has_parameter_privilege(rolname, 'temp_file_limit', 'SET')",
            _ => "rolsuper",
        };
        let bounds = format!(
            "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = 5000; \
             SELECT pg_catalog.set_config('temp_file_limit', '1GB', true) FROM pg_catalog.pg_roles \
             WHERE rolname = current_user AND {may}",
            limits.timeout.as_millis().max(1)
        );
        session.run("limits", &bounds).await?;
        open(&session, &inspector.known, sql, params, limits)
            .await
            .map(|(columns, types, stream)| (session, columns, types, stream))
    };
    let (session, columns, types, stream) = tokio::time::timeout_at(until, opening)
        .await
        .map_err(|_| deadline())??;
    Ok(Rows {
        columns,
        types,
        stream: Box::pin(stream),
        session,
        limits: limits.clone(),
        until,
        rows: 0,
        bytes: 0,
        held: None,
        done: false,
        _permit: permit,
    })
}

async fn open(
    session: &Session,
    known: &effects::Known,
    sql: &str,
    params: Vec<Cell>,
    limits: &QueryLimits,
) -> Result<(Vec<String>, Vec<Type>, RowStream)> {
    effects::refuse_query(session, known, sql).await?;
    // Alone first: what is no complete statement by itself fails here, whatever it would become between parentheses.
    let alone = session.prepare(sql).await.map_err(|e| guest_error(session, &e))?;
    if alone.params().len() != params.len() {
        return Err(Error::Invalid(format!(
            "the query has {} parameters, {} were given",
            alone.params().len(),
            params.len()
        )));
    }
    if alone.columns().is_empty() {
        return Err(Error::Invalid(
            "the query returns no columns; it must be a SELECT, VALUES or WITH … SELECT".to_owned(),
        ));
    }
    let mut shown = Vec::new();
    let mut aliases = Vec::new();
    let mut measures = Vec::new();
    for (index, column) in alone.columns().iter().enumerate() {
        let name = format!("c{index}");
        let cast = match *column.type_() {
            Type::BOOL => "bool",
            Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => "int8",
            Type::FLOAT4 | Type::FLOAT8 => "float8",
            Type::BYTEA => "bytea",
            Type::TEXT
            | Type::VARCHAR
            | Type::BPCHAR
            | Type::NAME
            | Type::UUID
            | Type::JSON
            | Type::JSONB
            | Type::NUMERIC
            | Type::DATE
            | Type::TIME
            | Type::TIMETZ
            | Type::TIMESTAMP
            | Type::TIMESTAMPTZ
            | Type::INTERVAL
            | Type::UNKNOWN => "text",
            _ => {
                return Err(Error::Invalid(format!(
                    "column {} (`{}`) is of type {}, which is not given to guests; cast it to text in the query",
                    index + 1,
                    column.name(),
                    column.type_().name()
                )));
            }
        };
        let value = format!("q.{name}::pg_catalog.{cast}");
        if matches!(cast, "text" | "bytea") {
            let fits = format!("pg_catalog.octet_length({value}) <= {}", limits.max_cell_bytes);
            measures.push(format!("({fits})"));
            shown.push(format!("CASE WHEN {fits} THEN {value} END"));
        } else {
            shown.push(value);
        }
        aliases.push(name);
    }
    // The last column says that a cell was too great to be sent.
    let fits = if measures.is_empty() {
        "true".to_owned()
    } else {
        measures.join(" AND ")
    };
    // The newline ends a comment the query may end in.
    let wrapped = format!(
        "SELECT {}, ({fits}) IS FALSE FROM (\n{sql}\n) AS q({})",
        shown.join(", "),
        aliases.join(", ")
    );
    let types: Vec<Type> = alone.params().to_vec();
    refuse_side_effects(session, known, &wrapped, &types, &params).await?;
    let statement = session
        .prepare_typed(&wrapped, &types)
        .await
        .map_err(|e| guest_error(session, &e))?;
    let stream = session
        .query_raw(&statement, params.iter().map(|p| p as &(dyn ToSql + Sync)))
        .await
        .map_err(|e| guest_error(session, &e))?;
    let names = alone.columns().iter().map(|c| c.name().to_owned()).collect();
    let mut result: Vec<Type> = statement.columns().iter().map(|c| c.type_().clone()).collect();
    result.pop();
    Ok((names, result, stream))
}

/// The one number a guest's count gives, under the same guard, in a transaction that is there already and must be
/// read-only.
pub(crate) async fn counted(session: &Session, sql: &str, limits: &QueryLimits) -> Result<u64> {
    let (_, _, rows) = open(session, &effects::Known::new(), sql, Vec::new(), limits).await?;
    let rows: Vec<Row> = rows.try_collect().await.map_err(|e| guest_error(session, &e))?;
    let number = match rows.as_slice() {
        [row] => row.try_get::<_, i64>(0).ok(),
        _ => None,
    };
    number
        .and_then(|n| u64::try_from(n).ok())
        .ok_or_else(|| Error::Invalid("the count gives no number of rows".to_owned()))
}

/// Refuses what the server's plan shows to do more than compute: the rest of what [`effects::refuse_query`] does with the text.
async fn refuse_side_effects(
    session: &Session,
    known: &effects::Known,
    wrapped: &str,
    types: &[Type],
    params: &[Cell],
) -> Result<()> {
    let explain = session
        .prepare_typed(&format!("EXPLAIN (VERBOSE, COSTS OFF) {wrapped}"), types)
        .await
        .map_err(|e| guest_error(session, &e))?;
    let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
    let plan = session
        .query(&explain, &params)
        .await
        .map_err(|e| guest_error(session, &e))?;
    // As one text: a literal with a line feed in it spans rows of the answer.
    let plan: Vec<&str> = plan.iter().map(|row| row.get(0)).collect();
    effects::refuse_query_plan(session, known, &plan.join("\n")).await
}

/// The same for a condition on a table's rows, which is not a guest's whole query.
pub(crate) async fn refuse_filter(session: &Session, what: &str, table: &str, condition: &str) -> Result<()> {
    effects::refuse(session, what, condition, effects::May::Look).await?;
    let explain = format!("EXPLAIN (VERBOSE, COSTS OFF) SELECT 1 FROM ONLY {table} WHERE (\n{condition}\n)");
    let plan = session
        .query(explain.as_str(), &[])
        .await
        .map_err(|e| match e.as_db_error() {
            Some(db) => Error::Invalid(format!("{what} was refused: {}", db.message())),
            None => session.error("row filter", &e),
        })?;
    let plan: Vec<&str> = plan.iter().map(|row| row.get(0)).collect();
    effects::refuse_plan(session, what, &plan.join("\n")).await
}

fn slow(limits: &QueryLimits) -> Error {
    Error::Slow(format!("the query took longer than {} s", limits.timeout.as_secs()))
}

/// Codes of relations, columns, types and schemas that are not there.
const GONE: &[&str] = &["42P01", "42703", "42704", "3F000"];

/// The server's word on a guest's query: the query's own faults are `Invalid` or `Gone`, what was used up is `Limit` or
/// `Slow`, the rest is ours.
fn guest_error(session: &Session, error: &tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        return session.error("query", error);
    };
    let code = db.code().code();
    let refused =
        |kind: fn(String) -> Error| kind(format!("the query was refused: {} (SQLSTATE {code})", db.message()));
    match code {
        "57014" => Error::Slow(format!("the query was stopped: {}", db.message())),
        "55P03" | "53400" => Error::Limit(format!("the query was stopped: {}", db.message())),
        // A table that is dropped or altered between being found and being read has no code of its own.
        "XX000" if db.message().starts_with("could not open relation") => refused(Error::Gone),
        "0A000" if db.message().starts_with("cached plan") => refused(Error::Gone),
        _ if GONE.contains(&code) => refused(Error::Gone),
        _ if matches!(code.get(..2), Some("08" | "53" | "54" | "57" | "58" | "XX")) => session.error("query", error),
        _ => refused(Error::Invalid),
    }
}

impl Rows {
    /// Column names in order, as the query has them.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The next rows, at most `max_rows`; empty at the end.
    pub async fn next(&mut self, max_rows: u32) -> Result<Vec<Vec<Cell>>> {
        let most = max_rows.min(self.limits.max_page_rows).max(1);
        let mut page = Vec::new();
        let mut bytes = 0;
        if let Some(row) = self.held.take() {
            bytes += size(&row);
            page.push(row);
        }
        while !self.done && page.len() < most as usize {
            let next = match tokio::time::timeout_at(self.until, self.stream.try_next()).await {
                Ok(next) => next,
                Err(_) => {
                    self.done = true;
                    return Err(slow(&self.limits));
                }
            };
            let row = match next {
                Ok(Some(row)) => row,
                Ok(None) => {
                    self.done = true;
                    break;
                }
                Err(e) => {
                    self.done = true;
                    return Err(guest_error(&self.session, &e));
                }
            };
            let row = self.take(&row).inspect_err(|_| self.done = true)?;
            let more = size(&row);
            if !page.is_empty() && bytes + more > self.limits.max_page_bytes {
                self.held = Some(row);
                break;
            }
            bytes += more;
            page.push(row);
        }
        Ok(page)
    }

    /// All rows, within the limits.
    pub async fn all(mut self) -> Result<Vec<Vec<Cell>>> {
        let mut rows = Vec::new();
        loop {
            let page = self.next(u32::MAX).await?;
            if page.is_empty() {
                return Ok(rows);
            }
            rows.extend(page);
        }
    }

    fn take(&mut self, row: &Row) -> Result<Vec<Cell>> {
        let wrong = |e: tokio_postgres::Error| Error::Invalid(format!("a value cannot be read: {e}"));
        if row.try_get::<_, Option<bool>>(self.types.len()).map_err(wrong)? == Some(true) {
            return Err(Error::Limit(format!(
                "a cell is longer than {} bytes",
                self.limits.max_cell_bytes
            )));
        }
        let mut cells = Vec::with_capacity(self.types.len());
        for (index, ty) in self.types.iter().enumerate() {
            let cell = match *ty {
                Type::BOOL => row.try_get::<_, Option<bool>>(index).map_err(wrong)?.map(Cell::Boolean),
                Type::INT8 => row.try_get::<_, Option<i64>>(index).map_err(wrong)?.map(Cell::Integer),
                Type::FLOAT8 => row.try_get::<_, Option<f64>>(index).map_err(wrong)?.map(Cell::Real),
                Type::BYTEA => row
                    .try_get::<_, Option<Vec<u8>>>(index)
                    .map_err(wrong)?
                    .map(Cell::Bytes),
                _ => row.try_get::<_, Option<String>>(index).map_err(wrong)?.map(Cell::Text),
            };
            cells.push(cell.unwrap_or(Cell::Null));
        }
        self.rows += 1;
        self.bytes += size(&cells) as u64;
        if self.rows > self.limits.max_rows {
            return Err(Error::Limit(format!(
                "the query gives more than {} rows",
                self.limits.max_rows
            )));
        }
        if self.bytes > self.limits.max_bytes {
            return Err(Error::Limit(format!(
                "the query gives more than {} bytes",
                self.limits.max_bytes
            )));
        }
        Ok(cells)
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows")
            .field("columns", &self.columns)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

fn size(row: &[Cell]) -> usize {
    row.iter().map(Cell::size).sum()
}
