//! The runbook for the person at 3 a.m., who may never have seen essrun: what is lost, what is needed, in which order,
//! and the exact commands. Made from the pipeline and the newest backup's manifest; meant to be printed and kept with
//! the identity, so it must never hold a secret.

use crate::body::{BackupBody, ComponentBody, Severity};
use crate::config::{DatabaseSource, Pipeline, Use};
use crate::error::PipelineError;
use crate::repo;
use crate::time::{now, utc};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Runbook {
    pub event: &'static str,
    pub pipeline: String,
    pub markdown: String,
}

/// Makes the runbook. Without any backup it still says what would be needed.
pub async fn runbook(pipeline: &Pipeline, wanted: &str, identity: &[PathBuf]) -> Result<Runbook, PipelineError> {
    let repository = repo::open_to_read(pipeline, identity).await?;
    let none_yet = repository
        .backups()
        .await
        .map_err(PipelineError::repository)?
        .is_empty();
    let shown = match none_yet {
        true => None,
        false => {
            let backup = repository.read(wanted).await.map_err(PipelineError::repository)?;
            Some((backup.summary().id.to_string(), repo::body(backup.summary())?))
        }
    };
    Ok(Runbook {
        event: "runbook",
        pipeline: pipeline.name.clone(),
        markdown: write(pipeline, shown.as_ref()),
    })
}

impl Runbook {
    pub fn markdown(&self) -> String {
        self.markdown.clone()
    }

    /// Writes it as Markdown, or as HTML when the name ends in `.html`.
    pub fn write(&self, file: &Path) -> Result<(), PipelineError> {
        let text = match file.extension().and_then(|e| e.to_str()) {
            Some("html" | "htm") => html(&self.markdown),
            _ => self.markdown.clone(),
        };
        std::fs::write(file, text).map_err(|e| PipelineError::source(file.display().to_string(), e))
    }
}

// Writing to a String does not fail; `let _` below stands for that.
fn write(pipeline: &Pipeline, backup: Option<&(String, BackupBody)>) -> String {
    let file = pipeline.file.display();
    let mut t = String::new();
    let _ = writeln!(t, "# Recovery of {}\n", pipeline.name);
    let _ = writeln!(
        t,
        "Written {} UTC. Print it, and keep it where the identity is kept.\n",
        utc(now())
    );
    t.push_str("## Before anything else\n\n");
    t.push_str("1. Keep every client out until the end: close the ingress, scale Synapse and MAS to 0. A client that meets an empty server is told its token is unknown and deletes its encryption keys for good.\n");
    t.push_str(
        "2. Do not delete what is left of the old system. essrun restores beside it and keeps it under a dated name.\n",
    );
    t.push_str("3. Do not let two copies of the server run at once.\n\n");
    t.push_str("## What you need\n\n");
    let _ = writeln!(t, "- The repository: `{}`", pipeline.repository.url);
    let _ = writeln!(t, "- This pipeline file: `{file}`");
    t.push_str("- An identity for one of these recipients. Without it no backup can be opened, by anybody:\n");
    for r in &pipeline.repository.recipients {
        let _ = writeln!(t, "  - `{r}`, kept at: ______________________________");
    }
    match &pipeline.repository.writer_key {
        Some(key) => {
            let _ = writeln!(
                t,
                "- Not needed to restore: the writer key `{}`. If it is lost, make a new one.",
                key.display()
            );
        }
        None => t.push_str("- Not needed to restore: a writer key.\n"),
    }
    t.push_str(
        "- A PostgreSQL server no older than the one that was backed up, with a role that may create databases.\n",
    );
    for c in &pipeline.components {
        if let Use::File { path, sha256, .. } = &c.origin {
            let _ = writeln!(
                t,
                "- The plugin of {}: `{}` (SHA-256 `{sha256}`)",
                c.name,
                path.display()
            );
        }
        for (label, grant) in &c.databases {
            if let DatabaseSource::Postgres(secret) = &grant.source {
                let _ = writeln!(t, "- The connection of {}/{label}, from {}", c.name, secret.origin());
            }
        }
    }
    t.push('\n');
    match backup {
        None => t.push_str("## There is no backup yet\n\nNothing can be restored. Run one now.\n"),
        Some((id, body)) => with_backup(&mut t, pipeline, id, body),
    }
    t
}

fn with_backup(t: &mut String, pipeline: &Pipeline, id: &str, body: &BackupBody) {
    let file = pipeline.file.display();
    let _ = writeln!(
        t,
        "## What there is\n\nNewest backup when this was written: `{id}`, taken {} UTC.",
        utc(body.started_at)
    );
    t.push_str("Everything written after the backup you restore is lost.\n\n");
    let mut components: Vec<&ComponentBody> = body.components.iter().collect();
    components.sort_by_key(|c| (c.tier, c.name.clone()));
    t.push_str("| order | component | tier | lost without it |\n|---|---|---|---|\n");
    for (n, c) in components.iter().enumerate() {
        let state = if c.failed.is_some() {
            " **NOT IN THE BACKUP**"
        } else {
            ""
        };
        let _ = writeln!(
            t,
            "| {} | {} ({}){state} | {} | {} |",
            n + 1,
            c.name,
            c.system,
            c.tier,
            c.loss.replace('|', "/")
        );
    }
    t.push_str("\n## Commands, in order\n\n");
    let _ = writeln!(
        t,
        "```sh\nessrun list {file}                      # which backups there are\nessrun check {file} --identity KEY-FILE # is the repository whole?\nessrun plan {file} --restore --identity KEY-FILE   # what would happen, and what stands in the way"
    );
    let critical: Vec<_> = components
        .iter()
        .filter(|c| c.tier == crate::body::Tier::Critical && c.failed.is_none())
        .collect();
    if !critical.is_empty() && critical.len() < components.len() {
        let only: Vec<String> = critical.iter().map(|c| format!("--only {}", c.name)).collect();
        let _ = writeln!(
            t,
            "essrun restore {file} --identity KEY-FILE {}   # the critical ones first",
            only.join(" ")
        );
        for c in components
            .iter()
            .filter(|c| c.tier != crate::body::Tier::Critical && c.failed.is_none())
        {
            let _ = writeln!(t, "essrun restore {file} --identity KEY-FILE --only {}", c.name);
        }
    } else {
        let _ = writeln!(t, "essrun restore {file} --identity KEY-FILE");
    }
    t.push_str("```\n\nDatabases and directories that are still there are refused; `--replace` puts them aside under dated names.\n\n");
    t.push_str("## What each component said when it was backed up\n\n");
    for c in components {
        let _ = writeln!(t, "### {}\n", c.name);
        for (label, source) in &c.sources {
            let _ = writeln!(t, "- {label}: was at `{source}`");
        }
        for n in &c.notes {
            let mark = if n.severity == Severity::Info { "" } else { "**look**: " };
            let _ = writeln!(t, "- {mark}{}", n.text);
        }
        for l in &c.left_out {
            let _ = writeln!(t, "- not in the backup: {} of {} ({})", l.what, l.label, l.why);
        }
        t.push('\n');
    }
    t.push_str("## Afterwards\n\n");
    t.push_str("1. Start Synapse and MAS; ask `/sync` with a real token, not only `/versions`.\n2. Restart every bridge: they remember transaction ids that the restored server will use again.\n3. Open the ingress.\n4. Run a backup, then `essrun drill`.\n");
}

/// A plain page: the Markdown as text, readable and printable anywhere.
fn html(markdown: &str) -> String {
    let escaped = markdown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>Recovery</title><style>body{{font:12pt/1.4 monospace;\
         max-width:60em;margin:2em auto;white-space:pre-wrap;overflow-wrap:anywhere}}</style><body>{escaped}</body>\n"
    )
}
