//! How much a guest may use. One value per kind of harm, each with a default that honest components stay far below.
//!
//! The defaults suit the built-in components; `[components.NAME.limits]` in pipeline.toml overrides single ones for a
//! plugin that needs more. Sizes and times are written with their units (`"64 MiB"`, `"10 s"`), because a bare number
//! is read wrongly sooner or later. There is no way to switch a limit off.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// Limits of one call into a guest. Every call starts afresh.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Linear memory, all memories of the guest together, in bytes.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// Elements of all tables together.
    pub table_elements: u64,
    /// Time the guest itself may compute, without the time the host works for it.
    #[serde(deserialize_with = "time")]
    pub cpu: Duration,
    /// Time a whole call may take, with everything.
    #[serde(deserialize_with = "time")]
    pub wall_clock: Duration,
    /// Open handles (rows, listings, streams) at one time.
    pub handles: u32,
    /// Calls from the guest to the host.
    pub host_calls: u64,
    /// Bytes the host holds for open handles at one time; also what one call may hand over in either direction.
    #[serde(deserialize_with = "size")]
    pub held: u64,
    /// Rows and entries handed to the guest, all queries and listings of a call together.
    pub rows: u64,
    /// Bytes of rows, entries and files handed to the guest, all looks of a call together.
    #[serde(deserialize_with = "size")]
    pub looked_at: u64,
    /// Rows or entries in one page.
    pub page_rows: u32,
    /// Bytes of one page.
    #[serde(deserialize_with = "size")]
    pub page: u64,
    /// Bytes of one file read whole.
    #[serde(deserialize_with = "size")]
    pub file: u64,
    /// Lines written to the log.
    pub log_lines: u32,
    /// Bytes written to the log.
    #[serde(deserialize_with = "size")]
    pub log: u64,
    /// Steps of a plan, findings of a verification, items of any other list in a result.
    pub result_items: u32,
    /// Bytes of a result, all texts together.
    #[serde(deserialize_with = "size")]
    pub result: u64,
    /// What loading it may cost, before any call.
    pub compile: Shape,
}

/// Bounds on a component's shape: what compiling it may cost. The defaults keep the compiler below 256 MiB and are far
/// above what a plugin in Rust needs; a plugin that carries a whole language runtime needs them raised.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Shape {
    /// Bytes of the whole file.
    #[serde(deserialize_with = "size")]
    pub file: u64,
    /// Functions in all modules.
    pub functions: u64,
    /// Bytes of the largest function.
    #[serde(deserialize_with = "size")]
    pub function: u64,
    /// Bytes of all functions.
    #[serde(deserialize_with = "size")]
    pub code: u64,
    /// Instances, when every component is instantiated as often as it says.
    pub instances: u64,
    /// Nesting of components and modules.
    pub depth: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            file: 64 * MIB,
            functions: 30_000,
            function: 256 * KIB,
            code: 8 * MIB,
            instances: 1_000,
            depth: 16,
        }
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: 64 * MIB,
            table_elements: 100_000,
            cpu: Duration::from_secs(10),
            wall_clock: Duration::from_secs(120),
            handles: 256,
            host_calls: 1_000_000,
            held: 16 * MIB,
            rows: 1_000_000,
            looked_at: 64 * MIB,
            page_rows: 10_000,
            page: MIB,
            file: MIB,
            log_lines: 1_000,
            log: 256 * KIB,
            result_items: 100_000,
            result: 8 * MIB,
            compile: Shape::default(),
        }
    }
}

fn size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let text = String::deserialize(d)?;
    let with_unit = text.trim_end().ends_with(['B', 'b']);
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if with_unit && size.as_u64() > 0 => Ok(size.as_u64()),
        _ => Err(D::Error::custom(format!(
            "{text:?} is no size; write a number above zero with its unit, such as \"64 MiB\""
        ))),
    }
}

fn time<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    match humantime::parse_duration(&text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(D::Error::custom(format!(
            "{text:?} is no time; write a number above zero with its unit, such as \"10 s\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_with_units_and_strictly() {
        let limits: Limits =
            toml::from_str("memory = \"256 MiB\"\ncpu = \"30 s\"\nwall-clock = \"5m\"\nrows = 5").unwrap();
        assert_eq!(limits.memory, 256 * MIB);
        assert_eq!(limits.cpu, Duration::from_secs(30));
        assert_eq!(limits.wall_clock, Duration::from_secs(300));
        assert_eq!(limits.rows, 5);
        assert_eq!(limits.handles, 256);
        let limits: Limits = toml::from_str("[compile]\nfunction = \"1 MiB\"\nfunctions = 60000").unwrap();
        assert_eq!(limits.compile.function, MIB);
        assert_eq!(limits.compile.functions, 60_000);
        assert_eq!(limits.compile.code, 8 * MIB);
        for bad in [
            "compile = 1",
            "compile = { code = 5 }",
            "compile = { cost = 5 }",
            "memory = 5",
            "memory = \"5\"",
            "memory = \"0 B\"",
            "cpu = \"ten\"",
            "cpu = \"0s\"",
            "memroy = \"1 MiB\"",
            "handles = -1",
        ] {
            assert!(toml::from_str::<Limits>(bad).is_err(), "{bad}");
        }
    }
}
