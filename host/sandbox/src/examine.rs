//! Reads a component without running or compiling it: what it imports and exports, and whether compiling it is safe.
//!
//! Everything here happens before the compiler sees the file, because a compiler can be attacked too: a file of a few
//! kilobytes may hold a function that takes minutes, or components that instantiate each other twice, each level
//! doubling the work. So the shape is bounded first, in one pass whose cost is linear in the file. Whether the file is
//! *valid* is left to wasmtime; this pass only has to be right about what it counts.

use crate::error::{Refusal, Ungranted};
use crate::limits::Shape;
use crate::wasi;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentTypeRef, Instance, Parser, Payload, TypeRef,
};

/// A world a guest is made for: what it must export, and what of essrun's it may import.
pub(crate) struct Made {
    pub export: &'static str,
    imports: &'static [&'static str],
}

/// A component.
pub(crate) const COMPONENT: Made = Made {
    export: "ess:backup/system",
    imports: OURS,
};

/// An interpreter of policies: it sees nothing but its input.
pub(crate) const POLICY: Made = Made {
    export: "ess:policy/evaluator",
    imports: &[],
};

/// Interfaces of essrun a component may import.
const OURS: &[&str] = &[
    "ess:inspect/types",
    "ess:inspect/database",
    "ess:inspect/volume",
    "ess:inspect/settings",
    "ess:inspect/log",
    "ess:backup/types",
    "ess:backup/backup",
    "ess:backup/restore",
    "ess:backup/incident",
];

/// What a file asks for and offers, for `essrun plugin inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PluginInfo {
    /// SHA-256, 64 lower-case hexadecimal digits: what pipeline.toml pins.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Imports by name.
    pub imports: Vec<String>,
    /// Exports by name.
    pub exports: Vec<String>,
    /// Imports nobody will answer; with any, the component is refused.
    pub ungranted: Vec<Ungranted>,
    /// Version of ess:backup (or, for an interpreter, ess:policy) it was built for; `None` if it exports neither.
    pub contract: Option<String>,
    /// The contract's export, without its version.
    pub made_for: Option<String>,
    /// Functions in all its modules.
    pub functions: u64,
    /// Bytes of the largest of them.
    pub largest_function: u64,
    /// Bytes of all of them.
    pub code: u64,
    /// Instances, when every component is instantiated as often as it says.
    pub instances: u64,
    /// Nesting of components and modules.
    pub depth: u64,
}

/// Reads a file's imports and exports. Fails for what is no component at all; an ungranted import is no failure here.
pub fn inspect_wasm(wasm: &[u8]) -> Result<PluginInfo, Refusal> {
    // Nothing is compiled, so only what bounds this pass itself is bounded.
    let shape = Shape {
        functions: u64::MAX,
        function: u64::MAX,
        code: u64::MAX,
        ..Shape::default()
    };
    // A file of either kind is judged by what its kind may import.
    let as_policy = examine(wasm, &shape, &POLICY)?;
    if as_policy.contract.is_some() {
        Ok(as_policy)
    } else {
        examine(wasm, &shape, &COMPONENT)
    }
}

fn invalid(e: impl std::fmt::Display) -> Refusal {
    Refusal::Invalid {
        problem: crate::log::line(&e.to_string(), 300),
    }
}

/// The file's kind by its first eight bytes.
fn preamble(wasm: &[u8]) -> Result<(), Refusal> {
    if wasm.starts_with(b"\x7fELF") {
        return Err(Refusal::Precompiled);
    }
    match wasm.get(..8) {
        Some(b"\0asm\x0d\0\x01\0") => Ok(()),
        Some(b"\0asm\x01\0\0\0") => Err(Refusal::CoreModule),
        _ => Err(Refusal::NotWasm),
    }
}

/// One open component or module.
#[derive(Default)]
struct Frame {
    module: bool,
    /// Memories of a module, its own and imported.
    memories: u64,
    /// Instances made when this is instantiated once.
    weight: u64,
    /// Weight of each component in the component's index space.
    components: Vec<u64>,
}

pub(crate) fn examine(wasm: &[u8], shape: &Shape, made: &Made) -> Result<PluginInfo, Refusal> {
    preamble(wasm)?;
    let mut walk = Walk {
        shape,
        frames: Vec::new(),
        functions: 0,
        largest_function: 0,
        code_bytes: 0,
        instances: 0,
        depth: 0,
        imports: BTreeMap::new(),
        exports: Vec::new(),
    };
    for payload in Parser::new(0).parse_all(wasm) {
        walk.payload(payload.map_err(invalid)?)?;
    }
    let ungranted: Vec<_> = walk
        .imports
        .iter()
        .filter(|(name, kind)| !linkable(name, **kind, made))
        .map(|(name, _)| Ungranted {
            import: crate::log::line(name, 200),
            meaning: wasi::meaning(name),
        })
        .collect();
    let contract = walk.exports.iter().find_map(|e| match split(e) {
        (export, version) if export == made.export => Some(version.unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(PluginInfo {
        sha256: hex::encode(Sha256::digest(wasm)),
        bytes: wasm.len() as u64,
        imports: walk.imports.into_keys().map(|n| crate::log::line(&n, 200)).collect(),
        exports: walk.exports.iter().map(|n| crate::log::line(n, 200)).collect(),
        ungranted,
        made_for: contract.as_ref().map(|_| made.export.to_owned()),
        contract,
        functions: walk.functions,
        largest_function: walk.largest_function,
        code: walk.code_bytes,
        instances: walk.instances,
        depth: walk.depth,
    })
}

/// `ess:inspect/log@0.1.0` → (`ess:inspect/log`, `0.1.0`)
fn split(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((interface, version)) => (interface, Some(version)),
        None => (name, None),
    }
}

fn linkable(name: &str, kind: Import, made: &Made) -> bool {
    let (interface, Some(version)) = split(name) else {
        return false;
    };
    kind == Import::Instance
        && ((wasi::LINKED.contains(&interface) && version.starts_with("0.2."))
            || (made.imports.contains(&interface) && version.starts_with("0.1.")))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Import {
    Instance,
    Other,
}

struct Walk<'s> {
    shape: &'s Shape,
    frames: Vec<Frame>,
    functions: u64,
    largest_function: u64,
    code_bytes: u64,
    instances: u64,
    depth: u64,
    imports: BTreeMap<String, Import>,
    exports: Vec<String>,
}

impl Walk<'_> {
    fn too_complex(what: &'static str, found: u64, limit: u64) -> Result<(), Refusal> {
        if found > limit {
            Err(Refusal::TooComplex { what, found, limit })
        } else {
            Ok(())
        }
    }

    fn top(&mut self) -> Result<&mut Frame, Refusal> {
        self.frames
            .last_mut()
            .ok_or_else(|| invalid("a section outside of anything"))
    }

    fn add_weight(&mut self, weight: u64) -> Result<(), Refusal> {
        let limit = self.shape.instances;
        let top = self.top()?;
        top.weight = top.weight.saturating_add(weight);
        let weight = top.weight;
        self.instances = self.instances.max(weight);
        Self::too_complex("instances in all", weight, limit)
    }

    /// The compiler knows several memories, since the adapters it makes between components have two; modules have one.
    fn add_memories(&mut self, memories: u64) -> Result<(), Refusal> {
        let top = self.top()?;
        top.memories = top.memories.saturating_add(memories);
        if top.memories > 1 {
            return Err(invalid("a module of it has several memories"));
        }
        Ok(())
    }

    fn payload(&mut self, payload: Payload<'_>) -> Result<(), Refusal> {
        match payload {
            Payload::Version { encoding, .. } => {
                Self::too_complex("levels of nesting", self.frames.len() as u64 + 1, self.shape.depth)?;
                self.depth = self.depth.max(self.frames.len() as u64 + 1);
                self.frames.push(Frame {
                    module: encoding == wasmparser::Encoding::Module,
                    ..Frame::default()
                });
            }
            Payload::MemorySection(section) => self.add_memories(u64::from(section.count()))?,
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    if let TypeRef::Memory(_) = import.map_err(invalid)?.ty {
                        self.add_memories(1)?;
                    }
                }
            }
            Payload::CodeSectionStart { count, .. } => {
                self.functions = self.functions.saturating_add(u64::from(count));
                Self::too_complex("functions", self.functions, self.shape.functions)?;
            }
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                let bytes = range.end.saturating_sub(range.start) as u64;
                self.largest_function = self.largest_function.max(bytes);
                Self::too_complex("bytes in one function", bytes, self.shape.function)?;
                self.code_bytes = self.code_bytes.saturating_add(bytes);
                Self::too_complex("bytes in all functions", self.code_bytes, self.shape.code)?;
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    if let Instance::Instantiate { .. } = instance.map_err(invalid)? {
                        self.add_weight(1)?;
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance.map_err(invalid)? {
                        let inner = self.component(0, component_index)?;
                        self.add_weight(inner.saturating_add(1))?;
                    }
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    match alias.map_err(invalid)? {
                        ComponentAlias::Outer {
                            kind: ComponentOuterAliasKind::Component,
                            count,
                            index,
                        } => {
                            let weight = self.component(count, index)?;
                            self.top()?.components.push(weight);
                        }
                        ComponentAlias::InstanceExport {
                            kind: ComponentExternalKind::Component,
                            ..
                        } => {
                            return Err(unbounded());
                        }
                        _ => {}
                    }
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import.map_err(invalid)?;
                    if let ComponentTypeRef::Component(_) = import.ty {
                        if self.frames.len() > 1 {
                            return Err(unbounded());
                        }
                        self.top()?.components.push(0);
                    }
                    if self.frames.len() == 1 {
                        let kind = match import.ty {
                            ComponentTypeRef::Instance(_) => Import::Instance,
                            _ => Import::Other,
                        };
                        self.imports.insert(import.name.name.to_owned(), kind);
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    let export = export.map_err(invalid)?;
                    if export.kind == ComponentExternalKind::Component {
                        // An export adds its item to the index space once more.
                        let weight = self.component(0, export.index)?;
                        self.top()?.components.push(weight);
                    }
                    if self.frames.len() == 1 {
                        self.exports.push(export.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                for function in section {
                    synchronous(&function.map_err(invalid)?)?;
                }
            }
            Payload::End(_) => {
                if let Some(closed) = self.frames.pop()
                    && !closed.module
                    && let Some(outer) = self.frames.last_mut()
                {
                    outer.components.push(closed.weight);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The weight of component `index` as seen `outward` levels out.
    fn component(&self, outward: u32, index: u32) -> Result<u64, Refusal> {
        let at = (self.frames.len().checked_sub(1)).and_then(|top| top.checked_sub(outward as usize));
        at.and_then(|at| self.frames.get(at))
            .and_then(|frame| frame.components.get(index as usize))
            .copied()
            .ok_or_else(|| invalid("it instantiates a component that is not there"))
    }
}

fn unbounded() -> Refusal {
    invalid("it hands components to components, so its size when instantiated cannot be known")
}

/// Only the synchronous part of the canonical ABI.
fn synchronous(function: &CanonicalFunction) -> Result<(), Refusal> {
    let options = match function {
        CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => options,
        CanonicalFunction::ResourceNew { .. }
        | CanonicalFunction::ResourceDrop { .. }
        | CanonicalFunction::ResourceRep { .. } => return Ok(()),
        other => {
            return Err(Refusal::AsyncAbi {
                found: crate::log::line(&format!("{other:?}"), 100),
            });
        }
    };
    match options
        .iter()
        .find(|o| matches!(o, CanonicalOption::Async | CanonicalOption::Callback(_)))
    {
        Some(option) => Err(Refusal::AsyncAbi {
            found: format!("canonical option {option:?}"),
        }),
        None => Ok(()),
    }
}
