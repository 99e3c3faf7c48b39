//! Facts about the database, and a digest of its definitions to see whether they held still.

use super::report::DatabaseFacts;
use crate::connection::Session;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Facts at the session's instant; digests and versions that are known later are left empty.
pub(super) async fn facts(session: &Session) -> Result<DatabaseFacts> {
    let fail = |e: tokio_postgres::Error| session.error("database facts", &e);
    // Through JSON, because which columns there are depends on the server's version.
    let row = session
        .query_one(
            "SELECT d.datname::text, pg_catalog.current_setting('server_version_num')::int4, \
               pg_catalog.pg_get_userbyid(d.datdba)::text, pg_catalog.pg_encoding_to_char(d.encoding)::text, \
               d.datcollate::text, d.datctype::text, \
               COALESCE(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c'), \
               COALESCE(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale'), \
               pg_catalog.to_jsonb(d) ->> 'datcollversion', \
               pg_catalog.current_setting('block_size')::int4, pg_catalog.pg_database_size(d.oid), \
               pg_catalog.pg_current_snapshot()::text \
             FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(fail)?;
    let pairs = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|r| (r.get(0), r.get(1))).collect::<Vec<_>>();
    let extensions = session
        .query("SELECT extname::text, extversion FROM pg_catalog.pg_extension", &[])
        .await
        .map_err(fail)?;
    // A bootstrap superuser is not in pg_shdepend, so owners are looked up as well.
    let roles = session
        .query(
            "SELECT DISTINCT r.rolname::text FROM pg_catalog.pg_roles r WHERE r.oid IN ( \
               SELECT s.refobjid FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_database d ON d.oid = s.dbid \
                 WHERE d.datname = pg_catalog.current_database() \
                   AND s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass \
               UNION SELECT c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
                 ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
               UNION SELECT p.proowner FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n \
                 ON n.oid = p.pronamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
               UNION SELECT m.lomowner FROM pg_catalog.pg_largeobject_metadata m) \
             ORDER BY 1",
            &[],
        )
        .await
        .map_err(fail)?;
    let settings = session
        .query(
            "SELECT COALESCE(r.rolname::text, ''), u FROM pg_catalog.pg_db_role_setting s \
             JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase AND d.datname = pg_catalog.current_database() \
             LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole, pg_catalog.unnest(s.setconfig) AS u ORDER BY 1, 2",
            &[],
        )
        .await
        .map_err(fail)?;
    let grants = session
        .query(
            "SELECT COALESCE(r.rolname::text, ''), a.privilege_type FROM pg_catalog.pg_database d, \
               pg_catalog.aclexplode(COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba))) AS a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee \
             WHERE d.datname = pg_catalog.current_database() AND a.grantee <> d.datdba ORDER BY 1, 2",
            &[],
        )
        .await
        .map_err(fail)?;
    let large = session
        .query_one(
            "SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata",
            &[],
        )
        .await
        .map_err(fail)?;
    let positive = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(DatabaseFacts {
        database: row.get(0),
        server_version_number: u32::try_from(row.get::<_, i32>(1)).unwrap_or(0),
        owner: row.get(2),
        encoding: row.get(3),
        collate: row.get(4),
        ctype: row.get(5),
        locale_provider: row.get(6),
        icu_locale: row.get(7),
        collation_version: row.get(8),
        extensions: pairs(extensions).into_iter().collect(),
        roles: roles.iter().map(|r| r.get(0)).collect(),
        settings: pairs(settings),
        grants: pairs(grants),
        block_size: u32::try_from(row.get::<_, i32>(9)).unwrap_or(8192),
        large_objects: positive(large.get(0)),
        size_bytes: positive(row.get(10)),
        schema_digest: String::new(),
        schema_digest_after: String::new(),
        snapshot: row.get(11),
        pg_dump_version: String::new(),
    })
}

/// The definition of a relation, as text.
pub(super) struct Definition {
    /// Its kind and columns.
    relation: String,
    /// Its constraints, its valid indexes, its triggers.
    parts: [Vec<String>; 3],
}

/// The definition of every relation, by name.
pub(super) type Shape = BTreeMap<String, Definition>;

/// Only plain catalog columns: functions such as pg_get_indexdef would show the present, not the snapshot.
pub(super) async fn shape(session: &Session) -> Result<Shape> {
    let rows = session
        .query(
            "SELECT n.nspname || '.' || c.relname, c.relkind::text || c.relpersistence::text || ' ' || \
               COALESCE((SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, \
                   a.atttypmod, a.attnotnull, a.attidentity, a.attgenerated), ',' ORDER BY a.attnum) \
                 FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), ''), \
               ARRAY(SELECT pg_catalog.concat_ws(' ', k.contype, k.conname, k.conkey) \
                 FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid ORDER BY k.conname), \
               ARRAY(SELECT pg_catalog.concat_ws(' ', i.indexrelid, i.indkey, i.indisunique) \
                 FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid ORDER BY i.indexrelid), \
               ARRAY(SELECT t.tgname::text FROM pg_catalog.pg_trigger t \
                 WHERE t.tgrelid = c.oid AND NOT t.tgisinternal ORDER BY t.tgname) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' \
               AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
            &[],
        )
        .await
        .map_err(|e| session.error("digest of the definitions", &e))?;
    let definition = |r: &tokio_postgres::Row| Definition {
        relation: r.get(1),
        parts: [r.get(2), r.get(3), r.get(4)],
    };
    Ok(rows.iter().map(|r| (r.get(0), definition(r))).collect())
}

pub(super) fn digest(shape: &Shape) -> String {
    let mut hash = blake3::Hasher::new();
    for (name, definition) in shape {
        hash.update(name.as_bytes())
            .update(b"\0")
            .update(definition.relation.as_bytes());
        for part in &definition.parts {
            hash.update(part.join(",").as_bytes());
        }
        hash.update(b"\0");
    }
    hash.finalize().to_hex().to_string()
}

/// What was there before must still be there, since some of what pg_dump asks for is shown as of now: of an index that was
/// built anew meanwhile it would say nothing at all. What came since is after our instant and no concern of ours, be it a
/// relation or an index, a constraint or a trigger of one: pg_dump finds them by our snapshot. Synapse makes its indexes
/// while it runs, for hours after an upgrade.
pub(super) fn held_still(database: &str, before: &Shape, after: &Shape) -> Result<()> {
    let kept = |before: &Definition, after: &Definition| {
        let mut parts = before.parts.iter().zip(&after.parts);
        before.relation == after.relation && parts.all(|(before, after)| before.iter().all(|p| after.contains(p)))
    };
    let changed: Vec<&str> = before
        .iter()
        .filter(|(name, definition)| !after.get(*name).is_some_and(|after| kept(definition, after)))
        .map(|(name, _)| name.as_str())
        .take(5)
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        format!("database {database}"),
        format!(
            "definitions changed while they were read ({}), so rows and definitions may not fit",
            changed.join(", ")
        ),
        "let the migration finish and run again",
    ))
}
