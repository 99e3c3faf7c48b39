//! What a file is and asks for, before anybody trusts it.

use super::{bad_file, read_file};
use crate::error::PipelineError;
use crate::plugin::words;
use essrun_sandbox::{Component, Engine, EngineConfig, Limits, Origin, PluginInfo, SandboxError, Shape, inspect_wasm};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inspected {
    pub event: &'static str,
    pub file: PathBuf,
    /// What the file itself says, without running anything of it.
    pub plugin: PluginInfo,
    /// Limits it must be given in pipeline.toml to be loaded, as TOML lines.
    pub limits: Vec<String>,
    /// Its own description.
    pub description: Option<Value>,
    /// Why it would not be used.
    pub refused: Option<String>,
}

/// Limits as a component has them that pipeline.toml gives none.
pub fn usual() -> Limits {
    Limits::default()
}

/// Limits for looking at a plugin that carries a whole language runtime.
pub fn large() -> Limits {
    const MIB: u64 = 1 << 20;
    Limits {
        memory: 512 * MIB,
        table_elements: 1_000_000,
        cpu: Duration::from_secs(60),
        compile: Shape {
            file: 256 * MIB,
            functions: 200_000,
            function: 8 * MIB,
            code: 128 * MIB,
            instances: 10_000,
            depth: 32,
        },
        ..Limits::default()
    }
}

/// An engine for looking; nothing it compiles is kept.
pub(super) fn engine() -> Result<Engine, PipelineError> {
    Engine::new(EngineConfig::default()).map_err(|e| PipelineError::Internal(e.to_string()))
}

/// Loads bytes that were just looked at: the pin is their own hash.
pub(super) fn load(
    engine: &Engine,
    name: &str,
    wasm: &[u8],
    sha256: &str,
    limits: &Limits,
) -> Result<Component, SandboxError> {
    let origin = Origin::ThirdParty {
        sha256: sha256.to_owned(),
    };
    tokio::task::block_in_place(|| engine.load_within(name, wasm, origin, &limits.compile))
}

/// Looks at a file. A file that is no component is an error; one that would be refused is described with the reason.
pub async fn run(file: &Path, limits: &Limits) -> Result<Inspected, PipelineError> {
    let wasm = read_file(file, limits.compile.file)
        .map_err(|problem| bad_file(file, problem, "name a plugin's .wasm file; --large allows larger ones"))?;
    let name = file
        .file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let plugin = inspect_wasm(&wasm).map_err(|why| PipelineError::component(&name, format!("refused: {why}")))?;
    let mut inspected = Inspected {
        event: "plugin",
        file: file.to_owned(),
        limits: needed(&plugin, &Shape::default()),
        plugin,
        description: None,
        refused: None,
    };
    if inspected.plugin.made_for.as_deref() == Some("ess:policy/evaluator") {
        return Ok(inspected);
    }
    let said = async {
        let component = load(&engine()?, &name, &wasm, &inspected.plugin.sha256, limits)
            .map_err(|e| PipelineError::component(&name, without_name(&e)))?;
        let description = component.describe(limits).await;
        description.map_err(|e| PipelineError::component(&name, without_name(&e)))
    };
    match said.await {
        Ok(description) => inspected.description = Some(words::description(&description)),
        Err(PipelineError::Component { problem, .. }) => inspected.refused = Some(problem),
        Err(other) => return Err(other),
    }
    Ok(inspected)
}

/// The sandbox's errors begin with the component's name, and so do ours.
pub(super) fn without_name(e: &SandboxError) -> String {
    let text = e.to_string();
    let prefix = e.component().map(|c| format!("component {c}: ")).unwrap_or_default();
    text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
}

/// What of `[components.NAME.limits.compile]` must be raised above `given` for this file.
fn needed(plugin: &PluginInfo, given: &Shape) -> Vec<String> {
    const MIB: u64 = 1 << 20;
    let mut lines = Vec::new();
    let mut bytes = |key: &str, found: u64, limit: u64| {
        if found > limit {
            lines.push(format!("{key} = \"{} MiB\"", found.div_ceil(MIB)));
        }
    };
    bytes("file", plugin.bytes, given.file);
    bytes("function", plugin.largest_function, given.function);
    bytes("code", plugin.code, given.code);
    let mut number = |key: &str, found: u64, limit: u64| {
        if found > limit {
            lines.push(format!("{key} = {}", found.next_multiple_of(10)));
        }
    };
    number("functions", plugin.functions, given.functions);
    number("instances", plugin.instances, given.instances);
    number("depth", plugin.depth, given.depth);
    lines
}

/// What an import of essrun's or WASI's gives a plugin.
fn meaning(import: &str) -> &'static str {
    let table: &[(&str, &str)] = &[
        ("ess:inspect/database@", "bounded reading queries in granted databases"),
        (
            "ess:inspect/volume@",
            "names, small files and digests in granted volumes",
        ),
        ("ess:inspect/settings@", "its own settings"),
        ("ess:inspect/log@", "lines for the run's log"),
        ("ess:", "types of the contract"),
        ("wasi:cli/environment@", "arguments and environment; it finds none"),
        ("wasi:cli/std", "standard input and output; they lead nowhere"),
        ("wasi:cli/terminal", "whether there is a terminal; there is none"),
        ("wasi:cli/exit@", "ending itself"),
        ("wasi:clocks/", "the time"),
        ("wasi:random/", "random numbers"),
        ("wasi:io/", "what the interfaces above are made of"),
    ];
    table
        .iter()
        .find(|(prefix, _)| import.starts_with(prefix))
        .map_or("", |(_, meaning)| *meaning)
}

impl Inspected {
    pub fn text(&self) -> String {
        let p = &self.plugin;
        let mut t = String::new();
        // Writing into a String does not fail.
        let _ = writeln!(t, "{}", self.file.display());
        let _ = writeln!(t, "  sha256    {}", p.sha256);
        let _ = writeln!(t, "  size      {} bytes, {} functions", p.bytes, p.functions);
        let contract = match (&p.made_for, &p.contract) {
            (Some(made_for), Some(version)) => format!("{made_for}@{version}"),
            _ => "none of essrun's: it exports neither ess:backup/system nor ess:policy/evaluator".to_owned(),
        };
        let _ = writeln!(t, "  made for  {contract}");
        let _ = writeln!(t, "  imports   {}", if p.imports.is_empty() { "nothing" } else { "" });
        for import in &p.imports {
            let refused = p.ungranted.iter().find(|u| &u.import == import);
            let said = refused.map_or_else(
                || meaning(import).to_owned(),
                |u| format!("NOT GIVEN to any plugin: {}", u.meaning),
            );
            let _ = writeln!(t, "    {import:<36}  {said}");
        }
        let _ = writeln!(t, "  exports");
        for export in &p.exports {
            let _ = writeln!(t, "    {export}");
        }
        if let Some(description) = &self.description {
            t.push_str(&words::description_text(description));
        }
        if self.refused.is_none() && self.description.is_some() {
            let _ = writeln!(
                t,
                "  to use it, in pipeline.toml:\n    [components.NAME]\n    use = {{ path = {:?}, sha256 = \"{}\" }}",
                self.file.display().to_string(),
                p.sha256
            );
        }
        if !self.limits.is_empty() {
            let _ = writeln!(
                t,
                "  it is larger than plugins usually are; to load it, pipeline.toml must allow"
            );
            let _ = writeln!(t, "    [components.NAME.limits.compile]");
            for line in &self.limits {
                let _ = writeln!(t, "    {line}");
            }
        }
        t
    }

    /// What would not be loaded is an error, so that scripts need not read the text.
    pub fn into_error(self) -> Result<(), PipelineError> {
        match self.refused {
            None => Ok(()),
            Some(problem) => {
                let name = self
                    .file
                    .file_name()
                    .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
                Err(PipelineError::component(&name, problem))
            }
        }
    }
}
