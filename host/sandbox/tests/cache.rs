//! Kept native code: used when it is ours and whole, compiled anew when it is anything else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_sandbox::{Engine, EngineConfig, Limits, Origin};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

fn open(dir: &Path) -> Engine {
    Engine::new(EngineConfig {
        cache_dir: Some(dir.to_owned()),
        ..EngineConfig::default()
    })
    .unwrap()
}

fn kept(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "native"))
        .collect();
    files.sort();
    files
}

async fn works(dir: &Path, wasm: &[u8]) {
    let component = open(dir).load("x", wasm, Origin::BuiltIn).unwrap();
    for export in EXPORTS {
        call(&component, export, &Fake::new(), &Limits::default())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn kept_code_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = guest("", &[]);
    works(dir.path(), &wasm).await;
    let files = kept(dir.path());
    assert_eq!(files.len(), 1);
    for file in fs::read_dir(dir.path()).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let before = fs::metadata(&files[0]).unwrap().modified().unwrap();
    works(dir.path(), &wasm).await;
    assert_eq!(kept(dir.path()), files);
    assert_eq!(
        fs::metadata(&files[0]).unwrap().modified().unwrap(),
        before,
        "it was not written again"
    );
}

#[tokio::test]
async fn damaged_or_foreign_code_is_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let (wasm, other) = (guest("", &[]), guest("", &[("verify", "(unreachable)")]));
    works(dir.path(), &wasm).await;
    let file = kept(dir.path()).remove(0);
    let good = fs::read(&file).unwrap();
    open(dir.path()).load("other", &other, Origin::BuiltIn).unwrap();
    let others = fs::read(kept(dir.path()).into_iter().find(|f| *f != file).unwrap()).unwrap();

    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    // Native code of the same engine, as `wasmtime compile` would write it, without our mark.
    let foreign = good[32..].to_vec();
    for bad in [
        flipped,
        good[..good.len() - 1].to_vec(),
        good[..10].to_vec(),
        vec![],
        foreign,
        others,
    ] {
        fs::write(&file, &bad).unwrap();
        works(dir.path(), &wasm).await;
        // It was noticed: the good one was put in its place.
        let now = fs::read(&file).unwrap();
        assert_ne!(now, bad);
        assert_eq!(now.len(), good.len());
    }
}

#[tokio::test]
async fn files_others_could_have_touched_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = guest("", &[]);
    works(dir.path(), &wasm).await;
    let file = kept(dir.path()).remove(0);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    works(dir.path(), &wasm).await;
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600,
        "replaced"
    );

    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    works(dir.path(), &wasm).await;
    assert!(!fs::symlink_metadata(&file).unwrap().is_symlink(), "replaced");

    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_file(&file).unwrap();
    works(dir.path(), &wasm).await;
    assert!(kept(dir.path()).is_empty(), "a directory anybody can write is not used");
}
