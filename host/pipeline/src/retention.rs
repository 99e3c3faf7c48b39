//! Which backups stay: `[retention]` of the pipeline, decided by the repository's rules, shown before anything goes.
//!
//! Two steps, two verbs. `forget` sets tombstones; nothing is deleted by it. `prune` deletes, after a grace time, what no
//! backup needs. Both only show what they would do until they are told to. Without `[retention]` everything is kept.

use crate::body::BackupBody;
use crate::config::{Pipeline, RetentionConfig};
use crate::error::PipelineError;
use crate::keys;
use crate::repo;
use crate::time::{now, utc};
use essrun_repository::retention::{Candidate, Decision, Rules, decide};
use essrun_repository::{PrunePlan, PruneReport};
use serde::Serialize;
use std::time::Duration;

/// The annotation that marks a backup as suspect.
const SUSPECT: &str = "suspect";

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forgetting {
    pub event: &'static str,
    pub confirmed: bool,
    pub decisions: Vec<Decision>,
    #[serde(skip)]
    times: Vec<(String, i64)>,
}

/// Decides, and with `confirm` sets the tombstones.
pub async fn forget(pipeline: &Pipeline, confirm: bool) -> Result<Forgetting, PipelineError> {
    let Some(config) = &pipeline.retention else {
        return Err(PipelineError::refused(
            format!("{} has no [retention]: every backup is kept", pipeline.file.display()),
            "add [retention] with keep-daily = 7 and the like",
        ));
    };
    let rules = rules(config)?;
    let repository = repo::open(pipeline, Some(keys::writer(pipeline)?), Vec::new()).await?;
    let mut candidates = Vec::new();
    for summary in repository.backups().await.map_err(PipelineError::repository)? {
        let notes = repository
            .annotations(&summary.id)
            .await
            .map_err(PipelineError::repository)?;
        // Without a body (another writer's, say) nothing is known against it.
        let incomplete = match summary.body {
            Some(_) => !BackupBody::missing(&repo::body(&summary)?).is_empty(),
            None => false,
        };
        candidates.push(Candidate {
            created_at: summary.created_at,
            verified: repo::drill_note(&notes)?.is_some_and(|d| d.passed),
            suspect: incomplete || notes.iter().any(|n| n.kind == SUSPECT),
            id: summary.id,
        });
    }
    let decisions = decide(&rules, &candidates, now());
    if confirm {
        for d in decisions.iter().filter(|d| !d.keep) {
            repository
                .forget(&d.id, &d.reasons.join("; "))
                .await
                .map_err(PipelineError::repository)?;
        }
    }
    let times = candidates.iter().map(|c| (c.id.to_string(), c.created_at)).collect();
    Ok(Forgetting {
        event: "forget",
        confirmed: confirm,
        decisions,
        times,
    })
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
        let gone = self.decisions.iter().filter(|d| !d.keep).count();
        t.push_str(&match (gone, self.confirmed) {
            (0, _) => "every backup is kept\n".to_owned(),
            (n, true) => format!("{n} forgotten; `essrun prune` frees their space after the grace time\n"),
            (n, false) => format!("{n} would be forgotten; nothing was changed, --confirm does it\n"),
        });
        t
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
            Some(r) => format!(
                "{} marked, {} deleted ({} bytes), {} spared since they are needed by now\n",
                r.marked,
                r.deleted,
                r.deleted_bytes,
                r.spared.len()
            ),
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
