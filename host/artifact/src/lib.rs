//! The words every room shares when it makes, keeps or reads an artifact.
//!
//! An *artifact* is one named stream in a backup (`synapse/main/public.events`, `synapse/media`). The rooms that
//! make artifacts (`postgres`, `sqlite`, `volume`) know nothing of packs, keys or stores, and the room that keeps
//! them (`repository`) knows nothing of tables or files. What both know is here: how bytes are handed over
//! ([`Lane`]), what a finished piece is called afterwards ([`Content`]), and how it is read again ([`ContentReader`]).
//!
//! This crate must stay small: types and traits, one in-memory double of the keeper for the makers' own tests, no I/O.
#![deny(unsafe_code)]

mod content;
pub mod memory;
mod name;
mod progress;
mod traits;

pub use content::{ChunkId, ChunkList, ChunkRef, Content};
pub use name::{ArtifactName, NameError};
pub use progress::{NoProgress, Progress};
pub use traits::{
    ArtifactRecord, BackupReader, BackupWriter, ContentReader, Cut, Domain, KeepError, Lane, LaneSpec, Sensitivity,
    read_full,
};
