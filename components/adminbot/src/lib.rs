//! Adminbot: it is in every room as an administrator, so that rooms can be repaired and their keys recovered.
//!
//! Closed source; what is known of its state is shared with Auditbot and lives in `essrun_guest::bot`.

#![deny(unsafe_code)]

use essrun_guest::{bot, prelude::*};

/// The component.
pub struct Adminbot;

impl Component for Adminbot {
    fn describe() -> Description {
        bot::description(
            "Adminbot",
            env!("CARGO_PKG_VERSION"),
            "Administrators can no longer act in rooms through the bot, nor read what it could read; where it lost its \
             rights everywhere it cannot come back by itself.",
        )
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        bot::plan_backup()
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        bot::plan_restore(&Self::describe(), backup)
    }

    fn verify(_: &BackupView) -> Result<Vec<Finding>, Error> {
        bot::verify("adminbot").map(bot::found)
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        bot::respond(&Self::describe(), backup)
    }
}

essrun_guest::export!(Adminbot);
