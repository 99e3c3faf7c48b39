//! Any PostgreSQL database, SQLite file or volume, from settings alone, so that a site is never stuck.
//!
//! It knows nothing of the system, so it takes everything but what it is told to leave out, treats all of it as secret
//! (no artifact has a class), and checks row counts and whatever the site wants to see true.

#![deny(unsafe_code)]

use essrun_guest::{db::Engine, incident, prelude::*};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The component.
pub struct Generic;

const DATABASES: &[&str] = &["main", "second", "third"];
const VOLUMES: &[&str] = &["files", "more-files", "config"];

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    leave_out_data: BTreeMap<String, Vec<String>>,
    keep_rows: BTreeMap<String, BTreeMap<String, String>>,
    take: BTreeMap<String, Vec<String>>,
    leave_out: BTreeMap<String, Vec<String>>,
    after_restore: BTreeMap<String, Vec<String>>,
    must_be_true: BTreeMap<String, Vec<String>>,
    owner: BTreeMap<String, (u32, u32)>,
    notes: Vec<String>,
}

impl Settings {
    fn get() -> Result<Self, Error> {
        let settings: Settings = settings::get()?;
        let labels = |name: &str, keys: Vec<&String>, known: &[&str]| match keys
            .into_iter()
            .find(|k| !known.contains(&k.as_str()))
        {
            Some(k) => Err(Error::invalid_setting(
                name,
                format!("`{k}` is no label; choose among {}", known.join(", ")),
            )),
            None => Ok(()),
        };
        labels("leave-out-data", settings.leave_out_data.keys().collect(), DATABASES)?;
        labels("keep-rows", settings.keep_rows.keys().collect(), DATABASES)?;
        labels("after-restore", settings.after_restore.keys().collect(), DATABASES)?;
        labels("must-be-true", settings.must_be_true.keys().collect(), DATABASES)?;
        labels("take", settings.take.keys().collect(), VOLUMES)?;
        labels("leave-out", settings.leave_out.keys().collect(), VOLUMES)?;
        labels("owner", settings.owner.keys().collect(), VOLUMES)?;
        Ok(settings)
    }
}

fn of<'a>(map: &'a BTreeMap<String, Vec<String>>, label: &str) -> &'a [String] {
    map.get(label).map(Vec::as_slice).unwrap_or_default()
}

const SITE: &str = "the site's settings say so";

impl Component for Generic {
    fn describe() -> Description {
        let mut d = Description::new("Generic", env!("CARGO_PKG_VERSION"), Tier::Feature)
            .loss("What that is only the site knows.")
            .setting("leave-out-data", "{}", "per database label, tables (schema.name, with `*`) whose data is left out: {\"main\": [\"public.cache*\"]}")
            .setting("keep-rows", "{}", "per database label, conditions for rows to keep: {\"main\": {\"public.log\": \"at > now() - interval '30 days'\"}}")
            .setting("take", "{}", "per volume label, path patterns to take; without any, all: {\"files\": [\"uploads/**\"]}")
            .setting("leave-out", "{}", "per volume label, path patterns to leave out: {\"files\": [\"cache\"]}")
            .setting("after-restore", "{}", "per database label, statements to run after a restore, before anybody uses it")
            .setting("must-be-true", "{}", "per database label, queries of one boolean that verify expects to be true: {\"main\": [\"SELECT count(*) > 0 FROM public.users\"]}")
            .setting("owner", "{}", "per volume label, numeric owner and group of restored files: {\"files\": [1000, 1000]}")
            .setting("notes", "[]", "what the person who restores must know");
        for label in DATABASES {
            d = d.need(Need::database(label, "any PostgreSQL database or SQLite file").optional());
        }
        for label in VOLUMES {
            d = d.need(Need::volume(label, "any file tree").optional());
        }
        d
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings = Settings::get()?;
        let mut plan = BackupPlan::new();
        for label in DATABASES {
            let Some(info) = db::granted(label)? else { continue };
            plan = match info.engine {
                Engine::Postgres => {
                    let mut dump = DumpDatabase::all(label);
                    for table in of(&settings.leave_out_data, label) {
                        dump = dump.leave_out(table, SITE);
                    }
                    for (table, condition) in settings.keep_rows.get(*label).into_iter().flatten() {
                        dump = dump.keep_where(table, condition, SITE);
                    }
                    plan.dump(dump)
                }
                Engine::Sqlite
                    if !of(&settings.leave_out_data, label).is_empty() || settings.keep_rows.contains_key(*label) =>
                {
                    return Err(Error::invalid_setting(
                        "leave-out-data",
                        format!("`{label}` is SQLite, which is copied whole"),
                    ));
                }
                Engine::Sqlite => {
                    let names: Vec<String> = db::tables(label)?.into_iter().map(|t| t.name).collect();
                    let names: Vec<&str> = names
                        .iter()
                        .map(String::as_str)
                        .filter(|n| !n.starts_with("sqlite_"))
                        .collect();
                    plan.copy_sqlite(CopySqlite {
                        database: (*label).into(),
                    })
                    .rows(label, &names)?
                }
            };
        }
        for label in VOLUMES {
            if !volume::granted(label)? {
                continue;
            }
            let mut archive = ArchiveVolume::all(label);
            for pattern in of(&settings.take, label) {
                archive = archive.take(pattern, SITE);
            }
            for pattern in of(&settings.leave_out, label) {
                archive = archive.leave_out(pattern, SITE);
            }
            plan = plan.archive(archive);
        }
        if plan.steps.is_empty() {
            return Err(Error::Other(format!(
                "nothing is granted; grant any of {}, {}",
                DATABASES.join(", "),
                VOLUMES.join(", ")
            )));
        }
        Ok(plan)
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        let settings = Settings::get()?;
        let mut plan = essrun_guest::artifacts_back(&Self::describe(), backup);
        for (label, (uid, gid)) in settings.owner.iter().filter(|(l, _)| backup.holds(l)) {
            plan = plan.set_owner(label, "", *uid, *gid, SITE);
        }
        for (label, statements) in settings.after_restore.iter().filter(|(l, _)| backup.holds(l)) {
            for sql in statements {
                plan = plan.run_sql(label, sql, SITE);
            }
        }
        for note in &settings.notes {
            plan = plan.note(note);
        }
        Ok(plan)
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings = Settings::get()?;
        let mut findings = Findings::new();
        for label in DATABASES.iter().filter(|l| backup.holds(l)) {
            match db::info(label)?.engine {
                Engine::Postgres => findings.row_counts(backup, label)?,
                Engine::Sqlite => findings.rows_as_recorded(backup, label)?,
            }
            for (i, sql) in of(&settings.must_be_true, label).iter().enumerate() {
                let check = check(format!("generic-{label}-{}", i + 1));
                // SQLite has no booleans, only 0 and 1.
                let row = db::query(label, sql, &[])?.next().transpose()?;
                let cell = row.and_then(|r| r.cells().first().cloned());
                findings.push(match cell {
                    Some(db::Cell::Boolean(true)) | Some(db::Cell::Integer(1)) => check.pass(sql),
                    other => check.fail(
                        format!("{sql}: {other:?}"),
                        "this must be true, say the site's settings (must-be-true)",
                    ),
                });
            }
        }
        for label in VOLUMES.iter().filter(|l| backup.holds(l)) {
            let check = check(format!("generic-{label}"));
            let entries = volume::walk(label, "", true)?.try_fold(0u64, |n, e| e.map(|_| n + 1))?;
            let expected = backup.artifact(label).and_then(|a| a.items);
            findings.push(match entries {
                0 if expected.is_some_and(|n| n > 1) => check.fail("nothing was restored", "restore it again"),
                n => check.pass(format!("{n} entries")),
            });
        }
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(IncidentPlan::new()
            .advise(&["*"], "nothing is known of this system's secrets: go through its configuration and replace every password, key and token in it and in its database")
            .then(incident::from_classes(&Self::describe(), backup)))
    }
}

essrun_guest::export!(Generic);
