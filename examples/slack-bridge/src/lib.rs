//! A bridge to a Slack-like service, as an essrun plugin.
//!
//! It shows what a component is made of: what it needs, what it takes and leaves out, how it is put back, how a
//! restored one is known to be good, and what to do when a backup leaked.

use essrun_guest::{bridge, incident, prelude::*};
use serde::Deserialize;

struct SlackBridge;

/// `[components.slack.settings]`: a default for everything, nothing unknown.
#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    registration_file: String,
    keep_seen_events: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { registration_file: "*registration*.yaml".into(), keep_seen_events: false }
    }
}

const TABLES: &[&str] = &["public.team", "public.channel", "public.puppet", "public.message"];

impl Component for SlackBridge {
    fn describe() -> Description {
        // Everything a bridge has in common: the database `main`, the volume `config`, the setting `registration-file`.
        bridge::description("Slack bridge", env!("CARGO_PKG_VERSION"), "Channels must be linked again, users log in again.")
            .setting("keep-seen-events", "false", "keep public.seen_event, by which the bridge knows repeated deliveries")
            .class(ArtifactClass::new("main/public.*", Sensitivity::Personal, "who wrote when in which channel"))
            .class(
                ArtifactClass::new("main/public.puppet", Sensitivity::Secret, "users' tokens for the remote service")
                    .on_leak("revoke the app's tokens in the remote service's administration"),
            )
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings: Settings = settings::get()?;
        db::tables_of("main", "the Slack bridge", TABLES)?;
        let mut dump = DumpDatabase::all("main");
        if !settings.keep_seen_events {
            dump = dump.leave_out("public.seen_event", "the service repeats deliveries for an hour at most");
        }
        let logged_in = db::count("main", "SELECT count(*) FROM public.puppet WHERE token IS NOT NULL", &[])?;
        Ok(bridge::plan_backup(dump, &["channel", "puppet"])?.fact("logged-in", logged_in))
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(bridge::plan_restore(&Self::describe(), backup)
            .note("messages sent while the bridge was away are fetched when it starts, for up to a day"))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        let mut findings = Findings::new();
        bridge::rows(&mut findings, backup)?;

        let orphans = db::count(
            "main",
            "SELECT count(*) FROM public.message m WHERE NOT EXISTS \
             (SELECT 1 FROM public.channel c WHERE c.id = m.channel_id)",
            &[],
        )?;
        findings.push(match orphans {
            0 => check("slack-messages-have-channels").pass("every message has its channel"),
            n => check("slack-messages-have-channels").fail(format!("{n} messages have no channel"), "restore again into a fresh database"),
        });

        let now = db::count("main", "SELECT count(*) FROM public.puppet WHERE token IS NOT NULL", &[])?;
        findings.push(match backup.fact_integer("logged-in") {
            Some(before) if before == now => check("slack-logins").pass(format!("{now} users are logged in")),
            before => check("slack-logins").warn(format!("{now} users are logged in, they were {before:?}"), "the others log in again"),
        });
        bridge::registration(&mut findings, backup, &settings.registration_file)?;
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(IncidentPlan::new()
            .run_sql(Statement::update(
                &["main/public.puppet"],
                "main",
                "public.puppet",
                "token = NULL",
                "token IS NOT NULL",
                "logs all users out of the remote service on this side; stop the bridge first",
            ))
            .then(incident::from_classes(&Self::describe(), backup)))
    }
}

essrun_guest::export!(SlackBridge);

// Tests run natively: looks go to a world in memory instead of the host.
#[cfg(test)]
mod tests {
    use super::*;
    use essrun_guest::mock::{Database, Volume, World};
    use essrun_guest::{Artifact, BackupStep};

    fn world(orphans: i64, logged_in: i64) -> World {
        let database = TABLES
            .iter()
            .fold(Database::postgres(), |d, t| d.table(t, &["id"], 5))
            .answer("NOT EXISTS", &[&[orphans.into()]])
            .answer("token IS NOT NULL", &[&[logged_in.into()]]);
        let config = Volume::new().file("registration.yaml", "as_token: a\nhs_token: b\n");
        World::new().database("main", database).volume("config", config)
    }

    fn view() -> BackupView {
        let artifact = |name: &str, kind: &str| Artifact { name: name.into(), kind: kind.into(), items: Some(5), size_bytes: 1 };
        BackupView {
            id: "b".into(),
            taken_at_unix_seconds: 0,
            component_version: "0.1.0".into(),
            facts: vec![Fact { key: "logged-in".into(), value: "3".into() }],
            artifacts: vec![artifact("main/public.channel", "postgres-table"), artifact("config", "volume")],
        }
    }

    fn severity(world: &World, check: &str) -> Severity {
        let findings = world.run(|| SlackBridge::verify(&view())).expect("verify");
        findings.into_iter().find(|f| f.check == check).expect(check).severity
    }

    #[test]
    fn seen_events_are_left_out_unless_wanted() {
        let left_out = |world: World| {
            let plan = world.run(SlackBridge::plan_backup).expect("plan");
            plan.steps.iter().any(|s| matches!(s, BackupStep::DumpDatabase(d) if !d.leave_out_data.is_empty()))
        };
        assert!(left_out(world(0, 3)));
        assert!(!left_out(world(0, 3).setting("keep-seen-events", true)));
    }

    #[test]
    fn violations_are_found() {
        assert_eq!(severity(&world(0, 3), "slack-messages-have-channels"), Severity::Info);
        assert_eq!(severity(&world(2, 3), "slack-messages-have-channels"), Severity::Error);
        assert_eq!(severity(&world(0, 3), "slack-logins"), Severity::Info);
        assert_eq!(severity(&world(0, 2), "slack-logins"), Severity::Warning);
        assert_eq!(severity(&world(0, 3), "row-counts-main"), Severity::Info);
        assert_eq!(severity(&world(0, 3), "bridge-registration"), Severity::Info);
    }

    #[test]
    fn another_database_is_refused() {
        let other = World::new().database("main", Database::postgres().table("public.x", &["id"], 1));
        assert!(matches!(other.run(SlackBridge::plan_backup), Err(Error::Unsupported(_))));
    }
}
