//! Which entries a rule means: `*` within a path segment, `**` any number of segments (also none), and a match covers
//! everything below.
//!
//! Patterns are followed one directory level at a time, so a walk asks for each name once, and knows of each directory
//! whether anything below it can still match.

use crate::VolumeError;

/// A set of compiled patterns.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    patterns: Vec<Vec<Segment>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// `**`
    Any,
    /// Literal pieces with any bytes between them: `a*b` is `["a", "b"]`.
    Glob(Vec<Vec<u8>>),
}

/// Where a directory stands with respect to a set of patterns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Within {
    /// A pattern matched here or above: everything below is covered.
    covered: bool,
    /// (pattern, next segment) pairs that can still match below.
    open: Vec<(usize, usize)>,
}

impl Within {
    /// A pattern matched this entry or one above it.
    pub fn covered(&self) -> bool {
        self.covered
    }

    /// Something below may match.
    pub fn may_match_below(&self) -> bool {
        self.covered || !self.open.is_empty()
    }
}

impl Patterns {
    /// Compiles patterns; each is refused when it is empty, absolute, has an empty, `.` or `..` segment, a NUL byte, or
    /// `**` as part of a segment.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, VolumeError> {
        let patterns = patterns.into_iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Patterns { patterns })
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Where the root stands.
    pub fn root(&self) -> Within {
        let mut within = Within::default();
        for pattern in 0..self.patterns.len() {
            self.reach(&mut within, pattern, 0);
        }
        within
    }

    /// Where the entry `name` of a directory stands.
    pub fn enter(&self, directory: &Within, name: &[u8]) -> Within {
        let mut within = Within::default();
        if directory.covered {
            within.covered = true;
            return within;
        }
        for &(pattern, at) in &directory.open {
            match self.patterns.get(pattern).and_then(|p| p.get(at)) {
                Some(Segment::Any) => self.reach(&mut within, pattern, at),
                Some(Segment::Glob(pieces)) if glob(pieces, name) => self.reach(&mut within, pattern, at + 1),
                _ => {}
            }
        }
        within
    }

    /// Whether `path` (relative, with `/`) or anything above it matches.
    pub fn covers(&self, path: &[u8]) -> bool {
        let mut within = self.root();
        for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
            within = self.enter(&within, name);
        }
        within.covered
    }

    fn reach(&self, within: &mut Within, pattern: usize, at: usize) {
        let Some(segments) = self.patterns.get(pattern) else {
            return;
        };
        let mut at = at;
        loop {
            match segments.get(at) {
                None => {
                    within.covered = true;
                    return;
                }
                Some(segment) => {
                    if !within.open.contains(&(pattern, at)) {
                        within.open.push((pattern, at));
                    }
                    if *segment != Segment::Any {
                        return;
                    }
                    // `**` also stands for no segment at all.
                    at += 1;
                }
            }
        }
    }
}

fn compile(pattern: &str) -> Result<Vec<Segment>, VolumeError> {
    let refuse = |why: &str| Err(VolumeError::invalid(format!("pattern {pattern:?}"), why));
    if pattern.is_empty() {
        return refuse("is empty; leave the list empty to take all");
    }
    if pattern.len() > 4096 {
        return refuse("is longer than 4096 bytes");
    }
    if pattern.starts_with('/') {
        return refuse("is absolute; write it relative to the volume's root");
    }
    if pattern.contains('\0') {
        return refuse("contains a NUL byte");
    }
    let mut segments = Vec::new();
    for segment in pattern.trim_end_matches('/').split('/') {
        match segment {
            "" => return refuse("has an empty segment"),
            "." | ".." => return refuse("has a `.` or `..` segment"),
            // Two in a row mean the same as one, and cost more.
            "**" if segments.last() == Some(&Segment::Any) => {}
            "**" => segments.push(Segment::Any),
            s if s.contains("**") => return refuse("has `**` as part of a segment; write it as a segment of its own"),
            s => segments.push(Segment::Glob(s.split('*').map(|p| p.as_bytes().to_vec()).collect())),
        }
    }
    Ok(segments)
}

/// Matches literal pieces with anything between them. Greedy from the left is exact, since only the ends are fixed.
fn glob(pieces: &[Vec<u8>], name: &[u8]) -> bool {
    let Some((first, rest)) = pieces.split_first() else {
        return name.is_empty();
    };
    let Some(mut left) = name.strip_prefix(first.as_slice()) else {
        return false;
    };
    let Some((last, middle)) = rest.split_last() else {
        return left.is_empty();
    };
    for piece in middle.iter().filter(|p| !p.is_empty()) {
        let Some(at) = left.windows(piece.len()).position(|w| w == piece.as_slice()) else {
            return false;
        };
        left = left.get(at + piece.len()..).unwrap_or_default();
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(pattern: &str, path: &str) -> bool {
        Patterns::new([pattern]).unwrap().covers(path.as_bytes())
    }

    #[test]
    fn the_contract() {
        for (pattern, path, expected) in [
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "ab", false),
            ("a", "b/a", false),
            ("a/b", "a", false),
            ("a/*", "a", false),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", true),
            ("*", "a/b", true),
            ("*.txt", "x.txt", true),
            ("*.txt", "x.txt/y", true),
            ("*.txt", "d/x.txt", false),
            ("**/*.txt", "x.txt", true),
            ("**/*.txt", "d/e/x.txt", true),
            ("**/*.txt", "d/e/x.tx", false),
            ("a/**", "a", true),
            ("a/**", "a/b/c", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b/z", true),
            ("a/**/b", "a/x/y", false),
            ("**", "a", true),
            ("**", "", true),
            ("a*b*c", "aXbXc", true),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acb", false),
            ("aa*aa", "aaa", false),
            ("aa*aa", "aaaa", true),
            ("a/", "a/b", true),
            ("[a]", "a", false),
            ("?", "a", false),
        ] {
            assert_eq!(covers(pattern, path), expected, "{pattern} on {path}");
        }
        let raw = Patterns::new(["*x"]).unwrap();
        assert!(raw.covers(b"\xff\xfex"));
    }

    #[test]
    fn hostile_patterns_are_refused() {
        let long = "a/".repeat(3000);
        for bad in [
            "",
            "/",
            "/a",
            "a//b",
            ".",
            "..",
            "a/../b",
            "./a",
            "a**",
            "**b",
            "***",
            "a\0b",
            long.as_str(),
        ] {
            assert!(Patterns::new([bad]).is_err(), "{bad:?}");
        }
    }

    /// The plain meaning, in exponential time.
    fn plainly(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.first(), path.first()) {
            (None, _) => true,
            (Some(&"**"), None) => plainly(&pattern[1..], path),
            (Some(&"**"), Some(_)) => plainly(&pattern[1..], path) || plainly(pattern, &path[1..]),
            (Some(_), None) => false,
            (Some(p), Some(n)) => letters(p.as_bytes(), n.as_bytes()) && plainly(&pattern[1..], &path[1..]),
        }
    }

    fn letters(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => letters(&pattern[1..], name) || (!name.is_empty() && letters(pattern, &name[1..])),
            (Some(p), Some(n)) if p == n => letters(&pattern[1..], &name[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_the_plain_meaning(
            pattern in proptest::collection::vec("(\\*\\*|[ab]{1,2}|[ab]?\\*[ab]?|[ab]\\*[ab]\\*)", 1..5),
            path in proptest::collection::vec("[ab]{1,4}", 0..6),
        ) {
            let pattern: Vec<&str> = pattern.iter().map(String::as_str).collect();
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let compiled = Patterns::new([pattern.join("/").as_str()]).unwrap();
            prop_assert_eq!(compiled.covers(path.join("/").as_bytes()), plainly(&pattern, &path));
            // What is covered must have been reachable from every directory above it.
            if plainly(&pattern, &path) {
                let mut within = compiled.root();
                for name in &path {
                    prop_assert!(within.may_match_below());
                    within = compiled.enter(&within, name.as_bytes());
                }
            }
        }

        #[test]
        fn any_text_compiles_or_is_refused(pattern in ".{0,40}", path in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(patterns) = Patterns::new([pattern.as_str()]) {
                patterns.covers(&path);
            }
        }
    }
}
