//! After a leak: tokens are revoked, sessions are not ended.
//!
//! An ended session makes MAS tell Synapse to delete its device, with keys and undelivered messages. A session without
//! valid tokens makes its client log in again.

use essrun_guest::{incident, prelude::*};

const OAUTH: &[&str] = &["main/public.oauth2_access_tokens", "main/public.oauth2_refresh_tokens"];
const COMPAT: &[&str] = &["main/public.compat_access_tokens", "main/public.compat_refresh_tokens"];

/// The steps for what this backup holds.
pub fn respond(description: &Description, backup: &BackupView) -> IncidentPlan {
    let mut plan = IncidentPlan::new();
    if backup.holds("main") {
        plan = plan
            .run_sql(Statement::update(
                OAUTH,
                "main",
                "public.oauth2_access_tokens",
                "revoked_at = now()",
                "revoked_at IS NULL",
                "revokes every OAuth access token; clients ask for a new one",
            ))
            .run_sql(Statement::update(
                OAUTH,
                "main",
                "public.oauth2_refresh_tokens",
                "revoked_at = now()",
                "revoked_at IS NULL AND consumed_at IS NULL",
                "revokes every OAuth refresh token: all such clients must log in again; warn users to save their encryption \
                 keys first, some clients delete them",
            ))
            .run_sql(Statement::update(
                COMPAT,
                "main",
                "public.compat_access_tokens",
                "expires_at = now()",
                "expires_at IS NULL OR expires_at > now()",
                "expires the access tokens of older clients: those with a refresh token get a new one, others must log in again",
            ))
            .run_sql(Statement::update(
                COMPAT,
                "main",
                "public.compat_refresh_tokens",
                "consumed_at = now()",
                "consumed_at IS NULL",
                "uses up the refresh tokens of older clients: they must log in again",
            ))
            .run_sql(Statement::update(
                &["main/public.user_recovery_*"],
                "main",
                "public.user_recovery_tickets",
                "expires_at = now()",
                "expires_at > now()",
                "ends account recoveries under way; users ask for a new mail",
            ))
            .advise(OAUTH, "Synapse remembers introspected tokens for some minutes: restart it, or wait");
    }
    plan.then(incident::from_classes(description, backup))
}
