//! What Element's two bots, Adminbot and Auditbot, have in common.
//!
//! Both keep an encryption store and a cache of logins in a volume that belongs to numeric user 10006; pods cannot read
//! it otherwise. The store must not be older than Synapse: ratchets that went back cannot decrypt. Their passphrase
//! opens the key backup in Synapse's database, so passphrase and Synapse's database together can make message keys
//! again when the volume is lost.

use crate::{
    ArchiveVolume, ArtifactClass, BackupPlan, BackupView, Description, Error, Finding, Findings, IncidentPlan, Need,
    RestorePlan, Sensitivity, Statement, Tier, artifacts_back, check, config::yaml_scalar, db, incident, settings,
    volume,
};
use serde::Deserialize;

/// The numeric user and group the bots run as.
const OWNER: u32 = 10006;

/// The bots' settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// `@adminbot:example.org`; empty where not told.
    pub user_id: String,
    /// Numeric owner of the files.
    pub uid: u32,
    /// Numeric group of the files.
    pub gid: u32,
    /// Auditbot only: the logs go to a bucket.
    pub logs_in_bucket: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            user_id: String::new(),
            uid: OWNER,
            gid: OWNER,
            logs_in_bucket: false,
        }
    }
}

impl Settings {
    /// Reads and checks them.
    pub fn get() -> Result<Self, Error> {
        let settings: Settings = settings::get()?;
        let id = &settings.user_id;
        let good = id
            .strip_prefix('@')
            .and_then(|r| r.split_once(':'))
            .is_some_and(|(l, s)| !l.is_empty() && !s.is_empty());
        if !id.is_empty() && (!good || id.chars().any(|c| c.is_control() || c == '\'' || c == '\\')) {
            return Err(Error::invalid_setting(
                "user-id",
                format!("{id:?} is no Matrix user id; write \"@bot:example.org\""),
            ));
        }
        Ok(settings)
    }
}

/// A bot with its volume `data`.
pub fn description(system: &str, version: &str, loss: &str) -> Description {
    Description::new(system, version, Tier::Feature)
        .loss(loss)
        .need(Need::volume("data", "the bot's volume: encryption store and cache of logins"))
        .need(Need::volume("config", "its configuration with bot_backup_phrase").optional())
        .need(Need::database("synapse", "Synapse's database, to end the bot's sessions after a leak").peer().optional())
        .need(Need::database("mas", "MAS's database, for the same where MAS keeps the tokens").peer().optional())
        .setting("user-id", "\"\"", "the bot's Matrix user id, \"@bot:example.org\"; needed to end its sessions after a leak")
        .setting("uid", "10006", "numeric owner the restored files get")
        .setting("gid", "10006", "numeric group the restored files get")
        .class(
            ArtifactClass::new("data", Sensitivity::Secret, "the bot's encryption keys and access tokens: it is in many rooms, often as their administrator")
                .on_leak("end the bot's sessions (the prepared statements do it once user-id is set), restart Synapse, let the bot log in again")
                .on_leak("tell the members of the bot's rooms that messages up to the backup can be read by whoever has both the backup and the rooms' events"),
        )
        .class(
            ArtifactClass::new("config", Sensitivity::Secret, "bot_backup_phrase: opens the bot's key backup in Synapse")
                .on_leak("set a new bot_backup_phrase and let the bot make a new key backup"),
        )
}

/// The volume whole, and the passphrase's whereabouts.
pub fn plan_backup() -> Result<BackupPlan, Error> {
    Settings::get()?;
    let mut plan = BackupPlan::new().archive(ArchiveVolume::all("data"));
    if let Some(root) = volume::walk("data", "", false)?.next().transpose()? {
        plan = plan.fact("owner", format!("{}:{}", root.uid, root.gid));
    } else {
        plan = plan.warn("`data` is empty: is it the bot's volume (bot_data_path)?");
    }
    if volume::granted("config")? {
        plan = plan.archive(ArchiveVolume::all("config"));
        plan = plan.fact("passphrase", if passphrase()? { "present" } else { "not-found" });
    } else {
        plan = plan.warn(
            "no `config` is granted: bot_backup_phrase is not in this backup. Without it, this volume is the only copy of \
             the keys to the bot's messages",
        );
    }
    Ok(plan)
}

/// Files, their owner, and what to mind.
pub fn plan_restore(description: &Description, backup: &BackupView) -> Result<RestorePlan, Error> {
    let settings = Settings::get()?;
    Ok(artifacts_back(description, backup)
        .set_owner("data", "", settings.uid, settings.gid, "the bot runs as this numeric user and cannot read the files otherwise")
        .warn(
            "the bot's volume must not be older than Synapse: ratchets that went back cannot decrypt. If it is, let the bot \
             log in anew and restore its keys with bot_backup_phrase",
        )
        .note("if Synapse is older than this backup, the bot's device may be missing there: then it must log in anew")
        .note(
            "the restored bot is still a member of its rooms, and taking it away does not make it leave them; where it lost its \
             rights as administrator everywhere it cannot come back by itself",
        )
        .note("start it after Synapse"))
}

/// Something is there, and belongs to the right user.
pub fn verify(name: &str) -> Result<Findings, Error> {
    let settings = Settings::get()?;
    let mut findings = Findings::new();
    let (mut entries, mut foreign) = (0u64, 0u64);
    for entry in volume::walk("data", "", true)? {
        let entry = entry?;
        entries += 1;
        foreign += u64::from((entry.uid, entry.gid) != (settings.uid, settings.gid));
    }
    findings.push(match entries {
        0 => check(format!("{name}-data")).fail("the volume is empty", "restore it again"),
        n => check(format!("{name}-data")).pass(format!("{n} entries")),
    });
    findings.push(match foreign {
        0 => check(format!("{name}-owner")).pass(format!("all belong to {}:{}", settings.uid, settings.gid)),
        n => check(format!("{name}-owner")).warn(
            format!(
                "{n} of {entries} entries do not belong to {}:{}",
                settings.uid, settings.gid
            ),
            "run the restore as root, or chown -R the volume; the bot cannot read it otherwise",
        ),
    });
    if volume::granted("config")? {
        findings.push(match passphrase()? {
            true => check(format!("{name}-passphrase")).pass("bot_backup_phrase is in the configuration"),
            false => check(format!("{name}-passphrase")).warn(
                "bot_backup_phrase was not found in the configuration",
                "make sure it is known: it is the second way to the bot's message keys",
            ),
        });
    }
    Ok(findings)
}

/// As `Component::verify` wants it.
pub fn found(findings: Findings) -> Vec<Finding> {
    findings.into()
}

fn passphrase() -> Result<bool, Error> {
    for file in volume::find("config", "*")? {
        let Ok(text) = volume::read_text("config", &file, 1 << 20) else {
            continue;
        };
        let direct = yaml_scalar(&text, &["bot_backup_phrase"]);
        let any_line = || {
            text.lines()
                .any(|l| l.trim().trim_matches('"').starts_with("bot_backup_phrase"))
        };
        if direct.is_some_and(|v| !v.is_empty()) || any_line() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends the bot's sessions where its user id is set and the database is granted; says what to do by hand.
pub fn respond(description: &Description, backup: &BackupView) -> Result<IncidentPlan, Error> {
    let settings = Settings::get()?;
    let mut plan = IncidentPlan::new();
    if settings.user_id.is_empty() {
        plan = plan.advise(&["data"], "set user-id in the bot's settings, so that its sessions can be ended here; or log all its devices out by hand");
    } else {
        let user = db::literal(&settings.user_id);
        let localpart = settings
            .user_id
            .trim_start_matches('@')
            .split(':')
            .next()
            .unwrap_or_default();
        if db::granted("synapse")?.is_some() {
            plan = plan.run_sql(Statement::delete(
                &["data"],
                "synapse",
                "public.access_tokens",
                &format!("user_id = {user}"),
                "ends the bot's sessions in Synapse; restart Synapse right after, it caches tokens. The bot logs in again",
            ));
        }
        if db::granted("mas")?.is_some() {
            let sessions = format!(
                "compat_session_id IN (SELECT s.compat_session_id FROM public.compat_sessions s \
                 JOIN public.users u ON u.user_id = s.user_id WHERE u.username = {})",
                db::literal(localpart)
            );
            plan = plan
                .run_sql(Statement::update(
                    &["data"],
                    "mas",
                    "public.compat_access_tokens",
                    "expires_at = now()",
                    &format!("(expires_at IS NULL OR expires_at > now()) AND {sessions}"),
                    "expires the bot's tokens in MAS; the bot logs in again",
                ))
                .run_sql(Statement::update(
                    &["data"],
                    "mas",
                    "public.compat_refresh_tokens",
                    "consumed_at = now()",
                    &format!("consumed_at IS NULL AND {sessions}"),
                    "uses up the bot's refresh tokens in MAS, which would make new tokens",
                ));
        }
    }
    Ok(plan.then(incident::from_classes(description, backup)))
}
