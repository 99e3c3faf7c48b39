//! Files that must be refused before anything of them runs, each with a reason a person can act on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_sandbox::{Engine, EngineConfig, Origin, Refusal, SandboxError, Shape, inspect_wasm};
use sha2::{Digest, Sha256};

async fn refused(wasm: &[u8]) -> Refusal {
    let why = refused_by(engine(), wasm, Origin::BuiltIn);
    host_lives().await;
    why
}

fn refused_by(engine: &Engine, wasm: &[u8], origin: Origin) -> Refusal {
    match engine.load("culprit", wasm, origin) {
        Ok(_) => panic!("it was loaded"),
        Err(e @ SandboxError::Refused { .. }) => {
            assert!(e.to_string().starts_with("component culprit: refused: "), "{e}");
            let SandboxError::Refused { why, .. } = e else {
                unreachable!()
            };
            why
        }
        Err(other) => panic!("{other}"),
    }
}

fn text(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).unwrap()
}

#[tokio::test]
async fn no_wasm() {
    for bytes in [
        &b""[..],
        b"\0asm",
        b"#!/bin/sh\n",
        b"PK\x03\x04xxxxxxxxxxxx",
        b"\0asm\x0d\0\x02\0",
    ] {
        assert_eq!(refused(bytes).await, Refusal::NotWasm, "{bytes:?}");
    }
}

#[tokio::test]
async fn core_module() {
    assert_eq!(refused(&text("(module)")).await, Refusal::CoreModule);
}

#[tokio::test]
async fn native_code_compiled_beforehand() {
    // Real native code, from the very engine version that would run it.
    let cwasm = wasmtime::Engine::default()
        .precompile_component(&guest("", &[]))
        .unwrap();
    assert_eq!(refused(&cwasm).await, Refusal::Precompiled);
    let pinned = Origin::ThirdParty {
        sha256: hex::encode(Sha256::digest(&cwasm)),
    };
    assert_eq!(refused_by(engine(), &cwasm, pinned), Refusal::Precompiled);
}

#[tokio::test]
async fn another_file_than_was_pinned() {
    let wasm = guest("", &[]);
    let sha256 = hex::encode(Sha256::digest(&wasm));
    assert!(
        engine()
            .load(
                "x",
                &wasm,
                Origin::ThirdParty {
                    sha256: sha256.to_uppercase()
                }
            )
            .is_ok()
    );
    let mut changed = wasm.clone();
    changed.extend_from_slice(b"\0\x02\x01x"); // a harmless custom section
    let why = refused_by(engine(), &changed, Origin::ThirdParty { sha256: sha256.clone() });
    assert!(
        matches!(&why, Refusal::WrongHash { expected, .. } if *expected == sha256),
        "{why:?}"
    );
    // Also when the other file is garbage: first of all it is not the one that was pinned.
    let why = refused_by(engine(), b"garbage", Origin::ThirdParty { sha256 });
    assert!(matches!(why, Refusal::WrongHash { .. }), "{why:?}");
    host_lives().await;
}

fn importing(package: &str, interface: &str) -> Vec<u8> {
    let (name, version) = package.split_once('@').unwrap();
    let packages = [
        format!("package {name}@{version}; interface {interface} {{ get: func() -> u32; }}"),
        format!("package test:x; world w {{ import {name}/{interface}@{version}; export run: func(); }}"),
    ];
    let core = format!(
        "(module (import \"{name}/{interface}@{version}\" \"get\" (func $g (result i32)))
           (func (export \"run\") (drop (call $g))))"
    );
    encode_for(&core, &packages.each_ref().map(String::as_str), "w")
}

#[tokio::test]
async fn imports_nobody_answers_are_named() {
    for (package, interface, meaning) in [
        ("wasi:filesystem@0.2.6", "preopens", "files of the host"),
        ("wasi:filesystem@0.2.0", "types", "files of the host"),
        ("wasi:sockets@0.2.0", "tcp", "connections"),
        ("wasi:http@0.2.0", "outgoing-handler", "requests"),
        ("wasi:clocks@0.2.0", "timezone", "time zone"),
        ("wasi:io@0.3.0", "streams", "does not have"),
        ("wasi:random@0.1.0", "random", "does not have"),
        ("ess:inspect@0.9.0", "log", "does not have"),
        ("ess:backup@0.1.0", "secrets", "does not have"),
        ("evil:corp@1.0.0", "shell", "nothing essrun knows"),
    ] {
        let why = refused(&importing(package, interface)).await;
        let Refusal::Ungranted(list) = &why else {
            panic!("{why:?}")
        };
        let (name, version) = package.split_once('@').unwrap();
        assert_eq!(list[0].import, format!("{name}/{interface}@{version}"));
        assert!(why.to_string().contains(meaning), "{why}");
    }
}

#[tokio::test]
async fn every_ungranted_import_is_named_not_only_the_first() {
    let wasm = text(
        r#"(component
            (import "wasi:sockets/udp@0.2.0" (instance))
            (import "wasi:http/types@0.2.0" (instance))
            (import "system" (func)))"#,
    );
    let Refusal::Ungranted(list) = refused(&wasm).await else {
        panic!()
    };
    let names: Vec<_> = list.iter().map(|u| u.import.as_str()).collect();
    assert_eq!(names, ["system", "wasi:http/types@0.2.0", "wasi:sockets/udp@0.2.0"]);
}

#[tokio::test]
async fn a_granted_name_with_another_kind_is_not_granted() {
    let wasm = text(r#"(component (import "ess:inspect/log@0.1.0" (component)))"#);
    assert!(matches!(refused(&wasm).await, Refusal::Ungranted(_)));
}

#[tokio::test]
async fn nothing_exported() {
    let why = refused(&text("(component)")).await;
    assert_eq!(
        why,
        Refusal::MissingExport {
            missing: "ess:backup/system@0.1.0".into()
        }
    );
}

#[tokio::test]
async fn exported_for_another_contract() {
    let packages = [
        "package ess:backup@0.7.0; interface system { describe: func() -> u32; }",
        "package test:x; world w { export ess:backup/system@0.7.0; }",
    ];
    let core = r#"(module (func (export "ess:backup/system@0.7.0#describe") (result i32) (i32.const 0)))"#;
    assert!(matches!(
        refused(&encode_for(core, &packages, "w")).await,
        Refusal::MissingExport { .. }
    ));
}

#[tokio::test]
async fn exports_of_the_wrong_type() {
    let all = "plan-backup: func() -> u32; plan-restore: func() -> u32; verify: func() -> u32; respond: func() -> u32;";
    for (functions, names) in [
        (format!("describe: func() -> u32; {all}"), EXPORTS.to_vec()),
        ("describe: func() -> u32;".to_owned(), vec!["describe"]),
    ] {
        let packages = [
            format!("package ess:backup@0.1.0; interface system {{ {functions} }}"),
            "package test:x; world w { export ess:backup/system@0.1.0; }".to_owned(),
        ];
        let exports: String = names
            .iter()
            .map(|n| format!("(func (export \"ess:backup/system@0.1.0#{n}\") (result i32) (i32.const 0))"))
            .collect();
        let wasm = encode_for(
            &format!("(module {exports})"),
            &packages.each_ref().map(String::as_str),
            "w",
        );
        let why = refused(&wasm).await;
        assert!(matches!(&why, Refusal::WrongType { .. }), "{why:?}");
    }
}

#[tokio::test]
async fn an_export_that_is_no_instance() {
    let wasm = text(
        r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i "f"))) (export "ess:backup/system@0.1.0" (func $f)))"#,
    );
    let why = refused(&wasm).await;
    assert!(
        matches!(why, Refusal::WrongType { .. } | Refusal::Invalid { .. }),
        "{why:?}"
    );
}

#[tokio::test]
async fn an_import_of_the_wrong_type() {
    let packages = [
        "package ess:inspect@0.1.0; interface log { write: func(a: u64) -> u64; }",
        "package ess:backup@0.1.0; interface system { describe: func() -> u32; }",
        "package test:x; world w { import ess:inspect/log@0.1.0; export ess:backup/system@0.1.0; }",
    ];
    let core = r#"(module (import "ess:inspect/log@0.1.0" "write" (func (param i64) (result i64)))
        (func (export "ess:backup/system@0.1.0#describe") (result i32) (i32.const 0)))"#;
    let why = refused(&encode_for(core, &packages, "w")).await;
    assert!(
        matches!(&why, Refusal::WrongType { problem } if problem.contains("log")),
        "{why:?}"
    );
}

#[tokio::test]
async fn the_asynchronous_abi() {
    for wat in [
        "(component (core func (canon backpressure.inc)))",
        "(component (core func (canon task.cancel)))",
        r#"(component (import "ess:inspect/x@0.1.0" (instance $i (export "f" (func))))
            (core func (canon lower (func $i "f") async)))"#,
    ] {
        let why = refused(&text(wat)).await;
        assert!(matches!(why, Refusal::AsyncAbi { .. }), "{wat}: {why:?}");
    }
}

#[tokio::test]
async fn a_huge_file() {
    let small = Engine::new(EngineConfig {
        shape: Shape {
            file: 1_000_000,
            ..Shape::default()
        },
        ..EngineConfig::default()
    })
    .unwrap();
    let mut wasm = guest("", &[]);
    // A custom section of 2 MB.
    let body = vec![0u8; 2_000_000];
    wasm.extend_from_slice(&[0, 0x80 | 0x02, 0x80 | 0x09, 0x7a, 1, b'x']);
    wasm.extend_from_slice(&body);
    assert!(matches!(
        refused_by(&small, &wasm, Origin::BuiltIn),
        Refusal::TooLarge { limit: 1_000_000, .. }
    ));
}

#[tokio::test]
async fn a_compile_bomb_of_many_functions() {
    let wasm = text(&format!("(component (core module {}))", "(func)".repeat(30_001)));
    let why = refused(&wasm).await;
    assert!(matches!(why, Refusal::TooComplex { what: "functions", .. }), "{why:?}");
}

#[tokio::test]
async fn a_compile_bomb_of_one_function() {
    let wasm = text(&format!(
        "(component (core module (func {})))",
        "(block)".repeat(400_000)
    ));
    let why = refused(&wasm).await;
    assert!(
        matches!(
            why,
            Refusal::TooComplex {
                what: "bytes in one function",
                ..
            }
        ),
        "{why:?}"
    );
}

#[tokio::test]
async fn components_that_double_at_each_level() {
    // 2^40 instances in a file of a few kilobytes.
    let mut wat = "(component (component $c0 (core module $m) (core instance (instantiate $m)))".to_owned();
    for i in 1..=40 {
        let inner = i - 1;
        wat.push_str(&format!(
            "(component $c{i} (alias outer 1 $c{inner} (component $i)) (instance (instantiate $i)) (instance (instantiate $i)))"
        ));
    }
    wat.push_str("(instance (instantiate $c40)))");
    let wasm = text(&wat);
    assert!(wasm.len() < 4_000, "{}", wasm.len());
    let why = refused(&wasm).await;
    assert!(
        matches!(
            why,
            Refusal::TooComplex {
                what: "instances in all",
                ..
            }
        ),
        "{why:?}"
    );
}

#[tokio::test]
async fn components_handed_around_to_hide_their_number() {
    let wasm = text(
        r#"(component (component $a (component $b) (export "b" (component $b)))
            (instance $i (instantiate $a)) (alias export $i "b" (component $c)) (instance (instantiate $c)))"#,
    );
    assert!(matches!(refused(&wasm).await, Refusal::Invalid { .. }));
    let wasm = text(r#"(component (component (import "c" (component $c)) (instance (instantiate $c))))"#);
    assert!(matches!(refused(&wasm).await, Refusal::Invalid { .. }));
}

#[tokio::test]
async fn nested_without_end() {
    let wasm = text(&format!("{}{}", "(component ".repeat(90), ")".repeat(90)));
    assert!(matches!(
        refused(&wasm).await,
        Refusal::TooComplex {
            what: "levels of nesting",
            ..
        }
    ));
}

#[tokio::test]
async fn a_start_function_of_the_component() {
    let wasm = text(
        r#"(component (core module $m (func (export "s"))) (core instance $i (instantiate $m))
            (func $s (canon lift (core func $i "s"))) (start $s))"#,
    );
    assert!(matches!(
        refused(&wasm).await,
        Refusal::Invalid { .. } | Refusal::MissingExport { .. }
    ));
}

#[tokio::test]
async fn features_that_are_off() {
    for extra in [
        "(memory $shared 1 1 shared)",
        "(memory $second 1)(memory $third 1)",
        "(memory $wide i64 1)",
        "(tag $t)",
        "(type (struct))",
    ] {
        let wasm = guest(&format!("(memory (export \"memory\") 2) {extra}"), &[]);
        let why = refused(&wasm).await;
        assert!(matches!(why, Refusal::Invalid { .. }), "{extra}: {why:?}");
    }
}

/// Two components of a guest that call each other: wasmtime makes an adapter with two memories between them. With several
/// memories switched off it panicked on such a file.
#[tokio::test]
async fn components_within_a_component_are_compiled() {
    let inner = r#"
      (core module $m
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8))
        (func (export "say") (param i32 i32)))
      (core instance $i (instantiate $m))"#;
    let wasm = text(&format!(
        r#"(component
          (component $callee {inner}
            (func (export "say") (param "text" string)
              (canon lift (core func $i "say") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))
          (component $caller (import "say" (func $say (param "text" string)))
            {inner}
            (core func $lowered (canon lower (func $say) (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
            (core module $n (import "" "say" (func (param i32 i32))))
            (core instance (instantiate $n (with "" (instance (export "say" (func $lowered)))))))
          (instance $a (instantiate $callee))
          (instance (instantiate $caller (with "say" (func $a "say")))))"#
    ));
    // It is no essrun component, which is seen first; with the contract's export it gets to the compiler.
    assert!(matches!(refused(&wasm).await, Refusal::MissingExport { .. }));
    assert_eq!(inspect_wasm(&wasm).unwrap().contract, None);
    let mut exporting = wasm;
    let export = text(r#"(component (instance $i) (export "ess:backup/system@0.1.0" (instance $i)))"#);
    exporting.extend_from_slice(&export[8..]);
    let why = refused(&exporting).await;
    let told = why.to_string();
    assert!(
        !told.contains("gave up") && !told.contains("several memories"),
        "{told}"
    );
}

#[tokio::test]
async fn damaged_in_any_way_it_is_refused_or_harmless() {
    // Never a panic, whatever is cut or flipped; what still loads is still in the sandbox.
    let good = guest("", &[]);
    for cut in (0..good.len()).step_by(7) {
        let _ = engine().load("culprit", &good[..cut], Origin::BuiltIn).map(drop);
        assert!(inspect_wasm(&good[..cut]).is_err() || cut > 8);
    }
    let mut loaded = 0;
    for at in (8..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        if let Ok(component) = engine().load("culprit", &bad, Origin::BuiltIn) {
            loaded += 1;
            let _ = call(&component, "describe", &Fake::new(), &limits()).await.map(drop);
        }
    }
    assert!(loaded < good.len() / 5, "a flipped bit is noticed at least sometimes");
    host_lives().await;
}

#[test]
fn inspecting_says_what_a_plugin_asks_for() {
    let wasm = guest("", &[]);
    let info = inspect_wasm(&wasm).unwrap();
    assert_eq!(info.sha256, hex::encode(Sha256::digest(&wasm)));
    assert_eq!(info.contract.as_deref(), Some("0.1.0"));
    assert_eq!(info.exports, ["ess:backup/system@0.1.0"]);
    assert!(
        info.imports.contains(&"ess:inspect/database@0.1.0".to_owned()),
        "{:?}",
        info.imports
    );
    assert!(info.ungranted.is_empty());
    let info = inspect_wasm(&importing("wasi:sockets@0.2.0", "tcp")).unwrap();
    assert_eq!(info.contract, None);
    assert_eq!(info.ungranted[0].import, "wasi:sockets/tcp@0.2.0");
}
