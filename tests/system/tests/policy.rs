//! A policy decides, on real databases and a real repository: whether a run starts, whether its result is normal, which
//! backups stay, whether a restore goes ahead. And whatever goes wrong with a policy, the answer is no.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::site::Site;

const REFUSED: i32 = 4;

const COMPONENT: &str = "[components.wiki]\nuse = \"generic\"\ndatabases.main = { url-env = \"WIKI_DB\" }\n";

/// A small database of pages, and a repository.
fn site(policy: &str) -> Site {
    let mut site = Site::create();
    site.database("wiki");
    site.fill(
        "wiki",
        "CREATE TABLE pages (id int PRIMARY KEY, text text); CREATE TABLE links (a int, b int);\n\
         INSERT INTO pages SELECT n, 'page ' || n FROM generate_series(1, 1000) AS n;\n\
         INSERT INTO links SELECT n, n + 1 FROM generate_series(1, 500) AS n;",
    );
    site.prepare(&format!("{COMPONENT}\n{policy}"));
    site
}

fn write(site: &Site, name: &str, text: &str) {
    std::fs::write(site.path().join(name), text).unwrap();
}

/// The policy's answer to a question, as it was told.
fn said(outcome: &Outcome, question: &str) -> (String, Vec<String>) {
    let event = outcome
        .events_of("policy")
        .find(|e| e["question"] == question)
        .unwrap_or_else(|| panic!("{question} was not asked in {outcome}"));
    let reasons = event["reasons"].as_array().unwrap();
    (
        event["outcome"].as_str().unwrap().to_owned(),
        reasons.iter().map(|r| r.as_str().unwrap().to_owned()).collect(),
    )
}

fn backups(site: &Site) -> Vec<serde_json::Value> {
    let list = site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    list.events.clone()
}

const FREEZE: &str = "package essrun.may_run\nimport rego.v1\n\
    deny contains sprintf(\"frozen: %s\", [f.why]) if {\n  some f in input.settings.freezes\n  \
    now := input.now.unix_seconds * 1000000000\n  now >= time.parse_rfc3339_ns(f.from)\n  \
    now < time.parse_rfc3339_ns(f.until)\n}\n";

#[test]
fn a_run_is_refused_in_a_freeze_before_anything_is_read() {
    let site = site(
        "[policy]\nfiles = [\"freeze.rego\"]\n[policy.settings]\n\
         freezes = [{ from = 2020-01-01T00:00:00Z, until = 2100-01-01T00:00:00Z, why = \"holidays\" }]\n",
    );
    write(&site, "freeze.rego", FREEZE);
    let refused =
        site.back_up()
            .expect_code(REFUSED)
            .expect_stderr(&["may-run", "frozen: holidays", "essrun policy explain"]);
    assert_eq!(
        said(&refused, "may-run"),
        ("refused".into(), vec!["frozen: holidays".into()])
    );
    assert_eq!(
        refused.events_of("instant").count(),
        0,
        "no snapshot was taken: {refused}"
    );
    assert_eq!(refused.events_of("phase").count(), 0, "{refused}");
    assert!(backups(&site).is_empty());
    site.essrun()
        .run(&["validate", "pipeline.toml"])
        .expect_code(8)
        .expect_stderr(&["no run may start now", "frozen: holidays"]);

    let text = std::fs::read_to_string(site.path().join("pipeline.toml")).unwrap();
    write(&site, "pipeline.toml", &text.replace("2100-01-01", "2020-01-02"));
    let allowed = site.back_up().expect_success();
    assert_eq!(said(&allowed, "may-run"), ("allowed".into(), vec![]));
    assert_eq!(backups(&site).len(), 1);
    site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
}
