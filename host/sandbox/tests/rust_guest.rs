//! A guest written in Rust, built by this test for wasm32-wasip2 with the profile of the built-in components: what std
//! drags in is granted and leads nowhere, and what goes wrong in it is reported in its own words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use async_trait::async_trait;
use common::*;
use essrun_sandbox::contract::inspect::{Cell, DatabaseInfo, Entry, FileDigest, Level, TableInfo};
use essrun_sandbox::{Limits, ListingSource, LookError, Origin, Refusal, RowSource, SandboxError, Stop, World};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// All builds, made once and one after another.
fn builds() -> &'static [Vec<u8>; 3] {
    static BUILDS: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    BUILDS.get_or_init(|| ["", "files", "sockets"].map(|features| build_guest("essrun-hostile", features)))
}

/// A world that only says which deed to do.
struct Deed(&'static str, Arc<Fake>);

#[async_trait]
impl World for Deed {
    async fn info(&self, label: &str) -> Result<DatabaseInfo, LookError> {
        self.1.info(label).await
    }
    async fn tables(&self, label: &str) -> Result<Vec<TableInfo>, LookError> {
        self.1.tables(label).await
    }
    async fn query(&self, label: &str, sql: &str, params: Vec<Cell>) -> Result<Box<dyn RowSource>, LookError> {
        self.1.query(label, sql, params).await
    }
    async fn walk(&self, label: &str, directory: &str, all: bool) -> Result<Box<dyn ListingSource>, LookError> {
        self.1.walk(label, directory, all).await
    }
    async fn look(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<Entry>>, LookError> {
        self.1.look(label, paths).await
    }
    async fn read(&self, label: &str, path: &str, most: u32) -> Result<Vec<u8>, LookError> {
        self.1.read(label, path, most).await
    }
    async fn digest(&self, label: &str, paths: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError> {
        self.1.digest(label, paths).await
    }
    fn settings(&self) -> String {
        format!("{{\"deed\": \"{}\"}}", self.0)
    }
    fn log(&self, level: Level, line: &str) {
        self.1.log(level, line);
    }
}

async fn does(deed: &'static str, limits: &Limits) -> SandboxError {
    let component = load(&builds()[0]);
    let ended = component.plan_backup(Arc::new(Deed(deed, Fake::new())), limits).await;
    host_lives().await;
    ended.map(|plan| format!("{plan:?}")).expect_err(deed)
}

fn why(error: &SandboxError) -> (Stop, String) {
    match error {
        SandboxError::Stopped { why, last_words, .. } => (why.clone(), last_words.clone().unwrap_or_default()),
        other => panic!("{other}"),
    }
}

fn said(error: SandboxError) -> String {
    match error {
        SandboxError::Guest { error, .. } => format!("{error:?}"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_well_behaved_one_works() {
    let component = load(&builds()[0]);
    let world = Arc::new(Deed("behave", Fake::new()));
    assert_eq!(component.describe(&limits()).await.unwrap().system, "Hostile");
    assert!(component.plan_backup(world, &limits()).await.unwrap().steps.is_empty());
}

#[tokio::test]
async fn panics_are_reported_with_their_message() {
    let error = does("panic", &limits()).await;
    let (stop, words) = why(&error);
    assert_eq!(stop, Stop::Unreachable);
    assert!(
        words.contains("the \u{fffd}[31mreason\u{fffd} nobody should miss"),
        "{words}"
    );
    assert!(error.to_string().contains("should miss"), "{error}");
    assert!(!error.to_string().chars().any(char::is_control));
    let (_, words) = why(&does("index", &limits()).await);
    assert!(words.contains("index out of bounds"), "{words}");
}

#[tokio::test]
async fn ending_itself_ends_only_itself() {
    assert_eq!(why(&does("exit", &limits()).await).0, Stop::Exit);
    assert_eq!(why(&does("abort", &limits()).await).0, Stop::Unreachable);
}

#[tokio::test]
async fn sleeping_and_spinning_end() {
    let short = Limits {
        wall_clock: Duration::from_millis(500),
        ..limits()
    };
    assert_eq!(
        why(&does("sleep", &short).await).0,
        Stop::WallClock {
            limit: short.wall_clock
        }
    );
    assert_eq!(why(&does("spin", &limits()).await).0, Stop::Cpu { limit: limits().cpu });
    assert_eq!(
        why(&does("shout", &limits()).await).0,
        Stop::Cpu { limit: limits().cpu }
    );
}

#[tokio::test]
async fn memory_and_stack_end() {
    let long = Limits {
        cpu: Duration::from_secs(60),
        ..limits()
    };
    assert_eq!(
        why(&does("allocate", &long).await).0,
        Stop::Memory { limit: long.memory }
    );
    // wasm-ld puts the guest's own stack below its data: Rust's recursion runs out of that or of the host's.
    let stop = why(&does("recurse", &long).await).0;
    assert!(matches!(stop, Stop::StackOverflow | Stop::Trap(_)), "{stop:?}");
}

#[tokio::test]
async fn the_environment_is_empty() {
    let seen = said(does("environment", &limits()).await);
    assert!(seen.contains("arguments [], variables [], "), "{seen}");
    assert!(seen.contains("stdin Some(\\\"\\\")"), "{seen}");
    assert!(said(does("thread", &limits()).await).contains("spawned: false"));
    assert!(said(does("hash", &limits()).await).contains("1000"));
}

#[tokio::test]
async fn a_limit_on_rows_is_an_answer_it_can_show() {
    let limits = Limits {
        rows: 20_000,
        cpu: Duration::from_secs(60),
        ..limits()
    };
    let said = said(does("all-rows", &limits).await);
    assert!(said.contains("20000 rows and entries in one call"), "{said}");
}

#[tokio::test]
async fn files_and_sockets_are_refused_by_name() {
    for (at, name) in [(1, "wasi:filesystem/preopens@0.2."), (2, "wasi:sockets/tcp@0.2.")] {
        match engine().load("culprit", &builds()[at], Origin::BuiltIn) {
            Err(SandboxError::Refused {
                why: Refusal::Ungranted(list),
                ..
            }) => {
                assert!(list.iter().any(|u| u.import.starts_with(name)), "{list:?}");
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{name} was linked"),
        }
    }
    host_lives().await;
}
