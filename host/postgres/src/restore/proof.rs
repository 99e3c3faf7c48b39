//! Whether what a stopped restore left is what it should be: rows against the backup, definitions against an empty
//! database made from the same backup on the same server.

use crate::connection::Session;
use crate::dump::{Format, TableMeta, TablePart};
use crate::error::Result;
use crate::names::{TableName, quote_ident};
use crate::restore::journal::SCHEMA;
use futures_util::TryStreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

/// Reads a table back and tells whether its rows are the recorded ones, in the recorded order: COPY filled an empty
/// table, so what COPY reads is what was written.
pub(super) async fn rows_as_recorded(session: &Session, meta: &TableMeta) -> Result<bool> {
    let table = TableName::new(&meta.schema, &meta.table);
    if meta.rows == 0 {
        return is_empty(session, &table).await;
    }
    let mut parts = meta.parts.iter();
    let mut expected: Option<&TablePart> = parts.next();
    let (mut hash, mut length, mut same) = (blake3::Hasher::new(), 0u64, true);
    read(session, &table, &meta.columns, meta.format, |mut bytes| {
        // Once it differs the rest only has to be taken off the connection.
        while same && !bytes.is_empty() {
            let Some(part) = expected else {
                same = false;
                return;
            };
            let fits = usize::try_from(part.bytes - length)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let (now, later) = bytes.split_at(fits);
            hash.update(now);
            length += now.len() as u64;
            bytes = later;
            if length == part.bytes {
                same = hash.finalize().to_hex().as_str() == part.digest;
                hash.reset();
                length = 0;
                expected = parts.next();
            }
        }
    })
    .await?;
    // Parts without bytes may be left over; anything else is missing.
    let rest = expected.map_or(0, |p| p.bytes) + parts.map(|p| p.bytes).sum::<u64>();
    Ok(same && rest == 0)
}

/// The contents of a table as a digest.
pub(super) async fn digest(session: &Session, table: &TableName) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    read(session, table, &[], Format::Text, |bytes| {
        hash.update(bytes);
    })
    .await?;
    Ok(hash.finalize().to_hex().to_string())
}

async fn read(
    session: &Session,
    table: &TableName,
    columns: &[String],
    format: Format,
    mut take: impl FnMut(&[u8]),
) -> Result<()> {
    let what = format!("read back the rows of {table}");
    let list = match columns {
        [] => String::new(),
        columns => format!(
            " ({})",
            columns.iter().map(|c| quote_ident(c)).collect::<Vec<_>>().join(", ")
        ),
    };
    let statement = format!("COPY {}{list} TO STDOUT WITH (FORMAT {})", table.quoted(), format.sql());
    let rows = session
        .copy_out(&statement)
        .await
        .map_err(|e| session.error(&what, &e))?;
    let mut rows = pin!(rows);
    while let Some(bytes) = rows.try_next().await.map_err(|e| session.error(&what, &e))? {
        take(&bytes);
    }
    Ok(())
}

async fn is_empty(session: &Session, table: &TableName) -> Result<bool> {
    let row = session
        .query_one(&format!("SELECT NOT EXISTS (SELECT FROM ONLY {})", table.quoted()), &[])
        .await
        .map_err(|e| session.error("look for rows", &e))?;
    Ok(row.get(0))
}

/// Of the tables without rows in the backup, those that hold some; extensions fill their own.
pub(super) async fn unexpected(session: &Session, recorded: &BTreeSet<TableName>) -> Result<Vec<TableName>> {
    let tables = session
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
               AND n.nspname NOT IN ('information_schema', $1::text::name) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                 AND d.objid = c.oid AND d.deptype = 'e')",
            &[&SCHEMA],
        )
        .await
        .map_err(|e| session.error("list of tables", &e))?;
    let mut found = Vec::new();
    for row in tables {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !recorded.contains(&table) && !is_empty(session, &table).await? {
            found.push(table);
        }
    }
    Ok(found)
}

/// Everything defined in a database, as text by kind and name, without object ids: two databases on one server made by
/// the same statements give the same.
pub(super) type Shape = BTreeMap<String, String>;

pub(super) async fn shape(session: &Session) -> Result<Shape> {
    let rows = session
        .query(SHAPE_SQL, &[&SCHEMA])
        .await
        .map_err(|e| session.error("look at the definitions", &e))?;
    let mut shape = Shape::new();
    for row in rows {
        let (name, text): (String, Option<String>) = (row.get(0), row.get(1));
        let entry: &mut String = shape.entry(name).or_default();
        entry.push_str(&text.unwrap_or_default());
        entry.push('\n');
    }
    Ok(shape)
}

pub(super) fn digest_of(shape: &Shape) -> String {
    let mut hash = blake3::Hasher::new();
    for (name, text) in shape {
        for piece in [name, text] {
            hash.update(&(piece.len() as u64).to_le_bytes())
                .update(piece.as_bytes());
        }
    }
    hash.finalize().to_hex().to_string()
}

/// Names of what differs, the first few.
pub(super) fn differences(a: &Shape, b: &Shape) -> Vec<String> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .take(5)
        .cloned()
        .collect()
}

const SHAPE_SQL: &str = "\
WITH ours AS (SELECT oid, nspname FROM pg_catalog.pg_namespace \
  WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', $1::text::name)), \
 rel AS (SELECT c.*, o.nspname, pg_catalog.format('%I.%I', o.nspname, c.relname) AS full_name \
  FROM pg_catalog.pg_class c JOIN ours o ON o.oid = c.relnamespace WHERE c.relpersistence <> 't'), \
 fn AS (SELECT p.*, pg_catalog.format('%I.%I(%s)', o.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) AS full_name \
  FROM pg_catalog.pg_proc p JOIN ours o ON o.oid = p.pronamespace) \
SELECT name, text FROM ( \
 SELECT 'schema ' || n.nspname AS name, pg_catalog.concat_ws(' ', pg_catalog.pg_get_userbyid(n.nspowner), n.nspacl) AS text \
   FROM pg_catalog.pg_namespace n JOIN ours o ON o.oid = n.oid \
 UNION ALL SELECT 'relation ' || r.full_name, pg_catalog.concat_ws(' ', r.relkind, r.relpersistence, \
   pg_catalog.pg_get_userbyid(r.relowner), r.relacl, r.reloptions, r.relrowsecurity, r.relforcerowsecurity, r.relreplident, \
   r.relispartition, pg_catalog.pg_get_expr(r.relpartbound, r.oid), \
   CASE WHEN r.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(r.oid) END, \
   CASE WHEN r.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(r.oid) END) FROM rel r \
 UNION ALL SELECT 'column ' || r.full_name || '.' || a.attnum, pg_catalog.concat_ws(' ', a.attname, \
   pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attacl, a.attstorage, a.attoptions, \
   (SELECT l.collname FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation), \
   (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum)) \
   FROM rel r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped WHERE r.relkind IN ('r', 'p', 'v', 'm', 'f') \
 UNION ALL SELECT 'index ' || r.full_name, pg_catalog.concat_ws(' ', pg_catalog.pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready, \
   i.indislive, i.indisclustered, i.indisreplident, i.indisprimary, i.indimmediate) FROM rel r JOIN pg_catalog.pg_index i ON i.indexrelid = r.oid \
 UNION ALL SELECT 'constraint ' || r.full_name || ' ' || k.conname, pg_catalog.concat_ws(' ', pg_catalog.pg_get_constraintdef(k.oid), k.convalidated) \
   FROM rel r JOIN pg_catalog.pg_constraint k ON k.conrelid = r.oid \
 UNION ALL SELECT 'trigger ' || r.full_name || ' ' || t.tgname, pg_catalog.concat_ws(' ', pg_catalog.pg_get_triggerdef(t.oid), t.tgenabled) \
   FROM rel r JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal \
 UNION ALL SELECT 'internal triggers ' || r.full_name, pg_catalog.concat_ws(' ', pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE t.tgenabled = 'O')) \
   FROM rel r JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid WHERE t.tgisinternal GROUP BY r.full_name \
 UNION ALL SELECT 'rule ' || r.full_name || ' ' || u.rulename, pg_catalog.concat_ws(' ', pg_catalog.pg_get_ruledef(u.oid), u.ev_enabled) \
   FROM rel r JOIN pg_catalog.pg_rewrite u ON u.ev_class = r.oid \
 UNION ALL SELECT 'policy ' || r.full_name || ' ' || p.polname, pg_catalog.concat_ws(' ', p.polcmd, p.polpermissive, \
   (SELECT pg_catalog.string_agg(pg_catalog.pg_get_userbyid(u), ',' ORDER BY 1) FROM pg_catalog.unnest(p.polroles) AS u), \
   pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)) \
   FROM rel r JOIN pg_catalog.pg_policy p ON p.polrelid = r.oid \
 UNION ALL SELECT 'parent ' || r.full_name || ' ' || h.inhseqno, pg_catalog.concat_ws(' ', h.inhparent::pg_catalog.regclass::text) \
   FROM rel r JOIN pg_catalog.pg_inherits h ON h.inhrelid = r.oid \
 UNION ALL SELECT 'sequence ' || r.full_name, pg_catalog.concat_ws(' ', q.seqtypid::pg_catalog.regtype::text, q.seqstart, q.seqincrement, q.seqmax, q.seqmin, q.seqcache, q.seqcycle) \
   FROM rel r JOIN pg_catalog.pg_sequence q ON q.seqrelid = r.oid \
 UNION ALL SELECT 'function ' || f.full_name, pg_catalog.concat_ws(' ', f.prokind, pg_catalog.pg_get_userbyid(f.proowner), f.proacl, \
   CASE WHEN f.prokind = 'a' THEN 'aggregate' ELSE pg_catalog.pg_get_functiondef(f.oid) END) FROM fn f \
 UNION ALL SELECT 'type ' || pg_catalog.format('%I.%I', o.nspname, t.typname), pg_catalog.concat_ws(' ', t.typtype, t.typnotnull, t.typdefault, \
   pg_catalog.pg_get_userbyid(t.typowner), t.typacl, pg_catalog.format_type(t.typbasetype, t.typtypmod), \
   (SELECT pg_catalog.string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), \
   (SELECT pg_catalog.string_agg(pg_catalog.pg_get_constraintdef(k.oid), ',' ORDER BY k.conname) FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid)) \
   FROM pg_catalog.pg_type t JOIN ours o ON o.oid = t.typnamespace \
 UNION ALL SELECT 'statistics ' || pg_catalog.format('%I.%I', o.nspname, s.stxname), pg_catalog.pg_get_statisticsobjdef(s.oid) \
   FROM pg_catalog.pg_statistic_ext s JOIN ours o ON o.oid = s.stxnamespace \
 UNION ALL SELECT 'extension ' || e.extname, e.extversion FROM pg_catalog.pg_extension e \
 UNION ALL SELECT 'event trigger ' || e.evtname, pg_catalog.concat_ws(' ', e.evtevent, e.evtenabled, e.evtfoid::pg_catalog.regprocedure::text, e.evttags) \
   FROM pg_catalog.pg_event_trigger e \
 UNION ALL SELECT 'publication ' || p.pubname, pg_catalog.concat_ws(' ', p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate) \
   FROM pg_catalog.pg_publication p \
) AS everything ORDER BY name, text";
