//! A difference in words.

use super::files::Named;
use super::{ArtifactDiff, Change, ComponentDiff, Diff, Pair};
use crate::time::utc;
use std::fmt::Write;

/// Facts with a `/` are counts of tables, which the artifacts tell.
fn is_count(key: &str) -> bool {
    key.contains('/')
}

impl Diff {
    /// In words.
    pub fn text(&self) -> String {
        let mut t = String::new();
        // Writing to a String does not fail.
        for (word, side) in [("from", &self.from), ("to  ", &self.to)] {
            let _ = writeln!(
                t,
                "{word} {}, taken {} UTC: {} bytes, of them {} new when it was taken, {} stored",
                side.backup,
                utc(side.taken_at),
                side.bytes,
                side.new_bytes,
                side.stored_bytes
            );
        }
        for c in &self.components {
            c.describe(&mut t);
        }
        if !self.changed {
            t.push_str("\nnothing changed\n");
        }
        t
    }
}

impl ComponentDiff {
    fn describe(&self, t: &mut String) {
        let end = match self.change {
            Change::Added => ": only in the second",
            Change::Removed => ": only in the first",
            Change::Changed => "",
            Change::Same => ": the same",
        };
        let _ = writeln!(t, "\n{}{end}", self.component);
        for (which, why) in [("first", &self.failed.from), ("second", &self.failed.to)] {
            if let Some(why) = why {
                let _ = writeln!(t, "  NOT WHOLE in the {which}: {why}");
            }
        }
        if self.change == Change::Changed && self.version.changed() {
            let _ = writeln!(t, "  component version {}", pair(&self.version));
        }
        for (label, digests) in &self.schemas {
            if self.change == Change::Changed {
                let short = Pair {
                    from: digests.from.as_deref().map(short),
                    to: digests.to.as_deref().map(short),
                };
                let _ = writeln!(t, "  definitions of {label} changed: {}", pair(&short));
            }
        }
        for (key, values) in self.facts.iter().filter(|(key, _)| !is_count(key)) {
            let _ = writeln!(t, "  {key}: {}", pair(values));
        }
        for artifact in &self.artifacts {
            artifact.describe(t);
        }
        if self.same > 0 {
            let _ = writeln!(t, "  {} artifact(s) the same", self.same);
        }
    }
}

impl ArtifactDiff {
    fn describe(&self, t: &mut String) {
        let sign = match self.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed | Change::Same => '~',
        };
        let _ = write!(t, "  {sign} {:<50} {:<16}", self.artifact, self.kind);
        if self.items != (Pair { from: None, to: None }) {
            let _ = write!(t, " {} items,", numbers(&self.items));
        }
        let _ = write!(t, " {} bytes", numbers(&self.bytes));
        if let (Change::Changed, Some(new)) = (self.change, self.new_bytes) {
            let _ = write!(t, ", {new} of them new");
        }
        t.push('\n');
        let Some(files) = &self.files else { return };
        let all = [
            ('+', "added", &files.added),
            ('-', "removed", &files.removed),
            ('~', "changed", &files.changed),
            ('o', "with other owner, mode, time or attributes", &files.attributes),
        ];
        for (sign, word, named) in all {
            list(t, sign, word, named);
        }
    }
}

fn list(t: &mut String, sign: char, word: &str, named: &Named) {
    if named.count == 0 {
        return;
    }
    let _ = writeln!(t, "      {} {word}", named.count);
    for path in &named.first {
        let _ = writeln!(t, "        {sign} {path}");
    }
    let more = named.count.saturating_sub(named.first.len() as u64);
    if more > 0 {
        let _ = writeln!(t, "          and {more} more");
    }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn pair<T: std::fmt::Display>(pair: &Pair<T>) -> String {
    let word = |v: &Option<T>| v.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    format!("{} → {}", word(&pair.from), word(&pair.to))
}

/// Two numbers, and by how much the second differs; one where only one is there.
fn numbers(pair: &Pair<u64>) -> String {
    match (pair.from, pair.to) {
        (Some(from), Some(to)) if from == to => to.to_string(),
        (Some(from), Some(to)) => format!("{from} → {to} ({:+})", i128::from(to) - i128::from(from)),
        (Some(one), None) | (None, Some(one)) => one.to_string(),
        (None, None) => "?".to_owned(),
    }
}
