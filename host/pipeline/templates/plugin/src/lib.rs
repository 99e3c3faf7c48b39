//! {{name}}, as an essrun plugin.
//!
//! It decides, essrun does: it looks at what pipeline.toml granted it and returns plans and findings. Every call finds
//! a fresh plugin; nothing is kept from one to the next.

use essrun_guest::prelude::*;
use serde::Deserialize;

struct Plugin;

/// `[components.NAME.settings]`: a default for everything, nothing unknown.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    keep_cache: bool,
}

/// Tables by which the system's database is known. CHANGE ME.
const TABLES: &[&str] = &["public.item"];

impl Component for Plugin {
    fn describe() -> Description {
        Description::new("{{name}}", env!("CARGO_PKG_VERSION"), Tier::Feature)
            .loss("What cannot be had again. CHANGE ME.")
            .need(Need::database("main", "the system's PostgreSQL database"))
            .need(Need::volume("files", "its files").optional())
            .setting(
                "keep-cache",
                "false",
                "keep public.cache, which the system fills again by itself",
            )
            .class(ArtifactClass::new(
                "main/public.*",
                Sensitivity::Personal,
                "what a reader learns. CHANGE ME.",
            ))
            .class(
                ArtifactClass::new(
                    "files",
                    Sensitivity::Secret,
                    "what a reader can do. CHANGE ME.",
                )
                .on_leak("what to do then. CHANGE ME."),
            )
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings: Settings = settings::get()?;
        db::tables_of("main", "{{name}}", TABLES)?;
        let mut dump = DumpDatabase::all("main");
        if !settings.keep_cache {
            dump = dump.leave_out("public.cache", "the system fills it again by itself");
        }
        let items = db::count("main", "SELECT count(*) FROM public.item", &[])?;
        let mut plan = BackupPlan::new().dump(dump).fact("items", items);
        if volume::granted("files")? {
            plan = plan.archive(ArchiveVolume::all("files"));
        }
        Ok(plan)
    }

    // plan_restore: the default puts back what the backup holds, files before databases.

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let mut findings = Findings::new();
        findings.row_counts(backup, "main")?;
        let now = db::count("main", "SELECT count(*) FROM public.item", &[])?;
        findings.push(match backup.fact_integer("items") {
            Some(before) if before == now => {
                check("items-complete").pass(format!("all {now} items are there"))
            }
            before => check("items-complete").fail(
                format!("{now} items are there, they were {before:?}"),
                "restore again into a fresh database",
            ),
        });
        Ok(findings.into())
    }

    // respond: the default repeats what `describe` says to do for each class.
}

essrun_guest::export!(Plugin);

// Tests run natively: looks go to a world in memory instead of the host.
#[cfg(test)]
mod tests {
    use super::*;
    use essrun_guest::mock::{Database, World};

    fn world(items: u64) -> World {
        World::new().database(
            "main",
            Database::postgres()
                .table("public.item", &["id"], items)
                .table("public.cache", &["id"], 9),
        )
    }

    fn backup_of(world: &World) -> BackupView {
        let plan = world.run(Plugin::plan_backup).expect("a plan");
        BackupView {
            id: "b".into(),
            taken_at_unix_seconds: 0,
            component_version: "0.1.0".into(),
            facts: plan.facts().cloned().collect(),
            artifacts: vec![],
        }
    }

    #[test]
    fn the_cache_is_left_out_unless_wanted() {
        let left_out = |world: World| {
            let plan = world.run(Plugin::plan_backup).expect("a plan");
            plan.steps
                .iter()
                .any(|s| matches!(s, BackupStep::DumpDatabase(d) if !d.leave_out_data.is_empty()))
        };
        assert!(left_out(world(5)));
        assert!(!left_out(world(5).setting("keep-cache", true)));
    }

    #[test]
    fn lost_items_are_found() {
        let severity = |now: u64| {
            let backup = backup_of(&world(5));
            let findings = world(now)
                .run(|| Plugin::verify(&backup))
                .expect("findings");
            findings
                .into_iter()
                .find(|f| f.check == "items-complete")
                .expect("the check")
                .severity
        };
        assert_eq!(severity(5), Severity::Info);
        assert_eq!(severity(4), Severity::Error);
    }

    #[test]
    fn another_database_is_refused() {
        let other =
            World::new().database("main", Database::postgres().table("public.x", &["id"], 1));
        assert!(matches!(
            other.run(Plugin::plan_backup),
            Err(Error::Unsupported(_))
        ));
    }
}
