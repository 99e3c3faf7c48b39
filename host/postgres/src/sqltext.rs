//! Where SQL's tokens begin and end, as PostgreSQL's own lexer sees it with standard_conforming_strings on.
//!
//! Used for two things only: to cut `pg_dump`'s script into statements without being fooled by semicolons, backslashes
//! or comment marks inside literals and function bodies; and to see that a fragment from outside (a guest's query, a row
//! filter) is closed in itself before it is put between parentheses. It does not understand SQL beyond that.

use std::ops::Range;

/// What a token is, as far as we care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// White space or a comment.
    Gap,
    /// A string literal of any kind.
    Literal,
    /// `"quoted"`
    Quoted,
    /// A bare word: keyword or identifier.
    Word,
    /// Any other single character.
    Char(u8),
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub kind: Kind,
    pub at: Range<usize>,
}

/// Cuts text into tokens; the error says what does not end.
pub(crate) struct Tokens<'a> {
    text: &'a str,
    pos: usize,
}

impl<'a> Tokens<'a> {
    pub fn new(text: &'a str) -> Self {
        Tokens { text, pos: 0 }
    }

    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    fn find(&self, from: usize, needle: &str) -> Option<usize> {
        self.text.get(from..)?.find(needle).map(|at| from + at)
    }

    /// The end of a quoted run that begins at `from` (after the opening quote); doubled quotes belong to it.
    fn quoted(&self, from: usize, quote: u8, escapes: bool) -> Option<usize> {
        let mut at = from;
        while at < self.text.len() {
            let b = self.byte(at);
            if escapes && b == b'\\' {
                at += 2;
            } else if b == quote {
                if self.byte(at + 1) != quote {
                    return Some(at + 1);
                }
                at += 2;
            } else {
                at += 1;
            }
        }
        None
    }

    /// The end of a string with escapes that begins at `from` (after the opening quote). One that goes on on another line
    /// goes on with escapes.
    fn escaped(&self, from: usize) -> Option<usize> {
        let mut end = self.quoted(from, b'\'', true)?;
        while let Some(next) = self.continued(end) {
            end = self.quoted(next, b'\'', true)?;
        }
        Some(end)
    }

    /// Where the string that ended at `from` goes on, after its opening quote: at least one line end between, and nothing
    /// else but white space and comments to the end of a line.
    fn continued(&self, from: usize) -> Option<usize> {
        let (mut at, mut line_end) = (from, false);
        loop {
            match self.byte(at) {
                b'\'' if line_end => return Some(at + 1),
                b'\n' | b'\r' => (line_end, at) = (true, at + 1),
                b' ' | b'\t' | 0x0b | 0x0c => at += 1,
                b'-' if self.byte(at + 1) == b'-' => {
                    while at < self.text.len() && !matches!(self.byte(at), b'\n' | b'\r') {
                        at += 1;
                    }
                }
                _ => return None,
            }
        }
    }

    fn comment(&self, from: usize) -> Option<usize> {
        let (mut depth, mut at) = (1u32, from);
        while at < self.text.len() {
            match (self.byte(at), self.byte(at + 1)) {
                (b'/', b'*') => (depth, at) = (depth + 1, at + 2),
                (b'*', b'/') => {
                    (depth, at) = (depth - 1, at + 2);
                    if depth == 0 {
                        return Some(at);
                    }
                }
                _ => at += 1,
            }
        }
        None
    }

    /// `$tag$ … $tag$` when a dollar quote begins at `from`.
    fn dollar(&self, from: usize) -> Option<Result<usize, &'static str>> {
        let mut at = from + 1;
        if word_start(self.byte(at)) {
            while word_start(self.byte(at)) || self.byte(at).is_ascii_digit() {
                at += 1;
            }
        }
        if self.byte(at) != b'$' {
            return None;
        }
        let tag = self.text.get(from..=at)?;
        Some(match self.find(at + 1, tag) {
            Some(end) => Ok(end + tag.len()),
            None => Err("a dollar-quoted string does not end"),
        })
    }
}

fn word_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn word_part(b: u8) -> bool {
    word_start(b) || b.is_ascii_digit() || b == b'$'
}

impl Iterator for Tokens<'_> {
    type Item = Result<Token, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.pos;
        if from >= self.text.len() {
            return None;
        }
        let b = self.byte(from);
        let next = self.byte(from + 1);
        let unclosed_string = "a string does not end";
        let found = if b.is_ascii_whitespace() || b == 0x0b {
            let mut at = from;
            while at < self.text.len() && (self.byte(at).is_ascii_whitespace() || self.byte(at) == 0x0b) {
                at += 1;
            }
            Ok((Kind::Gap, at))
        } else if b == b'-' && next == b'-' {
            // A line ends at a line feed or a carriage return.
            let end = self.text.as_bytes().get(from..).unwrap_or_default().iter();
            let length = end.take_while(|b| !matches!(b, b'\n' | b'\r')).count();
            Ok((Kind::Gap, from + length))
        } else if b == b'/' && next == b'*' {
            self.comment(from + 2)
                .map(|at| (Kind::Gap, at))
                .ok_or("a comment does not end")
        } else if b == b'\'' {
            self.quoted(from + 1, b'\'', false)
                .map(|at| (Kind::Literal, at))
                .ok_or(unclosed_string)
        } else if matches!(b, b'e' | b'E') && next == b'\'' {
            self.escaped(from + 2)
                .map(|at| (Kind::Literal, at))
                .ok_or(unclosed_string)
        } else if b == b'"' {
            self.quoted(from + 1, b'"', false)
                .map(|at| (Kind::Quoted, at))
                .ok_or("a quoted name does not end")
        } else if word_start(b) {
            let mut at = from;
            while word_part(self.byte(at)) && at < self.text.len() {
                at += 1;
            }
            Ok((Kind::Word, at))
        } else if b.is_ascii_digit() {
            // `1e'x'` or `1$a$`: a number takes its letters with it.
            let mut at = from;
            while self.byte(at).is_ascii_alphanumeric() || self.byte(at) == b'_' {
                at += 1;
            }
            // What begins there is a string to some servers, and the end of another's name to others.
            match self.byte(at) {
                b'\'' | b'"' | b'$' => Err("a number runs into a quote"),
                _ => Ok((Kind::Char(b'0'), at)),
            }
        } else if b == b'$' {
            match self.dollar(from) {
                Some(Ok(at)) => Ok((Kind::Literal, at)),
                Some(Err(e)) => Err(e),
                None => Ok((Kind::Char(b'$'), from + 1)),
            }
        } else {
            Ok((Kind::Char(b), from + 1))
        };
        Some(match found {
            Ok((kind, end)) => {
                self.pos = end;
                Ok(Token { kind, at: from..end })
            }
            Err(e) => {
                self.pos = self.text.len();
                Err(e)
            }
        })
    }
}

/// Whether a fragment may be put between parentheses: all closed, nothing closed that it did not open, no semicolon.
pub(crate) fn closed(fragment: &str) -> Result<(), &'static str> {
    if fragment.contains('\0') {
        return Err("it holds a NUL character");
    }
    // What is open: a bracket must not close a parenthesis, or `[1) … (2]` would look closed.
    let mut open: Vec<u8> = Vec::new();
    let mut empty = true;
    for token in Tokens::new(fragment) {
        let token = token?;
        empty &= token.kind == Kind::Gap;
        match token.kind {
            Kind::Char(b'(') => open.push(b')'),
            Kind::Char(b'[') => open.push(b']'),
            Kind::Char(close @ (b')' | b']')) if open.pop() != Some(close) => {
                return Err("it closes a parenthesis it did not open");
            }
            Kind::Char(b';') => return Err("it holds a semicolon"),
            Kind::Char(b'\\') => return Err("it holds a backslash outside a string"),
            // What such a name means cannot be seen without undoing the escapes, and nothing honest needs them.
            Kind::Literal | Kind::Quoted
                if fragment
                    .get(..token.at.start)
                    .is_some_and(|t| t.ends_with("U&") || t.ends_with("u&")) =>
            {
                return Err("it spells a name or a string by code points (U&)");
            }
            _ => {}
        }
    }
    if empty {
        Err("it is empty")
    } else if !open.is_empty() {
        Err("it leaves a parenthesis open")
    } else {
        Ok(())
    }
}

/// A statement of a script, without the gaps around it and the semicolon after it: a comment at its end would swallow
/// what is put behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    pub sql: String,
    /// Its first words, upper case, quoted names left out: `CREATE UNIQUE INDEX …`; at most 256.
    pub words: Vec<String>,
}

impl Statement {
    pub fn starts(&self, words: &[&str]) -> bool {
        self.words.len() >= words.len() && self.words.iter().zip(words).all(|(have, want)| have == want)
    }
}

/// Cuts a `pg_dump` script into statements. `\restrict` and `\unrestrict` lines are dropped; any other backslash
/// outside a literal would be a command to psql, which nothing of ours may carry out, and is refused.
pub(crate) fn statements(script: &str) -> Result<Vec<Statement>, String> {
    let mut out = Vec::new();
    let mut start = None::<usize>;
    // Behind its last token that is no gap.
    let mut end = 0;
    let mut words: Vec<String> = Vec::new();
    // As psql does it, for `CREATE FUNCTION … BEGIN ATOMIC …; …; END`.
    let (mut depth, mut begin) = (0i64, 0u32);
    let mut rest = Tokens::new(script);
    while let Some(token) = rest.next() {
        let token = token.map_err(|e| format!("the script is cut off: {e}"))?;
        let text = script.get(token.at.clone()).unwrap_or("");
        match token.kind {
            Kind::Gap => continue,
            Kind::Char(b'\\') => {
                let line = script.get(token.at.start..).unwrap_or("").lines().next().unwrap_or("");
                let command = line.split_whitespace().next().unwrap_or("");
                if start.is_some() || !matches!(command, "\\restrict" | "\\unrestrict") {
                    return Err("the script holds a psql command other than \\restrict".to_owned());
                }
                rest.pos = token.at.start + line.len();
                continue;
            }
            Kind::Char(b'(') => depth += 1,
            Kind::Char(b')') => depth -= 1,
            Kind::Char(b';') if depth <= 0 && begin == 0 => {
                if let Some(from) = start.take() {
                    out.push(Statement {
                        sql: script.get(from..end).unwrap_or("").to_owned(),
                        words: std::mem::take(&mut words),
                    });
                }
                depth = 0;
                continue;
            }
            Kind::Word => {
                let word = text.to_ascii_uppercase();
                let routine = match words.get(..2.min(words.len())) {
                    Some([a, b]) if a == "CREATE" => {
                        let kind = if b == "OR" { words.get(3) } else { Some(b) };
                        kind.is_some_and(|k| k == "FUNCTION" || k == "PROCEDURE")
                    }
                    _ => false,
                };
                if routine && depth == 0 {
                    match word.as_str() {
                        "BEGIN" => begin += 1,
                        "CASE" if begin > 0 => begin += 1,
                        "END" => begin = begin.saturating_sub(1),
                        _ => {}
                    }
                }
                if words.len() < 256 {
                    words.push(word);
                }
            }
            _ => {}
        }
        start.get_or_insert(token.at.start);
        end = token.at.end;
    }
    match start {
        None => Ok(out),
        Some(_) => Err("the script is cut off: its last statement has no semicolon".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_fragments() {
        for good in [
            "SELECT 1",
            "SELECT ')' FROM x -- ) comment",
            "SELECT $a$ ) ; $a$, E'\\')', \"we)ird\" /* ( /* nested */ */",
            "a = ANY(ARRAY[1])",
            "SELECT $1",
            "SELECT E'a'\n'\\')'",
            "SELECT 'a'\n'\\', (1)",
        ] {
            assert_eq!(closed(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-- only",
            "SELECT 1;",
            "SELECT 1) AS q; --",
            "true) OR (true",
            "SELECT (1",
            "SELECT '",
            "SELECT \"",
            "SELECT 1 /*",
            "SELECT $$",
            "SELECT E'\\'",
            "SELECT 1 \\g",
            "SELECT 1\0",
            "SELECT x[1) UNION SELECT (2]",
            "SELECT U&\"a\"",
            "SELECT u&'a'",
            "SELECT 1'a'",
            "SELECT $1a$x$ + 1",
            // The string goes on with escapes: what looks like a second string is none.
            "SELECT E'a'\n'\\'') -- '",
            "SELECT E'a' -- c\r \n'\\'') -- '",
        ] {
            assert!(closed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn scripts_are_cut() {
        let script = "-- c; x\n\\restrict abc\n\nSET a = 0;\nCREATE FUNCTION f() RETURNS int LANGUAGE sql\n  BEGIN ATOMIC\n SELECT \
                      CASE WHEN true THEN 1 END;\n SELECT 2;\nEND;\nCREATE FUNCTION g() AS $_$ begin; \\x ; $_$;\n\
                      COMMENT ON TABLE t IS 'a;\n\\! rm\n-- Name: x';\nCREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT \
                      2);\n\\unrestrict abc\n";
        let got = statements(script).unwrap();
        assert_eq!(got.len(), 5, "{got:#?}");
        assert_eq!(got[0].sql, "SET a = 0");
        assert!(got[1].sql.ends_with("END"));
        assert!(got[1].starts(&["CREATE", "FUNCTION"]));
        assert!(got[3].sql.contains("\\! rm"));
        assert!(got[4].sql.ends_with("2)"));
        assert!(statements("\\! rm -rf x\n").is_err());
        assert!(statements("SELECT 1 \\gexec\n").is_err());
        assert!(statements("SELECT 1").is_err());
        assert!(statements("SELECT 'a;").is_err());
    }
}
