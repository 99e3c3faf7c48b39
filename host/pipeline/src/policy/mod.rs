//! The policy of a pipeline: loaded, asked, obeyed.
//!
//! What a policy may decide stands in docs/POLICY.md; how it is run is the sandbox's affair. This room reads the files
//! `[policy]` names, builds the input of each question from what essrun knows, and turns answers into decisions a person
//! is shown. It promises that a question the policy answers is asked every time, that no answer is a "no" (and keeps
//! every backup), and that what is asked is what docs/POLICY.md says. What it must never do: let a run or a restore go
//! on because a policy could not be read.

pub mod accept;
pub mod approvals;
pub mod explain;
pub mod input;
mod person;
pub(crate) mod scripts;
pub mod test;

use crate::body::Judgement;
use crate::config::{Pipeline, PolicyConfig, Use};
use crate::error::PipelineError;
use crate::load;
use crate::plugin;
use crate::report::{Event, Reporter};
use essrun_sandbox::policy as sandbox;
use essrun_sandbox::{Engine, Origin};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// May this run start?
    MayRun,
    /// Is this result normal?
    JudgeResult,
    /// Which backups are kept?
    Retention,
    /// May this restore go ahead?
    MayRestore,
}

impl Question {
    pub const ALL: [Question; 4] = [
        Question::MayRun,
        Question::JudgeResult,
        Question::Retention,
        Question::MayRestore,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Question::MayRun => "may-run",
            Question::JudgeResult => "judge-result",
            Question::Retention => "retention",
            Question::MayRestore => "may-restore",
        }
    }

    fn to_guest(self) -> sandbox::Question {
        match self {
            Question::MayRun => sandbox::Question::MayRun,
            Question::JudgeResult => sandbox::Question::JudgeResult,
            Question::Retention => sandbox::Question::Retention,
            Question::MayRestore => sandbox::Question::MayRestore,
        }
    }

    fn from_guest(question: sandbox::Question) -> Question {
        match question {
            sandbox::Question::MayRun => Question::MayRun,
            sandbox::Question::JudgeResult => Question::JudgeResult,
            sandbox::Question::Retention => Question::Retention,
            sandbox::Question::MayRestore => Question::MayRestore,
        }
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Allowed,
    Refused,
    Normal,
    Suspect,
    /// Which backups are kept was decided.
    Decided,
    /// There was no usable answer to which backups are kept: all are.
    KeptAll,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Outcome::Allowed => "yes",
            Outcome::Refused => "NO",
            Outcome::Normal => "normal",
            Outcome::Suspect => "SUSPECT",
            Outcome::Decided => "decided",
            Outcome::KeptAll => "no answer, so every backup is kept",
        })
    }
}

/// A policy, ready to be asked.
pub struct Policy {
    guest: sandbox::Policy,
    questions: BTreeSet<Question>,
}

impl Policy {
    /// Loads what `[policy]` names; `None` where the pipeline has none. A policy that cannot be loaded is an error, so
    /// that nothing goes on without it.
    pub async fn load(pipeline: &Pipeline, engine: &Engine) -> Result<Option<Policy>, PipelineError> {
        match &pipeline.policy {
            None => Ok(None),
            Some(config) => Policy::of(config, scripts::read(config)?, engine).await.map(Some),
        }
    }

    /// The policy, where there is one and it decides whether a restore may go ahead: of a verb that needs no components.
    pub async fn about_restores(pipeline: &Pipeline) -> Result<Option<Policy>, PipelineError> {
        if pipeline.policy.is_none() {
            return Ok(None);
        }
        let policy = Policy::load(pipeline, &load::engine(pipeline)?).await?;
        Ok(policy.filter(|p| p.answers(Question::MayRestore)))
    }

    async fn of(
        config: &PolicyConfig,
        scripts: Vec<sandbox::Script>,
        engine: &Engine,
    ) -> Result<Policy, PipelineError> {
        let guest = guest(config, scripts, engine).await?;
        let wrong = |problem: String, hint: &str| PipelineError::Config {
            at: config.at.clone(),
            problem,
            hint: hint.to_owned(),
        };
        let answered = guest
            .questions()
            .await
            .map_err(|e| wrong(e.to_string(), "docs/POLICY.md says what a policy looks like"))?;
        let answered: BTreeSet<Question> = answered.into_iter().map(Question::from_guest).collect();
        if answered.is_empty() {
            return Err(wrong(
                "the policy answers no question".to_owned(),
                "a script begins with `package essrun.may_run` or another of docs/POLICY.md",
            ));
        }
        if let Some(asked) = &config.questions {
            if let Some((at, missing)) = asked.iter().find(|(_, q)| !answered.contains(q)) {
                return Err(PipelineError::Config {
                    at: at.clone(),
                    problem: format!("the policy does not answer {missing}"),
                    hint: format!(
                        "name the file that has its package, or take it out; answered are {}",
                        list(&answered)
                    ),
                });
            }
            let asked: BTreeSet<Question> = asked.iter().map(|(_, q)| *q).collect();
            if asked != answered {
                let more: BTreeSet<Question> = answered.difference(&asked).copied().collect();
                return Err(wrong(
                    format!(
                        "the policy also answers {}, which `questions` does not name",
                        list(&more)
                    ),
                    "add it to `questions`, or take its file out: a rule that is there and not asked misleads",
                ));
            }
        }
        Ok(Policy {
            guest,
            questions: answered,
        })
    }

    /// Whether the policy decides this.
    pub fn answers(&self, question: Question) -> bool {
        self.questions.contains(&question)
    }

    /// What it decides, and what it leaves alone.
    pub fn in_words(&self) -> String {
        let others: BTreeSet<Question> = Question::ALL
            .into_iter()
            .filter(|q| !self.questions.contains(q))
            .collect();
        if others.is_empty() {
            format!("decides {}", list(&self.questions))
        } else {
            format!("decides {}; does not decide {}", list(&self.questions), list(&others))
        }
    }

    /// May this run start?
    pub async fn may_run(&self, input: &input::MayRun, reporter: &dyn Reporter) -> Result<Permission, PipelineError> {
        self.permit(Question::MayRun, input, reporter).await
    }

    /// May this restore go ahead?
    pub async fn may_restore(
        &self,
        input: &input::MayRestore,
        reporter: &dyn Reporter,
    ) -> Result<Permission, PipelineError> {
        self.permit(Question::MayRestore, input, reporter).await
    }

    async fn permit(
        &self,
        question: Question,
        input: &impl Serialize,
        reporter: &dyn Reporter,
    ) -> Result<Permission, PipelineError> {
        let said = self.ask(question, &json(input)?).await;
        reporter.event(said.event(question));
        Ok(Permission {
            question,
            allowed: said.outcome == Outcome::Allowed,
            reasons: said.reasons,
            failure: said.failure,
        })
    }

    /// Is this result normal? What cannot be asked counts as suspect as well.
    pub async fn judge(&self, input: Result<input::JudgeResult, PipelineError>, reporter: &dyn Reporter) -> Judgement {
        let said = match input.and_then(|i| json(&i)) {
            Ok(json) => self.ask(Question::JudgeResult, &json).await,
            Err(e) => Said {
                outcome: Outcome::Suspect,
                reasons: Vec::new(),
                failure: Some(e.to_string()),
            },
        };
        reporter.event(said.event(Question::JudgeResult));
        Judgement {
            suspect: said.outcome != Outcome::Normal,
            reasons: said.reasons,
            failure: said.failure,
        }
    }

    /// One question as it is decided.
    async fn ask(&self, question: Question, input: &str) -> Said {
        let permission = |d: sandbox::Decision| Said {
            outcome: if d.allowed { Outcome::Allowed } else { Outcome::Refused },
            reasons: d.reasons,
            failure: d.failure,
        };
        match question {
            Question::MayRun => permission(self.guest.may_run(input).await),
            Question::MayRestore => permission(self.guest.may_restore(input).await),
            Question::JudgeResult => {
                let judged = self.guest.judge_result(input).await;
                Said {
                    outcome: if judged.suspect {
                        Outcome::Suspect
                    } else {
                        Outcome::Normal
                    },
                    reasons: judged.reasons,
                    failure: judged.failure,
                }
            }
            Question::Retention => {
                let said = self.guest.retention(&ids(input), input).await;
                Said {
                    outcome: match said.failure {
                        None => Outcome::Decided,
                        Some(_) => Outcome::KeptAll,
                    },
                    reasons: Vec::new(),
                    failure: said.failure,
                }
            }
        }
    }

    /// Which of the backups are kept, and why. Without an answer all.
    pub async fn retention(&self, input: &input::Retention) -> Result<sandbox::Retention, PipelineError> {
        let ids = input.backups.iter().map(|b| b.id.clone()).collect();
        Ok(self.guest.retention(&ids, &json(input)?).await)
    }
}

/// Loads a policy that is not trusted yet, and says what it would decide.
pub(crate) async fn decides(config: &PolicyConfig, engine: &Engine) -> Result<BTreeSet<Question>, PipelineError> {
    Ok(Policy::of(config, scripts::read(config)?, engine).await?.questions)
}

/// What came of asking.
#[derive(Debug, Clone)]
struct Said {
    outcome: Outcome,
    reasons: Vec<String>,
    failure: Option<String>,
}

impl Said {
    fn event(&self, question: Question) -> Event {
        Event::Policy {
            question,
            outcome: self.outcome,
            reasons: self.reasons.clone(),
            failure: self.failure.clone(),
        }
    }
}

/// Yes or no, and why, of a run or a restore.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Permission {
    pub question: Question,
    pub allowed: bool,
    pub reasons: Vec<String>,
    /// Why there was no answer, which refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Permission {
    /// The reasons, or that there was no answer.
    pub fn why(&self) -> String {
        why(&self.reasons, self.failure.as_deref())
    }

    /// An error where it is refused.
    pub fn or_refuse(&self) -> Result<(), PipelineError> {
        if self.allowed {
            return Ok(());
        }
        Err(PipelineError::refused(
            format!("the policy says no ({}): {}", self.question, self.why()),
            "nothing was changed; `essrun policy explain` shows what it was told and what it answered",
        ))
    }
}

/// Reasons in one text; a failure speaks for itself.
fn why(reasons: &[String], failure: Option<&str>) -> String {
    match (failure, reasons.is_empty()) {
        (Some(failure), _) => format!("it gave no answer, which counts as no: {failure}"),
        (None, true) => "it gives no reason".to_owned(),
        (None, false) => reasons.join("; "),
    }
}

/// The interpreter with the scripts in it.
async fn guest(
    config: &PolicyConfig,
    scripts: Vec<sandbox::Script>,
    engine: &Engine,
) -> Result<sandbox::Policy, PipelineError> {
    let wrong = |problem: String, hint: &str| PipelineError::Config {
        at: config.at.clone(),
        problem,
        hint: hint.to_owned(),
    };
    let (wasm, origin) = match &config.origin {
        Use::BuiltIn(language) => match essrun_builtin::policy(language) {
            Some(found) => (std::borrow::Cow::Borrowed(found.wasm), Origin::BuiltIn),
            None => {
                return Err(wrong(
                    format!("there is no interpreter for {language:?}"),
                    "use = \"rego\"",
                ));
            }
        },
        Use::File { path, sha256, signed } => {
            let wasm = plugin::read_file(path, config.limits.compile.file)
                .map_err(|problem| wrong(format!("policy: {problem}"), "name the policy's .wasm file"))?;
            if let Some(signed) = signed {
                plugin::verify(&wasm, signed)
                    .map_err(|problem| wrong(format!("policy: {problem}"), "ask its author for both files again"))?;
            }
            (
                std::borrow::Cow::Owned(wasm),
                Origin::ThirdParty { sha256: sha256.clone() },
            )
        }
    };
    let name = match &config.origin {
        Use::BuiltIn(language) => language.clone(),
        Use::File { path, .. } => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    // Compiling an interpreter takes seconds where the cache is empty; other tasks go on meanwhile.
    tokio::task::block_in_place(|| {
        let loading = engine.load_policy(&name, &wasm, origin, scripts, &config.limits);
        tokio::runtime::Handle::current().block_on(loading)
    })
    .map_err(|e| {
        wrong(
            e.to_string(),
            "nothing is done without the policy: mend it, or take [policy] out",
        )
    })
}

/// The ids of the backups in an input of ours.
pub(crate) fn ids(input: &str) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Input {
        backups: Vec<Id>,
    }
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    // What does not read here does not read in the guest either, and is its failure to tell.
    let read = serde_json::from_str::<Input>(input).map(|i| i.backups.into_iter().map(|b| b.id).collect());
    read.unwrap_or_default()
}

fn json(input: &impl Serialize) -> Result<String, PipelineError> {
    serde_json::to_string(input).map_err(|e| PipelineError::Internal(e.to_string()))
}

fn list(questions: &BTreeSet<Question>) -> String {
    questions.iter().map(|q| q.name()).collect::<Vec<_>>().join(", ")
}
