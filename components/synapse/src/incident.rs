//! After a leak: what the host can do in the live database, and what only people can.
//!
//! Access tokens are not deleted but expired: Synapse answers an expired token with a soft logout, after which clients
//! keep their encryption keys and log in again as the same device; a token that is gone makes them delete the keys.

use essrun_guest::{incident, prelude::*};

const CONFIG: &str = "config";
const TOKENS: &[&str] = &["main/public.access_tokens", "main/public.refresh_tokens"];

/// The steps for what this backup holds.
pub fn respond(description: &Description, backup: &BackupView) -> IncidentPlan {
    let mut plan = IncidentPlan::new().advise(
        TOKENS,
        "first stop further reading: close the place the backup leaked from, and change what opened it",
    );
    if backup.holds("main") {
        plan = plan
            .run_sql(Statement::update(
                TOKENS,
                "main",
                "public.access_tokens",
                "valid_until_ms = 1",
                "valid_until_ms IS NULL OR valid_until_ms > 1",
                "expires every access token: all users are logged out softly and log in again; encryption keys in clients \
                 stay. Running Synapse processes cache tokens: restart them all right after. Tokens of bridges come from \
                 registrations and are not touched",
            ))
            .run_sql(Statement::update(
                &["main/public.refresh_tokens"],
                "main",
                "public.refresh_tokens",
                "expiry_ts = 1, ultimate_session_expiry_ts = 1",
                "expiry_ts IS NULL OR expiry_ts > 1",
                "expires every refresh token, which could make new access tokens",
            ))
            .run_sql(Statement::delete(
                &["main/public.login_tokens"],
                "main",
                "public.login_tokens",
                "TRUE",
                "ends logins by token that were under way",
            ))
            .run_sql(Statement::delete(
                &["main/public.open_id_tokens"],
                "main",
                "public.open_id_tokens",
                "TRUE",
                "integrations must ask users' clients for a new proof of identity; nobody notices",
            ))
            .advise(TOKENS, "restart Synapse and all its workers now: they cache tokens")
            .advise(
                TOKENS,
                "with MAS (delegated authentication) Synapse keeps no users' tokens: use the MAS component's steps",
            );
    }
    if backup.holds(CONFIG) {
        plan = plan.advise(
            &[CONFIG],
            "rotate the signing key before anything else of `config`: other servers believe whoever holds it",
        );
    }
    plan.then(incident::from_classes(description, backup))
}
