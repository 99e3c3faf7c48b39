//! MAS and Synapse beside each other: users and devices that only one of them knows.
//!
//! Both sides are read in order and merged, so that memory stays small whatever their number. Differences are warnings:
//! a few are normal on a live pair, and only a person can say which side is right. What matters is what the next device
//! sync would delete, so that is counted. Where both were counted in the snapshots the backup holds, and those of one
//! instant, the restored pair must differ just as they did: anything else is a fault of the restore.

use essrun_guest::{db::Pages, prelude::*};
use std::cmp::Ordering;

/// How the pair differs.
#[derive(Default)]
struct Differences {
    users: Side,
    devices: Side,
}

/// What only one of the two has.
#[derive(Default)]
struct Side {
    both: u64,
    only_mas: Some5,
    only_synapse: Some5,
}

/// How many, and the first few.
#[derive(Default)]
struct Some5 {
    count: u64,
    first: Vec<String>,
}

impl Some5 {
    fn add(&mut self, key: &Key) {
        self.count += 1;
        if self.first.len() < 5 {
            self.first.push(if key.1.is_empty() {
                key.0.clone()
            } else {
                format!("{} {}", key.0, key.1)
            });
        }
    }

    fn said(&self) -> String {
        let more = if self.count > self.first.len() as u64 {
            ", …"
        } else {
            ""
        };
        match self.count {
            0 => "none".to_owned(),
            n => format!("{n} ({}{more})", self.first.join(", ")),
        }
    }
}

type Key = (String, String);

/// The columns of all four queries.
const KEY: &[&str] = &["localpart", "device_id"];

const MAS_USERS: &str = "SELECT username AS localpart, '' AS device_id FROM public.users WHERE deactivated_at IS NULL";
/// Users Synapse made for bridges, guests and deactivated ones are none of MAS's business.
const SYNAPSE_USERS: &str = "SELECT split_part(substr(name, 2), ':', 1) AS localpart, '' AS device_id \
     FROM public.users WHERE appservice_id IS NULL AND is_guest = 0 AND deactivated = 0";
/// A dehydrated device is never deleted by a sync.
const SYNAPSE_DEVICES: &str = "SELECT split_part(substr(d.user_id, 2), ':', 1) AS localpart, d.device_id \
     FROM public.devices d JOIN public.users u ON u.name = d.user_id \
     WHERE NOT d.hidden AND u.appservice_id IS NULL AND u.is_guest = 0 AND u.deactivated = 0 \
     AND NOT EXISTS (SELECT 1 FROM public.dehydrated_devices x WHERE x.user_id = d.user_id AND x.device_id = d.device_id)";

/// Devices of active sessions. In OAuth sessions the device is one of the scopes.
fn mas_devices() -> Result<String, Error> {
    let tables = db::tables("main")?;
    let device = "CASE WHEN s.scope LIKE 'urn:matrix:client:device:%' \
         THEN substr(s.scope, length('urn:matrix:client:device:') + 1) \
         WHEN s.scope LIKE 'urn:matrix:org.matrix.msc2967.client:device:%' \
         THEN substr(s.scope, length('urn:matrix:org.matrix.msc2967.client:device:') + 1) END";
    let mut sessions = vec![
        "SELECT c.user_id, c.device_id FROM public.compat_sessions c WHERE c.finished_at IS NULL".to_owned(),
        format!(
            "SELECT s.user_id, {device} FROM (SELECT user_id, unnest(scope_list) AS scope FROM public.oauth2_sessions \
             WHERE finished_at IS NULL AND user_id IS NOT NULL) s"
        ),
    ];
    let personal = tables.iter().find(|t| t.full_name() == "public.personal_sessions");
    if personal.is_some_and(|t| {
        ["actor_user_id", "scope_list", "revoked_at"]
            .iter()
            .all(|c| t.has_column(c))
    }) {
        sessions.push(format!(
            "SELECT s.actor_user_id, {device} FROM (SELECT actor_user_id, unnest(scope_list) AS scope \
             FROM public.personal_sessions WHERE revoked_at IS NULL) s"
        ));
    }
    Ok(format!(
        "SELECT u.username AS localpart, x.device_id FROM ({}) x (user_id, device_id) JOIN public.users u ON u.user_id = x.user_id \
         WHERE x.device_id IS NOT NULL AND u.deactivated_at IS NULL GROUP BY u.username, x.device_id",
        sessions.join(" UNION ")
    ))
}

/// Facts of the pair as it was, where Synapse's database is granted.
pub fn record(plan: BackupPlan) -> Result<BackupPlan, Error> {
    let Some(d) = compare()? else {
        return Ok(plan.note("no `synapse` is granted, so users and devices are not compared with Synapse's"));
    };
    let plan = plan
        .fact("pair/users-only-in-mas", d.users.only_mas.count)
        .fact("pair/users-only-in-synapse", d.users.only_synapse.count)
        .fact("pair/devices-only-in-mas", d.devices.only_mas.count)
        .fact("pair/devices-only-in-synapse", d.devices.only_synapse.count);
    Ok(match d.devices.only_synapse.count {
        0 => plan,
        _ => plan.warn(format!(
            "Synapse has devices no session of MAS knows, now already: {}; the next device sync of these users deletes them",
            d.devices.only_synapse.said()
        )),
    })
}

/// How the two databases stand in time.
enum Gap {
    /// One instant, and how that was reached.
    None(&'static str),
    /// MAS's is so many milliseconds newer.
    Newer(i64),
    Older(i64),
    /// Synapse's is not of the backup but in service; MAS's is so much older.
    Live(i64),
    /// Synapse's is neither restored nor there.
    Absent,
}

/// For a pair that does not hold what the backup has.
const AGAIN: &str = "do not use this restore: remove both target databases and restore both again into fresh ones; if the \
     difference stays, check the backup with `essrun check`";

impl Gap {
    /// As the host tells it; `None` where nobody looks at Synapse's database, and for backups that do not say.
    fn of(backup: &BackupView) -> Option<Gap> {
        let how = backup.fact("instant/synapse/how")?;
        if how == "absent" {
            return Some(Gap::Absent);
        }
        let ms = backup.fact_integer("instant/synapse/gap-ms")?;
        Some(match how {
            "same-instant" => Gap::None("at the same instant"),
            "fenced" => Gap::None("behind one lock fence"),
            "live" => Gap::Live(ms.saturating_neg()),
            _ if ms < 0 => Gap::Older(ms.saturating_neg()),
            _ => Gap::Newer(ms),
        })
    }

    fn said(&self) -> String {
        match self {
            Gap::None(how) => format!("this database and Synapse's were taken {how}"),
            Gap::Newer(ms) => format!("this database was taken {} after Synapse's", duration(*ms)),
            Gap::Older(ms) => format!("this database was taken {} BEFORE Synapse's", duration(*ms)),
            Gap::Live(ms) => format!(
                "this database is {} older than Synapse's, which is not restored with it",
                duration(*ms)
            ),
            Gap::Absent => "Synapse's database is neither restored with this one nor there".to_owned(),
        }
    }

    /// What to do about it, with the commands; nothing for one instant.
    fn remedy(&self) -> Option<&'static str> {
        match self {
            Gap::None(_) => None,
            Gap::Newer(_) => Some(
                "what was made between the two is in MAS only: run `mas-cli manage provision-all-users` before clients \
                 return, which makes such users and devices in Synapse, the devices without their keys; an instant for \
                 both is taken when [groups.…] names both in `consistent`",
            ),
            Gap::Absent => Some(
                "restore both from one backup, which took them at one instant, and keep MAS stopped until Synapse's is \
                 back: an older MAS tells Synapse to delete the devices it does not know",
            ),
            Gap::Older(_) | Gap::Live(_) => Some(
                "the next device sync deletes the devices of that time in Synapse: restore both from a backup that took \
                 them at one instant; or set hold-back to [\"sync-devices\", \"provision-user\", \"delete-device\"], run \
                 `mas-cli manage provision-all-users` only after the users concerned have saved their keys, and make \
                 users that are missing with `mas-cli manage register-user`",
            ),
        }
    }
}

/// Milliseconds in words, one unit.
fn duration(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// The plan says how far apart the two are before anything is restored.
pub fn plan(plan: RestorePlan, backup: &BackupView) -> RestorePlan {
    match Gap::of(backup) {
        None => plan,
        Some(gap) => match gap.remedy() {
            None => plan.note(gap.said()),
            Some(remedy) => plan.warn(format!("{}: {remedy}", gap.said())),
        },
    }
}

/// The restored pair agrees.
pub fn verify(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    if let Some(gap) = Gap::of(backup) {
        findings.push(match gap.remedy() {
            None => check("mas-synapse-gap").pass(gap.said()),
            Some(remedy) => check("mas-synapse-gap").warn(gap.said(), remedy),
        });
    }
    let Some(d) = compare()? else {
        let check = check("mas-synapse-pair");
        findings.push(match backup.fact("instant/synapse/how") {
            Some(_) => check.warn(
                "Synapse's database is not there, so users and devices were not compared with Synapse's",
                "restore Synapse from the same backup, then compare: `essrun drill` restores both and does",
            ),
            None => check.warn(
                "no `synapse` is granted, so users and devices were not compared with Synapse's",
                "grant Synapse's database to this component as the peer `synapse`",
            ),
        });
        return Ok(());
    };
    let before = |fact: &str| match backup.fact(fact) {
        Some(n) => format!("; it was {n} when the backup was taken"),
        None => String::new(),
    };
    // What was counted when the backup was taken was counted in what is restored now.
    let exact = backup.fact("instant/synapse/taken-as").is_some() && matches!(Gap::of(backup), Some(Gap::None(_)));
    let mut say = |name: &str, only: &Some5, fact: &str, what: &str, remedy: &str| {
        let recorded = backup.fact_integer(fact).filter(|_| exact);
        findings.push(match only.count {
            n if recorded.is_some_and(|recorded| u64::try_from(recorded) != Ok(n)) => check(name).fail(
                format!("{what}: {}{}, in the same snapshots", only.said(), before(fact)),
                AGAIN,
            ),
            0 => check(name).pass(format!("no {what}")),
            _ => check(name).warn(format!("{what}: {}{}", only.said(), before(fact)), remedy),
        });
    };
    say(
        "mas-synapse-users-missing-in-synapse",
        &d.users.only_mas,
        "pair/users-only-in-mas",
        "users MAS has and Synapse has not",
        "run `mas-cli manage provision-all-users` before clients return; until then they get server errors",
    );
    say(
        "mas-synapse-users-missing-in-mas",
        &d.users.only_synapse,
        "pair/users-only-in-synapse",
        "users Synapse has and MAS has not",
        "they cannot log in and their names cannot be registered: restore a MAS backup of the same instant, or make them \
         with `mas-cli manage register-user`",
    );
    say(
        "mas-synapse-devices-to-be-deleted",
        &d.devices.only_synapse,
        "pair/devices-only-in-synapse",
        "devices the next device sync would delete in Synapse, with their keys and undelivered messages",
        "restore a MAS backup of the same instant; or set hold-back to [\"sync-devices\", \"provision-user\"] and let these \
         users save their keys before `mas-cli manage provision-all-users` or a login of theirs syncs their devices",
    );
    say(
        "mas-synapse-devices-missing-in-synapse",
        &d.devices.only_mas,
        "pair/devices-only-in-mas",
        "devices of active sessions that Synapse does not have",
        "their clients get 401 and log themselves out; `mas-cli manage provision-all-users` makes the devices again, but \
         without their encryption keys",
    );
    findings.push(check("mas-synapse-pair").pass(format!(
        "{} users and {} devices are on both sides",
        d.users.both, d.devices.both
    )));
    Ok(())
}

fn compare() -> Result<Option<Differences>, Error> {
    if db::granted("synapse")?.is_none() {
        return Ok(None);
    }
    db::tables_of(
        "synapse",
        "Synapse",
        &["public.users", "public.devices", "public.dehydrated_devices"],
    )?;
    Ok(Some(Differences {
        users: merge(
            db::pages("main", MAS_USERS, KEY),
            db::pages("synapse", SYNAPSE_USERS, KEY),
        )?,
        devices: merge(
            db::pages("main", &mas_devices()?, KEY),
            db::pages("synapse", SYNAPSE_DEVICES, KEY),
        )?,
    }))
}

/// Two ordered lists side by side.
fn merge(mut mas: Pages, mut synapse: Pages) -> Result<Side, Error> {
    fn step(rows: &mut Pages) -> Result<Option<Key>, Error> {
        rows.next()
            .map(|row| row.and_then(|r| Ok((r.get(0)?, r.get(1)?))))
            .transpose()
    }
    let mut side = Side::default();
    let (mut a, mut b) = (step(&mut mas)?, step(&mut synapse)?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(side),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => x.cmp(y),
        };
        match (&a, &b, order) {
            (Some(x), _, Ordering::Less) => side.only_mas.add(x),
            (_, Some(y), Ordering::Greater) => side.only_synapse.add(y),
            _ => side.both += 1,
        }
        if order != Ordering::Greater {
            a = step(&mut mas)?;
        }
        if order != Ordering::Less {
            b = step(&mut synapse)?;
        }
    }
}
