//! The one place where looks leave the component: to the host on wasm, to the mock world elsewhere.

#[cfg(target_family = "wasm")]
mod imp {
    use crate::InspectError;
    use crate::bindings::ess::inspect::{database, log, settings, volume};

    pub use database::Rows;
    pub use volume::Listing;

    pub fn info(label: &str) -> Result<database::DatabaseInfo, InspectError> {
        database::info(label)
    }
    pub fn tables(label: &str) -> Result<Vec<database::TableInfo>, InspectError> {
        database::tables(label)
    }
    pub fn query(label: &str, sql: &str, params: &[database::Cell]) -> Result<Rows, InspectError> {
        database::query(label, sql, params)
    }
    pub fn walk(label: &str, directory: &str, recursive: bool) -> Result<Listing, InspectError> {
        volume::walk(label, directory, recursive)
    }
    pub fn look(label: &str, paths: &[String]) -> Result<Vec<Option<volume::Entry>>, InspectError> {
        volume::look(label, paths)
    }
    pub fn read(label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, InspectError> {
        volume::read(label, path, max_bytes)
    }
    pub fn digest(label: &str, paths: &[String]) -> Result<Vec<Option<volume::FileDigest>>, InspectError> {
        volume::digest(label, paths)
    }
    pub fn settings() -> String {
        settings::get()
    }
    pub fn log(level: log::Level, message: &str) {
        log::write(level, message);
    }
}

#[cfg(not(target_family = "wasm"))]
mod imp {
    pub use crate::mock::looks::*;
}

pub use imp::*;
