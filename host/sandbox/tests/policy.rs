//! Policies: the example scripts with their own tests, and every way of giving no answer, which must deny.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_sandbox::policy::{Policy, Question, Script};
use essrun_sandbox::{Engine, EngineConfig, Limits, Origin, Refusal, SandboxError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The interpreter, built once for wasm32-wasip2.
fn rego() -> &'static [u8] {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    BUILT.get_or_init(|| build_guest("essrun-policy-rego", ""))
}

/// One machine for all tests of this file; compiled code is kept, since the interpreter is large.
fn machine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let cache_dir = Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("policy-cache"));
        Engine::new(EngineConfig {
            cache_dir,
            ..EngineConfig::default()
        })
        .unwrap()
    })
}

async fn try_policy(scripts: &[(&str, &str)], limits: &Limits) -> Result<Policy, SandboxError> {
    let scripts = scripts
        .iter()
        .map(|(n, t)| Script {
            name: (*n).into(),
            text: (*t).into(),
        })
        .collect();
    machine()
        .load_policy("rules", rego(), Origin::BuiltIn, scripts, limits)
        .await
}

async fn policy(text: &str) -> Policy {
    try_policy(&[("rules.rego", text)], &Limits::default()).await.unwrap()
}

fn ids(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[tokio::test]
async fn the_examples_pass_their_own_tests() {
    let dir = root().join("examples/policies");
    let mut seen = 0;
    for name in ["recipients", "suspect", "gfs", "freeze", "approval", "extract"] {
        let read = |file: String| {
            let text = std::fs::read_to_string(dir.join(&file)).unwrap();
            (file, text)
        };
        let files = [read(format!("{name}.rego")), read(format!("{name}_test.rego"))];
        let files: Vec<_> = files.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        let policy = try_policy(&files, &Limits::default())
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(policy.questions().await.unwrap().len(), 1);
        let tests = policy.run_tests().await.unwrap_or_else(|e| panic!("{name}: {e}"));
        for test in &tests {
            assert!(test.passed, "{name}: {} {}", test.name, test.detail);
        }
        // As many as the file says: none is lost for being undefined.
        let written = files[1].1.lines().filter(|l| l.starts_with("test_")).count();
        assert_eq!(tests.len(), written, "{name}");
        seen += tests.len();
    }
    assert_eq!(seen, 38);
    let scripts = |e: &std::fs::DirEntry| e.path().extension().is_some_and(|x| x == "rego");
    let files = std::fs::read_dir(&dir)
        .unwrap()
        .map(Result::unwrap)
        .filter(scripts)
        .count();
    assert_eq!(files, 12, "every example is run here");
}

#[tokio::test]
async fn tests_that_fail_are_said_to_fail() {
    let policy = policy(
        "package x_test\nimport rego.v1\ntest_true if 1 == 1\ntest_false := false\ntest_undefined if 1 == 2\ntest_error if to_number(\"x\") == 1\n",
    )
    .await;
    let tests = policy.run_tests().await.unwrap();
    let passed: Vec<_> = tests.iter().map(|t| (t.name.as_str(), t.passed)).collect();
    assert_eq!(
        passed,
        [
            ("x_test.test_true", true),
            ("x_test.test_false", false),
            ("x_test.test_undefined", false),
            ("x_test.test_error", false)
        ]
    );
}

#[tokio::test]
async fn yes_and_no_come_with_reasons() {
    let policy = policy(
        "package essrun.may_run\nimport rego.v1\ndefault allow := false\nallow if input.hour < 6\nreasons contains \"only \\u001b[1mat night\" if not allow\n",
    )
    .await;
    assert_eq!(policy.questions().await.unwrap(), [Question::MayRun]);
    let yes = policy.may_run(r#"{"hour": 3}"#).await;
    assert!(
        yes.allowed && yes.reasons.is_empty() && yes.failure.is_none(),
        "{yes:?}"
    );
    let no = policy.may_run(r#"{"hour": 9}"#).await;
    assert!(!no.allowed && no.failure.is_none(), "{no:?}");
    assert_eq!(no.reasons, ["only \u{fffd}[1mat night"]);
}

#[tokio::test]
async fn reasons_of_several_files_add_up_and_booleans_must_agree() {
    let one = "package essrun.may_run\nimport rego.v1\ndeny contains \"a\" if input.a\n";
    let two = "package essrun.may_run\nimport rego.v1\ndeny contains \"b\" if input.b\n";
    let both = try_policy(&[("one.rego", one), ("two.rego", two)], &Limits::default())
        .await
        .unwrap();
    for (input, reasons) in [
        ("{}", vec![]),
        (r#"{"a": true}"#, vec!["a"]),
        (r#"{"a": true, "b": true}"#, vec!["a", "b"]),
    ] {
        let said = both.may_run(input).await;
        assert_eq!((said.allowed, said.failure), (reasons.is_empty(), None), "{input}");
        assert_eq!(said.reasons, reasons, "{input}");
    }
    for (body, allowed) in [
        ("allow := true\ndeny := []", true),
        ("allow := true\ndeny := [\"x\"]", false),
        ("allow := false\ndeny := []", false),
        ("deny := {}", false),
        ("deny := true", false),
    ] {
        let said = policy(&format!("package essrun.may_run\n{body}\n"))
            .await
            .may_run("{}")
            .await;
        assert_eq!(said.allowed, allowed, "{body}: {said:?}");
    }
    for (body, suspect, reasons, failed) in [
        ("suspect := []", false, 0, false),
        ("suspect := {\"x\", \"y\"}", true, 2, false),
        ("suspect := true\nreasons := [\"x\"]", true, 1, false),
        ("suspect := {\"x\": 1}", true, 0, true),
        ("suspect := [1]", true, 0, true),
        ("suspect := null", true, 0, true),
    ] {
        let said = policy(&format!("package essrun.judge_result\n{body}\n"))
            .await
            .judge_result("{}")
            .await;
        assert_eq!(
            (said.suspect, said.reasons.len(), said.failure.is_some()),
            (suspect, reasons, failed),
            "{body}: {said:?}"
        );
    }
}

#[tokio::test]
async fn data_is_looked_up_and_cannot_stand_for_an_answer() {
    let script =
        "package essrun.may_run\nimport rego.v1\ndeny contains \"not a friend\" if not input.who in data.friends\n";
    let load = |data: &'static [(&'static str, &'static str)]| async move {
        let files = [&[("rules.rego", script)], data].concat();
        try_policy(&files, &Limits::default()).await
    };
    let friends = load(&[
        ("a.json", r#"{"friends": ["ada"]}"#),
        ("b.json", r#"{"more": {"x": 1}}"#),
    ])
    .await
    .unwrap();
    assert!(friends.may_run(r#"{"who": "ada"}"#).await.allowed);
    assert!(!friends.may_run(r#"{"who": "bob"}"#).await.allowed);
    for (data, says) in [
        (
            &[("a.json", r#"{"essrun": {"may_run": {"deny": []}}}"#)] as &[_],
            "a.json: it has a key `essrun`",
        ),
        (&[("a.json", "[1]")], "a.json: it is no JSON object"),
        (&[("a.json", "{")], "a.json: "),
        (
            &[
                ("a.json", r#"{"friends": ["ada"]}"#),
                ("b.json", r#"{"friends": ["bob"]}"#),
            ],
            "b.json: ",
        ),
    ] {
        let error = load(data).await.map(drop).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_misspelt_question_is_refused_and_helpers_are_not() {
    for bad in ["essrun", "essrun.may_rnu", "essrun.may_run.more", "essrun.libx"] {
        let error = try_policy(&[("x.rego", &format!("package {bad}\nx := 1\n"))], &Limits::default())
            .await
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("package {bad} is none that is asked")),
            "{error}"
        );
    }
    for good in [
        "essrun.lib",
        "essrun.lib.time",
        "essrun.anything_test",
        "essrunner",
        "site.rules",
    ] {
        let policy = policy(&format!("package {good}\nx := 1\n")).await;
        assert_eq!(policy.questions().await.unwrap(), [], "{good}");
    }
    // The place of a mistake comes first, as compilers write it.
    let error = try_policy(&[("dir/x.rego", "package a\n\nx := {{\n")], &Limits::default())
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("dir/x.rego:3:") || error.contains("dir/x.rego:4:"),
        "{error}"
    );
}

#[tokio::test]
async fn no_answer_is_no() {
    let kept = ids(&["b1", "b2"]);
    // Nothing defined; a run-time error; wrong shapes; an input that is no JSON; a question nobody answers.
    for body in [
        "x := 1",
        "allow := to_number(\"x\")",
        "allow := 1",
        "allow := \"true\"",
        "allow := true\nreasons := 7",
    ] {
        let text = ["may_run", "may_restore"].map(|q| format!("package essrun.{q}\nimport rego.v1\n{body}\n"));
        let policy = try_policy(&[("a", &text[0]), ("b", &text[1])], &Limits::default())
            .await
            .unwrap();
        for decision in [policy.may_run("{}").await, policy.may_restore("{}").await] {
            assert!(!decision.allowed && decision.failure.is_some(), "{body}: {decision:?}");
        }
        let judged = policy.judge_result("{}").await;
        assert!(judged.suspect && judged.failure.unwrap().contains("essrun.judge_result"));
        let retention = policy.retention(&kept, "{}").await;
        assert!(retention.failure.is_some());
        assert_eq!(retention.keep.into_keys().collect::<BTreeSet<_>>(), kept);
    }
    let good = policy("package essrun.may_run\nallow := true\n").await;
    assert!(good.may_run("{}").await.allowed);
    assert!(!good.may_run("{").await.allowed, "an input that is no JSON");
}

#[tokio::test]
async fn retention_keeps_what_it_says_and_all_if_it_talks_nonsense() {
    let three = ids(&["b1", "b2", "b3"]);
    let some = policy("package essrun.retention\nkeep := {\"b2\": [\"because\"]}\n").await;
    let answer = some.retention(&three, "{}").await;
    assert_eq!(answer.failure, None);
    assert_eq!(
        answer.keep.into_iter().collect::<Vec<_>>(),
        [("b2".to_owned(), vec!["because".to_owned()])]
    );
    for nonsense in [
        "keep := {\"b2\": [\"x\"], \"b9\": [\"x\"]}",
        "keep := [\"b2\"]",
        "keep := {\"b2\": \"x\"}",
        "x := 1",
    ] {
        let policy = policy(&format!("package essrun.retention\n{nonsense}\n")).await;
        let answer = policy.retention(&three, "{}").await;
        assert!(answer.failure.is_some(), "{nonsense}");
        assert_eq!(answer.keep.len(), 3, "{nonsense}");
    }
}

#[tokio::test]
async fn scripts_that_are_wrong_or_greedy_deny() {
    let wrong = try_policy(
        &[("broken.rego", "package essrun.may_run\nallow := {{{\n")],
        &Limits::default(),
    )
    .await;
    let error = wrong.map(drop).unwrap_err().to_string();
    assert!(error.contains("broken.rego"), "{error}");

    // 10^9 combinations.
    let slow = "package essrun.may_run\nimport rego.v1\nn := numbers.range(1, 1000)\nallow if {\nsome a in n\nsome b in n\nsome c in n\na + b + c == 0\n}\n";
    let short = Limits {
        cpu: Duration::from_secs(1),
        ..Limits::default()
    };
    let policy = try_policy(&[("slow.rego", slow)], &short).await.unwrap();
    let decision = policy.may_run("{}").await;
    assert!(!decision.allowed && decision.failure.unwrap().contains("computed for more than 1s"));

    let greedy = "package essrun.may_run\nimport rego.v1\nx := [n | some n in numbers.range(1, 100000000)]\nallow if count(x) > 0\n";
    let policy = try_policy(&[("greedy.rego", greedy)], &Limits::default())
        .await
        .unwrap();
    let decision = policy.may_run("{}").await;
    assert!(!decision.allowed && decision.failure.is_some());
    host_lives().await;
}

#[tokio::test]
async fn an_interpreter_of_another_language_runs_the_same_way_and_a_hostile_one_denies() {
    // A policy in wasm itself: the answer is a text in its memory, whatever is asked.
    let wit = std::fs::read_to_string(root().join("wit/policy/policy.wit")).unwrap();
    let core = |body: &str| {
        format!(
            r#"(module (memory (export "memory") 40)
              (data (i32.const 4096) "{{\"allow\": true, \"keep\": {{}}, \"suspect\": false}}")
              (global $top (mut i32) (i32.const 65536))
              (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
                (global.set $top (i32.add (local.get $at) (local.get 3))) (local.get $at))
              (func (export "ess:policy/evaluator@0.1.0#check") (param i32 i32) (result i32) (i32.const 1024))
              (func (export "ess:policy/evaluator@0.1.0#run-tests") (param i32 i32) (result i32) (i32.const 1024))
              (func (export "ess:policy/evaluator@0.1.0#evaluate") (param i32 i32 i32 i32 i32) (result i32) {body}))"#
        )
    };
    let text =
        "(i32.store (i32.const 2052) (i32.const 4096)) (i32.store (i32.const 2056) (i32.const 45)) (i32.const 2048)";
    for (body, allowed) in [
        (text, true),
        ("(loop $l (br $l)) (unreachable)", false),
        ("(unreachable)", false),
        ("(i32.const 1024)", false),
    ] {
        let wasm = encode_for(&core(body), &[&wit], "policy");
        let short = Limits {
            cpu: Duration::from_millis(300),
            ..Limits::default()
        };
        let policy = machine()
            .load_policy("own", &wasm, Origin::BuiltIn, vec![], &short)
            .await
            .unwrap();
        let decision = policy.may_run("{}").await;
        assert_eq!(decision.allowed, allowed, "{decision:?}");
        let kept = policy.retention(&ids(&["b1"]), "{}").await.keep.len();
        assert_eq!(
            kept,
            usize::from(!allowed),
            "an honest empty list keeps nothing, a failure keeps all"
        );
    }
    // A component is no interpreter, and an interpreter may import nothing of essrun.
    let component = guest("", &[]);
    match machine()
        .load_policy("x", &component, Origin::BuiltIn, vec![], &limits())
        .await
        .map(drop)
    {
        Err(SandboxError::Refused {
            why: Refusal::Ungranted(list),
            ..
        }) => {
            assert!(
                list.iter().any(|u| u.import == "ess:inspect/database@0.1.0"),
                "{list:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(engine().load("x", rego(), Origin::BuiltIn).is_err());
}
