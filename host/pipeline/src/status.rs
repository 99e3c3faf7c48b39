//! How things stand: the newest backup of each component, the last drill, what is missing, how large it all is.
//!
//! It reads the repository only, so it can be asked often and by a monitor: with `[status]` in the pipeline it fails when
//! a component's newest backup, or the last passed drill, is too old. A component that is in no backup is too old.

use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::keys;
use crate::pace::duration;
use crate::repo::{self, DrillNote, Listed};
use crate::standing::State;
use crate::time::{now, utc};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    pub event: &'static str,
    pub pipeline: String,
    pub at: i64,
    pub backups: usize,
    pub components: Vec<ComponentStatus>,
    /// Suspect backups newer than the newest that is not, with reasons.
    pub suspect: Vec<SuspectBackup>,
    pub last_drill: Option<Drilled>,
    pub repository_objects: usize,
    pub repository_bytes: u64,
    /// What the pipeline's `[status]` calls wrong.
    pub problems: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ComponentStatus {
    pub component: String,
    /// The newest backup that holds it and is not suspect; absent when none does.
    pub newest: Option<Newest>,
    /// Why the newest backup of all does not hold it.
    pub missing: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Newest {
    pub backup: String,
    pub taken_at: i64,
    pub age_seconds: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SuspectBackup {
    pub backup: String,
    pub reasons: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Drilled {
    pub backup: String,
    #[serde(flatten)]
    pub note: DrillNote,
}

/// Asks the repository, with the writer key or an identity.
pub async fn status(pipeline: &Pipeline, identity: &[PathBuf]) -> Result<Status, PipelineError> {
    let mut listed = repo::list(pipeline, identity).await?;
    // Without any key it would say of every component that it is in no backup.
    let keyless = identity.is_empty() && keys::writer_if_there(pipeline)?.is_none();
    if keyless && !listed.is_empty() {
        return Err(PipelineError::refused(
            format!(
                "no key here opens what the {} backup(s) say of themselves",
                listed.len()
            ),
            "run where the writer key is, or give --identity",
        ));
    }
    // Another host's or pipeline's backups say nothing of this pipeline's components, even where an identity opens them.
    listed.retain(|b| b.pipeline.as_ref() == Some(&pipeline.name));
    let store = repo::store(pipeline)?;
    let objects = store.list("").await.map_err(PipelineError::repository)?;
    let mut status = judge(pipeline, &listed, now());
    status.repository_objects = objects.len();
    status.repository_bytes = objects.iter().map(|o| o.bytes).sum();
    Ok(status)
}

/// What a list of backups, oldest first, means at a given time.
pub(crate) fn judge(pipeline: &Pipeline, listed: &[Listed], now: i64) -> Status {
    let age = |at: i64| u64::try_from(now.saturating_sub(at)).unwrap_or(0);
    let components: Vec<ComponentStatus> = pipeline
        .components
        .iter()
        .map(|c| {
            // What is suspect may be no backup at all: it makes none look younger.
            let newest = listed
                .iter()
                .rev()
                .find(|b| b.state != State::Suspect && b.components.contains(&c.name));
            let prefix = format!("{}: ", c.name);
            ComponentStatus {
                component: c.name.clone(),
                newest: newest.map(|b| Newest {
                    backup: b.id.clone(),
                    taken_at: b.taken_at,
                    age_seconds: age(b.taken_at),
                }),
                missing: listed
                    .last()
                    .filter(|b| !b.components.contains(&c.name))
                    .map(|b| b.missing.iter().find_map(|m| m.strip_prefix(&prefix)))
                    .map(|why| why.unwrap_or("it was not asked for").to_owned()),
            }
        })
        .collect();
    let suspect = listed
        .iter()
        .rev()
        .take_while(|b| b.state == State::Suspect)
        .map(|b| SuspectBackup {
            backup: b.id.clone(),
            reasons: b.suspect.clone(),
        })
        .collect();
    let drills = || listed.iter().filter_map(|b| b.drill.as_ref().map(|d| (b, d)));
    let last_drill = drills().max_by_key(|(_, d)| d.at).map(|(b, note)| Drilled {
        backup: b.id.clone(),
        note: note.clone(),
    });
    let mut problems = Vec::new();
    if let Some(most) = pipeline.status.max_age {
        for c in &components {
            match &c.newest {
                None => problems.push(format!("{}: no backup holds it", c.component)),
                Some(n) if n.age_seconds > most => problems.push(format!(
                    "{}: its newest backup is {} old, {} are allowed",
                    c.component,
                    duration(n.age_seconds),
                    duration(most)
                )),
                Some(_) => {}
            }
        }
    }
    if let Some(most) = pipeline.status.max_drill_age {
        match drills().filter(|(_, d)| d.passed).map(|(_, d)| d.at).max() {
            None => problems.push("no drill has passed yet".to_owned()),
            Some(at) if age(at) > most => problems.push(format!(
                "the last passed drill was {} ago, {} are allowed",
                duration(age(at)),
                duration(most)
            )),
            Some(_) => {}
        }
    }
    Status {
        event: "status",
        pipeline: pipeline.name.clone(),
        at: now,
        backups: listed.len(),
        components,
        suspect,
        last_drill,
        repository_objects: 0,
        repository_bytes: 0,
        problems,
    }
}

impl Status {
    /// In words; `human` writes a size.
    pub fn text(&self, human: impl Fn(u64) -> String) -> String {
        use std::fmt::Write;
        let mut t = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(
            t,
            "{}: {} backup(s), {} in {} objects",
            self.pipeline,
            self.backups,
            human(self.repository_bytes),
            self.repository_objects
        );
        for c in &self.components {
            let newest = match &c.newest {
                None => "IN NO BACKUP".to_owned(),
                Some(n) => format!(
                    "newest {} UTC, {} ago ({})",
                    utc(n.taken_at),
                    duration(n.age_seconds),
                    n.backup
                ),
            };
            let _ = writeln!(t, "  {:<20} {newest}", c.component);
            if let Some(why) = &c.missing {
                let _ = writeln!(t, "  {:<20} not in the newest backup: {why}", "");
            }
        }
        for s in &self.suspect {
            let _ = writeln!(t, "SUSPECT {}: {}", s.backup, s.reasons.join("; "));
        }
        match &self.last_drill {
            None => t.push_str("no drill yet: whether a restore works is not known\n"),
            Some(d) => {
                let _ = writeln!(
                    t,
                    "last drill {} UTC, of backup {}: {}",
                    utc(d.note.at),
                    d.backup,
                    match (d.note.passed, &d.note.why) {
                        (true, _) => format!("passed, {} warning(s)", d.note.warnings),
                        (false, None) => format!("FAILED, {} error(s)", d.note.errors),
                        (false, Some(why)) => format!("FAILED: {why}"),
                    }
                );
            }
        }
        for p in &self.problems {
            let _ = writeln!(t, "PROBLEM {p}");
        }
        t
    }

    pub fn into_error(self) -> Result<(), PipelineError> {
        match self.problems.len() {
            0 => Ok(()),
            errors => Err(PipelineError::Findings {
                what: "status".into(),
                errors,
                findings: self.problems,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn pipeline(status: &str) -> Pipeline {
        let text = format!(
            "version = 1\nname = \"x\"\n[repository]\nurl = \"r\"\n[components.a]\nuse = \"generic\"\n\
             [components.b]\nuse = \"generic\"\n{status}"
        );
        Pipeline::parse(Path::new("p.toml"), &text).unwrap()
    }

    fn backup(id: &str, at: i64, components: &[&str], drill: Option<(i64, bool)>) -> Listed {
        Listed {
            id: id.into(),
            writer: "0123456789abcdef".into(),
            readable: true,
            pipeline: Some("x".into()),
            taken_at: at,
            bytes: Some(1),
            stored_bytes: Some(1),
            state: State::Normal,
            suspect: vec![],
            missing: vec!["b: its server was down".into()],
            components: components.iter().map(|c| (*c).to_owned()).collect(),
            drill: drill.map(|(at, passed)| DrillNote {
                at,
                passed,
                errors: usize::from(!passed),
                warnings: 0,
                why: None,
                pace: None,
            }),
            lost_objects: 0,
        }
    }

    #[test]
    fn each_component_has_its_own_newest_backup() {
        let listed = [
            backup("one", 1_000, &["a", "b"], Some((5_000, true))),
            backup("two", 2_000, &["a"], Some((3_000, false))),
        ];
        let s = judge(&pipeline(""), &listed, 9_000);
        assert_eq!(s.components[0].newest.as_ref().unwrap().backup, "two");
        assert_eq!(s.components[0].missing, None);
        assert_eq!(s.components[1].newest.as_ref().unwrap().age_seconds, 8_000);
        assert_eq!(s.components[1].missing.as_deref(), Some("its server was down"));
        assert_eq!(s.last_drill.as_ref().unwrap().backup, "one", "by when it was done");
        assert!(s.problems.is_empty(), "nothing is asked for");
        let text = s.text(|n| n.to_string());
        assert!(text.contains("not in the newest backup: its server was down"), "{text}");
    }

    #[test]
    fn a_suspect_backup_makes_none_younger() {
        let mut odd = backup("two", 2_000, &["a", "b"], None);
        odd.state = State::Suspect;
        odd.suspect = vec!["a table vanished".into()];
        let listed = [backup("one", 1_000, &["a", "b"], None), odd];
        let s = judge(&pipeline(""), &listed, 9_000);
        assert_eq!(s.components[0].newest.as_ref().unwrap().backup, "one");
        assert_eq!(s.suspect[0].backup, "two");
        assert!(s.text(|n| n.to_string()).contains("SUSPECT two: a table vanished"));
        // One that is followed by a good one is history.
        let listed: Vec<_> = listed.into_iter().rev().collect();
        assert!(judge(&pipeline(""), &listed, 9_000).suspect.is_empty());
    }

    #[test]
    fn what_is_too_old_is_a_problem() {
        let p = pipeline("[status]\nmax-age = \"1h\"\nmax-drill-age = \"2d\"\n");
        let listed = [
            backup("one", 1_000, &["a", "b"], Some((1_000, true))),
            backup("two", 5_000, &["a"], Some((9_000, false))),
        ];
        let judged = |now| judge(&p, &listed, now).problems;
        assert_eq!(judged(4_600), Vec::<String>::new(), "at the limit");
        assert_eq!(judged(4_601).len(), 1, "b is in the older one only");
        assert_eq!(judged(8_601).len(), 2);
        assert_eq!(judged(1_001 + 2 * 86_400).len(), 3, "a failed drill is none");
        assert_eq!(judge(&p, &[], 0).problems.len(), 3, "no backup at all");
        assert!(judge(&p, &[], 0).into_error().is_err());
    }

    #[test]
    fn lengths_of_time_are_checked() {
        assert_eq!(pipeline("[status]\nmax-age = \"1d 2h\"").status.max_age, Some(93_600));
        for bad in ["", "0h", "-1h", "soon", "1"] {
            let text = format!(
                "version = 1\nname = \"x\"\n[repository]\nurl = \"r\"\n[components.a]\nuse = \"generic\"\n[status]\nmax-age = \"{bad}\"\n"
            );
            let error = Pipeline::parse(Path::new("p.toml"), &text).unwrap_err().to_string();
            assert!(
                error.contains("p.toml:8") && error.contains("length of time"),
                "{bad}: {error}"
            );
        }
    }
}
