//! The WhatsApp bridge, mautrix-whatsapp: a WhatsApp device of its own for every user.
//!
//! That is what makes its backups delicate: the device's Signal ratchets must never go back, so the older a restored
//! database is, the more messages cannot be decrypted, until the phone has to be linked again. Its Matrix side is
//! encrypted as well and needs `encryption.pickle_key`.

#![deny(unsafe_code)]

use essrun_guest::{
    bridge,
    bridge::Settings,
    db::{Engine, TableInfo},
    incident,
    prelude::*,
};

/// The component.
pub struct Whatsapp;

const COUNTED: &[&str] = &[
    "user",
    "user_login",
    "portal",
    "ghost",
    "message",
    "user_portal",
    "crypto_account",
    "whatsmeow_device",
    "whatsmeow_sessions",
    "whatsmeow_identity_keys",
];
const NEEDED: &[&str] = &["whatsmeow_device", "whatsmeow_sessions", "portal"];
const LINK_AGAIN: &str = "have every user remove the bridge under linked devices on the phone, and link it again";

impl Component for Whatsapp {
    fn describe() -> Description {
        bridge::description(
            "WhatsApp bridge (mautrix-whatsapp)",
            env!("CARGO_PKG_VERSION"),
            "Every user must link the phone again; chats get new Matrix rooms.",
        )
        .class(ArtifactClass::new("main*", Sensitivity::Secret, "the linked devices' keys: whoever has them is that user's WhatsApp; contacts, chats and, in whatsmeow_retry_buffer, messages in clear")
            .on_leak(LINK_AGAIN)
            .on_leak("inform the users: contacts and chats are known"))
        .class(ArtifactClass::new("config", Sensitivity::Secret, "encryption.pickle_key, which opens the bridge's Matrix encryption account"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        settings::get::<Settings>()?;
        db::tables_of("main", "mautrix-whatsapp", NEEDED)?;
        bridge::plan_backup(DumpDatabase::all("main"), COUNTED)
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(bridge::mautrix(bridge::plan_restore(&Self::describe(), backup)).warn(
            "the ratchets of WhatsApp's encryption go back with the database: messages may stay undecryptable, and users may \
             have to link the phone again. Restore the newest backup there is, and never start an old copy beside a running bridge",
        ))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        let tables = db::tables_of("main", "mautrix-whatsapp", NEEDED)?;
        let mut findings = Findings::new();
        bridge::rows(&mut findings, backup)?;
        bridge::pickle_key(&mut findings)?;
        bridge::database_owner(&mut findings, "mautrix-whatsapp")?;
        keys(&mut findings, &tables)?;
        bridge::registration(&mut findings, backup, &settings.registration_file)?;
        findings.push(check("whatsapp-ratchets").warn(
            "the encryption state is as old as the backup",
            "watch the bridge's log after the start for messages that cannot be decrypted; users who see them link the phone again",
        ));
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::from_classes(&Self::describe(), backup))
    }
}

/// What a device is made of, with the length it must have where there is one (whatsmeow, store/sqlstore). The first two are
/// in every version; the others only where the table has them.
const KEYS: &[(&str, Option<u32>)] = &[
    ("noise_key", Some(32)),
    ("identity_key", Some(32)),
    ("signed_pre_key", Some(32)),
    ("signed_pre_key_sig", Some(64)),
    ("adv_key", None),
    ("adv_details", None),
    ("adv_account_sig", Some(64)),
    ("adv_account_sig_key", Some(32)),
    ("adv_device_sig", Some(64)),
];

/// Every device has its keys and the signatures that link it to the phone, of the length WhatsApp uses.
fn keys(findings: &mut Findings, tables: &[TableInfo]) -> Result<(), Error> {
    let device = tables.iter().find(|t| t.name == "whatsmeow_device");
    let there = |column: &str| device.is_some_and(|t| t.has_column(column));
    let wrong: Vec<String> = KEYS
        .iter()
        .enumerate()
        .filter(|(n, (column, _))| *n < 2 || there(column))
        .map(|(_, (column, length))| match length {
            Some(length) => format!("{column} IS NULL OR length({column}) <> {length}"),
            None => format!("{column} IS NULL OR length({column}) = 0"),
        })
        .collect();
    let engine = db::info("main")?.engine;
    let table = if engine == Engine::Sqlite {
        "main.whatsmeow_device"
    } else {
        "public.whatsmeow_device"
    };
    let bad = db::count(
        "main",
        &format!("SELECT count(*) FROM {table} WHERE {}", wrong.join(" OR ")),
        &[],
    )?;
    findings.push(match bad {
        0 => check("whatsapp-device-keys").pass("every linked device has its keys and signatures"),
        n => check("whatsapp-device-keys").fail(
            format!("{n} linked devices have no whole keys"),
            "restore again; if it stays, these users must link the phone again",
        ),
    });
    Ok(())
}

essrun_guest::export!(Whatsapp);
