//! Calls every function of the contract and answers with every step of it, so that a host that changed any of them in a
//! way old components do not survive is found out by this one.

use essrun_guest::bindings::ess::inspect::{database, settings, volume};
use essrun_guest::prelude::*;
use essrun_guest::{Fact, PathRule, RowFilter, RunSql, SetOwner, TableRule, log};

struct Frozen;

fn rule(pattern: &str) -> PathRule {
    PathRule {
        pattern: pattern.into(),
        why: "a rule".into(),
    }
}

fn inspect(e: InspectError) -> Error {
    Error::Inspect(format!("{e:?}"))
}

/// All looks, as facts.
fn looks() -> Result<Vec<(String, String)>, Error> {
    let info = database::info("main").map_err(inspect)?;
    let tables = database::tables("main").map_err(inspect)?;
    let parameters = [database::Cell::Integer(1), database::Cell::Text("b".into())];
    let sql = "SELECT id, title, NULL AS nothing, 0.5 AS half FROM public.item WHERE id > $1 OR title = $2 ORDER BY id";
    let rows = database::query("main", sql, &parameters).map_err(inspect)?;
    let (columns, page) = (rows.columns(), rows.next(10).map_err(inspect)?);
    let end = rows.next(10).map_err(inspect)?;
    drop(rows);
    let listing = volume::walk("files", "", true).map_err(inspect)?;
    let entries = listing.next(100).map_err(inspect)?;
    let paths = ["a.txt".to_owned(), "absent".to_owned()];
    let looked = volume::look("files", &paths).map_err(inspect)?;
    let read = volume::read("files", "a.txt", 100).map_err(inspect)?;
    let digests = volume::digest("files", &paths).map_err(inspect)?;
    let denied = database::info("other").err();
    let mut listed: Vec<String> = entries.iter().map(|e| format!("{} {:?} {}", e.path, e.kind, e.size_bytes)).collect();
    listed.sort();
    Ok(vec![
        ("info".into(), format!("{:?} {} {} {}", info.engine, info.encoding, info.collate, info.ctype)),
        ("tables".into(), format!("{:?}", tables.iter().map(|t| (&t.schema, &t.name, t.kind, t.estimated_rows, &t.columns)).collect::<Vec<_>>())),
        ("columns".into(), format!("{columns:?}")),
        ("page".into(), format!("{page:?}")),
        ("end".into(), end.len().to_string()),
        ("walk".into(), listed.join(", ")),
        ("look".into(), format!("{:?}", looked.iter().map(Option::is_some).collect::<Vec<_>>())),
        ("read".into(), String::from_utf8_lossy(&read).into_owned()),
        ("digest".into(), format!("{:?}", digests.iter().flatten().map(|d| (d.size_bytes, &d.sha256)).collect::<Vec<_>>())),
        ("denied".into(), format!("{:?}", matches!(denied, Some(InspectError::Denied(_))))),
        ("settings".into(), settings::get()),
    ])
}

impl Component for Frozen {
    fn describe() -> Description {
        Description::new("Frozen", "0.1.0", Tier::Rebuildable)
            .loss("nothing")
            .need(Need::database("main", "a database"))
            .need(Need::volume("files", "files").optional())
            .need(Need::database("peer", "another").optional().peer())
            .setting("colour", "\"red\"", "a setting")
            .class(ArtifactClass::new("main/*", Sensitivity::Internal, "nothing"))
            .class(ArtifactClass::new("files", Sensitivity::Personal, "names").on_leak("say so"))
            .class(ArtifactClass::new("main/public.token", Sensitivity::Secret, "tokens"))
            .fence("main", &["public.item"])
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        log::info("frozen speaks");
        let mut dump = DumpDatabase::all("main");
        dump.leave_out_data.push(TableRule {
            table: "public.cache".into(),
            why: "a rule".into(),
        });
        dump.row_filters.push(RowFilter {
            table: "public.item".into(),
            keep_where: "id > 0".into(),
            why: "a filter".into(),
        });
        let mut archive = ArchiveVolume::all("files");
        archive.take.push(rule("**"));
        archive.leave_out.push(rule("*.tmp"));
        let mut plan = BackupPlan::new().dump(dump).archive(archive).note("a note").warn("a warning");
        for (key, value) in looks()? {
            plan.steps.push(BackupStep::RecordFact(Fact { key, value }));
        }
        Ok(plan)
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        let mut plan = RestorePlan::new().volume("files").database("main");
        plan.steps.push(RestoreStep::RunSql(RunSql {
            database: "main".into(),
            sql: "UPDATE public.item SET title = ''".into(),
            why: "a statement".into(),
        }));
        plan.steps.push(RestoreStep::SetOwner(SetOwner {
            volume: "files".into(),
            path: "a".into(),
            uid: 10_006,
            gid: 10_006,
            why: "an owner".into(),
        }));
        Ok(plan.note(format!(
            "{} of {}: {} facts, {} artifacts, first {:?}",
            backup.id,
            backup.component_version,
            backup.facts.len(),
            backup.artifacts.len(),
            backup.artifacts.first().map(|a| (&a.name, &a.kind, a.items, a.size_bytes)),
        )))
    }

    fn verify(_: &BackupView) -> Result<Vec<Finding>, Error> {
        Ok(vec![
            check("passed").pass("it passed"),
            check("warned").warn("look", "do look"),
            check("failed").fail("bad", "mend it"),
        ])
    }

    fn respond(_: &BackupView) -> Result<IncidentPlan, Error> {
        let statement = Statement {
            artifacts: vec!["main/public.token".into()],
            database: "main".into(),
            sql: "DELETE FROM public.item".into(),
            count_sql: "SELECT count(*) FROM public.item".into(),
            why: "a statement".into(),
        };
        let advice = Advice {
            artifacts: vec!["files".into()],
            text: "an advice".into(),
        };
        Ok(IncidentPlan {
            steps: vec![IncidentStep::RunSql(statement), IncidentStep::Advise(advice)],
        })
    }
}

essrun_guest::export!(Frozen);
