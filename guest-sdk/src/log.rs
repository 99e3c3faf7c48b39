//! Lines for the run's log. The host bounds and cleans them. Never put secrets into one.

pub use crate::bindings::ess::inspect::log::Level;
use crate::host;

/// Writes one line.
pub fn write(level: Level, message: &str) {
    host::log(level, message);
}

/// For whoever debugs the component.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// Normal course.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// Somebody should know.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// Something failed.
pub fn error(message: &str) {
    write(Level::Error, message);
}
