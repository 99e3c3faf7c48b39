//! The text of the runbook.

use super::text::{cell, code, flat, word};
use super::{DatabaseNeeds, Known, Site, pieces};
use crate::body::{ComponentBody, Severity, Tier};
use crate::config::{Accept, DatabaseSource, Pipeline, Use};
use crate::error::PipelineError;
use crate::time::{now, utc};
use crate::{instant, pace};
use essrun_postgres::quote_ident;
use essrun_store::s3::Credentials;
use std::collections::BTreeSet;
use std::fmt::Write;

// Writing to a String does not fail; `let _` below stands for that.
pub(super) fn write(site: &Site) -> Result<String, PipelineError> {
    let mut t = String::new();
    let _ = writeln!(t, "# Recovery of {}\n", site.pipeline.name);
    let _ = writeln!(
        t,
        "Written {} UTC. Print it, and keep it where the identity is kept.\n",
        utc(now())
    );
    before(&mut t);
    needed(&mut t, site);
    match &site.backup {
        None => t.push_str("## There is no backup yet\n\nNothing can be restored. Run one now.\n\n"),
        Some(known) => {
            what_there_is(&mut t, site.pipeline, known);
            server(&mut t, site.pipeline, &known.databases);
            commands(&mut t, site.pipeline, known);
        }
    }
    pieces::write(&mut t, site)?;
    if let Some(known) = &site.backup {
        said(&mut t, known);
        afterwards(&mut t, site.pipeline);
    }
    Ok(t)
}

fn before(t: &mut String) {
    t.push_str("## Before anything else\n\n");
    t.push_str("1. Stop the backup timer on every host that still runs: `systemctl stop 'essrun@*.timer'`; on Kubernetes `kubectl patch cronjob essrun -p '{\"spec\":{\"suspend\":true}}'`. A backup of a half-restored system would be the newest, and retention might count it.\n");
    t.push_str("2. Keep every client out until the end: close the ingress, scale Synapse and MAS to 0. A client that meets an empty server is told its token is unknown and deletes its encryption keys for good.\n");
    t.push_str(
        "3. Do not delete what is left of the old system. essrun restores beside it and keeps it under a dated name.\n",
    );
    t.push_str("4. Do not let two copies of the server run at once.\n\n");
}

fn needed(t: &mut String, site: &Site) {
    let pipeline = site.pipeline;
    let repository = &pipeline.repository;
    t.push_str("## What you need\n\n");
    let _ = writeln!(t, "- The repository: {}", code(&repository.url));
    if repository.url.starts_with("s3://") {
        store(t, pipeline);
    }
    let _ = writeln!(
        t,
        "- This pipeline file: {}",
        code(&pipeline.file.display().to_string())
    );
    if let Some(policy) = &pipeline.policy {
        for file in policy.files.iter().chain(&policy.data) {
            let _ = writeln!(
                t,
                "- A file of its policy, which is asked before a restore: {}",
                code(&file.path.display().to_string())
            );
        }
        if let Use::File { path, sha256, .. } = &policy.origin {
            let _ = writeln!(
                t,
                "- The policy's interpreter: {} (SHA-256 `{sha256}`)",
                code(&path.display().to_string())
            );
        }
        if let Some(approvals) = &policy.approvals {
            let _ = writeln!(
                t,
                "- Where the policy reads approvals: {}",
                code(&approvals.display().to_string())
            );
        }
    }
    t.push_str("- An identity for one of these recipients. Without it no backup can be opened, by anybody:\n");
    for r in &repository.recipients {
        let _ = writeln!(t, "  - {}, kept at: ______________________________", code(r));
    }
    match &repository.writer_key {
        Some(key) => {
            let _ = writeln!(
                t,
                "- Not needed to restore: the writer key {}. If it is lost, make a new one.",
                code(&key.display().to_string())
            );
        }
        None => t.push_str("- Not needed to restore: a writer key.\n"),
    }
    t.push_str(
        "- essrun itself, and beside it `pg_dump` of no older a major version than the PostgreSQL servers; those servers as told below.\n",
    );
    for c in &pipeline.components {
        if let Use::File { path, sha256, .. } = &c.origin {
            let _ = writeln!(
                t,
                "- The plugin of {}: {} (SHA-256 `{sha256}`)",
                c.name,
                code(&path.display().to_string())
            );
        }
        for (label, grant) in &c.databases {
            match &grant.source {
                DatabaseSource::Postgres(secret) => {
                    let _ = writeln!(
                        t,
                        "- The connection of {}/{label}, from {}",
                        c.name,
                        flat(&secret.origin())
                    );
                }
                DatabaseSource::Sqlite(path) => {
                    let _ = writeln!(
                        t,
                        "- The place of {}/{label}, an SQLite file: {}",
                        c.name,
                        code(&path.display().to_string())
                    );
                }
            }
            if let Some(admin) = &grant.admin {
                let _ = writeln!(
                    t,
                    "- The connection that may create databases for {}/{label}, from {}",
                    c.name,
                    flat(&admin.origin())
                );
            }
        }
        for (label, grant) in &c.volumes {
            let _ = writeln!(
                t,
                "- The place of {}/{label}: {}",
                c.name,
                code(&grant.path.display().to_string())
            );
        }
    }
    t.push('\n');
}

/// How the bucket is reached, and where keys to it come from.
fn store(t: &mut String, pipeline: &Pipeline) {
    let s3 = &pipeline.repository.store.s3;
    if let Some(endpoint) = &s3.endpoint {
        let _ = writeln!(t, "  - at {}", code(endpoint));
    }
    if let Some(region) = &s3.region {
        let _ = writeln!(t, "  - region {}", code(region));
    }
    let profile = |name: &str| format!("profile {} of the shared credentials file", code(name));
    let keys = match &s3.credentials {
        Credentials::Usual => "`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, the role of the Pod or task, or the shared credentials file".to_owned(),
        Credentials::File { path, profile } => format!(
            "profile {} of {}",
            code(profile.as_deref().unwrap_or("default")),
            code(&path.display().to_string())
        ),
        Credentials::Profile(name) => profile(name),
        Credentials::Instance => "the role of the machine (EC2)".to_owned(),
    };
    let _ = writeln!(
        t,
        "  - S3 keys that may list and read it, from: {keys}. Kept at: ______________________________"
    );
}

fn what_there_is(t: &mut String, pipeline: &Pipeline, known: &Known) {
    let _ = writeln!(
        t,
        "## What there is\n\nThe backup this was written about: `{}`, taken {} UTC.",
        known.id,
        utc(known.body.started_at)
    );
    t.push_str("Everything written after the backup you restore is lost. Take the newest proved one from before the damage.\n\n");
    for why in &known.suspect {
        let _ = writeln!(t, "- **SUSPECT**: {}", flat(why));
    }
    match &known.drill {
        Some(d) if d.passed => {
            let _ = writeln!(t, "- Proved: restored in a drill {} UTC.", utc(d.at));
        }
        Some(d) => {
            let _ = writeln!(
                t,
                "- **Its drill FAILED** {} UTC, with {} error(s){}.",
                utc(d.at),
                d.errors,
                d.why.as_ref().map(|w| format!(": {}", flat(w))).unwrap_or_default()
            );
        }
        None => t.push_str("- **Never restored in a drill**: it is not yet known to be good.\n"),
    }
    if let Some((id, at)) = &known.proved {
        let _ = writeln!(t, "- The newest one that passed a drill: `{id}`, on {} UTC.", utc(*at));
    }
    let _ = writeln!(t, "- Restoring it: {}.", flat(&pace::in_words(known.estimate.as_ref())));
    for group in &pipeline.groups {
        let accepted = match group.accept {
            Accept::Instant => "only one instant is accepted",
            Accept::Fence => "one instant, or a fence over several servers, is accepted",
            Accept::Ordered => "one after the other is accepted",
        };
        let reached = known.body.instants.iter().find(|i| i.group == group.name);
        let _ = writeln!(
            t,
            "- Group {}: {} belong together and are restored in one command, from one backup ({accepted}). {}",
            group.name,
            group.components.join(", "),
            match reached {
                Some(instant) => format!("In this backup {}.", flat(&instant::in_words(instant))),
                None => "**This backup does not say what was reached.**".to_owned(),
            }
        );
    }
    for c in &known.body.components {
        if pipeline.component(&c.name).is_none() {
            let _ = writeln!(
                t,
                "- {} is in this backup and not in the pipeline file: to restore it, put its table back.",
                flat(&c.name)
            );
        }
    }
    t.push('\n');
    t.push_str("| order | component | tier | lost without it |\n|---|---|---|---|\n");
    for (n, c) in known.body.components.iter().enumerate() {
        let state = if c.failed.is_some() {
            " **NOT IN THE BACKUP**"
        } else {
            ""
        };
        let _ = writeln!(
            t,
            "| {} | {} ({}){state} | {} | {} |",
            n + 1,
            cell(&c.name),
            cell(&c.system),
            c.tier,
            cell(&c.loss)
        );
    }
    t.push('\n');
}

/// What a server must have before the first restore: a fresh one answers `role-missing` to it.
fn server(t: &mut String, pipeline: &Pipeline, databases: &[DatabaseNeeds]) {
    if databases.is_empty() {
        return;
    }
    t.push_str("## The PostgreSQL servers\n\n");
    let mut roles = BTreeSet::new();
    let mut unknown = false;
    for d in databases {
        let version = d.server_version_number / 10_000;
        let _ = write!(
            t,
            "- {}/{}: database {} of a server of version {version}. Needed: PostgreSQL {version} or newer",
            cell(&d.component),
            cell(&d.label),
            code(&d.database)
        );
        if let (Some(encoding), Some(collate), Some(ctype)) = (&d.encoding, &d.collate, &d.ctype) {
            let _ = write!(
                t,
                ", encoding {}, locale {} / {}",
                flat(encoding),
                code(collate),
                code(ctype)
            );
        }
        if let Some(icu) = &d.icu_locale {
            let _ = write!(t, ", ICU locale {}", code(icu));
        }
        let extensions: Vec<String> = d
            .extensions
            .iter()
            .filter(|(name, _)| *name != "plpgsql")
            .map(|(name, version)| format!("{} {}", code(name), flat(version)))
            .collect();
        if !extensions.is_empty() {
            let _ = write!(t, ", the packages of the extensions {}", extensions.join(", "));
        }
        t.push_str(". essrun makes the database itself.\n");
        let grant = pipeline.component(&d.component).and_then(|c| c.databases.get(&d.label));
        match (grant.and_then(|g| g.owner.as_ref()), &d.owner) {
            // One owner for everything: no other role is needed.
            (Some(owner), _) => {
                roles.insert(owner.clone());
            }
            (None, Some(owner)) => {
                roles.insert(owner.clone());
                roles.extend(d.roles.iter().cloned());
            }
            (None, None) => unknown = true,
        }
    }
    // Every server has these.
    roles.retain(|r| !r.starts_with("pg_") && r != "postgres");
    if !roles.is_empty() {
        t.push_str("\nOn a fresh server make the roles first, as its superuser (leave out those that are there), and give each its password of before with `\\password`:\n\n```sql\n");
        for role in &roles {
            let _ = writeln!(
                t,
                "CREATE ROLE {} LOGIN;",
                quote_ident(role).replace(char::is_control, " ")
            );
        }
        t.push_str("```\n\nThe role essrun connects with must be allowed to make databases (`ALTER ROLE … CREATEDB`) and be a member of the owners above.\n");
    }
    if unknown {
        t.push_str("\nWhich roles are needed is not recorded in this backup: `essrun plan --restore` below names each that is missing (`role-missing`).\n");
    }
    t.push('\n');
}

fn commands(t: &mut String, pipeline: &Pipeline, known: &Known) {
    t.push_str("## Commands, in order\n\n```sh\n");
    let _ = writeln!(t, "P={}", word(&pipeline.file.display().to_string()));
    t.push_str("I=KEY-FILE   # the file with the identity\n");
    let _ = writeln!(
        t,
        "B={}   # the backup; `list` may know a better one\n",
        word(&known.id)
    );
    let restore = "essrun restore \"$P\" --backup \"$B\" --identity \"$I\"";
    t.push_str("essrun check \"$P\"   # is the repository whole? needs no key\n");
    t.push_str("essrun list \"$P\" --identity \"$I\"   # which backups there are, and which were drilled\n");
    t.push_str("essrun show \"$P\" --backup \"$B\" --identity \"$I\"   # what is in it\n");
    t.push_str("essrun plan \"$P\" --restore --backup \"$B\" --identity \"$I\"   # what would happen, and what stands in the way\n");
    let components = known.body.components.iter();
    let whole: Vec<&ComponentBody> = components
        .filter(|c| c.failed.is_none() && pipeline.component(&c.name).is_some())
        .collect();
    let (first, later) = first_and_later(pipeline, &whole);
    let only = |names: &[&str]| names.iter().map(|n| format!(" --only {}", word(n))).collect::<String>();
    if later.is_empty() && whole.len() == pipeline.components.len() {
        let _ = writeln!(t, "{restore}");
    } else {
        if !first.is_empty() {
            let _ = writeln!(
                t,
                "{restore}{}   # the critical ones, and what belongs with them",
                only(&first)
            );
        }
        for together in later {
            let _ = writeln!(t, "{restore}{}", only(&together));
        }
    }
    t.push_str("```\n\n");
    t.push_str("- Each restore shows its plan and asks before it changes anything. Databases and directories that are still there are refused; `--replace` puts them aside under dated names.\n");
    t.push_str("- If one stops in the middle (a lost connection, a full disk): mend the cause and give the same command with `--resume`.\n");
    t.push_str("- `essrun check` with `--identity` reads every byte back, which takes hours: on the day the restore reads what it needs, and checks it.\n\n");
}

/// Names of components in the order of their commands: the critical ones in one, with whatever a group ties to them;
/// then each, or each group.
fn first_and_later<'a>(pipeline: &'a Pipeline, whole: &[&'a ComponentBody]) -> (Vec<&'a str>, Vec<Vec<&'a str>>) {
    let together = |name: &'a str| -> Vec<&'a str> {
        let group = pipeline.groups.iter().find(|g| g.components.iter().any(|c| c == name));
        match group {
            None => vec![name],
            Some(group) => whole
                .iter()
                .map(|c| c.name.as_str())
                .filter(|n| group.components.iter().any(|c| c == n))
                .collect(),
        }
    };
    let mut done = BTreeSet::new();
    let mut first = Vec::new();
    for c in whole.iter().filter(|c| c.tier == Tier::Critical) {
        first.extend(together(&c.name).into_iter().filter(|n| done.insert(*n)));
    }
    let mut later = Vec::new();
    for c in whole {
        let more: Vec<&str> = together(&c.name).into_iter().filter(|n| done.insert(*n)).collect();
        if !more.is_empty() {
            later.push(more);
        }
    }
    (first, later)
}

fn said(t: &mut String, known: &Known) {
    t.push_str("## What each component said when it was backed up\n\n");
    for c in &known.body.components {
        let _ = writeln!(t, "### {}\n", flat(&c.name));
        for (label, source) in &c.sources {
            let _ = writeln!(t, "- {}: was at {}", flat(label), code(source));
        }
        for n in &c.notes {
            match n.severity {
                Severity::Info => {
                    let _ = writeln!(t, "- {}", flat(&n.text));
                }
                _ => {
                    let _ = writeln!(t, "- **look**: {}", flat(&n.text));
                }
            }
        }
        for l in &c.left_out {
            let _ = writeln!(
                t,
                "- not in the backup: {} of {} ({})",
                flat(&l.what),
                flat(&l.label),
                flat(&l.why)
            );
        }
        t.push('\n');
    }
}

fn afterwards(t: &mut String, pipeline: &Pipeline) {
    t.push_str("## Afterwards\n\n");
    t.push_str("1. Start Synapse and MAS; ask `/sync` with a real token, not only `/versions`.\n2. Open the ingress.\n3. Start the bridges, restarted: they remember transaction ids that the restored server will use again.\n");
    if pipeline.repository.writer_key.is_some() {
        t.push_str("4. If the writer key is lost: `essrun keygen writer`, name the file as `writer-key`, and the old and the new public key under `trusted-writers`.\n");
    } else {
        t.push_str("4. Make a writer key: `essrun keygen writer`, and name the file as `writer-key`.\n");
    }
    t.push_str("5. Run a backup, then `essrun drill`; then start the backup timer again.\n6. Tell people what going back means: docs/RUNBOOK.md, \"What a rollback costs\".\n");
}

#[cfg(test)]
mod tests;
