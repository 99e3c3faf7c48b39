//! What can go wrong with a component, said so that the person who runs essrun knows which one, why, and what to do.

use crate::contract::types::Error as GuestError;
use std::time::Duration;

/// A component could not be used, or a call into it failed. The host goes on after any of these.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// It was not loaded: nothing of it ever ran.
    #[error("component {component}: refused: {why}")]
    Refused { component: String, why: Refusal },
    /// A call was ended by force. Whatever the guest had in memory is gone.
    #[error("component {component}: {call} was stopped: {why}{}", last_words.as_deref().map(|w| format!("; the last it wrote to stderr: {w}")).unwrap_or_default())]
    Stopped {
        component: String,
        call: &'static str,
        why: Stop,
        /// The end of what the guest wrote to stderr (a Rust panic message, for instance), cleaned for a terminal.
        last_words: Option<String>,
    },
    /// The component itself says it could not do its work.
    #[error("component {component}: {call}: {}", guest_words(error))]
    Guest {
        component: String,
        call: &'static str,
        error: GuestError,
    },
    /// The call came back with something no honest component returns.
    #[error(
        "component {component}: {call} returned {problem}; this is a fault of the component, report it to its author"
    )]
    BadResult {
        component: String,
        call: &'static str,
        problem: String,
    },
    /// A policy's interpreter answers that it cannot.
    #[error("policy {name}: {call}: {text}")]
    Policy {
        name: String,
        call: &'static str,
        text: String,
    },
    /// The sandbox itself could not be set up.
    #[error("sandbox: {what}: {why}")]
    Host { what: String, why: String },
}

impl SandboxError {
    /// The component's name, where the error is one component's.
    pub fn component(&self) -> Option<&str> {
        match self {
            SandboxError::Refused { component, .. }
            | SandboxError::Stopped { component, .. }
            | SandboxError::Guest { component, .. }
            | SandboxError::BadResult { component, .. } => Some(component),
            SandboxError::Policy { .. } | SandboxError::Host { .. } => None,
        }
    }
}

fn guest_words(error: &GuestError) -> String {
    match error {
        GuestError::InvalidSetting(t) => format!("a setting is wrong: {t}"),
        GuestError::Unsupported(t) => format!("not a system this component knows how to serve: {t}"),
        GuestError::Inspect(t) => format!("looking failed: {t}"),
        GuestError::Other(t) => t.clone(),
    }
}

/// Why a component was not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this is no WebAssembly file")]
    NotWasm,
    #[error(
        "this is a core module, not a component; build it for wasm32-wasip2, or make it one with `wasm-tools component new`"
    )]
    CoreModule,
    #[error(
        "this is native code compiled beforehand (.cwasm), which can do anything on the host; give the .wasm it was compiled from"
    )]
    Precompiled,
    #[error(
        "it has {bytes} bytes, at most {limit} are allowed; raise `file` under `limits.compile` only for a plugin you trust"
    )]
    TooLarge { bytes: u64, limit: u64 },
    #[error(
        "its SHA-256 is {found}, but pipeline.toml says {expected}; if the change is wanted, look at it with `essrun plugin inspect` and pin it with `essrun plugin pin`"
    )]
    WrongHash { expected: String, found: String },
    #[error(
        "it has {found} {what}, at most {limit} are allowed: compiling it could exhaust the host; raise `{}` under `limits.compile` only for a plugin you trust",
        bound(what)
    )]
    TooComplex { what: &'static str, found: u64, limit: u64 },
    #[error("it asks for what no component is given: {}", list(.0))]
    Ungranted(Vec<Ungranted>),
    #[error("it does not export {missing}: it is no essrun component, or one for another version of the contract")]
    MissingExport { missing: String },
    #[error("it does not fit the contract: {problem}; build it against wit/ of this essrun")]
    WrongType { problem: String },
    #[error("it uses the asynchronous ABI ({found}); components are called synchronously, build it without async")]
    AsyncAbi { found: String },
    #[error("it is not valid WebAssembly: {problem}")]
    Invalid { problem: String },
}

/// An import nobody will answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Ungranted {
    /// The import's name.
    pub import: String,
    /// What having it would mean.
    pub meaning: &'static str,
}

/// The key in pipeline.toml for what there is too much of.
fn bound(what: &str) -> &'static str {
    match what {
        "functions" => "functions",
        "bytes in one function" => "function",
        "bytes in all functions" => "code",
        "instances in all" => "instances",
        _ => "depth",
    }
}

fn list(ungranted: &[Ungranted]) -> String {
    let items: Vec<_> = ungranted
        .iter()
        .map(|u| format!("{} ({})", u.import, u.meaning))
        .collect();
    items.join(", ")
}

/// Why a call was ended by force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    #[error("it computed for more than {}; raise `cpu` of its limits if it has reason to", humantime::format_duration(*.limit))]
    Cpu { limit: Duration },
    #[error("the whole call took more than {}; raise `wall-clock` of its limits if it has reason to", humantime::format_duration(*.limit))]
    WallClock { limit: Duration },
    #[error("it needs more than {} of memory; raise `memory` of its limits if it has reason to", bytesize::ByteSize(*.limit))]
    Memory { limit: u64 },
    #[error("its tables need more than {limit} elements; raise `table-elements` of its limits if it has reason to")]
    Tables { limit: u64 },
    #[error("its calls nest too deep (the stack is used up)")]
    StackOverflow,
    #[error("it called the host more than {limit} times; raise `host-calls` of its limits if it has reason to")]
    HostCalls { limit: u64 },
    #[error("it handed the host more than {} in one call; raise `held` of its limits if it has reason to", bytesize::ByteSize(*.limit))]
    HandedOver { limit: u64 },
    #[error("it keeps more than {limit} handles open; raise `handles` of its limits if it has reason to")]
    Handles { limit: u32 },
    #[error("it floods the log")]
    LogFlood,
    #[error("it panicked or ran into its own `unreachable`")]
    Unreachable,
    #[error("it called exit")]
    Exit,
    #[error("it trapped: {0}")]
    Trap(String),
}
