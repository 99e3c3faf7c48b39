//! Which backups stay: `[retention]` and the policy decide, the answer is shown before anything goes.
//!
//! A backup stays when either keeps it: a policy adds to `[retention]`, it takes nothing from it. A policy alone (no
//! `[retention]`) decides freely but for a floor no script can go below: the newest backup that is not suspect, the newest
//! complete and the newest verified one, those dated in the future, and suspect ones that no complete good one follows. A
//! policy without an answer keeps everything.
//!
//! Backups are decided on by pipeline, also where several pipelines write with one key: none pushes out those of another.
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
use essrun_repository::{BackupSummary, PrunePlan, PruneReport, Repository};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Why, in a tombstone. Anyone can read that: what a policy says about a backup does not belong there.
const TOMBSTONE: &str = "retention";

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forgetting {
    pub event: &'static str,
    pub confirmed: bool,
    pub decisions: Vec<Decision>,
    #[serde(flatten)]
    pub left_alone: LeftAlone,
    /// Why the policy gave no answer, so that everything is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_failure: Option<String>,
    #[serde(skip)]
    times: Vec<(String, i64)>,
}

/// Backups that nothing was decided on.
#[derive(Debug, Default, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LeftAlone {
    /// Of other writers.
    pub others: usize,
    /// Of this writer, and of another pipeline or of one that cannot be told.
    pub other_pipelines: usize,
}

/// What was decided, and on what.
pub struct Considered {
    pub decisions: Vec<Decision>,
    /// What the policy was told, or would be.
    pub input: input::Retention,
    pub left_alone: LeftAlone,
    /// Why the policy gave no answer, so that everything is kept.
    pub policy_failure: Option<String>,
}

/// The backups of one pipeline: they are decided on together, and those of no other with them.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) backups: Vec<input::Backup>,
}

impl Group {
    pub(crate) fn add(&mut self, summary: BackupSummary, standing: &Standing) {
        self.backups.push(input::Backup::known(&summary, standing));
        self.candidates.push(Candidate {
            created_at: summary.created_at,
            sequence: summary.sequence,
            verified: standing.verified_at().is_some(),
            suspect: standing.state == State::Suspect || summary.lost_objects > 0,
            incomplete: standing.body.as_ref().is_some_and(|b| !b.missing().is_empty()),
            id: summary.id,
        });
    }
}

/// What decides: `[retention]`, a policy, or both.
struct Judge<'a> {
    pipeline: &'a Pipeline,
    rules: Rules,
    policy: Option<&'a Policy>,
}

impl<'a> Judge<'a> {
    fn of(pipeline: &'a Pipeline, policy: Option<&'a Policy>) -> Result<Self, PipelineError> {
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
        Ok(Judge {
            pipeline,
            rules,
            policy,
        })
    }

    async fn decide(&self, group: Group, left_alone: LeftAlone) -> Result<Considered, PipelineError> {
        let Group {
            candidates,
            mut backups,
        } = group;
        let mut decisions = decide(&self.rules, &candidates, now());
        input::newest_first(&mut backups);
        let input = input::Retention {
            common: input::Common::new(self.pipeline),
            backups,
        };
        let mut policy_failure = None;
        if let Some(policy) = self.policy {
            let said = policy.retention(&input).await?;
            merge(&mut decisions, &said.keep, self.pipeline.retention.is_none());
            policy_failure = said.failure;
        }
        Ok(Considered {
            decisions,
            input,
            left_alone,
            policy_failure,
        })
    }
}

/// Decides on the backups of this pipeline of this writer; changes nothing.
pub async fn consider(
    pipeline: &Pipeline,
    repository: &Repository,
    policy: Option<&Policy>,
) -> Result<Considered, PipelineError> {
    let judge = Judge::of(pipeline, policy)?;
    let (mut group, mut left_alone) = (Group::default(), LeftAlone::default());
    let all = repository.backups_annotated().await;
    for (summary, notes) in all.map_err(PipelineError::repository)? {
        // Another host's rules are its own, and its backups must not push out those of this one. Nor must those of
        // another pipeline of this host.
        if !repository.is_own(&summary) {
            left_alone.others += 1;
            continue;
        }
        let standing = Standing::with(&summary, &notes)?;
        match standing.body.as_ref().is_some_and(|b| b.pipeline == pipeline.name) {
            true => group.add(summary, &standing),
            false => left_alone.other_pipelines += 1,
        }
    }
    judge.decide(group, left_alone).await
}

/// Decides on the backups of another writer, each of its pipelines by itself; changes nothing. Refused where something
/// about one of them cannot be read: whether it is suspect or was verified is not known then.
async fn consider_of(
    pipeline: &Pipeline,
    repository: &Repository,
    policy: Option<&Policy>,
    writer: &str,
) -> Result<Vec<Considered>, PipelineError> {
    let judge = Judge::of(pipeline, policy)?;
    let unread = repository.with_unread_notes().await;
    let unread = unread.map_err(PipelineError::repository)?;
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let mut left_alone = LeftAlone::default();
    let all = repository.backups_annotated().await;
    for (summary, notes) in all.map_err(PipelineError::repository)? {
        if summary.writer.as_str() != writer {
            left_alone.others += 1;
            continue;
        }
        let standing = Standing::with(&summary, &notes)?;
        let Some(body) = standing.body.as_ref().filter(|_| !unread.contains(&summary.id)) else {
            return Err(PipelineError::refused(
                format!(
                    "backup {} of writer {writer}: no key here opens what is known of it, so whether it is suspect or was \
                     verified cannot be told",
                    summary.id
                ),
                "give --identity FILE, where the identity is; nothing was changed",
            ));
        };
        groups.entry(body.pipeline.clone()).or_default().add(summary, &standing);
    }
    if groups.is_empty() {
        return Err(PipelineError::refused(
            format!("there are no backups of writer {writer:?}"),
            "name it by its 16 digits, as `essrun list --json` shows them",
        ));
    }
    let mut considered = Vec::new();
    for group in groups.into_values() {
        considered.push(judge.decide(group, left_alone).await?);
    }
    Ok(considered)
}

/// Of whose backups `forget` decides.
#[derive(Debug, Default)]
pub struct ForgetOptions {
    /// Of this writer instead of one's own.
    pub of_writer: Option<String>,
    /// With which what is known of another writer's backups can be read.
    pub identities: Vec<PathBuf>,
    /// Set the tombstones.
    pub confirm: bool,
}

/// Decides, and with `confirm` sets the tombstones.
pub async fn forget(pipeline: &Pipeline, options: &ForgetOptions) -> Result<Forgetting, PipelineError> {
    let policy = match &pipeline.policy {
        Some(_) => Policy::load(pipeline, &load::engine(pipeline)?).await?,
        None => None,
    };
    let identities = keys::identities(&options.identities)?;
    let repository = repo::open(pipeline, Some(keys::writer(pipeline)?), identities).await?;
    let considered = match &options.of_writer {
        None => vec![consider(pipeline, &repository, policy.as_ref()).await?],
        Some(writer) => consider_of(pipeline, &repository, policy.as_ref(), writer).await?,
    };
    let mut forgetting = Forgetting {
        event: "forget",
        confirmed: options.confirm,
        decisions: Vec::new(),
        left_alone: LeftAlone::default(),
        policy_failure: None,
        times: Vec::new(),
    };
    for one in considered {
        let backups = one.input.backups.into_iter();
        forgetting
            .times
            .extend(backups.map(|b| (b.id, b.taken_at_unix_seconds)));
        forgetting.decisions.extend(one.decisions);
        forgetting.left_alone = one.left_alone;
        forgetting.policy_failure = forgetting.policy_failure.or(one.policy_failure);
    }
    if options.confirm {
        let gone = forgetting.decisions.iter().filter(|d| !d.keep);
        let gone: Vec<_> = gone.map(|d| (d.id.clone(), TOMBSTONE.to_owned())).collect();
        repository.forget_all(&gone).await.map_err(PipelineError::repository)?;
    }
    Ok(forgetting)
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
                    *reason = "newest that is not suspect".to_owned();
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
        let LeftAlone {
            others,
            other_pipelines,
        } = self.left_alone;
        if others > 0 {
            t.push_str(&format!(
                "left alone: {others} of other writers; --of WRITER decides on those of one of them\n"
            ));
        }
        if other_pipelines > 0 {
            t.push_str(&format!(
                "left alone: {other_pipelines} of other pipelines; each decides on its own\n"
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

pub(crate) fn rules(config: &RetentionConfig) -> Result<Rules, PipelineError> {
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
        let span = calendar(text).map_err(|hint| wrong(format!("keep-within {text:?} is no length of time"), hint))?;
        // As in restic, no time at all is no rule.
        rules.within = Some(span).filter(|s| !s.is_zero());
    }
    Ok(rules)
}

/// The number and the letter that a text begins with, and the rest.
fn part(text: &str) -> Option<(u64, char, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text.get(..digits)?.parse().ok()?;
    let unit = text.get(digits..)?.chars().next()?;
    Some((number, unit, text.get(digits + unit.len_utf8()..)?))
}

/// What restic writes for `--keep-within`: `1y5m7d2h` are years, months, days and hours of the calendar, in that order.
/// Else a hint.
pub(crate) fn calendar(text: &str) -> Result<jiff::Span, &'static str> {
    const HINT: &str = "write years, months, days and hours, in that order: 1y, 2m, 30d, 1y5m7d2h";
    let mut rest = text.trim();
    let mut units = ['y', 'm', 'd', 'h'].into_iter();
    let mut span = jiff::Span::new();
    if rest.is_empty() {
        return Err(HINT);
    }
    while !rest.is_empty() {
        let (number, unit, after) = part(rest).ok_or(HINT)?;
        if unit == 'w' {
            return Err("there are no weeks here, as in restic: write days, 14d for two weeks");
        }
        units.by_ref().find(|u| *u == unit).ok_or(HINT)?;
        let number = i64::try_from(number).map_err(|_| HINT)?;
        let longer = match unit {
            'y' => span.try_years(number),
            'm' => span.try_months(number),
            'd' => span.try_days(number),
            _ => span.try_hours(number),
        };
        span = longer.map_err(|_| "that is longer than the calendar")?;
        rest = after;
    }
    Ok(span)
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
        let (number, unit, after) = part(rest)?;
        let (_, each) = units.by_ref().find(|(name, _)| *name == unit)?;
        seconds = seconds.checked_add(number.checked_mul(each)?)?;
        rest = after;
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
                (
                    true,
                    "newest that is not suspect: kept whatever the policy says".to_owned()
                ),
                (false, "the policy does not keep it".to_owned()),
            ]
        );
        let mut nothing = given();
        merge(&mut nothing, &BTreeMap::new(), true);
        assert_eq!(nothing.iter().filter(|d| d.keep).count(), 1, "the floor");
    }

    /// What is handed to the rules of a backup in this state, and of this last drill.
    fn candidate(state: State, drill: Option<bool>, failed: Option<&str>, lost_objects: u64) -> Candidate {
        let component = serde_json::json!({"name": "bridge", "system": "bridge", "tier": "bridge", "component_version": "1",
            "wasm_sha256": "", "failed": failed, "taken_at": 1});
        let body = serde_json::json!({"version": 1, "pipeline": "p", "host": "h", "essrun": "1", "started_at": 1,
            "finished_at": 2, "components": [component]});
        let standing = Standing {
            state,
            suspect: Vec::new(),
            body: serde_json::from_value(body).unwrap(),
            drill: drill.map(|passed| repo::DrillNote {
                at: 3,
                passed,
                errors: 0,
                warnings: 0,
                why: None,
                pace: None,
            }),
        };
        let summary = serde_json::json!({"id": "20260101t000000z-00000001", "created_at": 1, "committed_at": 2,
            "writer": "0123456789abcdef", "sequence": 1, "needed_objects": 0, "needed_bytes": 0,
            "lost_objects": lost_objects, "stats": essrun_repository::BackupStats::default()});
        let mut group = Group::default();
        group.add(serde_json::from_value(summary).unwrap(), &standing);
        group.candidates.remove(0)
    }

    #[test]
    fn incomplete_is_not_suspect_and_a_failed_drill_proves_nothing() {
        let told = |c: Candidate| (c.suspect, c.incomplete, c.verified);
        assert_eq!(told(candidate(State::Normal, None, None, 0)), (false, false, false));
        let incomplete = candidate(State::Incomplete, Some(true), Some("it was down"), 0);
        assert_eq!(told(incomplete), (false, true, true));
        let both = candidate(State::Suspect, None, Some("it was down"), 0);
        assert_eq!(told(both), (true, true, false));
        assert_eq!(
            told(candidate(State::Normal, Some(false), None, 0)),
            (false, false, false)
        );
        assert_eq!(told(candidate(State::Normal, Some(true), None, 1)), (true, false, true));
    }

    #[test]
    fn within_means_what_it_means_to_restic() {
        use jiff::Span;
        for (text, span) in [
            ("2m", Span::new().months(2)),
            ("1y5m7d2h", Span::new().years(1).months(5).days(7).hours(2)),
            ("36h", Span::new().hours(36)),
            (" 30d ", Span::new().days(30)),
            ("0d", Span::new()),
        ] {
            assert_eq!(calendar(text).unwrap().fieldwise(), span.fieldwise(), "{text}");
        }
        for bad in [
            "",
            "d",
            "14",
            "2h1d",
            "-1d",
            "1d1d",
            "1s",
            "99999999999999999999d",
            "99999999d",
            "1é",
        ] {
            assert!(calendar(bad).is_err(), "{bad}");
        }
        assert!(calendar("2w").unwrap_err().contains("14d"));
        let config = |within: &str| RetentionConfig {
            within: Some(within.to_owned()),
            ..RetentionConfig::default()
        };
        assert!(rules(&config("2m")).unwrap().within.is_some());
        assert!(rules(&config("0d")).unwrap().within.is_none(), "as in restic");
        assert!(rules(&config("1w")).unwrap_err().to_string().contains("keep-within"));
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
