//! Auditbot: it records what happens in rooms, in clear, to its volume or to a bucket.
//!
//! The logs are the reason it exists and the most delicate thing it has: cleartext of encrypted rooms. Whichever of
//! volume and bucket holds them must be backed up; a bucket is outside what essrun reads, and that is said.

#![deny(unsafe_code)]

use essrun_guest::{bot, prelude::*};

/// The component.
pub struct Auditbot;

impl Component for Auditbot {
    fn describe() -> Description {
        bot::description(
            "Auditbot",
            env!("CARGO_PKG_VERSION"),
            "The audit trail: what was said in rooms under audit. What the bot had not decrypted cannot be decrypted again.",
        )
        .need(Need::volume("logs", "the audit logs, where they are mirrored from a bucket or kept outside `data`").optional())
        .setting("logs-in-bucket", "false", "the logs go to a bucket (S3); grant a mirror of it as `logs` to have them in the backup")
        .class(
            ArtifactClass::new("logs", Sensitivity::Secret, "CLEARTEXT of every room under audit, encrypted ones included")
                .on_leak("inform everybody in rooms under audit, and the data protection officer: messages are readable without any key"),
        )
        .class(
            ArtifactClass::new("data", Sensitivity::Secret, "CLEARTEXT audit logs as well, unless they go to a bucket")
                .on_leak("inform everybody in rooms under audit, and the data protection officer: messages are readable without any key"),
        )
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings = bot::Settings::get()?;
        let mut plan = bot::plan_backup()?;
        let logs = volume::granted("logs")?;
        if logs {
            plan = plan.archive(ArchiveVolume::all("logs"));
        }
        if !settings.logs_in_bucket || logs {
            plan = plan.note(
                "the bot turns its log files over (logfile_size) and keeps the last few (logfile_keep): what was dropped \
                 before is in older backups only, so retention decides how long the audit trail is",
            );
        }
        Ok(match (settings.logs_in_bucket, logs) {
            (true, false) => plan.warn(
                "the audit logs are in a bucket and NOT in this backup: back the bucket up by its own means, or mirror it \
                 and grant the mirror as `logs`",
            ),
            (false, false) => plan.warn("this backup holds cleartext audit logs (from `data`): treat it like the rooms themselves"),
            (_, true) => plan.warn("this backup holds cleartext audit logs (from `logs`): treat it like the rooms themselves"),
        })
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        let settings = bot::Settings::get()?;
        let mut plan = bot::plan_restore(&Self::describe(), backup)?;
        if backup.holds("logs") {
            plan = plan.set_owner(
                "logs",
                "",
                settings.uid,
                settings.gid,
                "the bot runs as this numeric user and cannot read the files otherwise",
            );
        } else if settings.logs_in_bucket {
            plan = plan.warn("the audit logs were in a bucket and are not in this backup");
        }
        Ok(plan)
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let mut findings = bot::verify("auditbot")?;
        if bot::Settings::get()?.logs_in_bucket && !backup.holds("logs") {
            findings.push(check("auditbot-logs").warn(
                "the audit logs are in a bucket, outside this backup",
                "check that the bucket is there and backed up",
            ));
        }
        Ok(bot::found(findings))
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        bot::respond(&Self::describe(), backup)
    }
}

essrun_guest::export!(Auditbot);
