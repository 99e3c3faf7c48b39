//! Sydent, the identity server: who has which mail address or phone number, by consent.
//!
//! Upstream keeps everything in one SQLite file whose schema version is `PRAGMA user_version`. A copy made as SQL text
//! loses it, and Sydent then rebuilds a table without its hashes and crashes; the host's online backup keeps it. Sites
//! that run it on PostgreSQL are served as well. Its configuration is state too: when the signing key in it is empty,
//! Sydent makes a new one and writes it there.

#![deny(unsafe_code)]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use essrun_guest::{db::Engine, incident, prelude::*, signing_key};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The component.
pub struct Sydent;

const TABLES: &[&str] = &[
    "local_threepid_associations",
    "global_threepid_associations",
    "invite_tokens",
    "ephemeral_public_keys",
    "threepid_validation_sessions",
    "threepid_token_auths",
    "peers",
    "peer_pubkeys",
    "hashing_metadata",
    "accounts",
    "tokens",
    "accepted_terms_urls",
];
/// As many stored hashes are computed again.
const HASHES: u32 = 200;
const FILE_BYTES: u32 = 1 << 20;

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    config_file: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            config_file: "sydent.conf".into(),
        }
    }
}

impl Component for Sydent {
    fn describe() -> Description {
        Description::new("Sydent", env!("CARGO_PKG_VERSION"), Tier::Feature)
            .loss("Nobody is found by mail address or phone number, and invitations by mail cannot be taken up; users must give their consent again.")
            .need(Need::database("main", "Sydent's database, normally the SQLite file of [db] db.file"))
            .need(Need::volume("config", "the directory with sydent.conf, which holds the signing key").optional())
            .setting("config-file", "\"sydent.conf\"", "the configuration's path in `config`; a pattern without `/` is looked for in every directory")
            .class(ArtifactClass::new("main*", Sensitivity::Secret, "mail addresses and phone numbers with the accounts they belong to; PLAINTEXT access tokens; the pepper of the published hashes")
                .on_leak("delete all tokens (the prepared statement does it); clients ask for new ones")
                .on_leak("inform the users: their addresses and numbers are known")
                .on_leak("change the lookup pepper only with all hashes: Sydent makes both again when hashing_metadata is emptied"))
            .class(ArtifactClass::new("config", Sensitivity::Secret, "the signing key: whoever has it vouches for any address in this server's name")
                .on_leak("empty ed25519.signingkey in sydent.conf and start Sydent to make a new one; tell the homeservers that pinned the old one"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings: Settings = settings::get()?;
        db::tables_of(
            "main",
            "Sydent",
            &["local_threepid_associations", "hashing_metadata", "tokens"],
        )?;
        let mut plan = BackupPlan::new();
        plan = match db::info("main")?.engine {
            Engine::Postgres => plan.dump(DumpDatabase::all("main")),
            Engine::Sqlite => {
                let version = user_version()?;
                if version == 0 {
                    return Err(Error::Unsupported(
                        "`main` has tables but PRAGMA user_version is 0: this file was made from an SQL dump, and Sydent \
                         will damage it when it starts; set the pragma (5 in current versions) and look at lookup_hash"
                            .into(),
                    ));
                }
                let mut plan = plan
                    .copy_sqlite(CopySqlite {
                        database: "main".into(),
                    })
                    .fact("user-version", version);
                if has_sequences()? {
                    for (name, seq) in sequences()? {
                        plan = plan.fact(format!("sqlite-sequence/{name}"), seq);
                    }
                }
                plan
            }
        };
        plan = plan.rows("main", TABLES)?;
        if !volume::granted("config")? {
            return Ok(plan.warn("no `config` is granted: the signing key in sydent.conf is not in this backup"));
        }
        plan = plan.archive(ArchiveVolume::all("config"));
        Ok(match key(&settings)? {
            Ok(key) => plan.fact("signing-key", format!("{} {}", key.id, key.public)),
            Err(why) => plan.warn(format!(
                "{why}: Sydent makes a new key when ed25519.signingkey is empty, and can do so only where sydent.conf is writable"
            )),
        })
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(essrun_guest::artifacts_back(&Self::describe(), backup)
            .note("addresses users removed since the backup are published again, those they added are gone"))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        let mut findings = Findings::new();
        db::tables_of("main", "Sydent", &["local_threepid_associations", "hashing_metadata"])?;
        match db::info("main")?.engine {
            Engine::Postgres => findings.row_counts(backup, "main")?,
            // Only other parts are restored: it is the live one, of which the backup knows nothing.
            Engine::Sqlite if !backup.holds("main") => {}
            Engine::Sqlite => {
                version(&mut findings, backup)?;
                sequence(&mut findings, backup)?;
                findings.rows_as_recorded(backup, "main")?;
            }
        }
        hashes(&mut findings)?;
        if backup.holds("config") && volume::granted("config")? {
            let check = check("sydent-signing-key");
            let remedy = "put the old sydent.conf back before the first start";
            findings.push(match (key(&settings)?, backup.fact("signing-key")) {
                (Ok(key), Some(before)) if before == format!("{} {}", key.id, key.public) => {
                    check.pass(format!("{} is back", key.id))
                }
                (Ok(key), Some(before)) => {
                    check.fail(format!("the key is {} {}, it was {before}", key.id, key.public), remedy)
                }
                (Ok(key), None) => check.warn(
                    format!("{} was not recognised when the backup was taken", key.id),
                    remedy,
                ),
                (Err(why), Some(_)) => check.fail(why, remedy),
                (Err(why), None) => check.warn(why, remedy),
            });
        } else {
            findings.push(check("sydent-signing-key").warn(
                "no configuration is restored",
                "make sure that sydent.conf with the old signing key is in place before the first start",
            ));
        }
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        let sqlite = backup.artifact("main").is_some_and(|a| a.kind == "sqlite");
        let table = if sqlite { "main.tokens" } else { "public.tokens" };
        Ok(IncidentPlan::new()
            .run_sql(Statement::delete(
                &["main*"],
                "main",
                table,
                "1 = 1",
                "all access tokens end; clients ask for new ones by themselves",
            ))
            .then(incident::from_classes(&Self::describe(), backup)))
    }
}

fn user_version() -> Result<i64, Error> {
    db::count("main", "SELECT user_version FROM pragma_user_version()", &[])
}

/// SQLite's own table of the ids given out; the host lists only a database's own tables.
fn has_sequences() -> Result<bool, Error> {
    db::count(
        "main",
        "SELECT count(*) FROM main.sqlite_schema WHERE name = 'sqlite_sequence'",
        &[],
    )
    .map(|n| n > 0)
}

fn sequences() -> Result<Vec<(String, i64)>, Error> {
    db::query("main", "SELECT name, seq FROM main.sqlite_sequence ORDER BY name", &[])?
        .map(|row| {
            let row = row?;
            Ok((row.get(0)?, row.get(1)?))
        })
        .collect()
}

fn version(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    let found = user_version()?;
    let check = check("sydent-user-version");
    findings.push(if Some(found) == backup.fact_integer("user-version") && found != 0 {
        check.pass(format!("PRAGMA user_version is {found}"))
    } else {
        check.fail(
            format!(
                "PRAGMA user_version is {found}, it was {}",
                backup.fact("user-version").unwrap_or("not recorded")
            ),
            "do not start Sydent: it would rebuild its tables and lose the hashes; restore the file again",
        )
    });
    Ok(())
}

/// Ids must never be used twice: other servers copy by id.
fn sequence(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    let mut low = Vec::new();
    let found = match backup.facts_below("sqlite-sequence/").next() {
        Some(_) if has_sequences()? => sequences()?,
        _ => Vec::new(),
    };
    for (name, before) in backup.facts_below("sqlite-sequence/") {
        let now = found.iter().find(|(n, _)| n == name).map(|(_, seq)| *seq);
        if now < before.parse().ok() {
            low.push(format!("{name} is at {now:?}, it was {before}"));
        }
    }
    findings.push(match low.is_empty() {
        true => check("sydent-sequences").pass("no id can be given twice"),
        false => check("sydent-sequences").fail(
            low.join("; "),
            "restore the file again with sqlite_sequence, or raise it",
        ),
    });
    Ok(())
}

/// The published hashes belong to the pepper: SHA-256 of `address medium pepper`.
fn hashes(findings: &mut Findings) -> Result<(), Error> {
    let schema = if db::info("main")?.engine == Engine::Sqlite {
        "main"
    } else {
        "public"
    };
    let check = check("sydent-lookup-hashes");
    let remedy = "restore again; without right hashes nobody is found. Emptying hashing_metadata makes Sydent compute them again at its start";
    let pepper: Option<String> = db::scalar(
        "main",
        &format!("SELECT lookup_pepper FROM {schema}.hashing_metadata"),
        &[],
    )?;
    let sql = format!(
        "SELECT address, medium, lookup_hash FROM {schema}.local_threepid_associations WHERE address IS NOT NULL LIMIT {HASHES}"
    );
    let (mut right, mut wrong) = (0, 0);
    for row in db::query("main", &sql, &[])? {
        let row = row?;
        let text = format!(
            "{} {} {}",
            row.get::<String>(0)?,
            row.get::<String>(1)?,
            pepper.as_deref().unwrap_or_default()
        );
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(text.as_bytes()));
        match row.get::<Option<String>>(2)?.map(|h| h.trim_end_matches('=') == hash) {
            Some(true) => right += 1,
            _ => wrong += 1,
        }
    }
    findings.push(match (&pepper, right, wrong) {
        (None, 0, 0) => check.pass("no pepper yet and nobody to find"),
        (None, ..) => check.fail("hashing_metadata has no pepper", remedy),
        (Some(_), n, 0) => check.pass(format!("{n} hashes belong to the pepper")),
        (Some(_), _, n) => check.fail(
            format!("{n} of {} hashes are missing or of another pepper", right + n),
            remedy,
        ),
    });
    Ok(())
}

/// `ed25519.signingkey = ed25519 0 SEED` in sydent.conf.
fn key(settings: &Settings) -> Result<Result<signing_key::PublicKey, String>, Error> {
    let Some(file) = volume::find("config", &settings.config_file)?.into_iter().next() else {
        return Ok(Err(format!(
            "no file in `config` matches config-file {:?}",
            settings.config_file
        )));
    };
    let text = volume::read_text("config", &file, FILE_BYTES)?;
    let value = text.lines().find_map(|l| {
        let (name, value) = l.split_once(['=', ':'])?;
        (name.trim() == "ed25519.signingkey").then(|| value.trim().to_owned())
    });
    let Some(value) = value.filter(|v| !v.is_empty()) else {
        return Ok(Err(format!("{file} has no ed25519.signingkey")));
    };
    Ok(signing_key::parse(&value)
        .and_then(|keys| keys.into_iter().next().ok_or_else(|| "it is empty".into()))
        .map_err(|why| format!("ed25519.signingkey in {file}: {why}")))
}

essrun_guest::export!(Sydent);
