//! What tests, the demo and the benchmarks share: real servers, started and thrown away.
//!
//! Everything here runs on 127.0.0.1 or a unix socket, in folders of its own. It is test support: where the world
//! cannot be set up it panics at once and says why, because a test that goes on without its server proves nothing.
//! It must never be a dependency of anything that ships.
#![deny(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod certificates;
pub mod essrun;
pub mod mas;
pub mod mount;
pub mod node;
pub mod pair;
pub mod pgbouncer;
pub mod plugins;
pub mod postgres;
pub mod python;
pub mod release;
pub mod seaweed;
pub mod site;
pub mod suite;
pub mod synapse;

use std::path::PathBuf;

/// The workspace this crate was built in.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace has moved since the build")
}

/// Where made things are kept between runs; ignored by git.
pub fn scratch_root() -> PathBuf {
    workspace().join(".essrun")
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("no free port on 127.0.0.1");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// SHA-256 as lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}
