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
            let backup = repo::read(pipeline, &repository, wanted).await?;
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
            Some("html" | "htm") => html(&self.pipeline, &self.markdown),
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

/// The style of the page: nothing from elsewhere, so that it shows and prints on any machine there is that day.
const STYLE: &str = "\
:root { color-scheme: light }
body { font: 11pt/1.45 sans-serif; max-width: 48em; margin: 2em auto; padding: 0 1em; color: #000; background: #fff }
h1 { border-bottom: 3px solid; padding-bottom: .2em }
h2 { border-bottom: 1px solid; margin-top: 1.6em }
code, pre { font-family: monospace; overflow-wrap: anywhere }
pre { border: 1px solid #666; padding: .7em; white-space: pre-wrap; font-size: 10pt }
table { border-collapse: collapse; width: 100% }
th, td { border: 1px solid #666; padding: .3em .5em; text-align: left; vertical-align: top }
li { margin: .25em 0 }
@page { margin: 18mm 15mm }
@media print { body { margin: 0; max-width: none; padding: 0 } h1, h2, h3 { break-after: avoid } pre, tr, li { break-inside: avoid } thead { display: table-header-group } }
";

/// A page of its own, readable and printable anywhere. What looks like HTML in the runbook is text: it comes from
/// components and manifests. There is nothing to click, and nothing is loaded.
fn html(title: &str, markdown: &str) -> String {
    use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};
    let inert = Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(|event| match event {
        Event::Html(text) | Event::InlineHtml(text) => Some(Event::Text(text)),
        Event::Start(Tag::Link { .. } | Tag::Image { .. } | Tag::HtmlBlock)
        | Event::End(TagEnd::Link | TagEnd::Image | TagEnd::HtmlBlock) => None,
        other => Some(other),
    });
    let mut body = String::new();
    pulldown_cmark::html::push_html(&mut body, inert);
    let mut name = String::new();
    pulldown_cmark::html::push_html(&mut name, std::iter::once(Event::Text(CowStr::from(title))));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Recovery of {name}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_the_runbook_says_and_runs_nothing_of_it() {
        let page = html(
            "a<b>",
            "# R\n\n- x <script>alert(1)</script> ![i](http://h/i) [l](javascript:x)\n\n<img src=x onerror=y>\n\n\
             | a | b |\n|---|---|\n| `c<d` | **e** |\n\n```sh\nrun <x>\n```\n",
        );
        for shown in [
            "<title>Recovery of a&lt;b&gt;</title>",
            "<h1>R</h1>",
            "&lt;script&gt;alert(1)&lt;/script&gt; i l",
            "&lt;img src=x onerror=y&gt;",
            "<td><code>c&lt;d</code></td><td><strong>e</strong></td>",
            "run &lt;x&gt;",
        ] {
            assert!(page.contains(shown), "{shown} is not in {page}");
        }
        for never in ["<script", "<img", "<a ", "http://"] {
            assert!(!page.contains(never), "{never} is in {page}");
        }
    }
}
