//! Bounded read-only queries on granted databases.
//!
//! The host runs every query as `SELECT … FROM (<sql>)` in a read-only transaction, so it must be one SELECT without a
//! semicolon; PostgreSQL runs it with an empty search_path. Types beyond [`Cell`] are cast to text in the query.

use crate::paged::Paged;
use crate::{Error, InspectError, host};

pub use crate::bindings::ess::inspect::database::{Cell, DatabaseInfo, Engine, TableInfo, TableKind};

/// Facts about the database behind a label.
pub fn info(label: &str) -> Result<DatabaseInfo, InspectError> {
    host::info(label)
}

/// The same, or `None` where the label is not granted.
pub fn granted(label: &str) -> Result<Option<DatabaseInfo>, InspectError> {
    match host::info(label) {
        Ok(info) => Ok(Some(info)),
        Err(InspectError::Denied(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// All relations outside the system schemas.
pub fn tables(label: &str) -> Result<Vec<TableInfo>, InspectError> {
    host::tables(label)
}

/// The relations of a database that must have some tables (`schema.name`; without a schema, in any) to be `system`'s.
pub fn tables_of(label: &str, system: &str, needed: &[&str]) -> Result<Vec<TableInfo>, Error> {
    let tables = tables(label)?;
    for name in needed {
        if !tables.iter().any(|t| t.full_name() == *name || t.name == *name) {
            return Err(Error::Unsupported(format!(
                "`{label}` has no table {name}, so it is not {system}'s database, or of a version that is not known; \
                 check the grant `{label}` in pipeline.toml"
            )));
        }
    }
    Ok(tables)
}

/// Like [`count`], or `None` where the host's limits of time or size do not allow it.
pub fn count_within_limits(label: &str, sql: &str) -> Result<Option<i64>, Error> {
    let first = host::query(label, sql, &[]).and_then(|rows| rows.next(1));
    match first {
        Ok(page) => match page.first().and_then(|r| r.first()) {
            Some(Cell::Integer(n)) => Ok(Some(*n)),
            _ => Err(Error::Inspect(format!("{label}: {}: no number came back", brief(sql)))),
        },
        Err(InspectError::Limit(_)) => Ok(None),
        Err(e) => Err(about(e, label, sql)),
    }
}

/// All rows of a query whose first columns are texts that are unique together, in pages of their own: for what may be
/// longer than one query may give. The rows come in order of the key columns, by collation C.
///
/// `sql` is wrapped, so it needs neither ORDER BY nor parameters; `key` names its first columns.
pub fn pages<'a>(label: &'a str, sql: &'a str, key: &'a [&'a str]) -> Pages<'a> {
    Pages {
        label,
        sql,
        key,
        last: None,
        rows: None,
        seen: 0,
        ended: false,
    }
}

/// Rows of a page of [`pages`].
pub const ROWS_A_PAGE: u64 = 100_000;

/// See [`pages`].
pub struct Pages<'a> {
    label: &'a str,
    sql: &'a str,
    key: &'a [&'a str],
    last: Option<Vec<String>>,
    rows: Option<Rows>,
    seen: u64,
    ended: bool,
}

impl Pages<'_> {
    fn open(&mut self) -> Result<Rows, Error> {
        let columns: Vec<String> = self
            .key
            .iter()
            .map(|k| format!("k.{} COLLATE \"C\"", quoted(k)))
            .collect();
        let columns = columns.join(", ");
        let mut sql = format!("SELECT k.* FROM ({}) k", self.sql);
        if let Some(last) = &self.last {
            let after: Vec<String> = last.iter().map(|v| literal(v)).collect();
            sql.push_str(&format!(" WHERE ({columns}) > ({})", after.join(", ")));
        }
        sql.push_str(&format!(" ORDER BY {columns} LIMIT {ROWS_A_PAGE}"));
        query(self.label, &sql, &[])
    }

    fn step(&mut self) -> Result<Option<Row>, Error> {
        while !self.ended {
            let mut rows = match self.rows.take() {
                Some(rows) => rows,
                None => {
                    self.seen = 0;
                    self.open()?
                }
            };
            match rows.next() {
                Some(row) => {
                    let row = row?;
                    let key = (0..self.key.len())
                        .map(|i| row.get::<String>(i))
                        .collect::<Result<Vec<_>, _>>()?;
                    if self.last.as_ref().is_some_and(|last| *last >= key) {
                        // Going on would repeat or skip rows.
                        return Err(Error::Inspect(format!(
                            "{}: {}: rows came back out of order",
                            self.label,
                            brief(self.sql)
                        )));
                    }
                    self.last = Some(key);
                    self.seen += 1;
                    self.rows = Some(rows);
                    return Ok(Some(row));
                }
                // A page that was not full was the last.
                None => self.ended = self.seen < ROWS_A_PAGE,
            }
        }
        Ok(None)
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        self.ended |= step.is_err();
        step.transpose()
    }
}

/// Rows of one table itself, not of those that inherit from it.
pub fn count_only(label: &str, engine: Engine, table: &TableInfo) -> Result<i64, Error> {
    let only = if engine == Engine::Postgres { "ONLY " } else { "" };
    count(label, &format!("SELECT count(*) FROM {only}{}", table.sql_name()), &[])
}

/// The row of each of many SELECTs that give one, in their order, by a single query: it costs more than what is asked for.
/// Each is given as what stands behind `SELECT`, all with the same columns, which are counted from 1 in the row. `None`:
/// nothing came back.
pub fn together(label: &str, selects: &[String]) -> Result<Vec<Option<Row>>, Error> {
    let mut all = vec![None; selects.len()];
    if selects.is_empty() {
        return Ok(all);
    }
    let each = selects.iter().enumerate();
    let sql: Vec<String> = each.map(|(i, s)| format!("SELECT {i}::bigint AS i, {s}")).collect();
    for row in query(label, &sql.join(" UNION ALL "), &[])? {
        let row = row?;
        let at = usize::try_from(row.get::<i64>(0)?).ok();
        match at.and_then(|at| all.get_mut(at)) {
            Some(place) => *place = Some(row),
            None => {
                return Err(Error::Inspect(format!(
                    "{label}: a row came back that was not asked for"
                )));
            }
        }
    }
    Ok(all)
}

/// How many tables are counted in one query.
const COUNTED_TOGETHER: usize = 40;

/// Rows of many small tables of PostgreSQL, themselves alone, in their order.
pub fn counts_only(label: &str, tables: &[&TableInfo]) -> Result<Vec<i64>, Error> {
    let mut all = Vec::with_capacity(tables.len());
    for some in tables.chunks(COUNTED_TOGETHER) {
        let count = |t: &&TableInfo| format!("count(*) AS n FROM ONLY {}", t.sql_name());
        let found = together(label, &some.iter().map(count).collect::<Vec<_>>())?;
        for (table, row) in some.iter().zip(found) {
            let missing = || Error::Inspect(format!("{label}: the rows of {} were not counted", table.full_name()));
            all.push(row.ok_or_else(missing)?.get(1)?);
        }
    }
    Ok(all)
}

/// Whether a relation `schema.name` is among `tables`.
pub fn has(tables: &[TableInfo], full_name: &str) -> bool {
    tables.iter().any(|t| t.full_name() == full_name)
}

/// Runs one query.
pub fn query(label: &str, sql: &str, params: &[Cell]) -> Result<Rows, Error> {
    let rows = host::query(label, sql, params).map_err(|e| about(e, label, sql))?;
    let columns = rows.columns();
    Ok(Rows {
        columns,
        rows: Paged::new(rows, format!("{label}: {}", brief(sql))),
    })
}

/// The first column of the first row; `None` when there is no row or it is NULL.
pub fn scalar<T: FromCell>(label: &str, sql: &str, params: &[Cell]) -> Result<Option<T>, Error> {
    match query(label, sql, params)?.next() {
        Some(row) => row?.get::<Option<T>>(0),
        None => Ok(None),
    }
}

/// A whole number a query must give, such as a count.
pub fn count(label: &str, sql: &str, params: &[Cell]) -> Result<i64, Error> {
    scalar::<i64>(label, sql, params)?
        .ok_or_else(|| Error::Inspect(format!("{label}: {}: no number came back", brief(sql))))
}

/// An identifier in double quotes, whatever is in it.
pub fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A text as a SQL literal that reads the same whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

impl TableInfo {
    /// `schema.name`, unquoted, as rules write it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// What its rows are called in a backup, after the label: `schema.name`, with `%XX` for what would break the name or
    /// make two tables one.
    pub fn artifact_name(&self) -> String {
        let escape = |text: &str, dot: bool| {
            text.chars().fold(String::new(), |mut out, c| {
                if c.is_control() || c == '%' || c == '/' || (dot && c == '.') {
                    let mut bytes = [0; 4];
                    for b in c.encode_utf8(&mut bytes).bytes() {
                        out.push_str(&format!("%{b:02X}"));
                    }
                } else {
                    out.push(c);
                }
                out
            })
        };
        format!("{}.{}", escape(&self.schema, true), escape(&self.name, false))
    }

    /// `"schema"."name"`, for SQL.
    pub fn sql_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// Whether it has a column.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|c| c == name)
    }
}

/// The rows of a query. An iterator; dropping it ends the query.
pub struct Rows {
    rows: Paged<host::Rows>,
    columns: Vec<String>,
}

impl Rows {
    /// Column names in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// All rows at once: only for queries that are small by nature.
    pub fn all(self) -> Result<Vec<Row>, Error> {
        self.collect()
    }
}

impl Iterator for Rows {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let cells = self.rows.next()?;
        Some(cells.map(|cells| Row {
            cells,
            about: self.rows.about.clone(),
        }))
    }
}

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    cells: Vec<Cell>,
    about: String,
}

impl Row {
    /// The value of a column, counted from 0.
    pub fn get<T: FromCell>(&self, column: usize) -> Result<T, Error> {
        let wrong = |found: &str| {
            Error::Inspect(format!(
                "{}: column {}: expected {}, found {found}",
                self.about,
                column + 1,
                T::EXPECTED
            ))
        };
        let cell = self.cells.get(column).ok_or_else(|| wrong("no such column"))?;
        T::from_cell(cell).ok_or_else(|| wrong(kind(cell)))
    }

    /// The raw cells.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }
}

/// What a cell can be read as.
pub trait FromCell: Sized {
    /// For the error text.
    const EXPECTED: &'static str;
    /// `None` when the cell is of another kind.
    fn from_cell(cell: &Cell) -> Option<Self>;
}

impl FromCell for String {
    const EXPECTED: &'static str = "text";
    fn from_cell(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Text(t) => Some(t.clone()),
            _ => None,
        }
    }
}

impl FromCell for i64 {
    const EXPECTED: &'static str = "a whole number";
    fn from_cell(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Integer(i) => Some(*i),
            _ => None,
        }
    }
}

impl FromCell for f64 {
    const EXPECTED: &'static str = "a number";
    fn from_cell(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Real(r) => Some(*r),
            _ => None,
        }
    }
}

impl FromCell for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_cell(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Boolean(b) => Some(*b),
            _ => None,
        }
    }
}

impl FromCell for Vec<u8> {
    const EXPECTED: &'static str = "bytes";
    fn from_cell(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Bytes(b) => Some(b.clone()),
            _ => None,
        }
    }
}

impl<T: FromCell> FromCell for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn from_cell(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Null => Some(None),
            other => T::from_cell(other).map(Some),
        }
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Cell::Text(value.into())
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Cell::Text(value)
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Cell::Integer(value)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Cell::Boolean(value)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Cell::Real(value)
    }
}

impl From<Vec<u8>> for Cell {
    fn from(value: Vec<u8>) -> Self {
        Cell::Bytes(value)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Null, Into::into)
    }
}

fn kind(cell: &Cell) -> &'static str {
    match cell {
        Cell::Null => "NULL",
        Cell::Boolean(_) => "a boolean",
        Cell::Integer(_) => "a whole number",
        Cell::Real(_) => "a real number",
        Cell::Text(_) => "text",
        Cell::Bytes(_) => "bytes",
    }
}

/// A query's beginning, to be known by in an error.
fn brief(sql: &str) -> String {
    let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

fn about(e: InspectError, label: &str, sql: &str) -> Error {
    Error::Inspect(format!("{label}: {}: {}: {}", brief(sql), e.case(), e.text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_called_as_the_host_calls_them() {
        let called = |schema: &str, name: &str| {
            let table = TableInfo {
                schema: schema.into(),
                name: name.into(),
                kind: TableKind::Table,
                estimated_rows: None,
                size_bytes: 0,
                columns: Vec::new(),
            };
            table.artifact_name()
        };
        assert_eq!(called("public", "events"), "public.events");
        assert_eq!(called("Odd.Schema", "x"), "Odd%2ESchema.x");
        assert_eq!(called("Odd", "Schema.x"), "Odd.Schema.x");
        assert_eq!(called("ü", "a/b\n%"), "ü.a%2Fb%0A%25");
    }

    #[test]
    fn identifiers_and_literals_cannot_be_left() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }

    #[test]
    fn long_queries_are_cut_between_characters() {
        assert_eq!(brief(&"ä".repeat(121)).chars().count(), 121);
    }
}
