//! Which backups are kept, and why: pure functions over what is known of the backups.
//!
//! The rules mean what restic documents for `forget --keep-*`: going from the newest backup to the oldest, each rule
//! keeps one backup for each of the last *n* hours, days, ISO weeks, months or years **that have one**; `within` counts
//! from the newest backup, not from today; while a rule has counts left, the oldest backup is kept too. Beyond that:
//!
//! * Within one period a complete backup is preferred to a newer one that lacks components, and of equally complete
//!   ones a verified backup to a newer one that is not.
//! * The newest complete and the newest verified backup are always kept.
//! * A backup dated in the future, or found suspect, is never credited to a rule: it cannot push a good one out. Dated
//!   in the future it is kept until its time has come; suspect it is kept until a complete good one is newer.
//! * An incomplete backup is credited: for weeks with one failing bridge, these are the backups there are.
//! * The hour that clocks go through twice is two hours.
//! * Without any rule everything is kept.
//!
//! The candidates are those of one pipeline of one writer; who asks sees to that.

use crate::{BackupId, RepositoryError};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
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
    /// Everything younger than this before the newest credited backup, by the calendar of the time zone.
    pub within: Option<Span>,
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
    /// A policy or a person found its content odd, or objects of it are lost.
    pub suspect: bool,
    /// Components are missing from it.
    pub incomplete: bool,
}

impl Candidate {
    /// Greater is newer. The id is random within a second, and decides only between writers.
    fn age(&self) -> (i64, u64, &BackupId) {
        (self.created_at, self.sequence, &self.id)
    }

    /// Within a period the greatest is chosen, of equals the newest.
    fn worth(&self) -> (bool, bool) {
        (!self.incomplete, self.verified)
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
                    if c.worth() > chosen.worth() {
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
        && let Some(newest) = credited.iter().find_map(|(_, t)| t.as_ref())
    {
        // A span that leads out of the calendar takes in everything.
        let since = newest.checked_sub(within).ok().map(|t| t.timestamp().as_second());
        for (c, _) in credited.iter().filter(|(c, _)| since.is_none_or(|s| c.created_at > s)) {
            reasons.entry(&c.id).or_default().push(format!("within {within:#}"));
        }
    }
    let verified = |c: &&&Candidate| c.verified && !future(c);
    let newest_verified = order.iter().find(verified);
    if let Some(newest) = newest_verified {
        reasons.entry(&newest.id).or_default().push("newest verified".into());
    }
    if let Some(newest) = order.iter().find(|c| verified(c) && !c.suspect)
        && newest_verified.is_some_and(|v| v.suspect)
    {
        let why = "newest verified that is not suspect".into();
        reasons.entry(&newest.id).or_default().push(why);
    }
    let newest_complete = credited.iter().find(|(c, _)| !c.incomplete).map(|(c, _)| *c);
    if let Some(newest) = newest_complete {
        let why = reasons.entry(&newest.id).or_default();
        if why.is_empty() {
            why.push("newest complete".into());
        }
    }
    let newest_good = newest_complete.map(|c| c.created_at);
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
                .push("suspect, but no complete good backup is newer; not counted".into());
        }
    }
    order
        .iter()
        .map(|c| {
            let why = reasons.remove(&c.id).unwrap_or_default();
            let keep = !why.is_empty();
            let reasons = match (keep, c.suspect) {
                (true, _) => why,
                (false, true) => vec!["suspect, and a complete good backup is newer".into()],
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
            incomplete: false,
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
            within: Some(Span::new().hours(48)),
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
        assert_eq!(
            kept(&daily, &all, "2026-01-11T00:00:00Z"),
            ["20260110t12", "20260110t03"]
        );
        let why = decide(&daily, &all, at("2026-01-11T00:00:00Z"));
        assert_eq!(why[0].reasons, ["newest complete"], "the day is the verified one's");
        // What is neither the day's nor the newest of its kind goes.
        all.push(candidate(7, at("2026-01-10T14:00:00Z")));
        assert_eq!(
            kept(&daily, &all, "2026-01-11T00:00:00Z"),
            ["20260110t14", "20260110t03"]
        );
        all.pop();
        all[1].verified = false;
        all[2].verified = true;
        assert_eq!(
            kept(&daily, &all, "2026-01-11T00:00:00Z"),
            ["20260110t12", "20260105t03"]
        );
    }

    #[test]
    fn incomplete_ones_are_credited_and_complete_ones_preferred() {
        // Three weeks in which one bridge fails every night.
        let mut all: Vec<Candidate> = (0..22)
            .map(|n| candidate(n, at("2026-01-22T03:00:00Z") - 86_400 * n as i64))
            .collect();
        for c in &mut all[..21] {
            c.incomplete = true;
        }
        let daily = Rules { daily: 7, ..rules() };
        let decisions = decide(&daily, &all, at("2026-01-22T12:00:00Z"));
        let keep: Vec<bool> = decisions.iter().map(|d| d.keep).collect();
        assert_eq!(keep[..7], [true; 7]);
        assert_eq!(keep[7..21], [false; 14]);
        assert_eq!(decisions[21].reasons, ["newest complete"]);
        assert!(
            decisions.iter().all(|d| !d.reasons.join(" ").contains("suspect")),
            "{decisions:?}"
        );
        // The first complete one takes nobody's day but its own.
        let complete = candidate(30, at("2026-01-22T09:00:00Z"));
        all.insert(0, complete);
        let decisions = decide(&daily, &all, at("2026-01-22T12:00:00Z"));
        let keep: Vec<bool> = decisions.iter().map(|d| d.keep).collect();
        assert_eq!((keep[0], keep[1]), (true, false), "of one day the complete one");
        assert_eq!(keep[2..8], [true; 6]);
        // Of one day the complete one, also when it is older, or the other is verified.
        let mut day = times(&["2026-01-10T12:00:00Z", "2026-01-10T03:00:00Z"]);
        day[0].incomplete = true;
        let one = Rules { daily: 1, ..rules() };
        assert_eq!(kept(&one, &day, "2026-01-11T00:00:00Z"), ["20260110t03"]);
        day[0].verified = true;
        let decisions = decide(&one, &day, at("2026-01-11T00:00:00Z"));
        assert_eq!(decisions[0].reasons, ["newest verified"]);
        assert_eq!(decisions[1].reasons, ["daily 1 (2026-01-10)"]);
    }

    #[test]
    fn the_newest_verified_stays_though_it_is_suspect() {
        let mut all = times(&["2026-01-03T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"]);
        all[1].verified = true;
        all[1].suspect = true;
        all[2].verified = true;
        let last = Rules { last: 1, ..rules() };
        let decisions = decide(&last, &all, at("2026-01-04T00:00:00Z"));
        assert_eq!(decisions[1].reasons, ["newest verified"]);
        assert_eq!(decisions[2].reasons, ["newest verified that is not suspect"]);
    }

    #[test]
    fn a_suspect_one_stays_until_a_complete_one_is_newer() {
        let mut all = times(&["2026-01-03T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"]);
        all[0].incomplete = true;
        all[1].suspect = true;
        let last = Rules { last: 1, ..rules() };
        assert_eq!(kept(&last, &all, "2026-01-04T00:00:00Z").len(), 3);
        all[0].incomplete = false;
        assert_eq!(kept(&last, &all, "2026-01-04T00:00:00Z"), ["20260103t00"]);
    }

    #[test]
    fn hours_months_and_years_are_those_of_the_calendar() {
        let all = times(&["2026-03-01T10:59:59Z", "2026-03-01T10:00:00Z", "2026-03-01T09:59:59Z"]);
        let hourly = Rules { hourly: 2, ..rules() };
        let ids = |rules: &Rules, all: &[Candidate]| {
            let now = at("2027-01-01T00:00:00Z");
            let kept = decide(rules, all, now).into_iter().filter(|d| d.keep);
            kept.map(|d| d.id.as_str()[..15].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&hourly, &all), ["20260301t105959", "20260301t095959"]);
        let all = times(&[
            "2026-03-01T00:00:00Z",
            "2026-02-28T23:59:59Z",
            "2026-02-01T00:00:00Z",
            "2026-01-31T00:00:00Z",
        ]);
        let monthly = Rules { monthly: 2, ..rules() };
        assert_eq!(ids(&monthly, &all), ["20260301t000000", "20260228t235959"]);
        let all = times(&[
            "2026-01-01T00:00:00Z",
            "2025-12-31T23:59:59Z",
            "2025-01-01T00:00:00Z",
            "2024-12-31T00:00:00Z",
        ]);
        let yearly = Rules { yearly: 2, ..rules() };
        assert_eq!(ids(&yearly, &all), ["20260101t000000", "20251231t235959"]);
        // The last days of 2024 are of the first week of 2025.
        let all = times(&["2025-01-05T00:00:00Z", "2024-12-30T00:00:00Z", "2024-12-29T00:00:00Z"]);
        let weekly = Rules { weekly: 1, ..rules() };
        let decisions = decide(&weekly, &all, at("2025-02-01T00:00:00Z"));
        assert_eq!(decisions[0].reasons, ["weekly 1 (2025-W01)"]);
        assert_eq!(decisions.iter().filter(|d| d.keep).count(), 1);
        assert_eq!(week(&"2024-12-30T00:00:00+00:00[UTC]".parse().unwrap()), "2025-W01");
    }

    #[test]
    fn the_hour_that_comes_twice_is_two() {
        // In Berlin 2025-10-26 02:30 is at 00:30 and at 01:30 UTC.
        let all = times(&[
            "2025-10-26T01:30:00Z",
            "2025-10-26T00:30:00Z",
            "2025-10-26T00:10:00Z",
            "2025-10-25T23:30:00Z",
        ]);
        let hourly = Rules {
            hourly: 2,
            ..Rules::in_zone("Europe/Berlin").unwrap()
        };
        let decisions = decide(&hourly, &all, at("2025-11-01T00:00:00Z"));
        assert_eq!(decisions[0].reasons, ["hourly 2 (2025-10-26 02 +0100)"]);
        assert_eq!(decisions[1].reasons, ["hourly 2 (2025-10-26 02 +0200)"]);
        assert_eq!(decisions.iter().filter(|d| d.keep).count(), 2);
        // The hour that is left out in spring is none.
        let spring = times(&["2025-03-30T01:30:00Z", "2025-03-30T00:30:00Z"]);
        assert_eq!(kept(&hourly, &spring, "2025-04-01T00:00:00Z").len(), 2);
    }

    #[test]
    fn within_months_are_those_of_the_calendar() {
        let all = times(&[
            "2026-04-30T12:00:00Z",
            "2026-02-28T12:00:01Z",
            "2026-02-28T12:00:00Z",
            "2026-02-01T00:00:00Z",
        ]);
        let within = |span: Span, zone: &str| Rules {
            within: Some(span),
            ..Rules::in_zone(zone).unwrap()
        };
        let now = at("2026-05-01T00:00:00Z");
        let keep = |rules: &Rules, all: &[Candidate]| {
            let kept: Vec<bool> = decide(rules, all, now).iter().map(|d| d.keep).collect();
            kept
        };
        assert_eq!(
            keep(&within(Span::new().months(2), "UTC"), &all),
            [true, true, false, false]
        );
        assert_eq!(keep(&within(Span::new().years(1), "UTC"), &all), [true; 4]);
        // A day across the change to summer time has 23 hours.
        let days = times(&["2026-03-29T10:00:00Z", "2026-03-28T11:00:01Z", "2026-03-28T10:30:00Z"]);
        assert_eq!(
            keep(&within(Span::new().days(1), "Europe/Berlin"), &days),
            [true, true, false]
        );
        assert_eq!(keep(&within(Span::new().hours(24), "Europe/Berlin"), &days), [true; 3]);
        // Out of the calendar: everything.
        assert_eq!(keep(&within(Span::new().years(19_000), "UTC"), &all), [true; 4]);
    }

    /// What restic documents and does, for lists without anything it does not know: newest first, in UTC.
    fn restic(rules: &Rules, list: &[Candidate]) -> Vec<bool> {
        let time = |c: &Candidate| {
            Timestamp::from_second(c.created_at)
                .unwrap()
                .to_zoned_datetime(TimeZone::UTC)
        };
        let week = |t: &jiff::ZonedDateTime| {
            let week = t.date().iso_week_date();
            (i64::from(week.year()), i64::from(week.week()), 0, 0)
        };
        let ymdh = |t: &jiff::ZonedDateTime, n: u32| {
            let all = [t.year().into(), t.month().into(), t.day().into(), i64::from(t.hour())];
            let part = |k: u32| if k < n { all[k as usize] } else { 0 };
            (part(0), part(1), part(2), part(3))
        };
        let mut buckets = [
            rules.last,
            rules.hourly,
            rules.daily,
            rules.weekly,
            rules.monthly,
            rules.yearly,
        ]
        .map(|count| (count, None));
        let mut keep = vec![false; list.len()];
        for (nr, t) in list.iter().map(time).enumerate() {
            if let Some(span) = rules.within {
                keep[nr] |= t > time(&list[0]).checked_sub(span).unwrap();
            }
            let values = [
                (nr as i64, -1, 0, 0),
                ymdh(&t, 4),
                ymdh(&t, 3),
                week(&t),
                ymdh(&t, 2),
                ymdh(&t, 1),
            ];
            for ((count, last), value) in buckets.iter_mut().zip(values) {
                if *count > 0 && (*last != Some(value) || nr == list.len() - 1) {
                    keep[nr] = true;
                    *last = Some(value);
                    if *count != Rules::ALL {
                        *count -= 1;
                    }
                }
            }
        }
        keep
    }

    proptest! {
        /// Where nothing is known but times, it is restic's answer.
        #[test]
        fn times_alone_are_decided_on_as_restic_does(
            hours in proptest::collection::vec(0i64..3 * 366 * 24, 1..60),
            near in proptest::collection::vec(0i64..200, 0..20),
            counts in any::<[u8; 6]>(),
            within in proptest::option::of((0i64..2, 0i64..14, 0i64..40, 0i64..50)),
        ) {
            let newest = at("2026-01-03T12:00:00Z");
            let mut ago: Vec<i64> = hours.into_iter().chain(near).map(|h| h * 1800).collect();
            ago.sort_unstable();
            let all: Vec<Candidate> = ago.iter().enumerate().map(|(n, ago)| {
                Candidate { sequence: 1000 - n as u64, ..candidate(n, newest - ago) }
            }).collect();
            let [last, hourly, daily, weekly, monthly, yearly] = counts.map(|c| match c % 9 {
                8 => Rules::ALL,
                n => u32::from(n),
            });
            let within = within.map(|(y, m, d, h)| Span::new().years(y).months(m).days(d).hours(h));
            let rules = Rules { last, hourly, daily, weekly, monthly, yearly, within, ..rules() };
            prop_assume!(!rules.are_none() && within.is_none_or(|w| !w.is_zero()));
            let ours: Vec<bool> = decide(&rules, &all, newest).iter().map(|d| d.keep).collect();
            prop_assert_eq!(ours, restic(&rules, &all));
        }

        /// Whatever the rules: the newest verified and the newest complete are kept, more rules never keep less, bad ones change nothing.
        #[test]
        fn rules_only_ever_add(
            offsets in proptest::collection::vec((0i64..400*86400, any::<[bool; 3]>()), 1..40),
            counts in any::<[u8; 6]>(),
        ) {
            let now = at("2026-01-01T00:00:00Z");
            let all: Vec<Candidate> = offsets.iter().enumerate().map(|(n, (ago, is))| {
                let [verified, suspect, incomplete] = *is;
                Candidate { verified, suspect, incomplete, ..candidate(n, now - ago) }
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
            for newest in [
                sorted.iter().find(|c| c.verified),
                sorted.iter().find(|c| !c.incomplete && !c.suspect),
            ].into_iter().flatten() {
                prop_assert!(base.contains(&newest.id));
            }
            let more = Rules { last: last + 1, ..rules.clone() };
            prop_assert!(kept(&more, &all).is_superset(&base));
            let good: Vec<Candidate> = all.iter().filter(|c| !c.suspect).cloned().collect();
            prop_assert!(base.is_superset(&kept(&rules, &good)));
        }
    }
}
