//! Whatever puts a backup's data somewhere, or changes live servers because of it, asks the policy first: `restore`,
//! `drill`, `extract`, `incident --apply`. On a real database: one that is forbidden does nothing, one that is allowed
//! does it, and a policy from before the verbs were told apart still protects what is live.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Kill, Outcome};
use essrun_testkit::site::Site;
use serde_json::{Value, json};

const CONFIG: i32 = 3;
const REFUSED: i32 = 4;

const TOKENS: &str = "integrator/main/public.dimension_scalar_tokens";

/// An integration manager with three tokens, backed up, and this policy about restores.
fn site(rule: &str) -> Site {
    let mut site = Site::create();
    site.database("integrator");
    site.fill(
        "integrator",
        "CREATE TABLE dimension_scalar_tokens (id int PRIMARY KEY, token text);\n\
         INSERT INTO dimension_scalar_tokens SELECT n, 'token ' || n FROM generate_series(1, 3) AS n;",
    );
    std::fs::write(site.folder("integrator").join("config.yaml"), "homeserver: {}\n").unwrap();
    site.prepare(
        "[components.integrator]\nuse = \"integrator\"\ndatabases.main = { url-env = \"INTEGRATOR_DB\" }\n\
         volumes.config = { path = \"integrator\" }\n",
    );
    site.back_up().expect_success();
    policy(&site, rule);
    site
}

/// Writes the rule, and names it in the pipeline.
fn policy(site: &Site, rule: &str) {
    let file = site.path().join("pipeline.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    if !text.contains("[policy]") {
        std::fs::write(&file, format!("{text}\n[policy]\nfiles = [\"rule.rego\"]\n")).unwrap();
    }
    let rule = format!("package essrun.may_restore\nimport rego.v1\n{rule}\n");
    std::fs::write(site.path().join("rule.rego"), rule).unwrap();
}

fn tokens(site: &Site) -> String {
    site.sql("integrator", "SELECT count(*) FROM dimension_scalar_tokens")
        .trim()
        .to_owned()
}

fn extract(site: &Site, artifact: &str, output: Option<&str>) -> Outcome {
    let mut args = vec![
        "extract",
        "pipeline.toml",
        artifact,
        "--identity",
        "elsewhere/identity.txt",
    ];
    args.extend(output.iter().flat_map(|o| ["--output", *o]));
    match output {
        Some(_) => site.essrun().run_json(&args),
        // Standard output holds the data.
        None => site.essrun().run(&[&["--json"], &args[..]].concat()),
    }
}

fn incident(site: &Site, more: &[&str]) -> Outcome {
    site.essrun()
        .run_json(&[&["incident", "pipeline.toml", "latest"], more].concat())
}

fn restore(site: &Site) -> Outcome {
    site.with_identity("restore", &["--replace", "--yes"])
}

/// What the policy said when it was asked, once.
fn said(outcome: &Outcome) -> (String, Vec<String>) {
    let asked: Vec<&Value> = outcome.events_of("policy").collect();
    assert_eq!(asked.len(), 1, "{outcome}");
    assert_eq!(asked[0]["question"], "may-restore");
    let reasons = asked[0]["reasons"].as_array().unwrap().iter();
    (
        asked[0]["outcome"].as_str().unwrap().to_owned(),
        reasons.map(|r| r.as_str().unwrap().to_owned()).collect(),
    )
}

#[test]
fn a_policy_forbids_one_verb_and_allows_the_others() {
    let only = |verbs: &str| {
        format!(
            "default allow := false\nallow if input.verb in {verbs}\nreasons := [sprintf(\"no %s today\", [input.verb])]"
        )
    };
    let site = site(&only("{\"restore\", \"drill\", \"incident\"}"));
    let before = site.databases();

    // Nothing is handed out, neither to a file nor to the terminal.
    let refused = extract(&site, TOKENS, Some("tokens.txt"))
        .expect_code(REFUSED)
        .expect_stderr(&["may-restore", "no extract today", "essrun policy explain"]);
    assert_eq!(said(&refused), ("refused".into(), vec!["no extract today".into()]));
    let refused = extract(&site, TOKENS, None).expect_code(REFUSED);
    assert!(!refused.stdout.contains("token 1"), "{refused}");
    extract(&site, "integrator/config", Some("config")).expect_code(REFUSED);
    for made in ["tokens.txt", "config"] {
        assert!(!site.path().join(made).exists(), "{made}");
    }
    let drill = site.with_identity("drill", &[]).expect_success();
    assert_eq!(said(&drill).0, "allowed");
    let applied = incident(&site, &["--apply", "--yes"]).expect_success();
    assert_eq!(said(&applied).0, "allowed");
    assert_eq!(tokens(&site), "0");
    assert_eq!(said(&restore(&site).expect_success()).0, "allowed");
    assert_eq!(tokens(&site), "3");

    // The other way about.
    policy(&site, &only("{\"extract\"}"));
    let kept = site.databases();
    assert_ne!(kept, before, "the old database is kept");
    let refused = incident(&site, &["--apply", "--yes"])
        .expect_code(REFUSED)
        .expect_stderr(&["no incident today"]);
    assert_eq!(refused.events_of("applied").count(), 0);
    assert_eq!(
        refused.events_of("incident").next().unwrap()["policy"]["allowed"],
        false
    );
    restore(&site).expect_code(REFUSED).expect_stderr(&["no restore today"]);
    site.with_identity("drill", &[])
        .expect_code(REFUSED)
        .expect_stderr(&["no drill today"]);
    assert_eq!((tokens(&site), site.databases()), ("3".into(), kept));
    let allowed = extract(&site, TOKENS, Some("tokens.txt")).expect_success();
    assert_eq!(said(&allowed).0, "allowed");
    let written = std::fs::read_to_string(site.path().join("tokens.txt")).unwrap();
    assert_eq!(written.lines().count(), 3, "{written}");
    extract(&site, "integrator/config", Some("config")).expect_success();
    assert!(site.path().join("config/config.yaml").is_file());

    // To standard output: the data and nothing else, whatever the policy says beside it.
    let piped = extract(&site, TOKENS, None)
        .expect_success()
        .expect_stderr(&["policy, may-restore: yes"]);
    assert_eq!(piped.stdout, written);

    // What leaked is told, whoever may do something about it.
    let shown = incident(&site, &[]).expect_success();
    let plan = shown.events_of("incident").next().unwrap();
    assert_eq!(
        (&plan["policy"]["allowed"], &plan["policy"]["reasons"][0]),
        (&json!(false), &json!("no incident today"))
    );
    assert_eq!(plan["components"][0]["steps"][0]["rows"], 3, "{plan}");
    let words = site
        .essrun()
        .run(&["incident", "pipeline.toml", "latest"])
        .expect_success();
    assert!(
        words
            .stdout
            .contains("the policy forbids what --apply does: no incident today"),
        "{words}"
    );
}

#[test]
fn a_policy_is_told_what_would_be_done() {
    let site = site("allow := false");
    let explained = |more: &[&str]| {
        let args = [
            "policy",
            "explain",
            "pipeline.toml",
            "latest",
            "-i",
            "elsewhere/identity.txt",
        ];
        let outcome = site.essrun().run_json(&[&args[..], more].concat()).expect_success();
        let event = outcome.events_of("policy-explained").next().unwrap().clone();
        assert_eq!(event["outcome"], "refused", "{event}");
        event["input"].clone()
    };
    let told = explained(&["--as", "extract", "--artifact", TOKENS]);
    assert_eq!(told["verb"], "extract");
    assert_eq!(told["artifact"], TOKENS);
    assert_eq!(
        (&told["drill"], &told["dry_run"], &told["replace"]),
        (&json!(false), &json!(false), &json!(false))
    );
    let target = &told["targets"][0];
    assert_eq!(
        (&target["component"], &target["label"], &target["kind"], &target["live"]),
        (&json!("integrator"), &json!("main"), &json!("file"), &json!(false))
    );
    let held = &told["backup"]["components"]["integrator"]["artifacts"]["main/public.dimension_scalar_tokens"];
    assert_eq!((&held["rows"], &held["sensitivity"]), (&json!(3), &json!("secret")));

    let told = explained(&["--as", "incident"]);
    assert_eq!(
        (&told["verb"], &told["artifact"], &told["replace"]),
        (&json!("incident"), &Value::Null, &json!(true))
    );
    assert_eq!(
        (&told["targets"][0]["kind"], &told["targets"][0]["live"]),
        (&json!("postgres"), &json!(true))
    );
    assert!(told["targets"][0]["place"].as_str().unwrap().ends_with("/integrator"));
    let steps = told["steps"].as_array().unwrap();
    let has = |part: &str| steps.iter().any(|s| s["step"].as_str().unwrap().contains(part));
    assert!(
        has("DELETE FROM public.dimension_scalar_tokens") && has("token"),
        "{told}"
    );

    let told = explained(&[]);
    assert_eq!(
        (&told["verb"], &told["artifact"], &told["drill"]),
        (&json!("restore"), &Value::Null, &json!(false))
    );
    let args = ["policy", "explain", "pipeline.toml", "latest", "--as", "extract"];
    site.essrun().run(&args).expect_code(2).expect_stderr(&["--artifact"]);
}

/// Written when there were only restores and drills: what is in use needs somebody's word.
#[test]
fn a_policy_that_knows_no_verbs_still_guards_what_is_live() {
    let site = site(
        "deny contains \"in use\" if {\n  not input.drill\n  some t in input.targets\n  t.live\n}\n\
         deny contains \"not over it\" if input.replace",
    );
    incident(&site, &["--apply", "--yes"])
        .expect_code(REFUSED)
        .expect_stderr(&["in use", "not over it"]);
    assert_eq!(tokens(&site), "3");
    // As a restore beside what is in use, which it allows as well.
    extract(&site, TOKENS, Some("tokens.txt")).expect_success();
    let beside = site.with_identity(
        "restore",
        &[
            "--to",
            "integrator/main=copy",
            "--to",
            "integrator/config=copy",
            "--yes",
        ],
    );
    beside.expect_success();
    assert_eq!(
        site.sql("copy", "SELECT count(*) FROM dimension_scalar_tokens").trim(),
        "3"
    );
}

#[test]
fn without_an_answer_nothing_is_handed_out_and_nothing_changed() {
    let site = site("allow := to_number(\"x\") == 1");
    let nothing = |code: i32, says: &str| {
        for outcome in [
            extract(&site, TOKENS, Some("tokens.txt")),
            extract(&site, TOKENS, None),
            incident(&site, &["--apply", "--yes"]),
        ] {
            let outcome = outcome.expect_code(code).expect_stderr(&[says]);
            assert!(!outcome.stdout.contains("token 1"), "{outcome}");
        }
        assert!(!site.path().join("tokens.txt").exists());
        assert_eq!(tokens(&site), "3");
    };
    nothing(REFUSED, "gave no answer");
    policy(&site, "x := 1");
    nothing(REFUSED, "gave no answer");
    policy(&site, "allow := {{{");
    nothing(CONFIG, "rule.rego:");
    std::fs::remove_file(site.path().join("rule.rego")).unwrap();
    nothing(CONFIG, "rule.rego cannot be read");
}

/// Staged trees and scratch databases in this site, which only a stopped restore leaves.
fn left(site: &Site, before: &[String]) -> (Vec<String>, usize) {
    let databases = site.databases().into_iter();
    let staged = site.path().read_dir().unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(".essrun-restore-")
    });
    (databases.filter(|d| !before.contains(d)).collect(), staged.count())
}

#[test]
fn what_a_stopped_restore_left_is_cleared_only_when_the_next_one_may_go_ahead() {
    let site = site("allow := true");
    let before = site.databases();
    let identity = ["--identity", "elsewhere/identity.txt"];
    let elsewhere = ["--to", "integrator/main=copy", "--to", "integrator/config=copy"];
    let args = [&["restore", "pipeline.toml", "--yes"][..], &identity, &elsewhere].concat();
    let undo = || {
        site.sql("postgres", "DROP DATABASE IF EXISTS copy WITH (FORCE)");
        let _ = std::fs::remove_dir_all(site.path().join("copy"));
    };
    // Stopped when everything is staged and nothing is in service.
    let sample = site.essrun().run_json(&args).expect_success();
    let verifies = sample.events.iter().position(|e| e["phase"] == "verify").unwrap();
    undo();
    let mut stopped = (Vec::new(), 0);
    for _ in 0..20 {
        site.essrun().run_and_kill(&args, Kill::AtEvent(verifies + 1));
        undo();
        stopped = left(&site, &before);
        if !stopped.0.is_empty() && stopped.1 > 0 {
            break;
        }
    }
    assert_eq!((stopped.0.len(), stopped.1), (1, 1), "{stopped:?}");

    policy(&site, "deny contains \"not today\"");
    for more in [&[][..], &["--resume"], &["--dry-run"]] {
        site.essrun()
            .run_json(&[&args[..], more].concat())
            .expect_code(REFUSED)
            .expect_stderr(&["not today"]);
        assert_eq!(left(&site, &before), stopped, "{more:?}: something was cleared away");
    }
    policy(&site, "allow := true");
    let restored = site.essrun().run_json(&args).expect_success();
    assert_eq!(left(&site, &before), (vec!["copy".to_owned()], 0), "{restored}");
    assert_eq!(
        site.sql("copy", "SELECT count(*) FROM dimension_scalar_tokens").trim(),
        "3"
    );
}
