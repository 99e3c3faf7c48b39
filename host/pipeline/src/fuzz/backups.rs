//! What is weighed of backups: how each stands by what is noted beside it, what a group of databases reached, and whether
//! two artifacts are the same.

use super::a_pipeline;
use crate::body::BackupBody;
use crate::diff;
use crate::instant;
use crate::pace;
use crate::peers;
use crate::policy::{ids, input};
use crate::repo::{DRILL, DrillNote, Listed};
use crate::restore::view;
use crate::retention::{Group, rules};
use crate::standing::{ACCEPTED, SUSPECT, Standing, State};
use crate::{order, status};
use essrun_artifact::ArtifactRecord;
use essrun_postgres::dump;
use essrun_repository::retention::decide;
use essrun_repository::{Annotation, BackupSummary};
use serde::Deserialize;

/// Backups with what is noted beside them, and when they are looked at.
#[derive(Deserialize)]
struct Repository {
    now: i64,
    #[serde(default)]
    last: u32,
    #[serde(default)]
    daily: u32,
    #[serde(default)]
    within: Option<String>,
    backups: Vec<(BackupSummary, Vec<Annotation>)>,
}

/// How backups stand, what `status` and a policy are told of them, and which are kept.
pub fn standing(data: &[u8]) {
    let Ok(all) = serde_json::from_slice::<Repository>(data) else {
        return;
    };
    let mut group = Group::default();
    let (mut listed, mut told) = (Vec::new(), Vec::new());
    for (summary, notes) in &all.backups {
        let standing = match Standing::with(summary, notes) {
            Ok(standing) => standing,
            Err(e) => {
                assert!(e.to_string().contains("backup "), "it does not say which: {e}");
                return;
            }
        };
        stands(&standing, notes);
        told.push(input::Backup::known(summary, &standing));
        group.add(summary.clone(), &standing);
        listed.push(Listed::of(summary, standing));
    }
    input::newest_first(&mut told);
    assert!(
        told.windows(2)
            .all(|w| w[0].taken_at_unix_seconds >= w[1].taken_at_unix_seconds)
    );
    let json = serde_json::json!({ "backups": told }).to_string();
    assert!(told.iter().all(|b| ids(&json).contains(&b.id)));
    let status = status::judge(a_pipeline(), &listed, all.now);
    for c in &status.components {
        let newest = c.newest.as_ref().map(|n| &n.backup);
        let odd = |id: &String| listed.iter().filter(|l| l.id == *id).all(|l| l.state == State::Suspect);
        assert!(!newest.is_some_and(odd), "what is suspect is no backup");
    }
    assert!(status.text(|bytes| bytes.to_string()).lines().count() >= 3);
    for bytes in [0, 1, u64::MAX] {
        if let Ok(estimate) = pace::newest(&all.backups, "p", bytes, bytes) {
            assert!(!pace::in_words(estimate.as_ref()).is_empty());
            if let Some(estimate) = estimate {
                let of = listed.iter().find(|l| l.id == estimate.measured_with);
                assert!(of.is_some_and(|l| l.drill.as_ref().is_some_and(|d| d.passed)) || listed.len() > 1);
            }
        }
    }
    keeps(&all, group);
}

fn stands(standing: &Standing, notes: &[Annotation]) {
    let missing = standing.body.as_ref().is_some_and(|b| !b.missing().is_empty());
    assert_eq!(standing.state == State::Suspect, !standing.suspect.is_empty());
    assert!(standing.state != State::Normal || !missing);
    // What was found odd last counts.
    let last = |kind: &str| notes.iter().filter(|n| n.kind == kind).map(|n| n.created_at).max();
    if last(SUSPECT).is_some_and(|odd| last(ACCEPTED).is_none_or(|good| odd >= good)) {
        assert_eq!(standing.state, State::Suspect);
    }
    if let Some(judged) = standing.body.as_ref().and_then(|b| b.judgement.as_ref()) {
        assert!(!judged.suspect || last(ACCEPTED).is_some() || standing.state == State::Suspect);
    }
    // Proved is only what no drill of the newest failed.
    let newest = notes
        .iter()
        .filter(|n| n.kind == DRILL && Some(n.created_at) == last(DRILL));
    let mut newest = newest.map(|n| serde_json::from_value::<DrillNote>(n.body.clone()).unwrap());
    assert_eq!(
        standing.verified_at().is_some(),
        last(DRILL).is_some() && newest.all(|n| n.passed)
    );
}

/// What no rule may let go of.
fn keeps(all: &Repository, group: Group) {
    let mut config = a_retention(all);
    let Ok(rules) = rules(&config) else { return };
    config.within = None;
    let decisions = decide(&rules, &group.candidates, all.now);
    assert_eq!(decisions.len(), group.candidates.len());
    assert!(decisions.iter().all(|d| !d.reasons.is_empty()));
    // One id twice is told apart by nobody, and kept twice.
    let mut seen = std::collections::BTreeSet::new();
    if !group.candidates.iter().all(|c| seen.insert(c.id.clone())) {
        return;
    }
    let kept = |id| decisions.iter().any(|d| d.id == id && d.keep);
    let age = |c: &&essrun_repository::retention::Candidate| (c.created_at, c.sequence, c.id.clone());
    let now = all.now.saturating_add(600);
    let past = || group.candidates.iter().filter(|c| c.created_at <= now);
    for must in [
        past().filter(|c| !c.suspect && !c.incomplete).max_by_key(age),
        past().filter(|c| c.verified).max_by_key(age),
        past().filter(|c| c.verified && !c.suspect).max_by_key(age),
        group.candidates.iter().max_by_key(age).filter(|c| c.created_at > now),
    ] {
        assert!(must.is_none_or(|c| kept(c.id.clone())), "{must:?} goes");
    }
    assert!(
        decisions.is_empty() || decisions.iter().any(|d| d.keep),
        "nothing is left"
    );
}

fn a_retention(all: &Repository) -> crate::config::RetentionConfig {
    crate::config::RetentionConfig {
        at: None,
        last: Some(all.last),
        hourly: None,
        daily: Some(all.daily),
        weekly: None,
        monthly: None,
        yearly: None,
        within: all.within.clone(),
        time_zone: None,
    }
}

/// Which databases were taken together, and in which order components come back.
pub fn instants(data: &[u8]) {
    #[derive(Deserialize)]
    struct Backup {
        body: BackupBody,
        #[serde(default)]
        artifacts: Vec<ArtifactRecord>,
    }
    let Ok(Backup { mut body, artifacts }) = serde_json::from_slice(data) else {
        return;
    };
    super::texts::reads(&body);
    for group in &body.instants {
        let words = instant::in_words(group);
        assert!(group.databases.iter().all(|d| words.contains(d.as_str())), "{words}");
        assert!(!view::how(group).is_empty() || group.reached["how"] == "");
        if let Ok(reached) = serde_json::from_value::<essrun_postgres::Reached>(group.reached.clone()) {
            let written = serde_json::to_value(&reached).unwrap();
            assert_eq!(
                serde_json::from_value::<essrun_postgres::Reached>(written).unwrap(),
                reached
            );
            for member in &reached.members {
                let (_, at) = view::taken(&body, |label| label == member.label).unwrap();
                assert!(at >= 0);
            }
        }
    }
    let names = |body: &BackupBody| {
        let mut names: Vec<String> = body.components.iter().map(|c| c.name.clone()).collect();
        names.sort();
        names
    };
    for component in &body.components {
        for peer in peers::all_taken_as(component) {
            assert!(component.facts.iter().any(|f| f.value == peer));
        }
    }
    let before = names(&body);
    order::recorded(&mut body, &artifacts);
    assert_eq!(names(&body), before);
    assert!(body.components.windows(2).all(|w| w[0].tier <= w[1].tier));
    let once = body.clone();
    order::recorded(&mut body, &artifacts);
    assert_eq!(names(&body), names(&once));
}

/// Two artifacts: what cannot be compared is not the same.
pub fn compare(data: &[u8]) {
    let Ok((one, other)) = serde_json::from_slice::<(ArtifactRecord, ArtifactRecord)>(data) else {
        return;
    };
    assert_eq!(diff::same(&one, &other), diff::same(&other, &one));
    assert!(diff::same(&one, &one));
    if !diff::same(&one, &other) {
        return;
    }
    assert_eq!(one.kind, other.kind);
    let told = |r: &ArtifactRecord, key: &str| r.meta.get(key).cloned().filter(|v| !v.is_null());
    if one.kind == dump::KIND_FACTS {
        let schema = |r: &ArtifactRecord| told(r, "schema_digest");
        assert!(schema(&one).is_some() && schema(&one) == schema(&other) || one.meta == other.meta);
        return;
    }
    if one.content == other.content && one.meta.get("parts") == other.meta.get("parts") {
        return;
    }
    let digests = |r: &ArtifactRecord| -> Vec<Option<String>> {
        let of = |v: &serde_json::Value| v.get("digest").and_then(|d| d.as_str()).map(str::to_owned);
        match r.kind == dump::KIND_TABLE {
            true => r.meta["parts"].as_array().unwrap().iter().map(of).collect(),
            false => vec![of(&r.meta)],
        }
    };
    let (a, b) = (digests(&one), digests(&other));
    assert!(a == b && !a.is_empty() && a.iter().all(Option::is_some), "{a:?} {b:?}");
}
