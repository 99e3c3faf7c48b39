//! Would a backup work? Opens everything a run opens, asks every component for its plan, takes nothing.

use crate::backup::prepare;
use crate::body::Severity;
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::policy::{Policy, Question, input};
use crate::report::Reporter;
use crate::restore::targets::refuse_restorer;
use crate::{instant, keys, load, peers, repo};
use essrun_sandbox::Engine;
use essrun_store::Grade;
use serde::Serialize;
use std::sync::Arc;

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Validated {
    pub what: String,
    pub severity: Severity,
    pub message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Validation {
    pub event: &'static str,
    pub good: bool,
    pub checks: Vec<Validated>,
}

pub async fn run(pipeline: &Pipeline, reporter: Arc<dyn Reporter>) -> Result<Validation, PipelineError> {
    let mut v = Validation {
        event: "validation",
        good: true,
        checks: Vec::new(),
    };
    v.ok(
        "pipeline",
        format!(
            "{}: {} component(s)",
            pipeline.file.display(),
            pipeline.components.len()
        ),
    );
    keys_and_store(pipeline, &mut v).await;
    let engine = load::engine(pipeline)?;
    // A component that cannot be loaded is a fault of the pipeline file; its error says which line.
    let loaded = load::all(pipeline, &[], &engine, reporter.as_ref()).await?;
    for one in &loaded {
        let origin = if one.third_party { "plugin" } else { "built in" };
        v.ok(
            one.name(),
            format!("{} {} ({origin})", one.description.system, one.description.version),
        );
        for need in one.description.needs.iter().filter(|n| !n.required) {
            let granted =
                one.config.databases.contains_key(&need.label) || one.config.volumes.contains_key(&need.label);
            if !granted {
                v.add(
                    one.name(),
                    Severity::Info,
                    format!("not granted, optional: {}: {}", need.label, need.purpose),
                );
            }
        }
    }
    policy(pipeline, &engine, &loaded, &mut v, reporter.as_ref()).await?;
    restorers(&loaded, &mut v).await;
    let sources = prepare::all(pipeline, loaded, reporter.as_ref()).await?;
    for instant in &sources.instants {
        v.ok(&instant.group, crate::instant::in_words(instant));
    }
    for (component, severity, text) in peers::unknown(&sources.components) {
        v.add(&component, severity, text);
    }
    for one in &sources.components {
        let name = one.loaded.name().to_owned();
        match &one.failed {
            Some(why) => v.add(&name, Severity::Error, why.clone()),
            None => {
                v.ok(&name, format!("its plan has {} step(s)", one.plan.words(false).len()));
                for n in one.plan.notes.iter().filter(|n| n.severity > Severity::Info) {
                    v.add(&name, Severity::Warning, n.text.clone());
                }
            }
        }
    }
    Ok(v)
}

/// What a restore would be refused for on the day it is needed. Where its role is not known to this host there is nothing
/// to look at: who restores may bring it.
async fn restorers(loaded: &[Loaded], v: &mut Validation) {
    for one in loaded.iter().filter(|one| one.third_party) {
        for (label, grant) in one.config.databases.iter().filter(|(label, _)| one.owns(label)) {
            let Some(admin) = &grant.admin else { continue };
            match instant::connection(admin) {
                Err(e) => v.add(one.name(), Severity::Info, format!("{label}: a restore needs it: {e}")),
                Ok(role) => match refuse_restorer(one.name(), label, role).await {
                    Ok(()) => {}
                    Err(e) => v.add(one.name(), Severity::Warning, e.to_string()),
                },
            }
        }
    }
}

/// A policy that cannot be loaded is a fault of the pipeline file; one that says no now stands in a backup's way.
async fn policy(
    pipeline: &Pipeline,
    engine: &Engine,
    loaded: &[Loaded],
    v: &mut Validation,
    reporter: &dyn Reporter,
) -> Result<(), PipelineError> {
    let Some(policy) = Policy::load(pipeline, engine).await? else {
        return Ok(());
    };
    v.ok("policy", policy.in_words());
    if !policy.answers(Question::MayRun) || !v.good {
        return Ok(());
    }
    let repository = repo::open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?;
    let input = input::may_run(pipeline, loaded, &repository, false).await?;
    let permission = policy.may_run(&input, reporter).await?;
    match permission.allowed {
        true => v.ok("policy", "a run may start now".to_owned()),
        false => v.add(
            "policy",
            Severity::Error,
            format!("no run may start now: {}", permission.why()),
        ),
    }
    Ok(())
}

async fn keys_and_store(pipeline: &Pipeline, v: &mut Validation) {
    match keys::recipients(pipeline) {
        Ok(r) if r.is_empty() => v.add(
            "recipients",
            Severity::Error,
            "none: nothing sensitive can be backed up".into(),
        ),
        Ok(r) if r.len() == 1 => v.add(
            "recipients",
            Severity::Warning,
            "only one: if its identity is lost, so are all backups; add a second that is kept elsewhere".into(),
        ),
        Ok(r) => v.ok("recipients", format!("{}", r.len())),
        Err(e) => v.add("recipients", Severity::Error, e.to_string()),
    }
    match repo::inspect_store(pipeline).await {
        Ok(abilities) => {
            for a in abilities {
                let severity = match a.grade {
                    Grade::Bad => Severity::Error,
                    Grade::Good | Grade::Note => Severity::Info,
                };
                v.add("store", severity, a.text);
            }
        }
        Err(e) => v.add("store", Severity::Error, e.to_string()),
    }
    let writer = match keys::writer(pipeline) {
        Ok(writer) => {
            v.ok("writer-key", writer.id().to_string());
            writer
        }
        Err(e) => return v.add("writer-key", Severity::Error, e.to_string()),
    };
    let public = writer.public();
    match repo::open(pipeline, Some(writer), Vec::new()).await {
        Err(e) => v.add("repository", Severity::Error, e.to_string()),
        Ok(repository) if !repository.knows(&public) => v.add(
            "repository",
            Severity::Error,
            format!(
                "{} does not know writer {public}: on a host whose key it knows, `essrun authorize PIPELINE {public} --confirm`",
                pipeline.repository.url
            ),
        ),
        Ok(repository) => match repository.backups().await {
            Ok(backups) => v.ok(
                "repository",
                format!("{} ({} backups)", pipeline.repository.url, backups.len()),
            ),
            Err(e) => v.add("repository", Severity::Error, e.to_string()),
        },
    }
}

impl Validation {
    fn ok(&mut self, what: &str, message: String) {
        self.add(what, Severity::Info, message);
    }

    fn add(&mut self, what: &str, severity: Severity, message: String) {
        self.good &= severity != Severity::Error;
        self.checks.push(Validated {
            what: what.to_owned(),
            severity,
            message,
        });
    }

    pub fn text(&self) -> String {
        let mut t = String::new();
        for c in &self.checks {
            t.push_str(&format!("{:<8} {:<14} {}\n", c.severity, c.what, c.message));
        }
        t.push_str(if self.good {
            "good: a backup would run\n"
        } else {
            "NOT GOOD: mend what is marked ERROR\n"
        });
        t
    }

    pub fn into_error(self) -> Result<(), PipelineError> {
        if self.good {
            return Ok(());
        }
        let errors: Vec<_> = self
            .checks
            .into_iter()
            .filter(|c| c.severity == Severity::Error)
            .map(|c| format!("{}: {}", c.what, c.message))
            .collect();
        Err(PipelineError::Findings {
            what: "validate".into(),
            errors: errors.len(),
            findings: errors,
        })
    }
}
