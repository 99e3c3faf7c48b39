//! What is lost when one piece is missing on the day, and what to do then: keys and files of essrun itself, then what each
//! component asked for, then the secrets essrun knows to be in them.

use super::Site;
use super::text::{cell, code};
use crate::body::Class;
use crate::config::Use;
use crate::error::PipelineError;
use crate::known;
use crate::load::Loaded;
use essrun_artifact::Sensitivity;
use essrun_sandbox::contract::types::{Need, NeedKind, NeedRole};
use std::collections::BTreeSet;
use std::fmt::Write;

/// One row: the piece, what is lost without it, what to do instead.
struct Row {
    piece: String,
    without: String,
    instead: String,
}

// Writing to a String does not fail; `let _` below stands for that.
pub(super) fn write(t: &mut String, site: &Site) -> Result<(), PipelineError> {
    t.push_str("## If a piece is missing\n\n| missing | what is lost | what to do |\n|---|---|---|\n");
    for row in own(site) {
        let _ = writeln!(
            t,
            "| {} | {} | {} |",
            cell(&row.piece),
            cell(&row.without),
            cell(&row.instead)
        );
    }
    // A secret that several components may hold is told once.
    let mut told = BTreeSet::new();
    for one in &site.loaded {
        for loss in known::losses(&one.description.system)? {
            if told.insert(loss.piece.as_str()) {
                let _ = writeln!(
                    t,
                    "| {}: {} | {} | {} |",
                    one.name(),
                    cell(&loss.piece),
                    cell(&loss.without),
                    cell(&loss.instead)
                );
            }
        }
    }
    t.push_str("\nWhat each component asks for, and whether it is in a backup:\n\n");
    t.push_str("| piece | what it is | what it holds | in the backup |\n|---|---|---|---|\n");
    for one in &site.loaded {
        for need in one.description.needs.iter().filter(|n| n.role == NeedRole::Owned) {
            let granted = granted(one, need);
            // What a pipeline may grant under any name, and does not, is missing to nobody.
            if !granted && !need.required && one.description.system == "Generic" {
                continue;
            }
            let _ = writeln!(
                t,
                "| {}/{} | {} | {} | {} |",
                one.name(),
                cell(&need.label),
                cell(&need.purpose),
                cell(&holds(&one.classes, &need.label)),
                held(site, one, need, granted)
            );
        }
    }
    for why in &site.unasked {
        let _ = writeln!(
            t,
            "\n**look**: what is needed is not known of all components: {}",
            cell(why)
        );
    }
    t.push('\n');
    Ok(())
}

fn granted(one: &Loaded, need: &Need) -> bool {
    match need.kind {
        NeedKind::Database => one.config.databases.contains_key(&need.label),
        NeedKind::Volume => one.config.volumes.contains_key(&need.label),
    }
}

/// The secrets a component says are in all of what a label stands for; those of single tables would fill pages.
fn holds(classes: &[Class], label: &str) -> String {
    let whole = |c: &&Class| c.pattern.trim_end_matches('*') == label && c.sensitivity == Sensitivity::Secret;
    let mut said: Vec<&str> = classes.iter().filter(whole).map(|c| c.exposes.as_str()).collect();
    said.dedup();
    said.join("; ")
}

fn held(site: &Site, one: &Loaded, need: &Need, granted: bool) -> String {
    if !granted {
        return "**no**: not granted in the pipeline file, so in no backup; where it exists, keep it by other means"
            .to_owned();
    }
    let Some(known) = &site.backup else {
        return "no backup yet".to_owned();
    };
    if let Some(why) = known.body.component(one.name()).and_then(|c| c.failed.as_ref()) {
        return format!("**NO**: {}", cell(why));
    }
    let below = format!("{}/{}", one.name(), need.label);
    let own = |name: &str| {
        name.strip_prefix(&below)
            .is_some_and(|r| r.is_empty() || r.starts_with('/'))
    };
    match known.artifacts.iter().filter(|a| own(a.name.as_str())).count() {
        0 => "**NO**: not in this backup".to_owned(),
        n => format!("yes, {n} artifact(s)"),
    }
}

/// What belongs to essrun.
fn own(site: &Site) -> Vec<Row> {
    let row = |piece: &str, without: &str, instead: &str| Row {
        piece: piece.to_owned(),
        without: without.to_owned(),
        instead: instead.to_owned(),
    };
    let repository = &site.pipeline.repository;
    let mut rows = vec![row(
        "the identity",
        match repository.recipients.len() {
            0 | 1 => "everything: there is one recipient, and nobody else opens what is sealed to it",
            _ => "nothing while another recipient's identity is there; without any of them everything",
        },
        "look where the list above says that each is kept; no one can make it again",
    )];
    rows.push(row(
        "this pipeline file",
        "nothing of the data",
        "write it again: what is needed of it stands on this page",
    ));
    rows.push(row(
        "the writer key",
        "nothing: all commands below do without it",
        "before the next backup `essrun keygen writer`, name the new file as writer-key and both public keys under \
         trusted-writers; that backup stores everything anew",
    ));
    rows.push(row(
        &format!("the state directory ({})", repository.state.display()),
        "that this host would notice an older repository in place of the present one",
        "compare the newest backup of `essrun list` with the one named here: a list that ends before it was rolled back",
    ));
    rows.push(row(
        &format!("the cache ({})", repository.cache.display()),
        "nothing but time",
        "it is made anew",
    ));
    if site.pipeline.policy.is_some() {
        rows.push(row(
            "a file of [policy]",
            "nothing, but no restore goes ahead: a policy that cannot be asked refuses",
            "take [policy] out of the pipeline file, if whoever made the policy agrees",
        ));
    }
    for c in &site.pipeline.components {
        if let Use::File { path, sha256, .. } = &c.origin {
            rows.push(row(
                &format!("the plugin of {}: {}", c.name, code(&path.display().to_string())),
                "no restore of this component is verified; its artifacts are there",
                &format!(
                    "get the file with SHA-256 {sha256} again; else `essrun extract` hands the artifacts out one by one"
                ),
            ));
        }
    }
    rows
}
