//! What the hostile-guest tests share: how a guest is made, the world it sees, and the proof that the host lives on.
//!
//! Guests are core modules in text form, fitted to the contract by wit-component, so that each test shows exactly what
//! its guest does and none needs a compiler for wasm.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use async_trait::async_trait;
use essrun_sandbox::contract::inspect::{Cell, DatabaseInfo, Entry, FileDigest, Level, TableInfo};
use essrun_sandbox::contract::restore::BackupView;
use essrun_sandbox::{
    Component, Engine, EngineConfig, Limits, ListingSource, LookError, Origin, RowSource, SandboxError, Stop, World,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

pub const EXPORTS: [&str; 5] = ["describe", "plan-backup", "plan-restore", "verify", "respond"];

/// A core module for the contract: `extra` is put in as it is, `bodies` replace the bodies of exports. An export left
/// alone returns a pointer to zeros, which reads as an empty plan, no findings, or a description of empty texts.
pub fn module(extra: &str, bodies: &[(&str, &str)]) -> String {
    let mut exports = String::new();
    for name in EXPORTS {
        let body = bodies
            .iter()
            .find(|(n, _)| *n == name)
            .map_or("(i32.const 1024)", |(_, b)| *b);
        let params = match name {
            "describe" | "plan-backup" => "",
            _ => "(param i32 i32 i64 i32 i32 i32 i32 i32 i32)",
        };
        exports.push_str(&format!(
            "(func $export-{name} (export \"ess:backup/system@0.1.0#{name}\") {params} (result i32) {body})\n"
        ));
    }
    let memory = if extra.contains("(memory") {
        ""
    } else {
        "(memory (export \"memory\") 2)"
    };
    let realloc = if extra.contains("cabi_realloc") { "" } else { REALLOC };
    // Imports must come first.
    format!("(module {IMPORTS} {extra} {memory} {realloc} {exports})")
}

const IMPORTS: &str = r#"
  (import "ess:inspect/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  (import "ess:inspect/settings@0.1.0" "get" (func $settings (param i32)))
  (import "ess:inspect/database@0.1.0" "query" (func $query (param i32 i32 i32 i32 i32 i32 i32)))
  (import "ess:inspect/database@0.1.0" "[method]rows.next" (func $next (param i32 i32 i32)))
  (import "ess:inspect/database@0.1.0" "[method]rows.columns" (func $columns (param i32 i32)))
  (import "ess:inspect/database@0.1.0" "[resource-drop]rows" (func $drop-rows (param i32)))
  (import "ess:inspect/volume@0.1.0" "walk" (func $walk (param i32 i32 i32 i32 i32 i32)))
  (import "ess:inspect/volume@0.1.0" "look" (func $look (param i32 i32 i32 i32 i32)))
  (import "ess:inspect/volume@0.1.0" "read" (func $read (param i32 i32 i32 i32 i32 i32)))
"#;

/// Allocates upwards and never frees.
const REALLOC: &str = r#"
  (global $top (mut i32) (i32.const 65536))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
    (global.set $top (i32.add (local.get $at) (local.get 3)))
    (block $enough
      (loop $grow
        (br_if $enough (i32.le_u (global.get $top) (i32.shl (memory.size) (i32.const 16))))
        (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))
        (br $grow)))
    (local.get $at))
"#;

fn wit() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../wit")
}

/// Fits a core module to the contract's world.
pub fn encode(core: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    resolve.push_dir(wit().join("inspect")).unwrap();
    let (package, _) = resolve.push_dir(wit().join("backup")).unwrap();
    encode_in(core, &resolve, package, "component")
}

/// Fits a core module to a world of the test's own making.
pub fn encode_for(core: &str, packages: &[&str], world: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let mut last = None;
    for (i, text) in packages.iter().enumerate() {
        last = Some(resolve.push_str(format!("{i}.wit"), text).unwrap());
    }
    encode_in(core, &resolve, last.unwrap(), world)
}

fn encode_in(core: &str, resolve: &wit_parser::Resolve, package: wit_parser::PackageId, world: &str) -> Vec<u8> {
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut core = wat::parse_str(core).unwrap_or_else(|e| panic!("{e}"));
    wit_component::embed_component_metadata(&mut core, resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    let mut encoder = wit_component::ComponentEncoder::default();
    encoder.validate(false).module(&core).unwrap();
    encoder.encode().unwrap_or_else(|e| panic!("{e:?}"))
}

/// A guest with these bodies.
pub fn guest(extra: &str, bodies: &[(&str, &str)]) -> Vec<u8> {
    encode(&module(extra, bodies))
}

/// One machine for all tests of a file, as in one run of essrun.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(EngineConfig::default()).unwrap())
}

pub fn load(wasm: &[u8]) -> Component {
    engine()
        .load("culprit", wasm, Origin::BuiltIn)
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Small limits, so that tests are quick; every one of them is a real one.
pub fn limits() -> Limits {
    Limits {
        cpu: Duration::from_millis(200),
        wall_clock: Duration::from_secs(60),
        ..Limits::default()
    }
}

pub fn view() -> BackupView {
    BackupView {
        id: "b1".into(),
        taken_at_unix_seconds: 0,
        component_version: "0".into(),
        facts: vec![],
        artifacts: vec![],
    }
}

/// Calls an export by name; what it returned, as text.
pub async fn call(
    component: &Component,
    export: &str,
    world: &Arc<Fake>,
    limits: &Limits,
) -> Result<String, SandboxError> {
    let world: Arc<dyn World> = world.clone();
    Ok(match export {
        "describe" => format!("{:?}", component.describe(limits).await?),
        "plan-backup" => format!("{:?}", component.plan_backup(world, limits).await?),
        "plan-restore" => format!("{:?}", component.plan_restore(world, &view(), limits).await?),
        "verify" => format!("{:?}", component.verify(world, &view(), limits).await?),
        "respond" => format!("{:?}", component.respond(world, &view(), limits).await?),
        other => panic!("{other}"),
    })
}

/// The host lives: an honest component, loaded before, answers every call.
pub async fn host_lives() {
    static GOOD: OnceLock<Component> = OnceLock::new();
    let good = GOOD.get_or_init(|| load(&guest("", &[])));
    for export in EXPORTS {
        call(good, export, &Fake::new(), &Limits::default()).await.unwrap();
    }
}

/// A guest that must be stopped: by its name, in this call, and without harm to the host.
pub async fn stopped_with(wasm: &[u8], export: &str, world: &Arc<Fake>, limits: &Limits) -> Stop {
    let component = load(wasm);
    let error = call(&component, export, world, limits)
        .await
        .expect_err("it was not stopped");
    host_lives().await;
    assert!(
        error
            .to_string()
            .starts_with(&format!("component culprit: {export} was stopped: ")),
        "{error}"
    );
    match error {
        SandboxError::Stopped { why, .. } => why,
        other => panic!("{other}"),
    }
}

pub async fn stopped(wasm: &[u8], export: &str) -> Stop {
    stopped_with(wasm, export, &Fake::new(), &limits()).await
}

/// A world with one endless database and one endless volume, which counts what is asked of it.
#[derive(Default)]
pub struct Fake {
    pub lines: Mutex<Vec<(Level, String)>>,
    pub open: Arc<AtomicUsize>,
    pub most_open: Arc<AtomicUsize>,
    pub asked: AtomicUsize,
    pub rows_given: Arc<AtomicUsize>,
    pub bytes_given: Arc<AtomicUsize>,
    /// Bytes each source says it holds.
    pub held: u64,
    /// Bytes of text in each row.
    pub row_bytes: usize,
    /// Whether looks ever come back.
    pub silent: bool,
}

impl Fake {
    pub fn new() -> Arc<Fake> {
        Arc::new(Fake {
            row_bytes: 10,
            ..Fake::default()
        })
    }

    pub fn lines(&self) -> Vec<(Level, String)> {
        self.lines.lock().unwrap().clone()
    }

    fn source(&self) -> Endless {
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.most_open.fetch_max(open, SeqCst);
        Endless {
            open: self.open.clone(),
            rows_given: self.rows_given.clone(),
            bytes_given: self.bytes_given.clone(),
            held: self.held,
            row_bytes: self.row_bytes,
        }
    }

    async fn asked(&self) {
        self.asked.fetch_add(1, SeqCst);
        if self.silent {
            std::future::pending::<()>().await;
        }
    }
}

struct Endless {
    open: Arc<AtomicUsize>,
    rows_given: Arc<AtomicUsize>,
    bytes_given: Arc<AtomicUsize>,
    held: u64,
    row_bytes: usize,
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.open.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl RowSource for Endless {
    fn columns(&self) -> Vec<String> {
        vec!["x".into()]
    }
    async fn next(&mut self, max_rows: u32, max_bytes: u64) -> Result<Vec<Vec<Cell>>, LookError> {
        let mut rows = Vec::new();
        let mut bytes = 0u64;
        while rows.len() < max_rows as usize && bytes < max_bytes {
            rows.push(vec![Cell::Text("r".repeat(self.row_bytes))]);
            bytes += 56 + self.row_bytes as u64;
        }
        self.rows_given.fetch_add(rows.len(), SeqCst);
        self.bytes_given.fetch_add(rows.len() * self.row_bytes, SeqCst);
        Ok(rows)
    }
    fn held_bytes(&self) -> u64 {
        self.held
    }
}

#[async_trait]
impl ListingSource for Endless {
    async fn next(&mut self, _: u32, _: u64) -> Result<Vec<Entry>, LookError> {
        Ok(vec![])
    }
    fn held_bytes(&self) -> u64 {
        self.held
    }
}

#[async_trait]
impl World for Fake {
    async fn info(&self, label: &str) -> Result<DatabaseInfo, LookError> {
        self.asked().await;
        Err(LookError::Denied(label.into()))
    }
    async fn tables(&self, label: &str) -> Result<Vec<TableInfo>, LookError> {
        self.asked().await;
        Err(LookError::Denied(label.into()))
    }
    async fn query(&self, _: &str, _: &str, _: Vec<Cell>) -> Result<Box<dyn RowSource>, LookError> {
        self.asked().await;
        Ok(Box::new(self.source()))
    }
    async fn walk(&self, _: &str, _: &str, _: bool) -> Result<Box<dyn ListingSource>, LookError> {
        self.asked().await;
        Ok(Box::new(self.source()))
    }
    async fn look(&self, _: &str, paths: Vec<String>) -> Result<Vec<Option<Entry>>, LookError> {
        self.asked().await;
        Ok(paths.iter().map(|_| None).collect())
    }
    async fn read(&self, _: &str, _: &str, max_bytes: u32) -> Result<Vec<u8>, LookError> {
        self.asked().await;
        self.bytes_given.fetch_add(max_bytes as usize, SeqCst);
        Ok(vec![b'f'; max_bytes as usize])
    }
    async fn digest(&self, _: &str, paths: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError> {
        self.asked().await;
        Ok(paths.iter().map(|_| None).collect())
    }
    fn settings(&self) -> String {
        "{}".into()
    }
    fn log(&self, level: Level, line: &str) {
        self.lines.lock().unwrap().push((level, line.to_owned()));
    }
}

/// Builds a crate of the workspace for wasm32-wasip2, as the built-in components are built, in a target directory that
/// the tests of this room share.
pub fn build_guest(package: &str, features: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.current_dir(root).args([
        "build",
        "--quiet",
        "--lib",
        "--target",
        "wasm32-wasip2",
        "--profile",
        "component",
    ]);
    cargo
        .args(["--package", package, "--features", features])
        .arg("--target-dir")
        .arg(&target);
    for (key, _) in std::env::vars_os() {
        let key = key.to_string_lossy().into_owned();
        // What cargo tells this test is not meant for another build.
        if (key.starts_with("CARGO_") && key != "CARGO_HOME") || key.starts_with("RUSTFLAGS") {
            cargo.env_remove(key);
        }
    }
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let file = format!("wasm32-wasip2/component/{}.wasm", package.replace('-', "_"));
    std::fs::read(target.join(file)).unwrap()
}
