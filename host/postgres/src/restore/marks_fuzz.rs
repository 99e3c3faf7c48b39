//! What a restore wrote down in a server and finds there again: comments on databases, the rows of a journal, names.
//! Whoever owns such a database can write them too.
//!
//! What is understood of it must be what would be written again; nobody but the restore it names takes it for its own;
//! and only what a journal says was done is left out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::journal::{Journal, Origin, Step};
use super::leftovers::named_by_us;
use super::{scratch, service};
use crate::names::TableName;
use std::collections::BTreeMap;

fn origin() -> Origin {
    Origin::from([
        ("backup".to_owned(), "b".to_owned()),
        ("target".to_owned(), "t".to_owned()),
    ])
}

/// The first line says what it is: the comment on a `scratch` database or on one in `service`, the rows of a `journal`
/// (a step and what it says to a line, with a tab between), the `name` of a database. In a comment `@origin@` stands for
/// the digest of the restore at hand, in a journal `@rows@`, `@table@`, `@later@` and `@sql@` for the steps it is asked for.
pub(crate) fn run(text: &str) {
    let (kind, rest) = text.split_once('\n').unwrap_or((text, ""));
    match kind {
        "scratch" => comment(rest),
        "service" => in_service(rest),
        "journal" => rows(rest),
        "name" => name(rest),
        _ => {}
    }
}

fn comment(text: &str) {
    let Some(marker) = scratch::Marker::read(text) else {
        return;
    };
    let again = scratch::Marker::read(&marker.text()).unwrap();
    assert_eq!(again.text(), marker.text());
    if let Some(settled) = &marker.settled {
        let journal = Journal::of_mark(settled);
        assert!(journal.settled && journal.past_rows());
        judged(&journal);
    }
}

fn in_service(text: &str) {
    let own = service::Marker::of("b", "synapse/main", &origin());
    let written = own.comment();
    let digest = written.rsplit_once("\"origin\":\"").unwrap().1;
    let digest = digest.split_once('"').unwrap().0;
    let text = text.replace("@origin@", digest);
    let since = own.since(&text);
    if let Some(since) = &since {
        assert!(since.chars().count() <= 32 && !since.contains(char::is_control));
        // All that makes it ours stands in it.
        assert!(text.contains(digest) || text.contains("\\u"), "{text:?}");
    }
    for (run, prefix, origin) in [
        ("c", "synapse/main", origin()),
        ("b", "synapse/state", origin()),
        ("b", "synapse/main", Origin::new()),
    ] {
        let other = service::Marker::of(run, prefix, &origin).since(&text);
        assert!(since.is_none() || other.is_none(), "two restores take it for theirs");
    }
}

fn rows(text: &str) {
    let table = TableName::new("public", "events");
    let statements = vec!["UPDATE events SET a = 1".to_owned()];
    let steps = [
        ("@rows@", Step::rows(&table)),
        ("@table@", Step::of_table(&table, "CREATE INDEX")),
        ("@later@", Step::later(0, "ALTER TABLE")),
        ("@sql@", Step::sql(&statements)),
    ];
    // As it stands in the statement that would note it.
    let noted = |step: &Step| {
        let note = step.note();
        let (_, from) = note.split_once("('").unwrap();
        from.split_once("', ").unwrap().0.to_owned()
    };
    let text = steps
        .iter()
        .fold(text.to_owned(), |text, (word, step)| text.replace(word, &noted(step)));
    let rows: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(step, said)| (step.to_owned(), said.to_owned()))
        .collect();
    let begun = rows.contains_key("definitions");
    let journal = Journal::of_rows(rows.clone());
    assert_eq!(journal.is_some(), begun, "without the definitions nothing was done");
    let Some(journal) = journal else { return };
    for (_, step) in &steps {
        assert_eq!(journal.has(step), rows.contains_key(&noted(step)));
    }
    assert_eq!(
        journal.changed.len(),
        rows.keys().filter(|s| s.starts_with("changed ")).count()
    );
    assert_eq!(journal.shape.as_ref(), rows.get("shape"));
    judged(&journal);
    // What the mark keeps of it is what is asked of it later.
    let settled = Journal::of_mark(&journal.settle());
    assert_eq!(
        settled.has(&Step::sql(&statements)),
        journal.has(&Step::sql(&statements))
    );
    assert_eq!(settled.mended(), journal.mended());
    assert_eq!((&settled.changed, &settled.shape), (&journal.changed, &journal.shape));
    assert_eq!(settled.settle(), journal.settle());
    let text = serde_json::to_string(&journal.settle()).unwrap();
    assert_eq!(
        serde_json::from_str::<super::journal::Settled>(&text).unwrap(),
        journal.settle()
    );
}

/// It is gone on with for what it was begun for, and nothing else.
fn judged(journal: &Journal) {
    for now in [origin(), Origin::new(), journal.origin.clone()] {
        assert_eq!(journal.fits("s", &now).is_ok(), journal.origin == now);
    }
}

/// A database is never dropped for a name that no restore gives.
fn name(text: &str) {
    if !named_by_us(text) {
        return;
    }
    let (_, run) = text.rsplit_once("_essrun_").expect("it is in every name of ours");
    let plain = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'-';
    assert!(run.len() > 8 && run.bytes().all(plain), "{run:?}");
    assert!(run.bytes().any(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
}
