//! Which backups are kept, and why: pure functions over what is known of the backups.
//!
//! The rules mean what restic documents for `forget --keep-*`: going from the newest backup to the oldest, each rule
//! keeps one backup for each of the last *n* hours, days, ISO weeks, months or years **that have one**; `within` counts
//! from the newest backup, not from today; while a rule has counts left, the oldest backup is kept too. Beyond that:
//!
//! * Within one period a verified backup is preferred to a newer one that is not.
//! * The newest verified backup is always kept.
//! * A backup dated in the future, or found suspect, is never credited to a rule: it cannot push a good one out. Dated
//!   in the future it is kept until its time has come; suspect it is kept until a good one is newer.
//! * Without any rule everything is kept.

use crate::{BackupId, RepositoryError};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;

/// How much of each kind is kept. Zero: this rule keeps nothing. [`Rules::ALL`]: without end.
#[derive(Clone, Debug)]
pub struct Rules {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Everything not older than this before the newest credited backup.
    pub within: Option<SignedDuration>,
    /// Where days begin.
    pub time_zone: TimeZone,
    /// A backup later than now by more than this is dated in the future.
    pub clock_skew: SignedDuration,
}

impl Rules {
    pub const ALL: u32 = u32::MAX;

    /// No rules in a named time zone (`Europe/Berlin`, `UTC`).
    pub fn in_zone(name: &str) -> Result<Self, RepositoryError> {
        let time_zone = TimeZone::get(name).map_err(|e| {
            RepositoryError::refused(
                format!("{name:?} is not a time zone: {e}"),
                "use a name like Europe/Berlin or UTC",
            )
        })?;
        Ok(Rules {
            last: 0,
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            within: None,
            time_zone,
            clock_skew: SignedDuration::from_mins(10),
        })
    }

    fn are_none(&self) -> bool {
        let counts = [
            self.last,
            self.hourly,
            self.daily,
            self.weekly,
            self.monthly,
            self.yearly,
        ];
        counts.iter().all(|c| *c == 0) && self.within.is_none()
    }
}

/// What is known of a backup.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub id: BackupId,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Its place in its writer's chain: of two begun in one second the later.
    pub sequence: u64,
    /// A drill or restore of it succeeded.
    pub verified: bool,
    /// A policy or a check found its content odd.
    pub suspect: bool,
}

impl Candidate {
    /// Greater is newer. The id is random within a second, and decides only between writers.
    fn age(&self) -> (i64, u64, &BackupId) {
        (self.created_at, self.sequence, &self.id)
    }
}

/// What is to become of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub id: BackupId,
    pub keep: bool,
    /// Why it is kept; for one that is not, why nothing keeps it.
    pub reasons: Vec<String>,
}

/// The period a rule puts a time in, as a text that is equal within it.
type Period = fn(&jiff::ZonedDateTime) -> String;

fn hour(t: &jiff::ZonedDateTime) -> String {
    // The offset tells the two hours apart when clocks go back.
    t.strftime("%Y-%m-%d %H %z").to_string()
}

fn day(t: &jiff::ZonedDateTime) -> String {
    t.date().to_string()
}

fn week(t: &jiff::ZonedDateTime) -> String {
    let week = t.date().iso_week_date();
    format!("{:04}-W{:02}", week.year(), week.week())
}

fn month(t: &jiff::ZonedDateTime) -> String {
    t.strftime("%Y-%m").to_string()
}

fn year(t: &jiff::ZonedDateTime) -> String {
    t.strftime("%Y").to_string()
}

/// Decides on all candidates, newest first.
pub fn decide(rules: &Rules, candidates: &[Candidate], now: i64) -> Vec<Decision> {
    let mut order: Vec<&Candidate> = candidates.iter().collect();
    order.sort_by(|a, b| b.age().cmp(&a.age()));
    let horizon = now.saturating_add(rules.clock_skew.as_secs());
    let future = |c: &Candidate| c.created_at > horizon;
    let mut reasons: BTreeMap<&BackupId, Vec<String>> = BTreeMap::new();
    let credited: Vec<(&Candidate, Option<jiff::ZonedDateTime>)> = order
        .iter()
        .filter(|c| !future(c) && !c.suspect)
        .map(|c| {
            (
                *c,
                Timestamp::from_second(c.created_at)
                    .ok()
                    .map(|t| t.to_zoned_datetime(rules.time_zone.clone())),
            )
        })
        .collect();

    if rules.are_none() {
        for c in &order {
            reasons
                .entry(&c.id)
                .or_default()
                .push("there is no rule, so everything is kept".into());
        }
    }
    for (place, (c, time)) in credited.iter().enumerate() {
        if time.is_none() {
            reasons
                .entry(&c.id)
                .or_default()
                .push("its time is none that can be counted".into());
        }
        if u32::try_from(place).is_ok_and(|p| p < rules.last) || rules.last == Rules::ALL {
            reasons
                .entry(&c.id)
                .or_default()
                .push(format!("last {}", count(rules.last)));
        }
    }
    let periods: [(&str, u32, Period); 5] = [
        ("hourly", rules.hourly, hour),
        ("daily", rules.daily, day),
        ("weekly", rules.weekly, week),
        ("monthly", rules.monthly, month),
        ("yearly", rules.yearly, year),
    ];
    for (name, limit, period) in periods {
        let mut left = limit;
        let mut seen: Vec<(String, &Candidate)> = Vec::new();
        for (c, time) in &credited {
            let Some(time) = time else { continue };
            let value = period(time);
            match seen.last_mut() {
                Some((last, chosen)) if *last == value => {
                    if c.verified && !chosen.verified {
                        *chosen = c;
                    }
                }
                _ => seen.push((value, c)),
            }
        }
        for (value, chosen) in &seen {
            if left == 0 {
                break;
            }
            reasons
                .entry(&chosen.id)
                .or_default()
                .push(format!("{name} {} ({value})", count(limit)));
            if limit != Rules::ALL {
                left -= 1;
            }
        }
        if left > 0
            && let Some((oldest, _)) = credited.iter().rev().find(|(_, t)| t.is_some())
            && !reasons
                .get(&oldest.id)
                .is_some_and(|r| r.iter().any(|r| r.starts_with(name)))
        {
            reasons
                .entry(&oldest.id)
                .or_default()
                .push(format!("{name} {} (oldest)", count(limit)));
        }
    }
    if let Some(within) = rules.within
        && let Some((newest, _)) = credited.first()
    {
        let since = newest.created_at.saturating_sub(within.as_secs());
        for (c, _) in credited.iter().filter(|(c, _)| c.created_at >= since) {
            reasons.entry(&c.id).or_default().push(format!("within {within:#}"));
        }
    }
    if let Some(newest) = order.iter().find(|c| c.verified && !future(c) && !c.suspect) {
        reasons.entry(&newest.id).or_default().push("newest verified".into());
    }
    let newest_good = credited.first().map(|(c, _)| c.created_at);
    for c in &order {
        if future(c) {
            reasons
                .entry(&c.id)
                .or_default()
                .push("dated in the future; not counted".into());
        } else if c.suspect && newest_good.is_none_or(|good| good <= c.created_at) {
            reasons
                .entry(&c.id)
                .or_default()
                .push("suspect, but no good backup is newer; not counted".into());
        }
    }
    order
        .iter()
        .map(|c| {
            let why = reasons.remove(&c.id).unwrap_or_default();
            let keep = !why.is_empty();
            let reasons = match (keep, c.suspect) {
                (true, _) => why,
                (false, true) => vec!["suspect, and a good backup is newer".into()],
                (false, false) => vec!["no rule keeps it".into()],
            };
            Decision {
                id: c.id.clone(),
                keep,
                reasons,
            }
        })
        .collect()
}

fn count(n: u32) -> String {
    if n == Rules::ALL { "all".into() } else { n.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn candidate(n: usize, created_at: i64) -> Candidate {
        let time = Timestamp::from_second(created_at)
            .unwrap()
            .strftime("%Y%m%dt%H%M%Sz")
            .to_string();
        Candidate {
            id: BackupId::new(format!("{time}-{n:08x}")).unwrap(),
            created_at,
            sequence: 1,
            verified: false,
            suspect: false,
        }
    }

    fn rules() -> Rules {
        Rules::in_zone("UTC").unwrap()
    }

    fn kept(rules: &Rules, all: &[Candidate], now: &str) -> Vec<String> {
        let decisions = decide(rules, all, at(now));
        assert_eq!(decisions.len(), all.len());
        assert!(decisions.iter().all(|d| !d.reasons.is_empty()));
        decisions
            .iter()
            .filter(|d| d.keep)
            .map(|d| d.id.as_str()[..11].to_owned())
            .collect()
    }

    fn times(all: &[&str]) -> Vec<Candidate> {
        all.iter().enumerate().map(|(n, t)| candidate(n, at(t))).collect()
    }

    #[test]
    fn without_rules_everything_is_kept() {
        let all = times(&["2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]);
        assert_eq!(kept(&rules(), &all, "2026-02-01T00:00:00Z").len(), 2);
    }

    #[test]
    fn daily_counts_days_that_have_a_backup() {
        // Restic's own example: keep-daily counts the last n days which have snapshots.
        let all = times(&[
            "2026-01-20T03:00:00Z",
            "2026-01-20T15:00:00Z",
            "2026-01-10T03:00:00Z",
            "2026-01-09T03:00:00Z",
            "2026-01-08T03:00:00Z",
        ]);
        let some = Rules { daily: 3, ..rules() };
        assert_eq!(
            kept(&some, &all, "2026-01-21T00:00:00Z"),
            ["20260120t15", "20260110t03", "20260109t03"]
        );
        // Counts left: the oldest is kept too.
        let many = Rules { daily: 9, ..rules() };
        assert_eq!(kept(&many, &all, "2026-01-21T00:00:00Z").len(), 4);
        let monthly = Rules { monthly: 3, ..rules() };
        assert_eq!(
            kept(&monthly, &all, "2026-01-21T00:00:00Z"),
            ["20260120t15", "20260108t03"]
        );
    }

    #[test]
    fn weeks_are_iso_weeks_across_new_year() {
        // 2027-01-01 is a Friday of week 53 of 2026; 2027-01-04 begins week 1.
        let all = times(&[
            "2027-01-04T00:00:00Z",
            "2027-01-03T00:00:00Z",
            "2027-01-01T00:00:00Z",
            "2026-12-28T00:00:00Z",
            "2026-12-27T00:00:00Z",
        ]);
        let weekly = Rules { weekly: 2, ..rules() };
        assert_eq!(
            kept(&weekly, &all, "2027-01-05T00:00:00Z"),
            ["20270104t00", "20270103t00"]
        );
        let yearly = Rules { yearly: 2, ..rules() };
        assert_eq!(
            kept(&yearly, &all, "2027-01-05T00:00:00Z"),
            ["20270104t00", "20261228t00"]
        );
    }

    #[test]
    fn days_begin_where_the_rules_say() {
        let all = times(&["2026-07-01T21:30:00Z", "2026-07-01T22:30:00Z"]);
        let utc = Rules { daily: 1, ..rules() };
        assert_eq!(kept(&utc, &all, "2026-07-02T00:00:00Z").len(), 1);
        let berlin = Rules {
            daily: 2,
            ..Rules::in_zone("Europe/Berlin").unwrap()
        };
        assert_eq!(kept(&berlin, &all, "2026-07-02T00:00:00Z").len(), 2);
        assert!(Rules::in_zone("Europe/Atlantis").is_err());
    }

    #[test]
    fn within_counts_from_the_newest_backup() {
        let all = times(&["2026-01-10T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-01T00:00:00Z"]);
        let within = Rules {
            within: Some(SignedDuration::from_hours(48)),
            ..rules()
        };
        assert_eq!(
            kept(&within, &all, "2026-06-01T00:00:00Z"),
            ["20260110t00", "20260109t00"]
        );
    }

    #[test]
    fn the_future_and_the_suspect_push_nothing_out() {
        let mut all = times(&[
            "2099-01-01T00:00:00Z",
            "2026-01-03T00:00:00Z",
            "2026-01-02T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ]);
        all[1].suspect = true;
        let last = Rules { last: 1, ..rules() };
        assert_eq!(
            kept(&last, &all, "2026-01-04T00:00:00Z"),
            ["20990101t00", "20260103t00", "20260102t00"]
        );
        all[1].created_at -= 2 * 86400 - 1;
        assert_eq!(
            kept(&last, &all, "2026-01-04T00:00:00Z"),
            ["20990101t00", "20260102t00"]
        );
    }

    #[test]
    fn of_one_second_the_later_in_its_chain_is_newer() {
        // Ids that sort against the order in which the backups were made.
        let now = at("2026-01-10T12:00:00Z");
        let all: Vec<Candidate> = (0..3u64)
            .map(|n| Candidate {
                sequence: 7 + n,
                ..candidate(9 - n as usize, now)
            })
            .collect();
        let last = Rules { last: 1, ..rules() };
        let decisions = decide(&last, &all, now);
        assert_eq!(
            decisions.iter().map(|d| &d.id).collect::<Vec<_>>(),
            [&all[2].id, &all[1].id, &all[0].id]
        );
        assert_eq!(
            decisions.iter().map(|d| d.keep).collect::<Vec<_>>(),
            [true, false, false]
        );
        // The newest verified one, too, is the later.
        let verified: Vec<Candidate> = all
            .iter()
            .map(|c| Candidate {
                verified: true,
                ..c.clone()
            })
            .collect();
        let kept = decide(&last, &verified, now);
        assert_eq!(
            kept.iter().filter(|d| d.keep).map(|d| &d.id).collect::<Vec<_>>(),
            [&all[2].id]
        );
    }

    #[test]
    fn verified_ones_come_first() {
        let mut all = times(&["2026-01-10T12:00:00Z", "2026-01-10T03:00:00Z", "2026-01-05T03:00:00Z"]);
        all[1].verified = true;
        let daily = Rules { daily: 1, ..rules() };
        assert_eq!(kept(&daily, &all, "2026-01-11T00:00:00Z"), ["20260110t03"]);
        all[1].verified = false;
        all[2].verified = true;
        assert_eq!(
            kept(&daily, &all, "2026-01-11T00:00:00Z"),
            ["20260110t12", "20260105t03"]
        );
    }

    proptest! {
        /// Whatever the rules: the newest verified is kept, more rules never keep less, bad ones change nothing.
        #[test]
        fn rules_only_ever_add(
            offsets in proptest::collection::vec((0i64..400*86400, any::<bool>(), any::<bool>()), 1..40),
            counts in any::<[u8; 6]>(),
        ) {
            let now = at("2026-01-01T00:00:00Z");
            let all: Vec<Candidate> = offsets.iter().enumerate().map(|(n, (ago, verified, suspect))| {
                Candidate { verified: *verified, suspect: *suspect, ..candidate(n, now - ago) }
            }).collect();
            let [last, hourly, daily, weekly, monthly, yearly] = counts.map(|c| u32::from(c % 5));
            let rules = Rules { last, hourly, daily, weekly, monthly, yearly, ..rules() };
            prop_assume!(!rules.are_none());
            let kept = |rules: &Rules, all: &[Candidate]| -> std::collections::BTreeSet<BackupId> {
                decide(rules, all, now).into_iter().filter(|d| d.keep).map(|d| d.id).collect()
            };
            let base = kept(&rules, &all);
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.age().cmp(&a.age()));
            if let Some(newest) = sorted.iter().find(|c| c.verified && !c.suspect) {
                prop_assert!(base.contains(&newest.id));
            }
            let more = Rules { last: last + 1, ..rules.clone() };
            prop_assert!(kept(&more, &all).is_superset(&base));
            let good: Vec<Candidate> = all.iter().filter(|c| !c.suspect).cloned().collect();
            prop_assert!(base.is_superset(&kept(&rules, &good)));
        }
    }
}
