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
        .class(ArtifactClass::new("main/ddl*", Sensitivity::Internal, "the schema"))
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
pub fn config_or_warning(plan: BackupPlan) -> Result<BackupPlan, Error> {
    Ok(match volume::granted("config")? {
        true => plan,
        false => plan.warn(
            "no `config` is granted: the registration with its tokens and the bridge's own secrets are not in this \
             backup; without them the database is of little use. Grant the bridge's directory as `config`",
        ),
    })
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

/// The registration is there, with both tokens. `pattern` is the setting `registration-file`.
pub fn registration(findings: &mut Findings, backup: &BackupView, pattern: &str) -> Result<(), Error> {
    let name = "bridge-registration";
    if !backup.holds("config") || !volume::granted("config")? {
        findings.push(check(name).warn(
            "the backup holds no configuration",
            "put the bridge's configuration and registration back by other means, with the tokens Synapse knows",
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

/// Row counts of whatever engine the bridge uses: PostgreSQL tables against the dump, SQLite against the facts.
pub fn rows(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    match db::info("main")?.engine {
        db::Engine::Postgres => findings.row_counts(backup, "main"),
        db::Engine::Sqlite => findings.rows_as_recorded(backup, "main"),
    }
}
