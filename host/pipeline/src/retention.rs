//! Which backups stay: `[retention]` and the policy decide, the answer is shown before anything goes.
//!
//! A backup stays when either keeps it: a policy adds to `[retention]`, it takes nothing from it. A policy alone (no
//! `[retention]`) decides freely but for a floor no script can go below: the newest backup that is not suspect, the newest
//! verified one, those dated in the future, and suspect ones that no good one follows. A policy without an answer keeps
//! everything.
//!
//! Two steps, two verbs. `forget` sets tombstones; nothing is deleted by it. `prune` deletes, after a grace time, what no
//! backup needs. Both only show what they would do until they are told to. Without `[retention]` everything is kept.

use crate::config::{Pipeline, RetentionConfig};
use crate::error::PipelineError;
use crate::policy::{Policy, Question, input};
use crate::standing::{Standing, State};
use crate::time::{now, utc};
use crate::{keys, load, repo};
use essrun_repository::retention::{Candidate, Decision, Rules, decide};
use essrun_repository::{PrunePlan, PruneReport, Repository};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forgetting {
    pub event: &'static str,
    pub confirmed: bool,
    pub decisions: Vec<Decision>,
    /// Backups of other writers, left alone.
    pub others: usize,
    /// Why the policy gave no answer, so that everything is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_failure: Option<String>,
    #[serde(skip)]
    times: Vec<(String, i64)>,
}

/// What was decided, and on what.
pub struct Considered {
    pub decisions: Vec<Decision>,
    /// What the policy was told, or would be.
    pub input: input::Retention,
    /// Backups of other writers, which were not looked at.
    pub others: usize,
    /// Why the policy gave no answer, so that everything is kept.
    pub policy_failure: Option<String>,
}

/// Decides on the backups of this writer, or of the one that is named; changes nothing.
pub async fn consider(
    pipeline: &Pipeline,
    repository: &Repository,
    policy: Option<&Policy>,
    of_writer: Option<&str>,
) -> Result<Considered, PipelineError> {
    let policy = policy.filter(|p| p.answers(Question::Retention));
    let rules = match (&pipeline.retention, policy) {
        (Some(config), _) => rules(config)?,
        (None, Some(_)) => floor()?,
        (None, None) => {
            return Err(PipelineError::refused(
                format!(
                    "{} has neither [retention] nor a policy that decides it: every backup is kept",
                    pipeline.file.display()
                ),
                "add [retention] with keep-daily = 7 and the like",
            ));
        }
    };
    let (mut candidates, mut backups) = (Vec::new(), Vec::new());
    let all = repository.backups_annotated().await;
    let mut others = 0;
    for (summary, notes) in all.map_err(PipelineError::repository)? {
        // Another host's rules are its own, and its backups must not push out those of this one.
        let decided_on = match of_writer {
            Some(writer) => summary.writer.as_str() == writer,
            None => repository.is_own(&summary),
        };
        if !decided_on {
            others += 1;
            continue;
        }
        let standing = Standing::with(&summary, &notes)?;
        backups.push(input::Backup::known(&summary, &standing));
        candidates.push(Candidate {
            created_at: summary.created_at,
            sequence: summary.sequence,
            verified: standing.verified_at().is_some(),
            suspect: standing.state != State::Normal || summary.lost_objects > 0,
            id: summary.id,
        });
    }
    let mut decisions = decide(&rules, &candidates, now());
    input::newest_first(&mut backups);
    let input = input::Retention {
        common: input::Common::new(pipeline),
        backups,
    };
    let mut policy_failure = None;
    if let Some(policy) = policy {
        let said = policy.retention(&input).await?;
        merge(&mut decisions, &said.keep, pipeline.retention.is_none());
        policy_failure = said.failure;
    }
    if let Some(writer) = of_writer.filter(|_| decisions.is_empty()) {
        return Err(PipelineError::refused(
            format!("there are no backups of writer {writer:?}"),
            "name it by its 16 digits, as `essrun list --json` shows them",
        ));
    }
    Ok(Considered {
        decisions,
        input,
        others,
        policy_failure,
    })
}

/// Decides, and with `confirm` sets the tombstones.
pub async fn forget(pipeline: &Pipeline, of_writer: Option<&str>, confirm: bool) -> Result<Forgetting, PipelineError> {
    let policy = match &pipeline.policy {
        Some(_) => Policy::load(pipeline, &load::engine(pipeline)?).await?,
        None => None,
    };
    let repository = repo::open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?;
    let considered = consider(pipeline, &repository, policy.as_ref(), of_writer).await?;
    let decisions = considered.decisions;
    if confirm {
        let gone = decisions.iter().filter(|d| !d.keep);
        let gone: Vec<_> = gone.map(|d| (d.id.clone(), d.reasons.join("; "))).collect();
        repository.forget_all(&gone).await.map_err(PipelineError::repository)?;
    }
    let backups = considered.input.backups;
    Ok(Forgetting {
        event: "forget",
        confirmed: confirm,
        decisions,
        others: considered.others,
        policy_failure: considered.policy_failure,
        times: backups.into_iter().map(|b| (b.id, b.taken_at_unix_seconds)).collect(),
    })
}

/// What stays whatever a script says.
fn floor() -> Result<Rules, PipelineError> {
    let mut rules = Rules::in_zone("UTC").map_err(PipelineError::repository)?;
    rules.last = 1;
    Ok(rules)
}

/// Adds what the policy keeps. `alone`: the decisions are only the floor.
fn merge(decisions: &mut [Decision], keep: &BTreeMap<String, Vec<String>>, alone: bool) {
    for d in decisions {
        if alone && d.keep {
            for reason in &mut d.reasons {
                if reason == "last 1" {
                    *reason = "newest good one".to_owned();
                }
                reason.push_str(": kept whatever the policy says");
            }
        }
        match keep.get(d.id.as_str()) {
            Some(why) => {
                if !d.keep {
                    d.reasons.clear();
                }
                d.keep = true;
                match why.is_empty() {
                    true => d.reasons.push("policy".to_owned()),
                    false => d.reasons.extend(why.iter().map(|w| format!("policy: {w}"))),
                }
            }
            None if d.keep => {}
            None if alone => d.reasons = vec!["the policy does not keep it".to_owned()],
            None => d.reasons.push("nor does the policy".to_owned()),
        }
    }
}

/// Brings a forgotten backup back, while prune with this grace time cannot have touched it.
pub async fn unforget(pipeline: &Pipeline, wanted: &str, grace: Duration) -> Result<String, PipelineError> {
    let repository = repo::open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?;
    let backup = repository.unforget(wanted, grace).await;
    Ok(backup.map_err(PipelineError::repository)?.to_string())
}

impl Forgetting {
    pub fn text(&self) -> String {
        let mut t = String::new();
        for d in &self.decisions {
            let id = d.id.to_string();
            let at = self.times.iter().find(|(i, _)| i == &id).map_or(0, |(_, at)| *at);
            let word = match (d.keep, self.confirmed) {
                (true, _) => "keep",
                (false, true) => "FORGOTTEN",
                (false, false) => "would forget",
            };
            t.push_str(&format!("{word:<13} {id}  {}  {}\n", utc(at), d.reasons.join(", ")));
        }
        if self.others > 0 {
            t.push_str(&format!(
                "left alone: {} of other writers; --of WRITER decides on those of one of them\n",
                self.others
            ));
        }
        let gone = self.decisions.iter().filter(|d| !d.keep).count();
        t.push_str(&match (gone, self.confirmed) {
            (0, _) => "every backup is kept\n".to_owned(),
            (n, true) => format!("{n} forgotten; `essrun prune` frees their space after the grace time\n"),
            (n, false) => format!("{n} would be forgotten; nothing was changed, --confirm does it\n"),
        });
        t
    }

    /// An error where the policy gave no answer: whoever counts on it must hear of that.
    pub fn into_error(self) -> Result<(), PipelineError> {
        match self.policy_failure {
            None => Ok(()),
            Some(failure) => Err(PipelineError::refused(
                format!("the policy gave no answer to retention, so every backup is kept: {failure}"),
                "`essrun policy explain` shows what it was told; mend it, or take it out",
            )),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pruning {
    pub event: &'static str,
    pub plan: PrunePlan,
    pub report: Option<PruneReport>,
}

/// Plans, and with `confirm` marks and deletes.
pub async fn prune(pipeline: &Pipeline, grace: Duration, confirm: bool) -> Result<Pruning, PipelineError> {
    let repository = repo::open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?;
    let plan = repository.plan_prune(grace).await.map_err(PipelineError::repository)?;
    let report = match confirm {
        true => Some(repository.prune(&plan).await.map_err(PipelineError::repository)?),
        false => None,
    };
    Ok(Pruning {
        event: "prune",
        plan,
        report,
    })
}

impl Pruning {
    pub fn text(&self) -> String {
        let p = &self.plan;
        let mut t = format!("{} objects are needed\n", p.needed);
        t.push_str(&format!(
            "{} objects ({} bytes) are not needed and get marked\n",
            p.mark.len(),
            p.mark_bytes
        ));
        t.push_str(&format!(
            "{} objects ({} bytes) were marked longer than the grace time ago and go\n",
            p.delete.len(),
            p.delete_bytes
        ));
        for why in &p.waiting {
            t.push_str(&format!("waiting: {why}\n"));
        }
        t.push_str(&match &self.report {
            None => "nothing was changed; --confirm does it\n".to_owned(),
            Some(r) => {
                let mut said = format!(
                    "{} marked, {} deleted ({} bytes), {} spared since they are needed by now\n",
                    r.marked,
                    r.deleted,
                    r.deleted_bytes,
                    r.spared.len()
                );
                if let Some(first) = r.kept.first() {
                    said.push_str(&format!(
                        "{} kept by the store (retention, or keys that may not delete), as {first}; a later prune tries again\n",
                        r.kept.len()
                    ));
                }
                said
            }
        });
        t
    }
}

fn rules(config: &RetentionConfig) -> Result<Rules, PipelineError> {
    let wrong = |problem: String, hint: &str| match &config.at {
        Some(at) => PipelineError::Config {
            at: at.clone(),
            problem,
            hint: hint.to_owned(),
        },
        None => PipelineError::refused(problem, hint),
    };
    let zone = config.time_zone.as_deref().unwrap_or("UTC");
    let mut rules = Rules::in_zone(zone).map_err(|e| wrong(e.to_string(), "time-zone = \"Europe/Berlin\", or UTC"))?;
    rules.last = config.last.unwrap_or(0);
    rules.hourly = config.hourly.unwrap_or(0);
    rules.daily = config.daily.unwrap_or(0);
    rules.weekly = config.weekly.unwrap_or(0);
    rules.monthly = config.monthly.unwrap_or(0);
    rules.yearly = config.yearly.unwrap_or(0);
    if let Some(text) = &config.within {
        let span = duration(text).ok_or_else(|| {
            wrong(
                format!("keep-within {text:?} is no length of time"),
                "write days or hours: 30d, 36h, 14d12h",
            )
        })?;
        rules.within = Some(jiff::SignedDuration::from_secs(
            i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        ));
    }
    Ok(rules)
}

/// `14d`, `36h`, `14d12h`, `2w`: whole weeks, days, hours and minutes, in that order.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut seconds = 0u64;
    if rest.is_empty() {
        return None;
    }
    let mut units = [('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60)].into_iter();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        let unit = rest.get(digits..)?.chars().next()?;
        let (_, each) = units.by_ref().find(|(name, _)| *name == unit)?;
        seconds = seconds.checked_add(number.checked_mul(each)?)?;
        rest = rest.get(digits + unit.len_utf8()..)?;
    }
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(id: &str, keep: bool, why: &str) -> Decision {
        Decision {
            id: essrun_repository::BackupId::new(id).unwrap(),
            keep,
            reasons: vec![why.to_owned()],
        }
    }

    #[test]
    fn a_policy_adds_to_what_is_kept_and_takes_nothing_away() {
        let [a, b, c] = [
            "20260101t000000z-00000001",
            "20260102t000000z-00000002",
            "20260103t000000z-00000003",
        ];
        let given = || {
            vec![
                decision(a, false, "no rule keeps it"),
                decision(b, true, "last 1"),
                decision(c, false, "no rule keeps it"),
            ]
        };
        let keep = BTreeMap::from([(a.to_owned(), vec!["audit".to_owned()])]);
        let said = |d: &[Decision]| d.iter().map(|d| (d.keep, d.reasons.join("; "))).collect::<Vec<_>>();
        let mut beside = given();
        merge(&mut beside, &keep, false);
        assert_eq!(
            said(&beside),
            [
                (true, "policy: audit".to_owned()),
                (true, "last 1".to_owned()),
                (false, "no rule keeps it; nor does the policy".to_owned()),
            ]
        );
        let mut alone = given();
        merge(&mut alone, &keep, true);
        assert_eq!(
            said(&alone),
            [
                (true, "policy: audit".to_owned()),
                (true, "newest good one: kept whatever the policy says".to_owned()),
                (false, "the policy does not keep it".to_owned()),
            ]
        );
        let mut nothing = given();
        merge(&mut nothing, &BTreeMap::new(), true);
        assert_eq!(nothing.iter().filter(|d| d.keep).count(), 1, "the floor");
    }

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [
            ("14d", 14 * 86_400),
            ("36h", 36 * 3_600),
            ("1w2d3h4m", 788_640),
            ("0d", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "d", "14", "1y", "2h1d", "-1d", "1d1d", "99999999999999999999d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
