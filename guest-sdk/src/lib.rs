//! What the author of an essrun component depends on.
//!
//! A component knows one system. It looks at what pipeline.toml granted it ([`db`], [`volume`], [`settings`]) and
//! answers with plans and findings; the host does the work. An author writes one type, implements [`Component`] for it
//! (only [`Component::describe`] has no default) and exports it:
//!
//! ```
//! use essrun_guest::prelude::*;
//!
//! struct Wiki;
//!
//! impl Component for Wiki {
//!     fn describe() -> Description {
//!         Description::new("Wiki", env!("CARGO_PKG_VERSION"), Tier::Feature)
//!             .loss("All pages.")
//!             .need(Need::database("main", "the wiki's database"))
//!             .class(ArtifactClass::new("main/*", Sensitivity::Personal, "every page and its author"))
//!     }
//! }
//!
//! essrun_guest::export!(Wiki);
//! # fn main() {}
//! ```
//!
//! On wasm the looks go to the host; on every other target they go to a thread-local [`mock::World`], so that
//! `cargo test` of a component needs no host. The mock is not compiled for wasm. Nothing here may do more than the
//! contract in `wit/` allows: this crate is comfort, not power.

/// The generated bindings, as the contract names things. Prefer the names re-exported at the crate's root.
#[allow(unsafe_code, clippy::all, clippy::pedantic, clippy::restriction, missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: ["../wit/inspect", "../wit/backup"],
        world: "ess:backup/component",
        generate_all,
        pub_export_macro: true,
        runtime_path: "::essrun_guest::wit_bindgen::rt",
        additional_derives: [PartialEq],
    });
}

// The macros, ours and the generated one, name this crate by its own name; inside it that name must mean itself.
extern crate self as essrun_guest;

pub use wit_bindgen;

mod backup_view;
pub mod bot;
pub mod bridge;
mod component;
pub mod config;
pub mod db;
mod describe;
mod error;
mod finding;
mod host;
pub mod incident;
pub mod log;
#[cfg(not(target_family = "wasm"))]
pub mod mock;
mod paged;
mod pattern;
mod plan;
pub mod settings;
#[cfg(feature = "signing-key")]
pub mod signing_key;
pub mod volume;

pub use bindings::ess::backup::backup::{
    ArchiveVolume, CopySqlite, DumpDatabase, PathRule, Plan as BackupPlan, RowFilter, Step as BackupStep, TableRule,
};
pub use bindings::ess::backup::incident::{Advice, Plan as IncidentPlan, Statement, Step as IncidentStep};
pub use bindings::ess::backup::restore::{
    Artifact, BackupView, Finding, Plan as RestorePlan, RunSql, SetOwner, Step as RestoreStep,
};
pub use bindings::ess::backup::types::{
    ArtifactClass, Description, Error, Fact, Fence, Need, NeedKind, NeedRole, Note, Sensitivity, Setting, Severity,
    Tier,
};
pub use bindings::ess::inspect::types::Error as InspectError;
pub use component::{Component, artifacts_back, granted_data};
pub use finding::{Check, Findings, check, listed};
pub use pattern::matches;

/// All that a component usually needs.
pub mod prelude {
    pub use crate::{
        Advice, ArchiveVolume, ArtifactClass, BackupPlan, BackupStep, BackupView, Check, Component, CopySqlite,
        Description, DumpDatabase, Error, Fact, Finding, Findings, IncidentPlan, IncidentStep, InspectError, Need,
        NeedKind, NeedRole, Note, RestorePlan, RestoreStep, Sensitivity, Setting, Severity, Statement, Tier, check, db,
        log, settings, volume,
    };
}

/// Exports a [`Component`] from a `cdylib`. On targets other than wasm it exports nothing.
#[macro_export]
macro_rules! export {
    ($component:ty) => {
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code)]
        const _: () = {
            struct Exported;
            impl $crate::bindings::exports::ess::backup::system::Guest for Exported {
                fn describe() -> $crate::Description {
                    <$component as $crate::Component>::describe()
                }
                fn plan_backup() -> ::core::result::Result<$crate::BackupPlan, $crate::Error> {
                    <$component as $crate::Component>::plan_backup()
                }
                fn plan_restore(
                    backup: $crate::BackupView,
                ) -> ::core::result::Result<$crate::RestorePlan, $crate::Error> {
                    <$component as $crate::Component>::plan_restore(&backup)
                }
                fn verify(
                    backup: $crate::BackupView,
                ) -> ::core::result::Result<::std::vec::Vec<$crate::Finding>, $crate::Error> {
                    <$component as $crate::Component>::verify(&backup)
                }
                fn respond(backup: $crate::BackupView) -> ::core::result::Result<$crate::IncidentPlan, $crate::Error> {
                    <$component as $crate::Component>::respond(&backup)
                }
            }
    $crate::bindings::export!(Exported with_types_in $crate::bindings);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> $crate::Description = <$component as $crate::Component>::describe;
    };
}
