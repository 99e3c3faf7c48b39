//! A world in memory, so that a component's rules can be tested with plain `cargo test`.
//!
//! A test says what the databases answer, which files there are and what the settings say, then calls the component
//! inside [`World::run`]. It keeps the contract strictly where a component could go wrong unnoticed: what was not
//! described is `denied`, a query nobody answers is an error that shows the query, pages are small, and `..` is
//! refused. It is not compiled for wasm and must never be needed by a component's own code.
//!
//! ```
//! use essrun_guest::{db, mock::{Database, World}};
//!
//! let n = World::new()
//!     .database("main", Database::postgres().answer("count(*)", &[&[7i64.into()]]))
//!     .run(|| db::count("main", "SELECT count(*) FROM public.pages", &[]));
//! assert_eq!(n, Ok(7));
//! ```

use crate::InspectError;
use crate::bindings::ess::inspect::database::{Cell, DatabaseInfo, Engine, TableInfo, TableKind};
use crate::bindings::ess::inspect::log::Level;
use crate::bindings::ess::inspect::volume::{Entry, EntryKind, FileDigest};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Rows of an answer.
pub type Cells = Vec<Vec<Cell>>;

/// Answers a query with `Some`, or leaves it to the next.
pub type Answer = Rc<dyn Fn(&str, &[Cell]) -> Option<Result<Cells, InspectError>>>;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// All a component can see.
#[derive(Clone, Default)]
pub struct World {
    databases: BTreeMap<String, Database>,
    volumes: BTreeMap<String, Volume>,
    settings: serde_json::Map<String, serde_json::Value>,
    seen: Rc<RefCell<Seen>>,
}

#[derive(Default)]
struct Seen {
    queries: Vec<(String, String)>,
    lines: Vec<(Level, String)>,
}

impl World {
    /// Nothing is granted, nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Grants a database.
    pub fn database(mut self, label: &str, database: Database) -> Self {
        self.databases.insert(label.into(), database);
        self
    }

    /// Grants a volume.
    pub fn volume(mut self, label: &str, volume: Volume) -> Self {
        self.volumes.insert(label.into(), volume);
        self
    }

    /// Sets a setting.
    pub fn setting(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Calls `f` with this world around it; looks of the same thread go here.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Restore(Option<World>);
        impl Drop for Restore {
            fn drop(&mut self) {
                WORLD.with(|w| *w.borrow_mut() = self.0.take());
            }
        }
        let _restore = Restore(WORLD.with(|w| w.borrow_mut().replace(self.clone())));
        f()
    }

    /// The queries that were run, as (label, SQL).
    pub fn queries(&self) -> Vec<(String, String)> {
        self.seen.borrow().queries.clone()
    }

    /// The lines that were logged.
    pub fn lines(&self) -> Vec<(Level, String)> {
        self.seen.borrow().lines.clone()
    }
}

/// A database: its facts, its tables, its answers.
#[derive(Clone)]
pub struct Database {
    info: DatabaseInfo,
    tables: Vec<TableInfo>,
    rows: BTreeMap<String, u64>,
    answers: Vec<Answer>,
}

impl Database {
    /// A PostgreSQL database as Synapse wants it: UTF8, C, C.
    pub fn postgres() -> Self {
        Database {
            info: DatabaseInfo {
                engine: Engine::Postgres,
                server_version_number: 150_018,
                encoding: "UTF8".into(),
                collate: "C".into(),
                ctype: "C".into(),
                size_bytes: 10_000_000,
            },
            tables: Vec::new(),
            rows: BTreeMap::new(),
            answers: Vec::new(),
        }
    }

    /// An SQLite database.
    pub fn sqlite() -> Self {
        let mut database = Database::postgres();
        database.info.engine = Engine::Sqlite;
        database.info.server_version_number = 3_046_000;
        database.info.encoding = "UTF-8".into();
        database.info.collate.clear();
        database.info.ctype.clear();
        database
    }

    /// Another version of the server, as `server_version_num`.
    pub fn version(mut self, number: u32) -> Self {
        self.info.server_version_number = number;
        self
    }

    /// Another encoding and locale.
    pub fn locale(mut self, encoding: &str, collate: &str, ctype: &str) -> Self {
        self.info.encoding = encoding.into();
        self.info.collate = collate.into();
        self.info.ctype = ctype.into();
        self
    }

    /// A table `schema.name`, with its columns and as many rows (its estimate, and what counting it gives).
    pub fn table(self, full_name: &str, columns: &[&str], rows: u64) -> Self {
        self.relation(full_name, TableKind::Table, columns, rows)
    }

    /// A relation of any kind. Said again, it replaces the former one.
    pub fn relation(mut self, full_name: &str, kind: TableKind, columns: &[&str], rows: u64) -> Self {
        let (schema, name) = full_name.split_once('.').unwrap_or(("main", full_name));
        self.tables.retain(|t| !(t.schema == schema && t.name == name));
        self.tables.push(TableInfo {
            schema: schema.into(),
            name: name.into(),
            kind,
            estimated_rows: Some(rows),
            size_bytes: rows.saturating_mul(100),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
        });
        self.tables
            .sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        self.rows.insert(full_name.into(), rows);
        self
    }

    /// What counting a table gives, if not its estimate.
    pub fn counts(mut self, full_name: &str, rows: u64) -> Self {
        self.rows.insert(full_name.into(), rows);
        self
    }

    /// Queries that contain `fragment` give these rows. Later answers are tried first.
    pub fn answer(self, fragment: &str, rows: &[&[Cell]]) -> Self {
        let fragment = fragment.to_owned();
        let rows: Cells = rows.iter().map(|r| r.to_vec()).collect();
        self.answer_with(move |sql, _| sql.contains(&fragment).then(|| Ok(rows.clone())))
    }

    /// Queries that contain `fragment` fail.
    pub fn fail(self, fragment: &str, error: InspectError) -> Self {
        let fragment = fragment.to_owned();
        self.answer_with(move |sql, _| sql.contains(&fragment).then(|| Err(error.clone())))
    }

    /// Queries are answered by a function; `None` leaves it to the others. Later answers are tried first.
    pub fn answer_with(
        mut self,
        answer: impl Fn(&str, &[Cell]) -> Option<Result<Cells, InspectError>> + 'static,
    ) -> Self {
        self.answers.push(Rc::new(answer));
        self
    }

    /// `SELECT i, count(*) AS n FROM ONLY "s"."t" UNION ALL …` and a lone `SELECT count(*) FROM …` of known tables.
    fn counted(&self, sql: &str) -> Option<Result<Cells, InspectError>> {
        let mut rows = Vec::new();
        for part in sql.split(" UNION ALL ") {
            let rest = part.strip_prefix("SELECT ")?;
            let (head, from) = rest.split_once(" FROM ")?;
            let name = from.trim_start_matches("ONLY ").replace('"', "");
            let n = Cell::Integer(i64::try_from(*self.rows.get(&name)?).ok()?);
            match head {
                "count(*)" => rows.push(vec![n]),
                _ => {
                    let (index, count) = head.split_once("::bigint AS i, ")?;
                    if count != "count(*) AS n" {
                        return None;
                    }
                    rows.push(vec![Cell::Integer(index.parse().ok()?), n]);
                }
            }
        }
        Some(Ok(rows))
    }
}

/// A file tree.
#[derive(Clone, Default)]
pub struct Volume {
    files: BTreeMap<String, Rc<Vec<u8>>>,
    others: BTreeMap<String, EntryKind>,
    owner: (u32, u32),
    owners: BTreeMap<String, (u32, u32)>,
}

impl Volume {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file; its directories come with it.
    pub fn file(mut self, path: &str, contents: impl AsRef<[u8]>) -> Self {
        self.files.insert(path.into(), Rc::new(contents.as_ref().to_vec()));
        self
    }

    /// A directory, symlink or special file.
    pub fn entry(mut self, path: &str, kind: EntryKind) -> Self {
        self.others.insert(path.into(), kind);
        self
    }

    /// Numeric owner and group of all entries.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Numeric owner and group of one path.
    pub fn owner_of(mut self, path: &str, uid: u32, gid: u32) -> Self {
        self.owners.insert(path.into(), (uid, gid));
        self
    }

    fn directories(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for path in self.files.keys().chain(self.others.keys()) {
            for (at, _) in path.match_indices('/') {
                all.insert(path.get(..at).unwrap_or_default().to_owned());
            }
        }
        all.extend(
            self.others
                .iter()
                .filter(|(_, k)| **k == EntryKind::Directory)
                .map(|(p, _)| p.clone()),
        );
        all
    }

    fn look(&self, path: &str) -> Option<Entry> {
        let (kind, size) = match (self.files.get(path), self.others.get(path)) {
            (Some(bytes), _) => (EntryKind::File, bytes.len() as u64),
            (None, Some(kind)) => (*kind, 0),
            (None, None) if path.is_empty() || self.directories().contains(path) => (EntryKind::Directory, 0),
            (None, None) => return None,
        };
        let owner = self.owners.get(path).unwrap_or(&self.owner);
        Some(Entry {
            path: path.into(),
            kind,
            size_bytes: size,
            mode: if kind == EntryKind::Directory { 0o755 } else { 0o644 },
            uid: owner.0,
            gid: owner.1,
            modified_unix_seconds: 1_700_000_000,
        })
    }
}

/// The looks themselves, called by the rest of the crate.
pub(crate) mod looks {
    use super::*;

    fn with<T>(f: impl FnOnce(&World) -> Result<T, InspectError>) -> Result<T, InspectError> {
        WORLD.with(|w| match w.borrow().as_ref() {
            Some(world) => f(world),
            None => Err(InspectError::Other(
                "no mock world here: call this inside World::run".into(),
            )),
        })
    }

    fn denied(label: &str) -> InspectError {
        InspectError::Denied(format!("`{label}` is not granted, or not there"))
    }

    fn clean(path: &str) -> Result<(), InspectError> {
        let bad = path.starts_with('/') || path.split('/').any(|s| s == ".." || s == ".");
        match bad {
            true => Err(InspectError::Invalid(format!("path {path:?}"))),
            false => Ok(()),
        }
    }

    pub struct Rows {
        rows: RefCell<std::vec::IntoIter<Vec<Cell>>>,
        columns: Vec<String>,
    }

    impl Rows {
        pub fn columns(&self) -> Vec<String> {
            self.columns.clone()
        }
        /// Small pages, so that paging is exercised.
        pub fn next(&self, max_rows: u32) -> Result<Cells, InspectError> {
            let most = usize::try_from(max_rows.min(3)).unwrap_or(3);
            Ok(self.rows.borrow_mut().by_ref().take(most).collect())
        }
    }

    pub struct Listing {
        entries: RefCell<std::vec::IntoIter<Entry>>,
    }

    impl Listing {
        pub fn next(&self, max_entries: u32) -> Result<Vec<Entry>, InspectError> {
            let most = usize::try_from(max_entries.min(3)).unwrap_or(3);
            Ok(self.entries.borrow_mut().by_ref().take(most).collect())
        }
    }

    pub fn info(label: &str) -> Result<DatabaseInfo, InspectError> {
        with(|w| {
            w.databases
                .get(label)
                .map(|d| d.info.clone())
                .ok_or_else(|| denied(label))
        })
    }

    pub fn tables(label: &str) -> Result<Vec<TableInfo>, InspectError> {
        with(|w| {
            w.databases
                .get(label)
                .map(|d| d.tables.clone())
                .ok_or_else(|| denied(label))
        })
    }

    pub fn query(label: &str, sql: &str, params: &[Cell]) -> Result<Rows, InspectError> {
        with(|w| {
            let database = w.databases.get(label).ok_or_else(|| denied(label))?;
            w.seen.borrow_mut().queries.push((label.into(), sql.into()));
            if sql.trim_end().ends_with(';') {
                return Err(InspectError::Invalid("a query must not end in a semicolon".into()));
            }
            let rows = database
                .answers
                .iter()
                .rev()
                .find_map(|a| a(sql, params))
                .or_else(|| database.counted(sql))
                .unwrap_or_else(|| Err(InspectError::Failed(format!("the mock world has no answer to: {sql}"))))?;
            let columns = (1..=rows.first().map_or(0, Vec::len))
                .map(|i| format!("column{i}"))
                .collect();
            Ok(Rows {
                rows: RefCell::new(rows.into_iter()),
                columns,
            })
        })
    }

    pub fn walk(label: &str, directory: &str, recursive: bool) -> Result<Listing, InspectError> {
        with(|w| {
            let volume = w.volumes.get(label).ok_or_else(|| denied(label))?;
            clean(directory)?;
            if volume.look(directory).is_none_or(|e| e.kind != EntryKind::Directory) {
                return Err(denied(directory));
            }
            let prefix = if directory.is_empty() {
                String::new()
            } else {
                format!("{directory}/")
            };
            let paths: BTreeSet<String> = volume
                .files
                .keys()
                .chain(volume.others.keys())
                .cloned()
                .chain(volume.directories())
                .filter(|p| {
                    p.strip_prefix(&prefix)
                        .is_some_and(|r| !r.is_empty() && (recursive || !r.contains('/')))
                })
                .collect();
            let entries: Vec<Entry> = paths.iter().filter_map(|p| volume.look(p)).collect();
            Ok(Listing {
                entries: RefCell::new(entries.into_iter()),
            })
        })
    }

    pub fn look(label: &str, paths: &[String]) -> Result<Vec<Option<Entry>>, InspectError> {
        with(|w| {
            let volume = w.volumes.get(label).ok_or_else(|| denied(label))?;
            if paths.len() > crate::volume::PATHS_A_CALL {
                return Err(InspectError::Limit("1000 paths a call".into()));
            }
            paths.iter().map(|p| clean(p).map(|()| volume.look(p))).collect()
        })
    }

    pub fn read(label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, InspectError> {
        with(|w| {
            let volume = w.volumes.get(label).ok_or_else(|| denied(label))?;
            clean(path)?;
            let bytes = volume.files.get(path).ok_or_else(|| denied(path))?;
            match bytes.len() as u64 <= u64::from(max_bytes).min(1 << 20) {
                true => Ok(bytes.to_vec()),
                false => Err(InspectError::Limit(format!("{path} is longer than {max_bytes} bytes"))),
            }
        })
    }

    pub fn digest(label: &str, paths: &[String]) -> Result<Vec<Option<FileDigest>>, InspectError> {
        with(|w| {
            let volume = w.volumes.get(label).ok_or_else(|| denied(label))?;
            if paths.len() > crate::volume::PATHS_A_CALL {
                return Err(InspectError::Limit("1000 paths a call".into()));
            }
            paths
                .iter()
                .map(|p| {
                    clean(p)?;
                    Ok(volume.files.get(p).map(|bytes| FileDigest {
                        size_bytes: bytes.len() as u64,
                        sha256: Sha256::digest(bytes.as_slice())
                            .iter()
                            .map(|b| format!("{b:02x}"))
                            .collect(),
                    }))
                })
                .collect()
        })
    }

    pub fn settings() -> String {
        WORLD.with(|w| match w.borrow().as_ref() {
            Some(world) => serde_json::Value::Object(world.settings.clone()).to_string(),
            None => "{}".into(),
        })
    }

    pub fn log(level: Level, message: &str) {
        WORLD.with(|w| {
            if let Some(world) = w.borrow().as_ref() {
                world.seen.borrow_mut().lines.push((level, message.into()));
            }
        });
    }
}
