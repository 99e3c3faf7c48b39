//! What MAS is and needs, and what each of its artifacts gives away.

use essrun_guest::prelude::*;

const END_SESSIONS: &str = "revoke the tokens (the prepared statements do it), or end the sessions of single users with \
     `mas-cli manage kill-sessions`";

pub fn describe() -> Description {
    let secret = |pattern, exposes| ArtifactClass::new(pattern, Sensitivity::Secret, exposes);
    Description::new("Matrix Authentication Service", env!("CARGO_PKG_VERSION"), Tier::Critical)
        .loss("Nobody can log in, and every session ends. Accounts, passwords, links to identity providers and registered clients are only here.")
        .need(Need::database("main", "MAS's PostgreSQL database, all of its state"))
        .need(Need::volume("config", "the directory with config.yaml and the secrets it names").optional())
        .need(Need::database("synapse", "Synapse's database, to compare users and devices").peer().optional())
        .setting("hold-back", "[]", "queues (with `*`) whose waiting jobs must not run after a restore, such as \"send-*\", \"deactivate-user\", \"sync-devices\"; the restore plan shows what waits")
        .setting("config-file", "\"*.yaml\"", "the file in `config` that has secrets.encryption; a pattern without `/` is looked for in every directory")
        .setting("encryption-file", "\"\"", "the path in `config` of a file that holds nothing but secrets.encryption, where it is kept so")
        .setting("version", "\"\"", "the version of MAS that is running, as `mas-cli --version` has it: kept with the backup, and told by a restore")
        .fence("main", &["public.users", "public.compat_sessions", "public.oauth2_sessions"])
        .schema("main")
        .class(ArtifactClass::new("main/public.*", Sensitivity::Personal, "names, addresses, programs and times of users' sessions")
            .on_leak("inform the users as the law asks"))
        .class(secret("main/public.user_passwords", "password hashes, also all former ones")
            .on_leak("have every user choose a new password (`mas-cli manage set-password`, or recovery mails)"))
        .class(secret("main/public.user_emails", "mail addresses, which are the way to recover accounts"))
        .class(secret("main/public.compat_access_tokens", "PLAINTEXT tokens: whoever reads them is that user").on_leak(END_SESSIONS))
        .class(secret("main/public.compat_refresh_tokens", "PLAINTEXT tokens that make new access tokens").on_leak(END_SESSIONS))
        .class(secret("main/public.compat_sso_logins", "tokens of logins under way"))
        .class(secret("main/public.oauth2_access_tokens", "PLAINTEXT tokens, valid for five minutes"))
        .class(secret("main/public.oauth2_refresh_tokens", "PLAINTEXT tokens that make new access tokens").on_leak(END_SESSIONS))
        .class(secret("main/public.oauth2_authorization_grants", "codes of logins under way"))
        .class(secret("main/public.oauth2_device_code_grant", "codes of logins under way"))
        .class(secret("main/public.oauth2_clients", "client secrets, encrypted with secrets.encryption")
            .on_leak("if secrets.encryption leaked as well, give confidential clients new secrets"))
        .class(secret("main/public.personal_access_tokens", "SHA-256 of tokens: cannot be used as they are"))
        .class(secret("main/public.user_recovery_*", "tickets that recover accounts while they are valid").on_leak("let open recoveries expire (the prepared statement does it)"))
        .class(secret("main/public.user_email_authentication*", "codes that confirm mail addresses while they are valid"))
        .class(secret("main/public.user_registration*", "registrations under way and registration tokens"))
        .class(secret("main/public.upstream_oauth_providers", "secrets of identity providers, encrypted with secrets.encryption"))
        .class(secret("main/public.upstream_oauth_authorization_sessions", "ID tokens of identity providers"))
        .class(secret("main/public.queue_jobs", "what jobs carry, also addresses"))
        .class(secret("config", "secrets.encryption, the signing keys, the secret shared with Synapse, the database and mail passwords")
            .on_leak("replace matrix.secret here and in Synapse: it is an administrator's key to the homeserver")
            .on_leak("replace secrets.keys (new key first in the list, remove the old after an hour) and provider and mail secrets")
            .on_leak("secrets.encryption cannot be changed without losing what it encrypts; replace it, and every client and provider secret with it, if the database leaked as well")
            .on_leak("change the database password"))
}
