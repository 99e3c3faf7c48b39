//! What essrun does, verb by verb, for the command line or any other caller.
//!
//! This room joins the others: it reads pipeline.toml, loads components, opens what they were granted, carries out their
//! plans and keeps the results. It holds no plumbing of its own: rows are the Postgres room's, files the volume room's,
//! bytes the repository's, guests the sandbox's. It promises that nothing is granted that the file does not name, that a
//! plan is checked before it is carried out, and that every error says what, where and what to do.
#![deny(unsafe_code)]

pub mod backup;
pub mod body;
pub mod config;
pub mod diff;
pub mod disaster;
pub mod drill;
pub mod error;
pub mod exit;
pub mod extract;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod incident;
pub mod instant;
pub mod keys;
mod known;
pub mod load;
pub mod makers;
pub mod order;
pub mod pace;
mod peers;
pub mod plugin;
pub mod policy;
pub mod repo;
pub mod report;
pub mod restore;
pub mod retention;
mod space;
pub mod standing;
pub mod status;
pub mod time;
pub mod upkeep;
pub mod validate;
pub mod world;

pub use config::Pipeline;
pub use error::{At, PipelineError};
pub use essrun_artifact::Progress;
pub use exit::Exit;
