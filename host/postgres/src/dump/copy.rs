//! Rows of one part of a table, out of the server and into a lane.
//!
//! The server sends one message a row. The connection counts them and gathers them until there is enough to be worth
//! handing on (see `connection/tap.rs`); nothing is allocated per row.

use super::plan::{PlannedPart, PlannedTable};
use super::report::{Format, TablePart};
pub(super) use crate::connection::BATCH;
use crate::connection::{Form, Session};
use crate::error::{Error, Result};
use crate::names::quote_ident;
use essrun_artifact::{Lane, Progress};

/// The statement that sends a part's rows.
pub(super) fn statement(table: &PlannedTable, part: &PlannedPart) -> String {
    let columns = table
        .columns
        .iter()
        .map(|c| quote_ident(c))
        .collect::<Vec<_>>()
        .join(", ");
    let name = table.table.quoted();
    let mut conditions = Vec::new();
    if part.from_block > 0 {
        conditions.push(format!("ctid >= '({},0)'::pg_catalog.tid", part.from_block));
    }
    if let Some(to) = part.to_block {
        conditions.push(format!("ctid < '({to},0)'::pg_catalog.tid"));
    }
    if let Some(filter) = &table.keep_where {
        conditions.push(format!("(\n{filter}\n)"));
    }
    let source = if conditions.is_empty() {
        match table.columns.is_empty() {
            true => name,
            false => format!("{name} ({columns})"),
        }
    } else {
        format!("(SELECT {columns} FROM ONLY {name} WHERE {})", conditions.join(" AND "))
    };
    format!("COPY {source} TO STDOUT WITH (FORMAT {})", table.format.sql())
}

/// Copies one part. Returns once COPY's end mark was seen and the lane has taken all.
pub(super) async fn part(
    session: &Session,
    table: &PlannedTable,
    index: usize,
    lane: &mut Box<dyn Lane>,
    progress: &dyn Progress,
    name: &str,
) -> Result<TablePart> {
    let what = format!("rows of {}", table.table);
    let part = table
        .parts
        .get(index)
        .ok_or_else(|| Error::refused(&what, "the plan has no such part", "make the plan again"))?;
    let form = match table.format {
        Format::Text => Form::Text,
        Format::Binary => Form::Binary {
            first: index == 0,
            last: index + 1 == table.parts.len(),
        },
    };
    let done = stream(session, &statement(table, part), &what, form, lane, progress, name).await?;
    Ok(TablePart {
        rows: done.rows,
        bytes: done.bytes,
        digest: done.digest,
        content: Some(lane.cut().await?),
    })
}

/// Copies large objects, as COPY text.
pub(super) async fn text(
    session: &Session,
    statement: &str,
    lane: &mut Box<dyn Lane>,
    progress: &dyn Progress,
    name: &str,
) -> Result<(u64, u64, String)> {
    let done = stream(session, statement, name, Form::Text, lane, progress, name).await?;
    Ok((done.rows, done.bytes, done.digest))
}

struct Done {
    rows: u64,
    bytes: u64,
    digest: String,
}

async fn stream(
    session: &Session,
    statement: &str,
    what: &str,
    form: Form,
    lane: &mut Box<dyn Lane>,
    progress: &dyn Progress,
    name: &str,
) -> Result<Done> {
    let mut copied = session.rows(what, statement, form).await?;
    let mut hash = blake3::Hasher::new();
    let (mut rows, mut bytes) = (0u64, 0u64);
    while let Some(batch) = copied.next().await? {
        hash.update(&batch.bytes);
        let more = batch.bytes.len() as u64;
        if more > 0 {
            lane.write(batch.bytes.freeze()).await?;
        }
        rows += batch.rows;
        bytes += more;
        progress.advanced(name, more, batch.rows);
    }
    session.check(what)?;
    Ok(Done {
        rows,
        bytes,
        digest: hash.finalize().to_hex().to_string(),
    })
}
