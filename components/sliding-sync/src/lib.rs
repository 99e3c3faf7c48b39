//! The sliding sync proxy (archived; Synapse has a sliding sync of its own now).
//!
//! All but one table is a cache that the proxy fetches again from Synapse. The one is syncv3_to_device_messages: the
//! proxy takes to-device messages out of Synapse, so room keys not yet delivered exist only here. Stored tokens are
//! sealed with SYNCV3_SECRET; with a wrong one the proxy starts, skips them silently and never replaces them.

#![deny(unsafe_code)]

use aes_gcm::{Aes256Gcm, KeyInit, aead::Aead};
use essrun_guest::{incident, prelude::*};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The component.
pub struct SlidingSync;

const TOKENS: &str = "main/public.syncv3_sync2_tokens";
/// As many tokens are opened: one is proof enough, a few show a change of the secret.
const TRIED: usize = 50;

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    secret_file: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            secret_file: "*".into(),
        }
    }
}

impl Component for SlidingSync {
    fn describe() -> Description {
        Description::new("Sliding Sync", env!("CARGO_PKG_VERSION"), Tier::Rebuildable)
            .loss("Clients that use the proxy start over with a slow first sync; room keys it had not yet delivered are lost for good.")
            .need(Need::database("main", "the proxy's PostgreSQL database"))
            .need(Need::volume("config", "the directory with the file that sets SYNCV3_SECRET").optional())
            .setting("secret-file", "\"*\"", "the file in `config` that has a line SYNCV3_SECRET=…, or holds nothing but the secret; a pattern without `/` is looked for in every directory")
            .schema("main")
            .class(ArtifactClass::new("main/public.*", Sensitivity::Personal, "rooms, members, and messages of unencrypted rooms")
                .on_leak("tell the members of unencrypted rooms that their messages are known"))
            .class(ArtifactClass::new("main/public.syncv3_to_device_messages", Sensitivity::Secret, "room keys under way, encrypted for single devices"))
            .class(ArtifactClass::new(TOKENS, Sensitivity::Secret, "users' access tokens, sealed with SYNCV3_SECRET: they can send messages, not read encrypted ones")
                .on_leak("if SYNCV3_SECRET leaked as well, end the users' sessions in Synapse or MAS"))
            .class(ArtifactClass::new("config", Sensitivity::Secret, "SYNCV3_SECRET, which opens the tokens, and the database password")
                .on_leak("set a new SYNCV3_SECRET and empty syncv3_sync2_tokens (the prepared statement does it): the secret must not change while sealed tokens remain"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings: Settings = settings::get()?;
        known()?;
        let plan = BackupPlan::new().dump(DumpDatabase::all("main")).rows(
            "main",
            &[
                "syncv3_to_device_messages",
                "syncv3_sync2_tokens",
                "syncv3_sync2_devices",
            ],
        )?;
        if !volume::granted("config")? {
            return Ok(plan.warn("no `config` is granted: SYNCV3_SECRET is not in this backup, and must stay the same as long as the database lives"));
        }
        let plan = plan.archive(ArchiveVolume::all("config"));
        Ok(match attempt(&settings)? {
            Attempt::NoToken => plan.fact("secret", "no-token"),
            Attempt::NoSecret => {
                plan.warn("SYNCV3_SECRET was not found in `config`; set secret-file, or make sure it is kept")
            }
            Attempt::Opened { good, all } => {
                let plan = plan.fact("secret", format!("opens {good} of {all}"));
                if good == all {
                    plan
                } else {
                    plan.warn(format!(
                        "SYNCV3_SECRET in `config` opens only {good} of {all} tokens of the live database"
                    ))
                }
            }
        })
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(essrun_guest::artifacts_back(&Self::describe(), backup)
            .note("start the proxy after Synapse; an older database fetches again what it missed, as long as Synapse is not older still")
            .warn(
                "to-device messages the proxy took from Synapse since this backup are lost: some messages stay undecryptable \
                 until their senders share the keys again",
            ))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        known()?;
        let mut findings = Findings::new();
        findings.row_counts(backup, "main")?;
        let check = check("sliding-sync-secret");
        let remedy = "put the old SYNCV3_SECRET back before the proxy starts: it skips what it cannot open, and never replaces it";
        findings.push(match attempt(&settings)? {
            Attempt::NoToken => check.pass("no sealed token is stored"),
            Attempt::NoSecret => check.warn(
                "SYNCV3_SECRET was not found, so it is not known whether it opens the tokens",
                remedy,
            ),
            Attempt::Opened { good, all } if good == all => {
                check.pass(format!("SYNCV3_SECRET opens {good} of {all} tokens tried"))
            }
            Attempt::Opened { good, all } if backup.fact("secret") == Some(&format!("opens {good} of {all}")) => check
                .warn(
                    format!("opens {good} of {all} tokens, as when the backup was taken"),
                    remedy,
                ),
            Attempt::Opened { good, all } => {
                check.fail(format!("SYNCV3_SECRET opens {good} of {all} tokens tried"), remedy)
            }
        });
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(IncidentPlan::new()
            .run_sql(Statement::delete(
                &[TOKENS, "config"],
                "main",
                "public.syncv3_sync2_tokens",
                "TRUE",
                "forgets all stored tokens; clients bring theirs again with their next request",
            ))
            .then(incident::from_classes(&Self::describe(), backup)))
    }
}

fn known() -> Result<(), Error> {
    db::tables_of(
        "main",
        "the sliding sync proxy",
        &[
            "public.syncv3_events",
            "public.syncv3_sync2_tokens",
            "public.syncv3_to_device_messages",
        ],
    )?;
    Ok(())
}

enum Attempt {
    NoToken,
    NoSecret,
    Opened { good: usize, all: usize },
}

fn attempt(settings: &Settings) -> Result<Attempt, Error> {
    let sql =
        format!("SELECT token_encrypted FROM public.syncv3_sync2_tokens WHERE token_encrypted <> '' LIMIT {TRIED}");
    let mut tokens = Vec::new();
    for row in db::query("main", &sql, &[])? {
        tokens.push(row?.get::<String>(0)?);
    }
    if tokens.is_empty() {
        return Ok(Attempt::NoToken);
    }
    if !volume::granted("config")? {
        return Ok(Attempt::NoSecret);
    }
    let mut secrets = Vec::new();
    let files = volume::find("config", &settings.secret_file)?;
    for file in &files {
        let Ok(text) = volume::read_text("config", file, 64 * 1024) else {
            continue;
        };
        let named = text.lines().find_map(|l| {
            let value = l
                .trim()
                .trim_start_matches("export ")
                .strip_prefix("SYNCV3_SECRET")?
                .trim_start();
            Some(
                value
                    .strip_prefix(['=', ':'])?
                    .trim()
                    .trim_matches(['"', '\''])
                    .to_owned(),
            )
        });
        match named {
            Some(secret) => secrets.push(secret),
            // A file named exactly for it may hold nothing else.
            None if files.len() == 1 => secrets.push(text.trim().to_owned()),
            None => {}
        }
    }
    let best = secrets
        .iter()
        .map(|s| tokens.iter().filter(|t| opens(s, t)).count())
        .max();
    Ok(match best {
        Some(good) => Attempt::Opened {
            good,
            all: tokens.len(),
        },
        None => Attempt::NoSecret,
    })
}

/// AES-256-GCM with SHA-256 of the secret, over `nonce ciphertext` in hexadecimal digits.
fn opens(secret: &str, sealed: &str) -> bool {
    let Some((nonce, text)) = sealed.split_once(' ') else {
        return false;
    };
    let (Ok(nonce), Ok(text)) = (hex::decode(nonce), hex::decode(text)) else {
        return false;
    };
    let Ok(nonce) = <[u8; 12]>::try_from(nonce) else {
        return false;
    };
    let key: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
    Aes256Gcm::new(&key.into())
        .decrypt(&nonce.into(), text.as_slice())
        .is_ok()
}

essrun_guest::export!(SlidingSync);
