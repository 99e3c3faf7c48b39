//! Integrator, the integration manager (and Dimension, its public relative): widgets, sticker packs, bots and bridges a
//! room uses.
//!
//! Element's Integrator is closed, so its database is taken whole and compared by its row counts. What Dimension's
//! tables hold is known and said. Sequelize names tables in mixed case; nothing here depends on names.

#![deny(unsafe_code)]

use essrun_guest::{db::Engine, incident, prelude::*};

/// The component.
pub struct Integrator;

const SCALAR: &str = "main/*scalar_tokens";

impl Component for Integrator {
    fn describe() -> Description {
        Description::new("Integrator", env!("CARGO_PKG_VERSION"), Tier::Feature)
            .loss("Widgets, sticker packs and integrations must be set up again in every room; users confirm the terms again.")
            .need(Need::database("main", "the integration manager's database, PostgreSQL (Dimension also SQLite)"))
            .need(Need::volume("config", "its configuration; for Dimension also dimension.bot.json").optional())
            .schema("main")
            .class(ArtifactClass::new(
                "main*",
                Sensitivity::Secret,
                "tokens of integrations (scalar tokens, PLAINTEXT): whoever has them changes integrations as that user; tokens and webhooks of third parties",
            )
            .on_leak("end the users' scalar tokens: clients ask for new ones")
            .on_leak("replace webhooks and third parties' tokens that were stored"))
            .class(ArtifactClass::new("config", Sensitivity::Secret, "an access token of the homeserver (homeserver.accessToken), shared secrets, the database password")
                .on_leak("end that access token in Synapse and set a new one")
                .on_leak("change the database password and the shared secrets"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let plan = essrun_guest::granted_data(&Self::describe())?;
        Ok(match volume::granted("config")? {
            true => plan,
            false => plan.warn("no `config` is granted: the access token and shared secrets are not in this backup"),
        })
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        Ok(essrun_guest::artifacts_back(&Self::describe(), backup)
            .note("start it after Synapse; widgets in rooms are state of Synapse, so rooms and this database should be of about the same time"))
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        let mut plan = IncidentPlan::new();
        // Dimension's; Element's own schema is not public.
        if backup.artifact("main/public.dimension_scalar_tokens").is_some()
            && db::granted("main")?.is_some_and(|i| i.engine == Engine::Postgres)
        {
            plan = plan.run_sql(Statement::delete(
                &[SCALAR],
                "main",
                "public.dimension_scalar_tokens",
                "TRUE",
                "all integrations' tokens end; clients ask for new ones by themselves",
            ));
        }
        Ok(plan.then(incident::from_classes(&Self::describe(), backup)))
    }
}

essrun_guest::export!(Integrator);
