//! Words from elsewhere that people read or write: the runbook a backup is told in, and lengths of time.

use super::a_pipeline;
use crate::body::BackupBody;
use crate::config::RetentionConfig;
use crate::disaster::{self, html, text};
use crate::repo::{self, Shown};
use crate::standing::Standing;
use crate::{config, pace, restore, retention, time};
use essrun_artifact::ArtifactRecord;
use essrun_repository::BackupSummary;
use essrun_repository::retention::{Candidate, decide};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag};
use serde::Deserialize;

/// A backup that is told, and what is odd about it.
#[derive(Deserialize)]
struct Told {
    summary: BackupSummary,
    artifacts: Vec<ArtifactRecord>,
    #[serde(default)]
    suspect: Vec<String>,
}

/// A backup that is told in words. Whatever stands in it, the page has the headings, tables and commands it always has.
pub fn runbook(data: &[u8]) {
    let Ok(words) = std::str::from_utf8(data) else { return };
    a_text(words);
    let Ok(told) = serde_json::from_str::<Told>(words) else {
        return;
    };
    let Ok(body) = repo::body(&told.summary) else { return };
    let mut standing = Standing::with(&told.summary, &[]).unwrap();
    standing.suspect.extend(told.suspect);
    let shown = Shown::of(
        told.summary.clone(),
        body.clone(),
        standing.clone(),
        &told.artifacts,
        Vec::new(),
    );
    for artifacts in [true, false] {
        assert!(shown.text(artifacts).contains(told.summary.id.as_str()));
    }
    let id = told.summary.id.to_string();
    let page = disaster::of_backup(a_pipeline(), id, body.clone(), standing, &told.artifacts).unwrap();
    let (mut headings, mut tables, mut rules) = ([0usize; 6], 0, 0);
    for event in Parser::new_ext(&page, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { level, .. }) => headings[level as usize - 1] += 1,
            Event::Start(Tag::Table(_)) => tables += 1,
            Event::Start(Tag::BlockQuote(_)) | Event::Rule => rules += 1,
            _ => {}
        }
    }
    let at = |level: HeadingLevel| headings[level as usize - 1];
    let fixed = [
        "## Before",
        "## What you",
        "## What there",
        "## The Post",
        "## Comm",
        "## If",
        "## What each",
        "## After",
    ];
    let fixed = page.lines().filter(|l| fixed.iter().any(|f| l.starts_with(f))).count();
    assert_eq!(at(HeadingLevel::H1), 1, "{page}");
    assert_eq!(at(HeadingLevel::H2), fixed, "{page}");
    assert_eq!(at(HeadingLevel::H3), body.components.len(), "{page}");
    assert_eq!(
        (headings[3..].iter().sum::<usize>(), tables, rules),
        (0, 3, 0),
        "{page}"
    );
    inert(&html::html("x", &page));
}

/// Nothing that a page does, loads or leads to.
fn inert(page: &str) {
    let body = page.split_once("<body>").unwrap().1;
    const TAGS: &[&str] = &[
        "p",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "ul",
        "ol",
        "li",
        "em",
        "strong",
        "code",
        "pre",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "hr",
        "br",
        "blockquote",
        "body",
        "html",
    ];
    for tag in body.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap().trim_matches('/').trim();
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(TAGS.contains(&name), "<{tag}> in {page}");
        let harmless = ["class=\"language-", "start=\"", "style=\"text-align: ", "/"];
        assert!(
            attributes.is_empty() || harmless.iter().any(|h| attributes.starts_with(h)),
            "<{tag}> in {page}"
        );
    }
}

/// What is written around words from elsewhere is all there is of Markdown.
fn a_text(words: &str) {
    use Event::{End, Start};
    inert(&html::html(words, words));
    let blocks = |page: &str| -> Vec<String> {
        Parser::new_ext(page, Options::ENABLE_TABLES)
            .filter_map(|event| match event {
                Start(
                    tag @ (Tag::Paragraph
                    | Tag::Heading { .. }
                    | Tag::BlockQuote(_)
                    | Tag::CodeBlock(_)
                    | Tag::List(_)
                    | Tag::Item
                    | Tag::Table(_)
                    | Tag::TableHead
                    | Tag::TableRow
                    | Tag::TableCell),
                ) => Some(format!("{tag:?}")),
                End(_) => None,
                Event::Rule => Some("rule".to_owned()),
                _ => None,
            })
            .collect()
    };
    let flat = text::flat(words);
    assert!(!flat.contains(char::is_control));
    for page in [
        |w: &str| format!("- {w}\n- next\n\nend\n"),
        |w: &str| format!("- **look**: {w}\n\nend\n"),
        |w: &str| format!("### {w}\n\nend\n"),
    ] {
        assert_eq!(
            blocks(&page(&flat)),
            blocks(&page(if flat.is_empty() { "" } else { "x" })),
            "{flat:?}"
        );
    }
    let rows = |w: &str| format!("| a | b |\n|---|---|\n| {w} | {w} |\n| x | y |\n\nend\n");
    assert_eq!(blocks(&rows(&text::cell(words))), blocks(&rows("x")), "{words:?}");
    let code = text::code(words);
    let shown = Parser::new(&format!("- at {code}, and\n")).any(|e| matches!(e, Event::Code(_)));
    assert!(shown || words.trim().is_empty(), "{code:?}");
    assert_eq!(shell_words(&text::word(words)), Some(1), "{words:?}");
}

/// How many words a POSIX shell makes of what is quoted as essrun quotes; none where it would do more than that.
fn shell_words(line: &str) -> Option<usize> {
    let (mut quoted, mut in_word, mut words) = (false, false, 0);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if quoted {
            quoted = c != '\'';
            continue;
        }
        let begins = match c {
            '\'' => {
                quoted = true;
                true
            }
            '\\' => chars.next().is_some(),
            ' ' | '\t' | '\n' => false,
            c if c.is_ascii_alphanumeric() || "/._-:@".contains(c) => true,
            _ => return None,
        };
        words += usize::from(begins && !in_word);
        in_word = begins;
    }
    (!quoted).then_some(words)
}

/// Lengths of time, and a target of a restore, as people write them.
pub fn lengths(data: &[u8]) {
    let Ok(words) = std::str::from_utf8(data) else { return };
    if let Some(length) = retention::duration(words) {
        assert_eq!(length.subsec_nanos(), 0);
        let said = pace::duration(length.as_secs());
        assert!((1..=2).contains(&(said.split(' ').count() / 2)), "{said}");
    }
    if let Ok((what, target)) = restore::parse_target(words) {
        assert_eq!(format!("{what}={target}"), words);
        assert_eq!(what.split('/').count(), 2);
    }
    let config = RetentionConfig {
        within: Some(words.to_owned()),
        ..a_retention()
    };
    if let Ok(rules) = retention::rules(&config) {
        assert!(rules.within.is_none_or(|span| span.is_positive()));
        let now = time::now();
        let candidate = |created_at| Candidate {
            id: essrun_repository::BackupId::new("20260101t000000z-00000001").unwrap(),
            created_at,
            sequence: 1,
            verified: false,
            suspect: false,
            incomplete: false,
        };
        // The only one there is.
        for at in [i64::MIN, -1, 0, now, i64::MAX] {
            assert!(decide(&rules, &[candidate(at)], now)[0].keep);
        }
    }
    let zone = RetentionConfig {
        time_zone: Some(words.to_owned()),
        ..a_retention()
    };
    drop(retention::rules(&zone));
    if let Ok(number) = words.trim().parse::<i64>() {
        assert!(!time::utc(number).is_empty());
        pace::duration(number.unsigned_abs());
    }
}

fn a_retention() -> RetentionConfig {
    config::RetentionConfig {
        at: None,
        last: None,
        hourly: None,
        daily: None,
        weekly: None,
        monthly: None,
        yearly: None,
        within: None,
        time_zone: None,
    }
}

/// For `backups`, which holds bodies too.
pub(super) fn reads(body: &BackupBody) {
    assert!(body.components.iter().all(|c| body.component(&c.name).is_some()));
}
