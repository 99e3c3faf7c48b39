//! What the tests of this room share: dump, restore, compare.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use essrun_artifact::memory::{MemoryBackup, MemoryReader};
use essrun_artifact::{NoProgress, Sensitivity};
use essrun_postgres::dump::{self, DumpPlan, DumpReport, DumpRequest};
use essrun_postgres::restore::{self, Purpose, RestoreOptions, Restored};
use essrun_postgres::{Connection, Result, SnapshotGroup};
use essrun_testkit::postgres::Cluster;
use std::sync::Arc;

pub const PREFIX: &str = "suite/main";

pub fn connection(cluster: &Cluster, database: &str) -> Connection {
    Connection::parse(&cluster.uri(database)).unwrap()
}

pub fn create(cluster: &Cluster, database: &str, sql: &str) {
    cluster
        .psql("postgres", &format!("CREATE DATABASE \"{database}\""))
        .unwrap();
    cluster.psql_script(database, sql).unwrap();
}

pub async fn try_dump(connection: &Connection, request: &DumpRequest) -> Result<(DumpPlan, DumpReport, MemoryReader)> {
    let group = SnapshotGroup::single("main", connection).await?;
    let snapshot = &group.snapshots()[0];
    let plan = dump::plan(snapshot, request).await?;
    let backup = MemoryBackup::new();
    let report = dump::execute(
        snapshot,
        plan.clone(),
        PREFIX,
        Arc::new(backup.clone()),
        Arc::new(|_| Sensitivity::Secret),
        Arc::new(NoProgress),
    )
    .await?;
    group.check().await?;
    Ok((plan, report, backup.commit()?))
}

pub async fn dump(connection: &Connection, request: &DumpRequest) -> (DumpPlan, DumpReport, MemoryReader) {
    try_dump(connection, request).await.unwrap()
}

pub async fn try_restore(reader: MemoryReader, target: &Connection, options: &RestoreOptions) -> Result<Restored> {
    let plan = restore::plan(&reader, PREFIX, target, options).await?;
    let mut restored = restore::execute(Arc::new(reader), &plan, target, options, Arc::new(NoProgress)).await?;
    restored.settle().await?;
    Ok(restored)
}

pub fn drill(database: &str) -> RestoreOptions {
    RestoreOptions::new("run-1", database, Purpose::Drill)
}

/// The definitions as text, without what differs by run.
pub fn schema(cluster: &Cluster, database: &str) -> String {
    let output = cluster
        .client("pg_dump")
        .args(["--schema-only", "--quote-all-identifiers"])
        .env("PGDATABASE", database)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every table's rows (its own, not its children's) as count and digest, every sequence's position, every large object.
pub fn contents(cluster: &Cluster, database: &str) -> Vec<String> {
    let list = cluster
        .psql(
            database,
            "SELECT pg_catalog.json_agg(pg_catalog.json_build_array(c.relkind, pg_catalog.format('%I.%I', n.nspname, c.relname)) \
               ORDER BY n.nspname, c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'S', 'm') AND c.relispopulated AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
        )
        .unwrap();
    let list: Vec<(String, String)> = serde_json::from_str(&list).unwrap_or_default();
    let mut script = String::from("SET extra_float_digits = 3;\n");
    for (kind, name) in &list {
        if kind == "S" {
            script.push_str(&format!("SELECT 'sequence', last_value, is_called FROM {name};\n"));
        } else {
            script.push_str(&format!(
                "SELECT 'table', count(*), md5(COALESCE(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) \
                 FROM ONLY {name} AS t;\n"
            ));
        }
    }
    script.push_str(
        "SELECT 'large objects', oid, length(lo_get(oid)), md5(lo_get(oid)), lomowner::regrole, obj_description(oid, 'pg_largeobject'), \
           ARRAY(SELECT concat_ws(' ', CASE WHEN a.grantee > 0 THEN pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable) FROM aclexplode(lomacl) a ORDER BY 1) \
         FROM pg_largeobject_metadata ORDER BY oid;\n",
    );
    let answers = cluster.psql_script(database, &script).unwrap();
    let mut lines: Vec<String> = answers.lines().map(str::to_owned).collect();
    for ((_, name), line) in list.iter().zip(&mut lines) {
        *line = format!("{name}: {line}");
    }
    lines
}

/// Both databases hold the same, definitions and rows.
pub fn assert_same(source: (&Cluster, &str), target: (&Cluster, &str)) {
    let (a, b) = (schema(source.0, source.1), schema(target.0, target.1));
    for (a, b) in a.lines().zip(b.lines()) {
        assert_eq!(a, b);
    }
    assert_eq!(a.len(), b.len());
    let (a, b) = (contents(source.0, source.1), contents(target.0, target.1));
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a, b);
    }
    assert_eq!(a.len(), b.len());
}

/// Every awkward shape a database can have.
pub const AWKWARD: &str = include_str!("../data/awkward.sql");
