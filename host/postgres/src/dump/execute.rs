//! Carries a dump plan out.

use super::plan::{DumpPlan, PlannedTable, locked_by_other};
use super::report::{DatabaseFacts, DumpReport, TableMeta, TablePart, TableReport};
use super::{
    Classify, KIND_DDL, KIND_FACTS, KIND_LARGE_OBJECTS, KIND_SEQUENCES, KIND_TABLE, LARGE_OBJECT_RIGHTS, copy, ddl,
    facts,
};
use crate::connection::Session;
use crate::error::{Error, Result};
use crate::names::{TableName, quote_ident, quote_literal};
use crate::snapshot::Snapshot;
use bytes::Bytes;
use essrun_artifact::{ArtifactName, ArtifactRecord, BackupWriter, Content, Lane, LaneSpec, Progress};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::task::JoinSet;

/// What every worker of a dump shares.
struct Work {
    tables: Vec<PlannedTable>,
    /// (table, part), in the order in which they are to be taken.
    queue: Mutex<VecDeque<(usize, usize)>>,
    /// Those of tables that somebody waits to alter: only the holder of the snapshot may still read them.
    waiting: Mutex<Vec<(usize, usize)>>,
    /// Finished parts by table; `None` while open.
    parts: Mutex<Vec<Vec<Option<TablePart>>>>,
    reports: Mutex<Vec<TableReport>>,
    prefix: String,
    writer: Arc<dyn BackupWriter>,
    classify: Classify,
    progress: Arc<dyn Progress>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The artifact of a table: `prefix/schema.table`. What would break the name, or make two tables one, is written `%XX`.
pub fn artifact_name(prefix: &str, table: &TableName) -> Result<ArtifactName> {
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
    let (schema, name) = (escape(&table.schema, true), escape(&table.name, false));
    Ok(ArtifactName::new(format!("{prefix}/{schema}.{name}"))?)
}

pub(super) async fn execute(
    snapshot: &Snapshot,
    plan: DumpPlan,
    prefix: &str,
    writer: Arc<dyn BackupWriter>,
    classify: Classify,
    progress: Arc<dyn Progress>,
) -> Result<DumpReport> {
    let began = Instant::now();
    let pg_dump = ddl::find(snapshot.version()).await?;
    lock(snapshot, &plan).await?;
    let first = snapshot.worker().await?;
    let mut facts = facts::facts(&first).await?;
    let shape = facts::shape(&first).await?;
    facts.schema_digest = facts::digest(&shape);
    facts.snapshot = snapshot.visible().to_owned();
    facts.pg_dump_version = pg_dump.version.clone();

    let mut queue: Vec<(usize, usize)> = Vec::new();
    for (t, table) in plan.tables.iter().enumerate() {
        queue.extend((0..table.parts.len()).map(|p| (t, p)));
    }
    // Largest first, so that no worker is left alone with one at the end.
    queue.sort_by_key(|(t, p)| {
        let size = plan
            .tables
            .get(*t)
            .map_or(0, |table| table.size_bytes / table.parts.len().max(1) as u64);
        (std::cmp::Reverse(size), *t, *p)
    });
    let jobs = plan.jobs.min(queue.len()).max(1);
    let work = Arc::new(Work {
        parts: Mutex::new(plan.tables.iter().map(|t| vec![None; t.parts.len()]).collect()),
        tables: plan.tables.clone(),
        queue: Mutex::new(queue.into()),
        waiting: Mutex::new(Vec::new()),
        reports: Mutex::new(Vec::new()),
        prefix: prefix.to_owned(),
        writer: writer.clone(),
        classify,
        progress,
    });

    let mut workers = JoinSet::new();
    for _ in 0..jobs {
        let (work, session) = (work.clone(), snapshot.worker().await?);
        workers.spawn(async move { rows(&work, session).await });
    }
    // The holder's death ends the run at once: what the workers read from then on would not count.
    let lost = snapshot.lost();
    let all = async {
        let mut lane = writer.lane(LaneSpec::TABLE)?;
        let definitions = match &plan.definitions {
            Some(held) => held.clone(),
            None => Arc::new(ddl::definitions(snapshot, &plan.database, plan.lock_timeout_ms).await?),
        };
        // A session of its own: the workers' would show the snapshot. Not at the end: what is done to a definition once it
        // is read, as when an index is built anew at night, is no concern of ours, and rows are locked.
        let now = Session::open(snapshot.connection()).await?;
        let after = facts::shape(&now).await?;
        drop(now);
        facts::held_still(&facts.database, &shape, &after)?;
        facts.schema_digest_after = facts::digest(&after);
        small(
            &work,
            &mut lane,
            "ddl-pre-data",
            KIND_DDL,
            definitions.pre.clone(),
            serde_json::json!({"section": "pre-data"}),
        )
        .await?;
        small(
            &work,
            &mut lane,
            "ddl-post-data",
            KIND_DDL,
            definitions.post.clone(),
            serde_json::json!({"section": "post-data"}),
        )
        .await?;
        let positions = sequences(&first, &plan.sequences).await?;
        let count = serde_json::json!({"sequences": plan.sequences.len()});
        small(
            &work,
            &mut lane,
            "sequences",
            KIND_SEQUENCES,
            positions.into_bytes(),
            count,
        )
        .await?;
        large_objects(&work, &first, &mut lane, plan.large_objects).await?;
        while let Some(done) = workers.join_next().await {
            done.map_err(|e| Error::Lost {
                what: "a dump worker".to_owned(),
                why: e.to_string(),
            })??;
        }
        let waiting = std::mem::take(&mut *locked(&work.waiting));
        for part in waiting {
            rows_of(&work, snapshot.holder(), &mut lane, part).await?;
        }
        let text = serde_json::to_vec_pretty(&facts).map_err(|e| Error::damaged("facts", e.to_string()))?;
        small(&work, &mut lane, "database", KIND_FACTS, text, facts_meta(&facts)).await?;
        lane.close().await?;
        snapshot.check().await
    };
    tokio::select! {
        done = all => done?,
        why = lost => return Err(Error::Lost { what: format!("{}: the snapshot's holder", snapshot.connection()), why: why.to_string() }),
    }
    let mut tables = std::mem::take(&mut *locked(&work.reports));
    tables.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(DumpReport {
        database: facts.database,
        rows: tables.iter().map(|t| t.rows).sum(),
        bytes: tables.iter().map(|t| t.bytes).sum(),
        tables,
        seconds: began.elapsed().as_secs_f64(),
        schema_digest: facts.schema_digest,
    })
}

/// What is to be known without opening the artifact: a runbook is written where only the writer key is.
fn facts_meta(facts: &DatabaseFacts) -> serde_json::Value {
    serde_json::json!({
        "database": facts.database,
        "server_version_number": facts.server_version_number,
        "schema_digest": facts.schema_digest,
        "owner": facts.owner,
        "roles": facts.roles,
        "encoding": facts.encoding,
        "collate": facts.collate,
        "ctype": facts.ctype,
        "icu_locale": facts.icu_locale,
        "extensions": facts.extensions,
    })
}

/// Holds the tables still against being altered or dropped, or gives up: whoever alters one has the right of way.
pub(super) async fn lock(snapshot: &Snapshot, plan: &DumpPlan) -> Result<()> {
    let holder = snapshot.holder();
    holder
        .run(
            "lock timeout",
            &format!("SET LOCAL lock_timeout = {}", plan.lock_timeout_ms),
        )
        .await?;
    for some in plan.tables.chunks(500) {
        let names: Vec<String> = some.iter().map(|t| format!("ONLY {}", t.table.quoted())).collect();
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        holder
            .run("lock the tables for reading", &lock)
            .await
            .map_err(|e| match e.code() {
                Some("55P03") => locked_by_other(&plan.database),
                Some("42P01") => Error::Changed {
                    database: plan.database.clone(),
                },
                _ => e,
            })?;
    }
    Ok(())
}

/// One worker: one session, one lane, part after part.
async fn rows(work: &Work, session: Session) -> Result<()> {
    let mut lane = work.writer.lane(LaneSpec::TABLE)?;
    loop {
        let next = locked(&work.queue).pop_front();
        let Some((t, p)) = next else { break };
        let Some(table) = work.tables.get(t) else { break };
        match may_read(&session, table).await? {
            true => rows_of(work, &session, &mut lane, (t, p)).await?,
            false => locked(&work.waiting).push((t, p)),
        }
    }
    // The answer to this proves that the server ended the last COPY well.
    session.run("end of the rows", "ROLLBACK").await?;
    lane.close().await?;
    Ok(())
}

/// Locks a table for this session as the holder has locked it for the run. `false`: somebody waits for the holder to let
/// go of it, and the server lets nobody else in before them. Waiting for that would be for ever.
async fn may_read(session: &Session, table: &PlannedTable) -> Result<bool> {
    let what = format!("lock {} for reading", table.table);
    let lock = format!(
        "SAVEPOINT essrun; LOCK TABLE ONLY {} IN ACCESS SHARE MODE NOWAIT; RELEASE essrun",
        table.table.quoted()
    );
    match session.run(&what, &lock).await {
        Err(e) if e.code() == Some("55P03") => {
            session.run(&what, "ROLLBACK TO essrun; RELEASE essrun").await?;
            Ok(false)
        }
        other => other.map(|()| true),
    }
}

/// One part, and the whole table's record where it was the last.
async fn rows_of(work: &Work, session: &Session, lane: &mut Box<dyn Lane>, (t, p): (usize, usize)) -> Result<()> {
    let Some(table) = work.tables.get(t) else {
        return Ok(());
    };
    let name = artifact_name(&work.prefix, &table.table)?;
    if p == 0 {
        work.progress.started(name.as_str(), Some(table.size_bytes));
    }
    let part = copy::part(session, table, p, lane, work.progress.as_ref(), name.as_str()).await?;
    let finished = {
        let mut parts = locked(&work.parts);
        let slots = parts.get_mut(t);
        slots.and_then(|slots| {
            if let Some(slot) = slots.get_mut(p) {
                *slot = Some(part);
            }
            slots
                .iter()
                .all(Option::is_some)
                .then(|| slots.drain(..).flatten().collect::<Vec<_>>())
        })
    };
    if let Some(parts) = finished {
        record(work, table, name.clone(), parts).await?;
        work.progress.finished(name.as_str());
    }
    Ok(())
}

async fn record(work: &Work, table: &PlannedTable, name: ArtifactName, mut parts: Vec<TablePart>) -> Result<()> {
    let content = parts
        .first_mut()
        .and_then(|first| first.content.take())
        .unwrap_or_else(Content::empty);
    let mut hash = blake3::Hasher::new();
    for part in &parts {
        hash.update(part.digest.as_bytes());
    }
    let meta = TableMeta {
        schema: table.table.schema.clone(),
        table: table.table.name.clone(),
        columns: table.columns.clone(),
        format: table.format,
        rows: parts.iter().map(|p| p.rows).sum(),
        bytes: parts.iter().map(|p| p.bytes).sum(),
        keep_where: table.keep_where.clone(),
        of_extension: table.of_extension,
        parts,
    };
    let report = TableReport {
        table: table.table.to_string(),
        rows: meta.rows,
        bytes: meta.bytes,
        digest: hash.finalize().to_hex().to_string(),
        format: meta.format,
        parts: meta.parts.len(),
    };
    let meta = serde_json::to_value(&meta).map_err(|e| Error::damaged(name.to_string(), e.to_string()))?;
    let sensitivity = (work.classify)(&name);
    work.writer
        .record(ArtifactRecord {
            name,
            kind: KIND_TABLE.to_owned(),
            sensitivity,
            meta,
            content,
        })
        .await?;
    locked(&work.reports).push(report);
    Ok(())
}

/// One artifact that fits in memory.
async fn small(
    work: &Work,
    lane: &mut Box<dyn Lane>,
    rest: &str,
    kind: &str,
    bytes: Vec<u8>,
    mut meta: serde_json::Value,
) -> Result<()> {
    let name = ArtifactName::new(format!("{}/{rest}", work.prefix))?;
    work.progress.started(name.as_str(), Some(bytes.len() as u64));
    if let Some(meta) = meta.as_object_mut() {
        meta.insert("digest".to_owned(), blake3::hash(&bytes).to_hex().to_string().into());
    }
    let mut bytes = Bytes::from(bytes);
    let length = bytes.len() as u64;
    while !bytes.is_empty() {
        lane.write(bytes.split_to(bytes.len().min(copy::BATCH))).await?;
    }
    let content = lane.cut().await?;
    let sensitivity = (work.classify)(&name);
    work.progress.advanced(name.as_str(), length, 1);
    work.progress.finished(name.as_str());
    work.writer
        .record(ArtifactRecord {
            name,
            kind: kind.to_owned(),
            sensitivity,
            meta,
            content,
        })
        .await?;
    Ok(())
}

/// Positions of sequences as SQL. They do not obey snapshots: read after it was taken they are never behind the rows.
async fn sequences(session: &Session, sequences: &[TableName]) -> Result<String> {
    let mut out = String::from("-- Positions of sequences. Run after the rows are in.\n");
    for some in sequences.chunks(200) {
        let selects: Vec<String> = some
            .iter()
            .enumerate()
            .map(|(i, s)| format!("SELECT {i}::int4, last_value, is_called FROM {}", s.quoted()))
            .collect();
        let rows = session
            .query(&selects.join(" UNION ALL "), &[])
            .await
            .map_err(|e| session.error("positions of sequences", &e))?;
        if rows.len() != some.len() {
            return Err(Error::Lost {
                what: format!("{}: positions of sequences", session.server()),
                why: "not every sequence answered".to_owned(),
            });
        }
        for row in rows {
            let index = usize::try_from(row.get::<_, i32>(0)).unwrap_or(usize::MAX);
            let Some(sequence) = some.get(index) else { continue };
            out.push_str(&format!(
                "SELECT pg_catalog.setval({}, {}, {});\n",
                quote_literal(&sequence.quoted()),
                row.get::<_, i64>(1),
                row.get::<_, bool>(2)
            ));
        }
    }
    Ok(out)
}

/// All large objects in pieces of 256 KiB, an empty one in one piece without bytes; and whose they are. Until 16 `pg_dump`
/// has the latter among the definitions, since then among the data, which we do not take from it.
async fn large_objects(work: &Work, session: &Session, lane: &mut Box<dyn Lane>, expected: u64) -> Result<()> {
    if expected == 0 {
        return Ok(());
    }
    let name = ArtifactName::new(format!("{}/large-objects", work.prefix))?;
    work.progress.started(name.as_str(), None);
    let statement = "COPY (SELECT m.oid, g.at, pg_catalog.lo_get(m.oid, g.at, 262144) \
         FROM (SELECT oid, pg_catalog.lo_open(oid, 262144) AS fd FROM pg_catalog.pg_largeobject_metadata \
               ORDER BY oid OFFSET 0) AS m, \
         LATERAL (SELECT pg_catalog.lo_lseek64(m.fd, 0, 2) AS size, pg_catalog.lo_close(m.fd) AS closed OFFSET 0) AS s, \
         LATERAL pg_catalog.generate_series(0::int8, GREATEST(s.size - 1 + s.closed, 0), 262144) AS g(at)) TO STDOUT";
    let (pieces, bytes, digest) = copy::text(session, statement, lane, work.progress.as_ref(), name.as_str()).await?;
    let content = lane.cut().await?;
    let sensitivity = (work.classify)(&name);
    work.progress.finished(name.as_str());
    work.writer
        .record(ArtifactRecord {
            name,
            kind: KIND_LARGE_OBJECTS.to_owned(),
            sensitivity,
            meta: serde_json::json!({"objects": expected, "pieces": pieces, "bytes": bytes, "digest": digest}),
            content,
        })
        .await?;
    let rights = large_object_rights(session).await?;
    let section = serde_json::json!({"section": "large-objects", "objects": expected});
    small(work, lane, LARGE_OBJECT_RIGHTS, KIND_DDL, rights.into_bytes(), section).await
}

/// Owners, rights and comments of large objects, as SQL that can be run again.
async fn large_object_rights(session: &Session) -> Result<String> {
    let rows = session
        .query(
            "SELECT m.oid, pg_catalog.pg_get_userbyid(m.lomowner)::text, \
               pg_catalog.obj_description(m.oid, 'pg_largeobject'), m.lomacl IS NOT NULL, \
               ARRAY(SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END \
                 FROM pg_catalog.aclexplode(m.lomacl) AS a ORDER BY a.grantee, a.privilege_type), \
               ARRAY(SELECT a.privilege_type FROM pg_catalog.aclexplode(m.lomacl) AS a ORDER BY a.grantee, a.privilege_type), \
               ARRAY(SELECT a.is_grantable FROM pg_catalog.aclexplode(m.lomacl) AS a ORDER BY a.grantee, a.privilege_type) \
             FROM pg_catalog.pg_largeobject_metadata m ORDER BY m.oid",
            &[],
        )
        .await
        .map_err(|e| session.error("owners of large objects", &e))?;
    let mut out = String::from("-- Owners and rights of large objects. Run when the large objects are there.\n");
    for row in rows {
        let (oid, owner): (u32, String) = (row.get(0), quote_ident(row.get(1)));
        let object = format!("LARGE OBJECT {oid}");
        out.push_str(&format!("ALTER {object} OWNER TO {owner};\n"));
        if let Some(comment) = row.get::<_, Option<&str>>(2) {
            out.push_str(&format!("COMMENT ON {object} IS {};\n", quote_literal(comment)));
        }
        if !row.get::<_, bool>(3) {
            continue;
        }
        // What is not as it is without being said: the owner may read and write, nobody else anything.
        out.push_str(&format!("REVOKE ALL ON {object} FROM {owner};\n"));
        let (grantees, rights, options): (Vec<String>, Vec<String>, Vec<bool>) = (row.get(4), row.get(5), row.get(6));
        for ((grantee, right), option) in grantees.iter().zip(&rights).zip(options) {
            let option = if option { " WITH GRANT OPTION" } else { "" };
            out.push_str(&format!("GRANT {right} ON {object} TO {grantee}{option};\n"));
        }
    }
    Ok(out)
}
