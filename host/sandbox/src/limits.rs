//! How much a guest may use. One value per kind of harm, each with a default that honest components stay far below.
//!
//! The defaults are for components from elsewhere, and small. The built-in ones are ours and look at every row of what
//! may be a large server, so [`Limits::built_in`] is generous where the work grows with the data: it stops what runs wild,
//! never what is only big. `[components.NAME.limits]` in pipeline.toml overrides single ones ([`Overrides`]). Sizes and
//! times are written with their units (`"64 MiB"`, `"10 s"`), because a bare number is read wrongly sooner or later. There
//! is no way to switch a limit off.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// Limits of one call into a guest. Every call starts afresh.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Overrides")]
pub struct Limits {
    /// Linear memory, all memories of the guest together, in bytes.
    pub memory: u64,
    /// Elements of all tables together.
    pub table_elements: u64,
    /// Time the guest itself may compute, without the time the host works for it.
    pub cpu: Duration,
    /// Time a whole call may take, with everything.
    pub wall_clock: Duration,
    /// Time one query may take, in the database.
    pub query: Duration,
    /// Open handles (rows, listings, streams) at one time.
    pub handles: u32,
    /// Calls from the guest to the host.
    pub host_calls: u64,
    /// Bytes the host holds for open handles at one time; also what one call may hand over in either direction.
    pub held: u64,
    /// Rows and entries handed to the guest, all queries and listings of a call together.
    pub rows: u64,
    /// Bytes of rows, entries and files handed to the guest, all looks of a call together.
    pub looked_at: u64,
    /// Rows or entries in one page.
    pub page_rows: u32,
    /// Bytes of one page.
    pub page: u64,
    /// Bytes of one file read whole.
    pub file: u64,
    /// Lines written to the log.
    pub log_lines: u32,
    /// Bytes written to the log.
    pub log: u64,
    /// Steps of a plan, findings of a verification, items of any other list in a result.
    pub result_items: u32,
    /// Bytes of a result, all texts together.
    pub result: u64,
    /// What loading it may cost, before any call.
    pub compile: Shape,
}

/// Single limits, as `[components.NAME.limits]` gives them; the others stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Overrides {
    #[serde(deserialize_with = "size")]
    memory: Option<u64>,
    table_elements: Option<u64>,
    #[serde(deserialize_with = "time")]
    cpu: Option<Duration>,
    #[serde(deserialize_with = "time")]
    wall_clock: Option<Duration>,
    #[serde(deserialize_with = "time")]
    query: Option<Duration>,
    handles: Option<u32>,
    host_calls: Option<u64>,
    #[serde(deserialize_with = "size")]
    held: Option<u64>,
    rows: Option<u64>,
    #[serde(deserialize_with = "size")]
    looked_at: Option<u64>,
    page_rows: Option<u32>,
    #[serde(deserialize_with = "size")]
    page: Option<u64>,
    #[serde(deserialize_with = "size")]
    file: Option<u64>,
    log_lines: Option<u32>,
    #[serde(deserialize_with = "size")]
    log: Option<u64>,
    result_items: Option<u32>,
    #[serde(deserialize_with = "size")]
    result: Option<u64>,
    compile: Option<Shape>,
}

impl Overrides {
    /// `usual`, with what is given here instead.
    pub fn over(self, usual: Limits) -> Limits {
        Limits {
            memory: self.memory.unwrap_or(usual.memory),
            table_elements: self.table_elements.unwrap_or(usual.table_elements),
            cpu: self.cpu.unwrap_or(usual.cpu),
            wall_clock: self.wall_clock.unwrap_or(usual.wall_clock),
            query: self.query.unwrap_or(usual.query),
            handles: self.handles.unwrap_or(usual.handles),
            host_calls: self.host_calls.unwrap_or(usual.host_calls),
            held: self.held.unwrap_or(usual.held),
            rows: self.rows.unwrap_or(usual.rows),
            looked_at: self.looked_at.unwrap_or(usual.looked_at),
            page_rows: self.page_rows.unwrap_or(usual.page_rows),
            page: self.page.unwrap_or(usual.page),
            file: self.file.unwrap_or(usual.file),
            log_lines: self.log_lines.unwrap_or(usual.log_lines),
            log: self.log.unwrap_or(usual.log),
            result_items: self.result_items.unwrap_or(usual.result_items),
            result: self.result.unwrap_or(usual.result),
            compile: self.compile.unwrap_or(usual.compile),
        }
    }
}

impl From<Overrides> for Limits {
    fn from(given: Overrides) -> Limits {
        given.over(Limits::default())
    }
}

/// Bounds on a component's shape: what compiling it may cost. The defaults keep the compiler below 256 MiB and are far
/// above what a plugin in Rust needs; a plugin that carries a whole language runtime needs them raised.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Shape {
    /// Bytes of the whole file.
    #[serde(deserialize_with = "whole_size")]
    pub file: u64,
    /// Functions in all modules.
    pub functions: u64,
    /// Bytes of the largest function.
    #[serde(deserialize_with = "whole_size")]
    pub function: u64,
    /// Bytes of all functions.
    #[serde(deserialize_with = "whole_size")]
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
const GIB: u64 = 1024 * MIB;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: 64 * MIB,
            table_elements: 100_000,
            cpu: Duration::from_secs(10),
            wall_clock: Duration::from_secs(120),
            query: Duration::from_secs(60),
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

impl Limits {
    /// Those of the components that come with essrun. Ten million media cost about 4 GiB looked at and 20 million rows and
    /// entries; counting a table of some 100 GiB takes minutes.
    pub fn built_in() -> Limits {
        Limits {
            cpu: Duration::from_secs(30 * 60),
            wall_clock: Duration::from_secs(12 * 60 * 60),
            query: Duration::from_secs(10 * 60),
            host_calls: 10_000_000,
            rows: 1_000_000_000,
            looked_at: 256 * GIB,
            ..Limits::default()
        }
    }
}

fn whole_size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let text = String::deserialize(d)?;
    let with_unit = text.trim_end().ends_with(['B', 'b']);
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if with_unit && size.as_u64() > 0 => Ok(size.as_u64()),
        _ => Err(D::Error::custom(format!(
            "{text:?} is no size; write a number above zero with its unit, such as \"64 MiB\""
        ))),
    }
}

fn size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    whole_size(d).map(Some)
}

fn time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(d)?;
    match humantime::parse_duration(&text) {
        Ok(time) if !time.is_zero() => Ok(Some(time)),
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
        let built_in = |text: &str| toml::from_str::<Overrides>(text).unwrap().over(Limits::built_in());
        assert_eq!(built_in("rows = 5").rows, 5);
        assert_eq!(built_in("rows = 5").looked_at, Limits::built_in().looked_at);
        assert_eq!(built_in(""), Limits::built_in());
        assert_eq!(toml::from_str::<Limits>("").unwrap(), Limits::default());
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
