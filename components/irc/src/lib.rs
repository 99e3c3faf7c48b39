//! The IRC bridge, matrix-appservice-irc.
//!
//! Users' IRC passwords are sealed with `passkey.pem`. At its start the bridge opens every one of them and refuses to
//! start on the first that fails, so a restore is only called good when the key that was restored opens the passwords
//! that were restored. What it opens is looked at for its shape and forgotten.

#![deny(unsafe_code)]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use essrun_guest::{bridge, db::Engine, incident, prelude::*};
use rsa::{Oaep, RsaPrivateKey, pkcs1::DecodeRsaPrivateKey, pkcs8::DecodePrivateKey, traits::PublicKeyParts};
use serde::Deserialize;
use sha1_digest10::Sha1;

/// The component.
pub struct Irc;

const COUNTED: &[&str] = &[
    "rooms",
    "admin_rooms",
    "pm_rooms",
    "matrix_users",
    "client_config",
    "user_features",
    "ipv6_counter",
    "deactivated_users",
];
const NEEDED: &[&str] = &["rooms", "matrix_users", "client_config"];

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    registration_file: String,
    passkey_file: String,
    passwords_opened: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            registration_file: "*registration*.yaml".into(),
            passkey_file: "passkey.pem".into(),
            passwords_opened: 200,
        }
    }
}

impl Component for Irc {
    fn describe() -> Description {
        bridge::description(
            "IRC bridge (matrix-appservice-irc)",
            env!("CARGO_PKG_VERSION"),
            "Plumbed channels and private chats must be linked again; users give their IRC passwords again.",
        )
        .setting("passkey-file", "\"passkey.pem\"", "the RSA key (passwordEncryptionKeyPath) in `config`; a pattern without `/` is looked for in every directory")
        .setting("passwords-opened", "200", "how many passwords verify opens with the key (some hundred fit into the default limits); where there are more, the others are checked for their length, and verify warns")
        .class(ArtifactClass::new("main/public.*", Sensitivity::Personal, "which Matrix user is which nick, in which channels, seen when"))
        .class(ArtifactClass::new("main/public.client_config", Sensitivity::Secret, "IRC passwords, sealed with passkey.pem")
            .on_leak("forget all stored IRC passwords (the prepared statement does it) and have users change them at their network (NickServ), then store them anew"))
        .class(ArtifactClass::new("main/public.provisioner_sessions", Sensitivity::Secret, "PLAINTEXT tokens that change a room's bridging")
            .on_leak("end provisioning sessions (the prepared statement does it)"))
        .class(ArtifactClass::new("config", Sensitivity::Secret, "passkey.pem, which opens the IRC passwords; passwords of the bridge's own connections")
            .on_leak("make a new passkey.pem after the stored passwords were forgotten"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings: Settings = settings::get()?;
        db::tables_of("main", "the IRC bridge", NEEDED)?;
        let plan = bridge::plan_backup(DumpDatabase::all("main"), COUNTED)?;
        Ok(match attempt(&settings)? {
            Attempt::NoPassword => plan.fact("passwords", 0),
            Attempt::NoKey(why) => plan.warn(format!(
                "{why}: stored IRC passwords cannot be read without it, and the bridge refuses to start; make sure it is kept"
            )),
            Attempt::Tried(t) if t.bad() == 0 => plan.fact("passwords", t.stored),
            Attempt::Tried(t) => plan.fact("passwords", t.stored).fact("passwords-bad", t.bad()).warn(format!(
                "the passkey in `config` does not open {} of {} stored IRC passwords: the bridge will not start again",
                t.bad(),
                t.stored
            )),
        })
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(bridge::plan_restore(&Self::describe(), backup)
            .note("rooms with origin `config` are made again from the configuration")
            .warn("ipv6_counter goes back: with IPv6 per user, addresses given out since are given out a second time; raise it by their number where networks ban by address"))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        db::tables_of("main", "the IRC bridge", NEEDED)?;
        let mut findings = Findings::new();
        bridge::rows(&mut findings, backup)?;
        let check = check("irc-passkey");
        let remedy = "put the old passkey.pem back before the bridge starts; if it is lost, set client_config.password to NULL, and users store their passwords anew";
        findings.push(match attempt(&settings)? {
            Attempt::NoPassword => check.pass("no IRC password is stored"),
            Attempt::NoKey(why) => check.fail(format!("{why}: the bridge refuses to start"), remedy),
            Attempt::Tried(t) if t.bad() == 0 && t.opened == t.stored => {
                check.pass(format!("passkey.pem opens {} of {} stored passwords", t.opened, t.stored))
            }
            // The bridge opens all of them: one that was not tried may be the one it refuses to start for.
            Attempt::Tried(t) if t.bad() == 0 => check.warn(
                format!(
                    "passkey.pem opens {} of {} stored passwords; the others were not tried, they have the right length",
                    t.opened, t.stored
                ),
                format!(
                    "set passwords-opened = {} to try all of them; for many raise `cpu` in the component's limits too",
                    t.stored
                ),
            ),
            Attempt::Tried(t) => check.fail(
                format!(
                    "{} of {} stored passwords cannot be opened: the bridge refuses to start",
                    t.bad(),
                    t.stored
                ),
                remedy,
            ),
        });
        bridge::registration(&mut findings, backup, &settings.registration_file)?;
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        let mut plan = IncidentPlan::new();
        if backup.artifact("main/public.client_config").is_some() {
            plan = plan.run_sql(Statement::update(
                &["main/public.client_config", "config"],
                "main",
                "public.client_config",
                "password = NULL",
                "password IS NOT NULL",
                "forgets every stored IRC password; users store them anew with !storepass. Restart the bridge",
            ));
        }
        if backup.artifact("main/public.provisioner_sessions").is_some() {
            plan = plan.run_sql(Statement::delete(
                &["main/public.provisioner_sessions"],
                "main",
                "public.provisioner_sessions",
                "TRUE",
                "ends provisioning sessions; users open the widget again",
            ));
        }
        Ok(plan.then(incident::from_classes(&Self::describe(), backup)))
    }
}

enum Attempt {
    NoPassword,
    NoKey(String),
    Tried(Tried),
}

#[derive(Default)]
struct Tried {
    stored: u32,
    opened: u32,
    failed: u32,
    misshaped: u32,
}

impl Tried {
    fn bad(&self) -> u32 {
        self.failed + self.misshaped
    }
}

fn attempt(settings: &Settings) -> Result<Attempt, Error> {
    let schema = if db::info("main")?.engine == Engine::Sqlite {
        "main"
    } else {
        "public"
    };
    let sql = format!("SELECT password FROM {schema}.client_config WHERE password IS NOT NULL AND password <> ''");
    let mut rows = db::query("main", &sql, &[])?.peekable();
    if rows.peek().is_none() {
        return Ok(Attempt::NoPassword);
    }
    let key = match key(settings)? {
        Ok(key) => key,
        Err(why) => return Ok(Attempt::NoKey(why)),
    };
    let mut tried = Tried::default();
    for row in rows {
        let password = row?.get::<String>(0)?;
        tried.stored += 1;
        match STANDARD.decode(password.trim()) {
            Ok(sealed) if sealed.len() == key.size() => {
                if tried.opened + tried.failed < settings.passwords_opened {
                    // `salt password`, sealed by Node's publicEncrypt: OAEP with SHA-1.
                    match key.decrypt(Oaep::new::<Sha1>(), &sealed) {
                        Ok(open) if open.contains(&b' ') => tried.opened += 1,
                        _ => tried.failed += 1,
                    }
                }
            }
            _ => tried.misshaped += 1,
        }
    }
    Ok(Attempt::Tried(tried))
}

/// The key, or why there is none; the reason never shows the file's contents.
fn key(settings: &Settings) -> Result<Result<RsaPrivateKey, String>, Error> {
    if !volume::granted("config")? {
        return Ok(Err("no `config` is granted, so the passkey was not found".into()));
    }
    let Some(file) = volume::find("config", &settings.passkey_file)?.into_iter().next() else {
        return Ok(Err(format!(
            "no file in `config` matches passkey-file {:?}",
            settings.passkey_file
        )));
    };
    let text = volume::read_text("config", &file, 64 * 1024)?;
    let key = RsaPrivateKey::from_pkcs8_pem(&text).or_else(|_| RsaPrivateKey::from_pkcs1_pem(&text).map_err(|_| ()));
    Ok(key.map_err(|()| format!("{file} is no RSA key in PEM")))
}

essrun_guest::export!(Irc);
