//! What is learned of a database while it is backed up, so that a restored one can be compared.

use crate::streams;
use essrun_guest::{db::Engine, db::TableInfo, db::TableKind, prelude::*};

/// Tables whose rows are counted exactly while they are of moderate size; the host counts every table it dumps anyway,
/// these are for the person who reads the backup's facts.
const COUNTED: &[&str] = &[
    "users",
    "devices",
    "access_tokens",
    "rooms",
    "room_aliases",
    "events",
    "room_memberships",
    "local_current_membership",
    "current_state_events",
    "local_media_repository",
    "e2e_device_keys_json",
    "e2e_fallback_keys_json",
    "e2e_one_time_keys_json",
    "e2e_room_keys",
    "e2e_room_keys_versions",
    "account_data",
    "pushers",
    "background_updates",
    "federation_stream_position",
    "state_groups",
];

/// Beyond this a count takes longer than it is worth.
const MODERATE_ROWS: u64 = 1_000_000;
/// The same for tables that were never analysed.
const MODERATE_BYTES: u64 = 256 << 20;

/// Refuses what is not Synapse on PostgreSQL; else the relations of `main`.
pub fn known_schema() -> Result<Vec<TableInfo>, Error> {
    if db::info("main")?.engine != Engine::Postgres {
        return Err(Error::Unsupported(
            "`main` is SQLite: Synapse on SQLite is meant for testing only; move it with synapse_port_db, or take the \
             file with the component `generic`"
                .into(),
        ));
    }
    let tables = db::tables("main")?;
    for table in [
        "public.events",
        "public.users",
        "public.schema_version",
        crate::ONE_TIME_KEYS,
    ] {
        if !db::has(&tables, table) {
            return Err(Error::Unsupported(format!(
                "`main` has no table {table}, so it is not Synapse's database; check the grant `main` in pipeline.toml"
            )));
        }
    }
    Ok(tables)
}

/// The tables that have exactly one row by construction: they carry a column `lock` with one allowed value.
pub fn single_row_tables(tables: &[TableInfo]) -> impl Iterator<Item = &TableInfo> {
    tables
        .iter()
        .filter(|t| t.kind == TableKind::Table && t.schema == "public" && t.has_column("lock"))
}

/// Encoding, collation and character type in one word.
pub fn locale(label: &str) -> Result<String, Error> {
    let info = db::info(label)?;
    Ok(format!("{} {} {}", info.encoding, info.collate, info.ctype))
}

/// The schema's version and the oldest it is compatible with; `None` where the table or its row is missing.
pub fn versions(label: &str) -> Result<(Option<i64>, Option<i64>), Error> {
    Ok((
        db::scalar(label, "SELECT version FROM public.schema_version", &[])?,
        db::scalar(label, "SELECT compat_version FROM public.schema_compat_version", &[])?,
    ))
}

/// Adds the facts of one database.
pub fn record(mut plan: BackupPlan, label: &str, tables: &[TableInfo]) -> Result<BackupPlan, Error> {
    plan = plan.fact(format!("locale/{label}"), locale(label)?).fact(
        format!("server-version/{label}"),
        db::info(label)?.server_version_number,
    );
    let (version, compat) = versions(label)?;
    if let Some(version) = version {
        plan = plan.fact(format!("schema-version/{label}"), version);
    }
    if let Some(compat) = compat {
        plan = plan.fact(format!("schema-compat-version/{label}"), compat);
    }

    let moderate = |t: &&TableInfo| match t.estimated_rows {
        Some(rows) => rows < MODERATE_ROWS,
        None => t.size_bytes < MODERATE_BYTES,
    };
    let counted: Vec<&TableInfo> = tables
        .iter()
        .filter(|t| t.schema == "public" && t.kind == TableKind::Table && COUNTED.contains(&t.name.as_str()))
        .filter(moderate)
        .collect();
    for (table, rows) in counted.iter().zip(db::counts_only(label, &counted)?) {
        plan = plan.fact(format!("rows/{label}/{}", table.full_name()), rows);
    }

    let single: Vec<&TableInfo> = single_row_tables(tables).collect();
    for (table, rows) in single.iter().zip(db::counts_only(label, &single)?) {
        plan = plan.fact(format!("single-row/{label}/{}", table.full_name()), rows);
        if rows != 1 {
            plan = plan.warn(format!(
                "{} has {rows} rows instead of one: Synapse does not work properly, and will not after a restore",
                table.full_name()
            ));
        }
    }

    if db::has(tables, "public.stream_positions") {
        let positions = db::query(
            label,
            "SELECT stream_name, instance_name, stream_id FROM public.stream_positions ORDER BY 1, 2",
            &[],
        )?;
        for row in positions {
            let row = row?;
            let (stream, instance) = (row.get::<String>(0)?, row.get::<String>(1)?);
            plan = plan.fact(
                format!("stream-position/{label}/{stream}/{instance}"),
                row.get::<i64>(2)?,
            );
        }
    }
    if db::has(tables, "public.background_updates") {
        let pending = db::count(label, "SELECT count(*) FROM public.background_updates", &[])?;
        if pending > 0 {
            plan = plan.note(format!(
                "{pending} background updates are under way; the restored Synapse goes on with them"
            ));
        }
    }
    streams::record(plan, label, tables)
}
