//! What a backup says of its database as a whole, made into the SQL that makes the database again.
//!
//! Whoever forged a backup may write anything there. Each statement must stay one of its kind, about the database it is
//! for: no value ends it, and no name becomes a word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::scratch::create_statement;
use super::swap::rights_statements;
use crate::dump::DatabaseFacts;
use crate::names::quote_ident;
use crate::sqltext::{Kind, Tokens};

const DATABASE: &str = "the_\"database\"";

/// The tokens that mean something, as they are written.
fn words(sql: &str) -> Vec<String> {
    let tokens = Tokens::new(sql).map(|token| token.unwrap_or_else(|e| panic!("{sql:?}: {e}")));
    let tokens = tokens.inspect(|t| assert_ne!(t.kind, Kind::Char(b';'), "{sql:?} is more than one statement"));
    tokens
        .map(|t| sql[t.at].to_owned())
        .filter(|word| !word.trim().is_empty() && !word.starts_with("--") && !word.starts_with("/*"))
        .collect()
}

pub(crate) fn run(data: &[u8]) {
    let Ok(facts) = serde_json::from_slice::<DatabaseFacts>(data) else {
        return;
    };
    let text = serde_json::to_vec(&facts).unwrap();
    assert_eq!(serde_json::from_slice::<DatabaseFacts>(&text).unwrap(), facts);
    let database = quote_ident(DATABASE);
    for version in [140_000, 170_000] {
        let made = words(&create_statement(DATABASE, &facts, &facts.owner, version));
        assert_eq!(made[..3], ["CREATE", "DATABASE", &database]);
        let settings = made
            .iter()
            .filter(|w| w.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        // CREATE DATABASE TEMPLATE ENCODING LC_COLLATE LC_CTYPE OWNER, and the provider's.
        assert!((7..=9).contains(&settings.count()), "{made:?}");
        assert!(made.len() <= 17, "{made:?}");
    }
    let roles = ["synapse".to_owned(), "a \"role\"".to_owned()];
    let Ok(rights) = rights_statements(&facts, &roles, DATABASE) else {
        return;
    };
    assert!(rights.grants.len() <= facts.grants.len() && rights.settings.len() <= facts.settings.len());
    for grant in &rights.grants {
        let words = words(grant);
        assert_eq!(words.len(), 7, "{grant:?}");
        assert_eq!((words[0].as_str(), &words[4]), ("GRANT", &database));
        assert!(words[6] == "PUBLIC" || roles.iter().any(|role| quote_ident(role) == words[6]));
    }
    for (name, set) in &rights.settings {
        let words = words(set);
        let of_role = words[1] == "ROLE";
        let at = if of_role { 5 } else { 2 };
        assert_eq!((words[0].as_str(), &words[at]), ("ALTER", &database), "{set:?}");
        assert_eq!(words[at + 1], "SET");
        let named = Tokens::new(name).count();
        assert_eq!(words[at + 2 + named], "TO");
        let listed = [
            "search_path",
            "preload_libraries",
            "temp_tablespaces",
            "unix_socket_directories",
        ];
        // One literal, and nothing behind it.
        let tokens = words.len() - (at + 3 + named);
        let list = listed.iter().any(|list| name.to_lowercase().contains(list));
        assert!(list || tokens == 1, "{set:?}");
    }
}
