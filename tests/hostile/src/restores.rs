//! Plans for restores and leaks that no honest component makes, and lies in `verify`: the same tricks, where they would
//! reach a restored or a live database.

use essrun_guest::prelude::*;
use essrun_guest::{BackupView, RestorePlan};

/// All that was taken, as it should be.
fn honest() -> RestorePlan {
    RestorePlan::new().database("main").volume("files")
}

/// The plan of a deed; `None` for a deed that is not of this kind.
pub fn plan(deed: &str) -> Option<RestorePlan> {
    let sql = |sql: &str| honest().run_sql("main", sql, "a trick");
    let owner = |path: &str| honest().set_owner("files", path, 0, 0, "a trick");
    Some(match deed {
        "back-ungranted" => honest().database("other"),
        "back-volume-ungranted" => honest().volume("root"),
        "back-volume-as-database" => honest().database("files"),
        "back-twice" => honest().database("main"),
        "back-path" => honest().volume("../files"),
        "back-nothing-held" => honest().volume("more"),
        "back-sql-elsewhere" => honest().run_sql("other", "DELETE FROM public.item", "a trick"),
        "back-sql-two" => sql("DELETE FROM public.item WHERE id = 1; DROP TABLE public.item"),
        "back-sql-commit" => sql("COMMIT"),
        "back-sql-role" => sql("RESET ROLE"),
        "back-sql-config" => sql("SELECT set_config('role', 'postgres', false)"),
        "back-sql-unicode" => sql("SELECT U&\"set\\005fconfig\"('role', 'none', false)"),
        "back-sql-text" => sql("SELECT query_to_xml('RESET ROLE', true, true, '')"),
        "back-sql-database" => sql("ALTER DATABASE shop SET work_mem = '1MB'"),
        "back-sql-rename" => sql("ALTER DATABASE shop RENAME TO stolen"),
        "back-sql-password" => sql("ALTER ROLE shop_user PASSWORD 'known'"),
        "back-sql-notify" => sql("SELECT pg_notify('a', 'b')"),
        "back-sql-program" => sql("COPY public.item TO PROGRAM 'touch owned'"),
        "back-sql-file" => sql("SELECT pg_read_file('/etc/passwd')"),
        "back-sql-block" => sql("DO $$ BEGIN EXECUTE 'DROP TABLE public.item'; END $$"),
        "back-owner-above" => owner("../.."),
        "back-owner-root" => owner("/etc/passwd"),
        "back-owner-link" => owner("link/x"),
        "back-owner-elsewhere" => honest().set_owner("main", "", 0, 0, "a trick"),
        "back-steps-many" => (0..100_001).fold(honest(), |plan, _| plan.note("")),
        "back-panic" => panic!("in plan-restore"),
        "back-escape" => honest().note("\u{1b}]0;owned\u{7}\u{1b}[31mred\u{202e}"),
        _ => return None,
    })
}

/// The findings of a deed.
pub fn verify(deed: &str) -> Option<Result<Vec<Finding>, Error>> {
    let finding = |text: &str| Finding {
        check: text.to_owned(),
        severity: Severity::Info,
        message: text.to_owned(),
        remedy: String::new(),
    };
    Some(match deed {
        "verify-panic" => panic!("in verify"),
        "verify-many" => Ok(vec![finding("x"); 100_001]),
        "verify-long" => Ok(vec![Finding {
            message: "x".repeat(9 << 20),
            ..finding("long")
        }]),
        // In one call more than the host takes at all.
        "verify-longer" => Ok(vec![finding(&"x".repeat(9 << 20))]),
        "verify-writes" => Err(Error::Other(format!(
            "denied: {:?}",
            db::query("main", "DELETE FROM public.item RETURNING 1", &[]).and_then(db::Rows::all)
        ))),
        _ => return None,
    })
}

/// What a deed would do after a leak.
pub fn respond(deed: &str, _: &BackupView) -> Option<IncidentPlan> {
    let run = |database: &str, sql: &str, count_sql: &str| {
        IncidentPlan::new().run_sql(Statement {
            artifacts: vec![],
            database: database.to_owned(),
            sql: sql.to_owned(),
            count_sql: count_sql.to_owned(),
            why: "a trick".to_owned(),
        })
    };
    let all = "SELECT count(*) FROM public.item";
    Some(match deed {
        "leak-ungranted" => run("other", "DELETE FROM public.item", all),
        "leak-two" => run("main", "DELETE FROM public.item; DROP TABLE public.item", all),
        "leak-drop" => run("main", "DROP TABLE public.item", all),
        "leak-program" => run("main", "COPY public.item TO PROGRAM 'touch owned'", all),
        "leak-block" => run("main", "DO $$ BEGIN DELETE FROM public.item; END $$", all),
        "leak-more-than-counted" => run(
            "main",
            "DELETE FROM public.item",
            "SELECT count(*) FROM public.item WHERE id = 1",
        ),
        "leak-count-writes" => run(
            "main",
            "DELETE FROM public.item WHERE id = 1",
            "SELECT 1) x; DELETE FROM public.item; --",
        ),
        "leak-count-calls" => run(
            "main",
            "DELETE FROM public.item WHERE id = 1",
            "SELECT setval('public.item_id_seq', 9999) - 9998",
        ),
        "leak-panic" => panic!("in respond"),
        _ => return None,
    })
}
