//! The configuration volume: taken whole, of which three things are understood: the signing key, server_name, and the
//! file of the registration secret.
//!
//! Of the signing key only the key id and the public half leave this room: they prove after a restore that the right
//! key is back, and are what `old_signing_keys` needs when it is lost. The seed must never be logged or recorded.

use crate::settings::Settings;
use essrun_guest::config::yaml_scalar;
use essrun_guest::db::TableInfo;
use essrun_guest::prelude::*;
use essrun_guest::signing_key::{self, PublicKey, VULNERABLE};

/// A key file is a line or a few.
const KEY_FILE_BYTES: u32 = 16 * 1024;
const HOMESERVER_FILE_BYTES: u32 = 1 << 20;

/// Takes the volume and records what is understood of it.
pub fn plan(mut plan: BackupPlan, tables: &[TableInfo], settings: &Settings) -> Result<BackupPlan, Error> {
    if !volume::granted("config")? {
        return Ok(plan.warn(
            "no `config` is granted: homeserver.yaml, the SIGNING KEY and the bridges' registrations are not in this \
             backup. Without the signing key a restored server breaks federation; grant the directory as `config`, or \
             keep it with the component host-secrets. Synapse makes a missing signing key anew without a word, and a \
             missing file of registration_shared_secret_path too",
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
    if let Secret::Missing(path) = registration_secret(settings)? {
        plan = plan.warn(format!(
            "registration_shared_secret_path names {path:?}, which is not in `config`: {MADE_ANEW}"
        ));
    }
    match value(settings, "server_name")? {
        Some(name) => {
            let foreign = foreign_users(tables, &name)?.map_or(0, |(count, _)| count);
            Ok(plan.fact("server-name", name).fact("users/of-other-servers", foreign))
        }
        None => Ok(plan.note(format!(
            "no server_name at the beginning of a line of {:?}; a restore needs the very same server_name",
            settings.homeserver_file
        ))),
    }
}

/// The name, the keys and what they name are back, and are the same.
pub fn verify(
    findings: &mut Findings,
    backup: &BackupView,
    tables: &[TableInfo],
    settings: &Settings,
) -> Result<(), Error> {
    same_server(findings, backup, tables, settings)?;
    signing_keys(findings, backup)?;
    if !backup.holds("config") || !volume::granted("config")? {
        return Ok(());
    }
    match registration_secret(settings)? {
        Secret::NoFile => {}
        Secret::There(file) => findings.push(check("synapse-registration-secret").pass(format!("{file} is there"))),
        Secret::Missing(path) => findings.push(check("synapse-registration-secret").warn(
            format!("registration_shared_secret_path names {path:?}, which is not in `config`: {MADE_ANEW}"),
            "put the old file in place before the first start, or give what registers users the new secret",
        )),
    }
    Ok(())
}

const MADE_ANEW: &str = "when it is missing Synapse makes a new one without a word, and what registers users with the old \
     secret fails";

/// The file that holds registration_shared_secret.
enum Secret {
    /// The setting is not used.
    NoFile,
    There(String),
    Missing(String),
}

/// The path is one of the machine Synapse runs on, so its last part is looked for.
fn registration_secret(settings: &Settings) -> Result<Secret, Error> {
    let Some(path) = value(settings, "registration_shared_secret_path")? else {
        return Ok(Secret::NoFile);
    };
    let name = path.rsplit('/').next().unwrap_or(&path);
    if name.is_empty() || name.contains('*') {
        return Ok(Secret::Missing(path));
    }
    Ok(match volume::find("config", name)?.pop() {
        Some(file) => Secret::There(file),
        None => Secret::Missing(path),
    })
}

/// A Synapse under another name does not know its own users.
fn same_server(
    findings: &mut Findings,
    backup: &BackupView,
    tables: &[TableInfo],
    settings: &Settings,
) -> Result<(), Error> {
    let check = check("synapse-server-name");
    let Some(recorded) = backup.fact("server-name") else {
        findings.push(check.pass("no server_name was known when the backup was taken, so nothing can be compared"));
        return Ok(());
    };
    let remedy = "do not start Synapse: server_name must be what it was, it is in every id and every signature; restore \
         `config` and `main` of one backup";
    if let Some((count, example)) = foreign_users(tables, recorded)? {
        let said = format!("{count} users do not belong to {recorded:?}, such as {example:?}");
        findings.push(match backup.fact_integer("users/of-other-servers") {
            Some(before) if before != count => check.fail(format!("{said}; there were {before} in the backup"), remedy),
            _ => check.warn(
                format!("{said}, as in the backup"),
                "this Synapse was renamed or written to by hand; look at these users",
            ),
        });
        return Ok(());
    }
    if !backup.holds("config") || !volume::granted("config")? {
        findings.push(check.pass(format!(
            "every user belongs to {recorded:?}; the configuration is not restored"
        )));
        return Ok(());
    }
    findings.push(match value(settings, "server_name")? {
        Some(name) if name == recorded => check.pass(format!("{name:?}, in the configuration and of every user")),
        Some(name) => check.fail(format!("the configuration says {name:?}, it was {recorded:?}"), remedy),
        None => check.warn(
            format!(
                "{:?} has no server_name at the beginning of a line any more",
                settings.homeserver_file
            ),
            format!("it must be {recorded:?}"),
        ),
    });
    Ok(())
}

/// How many users have another server's name in their id, and one of them; `None` where nobody has.
fn foreign_users(tables: &[TableInfo], server_name: &str) -> Result<Option<(i64, String)>, Error> {
    let users = tables.iter().find(|t| t.full_name() == "public.users");
    if users.is_none_or(|t| !t.has_column("name")) {
        return Ok(None);
    }
    let of_server = db::literal(&format!(":{server_name}"));
    let row = db::query(
        "main",
        &format!(
            "SELECT count(*) AS n, min(name) AS example FROM public.users \
             WHERE right(name, length({of_server})) <> {of_server}"
        ),
        &[],
    )?
    .next()
    .ok_or_else(|| Error::Inspect("main: nothing came back about users of other servers".into()))??;
    let example = row.get::<Option<String>>(1)?.unwrap_or_default();
    Ok(Some((row.get::<i64>(0)?, example)).filter(|(count, _)| *count > 0))
}

fn signing_keys(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    if !backup.holds("config") || !volume::granted("config")? {
        findings.push(check("synapse-signing-key").warn(
            "no configuration is restored, so nothing is known of the signing key",
            "make sure that the old signing key is in place before the first start; Synapse makes a new one silently when it is missing",
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

/// A value of homeserver.yaml from a line of its own; YAML beyond that is not understood here.
fn value(settings: &Settings, key: &str) -> Result<Option<String>, Error> {
    for file in volume::find("config", &settings.homeserver_file)? {
        let text = match volume::read_text("config", &file, HOMESERVER_FILE_BYTES) {
            Ok(text) => text,
            Err(e) => {
                log::warn(&format!("{file}: {}", e.text()));
                continue;
            }
        };
        let found = yaml_scalar(&text, &[key]);
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
