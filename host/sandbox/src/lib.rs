//! The room where guests run.
//!
//! A component comes in as bytes nobody vouches for and leaves as plans and findings in plain host types. In between
//! this room promises: nothing of it runs before it was checked against its pinned hash, its shape and the contract;
//! it reaches only what the caller's [`World`] answers; it uses no more time, memory, handles, rows and log than its
//! [`Limits`]; whatever it does, the host lives on and says which component did what. It must never give a guest a
//! file, a socket, the environment, or native code of its own choosing.
//!
//! How: deny by not linking (`wasi`), examine before compiling (`examine`), one store per call (`component`), every
//! host function counted (`host`), every result looked through (`check`).
#![deny(unsafe_code)]

mod cache;
mod check;
mod component;
pub mod contract;
mod engine;
mod error;
mod examine;
mod exports;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod host;
mod limits;
mod log;
pub mod policy;
mod stderr;
mod wasi;
mod world;

pub use component::Component;
pub use engine::{Engine, EngineConfig, Origin};
pub use error::{Refusal, SandboxError, Stop, Ungranted};
pub use examine::{PluginInfo, inspect_wasm};
pub use host::row_bytes;
pub use limits::{Limits, Overrides, Shape};
pub use world::{ListingSource, LookError, NoWorld, RowSource, World};
