//! The XMPP bridge, matrix-bifrost.
//!
//! In PostgreSQL its table `rooms` is the parent of group_rooms, im_rooms and admin_rooms by inheritance: counted
//! without ONLY it counts its children as well, dumped by name it is empty. Older and libpurple installations keep
//! NeDB files or a purple-data directory instead.

#![deny(unsafe_code)]

use essrun_guest::{bridge, bridge::Settings, db::Engine, incident, prelude::*};

/// The component.
pub struct Xmpp;

const COUNTED: &[&str] = &[
    "rooms",
    "group_rooms",
    "im_rooms",
    "admin_rooms",
    "accounts",
    "remote_users",
    "ghost_cache",
];
const INHERITED: &str = "SELECT cn.nspname || '.' || c.relname AS child, pn.nspname || '.' || p.relname AS parent \
     FROM pg_catalog.pg_inherits i \
     JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace \
     JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
     ORDER BY 1, 2";

impl Component for Xmpp {
    fn describe() -> Description {
        let mut d = bridge::description(
            "XMPP bridge (matrix-bifrost)",
            env!("CARGO_PKG_VERSION"),
            "Bridged XMPP rooms and chats must be linked again, and get new Matrix rooms.",
        );
        for need in d.needs.iter_mut().filter(|n| n.label == "main") {
            need.required = false; // NeDB files instead
        }
        d.need(Need::volume("data", "NeDB files, or purple-data of the libpurple backend").optional())
            .class(ArtifactClass::new(
                "main/public.*",
                Sensitivity::Personal,
                "who is in which bridged room, and under which XMPP address",
            ))
            .class(
                ArtifactClass::new(
                    "main/public.accounts",
                    Sensitivity::Secret,
                    "XMPP accounts of users with their data",
                )
                .on_leak("have users of own XMPP accounts change their passwords"),
            )
            .class(
                ArtifactClass::new(
                    "data",
                    Sensitivity::Secret,
                    "the same in files; purple-data also passwords",
                )
                .on_leak("have users of own accounts change their passwords"),
            )
            .class(
                ArtifactClass::new("config", Sensitivity::Secret, "the XMPP component's password")
                    .on_leak("change the component password on the XMPP server and here"),
            )
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        settings::get::<Settings>()?;
        let files = volume::granted("data")?;
        let mut plan = match db::granted("main")?.map(|i| i.engine) {
            Some(engine) => {
                db::tables_of("main", "matrix-bifrost", &["rooms", "group_rooms", "im_rooms", "remote_users"])?;
                let mut plan = bridge::plan_backup(DumpDatabase::all("main"), COUNTED)?;
                if engine == Engine::Postgres {
                    for row in db::query("main", INHERITED, &[])? {
                        let row = row?;
                        plan = plan.fact(format!("inherits/{}", row.get::<String>(0)?), row.get::<String>(1)?);
                    }
                }
                plan
            }
            None if files => bridge::config_or_warning(BackupPlan::new())?,
            None => return Err(Error::Unsupported("neither `main` nor `data` is granted: grant the PostgreSQL database, or the directory of the NeDB files".into())),
        };
        if files {
            plan = plan.archive(ArchiveVolume::all("data"));
        }
        Ok(plan)
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(bridge::plan_restore(&Self::describe(), backup))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        let mut findings = Findings::new();
        if backup.holds("main") {
            db::tables_of(
                "main",
                "matrix-bifrost",
                &["rooms", "group_rooms", "im_rooms", "remote_users"],
            )?;
            bridge::rows(&mut findings, backup)?;
            if db::info("main")?.engine == Engine::Postgres {
                inheritance(&mut findings, backup)?;
            }
        }
        bridge::registration(&mut findings, backup, &settings.registration_file)?;
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::from_classes(&Self::describe(), backup))
    }
}

/// Children without their parent are separate tables: the bridge then finds no rooms.
fn inheritance(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    let mut now = Vec::new();
    for row in db::query("main", INHERITED, &[])? {
        let row = row?;
        now.push((row.get::<String>(0)?, row.get::<String>(1)?));
    }
    let lost: Vec<String> = backup
        .facts_below("inherits/")
        .filter(|(child, parent)| !now.iter().any(|(c, p)| c == child && p == parent))
        .map(|(child, parent)| format!("{child} does not inherit from {parent} any more"))
        .collect();
    findings.push(match lost.is_empty() {
        true => check("xmpp-inheritance").pass(format!("{} tables inherit as before", now.len())),
        false => check("xmpp-inheritance").fail(
            lost.join("; "),
            "remove the target database and restore again into a fresh one",
        ),
    });
    Ok(())
}

essrun_guest::export!(Xmpp);
