//! A guest's words, made fit for a terminal and a log: bounded, one line, no control characters.
//!
//! Escape sequences in a log line or a plan's note could repaint the operator's terminal; a newline could forge a line
//! of another component. So control characters (C0, DEL, C1) and the invisible ones that reorder text become U+FFFD.

use crate::Limits;

/// Bytes of one log line.
pub(crate) const LINE: usize = 1024;

fn hostile(c: char) -> bool {
    // Bidirectional overrides and isolates let text read differently from what it is.
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// One line of at most `most` bytes without control characters.
pub(crate) fn line(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most + 4));
    for c in text.chars() {
        let c = match c {
            '\t' => ' ',
            c if hostile(c) => '\u{fffd}',
            c => c,
        };
        if out.len() + c.len_utf8() > most {
            // The mark may go a little beyond; what matters is that the line is bounded.
            out.push('…');
            return out;
        }
        out.push(c);
    }
    out
}

/// Text for a person that may have several lines; each is cleaned.
pub(crate) fn paragraph(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '\n',
            '\t' => ' ',
            c if hostile(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// True if the text holds something that has no place in a name, path or pattern.
pub(crate) fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// What a guest may still write.
#[derive(Debug)]
pub(crate) struct Budget {
    lines: u32,
    bytes: u64,
    offered: u64,
    most_offered: u64,
    spent: bool,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Write(String),
    /// The budget ends with this one: say so once.
    Last,
    Drop,
    /// So much that even dropping it costs the host too much.
    Flood,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Budget {
            lines: limits.log_lines,
            bytes: limits.log,
            offered: 0,
            most_offered: limits.log.saturating_mul(64).max(limits.held),
            spent: false,
        }
    }

    pub(crate) fn take(&mut self, message: &str) -> Verdict {
        self.offered = self.offered.saturating_add(message.len() as u64);
        if self.offered > self.most_offered {
            return Verdict::Flood;
        }
        if self.spent {
            return Verdict::Drop;
        }
        let line = line(message, LINE);
        match (self.lines.checked_sub(1), self.bytes.checked_sub(line.len() as u64)) {
            (Some(lines), Some(bytes)) => {
                self.lines = lines;
                self.bytes = bytes;
                Verdict::Write(line)
            }
            _ => {
                self.spent = true;
                Verdict::Last
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_harmless() {
        assert_eq!(
            line("a\x1b[2J\u{9b}b\nc\u{202e}d\te\0", LINE),
            "a\u{fffd}[2J\u{fffd}b\u{fffd}c\u{fffd}d e\u{fffd}"
        );
        let long = line(&"ä".repeat(5000), LINE);
        assert!(long.len() <= LINE + 4 && long.ends_with('…'), "{}", long.len());
        assert_eq!(line(&"x".repeat(LINE), LINE).len(), LINE);
    }

    #[test]
    fn a_budget_ends_once_and_a_flood_is_told() {
        let mut b = Budget::new(&Limits {
            log_lines: 2,
            log: 100,
            held: 10_000,
            ..Limits::default()
        });
        assert_eq!(b.take("x"), Verdict::Write("x".into()));
        assert_eq!(b.take("y"), Verdict::Write("y".into()));
        assert_eq!(b.take("z"), Verdict::Last);
        assert_eq!(b.take("z"), Verdict::Drop);
        assert_eq!(b.take(&"z".repeat(20_000)), Verdict::Flood);
    }
}
