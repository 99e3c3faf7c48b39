//! Plans no honest component makes: things not granted, paths and SQL that try to get out, texts and lists without end.

use essrun_guest::prelude::*;
use essrun_guest::{BackupPlan, Fact, Note, PathRule, RowFilter, TableRule, db, volume};

fn dump(rules: Vec<TableRule>, filters: Vec<RowFilter>) -> BackupPlan {
    let mut dump = DumpDatabase::all("main");
    dump.leave_out_data = rules;
    dump.row_filters = filters;
    BackupPlan::new().dump(dump)
}

fn keep(table: &str, condition: &str) -> BackupPlan {
    let filter = RowFilter {
        table: table.into(),
        keep_where: condition.into(),
        why: "a trick".into(),
    };
    dump(vec![], vec![filter])
}

fn take(pattern: &str) -> BackupPlan {
    let rule = PathRule {
        pattern: pattern.into(),
        why: "a trick".into(),
    };
    BackupPlan::new().step(BackupStep::ArchiveVolume(ArchiveVolume {
        volume: "files".into(),
        take: vec![rule],
        leave_out: vec![],
    }))
}

trait Push {
    fn step(self, step: BackupStep) -> Self;
}

impl Push for BackupPlan {
    fn step(mut self, step: BackupStep) -> Self {
        self.steps.push(step);
        self
    }
}

/// Whether a query gave rows, and if not what was said.
fn tried(sql: &str) -> Error {
    let answer = db::query("main", sql, &[]).and_then(db::Rows::all);
    Error::Other(match answer {
        Ok(rows) => format!("GOT {} rows", rows.len()),
        Err(error) => format!("denied: {error:?}"),
    })
}

/// The plan of a deed; `None` for a deed that is not of this kind.
pub fn plan(deed: &str) -> Option<Result<BackupPlan, Error>> {
    let fact = |key: &str, value: &str| {
        BackupStep::RecordFact(Fact {
            key: key.into(),
            value: value.into(),
        })
    };
    let note = |text: String| {
        BackupStep::Note(Note {
            severity: Severity::Warning,
            text,
        })
    };
    let rule = |table: &str| TableRule {
        table: table.into(),
        why: "a trick".into(),
    };
    Some(match deed {
        // Calls everything internal (its description does), and takes it all.
        "lie" => Ok(dump(vec![], vec![]).archive(ArchiveVolume::all("files"))),
        "dump-ungranted" => Ok(BackupPlan::new().dump(DumpDatabase::all("other"))),
        "archive-ungranted" => Ok(BackupPlan::new().archive(ArchiveVolume::all("root"))),
        "archive-database" => Ok(BackupPlan::new().archive(ArchiveVolume::all("main"))),
        "dump-volume" => Ok(BackupPlan::new().dump(DumpDatabase::all("files"))),
        "copy-postgres" => Ok(BackupPlan::new().copy_sqlite(CopySqlite {
            database: "main".into(),
        })),
        "dump-twice" => Ok(BackupPlan::new()
            .dump(DumpDatabase::all("main"))
            .dump(DumpDatabase::all("main"))),
        "label-path" => Ok(BackupPlan::new().archive(ArchiveVolume::all("../files"))),
        "take-above" => Ok(take("../../etc/**")),
        "take-root" => Ok(take("/etc/passwd")),
        "take-escape" => Ok(take("a\u{1b}]0;owned\u{7}/**")),
        "take-long" => Ok(take(&"*a".repeat(20_000))),
        "filter-ends" => Ok(keep("public.item", "true); DROP TABLE public.item; --")),
        "filter-closes" => Ok(keep("public.item", "true) TO PROGRAM 'touch /tmp/owned' --")),
        "filter-function" => Ok(keep("public.item", "pg_read_file('/etc/passwd') IS NOT NULL")),
        "filter-writes" => Ok(keep("public.item", "nextval('public.item_id_seq') > 0")),
        // Good until it meets the fiftieth row.
        "filter-divides" => Ok(keep("public.item", "1 / (id - 50) < 5")),
        "filter-unknown" => Ok(keep("public.nothing", "true")),
        "rule-quote" => Ok(dump(vec![rule("public.item\"; DROP TABLE public.item; --")], vec![])),
        "fact-twice" => Ok(BackupPlan::new().step(fact("a", "1")).step(fact("a", "2"))),
        "fact-control" => Ok(BackupPlan::new().step(fact("a\u{1b}[2J", "1"))),
        "fact-nameless" => Ok(BackupPlan::new().step(fact("", "1"))),
        "note-escape" => {
            Ok(dump(vec![], vec![]).step(note("\u{1b}]0;owned\u{7}\u{1b}[31mred\u{9b}2J\u{202e}\r".into())))
        }
        "note-long" => Ok(BackupPlan::new().step(note("x".repeat(9 << 20)))),
        "notes-many" => Ok((0..100_001).fold(BackupPlan::new(), |plan, _| plan.step(note(String::new())))),
        "rules-many" => Ok(dump((0..100_001).map(|_| rule("x")).collect(), vec![])),
        "query-two" => Err(tried("SELECT 1; DROP TABLE public.item")),
        "query-copy" => Err(tried("COPY public.item TO PROGRAM 'touch /tmp/owned'")),
        "query-file" => Err(tried("SELECT pg_read_file('/etc/passwd')")),
        "query-write" => Err(tried("WITH d AS (DELETE FROM public.item RETURNING 1) SELECT * FROM d")),
        "query-sequence" => Err(tried("SELECT nextval('public.item_id_seq')")),
        "query-role" => Err(tried("SELECT set_config('role', 'postgres', false)")),
        "query-end" => Err(tried("SELECT 1) x; COMMIT; DROP TABLE public.item; --")),
        "query-forever" => Err(tried("SELECT pg_sleep(100000)")),
        "read-above" => Err(Error::Other(format!(
            "{:?}",
            volume::read("files", "../../etc/passwd", 1000)
        ))),
        "read-link" => Err(Error::Other(format!("{:?}", volume::read("files", "link", 1000)))),
        "read-root" => Err(Error::Other(format!(
            "{:?}",
            volume::read("files", "/etc/passwd", 1000)
        ))),
        "look-other" => Err(Error::Other(format!("{:?}", db::info("other")))),
        _ => return None,
    })
}
