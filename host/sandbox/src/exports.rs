//! Checks the types of what a guest exports before anything of it runs.
//!
//! wasmtime looks up exports by name when a component is prepared, and compares their types only when an instance is
//! made, which would be in the middle of a backup. A wrong type is the author's fault and is told when it is loaded.

use crate::error::Refusal;
use crate::log::line;
use wasmtime::component::types::{Component, ComponentInstance, ComponentItem};
use wasmtime::component::{ComponentNamedList, Lift, Lower};

/// The instance a guest exports for its contract.
pub(crate) struct Exports<'e> {
    engine: &'e wasmtime::Engine,
    component: Component,
    instance: ComponentInstance,
    interface: &'static str,
}

impl<'e> Exports<'e> {
    /// Finds `interface` in any compatible version.
    pub(crate) fn find(
        engine: &'e wasmtime::Engine,
        component: &wasmtime::component::Component,
        interface: &'static str,
    ) -> Result<Self, Refusal> {
        let component = component.component_type();
        let found = component.exports(engine).find_map(|(name, export)| {
            let version = name.strip_prefix(interface)?.strip_prefix('@')?;
            version.starts_with("0.1.").then_some(export.ty)
        });
        match found {
            Some(ComponentItem::ComponentInstance(instance)) => Ok(Exports {
                engine,
                component,
                instance,
                interface,
            }),
            Some(_) => Err(Refusal::WrongType {
                problem: format!("its export {interface} is no instance"),
            }),
            None => Err(Refusal::MissingExport {
                missing: format!("{interface}@0.1.0"),
            }),
        }
    }

    /// Checks one function.
    pub(crate) fn function<P, R>(&self, name: &str) -> Result<(), Refusal>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let full = || format!("{}#{name}", self.interface);
        match self.instance.get_export(self.engine, name).map(|e| e.ty) {
            Some(ComponentItem::ComponentFunc(f)) if f.async_() => Err(Refusal::AsyncAbi {
                found: format!("{} is an async function", full()),
            }),
            Some(ComponentItem::ComponentFunc(f)) => {
                f.typecheck::<P, R>(&self.component.instance_type())
                    .map_err(|e| Refusal::WrongType {
                        problem: format!("{}: {}", full(), line(&format!("{e:#}"), 300)),
                    })
            }
            Some(_) => Err(Refusal::WrongType {
                problem: format!("{} is no function", full()),
            }),
            None => Err(Refusal::WrongType {
                problem: format!("{} is missing", full()),
            }),
        }
    }
}
