//! Jobs that were waiting when the backup was taken, and would run again after a restore.
//!
//! Most do no harm. Mails go out a second time, deactivations are carried out once more, and a device sync deletes
//! devices in a Synapse that is newer than this database. A site can hold queues back; their jobs are marked as failed,
//! which MAS neither repeats nor forgets.

use crate::settings::Settings;
use essrun_guest::prelude::*;

const WAITING: &str = "status::text IN ('available', 'scheduled', 'running')";

/// What a queue's jobs do to the world outside the database; `None` for those that only tidy up.
fn effect(queue: &str) -> Option<&'static str> {
    match queue {
        "send-account-recovery-email" => Some("sends account recovery mails again"),
        "send-email-authentication-code" | "verify-email" => {
            Some("sends verification mails again, whose codes have expired")
        }
        "deactivate-user" => Some("deactivates users, and erases them where that was asked for"),
        "reactivate-user" => Some("reactivates users"),
        "delete-device" | "sync-devices" | "provision-device" => {
            Some("makes Synapse delete the devices this database does not know")
        }
        "provision-user" => Some("makes users in Synapse, then syncs their devices"),
        _ => None,
    }
}

/// Keeps how many jobs wait in each queue.
pub fn record(mut plan: BackupPlan) -> Result<BackupPlan, Error> {
    if !db::has(&db::tables("main")?, "public.queue_jobs") {
        return Ok(plan); // before 0.13 jobs were elsewhere
    }
    let sql = format!(
        "SELECT queue_name, count(*) AS n FROM public.queue_jobs WHERE {WAITING} GROUP BY queue_name ORDER BY queue_name"
    );
    for row in db::query("main", &sql, &[])? {
        let row = row?;
        plan = plan.fact(format!("queue/{}", row.get::<String>(0)?), row.get::<i64>(1)?);
    }
    Ok(plan)
}

/// Says what would run, and holds back what the site wants held back.
pub fn hold_back(mut plan: RestorePlan, backup: &BackupView, settings: &Settings) -> RestorePlan {
    let held = |queue: &str| settings.hold_back.iter().any(|p| essrun_guest::matches(p, queue));
    let mut any = false;
    for (queue, jobs) in backup.facts_below("queue/") {
        any = true;
        plan = match (effect(queue), held(queue)) {
            (_, true) => plan.note(format!("{jobs} waiting jobs of `{queue}` are held back")),
            (Some(effect), false) => plan.warn(format!(
                "{jobs} waiting jobs of `{queue}` run when MAS starts: it {effect}. To hold them back, add \
                 \"{queue}\" to the setting hold-back"
            )),
            (None, false) => plan.note(format!("{jobs} waiting jobs of `{queue}` run when MAS starts")),
        };
    }
    if any {
        for pattern in &settings.hold_back {
            let like = db::literal(&pattern.replace('*', "%"));
            plan = plan.run_sql(
                "main",
                format!(
                    "UPDATE public.queue_jobs SET status = 'failed', failed_at = now(), \
                     failed_reason = 'held back after a restore' WHERE {WAITING} AND queue_name LIKE {like}"
                ),
                "jobs of this queue were waiting when the backup was taken and must not run again",
            );
        }
    }
    plan
}
