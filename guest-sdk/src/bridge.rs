//! What all bridges have in common.
//!
//! A bridge is an application service: the registration file holds two tokens that must be the same on the bridge and
//! in Synapse; the mapping between rooms and remote chats lives in the bridge's database, the rooms and ghosts
//! themselves in Synapse. So an old bridge beside a newer Synapse makes duplicates, and every bridge must be restarted
//! after Synapse went back, because bridges remember transaction ids in memory.

use crate::{
    ArtifactClass, BackupPlan, BackupView, Description, Error, Findings, Need, RestorePlan, Sensitivity, Tier,
    artifacts_back, check, config::yaml_scalar, db, volume,
};

/// Configuration files are small.
const FILE_BYTES: u32 = 1 << 20;

/// A bridge with a database `main` and its configuration in `config`.
pub fn description(system: &str, version: &str, loss: &str) -> Description {
    Description::new(system, version, Tier::Bridge)
        .loss(loss)
        .need(Need::database("main", "the bridge's database, PostgreSQL or SQLite"))
        .need(Need::volume("config", "the bridge's directory: configuration, registration, keys").optional())
        .setting(
            "registration-file",
            "\"*registration*.yaml\"",
            "the application service registration in `config`; a pattern without `/` is looked for in every directory",
        )
        .schema("main")
        .class(
            ArtifactClass::new(
                "config",
                Sensitivity::Secret,
                "as_token and hs_token: whoever has them speaks as every user of the bridge; secrets of the remote network",
            )
            .on_leak("replace as_token and hs_token in the registration, in Synapse's copy and the bridge's, restart both")
            .on_leak("change the database password and the secrets of the remote network in the configuration"),
        )
}

/// Says what is missing when no configuration is granted.
///
/// With it granted, it is archived whole.
pub fn config_or_warning(plan: BackupPlan) -> Result<BackupPlan, Error> {
    Ok(match volume::granted("config")? {
        true => plan.archive(crate::ArchiveVolume::all("config")),
        false => plan.warn(
            "no `config` is granted: the registration with its tokens and the bridge's own secrets are not in this \
             backup; without them the database is of little use. Grant the bridge's directory as `config`",
        ),
    })
}

/// The database of whatever engine, with recorded row counts of the tables named, and the configuration.
pub fn plan_backup(dump: crate::DumpDatabase, counted: &[&str]) -> Result<BackupPlan, Error> {
    let plan = match db::info("main")?.engine {
        db::Engine::Postgres => BackupPlan::new().dump(dump),
        db::Engine::Sqlite => BackupPlan::new().copy_sqlite(crate::CopySqlite {
            database: "main".into(),
        }),
    };
    config_or_warning(plan.rows("main", counted)?)
}

/// Files, then the database, then what to do.
pub fn plan_restore(description: &Description, backup: &BackupView) -> RestorePlan {
    artifacts_back(description, backup)
        .note("bridges come last: start this one only after the restored Synapse answers, and restart it whenever Synapse was rolled back")
        .warn(
            "if Synapse is newer than this backup, chats made since then get a second room, and messages may be bridged \
             twice; restore the bridge and Synapse from the same time where possible",
        )
}

/// What mautrix bridges do at their start, which a restore decides about.
pub fn mautrix(plan: RestorePlan) -> RestorePlan {
    plan.warn(
        "with encryption on, the bridge asks Synapse for the keys of its own device: if a restored Synapse has none (its \
         backup is from before the bridge's login), it resets its encryption store, and messages it could read are \
         unreadable to it; restore both from the same time. If it has other keys than the bridge, the bridge does not start",
    )
    .note(
        "a refused as_token is fatal to the bridge: the registration in `config` must be the one Synapse has \
         (app_service_config_files)",
    )
    .note(
        "start it with the version it had or a newer one: where an older one says \"the pickled object is too new\", its \
         libolm cannot read the encryption account; do not delete the account, update the bridge",
    )
}

/// The registration is there, with both tokens. `pattern` is the setting `registration-file`.
pub fn registration(findings: &mut Findings, backup: &BackupView, pattern: &str) -> Result<(), Error> {
    let name = "bridge-registration";
    if !backup.holds("config") || !volume::granted("config")? {
        findings.push(check(name).warn(
            "no configuration is restored",
            "make sure that the bridge's configuration and registration are there, with the tokens Synapse knows",
        ));
        return Ok(());
    }
    let mut good = Vec::new();
    for file in volume::find("config", pattern)? {
        let text = volume::read_text("config", &file, FILE_BYTES)?;
        let has = |key: &str| yaml_scalar(&text, &[key]).is_some_and(|v| !v.is_empty());
        if has("as_token") && has("hs_token") {
            good.push(file);
        }
    }
    findings.push(match good.is_empty() {
        false => check(name).pass(format!("as_token and hs_token are in {}", good.join(", "))),
        true => check(name).warn(
            format!("no file matching {pattern:?} has as_token and hs_token"),
            "set registration-file, or put the registration back; its tokens must be those in Synapse's copy",
        ),
    });
    Ok(())
}

/// The settings every bridge understands.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Where the registration is in `config`.
    pub registration_file: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            registration_file: "*registration*.yaml".into(),
        }
    }
}

/// Whether a value at a path of keys is set in any YAML file of `config`.
pub fn configured(path: &[&str]) -> Result<Option<String>, Error> {
    if !volume::granted("config")? {
        return Ok(None);
    }
    for file in volume::find("config", "*.y*ml")? {
        let Ok(text) = volume::read_text("config", &file, FILE_BYTES) else {
            continue; // too large or no text: no configuration file of a bridge
        };
        if let Some(value) = yaml_scalar(&text, path).filter(|v| !v.is_empty()) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// mautrix bridges with encryption: their crypto_account cannot be read without `encryption.pickle_key`.
pub fn pickle_key(findings: &mut Findings) -> Result<(), Error> {
    let tables = db::tables("main")?;
    let Some(account) = tables.iter().find(|t| t.name == "crypto_account") else {
        return Ok(());
    };
    let check = check("mautrix-pickle-key");
    if db::count_only("main", db::info("main")?.engine, account)? == 0 {
        findings.push(check.pass("the bridge has no encryption account"));
    } else if configured(&["encryption", "pickle_key"])?.is_some()
        || configured(&["bridge", "encryption", "pickle_key"])?.is_some()
    {
        findings.push(check.pass("encryption.pickle_key is in the configuration"));
    } else {
        findings.push(check.warn(
            "the bridge has an encryption account, and no encryption.pickle_key was found in `config`",
            "put the old pickle_key back (an old configuration may rely on the default, `mautrix.bridge.e2ee`): without it \
             the account cannot be read and the bridge does not start",
        ));
    }
    Ok(())
}

/// mautrix bridges refuse a database whose owner is another program.
pub fn database_owner(findings: &mut Findings, owner: &str) -> Result<(), Error> {
    let tables = db::tables("main")?;
    let Some(table) = tables
        .iter()
        .find(|t| t.name == "database_owner" && t.has_column("owner"))
    else {
        return Ok(());
    };
    let found: Option<String> = db::scalar("main", &format!("SELECT owner FROM {}", table.sql_name()), &[])?;
    let check = check("mautrix-database-owner");
    findings.push(match found.as_deref() {
        Some(found) if found == owner => check.pass(format!("the database belongs to {owner}")),
        other => check.fail(
            format!("database_owner is {other:?} instead of {owner:?}: the bridge refuses this database"),
            "this is another program's database, or database_owner was not restored; restore again into a fresh one",
        ),
    });
    Ok(())
}

/// Row counts of whatever engine the bridge uses: PostgreSQL tables against the dump, SQLite against the facts.
pub fn rows(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    match db::info("main")?.engine {
        db::Engine::Postgres => findings.row_counts(backup, "main"),
        db::Engine::Sqlite => findings.rows_as_recorded(backup, "main"),
    }
}
