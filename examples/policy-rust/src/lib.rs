//! A policy written in Rust: no script, the component itself decides.
//!
//! * No run within `settings.minutes-apart` minutes of the newest backup, so that a timer gone wild fills no disk.
//! * A result is suspect when a component has less than half the bytes it had in the newest normal backup.
//!
//! Build it with `cargo build --release --target wasm32-wasip2`, and name it in pipeline.toml:
//!
//! ```toml
//! [policy]
//! use = { path = "policy_rust.wasm", sha256 = "…" }     # sha256sum policy_rust.wasm
//! settings.minutes-apart = 30
//! ```

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The generated bindings.
#[allow(unsafe_code, clippy::all, missing_docs)]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/policy",
        world: "ess:policy/policy",
    });
}

use bindings::exports::ess::policy::evaluator::{Error, Guest, Question, Script, Test};

struct Policy;

#[derive(Deserialize)]
struct Run {
    now: Now,
    settings: BTreeMap<String, Value>,
    backups: Vec<Backup>,
}

#[derive(Deserialize)]
struct Now {
    unix_seconds: i64,
}

#[derive(Deserialize)]
struct Result_ {
    result: Backup,
    previous: Vec<Backup>,
}

#[derive(Deserialize)]
struct Backup {
    id: String,
    taken_at_unix_seconds: i64,
    state: String,
    components: BTreeMap<String, Held>,
}

#[derive(Deserialize)]
struct Held {
    #[serde(default)]
    artifacts: BTreeMap<String, Artifact>,
}

#[derive(Deserialize)]
struct Artifact {
    bytes: u64,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.artifacts.values().map(|a| a.bytes).sum()
    }
}

fn read<T: for<'de> Deserialize<'de>>(input: &str) -> Result<T, Error> {
    serde_json::from_str(input).map_err(|e| Error::Failed(e.to_string()))
}

/// May this run start?
fn may_run(input: &str) -> Result<Value, Error> {
    let run: Run = read(input)?;
    let apart = match run.settings.get("minutes-apart") {
        None => 30,
        Some(minutes) => minutes
            .as_i64()
            .ok_or_else(|| Error::Failed(format!("minutes-apart is {minutes}, not a number of minutes")))?,
    };
    let mut deny = Vec::new();
    if let Some(newest) = run.backups.first() {
        let age = (run.now.unix_seconds - newest.taken_at_unix_seconds) / 60;
        if (0..apart).contains(&age) {
            deny.push(format!(
                "{} was taken {age} minutes ago, {apart} must lie between two",
                newest.id
            ));
        }
    }
    Ok(json!({ "deny": deny }))
}

/// Is this result normal?
fn judge_result(input: &str) -> Result<Value, Error> {
    let Result_ { result, previous } = read(input)?;
    let mut suspect = Vec::new();
    for (name, now) in &result.components {
        let before = previous.iter().filter(|b| b.state == "normal");
        let Some((id, before)) = before
            .filter_map(|b| Some((&b.id, b.components.get(name)?.bytes())))
            .next()
        else {
            continue;
        };
        if now.bytes() < before / 2 {
            suspect.push(format!("{name} has {} bytes, and had {before} in {id}", now.bytes()));
        }
    }
    Ok(json!({ "suspect": suspect }))
}

impl Guest for Policy {
    fn check(_: Vec<Script>) -> Result<Vec<Question>, Error> {
        Ok(vec![Question::MayRun, Question::JudgeResult])
    }

    fn evaluate(_: Vec<Script>, question: Question, input_json: String) -> Result<String, Error> {
        match question {
            Question::MayRun => may_run(&input_json),
            Question::JudgeResult => judge_result(&input_json),
            other => Err(Error::NoAnswer(format!("{other:?} is not decided here"))),
        }
        .map(|answer| answer.to_string())
    }

    fn run_tests(_: Vec<Script>) -> Result<Vec<Test>, Error> {
        // They are Rust's own, below, and pairs of .input.json and .expected.json beside the .wasm.
        Ok(Vec::new())
    }
}

// Only as a component: the exports' names are no names a native linker takes.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod exported {
    use super::{Policy, bindings};
    bindings::export!(Policy with_types_in bindings);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(now: i64, settings: Value) -> Value {
        let backup = json!({"id": "b1", "taken_at_unix_seconds": 0, "state": "normal", "components": {}});
        let input = json!({"now": {"unix_seconds": now}, "settings": settings, "backups": [backup]});
        may_run(&input.to_string())
            .map(|a| a["deny"].clone())
            .unwrap_or_else(|e| json!(format!("{e:?}")))
    }

    #[test]
    fn two_runs_lie_apart() {
        assert_eq!(
            run(29 * 60, json!({})),
            json!(["b1 was taken 29 minutes ago, 30 must lie between two"])
        );
        assert_eq!(run(30 * 60, json!({})), json!([]));
        assert_eq!(run(5 * 60, json!({"minutes-apart": 5})), json!([]));
        assert!(
            run(5 * 60, json!({"minutes-apart": "5"}))
                .as_str()
                .is_some_and(|e| e.contains("not a number of minutes"))
        );
    }

    #[test]
    fn half_of_a_component_is_missed() {
        let backup = |id: &str, state: &str, bytes: u64| {
            json!({"id": id, "state": state, "taken_at_unix_seconds": 0,
                   "components": {"wiki": {"artifacts": {"main/a": {"bytes": bytes}, "main/b": {"bytes": 1}}}}})
        };
        let judged = |bytes| {
            let previous = [backup("odd", "suspect", 1), backup("good", "normal", 199)];
            let input = json!({"result": backup("new", "normal", bytes), "previous": previous});
            judge_result(&input.to_string()).map(|a| a["suspect"].clone()).ok()
        };
        assert_eq!(judged(99), Some(json!([])));
        assert_eq!(judged(98), Some(json!(["wiki has 99 bytes, and had 200 in good"])));
    }
}
