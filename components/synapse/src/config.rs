//! The configuration volume: taken whole, of which two things are understood, the signing key and server_name.
//!
//! Of the signing key only the key id and the public half leave this room: they prove after a restore that the right
//! key is back, and are what `old_signing_keys` needs when it is lost. The seed must never be logged or recorded.

use crate::settings::Settings;
use essrun_guest::config::yaml_scalar;
use essrun_guest::prelude::*;
use essrun_guest::signing_key::{self, PublicKey, VULNERABLE};

/// A key file is a line or a few.
const KEY_FILE_BYTES: u32 = 16 * 1024;
const HOMESERVER_FILE_BYTES: u32 = 1 << 20;

/// Takes the volume and records what is understood of it.
pub fn plan(mut plan: BackupPlan, settings: &Settings) -> Result<BackupPlan, Error> {
    if !volume::granted("config")? {
        return Ok(plan.warn(
            "no `config` is granted: homeserver.yaml, the SIGNING KEY and the bridges' registrations are not in this \
             backup. Without the signing key a restored server breaks federation; grant the directory as `config`, or \
             keep it with the component host-secrets",
        ));
    }
    plan = plan.archive(ArchiveVolume::all("config"));
    let files = volume::find("config", &settings.signing_key_file)?;
    if files.is_empty() {
        plan = plan.warn(format!(
            "no file in `config` matches signing-key-file {:?}: the signing key is not known to be in this backup. Set \
             signing-key-file to its path, or make sure it is kept elsewhere",
            settings.signing_key_file
        ));
    }
    for file in files {
        match read_keys(&file) {
            Ok(keys) => {
                for key in keys {
                    plan = plan.fact(format!("signing-key/{file}/{}", key.id), &key.public);
                    if key.vulnerable_generation() {
                        plan = plan.warn(format!("{file} holds the signing key {}: {VULNERABLE}", key.id));
                    }
                }
            }
            Err(problem) => plan = plan.warn(format!("{file} is no signing key Synapse could read: {problem}")),
        }
    }
    match server_name(settings)? {
        Some(name) => Ok(plan.fact("server-name", name)),
        None => Ok(plan.note(format!(
            "no server_name at the beginning of a line of {:?}; a restore needs the very same server_name",
            settings.homeserver_file
        ))),
    }
}

/// The keys are back, and are the same.
pub fn verify(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    if !backup.holds("config") || !volume::granted("config")? {
        findings.push(check("synapse-signing-key").warn(
            "the backup holds no configuration, so nothing is known of the signing key",
            "put the old signing key in place before the first start; Synapse makes a new one silently when it is missing",
        ));
        return Ok(());
    }
    let recorded: Vec<(&str, &str)> = backup.facts_below("signing-key/").collect();
    if recorded.is_empty() {
        findings.push(check("synapse-signing-key").warn(
            "no signing key was recognised when the backup was taken",
            "make sure that signing_key_path of homeserver.yaml names a file that exists before the first start",
        ));
    }
    let mut good = Vec::new();
    for (key, public) in recorded {
        let Some((file, id)) = key.rsplit_once('/') else {
            continue;
        };
        let found = match volume::look("config", file)? {
            None => Err("is missing".to_owned()),
            Some(_) => read_keys(file),
        };
        let remedy = "do not start Synapse: restore `config` again, or put the right key file in place";
        match found.map(|keys| keys.into_iter().find(|k| k.id == id)) {
            Ok(Some(key)) if key.public == public => {
                if key.vulnerable_generation() {
                    findings.push(
                        check("synapse-signing-key-generation")
                            .warn(format!("{file} holds the signing key {id}"), VULNERABLE),
                    );
                }
                good.push(format!("{file} {id}"));
            }
            Ok(Some(key)) => findings.push(check("synapse-signing-key").fail(
                format!(
                    "{file} has another {id}: its public key is {}, it was {public}",
                    key.public
                ),
                remedy,
            )),
            Ok(None) => {
                findings.push(check("synapse-signing-key").fail(format!("{file} has no key {id} any more"), remedy))
            }
            Err(problem) => findings.push(check("synapse-signing-key").fail(format!("{file} {problem}"), remedy)),
        }
    }
    if !good.is_empty() {
        findings.push(check("synapse-signing-key").pass(format!("as when the backup was taken: {}", good.join(", "))));
    }
    Ok(())
}

/// The keys of a file; the error never shows its contents.
fn read_keys(file: &str) -> Result<Vec<PublicKey>, String> {
    let text = volume::read_text("config", file, KEY_FILE_BYTES).map_err(|e| e.text().to_owned())?;
    signing_key::parse(&text)
}

/// `server_name` from a line of its own; YAML beyond that is not understood here.
fn server_name(settings: &Settings) -> Result<Option<String>, Error> {
    for file in volume::find("config", &settings.homeserver_file)? {
        let text = match volume::read_text("config", &file, HOMESERVER_FILE_BYTES) {
            Ok(text) => text,
            Err(e) => {
                log::warn(&format!("{file}: {}", e.text()));
                continue;
            }
        };
        let name = yaml_scalar(&text, &["server_name"]);
        if name.is_some() {
            return Ok(name);
        }
    }
    Ok(None)
}
