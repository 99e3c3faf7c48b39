//! Rows of one part of a table, out of the server and into a lane.
//!
//! The server sends one message a row. Rows are counted by messages and gathered until there is enough to be worth
//! handing on; nothing is allocated per row. In binary format each COPY has a header and an end mark of its own; of
//! all parts of a table only the first keeps the header and only the last the mark, so that the parts in order are one
//! stream that `COPY … FROM` takes.

use super::plan::{PlannedPart, PlannedTable};
use super::report::{Format, TablePart};
use crate::connection::Session;
use crate::error::{Error, Result};
use crate::names::quote_ident;
use bytes::{Bytes, BytesMut};
use essrun_artifact::{Lane, Progress};
use futures_util::TryStreamExt;
use std::pin::pin;

/// Rows are handed on in batches of about this size.
pub(super) const BATCH: usize = 256 << 10;
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_END: &[u8] = b"\xff\xff";

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

/// What stands before and after the rows of a part.
struct Frame {
    binary: bool,
    first: bool,
    last: bool,
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
    let frame = Frame {
        binary: table.format == Format::Binary,
        first: index == 0,
        last: index + 1 == table.parts.len(),
    };
    let done = stream(session, &statement(table, part), &what, &frame, lane, progress, name).await?;
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
    let frame = Frame {
        binary: false,
        first: true,
        last: true,
    };
    let done = stream(session, statement, name, &frame, lane, progress, name).await?;
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
    frame: &Frame,
    lane: &mut Box<dyn Lane>,
    progress: &dyn Progress,
    name: &str,
) -> Result<Done> {
    let copied = session.copy_out(statement).await.map_err(|e| session.error(what, &e))?;
    let mut copied = pin!(copied);
    let broken = |why: &str| Error::Lost {
        what: format!("{}: {what}", session.server()),
        why: why.to_owned(),
    };
    let mut hash = blake3::Hasher::new();
    let mut batch = BytesMut::with_capacity(BATCH + BATCH / 4);
    let (mut rows, mut bytes, mut reported) = (0u64, 0u64, 0u64);
    let mut header = !frame.binary;
    let mut ended = !frame.binary;
    while let Some(mut message) = copied.try_next().await.map_err(|e| session.error(what, &e))? {
        if frame.binary {
            if !header {
                if !message.starts_with(BINARY_HEADER) {
                    return Err(broken("COPY began with an unknown header"));
                }
                header = true;
                let head = message.split_to(BINARY_HEADER.len());
                if frame.first {
                    batch.extend_from_slice(&head);
                }
                if message.is_empty() {
                    continue;
                }
            }
            if ended {
                return Err(broken("COPY went on after its end mark"));
            }
            if message == BINARY_END {
                ended = true;
                if frame.last {
                    batch.extend_from_slice(BINARY_END);
                }
                continue;
            }
        } else if message.last() != Some(&b'\n') {
            return Err(broken("COPY sent a row without its end"));
        }
        rows += 1;
        // A row worth a batch of its own is not copied once more.
        if message.len() >= BATCH {
            if !batch.is_empty() {
                let full = std::mem::replace(&mut batch, BytesMut::with_capacity(BATCH + BATCH / 4)).freeze();
                bytes += hand_on(full, &mut hash, lane).await?;
            }
            bytes += hand_on(message, &mut hash, lane).await?;
        } else {
            batch.extend_from_slice(&message);
        }
        if batch.len() >= BATCH {
            let full = std::mem::replace(&mut batch, BytesMut::with_capacity(BATCH + BATCH / 4)).freeze();
            let more = hand_on(full, &mut hash, lane).await?;
            bytes += more;
            progress.advanced(name, more, rows - reported);
            reported = rows;
        }
    }
    if !ended {
        return Err(broken("COPY ended without its end mark"));
    }
    let more = hand_on(batch.freeze(), &mut hash, lane).await?;
    bytes += more;
    progress.advanced(name, more, rows - reported);
    session.check(what)?;
    Ok(Done {
        rows,
        bytes,
        digest: hash.finalize().to_hex().to_string(),
    })
}

async fn hand_on(bytes: Bytes, hash: &mut blake3::Hasher, lane: &mut Box<dyn Lane>) -> Result<u64> {
    if bytes.is_empty() {
        return Ok(0);
    }
    hash.update(&bytes);
    let length = bytes.len() as u64;
    lane.write(bytes).await?;
    Ok(length)
}
