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
