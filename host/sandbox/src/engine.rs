//! The machine all guests run on: one set of rules for compiling, one clock for interrupting, one list of what is linked.

use crate::cache::Cache;
use crate::component::Component;
use crate::contract::bindings;
use crate::error::{Refusal, SandboxError};
use crate::examine::{COMPONENT, Made, examine};
use crate::exports::Exports;
use crate::host::{State, TICK};
use crate::limits::Shape;
use crate::wasi;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use wasmtime::component::{HasSelf, InstancePre, Linker};

/// How the machine is set up.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Where compiled code is kept; without it every run compiles again.
    pub cache_dir: Option<PathBuf>,
    /// What compiling a guest may cost, where the call does not say.
    pub shape: Shape,
}

/// Where a component comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From this build.
    BuiltIn,
    /// From somebody else; pipeline.toml pins its hash.
    ThirdParty {
        /// SHA-256 of the file, 64 hexadecimal digits.
        sha256: String,
    },
}

/// The machine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    engine: wasmtime::Engine,
    linker: Linker<State>,
    cache: Option<Cache>,
    shape: Shape,
    clock: Arc<Clock>,
}

impl Engine {
    /// Sets up the machine and its clock.
    pub fn new(config: EngineConfig) -> Result<Engine, SandboxError> {
        let engine = wasmtime::Engine::new(&rules()).map_err(|e| host("setting up the engine", &e))?;
        let mut linker = Linker::new(&engine);
        wasi::link(&mut linker)
            .and_then(|()| bindings::Component::add_to_linker::<State, HasSelf<State>>(&mut linker, |s| s))
            .map_err(|e| host("linking", &e))?;
        let cache = config
            .cache_dir
            .as_deref()
            .and_then(|dir| match Cache::open(dir, &engine) {
                Ok(cache) => Some(cache),
                Err(e) => {
                    tracing::warn!(%e, "compiled code is not kept");
                    None
                }
            });
        let clock = Arc::new(Clock::default());
        start(&clock, &engine)?;
        Ok(Engine {
            inner: Arc::new(Inner {
                engine,
                linker,
                cache,
                shape: config.shape,
                clock,
            }),
        })
    }

    /// Checks, compiles and links a component. Nothing of it runs. Compiling a large one takes seconds: in async code
    /// call this from `spawn_blocking`.
    pub fn load(&self, name: &str, wasm: &[u8], origin: Origin) -> Result<Component, SandboxError> {
        self.load_within(name, wasm, origin, &self.inner.shape)
    }

    /// The same, for a component whose limits on compiling are its own.
    pub fn load_within(
        &self,
        name: &str,
        wasm: &[u8],
        origin: Origin,
        shape: &Shape,
    ) -> Result<Component, SandboxError> {
        let refused = |why| SandboxError::Refused {
            component: crate::log::line(name, 100),
            why,
        };
        let (info, pre) = self.prepare(wasm, &origin, COMPONENT, shape).map_err(refused)?;
        let pre = self.typed(pre).map_err(refused)?;
        Ok(Component::new(name, info, pre, self.clone()))
    }

    fn typed(&self, pre: InstancePre<State>) -> Result<bindings::ComponentPre<State>, Refusal> {
        use crate::contract::{
            backup, incident,
            restore::{self, BackupView},
            types::{Description, Error},
        };
        let exports = Exports::find(&self.inner.engine, pre.component(), COMPONENT.export)?;
        exports.function::<(), (Description,)>("describe")?;
        exports.function::<(), (Result<backup::Plan, Error>,)>("plan-backup")?;
        exports.function::<(BackupView,), (Result<restore::Plan, Error>,)>("plan-restore")?;
        exports.function::<(BackupView,), (Result<Vec<restore::Finding>, Error>,)>("verify")?;
        exports.function::<(BackupView,), (Result<incident::Plan, Error>,)>("respond")?;
        bindings::ComponentPre::new(pre).map_err(|e| Refusal::WrongType { problem: cause(&e) })
    }

    /// Everything up to the exports' types, which differ by what the guest is made for.
    pub(crate) fn prepare(
        &self,
        wasm: &[u8],
        origin: &Origin,
        made: Made,
        shape: &Shape,
    ) -> Result<(crate::PluginInfo, InstancePre<State>), Refusal> {
        let inner = &self.inner;
        let bytes = wasm.len() as u64;
        if bytes > shape.file {
            return Err(Refusal::TooLarge {
                bytes,
                limit: shape.file,
            });
        }
        let info = match examine(wasm, shape, &made) {
            Ok(info) => info,
            // A file that is not what was pinned is that before all else.
            Err(why) => return Err(pinned(wasm, origin).err().unwrap_or(why)),
        };
        pinned(wasm, origin)?;
        if !info.ungranted.is_empty() {
            return Err(Refusal::Ungranted(info.ungranted));
        }
        match info.contract.as_deref() {
            Some(version) if version.starts_with("0.1.") => {}
            _ => {
                return Err(Refusal::MissingExport {
                    missing: format!("{}@0.1.0", made.export),
                });
            }
        }
        let kept = inner.cache.as_ref().and_then(|c| c.get(&inner.engine, &info.sha256));
        let component = match kept {
            Some(component) => component,
            None => {
                let component = compile(&inner.engine, wasm)?;
                if let Some(cache) = &inner.cache {
                    cache.put(&info.sha256, &component);
                }
                component
            }
        };
        let pre = inner
            .linker
            .instantiate_pre(&component)
            .map_err(|e| Refusal::WrongType { problem: cause(&e) })?;
        Ok((info, pre))
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner.engine
    }

    /// Keeps the clock ticking while it lives.
    pub(crate) fn ticking(&self) -> Ticking {
        let clock = self.inner.clock.clone();
        *clock.calls.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        clock.wake.notify_one();
        Ticking { clock }
    }
}

/// Compiles. A compiler is much code, and the file is hostile: where it panics the file is refused and the host goes on.
fn compile(engine: &wasmtime::Engine, wasm: &[u8]) -> Result<wasmtime::component::Component, Refusal> {
    let compiled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wasmtime::component::Component::from_binary(engine, wasm)
    }));
    match compiled {
        Ok(Ok(component)) => Ok(component),
        Ok(Err(e)) => Err(Refusal::Invalid { problem: cause(&e) }),
        Err(_) => Err(Refusal::Invalid {
            problem: "the compiler gave up on it".to_owned(),
        }),
    }
}

fn pinned(wasm: &[u8], origin: &Origin) -> Result<(), Refusal> {
    use sha2::{Digest, Sha256};
    let Origin::ThirdParty { sha256: expected } = origin else {
        return Ok(());
    };
    let found = hex::encode(Sha256::digest(wasm));
    if found.eq_ignore_ascii_case(expected) {
        Ok(())
    } else {
        Err(Refusal::WrongHash {
            expected: crate::log::line(expected, 100),
            found,
        })
    }
}

/// An error with its causes, on one line.
pub(crate) fn cause(e: &wasmtime::Error) -> String {
    crate::log::line(&format!("{e:#}"), 600)
}

fn host(what: &str, e: &wasmtime::Error) -> SandboxError {
    SandboxError::Host {
        what: what.to_owned(),
        why: cause(e),
    }
}

fn rules() -> wasmtime::Config {
    let mut c = wasmtime::Config::new();
    c.wasm_component_model(true);
    // Control calls are synchronous: guest→host calls cost less than half, and the async ABI is refused.
    c.concurrency_support(false);
    c.epoch_interruption(true);
    c.max_wasm_stack(512 * 1024);
    // Host functions run on the guest's stack too, and need room of their own.
    c.async_stack_size(2 * 1024 * 1024);
    // A guest must not find in its stack what another left there.
    c.async_stack_zeroing(true);
    c.wasm_memory64(false);
    // wasmtime's own adapters between two components of a guest need it, and panic without; `examine` refuses modules of
    // the guest's own with more than one.
    c.wasm_multi_memory(true);
    c.wasm_relaxed_simd(false);
    c.wasm_wide_arithmetic(false);
    // Function names of a guest are the guest's words; the reason of a trap is enough.
    c.wasm_backtrace_max_frames(None);
    // Nobody maps native addresses back to wasm; it is half of the compiled file.
    c.generate_address_map(false);
    c
}

/// Counts running calls; the clock thread sleeps while there are none.
#[derive(Default)]
struct Clock {
    calls: Mutex<usize>,
    wake: Condvar,
}

pub(crate) struct Ticking {
    clock: Arc<Clock>,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        *self.clock.calls.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

fn start(clock: &Arc<Clock>, engine: &wasmtime::Engine) -> Result<(), SandboxError> {
    let engine = engine.weak();
    let clock = Arc::downgrade(clock);
    let run = move || {
        // Neither the engine nor the clock is kept alive by this thread; it ends within a second of them.
        while let (Some(engine), Some(clock)) = (engine.upgrade(), clock.upgrade()) {
            let calls = clock.calls.lock().unwrap_or_else(PoisonError::into_inner);
            if *calls == 0 {
                drop(engine);
                let waited = clock.wake.wait_timeout(calls, std::time::Duration::from_secs(1));
                drop(waited);
                continue;
            }
            drop(calls);
            engine.increment_epoch();
            drop((engine, clock));
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new()
        .name("guest-clock".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|e| SandboxError::Host {
            what: "starting the clock".to_owned(),
            why: e.to_string(),
        })
}
