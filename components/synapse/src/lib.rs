//! Synapse, the homeserver. (Its knowledge follows; what stands here takes and puts back all that was granted.)

use essrun_guest::prelude::*;

/// The component.
pub struct Synapse;

impl Component for Synapse {
    fn describe() -> Description {
        Description::new("Synapse", env!("CARGO_PKG_VERSION"), Tier::Critical)
            .loss("all accounts, rooms and messages of the homeserver")
            .need(Need::database("main", "Synapse's database"))
            .need(Need::database("state", "the separate database of state groups, where a site has one").optional())
            .need(Need::volume("media", "media_store_path").optional())
            .need(
                Need::volume(
                    "config",
                    "the directory with homeserver.yaml, signing key, log config and registrations",
                )
                .optional(),
            )
    }
}

essrun_guest::export!(Synapse);
