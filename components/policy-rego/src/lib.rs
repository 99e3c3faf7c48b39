//! The interpreter of Rego policies: regorus in a component, without any import of essrun.
//!
//! Each question has a package of its own, and its whole document is the answer:
//!
//! ```rego
//! package essrun.may_run
//! deny contains "there is no recipient" if count(input.recipients) == 0
//! ```
//!
//! A script whose name ends with `.json` is data. Below `essrun` only the packages of the questions, of their tests and
//! of helpers (`essrun.lib…`) may be declared: a misspelt question would otherwise be one that is never asked. A rule `test_…` that is true is a passed test; tests are looked for in packages whose name ends with `_test`.
//! Built-in functions are strict: one that fails (a number that does not parse) fails the evaluation instead of
//! becoming undefined, because an undefined deny rule allows. Every call starts with a new engine.

use regorus::{Engine, Value};

/// The generated bindings.
#[allow(unsafe_code, clippy::all, clippy::pedantic, clippy::restriction, missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/policy",
        world: "ess:policy/policy",
        pub_export_macro: true,
    });
}

use bindings::exports::ess::policy::evaluator::{Error, Guest, Question, Script, Test};

/// The interpreter, as the world wants it exported.
pub struct Rego;

const QUESTIONS: [Question; 4] = [
    Question::MayRun,
    Question::JudgeResult,
    Question::Retention,
    Question::MayRestore,
];

fn package(question: Question) -> &'static str {
    match question {
        Question::MayRun => "data.essrun.may_run",
        Question::JudgeResult => "data.essrun.judge_result",
        Question::Retention => "data.essrun.retention",
        Question::MayRestore => "data.essrun.may_restore",
    }
}

/// An engine that has read the scripts, and the packages they make.
fn read(scripts: &[Script]) -> Result<(Engine, Vec<String>), Error> {
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(true);
    engine.set_gather_prints(true);
    let mut packages = Vec::new();
    for script in scripts {
        let wrong = |why: String| Error::InvalidScript(why);
        if script.name.ends_with(".json") {
            add_data(&mut engine, script).map_err(|e| wrong(format!("{}: {e}", script.name)))?;
            continue;
        }
        let package = engine
            .add_policy(script.name.clone(), script.text.clone())
            .map_err(|e| wrong(placed(&script.name, &e.to_string())))?;
        if !known(&package) {
            let names: Vec<_> = QUESTIONS.iter().map(|q| package_of(*q)).collect();
            return Err(wrong(format!(
                "{}: package {} is none that is asked; there are {}, and essrun.lib for helpers",
                script.name,
                package.trim_start_matches("data."),
                names.join(", ")
            )));
        }
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    Ok((engine, packages))
}

fn package_of(question: Question) -> &'static str {
    package(question).trim_start_matches("data.")
}

/// What stands below `essrun` must be one of ours.
fn known(package: &str) -> bool {
    let Some(rest) = package
        .strip_prefix("data.essrun")
        .filter(|r| r.is_empty() || r.starts_with('.'))
    else {
        return true;
    };
    QUESTIONS.iter().any(|q| self::package(*q) == package)
        || rest.ends_with("_test")
        || rest == ".lib"
        || rest.starts_with(".lib.")
}

/// A document the scripts look things up in, merged into `data` as `opa` does; two that contradict are an error.
fn add_data(engine: &mut Engine, script: &Script) -> Result<(), String> {
    let data = Value::from_json_str(&script.text).map_err(|e| e.to_string())?;
    let object = data.as_object().map_err(|_| "it is no JSON object".to_owned())?;
    if object.contains_key(&Value::from("essrun")) {
        return Err("it has a key `essrun`, which would stand for a policy's answer".to_owned());
    }
    engine.add_data(data).map_err(|e| e.to_string())
}

/// A message of the parser with its place first: `FILE:LINE:COLUMN: message`.
fn placed(name: &str, message: &str) -> String {
    let arrow = format!("--> {name}:");
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let place = lines.iter().find_map(|l| l.strip_prefix(arrow.as_str()));
    let said = lines.iter().find_map(|l| l.strip_prefix("error:"));
    match (place, said) {
        (Some(place), Some(said)) => format!("{name}:{place}: {}", said.trim()),
        _ => format!("{name}: {}", lines.join(" ")),
    }
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::Failed(e.to_string())
}

impl Guest for Rego {
    fn check(scripts: Vec<Script>) -> Result<Vec<Question>, Error> {
        let (_, packages) = read(&scripts)?;
        Ok(QUESTIONS
            .into_iter()
            .filter(|q| packages.iter().any(|p| p == package(*q)))
            .collect())
    }

    fn evaluate(scripts: Vec<Script>, question: Question, input_json: String) -> Result<String, Error> {
        let (mut engine, packages) = read(&scripts)?;
        let package = package(question);
        if !packages.iter().any(|p| p == package) {
            let name = package.trim_start_matches("data.");
            return Err(Error::NoAnswer(format!("no script has `package {name}`")));
        }
        engine.set_input(Value::from_json_str(&input_json).map_err(failed)?);
        let answer = engine.eval_query(package.to_owned(), false).map_err(failed)?;
        let value = answer
            .result
            .first()
            .and_then(|r| r.expressions.first())
            .map(|e| &e.value);
        match value {
            Some(value @ Value::Object(_)) => value.to_json_str().map_err(failed),
            _ => Err(Error::NoAnswer(format!("{package} is undefined"))),
        }
    }

    fn run_tests(scripts: Vec<Script>) -> Result<Vec<Test>, Error> {
        let (mut engine, packages) = read(&scripts)?;
        let mut tests = Vec::new();
        for package in packages.iter().filter(|p| p.ends_with("_test")) {
            for rule in test_rules(&scripts, package) {
                let name = format!("{package}.{rule}");
                let ended = engine.eval_query(name.clone(), false);
                let printed = engine.take_prints().map_err(failed)?.join("\n");
                let (passed, detail) = match ended {
                    Ok(answer) => {
                        let value = answer
                            .result
                            .first()
                            .and_then(|r| r.expressions.first())
                            .map(|e| &e.value);
                        (value == Some(&Value::Bool(true)), printed)
                    }
                    Err(e) => (false, format!("{e}\n{printed}").trim_end().to_owned()),
                };
                tests.push(Test {
                    name: name.trim_start_matches("data.").to_owned(),
                    passed,
                    detail,
                });
            }
        }
        Ok(tests)
    }
}

/// Names of the rules `test_…` in a package, in order of the text. Read from the source, because a test that is
/// undefined is missing from the package's document, and must count as failed.
fn test_rules(scripts: &[Script], package: &str) -> Vec<String> {
    let declared = package.trim_start_matches("data.");
    let mut names = Vec::new();
    for script in scripts {
        let of_package = script
            .text
            .lines()
            .find_map(|l| l.trim().strip_prefix("package "))
            .is_some_and(|p| p.split('#').next().unwrap_or_default().trim() == declared);
        for line in script.text.lines().filter(|l| of_package && l.starts_with("test_")) {
            let name: String = line
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

// Only as a component: the exports' names are no names a native linker takes.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod exported {
    use super::{Rego, bindings};
    bindings::export!(Rego with_types_in bindings);
}
