//! The checks of a restored Synapse, in the order a person would want to read them.

use crate::{ONE_TIME_KEYS, config, facts, media, settings::Settings, streams};
use essrun_guest::{db::TableInfo, listed, prelude::*};

const AGAIN: &str = "do not use this restore: remove the target database and restore again into a fresh one";

/// All of them.
pub fn verify(backup: &BackupView, settings: &Settings) -> Result<Vec<Finding>, Error> {
    let mut findings = Findings::new();
    // Without it only other parts are restored: `main` is the live one, of which the backup knows nothing.
    let restored = backup.holds("main");
    if !restored && db::granted("main")?.is_none() {
        findings.push(check("synapse-database").warn(
            "there is no database beside which these parts are restored, so nothing was compared with it",
            "restore the database of the same backup as well",
        ));
        config::verify(&mut findings, backup, &[], settings)?;
        return Ok(findings.into());
    }
    let tables = facts::known_schema()?;
    let mut databases = Vec::new();
    if restored {
        databases.push(("main", tables.clone()));
    }
    if backup.holds("state") {
        databases.push(("state", db::tables("state")?));
    }
    for (label, tables) in &databases {
        locale(&mut findings, backup, label)?;
        server(&mut findings, backup, label)?;
        versions(&mut findings, backup, label)?;
        single_rows(&mut findings, backup, label, tables)?;
        streams::verify(&mut findings, label, tables)?;
        duplicates(&mut findings, backup, label)?;
    }
    if restored {
        one_time_keys(&mut findings, backup)?;
        membership_tables(&mut findings, backup, &tables)?;
    }
    media::verify(&mut findings, backup, &tables, settings)?;
    config::verify(&mut findings, backup, &tables, settings)?;
    Ok(findings.into())
}

/// Synapse refuses any locale but C, and a wrong one makes joins miss rows.
fn locale(findings: &mut Findings, backup: &BackupView, label: &str) -> Result<(), Error> {
    let found = facts::locale(label)?;
    let check = check(format!("synapse-locale-{label}"));
    let remedy = "create the database with --encoding=UTF8 --locale=C --template=template0 and restore again";
    findings.push(if found == "UTF8 C C" {
        check.pass("UTF8, collation C, character type C")
    } else if backup.fact(&format!("locale/{label}")) == Some(found.as_str()) {
        check.warn(
            format!("{found}, as in the backup: Synapse starts only with allow_unsafe_locale"),
            "move to a database with locale C while you are at it",
        )
    } else {
        check.fail(format!("{found}; Synapse needs UTF8 C C"), remedy)
    });
    Ok(())
}

/// Synapse refuses a server older than this, whatever its settings say.
const OLDEST_SERVER: i64 = 140_000;

fn server(findings: &mut Findings, backup: &BackupView, label: &str) -> Result<(), Error> {
    let found = i64::from(db::info(label)?.server_version_number);
    let said = |number: i64| format!("PostgreSQL {}", number / 10_000);
    let check = check(format!("synapse-server-{label}"));
    let remedy = "restore to a server of PostgreSQL 14 or newer";
    findings.push(match backup.fact_integer(&format!("server-version/{label}")) {
        _ if found >= OLDEST_SERVER => check.pass(said(found)),
        Some(before) if before >= OLDEST_SERVER => check.fail(
            format!(
                "{}, the backup is of {}: Synapse starts with 14 or newer only",
                said(found),
                said(before)
            ),
            remedy,
        ),
        // A Synapse of that time may still go with it.
        _ => check.warn(
            format!("{}: Synapse of today starts with 14 or newer only", said(found)),
            remedy,
        ),
    });
    Ok(())
}

fn versions(findings: &mut Findings, backup: &BackupView, label: &str) -> Result<(), Error> {
    let check = check(format!("synapse-versions-{label}"));
    let (version, compat) = facts::versions(label)?;
    let recorded = (
        backup.fact_integer(&format!("schema-version/{label}")),
        backup.fact_integer(&format!("schema-compat-version/{label}")),
    );
    let said = |v: (Option<i64>, Option<i64>)| {
        let word = |n: Option<i64>| n.map_or("none".to_owned(), |n| n.to_string());
        format!("schema version {}, compatible with {}", word(v.0), word(v.1))
    };
    findings.push(if version.is_none() {
        check.fail(
            "public.schema_version is empty: Synapse would build its schema over the existing one",
            AGAIN,
        )
    } else if (version, compat) == recorded {
        let was = match backup.fact("version") {
            Some(version) => format!("Synapse {version}, which was running"),
            None => "the version that was running".to_owned(),
        };
        check.pass(format!(
            "{}: best start {was}. One whose own schema is older than the latter refuses to start, a newer one moves the \
             schema on, and there is no way back",
            said(recorded)
        ))
    } else {
        check.fail(
            format!("{}; the backup has {}", said((version, compat)), said(recorded)),
            AGAIN,
        )
    });
    Ok(())
}

/// Tables that must have exactly one row; those that had another number in the backup already are its fault.
fn single_rows(findings: &mut Findings, backup: &BackupView, label: &str, tables: &[TableInfo]) -> Result<(), Error> {
    let single: Vec<&TableInfo> = facts::single_row_tables(tables).collect();
    let (mut wrong, mut odd) = (Vec::new(), Vec::new());
    for (table, rows) in single.iter().zip(db::counts_only(label, &single)?) {
        let name = table.full_name();
        let before = backup.fact_integer(&format!("single-row/{label}/{name}"));
        if rows != 1 && before == Some(rows) {
            odd.push(format!("{name} has {rows}, as in the backup"));
        } else if rows != 1 {
            wrong.push(format!("{name} has {rows}"));
        }
    }
    // A table that was there and is not any more.
    let prefix = format!("single-row/{label}/");
    for (name, _) in backup.facts_below(&prefix) {
        if !db::has(tables, name) {
            wrong.push(format!("{name} is missing"));
        }
    }
    let check = check(format!("synapse-single-rows-{label}"));
    findings.push(if !wrong.is_empty() {
        check.fail(
            format!("must have one row: {}", listed(&wrong, 20)),
            format!("Synapse would start and then fail, for instance every /sync with 404; {AGAIN}"),
        )
    } else if !odd.is_empty() {
        check.warn(
            format!("must have one row: {}", listed(&odd, 20)),
            "the backed up Synapse was damaged already; put the missing rows in before the start",
        )
    } else {
        check.pass(format!("{} tables have their one row", single.len()))
    });
    Ok(())
}

/// Tables without any unique index take every row twice without complaint, so their rows are counted.
fn duplicates(findings: &mut Findings, backup: &BackupView, label: &str) -> Result<(), Error> {
    let mut without_index = Vec::new();
    let rows = db::query(
        label,
        "SELECT n.nspname || '.' || c.relname AS name FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
         AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique)",
        &[],
    )?;
    for row in rows {
        without_index.push(row?.get::<String>(0)?);
    }
    // Small tables are counted as well: it costs nothing, and an error in them is an error.
    let small = |name: &str| {
        let rows = backup.artifact(&format!("{label}/{name}")).and_then(|a| a.items);
        rows.is_some_and(|n| n <= 100_000)
    };
    findings.row_counts_of(backup, label, |name| {
        without_index.iter().any(|t| t == name) || small(name)
    })
}

/// The row of a query that gives one.
fn one_row(label: &str, sql: &str) -> Result<db::Row, Error> {
    let nothing = || Error::Inspect(format!("{label}: nothing came back for {sql}"));
    db::query(label, sql, &[])?.next().ok_or_else(nothing)?
}

fn one_time_keys(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    const FALLBACK: &str = "public.e2e_fallback_keys_json";
    let sql = format!(
        "SELECT (SELECT count(*) FROM {ONE_TIME_KEYS}) AS one_time, (SELECT count(*) FROM {FALLBACK}) AS fallback"
    );
    let row = one_row("main", &sql)?;
    let (left, kept): (i64, i64) = (row.get(0)?, row.get(1)?);
    findings.push(if left == 0 {
        check("synapse-one-time-keys-empty").pass("no one-time key was restored; clients upload new ones")
    } else {
        check("synapse-one-time-keys-empty").fail(
            format!("{left} one-time keys are there: keys already claimed would be handed out again"),
            format!("TRUNCATE {ONE_TIME_KEYS} before Synapse starts"),
        )
    });
    let expected = backup.artifact(&format!("main/{FALLBACK}")).and_then(|a| a.items);
    let check = check("synapse-fallback-keys");
    findings.push(match expected {
        Some(n) if u64::try_from(kept) == Ok(n) => check.pass(format!("all {n} fallback keys are there")),
        Some(n) => check.fail(format!("{kept} fallback keys, the backup has {n}"), AGAIN),
        None => check.fail(
            format!("the backup holds no data of {FALLBACK}; {kept} rows are there"),
            "until clients have uploaded new one-time keys, nobody can send them encrypted messages; take another backup",
        ),
    });
    Ok(())
}

/// Their triggers fail when data is loaded with an empty search_path, and a careless restore goes on without them.
fn membership_tables(findings: &mut Findings, backup: &BackupView, tables: &[TableInfo]) -> Result<(), Error> {
    const TABLES: [&str; 4] = [
        "events",
        "room_memberships",
        "current_state_events",
        "local_current_membership",
    ];
    let there = |table: &&str| db::has(tables, &format!("public.{table}"));
    let present: Vec<&str> = TABLES.into_iter().filter(there).collect();
    let each = present
        .iter()
        .map(|t| format!("EXISTS (SELECT 1 FROM public.{t}) AS {t}"));
    let row = one_row("main", &format!("SELECT {}", each.collect::<Vec<_>>().join(", ")))?;
    let any = |table: &str| match present.iter().position(|t| *t == table) {
        Some(column) => row.get::<bool>(column),
        None => Ok(false),
    };
    let check = check("synapse-membership-tables");
    if !any("events")? {
        findings.push(check.pass("there are no events"));
        return Ok(());
    }
    let (mut wrong, mut odd) = (Vec::new(), Vec::new());
    for table in TABLES.into_iter().skip(1) {
        if any(table)? {
            continue;
        }
        match backup.artifact(&format!("main/public.{table}")).and_then(|a| a.items) {
            Some(0) => odd.push(table),
            _ => wrong.push(table),
        }
    }
    findings.push(if !wrong.is_empty() {
        check.fail(format!("there are events, but nothing in {}", wrong.join(", ")), AGAIN)
    } else if !odd.is_empty() {
        check.warn(
            format!("there are events, but nothing in {}, as in the backup", odd.join(", ")),
            "a server with local users in rooms has rows there; look at the source",
        )
    } else {
        check.pass("events, memberships and current state are there together")
    });
    Ok(())
}
