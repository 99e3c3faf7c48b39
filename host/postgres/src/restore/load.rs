//! Rows of one table, from the backup into the scratch database.
//!
//! The table is truncated and filled in one transaction, so that COPY may freeze its rows: they are never visited by
//! a vacuum for that again, and index builds need no lookups of transactions. Nothing is committed before the digests
//! of all parts and the server's own row count agree with the record.

use super::definitions::{self, Filter};
use super::journal::Step;
use crate::connection::Session;
use crate::dump::{LARGE_OBJECT_RIGHTS, TableMeta, table_contents};
use crate::error::{Error, Result};
use crate::names::{TableName, quote_ident};
use crate::sqltext::Statement;
use bytes::Bytes;
use essrun_artifact::{ArtifactRecord, BackupReader, Progress};
use futures_util::SinkExt;
use std::pin::pin;

pub(super) async fn table(
    session: &Session,
    reader: &dyn BackupReader,
    record: &ArtifactRecord,
    meta: &TableMeta,
    progress: &dyn Progress,
) -> Result<()> {
    let table = TableName::new(&meta.schema, &meta.table);
    let what = format!("rows of {table}");
    let shown = record.name.as_str();
    progress.started(shown, Some(meta.bytes));
    // Nothing to freeze in a table that others fill as well, nothing to do for one without rows.
    if meta.rows > 0 {
        let columns: Vec<String> = meta.columns.iter().map(|c| quote_ident(c)).collect();
        let list = if columns.is_empty() {
            String::new()
        } else {
            format!(" ({})", columns.join(", "))
        };
        let freeze = if meta.of_extension { "" } else { ", FREEZE true" };
        let begin = match meta.of_extension {
            true => "BEGIN".to_owned(),
            false => format!("BEGIN; TRUNCATE ONLY {}", table.quoted()),
        };
        session.run(&what, &begin).await?;
        let copy = format!(
            "COPY {}{list} FROM STDIN WITH (FORMAT {}{freeze})",
            table.quoted(),
            meta.format.sql()
        );
        let rows = copy_in(session, &copy, &what, reader, record, meta, progress).await?;
        if rows != meta.rows {
            return Err(Error::damaged(
                shown,
                format!("the server took {rows} rows, {} were recorded", meta.rows),
            ));
        }
        // The journal's row and the table's rows come into being together, or neither does.
        let done = format!("{}; COMMIT", Step::rows(&table).note());
        session.run(&what, &done).await?;
    } else {
        session.run(&what, &Step::rows(&table).note()).await?;
    }
    progress.finished(shown);
    Ok(())
}

async fn copy_in(
    session: &Session,
    statement: &str,
    what: &str,
    reader: &dyn BackupReader,
    record: &ArtifactRecord,
    meta: &TableMeta,
    progress: &dyn Progress,
) -> Result<u64> {
    let sink = session
        .copy_in::<_, Bytes>(statement)
        .await
        .map_err(|e| session.error(what, &e))?;
    let mut sink = pin!(sink);
    let mut rows_said = 0;
    for (content, part) in table_contents(record)?.iter().zip(&meta.parts) {
        let mut content = reader.open(content).await?;
        let mut hash = blake3::Hasher::new();
        let mut length = 0u64;
        while let Some(bytes) = content.next().await? {
            hash.update(&bytes);
            length += bytes.len() as u64;
            progress.advanced(record.name.as_str(), bytes.len() as u64, 0);
            sink.send(bytes).await.map_err(|e| session.error(what, &e))?;
        }
        if length != part.bytes || hash.finalize().to_hex().as_str() != part.digest {
            // Dropping the sink makes the server give the COPY up.
            return Err(Error::damaged(record.name.to_string(), "its digest differs"));
        }
        progress.advanced(record.name.as_str(), 0, part.rows);
        rows_said += part.rows;
    }
    if rows_said != meta.rows {
        return Err(Error::damaged(record.name.to_string(), "its parts do not add up"));
    }
    sink.as_mut().finish().await.map_err(|e| session.error(what, &e))
}

/// Contents of large objects, made here where the definitions have not made them already. `again`: a stopped restore may
/// have put some of them in. `all`: every one has a piece.
pub(super) async fn large_objects(
    session: &Session,
    reader: &dyn BackupReader,
    record: &ArtifactRecord,
    (again, all): (bool, bool),
    progress: &dyn Progress,
) -> Result<()> {
    let what = "large objects";
    let number = |name: &str| record.meta.get(name).and_then(|v| v.as_u64());
    let digest = record.meta.get("digest").and_then(|v| v.as_str());
    let (Some(objects), Some(pieces), Some(digest)) = (number("objects"), number("pieces"), digest) else {
        return Err(Error::damaged(record.name.to_string(), "its record is not complete"));
    };
    progress.started(record.name.as_str(), Some(record.content.bytes));
    session
        .run(
            what,
            "BEGIN; CREATE TEMPORARY TABLE essrun_large_objects (loid oid, at int8, data bytea) ON COMMIT DROP",
        )
        .await?;
    if again {
        // 0x20000 opens for writing.
        let empty = "SELECT pg_catalog.count(pg_catalog.lo_truncate(pg_catalog.lo_open(oid, 131072), 0)) \
             FROM pg_catalog.pg_largeobject_metadata";
        session.query(empty, &[]).await.map_err(|e| session.error(what, &e))?;
    }
    let sink = session
        .copy_in::<_, Bytes>("COPY pg_temp.essrun_large_objects FROM STDIN WITH (FORMAT text)")
        .await
        .map_err(|e| session.error(what, &e))?;
    let mut sink = pin!(sink);
    let mut content = reader.open(&record.content).await?;
    let mut hash = blake3::Hasher::new();
    while let Some(bytes) = content.next().await? {
        hash.update(&bytes);
        progress.advanced(record.name.as_str(), bytes.len() as u64, 0);
        sink.send(bytes).await.map_err(|e| session.error(what, &e))?;
    }
    if hash.finalize().to_hex().as_str() != digest {
        return Err(Error::damaged(record.name.to_string(), "its digest differs"));
    }
    let taken = sink.as_mut().finish().await.map_err(|e| session.error(what, &e))?;
    if taken != pieces {
        return Err(Error::damaged(
            record.name.to_string(),
            format!("the server took {taken} pieces, {pieces} were recorded"),
        ));
    }
    // Since 17 pg_dump counts large objects' definitions among the data, so the script of definitions does not make them.
    let made = session
        .query_one(
            "SELECT pg_catalog.count(pg_catalog.lo_create(loid)) FROM (SELECT loid FROM pg_temp.essrun_large_objects \
             EXCEPT SELECT oid FROM pg_catalog.pg_largeobject_metadata) AS missing",
            &[],
        )
        .await
        .map_err(|e| session.error(what, &e))?
        .get::<_, i64>(0);
    let there = session
        .query_one(
            "SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata",
            &[],
        )
        .await
        .map_err(|e| session.error(what, &e))?
        .get::<_, i64>(0);
    match u64::try_from(there).unwrap_or(0) {
        there if there == objects => {}
        there if all => {
            return Err(Error::damaged(
                record.name.to_string(),
                format!("it makes {there} large objects, {objects} were recorded"),
            ));
        }
        there => tracing::warn!(
            "{there} of {objects} large objects come back: the others were empty, and this backup does not name those"
        ),
    }
    if made > 0 && !all {
        tracing::warn!("{made} large objects belong to the restoring role: this backup does not tell whose they were");
    }
    session
        .query(
            "SELECT pg_catalog.count(*) FROM (SELECT pg_catalog.lo_put(loid, at, data) \
             FROM pg_temp.essrun_large_objects OFFSET 0) AS put",
            &[],
        )
        .await
        .map_err(|e| session.error(what, &e))?;
    session.run(what, "COMMIT").await?;
    progress.finished(record.name.as_str());
    Ok(())
}

/// Whose the large objects are, by the script of their rights. Only what is about large objects is run.
pub(super) async fn large_object_rights(session: &Session, script: &[u8], filter: &Filter<'_>) -> Result<()> {
    let about = |s: &Statement| {
        s.starts(&["ALTER", "LARGE", "OBJECT"])
            || s.starts(&["COMMENT", "ON", "LARGE", "OBJECT"])
            || ((s.starts(&["GRANT"]) || s.starts(&["REVOKE"]))
                && s.words.get(2..5).is_some_and(|w| w == ["ON", "LARGE", "OBJECT"]))
    };
    let statements = definitions::script(LARGE_OBJECT_RIGHTS, script, filter)?;
    if !statements.iter().all(about) {
        return Err(Error::damaged(
            LARGE_OBJECT_RIGHTS,
            "it holds something else than rights of large objects",
        ));
    }
    for some in statements.chunks(100) {
        let batch: Vec<&str> = some.iter().map(|s| s.sql.as_str()).collect();
        session.run("owners of large objects", &batch.join("; ")).await?;
    }
    Ok(())
}
