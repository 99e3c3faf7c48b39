//! What Synapse is and needs, and what each of its artifacts gives away.

use crate::leave_out;
use essrun_guest::prelude::*;

const ROTATE_SIGNING_KEY: &str = "make a new signing key with generate_signing_key, put the old PUBLIC key with an expired_ts into \
     old_signing_keys of homeserver.yaml, restart Synapse; whoever has the old key can speak as this server to servers \
     that have not yet seen the change";
const END_SESSIONS: &str = "end the sessions whose tokens are in the backup (the prepared statements do it with a soft logout, so \
     that clients keep their encryption keys), then restart Synapse, which caches tokens";

pub fn describe() -> Description {
    let secret = |pattern, exposes| ArtifactClass::new(pattern, Sensitivity::Secret, exposes);
    let personal = |pattern, exposes| ArtifactClass::new(pattern, Sensitivity::Personal, exposes);
    Description::new("Synapse", env!("CARGO_PKG_VERSION"), Tier::Critical)
        .loss(
            "Everything: accounts, rooms, messages, room keys, media of local users. Other servers keep copies of shared \
             rooms but cannot give them back. Without the signing key the server cannot prove to be itself.",
        )
        .need(Need::database("main", "Synapse's PostgreSQL database (homeserver.yaml: database)"))
        .need(Need::database("state", "the second database of state groups, where homeserver.yaml has `databases`").optional())
        .need(Need::volume("media", "media_store_path; the only copy of what local users uploaded").optional())
        .need(
            Need::volume(
                "config",
                "the directory with homeserver.yaml, signing key, log config and the bridges' registrations",
            )
            .optional(),
        )
        .setting("leave-out", &leave_out::default_json(), &leave_out::purpose())
        .setting("thumbnails", "true", "take local_thumbnails; off only with `dynamic_thumbnails: true`, nothing else makes them again")
        .setting("remote-media", "false", "take the cache of other servers' media too; normally it is fetched again, unless the other server is gone")
        .setting("signing-key-file", "\"*.signing.key\"", "the signing key's path in `config`; a pattern without `/` is looked for in every directory")
        .setting("homeserver-file", "\"homeserver.yaml\"", "the file in `config` that has server_name; a pattern like the above")
        .setting("digest-media-files", "2000", "how many media files verify reads and compares by SHA-256, evenly spread; all are checked for being there, with the right length")
        .setting("tolerated-media-faults", "10", "how many missing or different media files, beyond those missing when the backup was taken, are only warned of; more refuse the restore")
        .setting("version", "\"\"", "the version of Synapse that is running: kept with the backup, and told by a restore, because an older one may refuse the restored database")
        .fence("main", &["public.users", "public.devices"])
        // Rows of `main` point at state groups, which are made first and must be in the backup too.
        .fence("state", &["public.state_groups"])
        .schema("main")
        .schema("state")
        .class(
            personal("main/public.*", "who is in which room since when, names, addresses of devices, traffic")
                .on_leak("inform the users as the law asks: membership, contact and activity of every account is exposed"),
        )
        .class(personal("state/public.*", "membership and names of every room over time"))
        .class(
            personal("main/public.event_json", "every message of unencrypted rooms in clear, metadata of all others")
                .on_leak("tell the members of unencrypted rooms that their messages are known; they cannot be called back"),
        )
        .class(personal("main/public.event_search", "the words of unencrypted messages"))
        .class(
            secret("main/public.user_ips", "PLAINTEXT tokens, beside the addresses and programs of their users, with times")
                .on_leak(END_SESSIONS),
        )
        .class(
            personal("main/public.user_threepids", "mail addresses and phone numbers of users")
                .on_leak("warn users of forged mail that names their account"),
        )
        .class(secret("main/public.access_tokens", "PLAINTEXT tokens: whoever reads them is that user").on_leak(END_SESSIONS))
        .class(secret("main/public.refresh_tokens", "PLAINTEXT tokens that make new access tokens").on_leak(END_SESSIONS))
        .class(secret("main/public.login_tokens", "one-time logins, valid for minutes"))
        .class(secret("main/public.open_id_tokens", "prove a user's identity to integrations, valid for an hour"))
        .class(secret("main/public.threepid_guest_access_tokens", "tokens of invited guests").on_leak(END_SESSIONS))
        .class(secret("main/public.threepid_validation*", "tokens that confirm a mail address while a validation is open"))
        .class(secret("main/public.sessions", "running registrations and logins"))
        .class(secret("main/public.ui_auth_sessions*", "running confirmations by password"))
        .class(
            secret("main/public.registration_tokens", "tokens that allow registration")
                .on_leak("replace unused registration tokens (admin API /_synapse/admin/v1/registration_tokens)"),
        )
        .class(
            secret("main/public.users", "password hashes (bcrypt, with the pepper of homeserver.yaml), admins, states of accounts")
                .on_leak("have every user with a local password choose a new one; if homeserver.yaml with the pepper leaked as well, reset them at once"),
        )
        .class(
            secret("main/public.pushers", "push tokens and addresses of users' devices")
                .on_leak("push tokens end with the sessions; tell users of unknown push services"),
        )
        .class(secret("main/public.e2e_room_keys*", "key backups, encrypted by each user's recovery key")
            .on_leak("users whose recovery passphrase is weak should reset their key backup"))
        .class(secret("main/public.account_data", "secret storage, encrypted by each user's recovery key, and settings")
            .on_leak("users whose recovery passphrase is weak should reset secret storage and cross-signing"))
        .class(secret("main/public.device_inbox", "room keys under way, encrypted for single devices"))
        .class(secret("main/public.device_federation_outbox", "room keys under way to other servers, encrypted for single devices"))
        .class(secret("main/public.dehydrated_devices", "encrypted devices users can take over"))
        .class(
            secret("main/public.application_services_txns", "events under way to bridges, of unencrypted rooms in clear"),
        )
        .class(
            personal("media", "every file local users uploaded; in unencrypted rooms in clear")
                .on_leak("tell users that files of unencrypted rooms are known"),
        )
        .class(
            secret("config", "the signing key, shared secrets, the database password, the bridges' tokens")
                .on_leak(ROTATE_SIGNING_KEY)
                .on_leak("replace registration_shared_secret (it makes admins), macaroon_secret_key, form_secret, worker_replication_secret, turn_shared_secret and the secret shared with MAS; each must be replaced at its peer too")
                .on_leak("where macaroon_secret_key is not set, set one now: else Synapse uses registration_shared_secret in its place, and without that derives it from the signing key, so that whoever has these can forge guests' tokens and unsubscribe links")
                .on_leak("replace as_token and hs_token in every registration, in Synapse's copy and the bridge's, and restart both")
                .on_leak("change the database password"),
        )
}
