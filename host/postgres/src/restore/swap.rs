//! The new database in, the old one kept under a dated name.

use super::scratch::Restored;
use crate::connection::Connection;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a swap is to go.
#[derive(Debug, Clone)]
pub struct SwapOptions {
    /// Let a live database with tables in it be renamed away.
    pub replace: bool,
    /// End other sessions of the live database instead of refusing because of them.
    pub terminate: bool,
    pub maintenance_database: String,
}

impl Default for SwapOptions {
    fn default() -> Self {
        SwapOptions {
            replace: false,
            terminate: false,
            maintenance_database: "postgres".to_owned(),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapped {
    pub database: String,
    /// The name the old database has now; `None` when there was none.
    pub old_kept_as: Option<String>,
}

/// Renames the live database away and the restored one in.
pub async fn swap(target: &Connection, restored: Restored, options: &SwapOptions) -> Result<Swapped> {
    let _ = (target, restored, options);
    Err(Error::refused("swap", "is being written", "wait for the next commit"))
}
