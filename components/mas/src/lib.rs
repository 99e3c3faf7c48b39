//! Matrix Authentication Service: accounts, sessions and tokens, all of it in one database.
//!
//! What makes it delicate is its partner: MAS and Synapse must be of one instant, because MAS tells Synapse which
//! devices a user has and Synapse deletes the others. The cross checks are in [`pair`], the secret that opens part of
//! the database in [`secret`], jobs that would run again after a restore in [`queue`], identity providers in
//! [`upstream`]. The component never changes anything itself.

#![deny(unsafe_code)]

mod describe;
mod incident;
mod pair;
mod queue;
mod secret;
mod settings;
mod upstream;

use essrun_guest::{db::Engine, prelude::*};
use settings::Settings;

/// The component.
pub struct Mas;

const MIGRATIONS: &str = "SELECT count(*), COALESCE(max(version), 0)::bigint AS newest, \
     count(*) FILTER (WHERE NOT success) AS failed FROM public._sqlx_migrations";

/// Counted for the person who reads the facts.
const COUNTED: &[&str] = &[
    "users",
    "user_passwords",
    "user_emails",
    "compat_sessions",
    "oauth2_clients",
    "oauth2_sessions",
    "upstream_oauth_providers",
    "upstream_oauth_links",
];

impl Component for Mas {
    fn describe() -> Description {
        describe::describe()
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings = Settings::get()?;
        known_schema()?;
        let mut plan = BackupPlan::new().dump(DumpDatabase::all("main").leave_out(
            "public.queue_leader",
            "the lease of a running process; the table is UNLOGGED and empty after any crash as well",
        ));
        let (count, newest, failed) = migrations()?;
        plan = plan.fact("migrations/count", count).fact("migrations/newest", newest);
        if !settings.version.is_empty() {
            plan = plan.fact("version", &settings.version);
        }
        if failed > 0 {
            plan = plan.warn(format!(
                "{failed} schema migrations are marked as failed: MAS does not start like this"
            ));
        }
        plan = plan.rows("main", COUNTED)?;
        plan = queue::record(plan)?;
        plan = secret::record(plan, &settings)?;
        plan = pair::record(plan)?;
        if volume::granted("config")? {
            plan = plan.archive(ArchiveVolume::all("config"));
        } else {
            plan = plan.warn(
                "no `config` is granted: secrets.encryption, the signing keys and the secret shared with Synapse are not \
                 in this backup; without the first, parts of the database can never be read again",
            );
        }
        Ok(plan)
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        let settings = Settings::get()?;
        let mut plan = RestorePlan::new().warn(
            "restore MAS and Synapse from the same backup and keep both stopped until both are verified: an older MAS \
             tells Synapse to delete the devices it does not know, with their keys and undelivered messages",
        );
        if backup.holds("config") {
            plan = plan.volume("config");
        } else {
            plan =
                plan.warn("this backup holds no configuration: secrets.encryption must be the old one, byte for byte");
        }
        plan = plan.database("main");
        plan = queue::hold_back(plan, backup, &settings);
        plan = pair::plan(plan, backup);
        Ok(plan
            .note("then run `mas-cli manage provision-all-users`: users Synapse does not have are made again")
            .note(
                "access tokens live five minutes and refresh tokens change at every use: nearly every client that was \
                 active since the backup has to log in again",
            )
            .warn("users who registered since the backup exist in Synapse at most: they cannot log in, and their names are taken"))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings = Settings::get()?;
        known_schema()?;
        let mut findings = Findings::new();
        // Else only other parts are restored: `main` is the live one, of which the backup knows nothing.
        if backup.holds("main") {
            schema(&mut findings, backup)?;
        }
        findings.row_counts(backup, "main")?;
        secret::verify(&mut findings, backup, &settings)?;
        upstream::verify(&mut findings, &settings)?;
        pair::verify(&mut findings, backup)?;
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::respond(&Self::describe(), backup))
    }
}

fn known_schema() -> Result<(), Error> {
    if db::info("main")?.engine != Engine::Postgres {
        return Err(Error::Unsupported(
            "`main` is SQLite; MAS runs on PostgreSQL only, so this is something else".into(),
        ));
    }
    db::tables_of(
        "main",
        "MAS",
        &[
            "public.users",
            "public.user_sessions",
            "public.compat_sessions",
            "public.oauth2_sessions",
            "public._sqlx_migrations",
        ],
    )?;
    Ok(())
}

/// (how many, the newest, how many failed)
fn migrations() -> Result<(i64, i64, i64), Error> {
    let row = db::query("main", MIGRATIONS, &[])?
        .next()
        .ok_or_else(|| Error::Inspect("main: nothing came back about _sqlx_migrations".into()))??;
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

/// Without its migrations MAS would run them all again over the existing tables.
fn schema(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    let (count, newest, failed) = migrations()?;
    let recorded = (
        backup.fact_integer("migrations/count"),
        backup.fact_integer("migrations/newest"),
    );
    let check = check("mas-migrations");
    let again = "do not start MAS: remove the target database and restore again into a fresh one";
    findings.push(if count == 0 {
        check.fail(
            "_sqlx_migrations is empty: MAS would run every migration again over existing tables",
            again,
        )
    } else if (Some(count), Some(newest)) != recorded {
        check.fail(
            format!("{count} migrations up to {newest}, the backup says {recorded:?}"),
            again,
        )
    } else if failed > 0 {
        check.warn(
            format!("{failed} of {count} migrations are marked as failed, as in the backup"),
            "MAS refuses to start until they are repaired",
        )
    } else {
        let was = match backup.fact("version") {
            Some(version) => format!("MAS {version}, which was running"),
            None => "the MAS that was running".to_owned(),
        };
        check.pass(format!(
            "{count} migrations up to {newest}: start {was}, or a newer one"
        ))
    });
    Ok(())
}

essrun_guest::export!(Mas);
