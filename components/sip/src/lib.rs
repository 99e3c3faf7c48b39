//! Element's SIP bridge.
//!
//! Closed source: its database is taken whole and compared by its row counts. What is public is that its configuration
//! has an `encryption_key` of 32 characters, without which what it stored encrypted cannot be read, and that its
//! PostgreSQL keeps its files in `postgres_data_path`, which are no backup while the server runs.

#![deny(unsafe_code)]

use essrun_guest::{bridge, bridge::Settings, incident, prelude::*};

/// The component.
pub struct Sip;

impl Component for Sip {
    fn describe() -> Description {
        bridge::description(
            "SIP bridge",
            env!("CARGO_PKG_VERSION"),
            "Calls between Matrix and telephones stop; extensions and links must be set up again.",
        )
        .class(
            ArtifactClass::new(
                "main*",
                Sensitivity::Secret,
                "who calls whom; SIP credentials, encrypted with encryption_key as far as is known",
            )
            .on_leak("change the SIP trunk's credentials"),
        )
        .class(
            ArtifactClass::new(
                "config",
                Sensitivity::Secret,
                "encryption_key and the SIP trunk's credentials",
            )
            .on_leak("change the SIP trunk's credentials"),
        )
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        settings::get::<Settings>()?;
        let plan = bridge::plan_backup(DumpDatabase::all("main"), &[])?.note(
            "the files of its PostgreSQL (postgres_data_path, /mnt/data/sipbridge-postgres) are not taken and need not be: \
             under a running server they are no backup, the database is taken through its connection",
        );
        Ok(match key()? {
            Key::Good => plan,
            Key::WrongLength(n) => plan.warn(format!("encryption_key in `config` has {n} characters instead of 32")),
            Key::None => plan.warn(
                "no encryption_key was found in `config`: make sure it is kept, the database cannot be used without it",
            ),
        })
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(bridge::plan_restore(&Self::describe(), backup).note(
            "its PostgreSQL is started with an empty postgres_data_path (/mnt/data/sipbridge-postgres) that belongs to the \
             numeric user the server runs as (999 in ESS), and the database is restored into it",
        ))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        let mut findings = Findings::new();
        bridge::rows(&mut findings, backup)?;
        let remedy = "put the old encryption_key back before the bridge starts";
        findings.push(match key()? {
            Key::Good => check("sip-encryption-key").pass("encryption_key has its 32 characters"),
            Key::WrongLength(n) => {
                check("sip-encryption-key").warn(format!("encryption_key has {n} characters instead of 32"), remedy)
            }
            Key::None => check("sip-encryption-key").warn("no encryption_key was found in the configuration", remedy),
        });
        bridge::registration(&mut findings, backup, &settings.registration_file)?;
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::from_classes(&Self::describe(), backup))
    }
}

enum Key {
    Good,
    WrongLength(usize),
    None,
}

fn key() -> Result<Key, Error> {
    let found = match bridge::configured(&["encryption_key"])? {
        Some(key) => Some(key),
        None => bridge::configured(&["bridge", "encryption_key"])?,
    };
    Ok(match found.map(|k| k.chars().count()) {
        Some(32) => Key::Good,
        Some(n) => Key::WrongLength(n),
        None => Key::None,
    })
}

essrun_guest::export!(Sip);
