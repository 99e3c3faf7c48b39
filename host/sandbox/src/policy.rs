//! Policies: scripts of the operator, run by an interpreter that is itself a guest.
//!
//! An interpreter gets the same treatment as a component and less: it imports nothing of essrun, so it cannot look at
//! anything; all it knows is in the input. The rule of this module is *fail closed*: [`Policy`]'s answers are decisions,
//! never errors. A script that does not parse, a question nobody answers, a trap, a timeout, an answer of the wrong
//! shape: each is a "no" that carries its reason, and for retention a "keep everything".

use crate::engine::{Engine, cause};
use crate::error::{Refusal, SandboxError};
use crate::examine::POLICY;
use crate::exports::Exports;
use crate::host::State;
use crate::log::{line, paragraph};
use crate::{Limits, NoWorld, component};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The generated bindings.
#[allow(clippy::all, clippy::pedantic, clippy::restriction)]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/policy",
        world: "ess:policy/policy",
        exports: { default: async },
    });
}

use bindings::exports::ess::policy::evaluator::Error;
/// One file of a policy, a question, a test's outcome.
pub use bindings::exports::ess::policy::evaluator::{Question, Script, Test};

/// Reasons kept of one answer; a policy that gives more is cut.
const REASONS: usize = 1_000;

/// A policy: scripts and the interpreter they are for.
#[derive(Clone)]
pub struct Policy {
    name: Arc<str>,
    pre: bindings::PolicyPre<State>,
    engine: Engine,
    scripts: Arc<Vec<Script>>,
    limits: Limits,
}

/// Yes or no, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub allowed: bool,
    /// What the policy says about it, fit for a terminal.
    pub reasons: Vec<String>,
    /// Set when there was no answer, so that it was denied.
    pub failure: Option<String>,
}

/// Whether a result is normal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    pub suspect: bool,
    pub reasons: Vec<String>,
    /// Set when there was no answer, so that it counts as suspect.
    pub failure: Option<String>,
}

/// Which backups are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retention {
    /// Each kept backup's id, and why it is kept.
    pub keep: BTreeMap<String, Vec<String>>,
    /// Set when there was no answer, so that all are kept.
    pub failure: Option<String>,
}

/// A question as the documentation names it.
fn asked(question: Question) -> &'static str {
    match question {
        Question::MayRun => "may-run",
        Question::JudgeResult => "judge-result",
        Question::Retention => "retention",
        Question::MayRestore => "may-restore",
    }
}

/// Two ways to say it: a boolean with reasons, or a set of reasons against it, which is how rules of several files are
/// put together. Where both are given, both must agree.
#[derive(Deserialize)]
pub(crate) struct Allowed {
    allow: Option<bool>,
    deny: Option<Vec<String>>,
    #[serde(default)]
    reasons: Vec<String>,
}

#[derive(Deserialize)]
pub(crate) struct Judged {
    suspect: Suspicion,
    #[serde(default)]
    reasons: Vec<String>,
}

/// A boolean, or the reasons, of which none means that nothing is odd.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Suspicion {
    Said(bool),
    Listed(Vec<String>),
}

#[derive(Deserialize)]
pub(crate) struct Kept {
    keep: BTreeMap<String, Vec<String>>,
}

impl Engine {
    /// Loads an interpreter and checks its scripts. An error here means that no question will be answered: do not go on.
    pub async fn load_policy(
        &self,
        name: &str,
        interpreter: &[u8],
        origin: crate::Origin,
        scripts: Vec<Script>,
        limits: &Limits,
    ) -> Result<Policy, SandboxError> {
        let pre = self
            .prepare_policy(interpreter, origin, &limits.compile)
            .map_err(|why| SandboxError::Refused {
                component: line(name, 100),
                why,
            })?;
        let policy = Policy {
            name: name.into(),
            pre,
            engine: self.clone(),
            scripts: Arc::new(scripts),
            limits: limits.clone(),
        };
        policy.questions().await?;
        Ok(policy)
    }

    fn prepare_policy(
        &self,
        wasm: &[u8],
        origin: crate::Origin,
        shape: &crate::Shape,
    ) -> Result<bindings::PolicyPre<State>, Refusal> {
        let (_, pre) = self.prepare(wasm, &origin, POLICY, shape)?;
        let exports = Exports::find(self.wasmtime(), pre.component(), POLICY.export)?;
        exports.function::<(Vec<Script>,), (Result<Vec<Question>, Error>,)>("check")?;
        exports.function::<(Vec<Script>, Question, String), (Result<String, Error>,)>("evaluate")?;
        exports.function::<(Vec<Script>,), (Result<Vec<Test>, Error>,)>("run-tests")?;
        bindings::PolicyPre::new(pre).map_err(|e| Refusal::WrongType { problem: cause(&e) })
    }
}

/// One call into the interpreter.
macro_rules! ask {
    ($self:ident, $what:literal, $function:ident $(, $argument:expr)*) => {{
        let _ticking = $self.engine.ticking();
        let state = State::new(Arc::new(NoWorld), &$self.limits);
        let mut store = component::new_store(&$self.engine, state, &$self.limits);
        let work = async {
            let guest = $self.pre.instantiate_async(&mut store).await?;
            guest.ess_policy_evaluator().$function(&mut store, &$self.scripts $(, $argument)*).await
        };
        let ended = tokio::time::timeout($self.limits.wall_clock, work).await;
        component::outcome(&$self.limits, store.data(), ended)
            .map_err(|why| SandboxError::Stopped {
                component: $self.name.to_string(),
                call: $what,
                why,
                last_words: store.data().last_words(),
            })
            .and_then(|answer| answer.map_err(|e| $self.guest($what, e)))
    }};
}

impl Policy {
    /// Which questions the scripts answer.
    pub async fn questions(&self) -> Result<Vec<Question>, SandboxError> {
        ask!(self, "check", call_check)
    }

    /// May this run start?
    pub async fn may_run(&self, input_json: &str) -> Decision {
        self.decide(Question::MayRun, input_json).await
    }

    /// May this restore go ahead?
    pub async fn may_restore(&self, input_json: &str) -> Decision {
        self.decide(Question::MayRestore, input_json).await
    }

    /// Is this result normal? Without an answer it is suspect.
    pub async fn judge_result(&self, input_json: &str) -> Judgement {
        judged(self.answer(Question::JudgeResult, input_json).await)
    }

    /// Which of `backups` are kept, and why? Without an answer, all. Ids the policy invents are a fault, and keep all.
    pub async fn retention(&self, backups: &BTreeSet<String>, input_json: &str) -> Retention {
        retained(backups, self.answer(Question::Retention, input_json).await)
    }

    /// Runs the tests among the scripts.
    pub async fn run_tests(&self) -> Result<Vec<Test>, SandboxError> {
        let mut tests = ask!(self, "run-tests", call_run_tests)?;
        for test in &mut tests {
            test.name = line(&test.name, 200);
            test.detail = paragraph(&test.detail);
        }
        Ok(tests)
    }

    async fn decide(&self, question: Question, input_json: &str) -> Decision {
        decided(&self.name, question, self.answer(question, input_json).await)
    }

    async fn answer<T: for<'de> Deserialize<'de>>(&self, question: Question, input_json: &str) -> Result<T, String> {
        let text = self.evaluate(question, input_json).await.map_err(|e| e.to_string())?;
        shaped(&self.name, question, &text)
    }

    /// The answer as it came, for a person who wants to see it. Decisions are the other functions'.
    pub async fn evaluate(&self, question: Question, input_json: &str) -> Result<String, SandboxError> {
        ask!(self, "evaluate", call_evaluate, question, input_json)
    }

    fn guest(&self, call: &'static str, error: Error) -> SandboxError {
        let text = match error {
            Error::InvalidScript(t) => format!("a script is wrong: {t}"),
            Error::NoAnswer(t) => format!("there is no answer: {t}"),
            Error::Failed(t) => format!("the policy failed: {t}"),
            Error::Other(t) => t,
        };
        SandboxError::Policy {
            name: self.name.to_string(),
            call,
            text: paragraph(&line_by_line(&text)),
        }
    }
}

/// An answer's text in the shape its question has.
pub(crate) fn shaped<T: for<'de> Deserialize<'de>>(policy: &str, question: Question, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| {
        format!(
            "policy {policy}: its answer to {} has not the documented shape: {}",
            asked(question),
            line(&e.to_string(), 300)
        )
    })
}

pub(crate) fn decided(policy: &str, question: Question, answer: Result<Allowed, String>) -> Decision {
    let answer = match answer {
        Ok(Allowed {
            allow: None,
            deny: None,
            ..
        }) => Err(format!(
            "policy {policy}: its answer to {} has neither `allow` nor `deny`",
            asked(question)
        )),
        other => other,
    };
    match answer {
        Ok(Allowed {
            allow,
            deny,
            mut reasons,
        }) => {
            let against = deny.unwrap_or_default();
            let allowed = allow != Some(false) && against.is_empty();
            reasons.extend(against);
            Decision {
                allowed,
                reasons: cleaned(reasons),
                failure: None,
            }
        }
        Err(failure) => Decision {
            allowed: false,
            reasons: Vec::new(),
            failure: Some(failure),
        },
    }
}

pub(crate) fn judged(answer: Result<Judged, String>) -> Judgement {
    match answer {
        Ok(Judged { suspect, mut reasons }) => {
            let suspect = match suspect {
                Suspicion::Said(suspect) => suspect,
                Suspicion::Listed(listed) => {
                    let any = !listed.is_empty();
                    reasons.extend(listed);
                    any
                }
            };
            Judgement {
                suspect,
                reasons: cleaned(reasons),
                failure: None,
            }
        }
        Err(failure) => Judgement {
            suspect: true,
            reasons: Vec::new(),
            failure: Some(failure),
        },
    }
}

pub(crate) fn retained(backups: &BTreeSet<String>, answer: Result<Kept, String>) -> Retention {
    let kept = match answer {
        Ok(Kept { keep }) => match keep.keys().find(|id| !backups.contains(*id)) {
            // One wrong id means that the policy talks of another list: then nothing it left out may go.
            Some(id) => Err(format!("it names the backup {:?}, which does not exist", line(id, 100))),
            None => Ok(keep),
        },
        Err(failure) => Err(failure),
    };
    match kept {
        Ok(keep) => {
            let keep = keep.into_iter().map(|(id, reasons)| (id, cleaned(reasons))).collect();
            Retention { keep, failure: None }
        }
        Err(failure) => {
            let why = vec!["the policy gave no answer".to_owned()];
            let keep = backups.iter().map(|id| (id.clone(), why.clone())).collect();
            Retention {
                keep,
                failure: Some(failure),
            }
        }
    }
}

/// An interpreter's message keeps its lines, because it may point at a place in the script, but not without end.
fn line_by_line(text: &str) -> String {
    text.lines()
        .take(20)
        .map(|l| line(l, 300))
        .collect::<Vec<_>>()
        .join("\n")
}

fn cleaned(reasons: Vec<String>) -> Vec<String> {
    reasons
        .into_iter()
        .take(REASONS)
        .map(|r| line(&r, crate::log::LINE))
        .collect()
}
