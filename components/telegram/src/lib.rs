//! The Telegram bridge, mautrix-telegram, in Python (to 0.15) and in Go (from 25.10).
//!
//! A session's auth_key is the whole Telegram account, in clear. One of its tables is named `user`, a reserved word:
//! everything here goes by catalogued, quoted names. In Go the session moved into user_login.metadata.

#![deny(unsafe_code)]

use essrun_guest::{bridge, bridge::Settings, incident, prelude::*};

/// The component.
pub struct Telegram;

const COUNTED: &[&str] = &[
    "user",
    "portal",
    "puppet",
    "user_portal",
    "message",
    "bot_chat",
    "contact",
    "telethon_sessions",
    "telethon_entities",
    "user_login",
    "ghost",
    "crypto_account",
];
const END_SESSIONS: &str =
    "have every user end the bridge's session in Telegram (Settings, Devices): deleting it here does not end it there";

impl Component for Telegram {
    fn describe() -> Description {
        let secret = |pattern, exposes| ArtifactClass::new(pattern, Sensitivity::Secret, exposes).on_leak(END_SESSIONS);
        bridge::description(
            "Telegram bridge (mautrix-telegram)",
            env!("CARGO_PKG_VERSION"),
            "Every user must log in to Telegram again; chats get new Matrix rooms.",
        )
        .class(
            ArtifactClass::new(
                "main/public.*",
                Sensitivity::Personal,
                "contacts, chats and who wrote when",
            )
            .on_leak("inform the users: contacts and chats are known"),
        )
        .class(secret(
            "main/public.telethon_sessions",
            "auth_key in clear: FULL ACCESS to the users' Telegram accounts",
        ))
        .class(secret(
            "main/public.user_login",
            "sessions in clear: FULL ACCESS to the users' Telegram accounts",
        ))
        .class(
            ArtifactClass::new(
                "main/public.puppet",
                Sensitivity::Secret,
                "access tokens of double puppets: the users' Matrix accounts",
            )
            .on_leak("end the double puppets' sessions in Synapse or MAS"),
        )
        .class(ArtifactClass::new(
            "main/public.user",
            Sensitivity::Secret,
            "phone numbers and logins",
        ))
        .class(ArtifactClass::new(
            "main/public.crypto_*",
            Sensitivity::Secret,
            "the bridge's Matrix encryption keys",
        ))
        .class(
            ArtifactClass::new("config", Sensitivity::Secret, "api_hash and the bot's token")
                .on_leak("revoke the bot's token at @BotFather"),
        )
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        settings::get::<Settings>()?;
        known()?;
        let plan = bridge::plan_backup(DumpDatabase::all("main"), COUNTED)?;
        Ok(match sessions()? {
            0 => plan.fact("sessions", 0),
            n => plan.fact("sessions", n).warn(format!(
                "this backup holds {n} Telegram sessions in clear: each is full access to an account"
            )),
        })
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(bridge::mautrix(bridge::plan_restore(&Self::describe(), backup))
            .note("users who ended the bridge's session since the backup must log in again"))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        known()?;
        let mut findings = Findings::new();
        bridge::rows(&mut findings, backup)?;
        let (found, before) = (sessions()?, backup.fact_integer("sessions"));
        findings.push(if !backup.holds("main") {
            check("telegram-sessions").pass(format!("{found} sessions are in the database, which is not restored"))
        } else if Some(found) == before {
            check("telegram-sessions").pass(format!("{found} sessions are there with their key"))
        } else {
            check("telegram-sessions").fail(
                format!("{found} sessions with a key, they were {before:?}"),
                "remove the target database and restore again into a fresh one",
            )
        });
        bridge::pickle_key(&mut findings)?;
        bridge::registration(&mut findings, backup, &settings.registration_file)?;
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        let mut plan = IncidentPlan::new();
        if backup.artifact("main/public.telethon_sessions").is_some() {
            plan = plan.run_sql(Statement::delete(
                &["main/public.telethon_sessions"],
                "main",
                "public.telethon_sessions",
                "TRUE",
                "logs the bridge out of every Telegram account on this side; stop the bridge first. The sessions live on at Telegram until users end them",
            ));
        }
        if backup.artifact("main/public.puppet").is_some() {
            plan = plan.run_sql(Statement::update(
                &["main/public.puppet"],
                "main",
                "public.puppet",
                "access_token = NULL",
                "access_token IS NOT NULL",
                "forgets the double puppets' Matrix tokens; users log in to Matrix at the bridge again",
            ));
        }
        Ok(plan.then(incident::from_classes(&Self::describe(), backup)))
    }
}

/// Either generation.
fn known() -> Result<(), Error> {
    let tables = db::tables_of("main", "mautrix-telegram", &["user", "portal"])?;
    if !tables
        .iter()
        .any(|t| t.name == "telethon_sessions" || t.name == "user_login")
    {
        return Err(Error::Unsupported("`main` has neither telethon_sessions nor user_login, so it is not mautrix-telegram's database; check the grant".into()));
    }
    Ok(())
}

/// Sessions that have what makes them one.
fn sessions() -> Result<i64, Error> {
    let tables = db::tables("main")?;
    let count = |name: &str, condition: &str| match tables.iter().find(|t| t.name == name) {
        Some(t) => db::count(
            "main",
            &format!("SELECT count(*) FROM {} WHERE {condition}", t.sql_name()),
            &[],
        ),
        None => Ok(0),
    };
    Ok(
        count("telethon_sessions", "auth_key IS NOT NULL AND length(auth_key) > 0")?
            + count("user_login", "metadata IS NOT NULL")?,
    )
}

essrun_guest::export!(Telegram);
