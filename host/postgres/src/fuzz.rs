//! The doors that fuzzers come in by: scripts of definitions, fragments of SQL, connection strings, rows, certificates,
//! what stands in a database that a restore left.
//!
//! Whatever comes in, nothing may panic, and what is accepted must hold what the rest of the room relies on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::sqltext::{self, Kind, Tokens};
use crate::{connection, names, restore};

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("certificate", certificate),
    ("connection", connection),
    ("definitions", definitions),
    ("facts", facts),
    ("fragment", fragment),
    ("marks", marks),
    ("tap", tap),
];

/// A `pg_dump` script, as it is read at the restore.
pub fn definitions(data: &[u8]) {
    let Ok(script) = std::str::from_utf8(data) else { return };
    restore::fuzz_definitions(data);
    let Ok(statements) = sqltext::statements(script) else {
        return;
    };
    let mut from = 0;
    for statement in &statements {
        // In order, without overlap, and nothing made up.
        let at = script[from..].find(&statement.sql).expect("it stands in the script");
        from += at + statement.sql.len();
        // By itself it is one statement, the same, and no command to psql.
        let alone = sqltext::statements(&format!("{};", statement.sql)).unwrap();
        assert_eq!(alone.len(), 1, "{:?}", statement.sql);
        assert_eq!(&alone[0], statement);
    }
}

/// A query or a condition from a guest.
pub fn fragment(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut end = 0;
    for token in Tokens::new(text).map_while(Result::ok) {
        assert_eq!(token.at.start, end, "tokens are without gaps");
        end = token.at.end;
        assert!(!token.at.is_empty() && text.get(token.at).is_some());
    }
    if sqltext::closed(text).is_ok() {
        // Between parentheses, as it is used, it still is one statement and one pair of them.
        let whole = format!("SELECT 1 FROM (\n{text}\n) AS q");
        let mut depth = 0;
        let mut pairs = 0;
        for token in Tokens::new(&whole) {
            match token.expect("what is closed stays closed").kind {
                Kind::Char(b'(') => depth += 1,
                Kind::Char(b')') => {
                    depth -= 1;
                    pairs += usize::from(depth == 0);
                }
                Kind::Char(b';') => panic!("it ends the statement"),
                _ => {}
            }
        }
        assert_eq!((depth, pairs), (0, 1));
    }
    // A literal and a name stay one token, whatever is in them.
    if !text.contains('\0') {
        for quoted in [names::quote_literal(text), names::quote_ident(text)] {
            let tokens: Vec<_> = Tokens::new(&quoted).collect();
            assert!(
                matches!(tokens.as_slice(), [Ok(t)] if t.at == (0..quoted.len())),
                "{quoted}"
            );
        }
    }
}

/// A connection string.
pub fn connection(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    connection::fuzz_parse(text);
}

/// A server's certificate.
pub fn certificate(data: &[u8]) {
    connection::fuzz_certificate(data);
}

/// What a backup says of its database as a whole.
pub fn facts(data: &[u8]) {
    restore::fuzz_facts(data);
}

/// What a restore wrote down in a server, or somebody else in its place.
pub fn marks(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    restore::fuzz_marks(text);
}

/// What a server says while a COPY is under way.
pub fn tap(data: &[u8]) {
    connection::fuzz_tap(data);
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpora.rs"]
mod corpora;

#[cfg(test)]
mod tests {
    use super::corpora;

    #[test]
    fn every_corpus_is_decoded_or_refused() {
        corpora::run(super::TARGETS);
    }
}
