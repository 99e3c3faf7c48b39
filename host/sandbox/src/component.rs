//! A loaded component, and the five calls into it.
//!
//! Every call gets a store of its own: fresh memory, fresh handles, fresh budgets. Whatever happens in it, trap,
//! timeout or success, the store is dropped afterwards, so nothing a guest did in one call reaches another.

use crate::contract::{backup, bindings, incident, restore, types};
use crate::engine::Engine;
use crate::error::{SandboxError, Stop};
use crate::host::State;
use crate::{Limits, NoWorld, PluginInfo, World, check};
use std::sync::Arc;
use wasmtime::component::ResourceTableError;
use wasmtime::{Store, Trap};
use wasmtime_wasi::I32Exit;

/// A component that was checked, compiled and linked. Cheap to clone.
#[derive(Clone)]
pub struct Component {
    name: Arc<str>,
    info: Arc<PluginInfo>,
    pre: bindings::ComponentPre<State>,
    engine: Engine,
}

/// One call, whose bindings differ only in their names.
macro_rules! call {
    ($self:ident, $what:literal, $world:expr, $limits:ident, $function:ident $(, $argument:expr)?) => {{
        let _ticking = $self.engine.ticking();
        let mut store = $self.store($world, $limits);
        let work = async {
            let guest = $self.pre.instantiate_async(&mut store).await?;
            guest.ess_backup_system().$function(&mut store $(, $argument)?).await
        };
        let ended = tokio::time::timeout($limits.wall_clock, work).await;
        $self.outcome($what, $limits, store.data(), ended)?
    }};
}

impl Component {
    pub(crate) fn new(name: &str, info: PluginInfo, pre: bindings::ComponentPre<State>, engine: Engine) -> Self {
        Component {
            name: name.into(),
            info: Arc::new(info),
            pre,
            engine,
        }
    }

    /// Its name in pipeline.toml.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its file says of itself.
    pub fn info(&self) -> &PluginInfo {
        &self.info
    }

    /// What the component is and needs. It is given nothing to look at.
    pub async fn describe(&self, limits: &Limits) -> Result<types::Description, SandboxError> {
        let described = call!(self, "describe", Arc::new(NoWorld), limits, call_describe);
        check::description(described, limits).map_err(|p| self.bad("describe", p))
    }

    /// What to take, seen in `world`.
    pub async fn plan_backup(&self, world: Arc<dyn World>, limits: &Limits) -> Result<backup::Plan, SandboxError> {
        let plan = call!(self, "plan-backup", world, limits, call_plan_backup);
        let plan = self.honest("plan-backup", plan)?;
        check::backup_plan(plan, limits).map_err(|p| self.bad("plan-backup", p))
    }

    /// How to put a backup back.
    pub async fn plan_restore(
        &self,
        world: Arc<dyn World>,
        backup: &restore::BackupView,
        limits: &Limits,
    ) -> Result<restore::Plan, SandboxError> {
        let plan = call!(self, "plan-restore", world, limits, call_plan_restore, backup);
        let plan = self.honest("plan-restore", plan)?;
        check::restore_plan(plan, limits).map_err(|p| self.bad("plan-restore", p))
    }

    /// Checks what was restored; `world` is that.
    pub async fn verify(
        &self,
        world: Arc<dyn World>,
        backup: &restore::BackupView,
        limits: &Limits,
    ) -> Result<Vec<restore::Finding>, SandboxError> {
        let findings = call!(self, "verify", world, limits, call_verify, backup);
        let findings = self.honest("verify", findings)?;
        check::findings(findings, limits).map_err(|p| self.bad("verify", p))
    }

    /// What to do after this backup leaked.
    pub async fn respond(
        &self,
        world: Arc<dyn World>,
        backup: &restore::BackupView,
        limits: &Limits,
    ) -> Result<incident::Plan, SandboxError> {
        let plan = call!(self, "respond", world, limits, call_respond, backup);
        let plan = self.honest("respond", plan)?;
        check::incident_plan(plan, limits).map_err(|p| self.bad("respond", p))
    }

    fn store(&self, world: Arc<dyn World>, limits: &Limits) -> Store<State> {
        new_store(&self.engine, State::new(world, limits), limits)
    }

    fn outcome<T>(
        &self,
        call: &'static str,
        limits: &Limits,
        state: &State,
        ended: Result<wasmtime::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, SandboxError> {
        outcome(limits, state, ended).map_err(|why| SandboxError::Stopped {
            component: self.name.to_string(),
            call,
            why,
            last_words: state.last_words(),
        })
    }

    fn honest<T>(&self, call: &'static str, answer: Result<T, types::Error>) -> Result<T, SandboxError> {
        answer.map_err(|error| SandboxError::Guest {
            component: self.name.to_string(),
            call,
            error: check::guest_error(error),
        })
    }

    fn bad(&self, call: &'static str, problem: String) -> SandboxError {
        SandboxError::BadResult {
            component: self.name.to_string(),
            call,
            problem,
        }
    }
}

/// A store under these limits.
pub(crate) fn new_store(engine: &Engine, state: State, limits: &Limits) -> Store<State> {
    let mut store = Store::new(engine.wasmtime(), state);
    store.limiter(|state| state);
    store.set_hostcall_fuel(usize::try_from(limits.held).unwrap_or(usize::MAX));
    store.set_max_component_handles(limits.handles as usize);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut context| context.data_mut().tick());
    store
}

/// Why a call ended, if not well.
pub(crate) fn outcome<T>(
    limits: &Limits,
    state: &State,
    ended: Result<wasmtime::Result<T>, tokio::time::error::Elapsed>,
) -> Result<T, Stop> {
    let error = match ended {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(_) => {
            return Err(Stop::WallClock {
                limit: limits.wall_clock,
            });
        }
    };
    if let Some(stop) = state.stopped() {
        return Err(stop);
    }
    if error.downcast_ref::<I32Exit>().is_some() {
        return Err(Stop::Exit);
    }
    if matches!(
        error.downcast_ref::<ResourceTableError>(),
        Some(ResourceTableError::Full)
    ) {
        return Err(Stop::Handles { limit: limits.handles });
    }
    let trap = error.downcast_ref::<Trap>();
    let root = error.root_cause().to_string();
    Err(match trap {
        Some(Trap::StackOverflow) => Stop::StackOverflow,
        // Who was refused memory and gives up next gives up for that.
        Some(Trap::UnreachableCodeReached) if state.memory_refused() => Stop::Memory { limit: limits.memory },
        Some(Trap::UnreachableCodeReached) => Stop::Unreachable,
        Some(other) => Stop::Trap(other.to_string()),
        // wasmtime gives these no type of their own; the tests hold on to the words.
        None if root.contains("store handle limit exceeded") => Stop::Handles { limit: limits.handles },
        None if root.contains("fuel allocated for hostcalls") => Stop::HandedOver { limit: limits.held },
        None if state.memory_refused() => Stop::Memory { limit: limits.memory },
        None => Stop::Trap(crate::log::line(&root, 300)),
    })
}
