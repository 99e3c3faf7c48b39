//! How databases are opened, and what a guest's SQL may do.
//!
//! Three walls, each enough by itself: the connection is opened read-only; the guest's text is wrapped in `SELECT * FROM
//! (…)` and must be one statement; an authorizer refuses everything but reading and a list of functions known to be
//! harmless.

use crate::SqliteError;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait for a writer's lock, and how often to ask. SQLite's own waiting asks ever more seldom, up to every
/// 100 ms; against a writer that commits without pause it then hardly ever hits the moment between two commits.
const BUSY: Duration = Duration::from_secs(60);
const ASK: Duration = Duration::from_millis(1);

fn wait_for_lock() -> impl FnMut(i32) -> bool + Send + 'static {
    let mut begun = Instant::now();
    move |asked| {
        if asked == 0 {
            begun = Instant::now();
        }
        std::thread::sleep(ASK);
        begun.elapsed() < BUSY
    }
}

pub(crate) fn show(path: &Path) -> String {
    path.display()
        .to_string()
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

pub(crate) fn failed(path: &Path, action: &'static str, error: &rusqlite::Error) -> SqliteError {
    let hint = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            let why = format!("{error}; free some space");
            return io(action, path)(std::io::Error::new(std::io::ErrorKind::StorageFull, why));
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process holds a lock on it for long; try again when it is idle"
        }
        Some(ErrorCode::NotADatabase) => "name an SQLite database (or it is encrypted, or overwritten)",
        Some(ErrorCode::DatabaseCorrupt) => "restore it from a backup that was verified",
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => "run essrun as a user who may read it",
        Some(ErrorCode::ReadOnly) => {
            "it was left in the middle of a write by a crash: start its service once, so that SQLite recovers it"
        }
        _ => "see SQLite's message",
    };
    SqliteError::Failed {
        path: show(path),
        action,
        why: error.to_string(),
        hint,
    }
}

pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SqliteError {
    let path = show(path);
    move |source| SqliteError::Io { action, path, source }
}

/// Opens an existing database read-only, for our own statements.
pub(crate) fn open_read_only(path: &Path) -> Result<Connection, SqliteError> {
    match path.metadata() {
        Ok(found) if found.is_file() => {}
        Ok(_) => {
            return Err(SqliteError::Invalid {
                what: show(path),
                why: "is no file".into(),
            });
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(SqliteError::Absent { path: show(path) }),
        Err(e) => return Err(io("look at", path)(e)),
    }
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// Opens a database of ours (a copy, a staged restore) for writing. Closing it leaves no `-wal` behind.
pub(crate) fn open_own(path: &Path) -> Result<Connection, SqliteError> {
    open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, SqliteError> {
    let failed = |e: rusqlite::Error| failed(path, "open", &e);
    // Without SQLITE_OPEN_URI: a path is a path.
    let mut connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(failed)?;
    connection.busy_handler(Some(wait_for_lock())).map_err(failed)?;
    // The schema may be hostile: views and triggers get no functions with side effects, no tricks with shadow tables.
    for (setting, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE, false),
    ] {
        connection.set_db_config(setting, value).map_err(failed)?;
    }
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0).map_err(failed)?;
    Ok(connection)
}

/// Puts the walls around a connection for a guest.
pub(crate) fn confine(connection: &mut Connection) -> rusqlite::Result<()> {
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, 64 << 20),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 20),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 200),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 100),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, value)?;
    }
    connection.authorizer(Some(may_look))
}

fn may_look(context: AuthContext<'_>) -> Authorization {
    let allowed = match context.action {
        AuthAction::Select | AuthAction::Recursive | AuthAction::Read { .. } => true,
        AuthAction::Function { function_name } => is_harmless(function_name),
        AuthAction::Pragma {
            pragma_name,
            pragma_value,
        } => is_reading(pragma_name, pragma_value),
        _ => false,
    };
    if allowed {
        Authorization::Allow
    } else {
        Authorization::Deny
    }
}

/// Functions of SQLite that compute and do nothing else.
fn is_harmless(name: &str) -> bool {
    const HARMLESS: &[&str] = &[
        "abs",
        "avg",
        "cast",
        "ceil",
        "ceiling",
        "char",
        "coalesce",
        "concat",
        "concat_ws",
        "count",
        "cume_dist",
        "date",
        "datetime",
        "dense_rank",
        "exp",
        "first_value",
        "floor",
        "format",
        "glob",
        "group_concat",
        "hex",
        "ifnull",
        "iif",
        "instr",
        "json",
        "json_array",
        "json_array_length",
        "json_each",
        "json_error_position",
        "json_extract",
        "json_group_array",
        "json_group_object",
        "json_object",
        "json_patch",
        "json_quote",
        "json_remove",
        "json_replace",
        "json_set",
        "json_tree",
        "json_type",
        "json_valid",
        "julianday",
        "lag",
        "last_value",
        "lead",
        "length",
        "like",
        "ln",
        "log",
        "log10",
        "log2",
        "lower",
        "ltrim",
        "max",
        "min",
        "mod",
        "nth_value",
        "ntile",
        "nullif",
        "octet_length",
        "percent_rank",
        "pow",
        "power",
        "printf",
        "quote",
        "rank",
        "replace",
        "round",
        "row_number",
        "rtrim",
        "sign",
        "sqrt",
        "strftime",
        "string_agg",
        "substr",
        "substring",
        "subtype",
        "sum",
        "time",
        "timediff",
        "total",
        "trim",
        "trunc",
        "typeof",
        "unhex",
        "unicode",
        "unixepoch",
        "upper",
        "->",
        "->>",
    ];
    HARMLESS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Pragmas (as table-valued functions) that only read. `user_version` and its like are written by giving them a value.
fn is_reading(name: &str, value: Option<&str>) -> bool {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "user_version" | "application_id" | "schema_version" | "page_count" | "page_size" | "freelist_count"
        | "encoding" => value.is_none(),
        "table_info" | "table_xinfo" | "table_list" | "index_list" | "index_info" | "index_xinfo"
        | "foreign_key_list" | "foreign_key_check" | "integrity_check" | "quick_check" | "collation_list" => true,
        _ => false,
    }
}
