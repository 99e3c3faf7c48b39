//! `secrets.encryption`: the key that opens the clients' and providers' secrets in the database.
//!
//! The right key is proved by opening one value with it, before anybody needs it. Neither the key nor what it opens
//! may be logged, recorded or shown.

use crate::settings::Settings;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::Aead};
use essrun_guest::{config::yaml_scalar, prelude::*};

pub(crate) const FILE_BYTES: u32 = 1 << 20;
/// (table, column)
const ENCRYPTED: &[(&str, &str)] = &[
    ("oauth2_clients", "encrypted_client_secret"),
    ("upstream_oauth_providers", "encrypted_client_secret"),
];
/// As many values are opened of each table: one wrong one can be an old fault, all cannot.
const TRIED: usize = 20;

/// What trying the key gave.
enum Outcome {
    NothingEncrypted,
    NoKey(String),
    Opened { good: usize, bad: usize },
}

/// Says at backup time already when the key does not fit.
pub fn record(plan: BackupPlan, settings: &Settings) -> Result<BackupPlan, Error> {
    Ok(match attempt(settings)? {
        Outcome::NothingEncrypted => plan.fact("encryption", "nothing-encrypted"),
        Outcome::NoKey(why) => plan.fact("encryption", "key-not-found").warn(format!(
            "secrets.encryption was not found ({why}): parts of the database can only be read with it, make sure it is kept"
        )),
        Outcome::Opened { good, bad: 0 } => plan.fact("encryption", format!("opens {good}")),
        Outcome::Opened { good, bad } => plan.fact("encryption", format!("opens {good} of {}", good + bad)).warn(format!(
            "secrets.encryption in `config` does not open {bad} of {} client secrets in the live database",
            good + bad
        )),
    })
}

/// The key that was restored opens what was restored.
pub fn verify(findings: &mut Findings, backup: &BackupView, settings: &Settings) -> Result<(), Error> {
    let check = check("mas-encryption-secret");
    let remedy = "put the old secrets.encryption back before MAS starts; without it confidential clients fail and browser \
         sessions end, and dynamically registered clients must register again";
    findings.push(match attempt(settings)? {
        Outcome::NothingEncrypted => check.pass("nothing in the database is encrypted with secrets.encryption"),
        Outcome::NoKey(why) => check.warn(format!("secrets.encryption was not found: {why}"), remedy),
        Outcome::Opened { good, bad: 0 } => check.pass(format!("secrets.encryption opens {good} client secrets")),
        Outcome::Opened { good, bad }
            if backup.fact("encryption") == Some(&format!("opens {good} of {}", good + bad)) =>
        {
            check.warn(
                format!("opens {good} of {}, as when the backup was taken", good + bad),
                remedy,
            )
        }
        Outcome::Opened { good, bad } => check.fail(
            format!("secrets.encryption opens only {good} of {} client secrets", good + bad),
            remedy,
        ),
    });
    Ok(())
}

fn attempt(settings: &Settings) -> Result<Outcome, Error> {
    let tables = db::tables("main")?;
    let mut values = Vec::new();
    for (name, column) in ENCRYPTED {
        let table = tables.iter().find(|t| t.schema == "public" && t.name == *name);
        if table.is_none_or(|t| !t.has_column(column)) {
            continue;
        }
        let sql = format!("SELECT {column} FROM public.{name} WHERE {column} IS NOT NULL LIMIT {TRIED}");
        for row in db::query("main", &sql, &[])? {
            values.push(row?.get::<String>(0)?);
        }
    }
    if values.is_empty() {
        return Ok(Outcome::NothingEncrypted);
    }
    let key = match key(settings)? {
        Ok(key) => key,
        Err(why) => return Ok(Outcome::NoKey(why)),
    };
    let good = values.iter().filter(|v| opens(&key, v)).count();
    Ok(Outcome::Opened {
        good,
        bad: values.len() - good,
    })
}

/// The key, or why there is none; a failing look is an error.
fn key(settings: &Settings) -> Result<Result<[u8; 32], String>, Error> {
    if !volume::granted("config")? {
        return Ok(Err("no `config` is granted".into()));
    }
    let text = if settings.encryption_file.is_empty() {
        let mut found = None;
        for file in volume::find("config", &settings.config_file)? {
            // A large or foreign file among the configuration is not the one looked for.
            let Ok(text) = volume::read_text("config", &file, FILE_BYTES) else {
                continue;
            };
            found = found.or_else(|| yaml_scalar(&text, &["secrets", "encryption"]));
        }
        match found {
            Some(text) => text,
            None => {
                return Ok(Err(format!(
                    "no file matching config-file {:?} has secrets.encryption; where it is in a file of its own, set \
                     encryption-file",
                    settings.config_file
                )));
            }
        }
    } else {
        match volume::look("config", &settings.encryption_file)? {
            Some(_) => volume::read_text("config", &settings.encryption_file, FILE_BYTES)?,
            None => {
                return Ok(Err(format!(
                    "encryption-file {:?} is not in `config`",
                    settings.encryption_file
                )));
            }
        }
    };
    Ok(hex::decode(text.trim())
        .ok()
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| "it is not 32 bytes in hexadecimal digits".to_owned()))
}

/// ChaCha20-Poly1305 over base64(nonce | ciphertext).
fn opens(key: &[u8; 32], value: &str) -> bool {
    let Ok(bytes) = STANDARD.decode(value) else {
        return false;
    };
    let (Some(nonce), Some(sealed)) = (bytes.get(..12), bytes.get(12..)) else {
        return false;
    };
    ChaCha20Poly1305::new(key.into()).decrypt(nonce.into(), sealed).is_ok()
}
