//! What a policy is told and what it answers, for a person who asks why.
//!
//! The inputs are built by the same functions that build them for a run, a restore or forgetting, so what is shown is
//! what is decided on. Nothing is changed, and no answer is acted upon.

use super::input::{self, MayRestore, Verb};
use super::{Outcome, Policy, Question};
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::extract::{self, ExtractOptions};
use crate::incident::{self, IncidentOptions};
use crate::report::Reporter;
use crate::restore::{Asker, RestoreOptions, plan};
use crate::standing::Standing;
use crate::{keys, load, repo, retention};
use essrun_artifact::BackupReader;
use essrun_repository::{OpenBackup, Repository};
use essrun_sandbox::Engine;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct ExplainOptions {
    /// About this backup: its id, the beginning of it, or `latest`.
    pub backup: Option<String>,
    /// Only this question.
    pub question: Option<Question>,
    /// With which the plan of a restore can be made.
    pub identities: Vec<PathBuf>,
    /// As if the restore were to replace what is there.
    pub replace: bool,
    /// As which verb may-restore is asked.
    pub verb: Verb,
    /// What `extract` would hand out.
    pub artifact: Option<String>,
}

/// One question, what the policy was told, and what it said.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explained {
    pub event: &'static str,
    pub question: Question,
    pub outcome: Outcome,
    pub reasons: Vec<String>,
    pub failure: Option<String>,
    /// What is kept, and what each backup is kept or let go for, [retention] included; only of that question.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<essrun_repository::retention::Decision>,
    /// Exactly what the policy was told.
    pub input: Value,
    /// Exactly what it answered.
    pub answer: Value,
}

/// Asks what can be asked now, or about one backup.
pub async fn explain(
    pipeline: &Pipeline,
    options: ExplainOptions,
    reporter: Arc<dyn Reporter>,
) -> Result<Vec<Explained>, PipelineError> {
    let engine = load::engine(pipeline)?;
    let Some(policy) = Policy::load(pipeline, &engine).await? else {
        return Err(PipelineError::refused(
            format!("{} has no [policy]", pipeline.file.display()),
            "docs/POLICY.md says how to write one; `essrun forget` explains [retention]",
        ));
    };
    let questions = questions(&policy, &options)?;
    let identities = keys::identities(&options.identities)?;
    let repository = repo::open(pipeline, keys::writer_if_there(pipeline)?, identities).await?;
    let about = match &options.backup {
        None => None,
        Some(wanted) => {
            let open = repo::read(pipeline, &repository, wanted).await?;
            Some(Arc::new(open))
        }
    };
    let mut all = Vec::new();
    for question in questions {
        let explained = match (question, &about) {
            (Question::MayRun, _) => {
                let loaded = load::all(pipeline, &[], &engine, reporter.as_ref()).await?;
                let input = input::may_run(pipeline, &loaded, &repository, false).await?;
                one(&policy, question, &input).await?
            }
            (Question::JudgeResult, Some(backup)) => {
                one(&policy, question, &judged(pipeline, &repository, backup).await?).await?
            }
            (Question::MayRestore, Some(backup)) => {
                let ask = Ask {
                    pipeline,
                    engine: &engine,
                    policy: &policy,
                    repository: &repository,
                    options: &options,
                };
                one(&policy, question, &ask.restore(backup, reporter.as_ref()).await?).await?
            }
            (Question::Retention, about) => {
                let considered = retention::consider(pipeline, &repository, Some(&policy)).await?;
                let mut explained = one(&policy, question, &considered.input).await?;
                let wanted = about.as_ref().map(|b| &b.summary().id);
                explained.decisions = considered.decisions;
                explained.decisions.retain(|d| wanted.is_none_or(|id| id == &d.id));
                explained
            }
            (Question::JudgeResult | Question::MayRestore, None) => {
                return Err(PipelineError::refused(
                    format!("{question} is about a backup"),
                    "name one, or `latest`",
                ));
            }
        };
        all.push(explained);
    }
    Ok(all)
}

/// With what the input of may-restore is made.
struct Ask<'a> {
    pipeline: &'a Pipeline,
    engine: &'a Engine,
    policy: &'a Policy,
    repository: &'a Repository,
    options: &'a ExplainOptions,
}

impl Ask<'_> {
    /// As the verb would ask.
    async fn restore(&self, backup: &Arc<OpenBackup>, reporter: &dyn Reporter) -> Result<MayRestore, PipelineError> {
        let asked = match self.options.verb {
            Verb::Drill => {
                return Err(PipelineError::refused(
                    "a drill makes its places as it goes: its plan cannot be made without it",
                    "ask as a restore; of a drill `drill` is true and nothing is live",
                ));
            }
            Verb::Restore => {
                let loaded = load::all(self.pipeline, &[], self.engine, reporter).await?;
                let restore = RestoreOptions {
                    dry_run: true,
                    replace: self.options.replace,
                    ..RestoreOptions::default()
                };
                let purpose = plan::Purpose::Restore;
                let planned = plan::all(self.pipeline, loaded, backup.clone(), &restore, purpose).await?;
                let asker = Asker {
                    pipeline: self.pipeline,
                    policy: Some(self.policy),
                    repository: self.repository,
                    verb: Verb::Restore,
                };
                return asker.input(&planned, &restore).await;
            }
            Verb::Extract => {
                let Some(artifact) = self.options.artifact.clone() else {
                    return Err(PipelineError::refused(
                        "an extract is of one artifact",
                        "name it with --artifact; `essrun show --artifacts` lists them",
                    ));
                };
                let extract = ExtractOptions {
                    backup: backup.summary().id.to_string(),
                    identities: Vec::new(),
                    artifact,
                    incomplete: true,
                    path: None,
                    output: Some(PathBuf::from("extracted")),
                };
                extract::asked(&extract::record(backup, &extract)?, &extract)
            }
            Verb::Incident => {
                let incident = IncidentOptions {
                    apply: true,
                    ..IncidentOptions::default()
                };
                let draft = incident::draft(self.pipeline, &incident, self.engine, backup, reporter).await?;
                draft.asked(self.pipeline)
            }
        };
        input::may_restore(self.pipeline, self.repository, backup, asked).await
    }
}

/// What is asked: what was wanted, or what can be asked with what was given.
fn questions(policy: &Policy, options: &ExplainOptions) -> Result<Vec<Question>, PipelineError> {
    // Named for another verb, one question is meant.
    let another = (options.verb != Verb::default()).then_some(Question::MayRestore);
    if let Some(wanted) = another.or(options.question) {
        return match policy.answers(wanted) {
            true => Ok(vec![wanted]),
            false => Err(PipelineError::refused(
                format!("the policy does not decide {wanted}"),
                format!("it {}", policy.in_words()),
            )),
        };
    }
    let fits = |question: &Question| match question {
        Question::MayRun => options.backup.is_none(),
        Question::JudgeResult => options.backup.is_some(),
        Question::MayRestore => options.backup.is_some() && !options.identities.is_empty(),
        Question::Retention => true,
    };
    let fitting: Vec<Question> = Question::ALL
        .into_iter()
        .filter(|q| policy.answers(*q) && fits(q))
        .collect();
    if fitting.is_empty() {
        return Err(PipelineError::refused(
            format!("there is nothing to ask: the policy {}", policy.in_words()),
            "judge-result is about a backup, may-restore about a backup and needs --identity",
        ));
    }
    Ok(fitting)
}

/// The judgement of a backup as it would be now.
async fn judged(
    pipeline: &Pipeline,
    repository: &Repository,
    backup: &OpenBackup,
) -> Result<input::JudgeResult, PipelineError> {
    let summary = backup.summary();
    let mut body = repo::body(summary)?;
    body.judgement = None;
    let asked = body.components.iter().map(|c| c.name.clone()).collect();
    let standing = Standing::of_result(body);
    Ok(input::JudgeResult {
        common: input::Common::new(pipeline),
        asked,
        previous: input::previous(repository, summary.id.as_str()).await?,
        result: input::Backup::known(summary, &standing).with_artifacts(backup.artifacts()),
    })
}

async fn one(policy: &Policy, question: Question, input: &impl Serialize) -> Result<Explained, PipelineError> {
    let text = super::json(input)?;
    let said = policy.ask(question, &text).await;
    // Asked a second time, for the words; a policy has nothing to remember.
    let answer = policy.guest.evaluate(question.to_guest(), &text).await;
    let answer = answer.map_or(Value::Null, |a| serde_json::from_str(&a).unwrap_or(Value::String(a)));
    Ok(Explained {
        event: "policy-explained",
        question,
        outcome: said.outcome,
        reasons: said.reasons,
        failure: said.failure,
        decisions: Vec::new(),
        input: serde_json::from_str(&text).map_err(|e| PipelineError::Internal(e.to_string()))?,
        answer,
    })
}

impl Explained {
    pub fn text(&self) -> String {
        let mut t = format!("{}: {}\n", self.question, self.outcome);
        for why in self.reasons.iter().chain(&self.failure) {
            t.push_str(&format!("  - {why}\n"));
        }
        for d in &self.decisions {
            let word = if d.keep { "keep" } else { "forget" };
            t.push_str(&format!("  {word:<7} {}  {}\n", d.id, d.reasons.join(", ")));
        }
        t.push_str(&format!("  it was told:  {}\n", indented(&self.input)));
        t.push_str(&format!("  it answered:  {}\n", indented(&self.answer)));
        t
    }
}

/// Over several lines, below the word that announces it.
fn indented(value: &Value) -> String {
    format!("{value:#}").replace('\n', "\n    ")
}
