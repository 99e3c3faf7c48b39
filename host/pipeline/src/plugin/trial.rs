//! `essrun plugin test`: runs a plugin in a described world and prints what it answers.
//!
//! It is called as a run calls it: by the same loader, under the same limits, each answer checked against what was
//! granted. Nothing is backed up, and nothing outside the description is seen. The answers are one JSON document that is
//! the same for the same plugin and world, so that an author can keep it and compare.

use super::described::{self, DescribedBackup, DescribedEngine, Description, Standing};
use super::inspect::{engine, load, without_name};
use super::{bad_file, read_file, words};
use crate::backup::plan;
use crate::config::{ComponentConfig, DatabaseGrant, DatabaseSource, Secret, Use, VolumeGrant};
use crate::error::{At, PipelineError};
use crate::load::{Loaded, check_grants, classes, matches};
use essrun_sandbox::contract::inspect::Level;
use essrun_sandbox::contract::restore::{Artifact, BackupView};
use essrun_sandbox::contract::types::{Description as Described, Fact};
use essrun_sandbox::contract::{backup, restore};
use essrun_sandbox::{Component, Limits, SandboxError, World};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Differences told at most.
const TOLD: usize = 20;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct TrialOptions {
    /// Compare with these answers.
    pub expect: Option<PathBuf>,
    /// Write the answers here.
    pub record: Option<PathBuf>,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Trial {
    pub name: String,
    pub answers: Value,
    /// Calls that ended with an error of the plugin's own.
    pub errors: Vec<String>,
    pub differences: Option<Vec<String>>,
}

/// Runs every function of the plugin.
pub async fn run(file: &Path, world: &Path, options: &TrialOptions) -> Result<Trial, PipelineError> {
    let described = described::read(world)?;
    let limits = &described.limits;
    let wasm = read_file(file, limits.compile.file)
        .map_err(|problem| bad_file(file, problem, "name a plugin's .wasm file"))?;
    let name = file
        .file_stem()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let failed = |e: SandboxError| PipelineError::component(&name, without_name(&e));
    let sha256 = hex::encode(Sha256::digest(&wasm));
    let component = load(&engine()?, &name, &wasm, &sha256, limits).map_err(failed)?;
    let description = component.describe(limits).await.map_err(failed)?;
    let config = config(world, &name, &described);
    check_grants(&config, &description)?;
    let standing = Arc::new(described::stand(world, &name, &described).await?);
    let loaded = Loaded {
        classes: classes(&description),
        config,
        component: component.clone(),
        description: description.clone(),
        sha256,
        third_party: true,
    };

    let mut answers = Map::new();
    answers.insert("describe".into(), words::description(&description));
    let mut errors = Vec::new();
    let planned = asked(
        "plan-backup",
        component.plan_backup(standing.clone(), limits).await,
        &mut errors,
    )
    .map_err(failed)?;
    answers.insert("plan-backup".into(), answer(&planned, words::backup_plan));
    if let Ok(plan) = &planned {
        // As a run does: what was not granted is refused.
        plan::check(&loaded, plan.clone(), 1)?;
    }
    let view = view(&described, &description, planned.as_ref().ok());
    let called = Called {
        component: &component,
        standing: &standing,
        limits,
        view: &view,
    };
    called.others(&mut answers, &mut errors).await.map_err(failed)?;
    answers.insert("log".into(), log(&standing));
    let answers = Value::Object(answers);
    if let Some(record) = &options.record {
        let text = serde_json::to_string_pretty(&answers).map_err(|e| PipelineError::Internal(e.to_string()))?;
        std::fs::write(record, text + "\n")
            .map_err(|e| bad_file(record, format!("cannot be written: {e}"), "name a file that can be"))?;
    }
    let differences = options
        .expect
        .as_deref()
        .map(|expect| compare(expect, &answers))
        .transpose()?;
    Ok(Trial {
        name,
        answers,
        errors,
        differences,
    })
}

struct Called<'a> {
    component: &'a Component,
    standing: &'a Arc<Standing>,
    limits: &'a Limits,
    view: &'a BackupView,
}

impl Called<'_> {
    async fn others(&self, answers: &mut Map<String, Value>, errors: &mut Vec<String>) -> Result<(), SandboxError> {
        let world = || -> Arc<dyn World> { self.standing.clone() };
        let (c, view, limits) = (self.component, self.view, self.limits);
        let plan = asked("plan-restore", c.plan_restore(world(), view, limits).await, errors)?;
        answers.insert("plan-restore".into(), answer(&plan, words::restore_plan));
        let findings = asked("verify", c.verify(world(), view, limits).await, errors)?;
        answers.insert(
            "verify".into(),
            answer(&findings, |f: &Vec<restore::Finding>| words::findings(f)),
        );
        let plan = asked("respond", c.respond(world(), view, limits).await, errors)?;
        answers.insert("respond".into(), answer(&plan, words::incident_plan));
        Ok(())
    }
}

/// An error of the plugin's own is an answer; being stopped is none.
fn asked<T>(
    call: &str,
    result: Result<T, SandboxError>,
    errors: &mut Vec<String>,
) -> Result<Result<T, Value>, SandboxError> {
    match result {
        Ok(answer) => Ok(Ok(answer)),
        Err(SandboxError::Guest { error, .. }) => {
            let told = words::error(&error);
            errors.push(format!("{call}: {told}"));
            Ok(Err(told))
        }
        Err(other) => Err(other),
    }
}

fn answer<T>(given: &Result<T, Value>, words: impl Fn(&T) -> Value) -> Value {
    match given {
        Ok(given) => words(given),
        Err(error) => error.clone(),
    }
}

fn log(standing: &Standing) -> Value {
    let level = |level: Level| match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let lines = standing.log();
    lines
        .iter()
        .map(|(l, text)| json!({"level": level(*l), "line": text}))
        .collect()
}

/// The grants as pipeline.toml would give them.
fn config(world: &Path, name: &str, described: &Description) -> ComponentConfig {
    let at = At {
        file: world.to_owned(),
        line: 0,
    };
    let database = |engine: DescribedEngine| DatabaseGrant {
        at: at.clone(),
        source: match engine {
            DescribedEngine::Sqlite => DatabaseSource::Sqlite(PathBuf::new()),
            // Nobody connects.
            DescribedEngine::Postgres => DatabaseSource::Postgres(Secret::Inline {
                at: at.clone(),
                value: String::new(),
            }),
        },
        admin: None,
        owner: None,
    };
    let volume = || VolumeGrant {
        at: at.clone(),
        path: PathBuf::new(),
    };
    ComponentConfig {
        name: name.to_owned(),
        at: at.clone(),
        origin: Use::BuiltIn(String::new()),
        databases: described
            .databases
            .iter()
            .map(|(l, d)| (l.clone(), database(d.engine)))
            .collect(),
        volumes: described.volumes.keys().map(|l| (l.clone(), volume())).collect(),
        settings: described.settings.clone(),
        settings_at: described.settings.keys().map(|k| (k.clone(), at.clone())).collect(),
        limits: described.limits.clone(),
    }
}

/// The backup the later calls are told of: as described, or what the plan would have made of the world.
fn view(described: &Description, description: &Described, plan: Option<&backup::Plan>) -> BackupView {
    let given = described.backup.clone();
    let DescribedBackup {
        component_version,
        facts,
        artifacts,
    } = given.unwrap_or_else(|| made(described, plan));
    BackupView {
        id: "described".into(),
        taken_at_unix_seconds: 0,
        component_version: component_version.unwrap_or_else(|| description.version.clone()),
        facts: facts.into_iter().map(|(key, value)| Fact { key, value }).collect(),
        artifacts: artifacts
            .into_iter()
            .map(|a| Artifact {
                name: a.name,
                kind: a.kind,
                items: a.items,
                size_bytes: a.size_bytes,
            })
            .collect(),
    }
}

fn made(described: &Description, plan: Option<&backup::Plan>) -> DescribedBackup {
    let mut backup = DescribedBackup {
        component_version: None,
        facts: Default::default(),
        artifacts: Vec::new(),
    };
    let mut artifact = |name: String, kind: &str, items: Option<u64>| {
        backup.artifacts.push(described::DescribedArtifact {
            name,
            kind: kind.to_owned(),
            items,
            size_bytes: 0,
        });
    };
    let mut facts = Vec::new();
    for step in plan.map_or(&[][..], |p| &p.steps) {
        match step {
            backup::Step::DumpDatabase(dump) => {
                let label = &dump.database;
                artifact(format!("{label}/ddl-pre-data"), "postgres-ddl", None);
                artifact(format!("{label}/ddl-post-data"), "postgres-ddl", None);
                for (table, told) in described.databases.get(label).iter().flat_map(|d| &d.tables) {
                    if !dump.leave_out_data.iter().any(|rule| matches(&rule.table, table)) {
                        artifact(format!("{label}/{table}"), "postgres-table", Some(told.rows()));
                        facts.push((format!("dumped-rows/{label}/{table}"), told.rows().to_string()));
                    }
                }
            }
            backup::Step::CopySqlite(copy) => artifact(copy.database.clone(), "sqlite", None),
            backup::Step::ArchiveVolume(archive) => {
                let files = described.volumes.get(&archive.volume).map(|v| v.files.len() as u64);
                artifact(archive.volume.clone(), "volume", files);
            }
            backup::Step::RecordFact(fact) => facts.push((fact.key.clone(), fact.value.clone())),
            backup::Step::Note(_) => {}
        }
    }
    backup.facts.extend(facts);
    backup
}

/// Where the answers differ from those that were kept.
fn compare(expect: &Path, answers: &Value) -> Result<Vec<String>, PipelineError> {
    let hint = "make it with --record";
    let bytes = read_file(expect, 64 << 20).map_err(|problem| bad_file(expect, problem, hint))?;
    let kept: Value = serde_json::from_slice(&bytes).map_err(|e| bad_file(expect, e.to_string(), hint))?;
    let mut told = Vec::new();
    differences("", &kept, answers, &mut told);
    Ok(told)
}

pub(crate) fn differences(at: &str, kept: &Value, now: &Value, told: &mut Vec<String>) {
    if kept == now || told.len() >= TOLD {
        return;
    }
    match (kept, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                either(&format!("{at}/{key}"), a.get(key), b.get(key), told);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                either(&format!("{at}/{i}"), a.get(i), b.get(i), told);
            }
        }
        _ => told.push(format!("{at}: expected {kept}, found {now}")),
    }
}

/// What is only in one of them is told too: `null` is something.
fn either(at: &str, kept: Option<&Value>, now: Option<&Value>, told: &mut Vec<String>) {
    match (kept, now) {
        (Some(kept), Some(now)) => differences(at, kept, now, told),
        (Some(kept), None) if told.len() < TOLD => told.push(format!("{at}: expected {kept}, found nothing")),
        (None, Some(now)) if told.len() < TOLD => told.push(format!("{at}: expected nothing, found {now}")),
        _ => {}
    }
}

impl Trial {
    pub fn json(&self) -> Value {
        let mut line = self.answers.clone();
        if let Some(object) = line.as_object_mut() {
            object.insert("event".into(), "plugin-test".into());
            object.insert("differences".into(), json!(self.differences));
        }
        line
    }

    pub fn text(&self) -> String {
        let mut t = String::new();
        for call in ["plan-backup", "plan-restore", "verify", "respond", "log"] {
            t.push_str(call);
            t.push('\n');
            match self.answers.get(call) {
                Some(Value::Array(items)) if items.is_empty() => t.push_str("  nothing\n"),
                Some(Value::Array(items)) => items.iter().for_each(|i| t.push_str(&format!("  {i}\n"))),
                Some(other) => t.push_str(&format!("  {other}\n")),
                None => {}
            }
        }
        if self.differences.as_ref().is_some_and(Vec::is_empty) {
            t.push_str("as expected\n");
        }
        t
    }

    /// Answers that are not the expected ones; without any expected, errors of the plugin's own.
    pub fn into_error(self) -> Result<(), PipelineError> {
        match self.differences {
            Some(differences) if !differences.is_empty() => Err(PipelineError::Findings {
                what: format!("plugin test {}", self.name),
                errors: differences.len(),
                findings: differences,
            }),
            None if !self.errors.is_empty() => Err(PipelineError::component(&self.name, self.errors.join("; "))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_their_place() {
        let mut told = Vec::new();
        let kept = json!({"a": [1, {"b": "x"}], "c": 1});
        differences("", &kept, &kept.clone(), &mut told);
        assert!(told.is_empty());
        differences("", &kept, &json!({"a": [1, {"b": "y"}, 3], "c": 1}), &mut told);
        assert_eq!(
            told,
            ["/a/1/b: expected \"x\", found \"y\"", "/a/2: expected nothing, found 3"]
        );
    }
}
