//! The contract of `wit/` as host-side types, generated. Other rooms use these names; only this room calls the code.

/// The generated bindings.
#[allow(clippy::all, clippy::pedantic, clippy::restriction)]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: ["../../wit/inspect", "../../wit/backup"],
        world: "ess:backup/component",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "ess:inspect/database.rows": crate::host::Rows,
            "ess:inspect/volume.listing": crate::host::Listing,
        },
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}

/// ess:inspect: what a look answers.
pub mod inspect {
    pub use super::bindings::ess::inspect::database::{Cell, DatabaseInfo, Engine, TableInfo, TableKind};
    pub use super::bindings::ess::inspect::log::Level;
    pub use super::bindings::ess::inspect::types::Error;
    pub use super::bindings::ess::inspect::volume::{Entry, EntryKind, FileDigest};
}

/// What a component says of itself, and what its functions share.
pub mod types {
    pub use super::bindings::ess::backup::types::{
        ArtifactClass, Description, Error, Fact, Fence, Need, NeedKind, NeedRole, Note, Sensitivity, Setting, Severity,
        Tier,
    };
}

/// Plans for a backup.
pub mod backup {
    pub use super::bindings::ess::backup::backup::{
        ArchiveVolume, CopySqlite, DumpDatabase, PathRule, Plan, RowFilter, Step, TableRule,
    };
}

/// Plans for a restore, and findings.
pub mod restore {
    pub use super::bindings::ess::backup::restore::{Artifact, BackupView, Finding, Plan, RunSql, SetOwner, Step};
}

/// What to do after a leak.
pub mod incident {
    pub use super::bindings::ess::backup::incident::{Advice, Plan, Statement, Step};
}
