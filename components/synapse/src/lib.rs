//! Synapse, the homeserver: what must be kept, what must not, and how a restored one is known to be whole.
//!
//! The knowledge is spread over rooms by subject, each of which serves both sides, taking and checking: [`leave_out`]
//! (tables whose data may be left out, and the one that must be), [`streams`] (sequences and positions),
//! [`media`] (files and the rows that point at them), [`config`] (signing key, homeserver.yaml). This file only puts
//! their answers in order. The component never changes anything itself and never sees a message or a token.

#![deny(unsafe_code)]

mod config;
mod describe;
mod facts;
mod incident;
mod leave_out;
mod media;
mod settings;
mod streams;
mod verify;

use essrun_guest::prelude::*;
use settings::Settings;

/// The component.
pub struct Synapse;

/// The table that must never survive a rollback.
pub(crate) const ONE_TIME_KEYS: &str = "public.e2e_one_time_keys_json";

impl Component for Synapse {
    fn describe() -> Description {
        describe::describe()
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings = Settings::get()?;
        let tables = facts::known_schema()?;
        let mut plan = BackupPlan::new();
        if !settings.version.is_empty() {
            plan = plan.fact("version", &settings.version);
        }

        let (dump, notes) = leave_out::dump("main", &tables, &settings)?;
        for group in leave_out::groups_in(&dump) {
            plan = plan.fact(format!("left-out/{group}"), "yes");
        }
        plan = plan.dump(dump);
        for note in notes {
            plan = plan.warn(note);
        }
        plan = facts::record(plan, "main", &tables)?;
        if db::granted("state")?.is_some() {
            plan = plan.dump(DumpDatabase::all("state"));
            plan = facts::record(plan, "state", &db::tables("state")?)?;
        } else if !db::has(&tables, "public.state_groups") {
            return Err(Error::Unsupported(
                "`main` holds no table public.state_groups: this site keeps state in a second database; grant it as \
                 `state`, one without the other cannot be restored"
                    .into(),
            ));
        }

        plan = media::plan(plan, &tables, &settings)?;
        config::plan(plan, &tables, &settings)
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        let mut plan = RestorePlan::new()
            .warn(
                "keep clients and other servers away (ingress closed, Synapse stopped) until this restore is verified \
                 and in service: a client that meets an empty or half-restored Synapse gets 401 without soft logout and \
                 deletes its session and encryption keys",
            )
            .note("afterwards probe /sync with a real token, not only /versions: a damaged Synapse still answers that");
        for label in ["media", "config"] {
            if backup.holds(label) {
                plan = plan.volume(label);
            }
        }
        if !backup.holds("config") {
            plan = plan.warn(
                "this backup holds no configuration: put the old signing key in place before the first start. Synapse \
                 makes a new one silently when the file is missing, and federation then breaks. The same goes for the \
                 file of registration_shared_secret_path: what registers users with the old secret then fails",
            );
        }
        for label in ["state", "main"] {
            if backup.holds(label) {
                plan = plan.database(label);
            }
        }
        plan = plan.run_sql(
            "main",
            format!("TRUNCATE {ONE_TIME_KEYS}"),
            "keys claimed since the backup would be handed out a second time; clients upload new ones by themselves",
        );
        plan = streams::heal(plan, backup);
        Ok(after(plan, backup))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        verify::verify(backup, &Settings::get()?)
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::respond(&Self::describe(), backup))
    }
}

/// What a rollback costs and what to do after it.
fn after(mut plan: RestorePlan, backup: &BackupView) -> RestorePlan {
    plan = plan
        .note(
            "restart every bridge after Synapse: bridges remember transaction ids in memory and would drop the first \
             new ones as duplicates",
        )
        .warn(
            "what was done since the backup is undone: revoked tokens, deactivated accounts, changed passwords and \
             redacted events are as they were; go through the audit or moderation log and repeat it",
        )
        .note(
            "clients that logged in after the backup are logged out and delete their encryption store; ask users not \
             to open such a client before they have saved their keys",
        )
        .note(
            "room keys uploaded to the key backup since then are gone, and clients believe they are there: users should \
             reset or re-upload their key backup",
        )
        .note(
            "messages sent since the backup are known to other servers but not here: rooms shared with them may report \
             missing events for a while; do not run the old and the restored server at the same time",
        )
        .note(
            "with MAS: restore the Synapse and MAS databases of the same backup, then run \
             `mas-cli manage provision-all-users`",
        );
    if backup.fact("left-out/user-directory").is_some() {
        plan = plan.warn(
            "the user directory was left out and stays empty by itself: after the start run \
             POST /_synapse/admin/v1/background_updates/start_job {\"job_name\": \"regenerate_directory\"}",
        );
    }
    if backup.fact("left-out/search-index").is_some() {
        plan = plan.warn("the message search index was left out; nothing rebuilds it for old messages");
    }
    plan
}

essrun_guest::export!(Synapse);
