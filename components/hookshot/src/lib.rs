//! Hookshot: GitHub, GitLab, JIRA, feeds and webhooks in rooms.
//!
//! It has no database. Its connections are room state and account data of its bot in Synapse, sealed with passkey.pem;
//! with encryption on there is a crypto directory that must fit both Synapse and Redis.

#![deny(unsafe_code)]

use essrun_guest::{bridge, bridge::Settings, incident, prelude::*};

/// The component.
pub struct Hookshot;

impl Component for Hookshot {
    fn describe() -> Description {
        let mut d = bridge::description(
            "Hookshot",
            env!("CARGO_PKG_VERSION"),
            "Users connect their accounts again; without passkey.pem every stored token is lost, although it is in Synapse.",
        );
        d.needs.retain(|n| n.label != "main");
        d.classes.retain(|c| !c.pattern.starts_with("main"));
        for need in d.needs.iter_mut() {
            need.required = true;
        }
        d.need(Need::volume("data", "encryption.storagePath (/storage), where encryption is on").optional())
            .class(ArtifactClass::new("data", Sensitivity::Secret, "the bot's Matrix encryption keys")
                .on_leak("end the bot's device, and let it make a new one"))
            .class(ArtifactClass::new("config", Sensitivity::Secret, "passkey.pem, which opens the users' tokens kept in Synapse; webhook secrets")
                .on_leak("make a new passkey.pem; users connect their accounts again, and revoke the old tokens at GitHub, GitLab, JIRA")
                .on_leak("replace webhook secrets at the services"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        settings::get::<Settings>()?;
        let mut plan = BackupPlan::new().archive(ArchiveVolume::all("config"));
        if passkey()?.is_none() {
            plan =
                plan.warn("no passkey.pem in `config`: without it the tokens in Synapse's account data cannot be read");
        }
        if volume::granted("data")? {
            plan = plan.archive(ArchiveVolume::all("data"));
        }
        Ok(plan.note(
            "its connections and tokens are in Synapse's database; Redis holds nothing that survives a restart of it",
        ))
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(bridge::plan_restore(&Self::describe(), backup).warn(
            "the crypto directory must fit Synapse: if Synapse was reset or rolled back behind it, clear the directory AND \
             Redis, or registration fails",
        ))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        let mut findings = Findings::new();
        findings.push(match passkey()? {
            Some(file) => check("hookshot-passkey").pass(format!("{file} is a private key")),
            None => check("hookshot-passkey").fail(
                "no passkey.pem with a private key was restored",
                "put the old passkey.pem back before the start",
            ),
        });
        bridge::registration(&mut findings, backup, &settings.registration_file)?;
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::from_classes(&Self::describe(), backup))
    }
}

fn passkey() -> Result<Option<String>, Error> {
    for file in volume::find("config", "*passkey*")? {
        if volume::read_text("config", &file, 64 * 1024).is_ok_and(|t| t.contains("PRIVATE KEY-----")) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

essrun_guest::export!(Hookshot);
