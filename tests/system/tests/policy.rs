//! A policy decides, on real databases and a real repository: whether a run starts, whether its result is normal, which
//! backups stay, whether a restore goes ahead. And whatever goes wrong with a policy, the answer is no.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::plugins;
use essrun_testkit::site::Site;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONFIG: i32 = 3;
const REFUSED: i32 = 4;
const FINDINGS: i32 = 8;
const SUSPECT: i32 = 10;

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

fn backups(site: &Site) -> Vec<Value> {
    let list = site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    list.events.clone()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Ids tell backups of one second apart, but not which came first.
fn next_second() {
    std::thread::sleep(Duration::from_millis(1100));
}

/// The pipeline with another end.
fn with_policy(site: &Site, policy: &str) {
    let text = std::fs::read_to_string(site.path().join("pipeline.toml")).unwrap();
    let (before, _) = text.split_once(COMPONENT).unwrap();
    write(site, "pipeline.toml", &format!("{before}{COMPONENT}\n{policy}"));
}

/// The newest backup's id, as `backup` reported it.
fn committed(outcome: &Outcome) -> String {
    let event = outcome.events_of("committed").next();
    event.unwrap_or_else(|| panic!("nothing was committed: {outcome}"))["backup"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// What forget keeps and lets go, with reasons.
fn kept(outcome: &Outcome) -> Vec<(String, bool, String)> {
    let event = outcome.events_of("forget").next();
    let event = event.unwrap_or_else(|| panic!("nothing was decided: {outcome}"));
    let decisions = event["decisions"].as_array().unwrap().iter();
    decisions
        .map(|d| {
            let reasons: Vec<_> = d["reasons"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| r.as_str().unwrap())
                .collect();
            (
                d["id"].as_str().unwrap().to_owned(),
                d["keep"].as_bool().unwrap(),
                reasons.join("; "),
            )
        })
        .collect()
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

#[test]
fn lost_rows_make_a_backup_suspect_until_somebody_accepts_it() {
    let rules = examples().join("policies/suspect.rego");
    let site = site(&format!(
        "[policy]\nfiles = [{rules:?}]\n\n[retention]\nkeep-last = 1\n\n[status]\nmax-age = \"1d\"\n"
    ));
    let good = site.back_up().expect_success();
    assert_eq!(said(&good, "judge-result"), ("normal".into(), vec![]));
    let good = committed(&good);

    next_second();
    site.fill("wiki", "DELETE FROM pages WHERE id <= 300; DROP TABLE links;");
    let odd =
        site.back_up()
            .expect_code(SUSPECT)
            .expect_stderr(&["SUSPECT", "fell from 1000 rows", "essrun policy accept"]);
    let (outcome, reasons) = said(&odd, "judge-result");
    assert_eq!(outcome, "suspect");
    assert_eq!(
        reasons,
        [
            format!("wiki/main/public.links was in {good} and is not in this one"),
            format!("wiki/main/public.pages fell from 1000 rows in {good} to 700"),
        ]
    );
    let odd = committed(&odd);
    let list = backups(&site);
    assert_eq!(
        (&list[0]["state"], &list[1]["state"]),
        (&"normal".into(), &"suspect".into())
    );
    assert_eq!(list[1]["suspect"].as_array().unwrap().len(), 2);
    let status = site.essrun().run_json(&["status", "pipeline.toml"]).expect_success();
    let status = status.events_of("status").next().unwrap().clone();
    assert_eq!(status["suspect"][0]["backup"], odd.as_str());
    assert_eq!(status["components"][0]["newest"]["backup"], good.as_str());
    let show = site.essrun().run(&["show", "pipeline.toml"]).expect_success();
    assert!(show.stdout.contains("SUSPECT: wiki/main/public.links was in"), "{show}");

    // It is not credited: the last good one stays, and it stays beside it.
    let forget = site.essrun().run_json(&["forget", "pipeline.toml"]).expect_success();
    let decided = kept(&forget);
    assert_eq!(decided.iter().filter(|(_, keep, _)| *keep).count(), 2, "{decided:?}");
    assert!(
        decided.iter().any(|(id, _, why)| id == &good && why.contains("last 1")),
        "{decided:?}"
    );

    // The next one is held against the last normal one, not against the odd one.
    next_second();
    let again = committed(&site.back_up().expect_code(SUSPECT));
    let accept = |backup: &str, reason: &str| {
        let args = ["policy", "accept", "pipeline.toml", backup, "--reason", reason];
        site.essrun().run_json(&args)
    };
    accept(&good, "why not")
        .expect_code(REFUSED)
        .expect_stderr(&["is not suspect"]);
    accept(&again, " ")
        .expect_code(REFUSED)
        .expect_stderr(&["no reason is given"]);
    let accepted = accept(&again, "old pages were purged").expect_success();
    let note = accepted.events_of("accepted").next().unwrap();
    assert_eq!(note["suspect"].as_array().unwrap().len(), 2);
    assert_ne!(note["person"], "");

    next_second();
    let normal = site.back_up().expect_success();
    assert_eq!(said(&normal, "judge-result").0, "normal");
    let normal = committed(&normal);
    site.essrun()
        .run_json(&["forget", "pipeline.toml", "--confirm"])
        .expect_success();
    let left: Vec<_> = backups(&site).iter().map(|b| b["id"].clone()).collect();
    assert_eq!(left, [Value::from(normal)], "the odd one goes once a good one is newer");
}

/// What no honest policy does, in all four packages, and what must be seen in the error.
fn broken() -> [(&'static str, String, &'static str); 5] {
    const BETWEEN: &str = "\n#----\n";
    let all = |body: &str| {
        ["may_run", "judge_result", "retention", "may_restore"]
            .map(|q| format!("package essrun.{q}\nimport rego.v1\n{body}\n"))
            .join(BETWEEN)
    };
    let answers = |when: &str| {
        all(&format!(
            "allow if {when}\nsuspect := false if {when}\nkeep := {{}} if {when}"
        ))
    };
    // 10^9 combinations.
    let n = "numbers.range(1, 1000)";
    let slow = format!("count([1 | some a in {n}; some b in {n}; some c in {n}; a + b + c == 0]) == 0");
    [
        ("loops", answers(&slow), "computed for more than"),
        ("errs", answers("to_number(\"x\") == 1"), "to_number"),
        (
            "greedy",
            answers("count([n | some n in numbers.range(1, 100000000)]) > 0"),
            "memory",
        ),
        ("silent", all("x := 1"), "gave no answer"),
        (
            "invents",
            all("allow := \"true\"\nsuspect := \"false\"\nkeep := {\"20200101t000000z-00000000\": [\"x\"]}"),
            "gave no answer",
        ),
    ]
}

#[test]
fn a_policy_without_an_answer_refuses_and_keeps_everything() {
    let site = site("");
    for _ in 0..3 {
        site.back_up().expect_success();
        next_second();
    }
    let before = site.databases();
    let without = |verb: &[&str], code: i32, says: &str| {
        let outcome = site.essrun().run_json(verb).expect_code(code);
        assert!(outcome.stderr.contains(says), "{says:?} is not in {outcome}");
        outcome
    };
    let restore = [
        "restore",
        "pipeline.toml",
        "--identity",
        "elsewhere/identity.txt",
        "--replace",
        "--yes",
    ];
    for (name, text, says) in broken() {
        let mut files = Vec::new();
        for (number, script) in text.split("#----").enumerate() {
            let file = format!("{name}-{number}.rego");
            write(&site, &file, script);
            files.push(file);
        }
        with_policy(
            &site,
            &format!("[policy]\nfiles = {files:?}\nlimits.cpu = \"1 s\"\n\n[retention]\nkeep-last = 1\n"),
        );
        without(&["pipeline.toml"], REFUSED, says);
        let forget = without(
            &["forget", "pipeline.toml", "--confirm"],
            REFUSED,
            "every backup is kept",
        );
        assert!(kept(&forget).iter().all(|(_, keep, _)| *keep), "{name}: {forget}");
        without(&restore, REFUSED, says);
        assert_eq!(backups(&site).len(), 3, "{name}");
        assert_eq!(site.databases(), before, "{name}: the restore did something");
    }

    // A result that nobody can judge is committed, as suspect.
    write(
        &site,
        "judge.rego",
        "package essrun.judge_result\nsuspect := to_number(\"x\")\n",
    );
    with_policy(&site, "[policy]\nfiles = [\"judge.rego\"]\n");
    let unjudged = without(&["pipeline.toml"], SUSPECT, "gave no answer");
    assert_eq!(said(&unjudged, "judge-result").0, "suspect");
    assert_eq!(backups(&site)[3]["state"], "suspect");
}

#[test]
fn a_policy_that_cannot_be_loaded_stops_everything_and_says_where() {
    let site = site("");
    site.back_up().expect_success();
    let restore = [
        "restore",
        "pipeline.toml",
        "--identity",
        "elsewhere/identity.txt",
        "--replace",
        "--yes",
    ];
    let verbs: [&[&str]; 4] = [
        &["pipeline.toml"],
        &["forget", "pipeline.toml", "--confirm"],
        &restore,
        &["validate", "pipeline.toml"],
    ];
    write(&site, "broken.rego", "package essrun.may_run\n\nallow := {{{\n");
    write(&site, "misspelt.rego", "package essrun.may_rnu\nallow := true\n");
    write(&site, "good.rego", "package essrun.may_run\nallow := true\n");
    write(&site, "list.json", "{\n  \"a\": 1,\n}\n");
    write(&site, "own.wasm", "\0asm\x0d\0\x01\0 is another");
    let hash = "0".repeat(64);
    for (policy, says) in [
        (
            "files = [\"broken.rego\"]".to_owned(),
            "broken.rego:4:1: expecting expression",
        ),
        (
            "files = [\"misspelt.rego\"]".to_owned(),
            "package essrun.may_rnu is none that is asked",
        ),
        ("files = [\"nowhere.rego\"]".to_owned(), "nowhere.rego cannot be read"),
        (
            "files = [\"good.rego\"]\ndata = [\"list.json\"]".to_owned(),
            "list.json:3",
        ),
        (
            "files = [\"good.rego\"]\nquestions = [\"may-run\", \"retention\"]".to_owned(),
            "does not answer retention",
        ),
        (
            "files = [\"good.rego\"]\nquestions = []".to_owned(),
            "also answers may-run",
        ),
        (
            format!("use = {{ path = \"own.wasm\", sha256 = \"{hash}\" }}"),
            "its SHA-256 is",
        ),
    ] {
        with_policy(&site, &format!("[policy]\n{policy}\n\n[retention]\nkeep-last = 1\n"));
        for verb in verbs {
            let outcome = site.essrun().run_json(verb).expect_code(CONFIG);
            assert!(outcome.stderr.contains(says), "{says:?} is not in {outcome}");
            assert!(
                outcome.stderr.contains("pipeline.toml:") || says.contains(".json"),
                "{outcome}"
            );
        }
    }
    assert_eq!(backups(&site).len(), 1);
}

#[test]
fn a_policy_alone_keeps_what_it_says_and_never_less_than_the_last_good_one() {
    let site = site("");
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(committed(&site.back_up().expect_success()));
        next_second();
    }
    write(
        &site,
        "keep.rego",
        "package essrun.retention\nimport rego.v1\nkeep[b.id] contains \"audit\" if {\n  some b in input.backups\n  b.id in input.settings.keep\n}\n",
    );
    let policy = |keep: &str, retention: &str| {
        format!("[policy]\nfiles = [\"keep.rego\"]\nsettings.keep = [{keep:?}]\n{retention}")
    };
    // Beside [retention] it adds.
    with_policy(&site, &policy(&ids[0], "[retention]\nkeep-last = 2\n"));
    let both = kept(&site.essrun().run_json(&["forget", "pipeline.toml"]).expect_success());
    assert_eq!(both.iter().filter(|(_, keep, _)| *keep).count(), 3, "{both:?}");
    assert!(
        both.contains(&(ids[0].clone(), true, "policy: audit".into())),
        "{both:?}"
    );

    // Alone it decides, but for the floor.
    with_policy(&site, &policy(&ids[0], ""));
    let explained = site
        .essrun()
        .run_json(&["policy", "explain", "pipeline.toml", &ids[1]])
        .expect_success();
    let explained = explained.events_of("policy-explained").next().unwrap().clone();
    assert_eq!(explained["question"], "retention");
    assert_eq!(explained["input"]["backups"].as_array().unwrap().len(), 3);
    assert_eq!(explained["input"]["settings"]["keep"][0], ids[0].as_str());
    assert_eq!(explained["answer"]["keep"][&ids[0]][0], "audit");
    let decisions = explained["decisions"].as_array().unwrap();
    assert_eq!(decisions.len(), 1);
    assert_eq!(
        (&decisions[0]["id"], &decisions[0]["keep"]),
        (&ids[1].as_str().into(), &false.into())
    );

    let alone = kept(
        &site
            .essrun()
            .run_json(&["forget", "pipeline.toml", "--confirm"])
            .expect_success(),
    );
    assert_eq!(
        alone,
        [
            (
                ids[2].clone(),
                true,
                "newest that is not suspect: kept whatever the policy says".into()
            ),
            (ids[1].clone(), false, "the policy does not keep it".into()),
            (ids[0].clone(), true, "policy: audit".into()),
        ]
    );
    let left: Vec<_> = backups(&site).iter().map(|b| b["id"].clone()).collect();
    assert_eq!(left, [Value::from(ids[0].as_str()), Value::from(ids[2].as_str())]);
}

const APPROVAL: &str = "package essrun.may_restore\nimport rego.v1\n\
    approved if {\n  some a in input.approvals\n  trim_space(a.text) == sprintf(\"approve %s\", [input.backup.id])\n  \
    a.owner == input.person\n}\n\
    deny contains sprintf(\"%s/%s at %s needs an approval\", [t.component, t.label, t.place]) if {\n  not input.drill\n  \
    some t in input.targets\n  t.live\n  not approved\n}\n";

#[test]
fn a_restore_waits_for_an_approval() {
    let site = site("[policy]\nfiles = [\"approval.rego\"]\napprovals = \"approvals\"\n");
    write(&site, "approval.rego", APPROVAL);
    let backup = committed(&site.back_up().expect_success());
    let pages = || site.sql("wiki", "SELECT count(*) FROM pages").trim().to_owned();
    site.fill("wiki", "DELETE FROM pages WHERE id > 10");
    let databases = site.databases();

    let refused = site
        .with_identity("restore", &["--replace", "--yes"])
        .expect_code(REFUSED)
        .expect_stderr(&["may-restore", "wiki/main at 127.0.0.1:", "needs an approval"]);
    let plan = refused.events_of("restore-plan").next().unwrap();
    assert_eq!(
        (&plan["blocked"], &plan["policy"]["allowed"]),
        (&true.into(), &false.into())
    );
    let plan = site.with_identity("plan", &["--restore"]).expect_code(REFUSED);
    let plan = plan.events_of("restore-plan").next().unwrap().clone();
    assert_eq!(plan["policy"]["reasons"].as_array().unwrap().len(), 1, "{plan}");
    assert_eq!(
        (pages(), site.databases()),
        ("10".into(), databases.clone()),
        "nothing happened"
    );

    // The wrong words, and words anybody could have written.
    site.folder("approvals");
    write(&site, "approvals/tonight", "approve something else\n");
    site.with_identity("restore", &["--replace", "--yes"])
        .expect_code(REFUSED);
    write(&site, "approvals/tonight", &format!("approve {backup}\n"));
    use std::os::unix::fs::PermissionsExt;
    let mode = |mode| {
        let path = site.path().join("approvals/tonight");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o666);
    site.with_identity("restore", &["--replace", "--yes"])
        .expect_code(REFUSED)
        .expect_stderr(&["left out of the approvals", "others than its owner can write it"]);
    assert_eq!(
        (pages(), site.databases()),
        ("10".into(), databases),
        "nothing happened"
    );

    // A drill asks as well, and says that it is one.
    let drill = site.with_identity("drill", &[]).expect_success();
    assert_eq!(said(&drill, "may-restore").0, "allowed");

    mode(0o644);
    let args = [
        "policy",
        "explain",
        "pipeline.toml",
        "latest",
        "--replace",
        "-i",
        "elsewhere/identity.txt",
    ];
    let explained = site.essrun().run_json(&args).expect_success();
    let explained = explained.events_of("policy-explained").next().unwrap().clone();
    assert_eq!(explained["outcome"], "allowed");
    let input = &explained["input"];
    assert_eq!(input["approvals"][0]["name"], "tonight");
    assert_eq!(input["targets"][0]["live"], true);
    assert_eq!(input["targets"][0]["kind"], "postgres");
    let held = &input["backup"]["components"]["wiki"]["artifacts"]["main/public.pages"];
    assert_eq!((&held["rows"], &held["sensitivity"]), (&1000.into(), &"secret".into()));
    site.with_identity("restore", &["--replace", "--yes"]).expect_success();
    assert_eq!(pages(), "1000");
}

#[test]
fn the_examples_pass_their_tests_together_and_a_wrong_expectation_is_told() {
    let site = site("");
    let dir = examples().join("policies");
    let tested = site
        .essrun()
        .run_json(&["policy", "test", dir.to_str().unwrap()])
        .expect_success();
    let written: usize = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap())
        .map(|text| text.lines().filter(|l| l.starts_with("test_")).count())
        .sum();
    assert!(written > 25);
    let golden = std::fs::read_dir(&dir)
        .unwrap()
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .ends_with(".input.json")
        })
        .count();
    assert!(golden > 0);
    let total = tested.events_of("policy-tested").next().unwrap();
    assert_eq!(
        (&total["passed"], &total["failed"]),
        (&(written + golden).into(), &0.into())
    );

    // Of a pipeline, with one that fails.
    write(&site, "freeze.rego", FREEZE);
    write(
        &site,
        "freeze_test.rego",
        "package essrun.freeze_test\nimport rego.v1\ntest_wrong if 1 == 2\ntest_right if 1 == 1\n",
    );
    let input = r#"{"now": {"unix_seconds": 1767225600}, "settings": {"freezes": [
        {"from": "2025-12-20T00:00:00Z", "until": "2026-01-06T00:00:00Z", "why": "holidays"}]}}"#;
    write(&site, "may-run.holidays.input.json", input);
    write(
        &site,
        "may-run.holidays.expected.json",
        r#"{"deny": ["frozen: holidays"]}"#,
    );
    write(&site, "may-run.wrong.input.json", input);
    write(&site, "may-run.wrong.expected.json", r#"{"deny": []}"#);
    write(&site, "may-run.alone.input.json", input);
    with_policy(&site, "[policy]\nfiles = [\"freeze.rego\"]\n");
    let tested = site
        .essrun()
        .run_json(&["policy", "test", "pipeline.toml"])
        .expect_code(FINDINGS)
        .expect_stderr(&[
            "test_wrong",
            "may-run.wrong: deny is [\"frozen: holidays\"], expected []",
            "alone.expected.json",
        ]);
    let passed: Vec<_> = tested
        .events_of("policy-test")
        .filter(|t| t["passed"] == true)
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    assert_eq!(passed, ["essrun.freeze_test.test_right", "may-run.holidays"]);
    with_policy(&site, "");
    site.essrun()
        .run(&["policy", "test", "pipeline.toml"])
        .expect_code(REFUSED);
}

/// The example in Rust, built as its author would.
fn rust_policy() -> Vec<u8> {
    std::fs::read(plugins::cargo_component(&examples().join("policy-rust"))).unwrap()
}

/// The example's own tests, natively.
#[test]
fn the_policy_in_rust_passes_its_own_tests() {
    let tested = plugins::cargo_test(&examples().join("policy-rust"));
    assert!(tested.contains("test result: ok. 2 passed"), "{tested}");
}

fn sha256(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn a_policy_in_rust_decides_the_same_way() {
    let site = site("");
    let wasm = site.path().join("policy_rust.wasm");
    std::fs::write(&wasm, rust_policy()).unwrap();
    let policy = |minutes: &str| {
        format!(
            "[policy]\nuse = {{ path = \"policy_rust.wasm\", sha256 = \"{}\" }}\nsettings.minutes-apart = {minutes}\n",
            sha256(&wasm)
        )
    };
    // Without a pin nothing runs; pinning writes the hash and nothing else.
    let pipeline = || std::fs::read_to_string(site.path().join("pipeline.toml")).unwrap();
    let pin = |more: &[&str]| site.essrun().run(&[&["plugin", "pin", "pipeline.toml"], more].concat());
    with_policy(
        &site,
        &policy("30").replace(&format!(", sha256 = \"{}\"", sha256(&wasm)), ""),
    );
    site.back_up()
        .expect_code(CONFIG)
        .expect_stderr(&["pipeline.toml:", "essrun plugin pin"]);
    pin(&["wiki"])
        .expect_code(CONFIG)
        .expect_stderr(&["there is nothing to pin"]);
    let told = pin(&[]).expect_success().stdout;
    for part in ["the policy: new", &sha256(&wasm), "decides may-run, judge-result"] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    let pinned = pipeline();
    assert!(pinned.ends_with(&policy("30")), "{pinned}");
    let told = pin(&["--policy"]).expect_success().stdout;
    assert!(told.contains("the policy: unchanged") && pipeline() == pinned, "{told}");
    let validated = site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    assert!(
        validated
            .stdout
            .contains("decides may-run, judge-result; does not decide retention, may-restore"),
        "{validated}"
    );
    let first = site.back_up().expect_success();
    assert_eq!(said(&first, "may-run").0, "allowed");
    assert_eq!(said(&first, "judge-result").0, "normal");
    site.back_up()
        .expect_code(REFUSED)
        .expect_stderr(&["minutes ago, 30 must lie between two"]);
    // It fails in its own words.
    with_policy(&site, &policy("\"many\""));
    site.back_up()
        .expect_code(REFUSED)
        .expect_stderr(&["not a number of minutes"]);
    with_policy(&site, &policy("0"));
    site.fill("wiki", "DELETE FROM pages; DELETE FROM links;");
    next_second();
    let odd = site.back_up().expect_code(SUSPECT);
    assert!(said(&odd, "judge-result").1[0].starts_with("wiki has "), "{odd}");

    // Another file under the same name.
    let with_hash = policy("0");
    let mut bytes = std::fs::read(&wasm).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&wasm, bytes).unwrap();
    with_policy(&site, &with_hash);
    site.back_up()
        .expect_code(CONFIG)
        .expect_stderr(&["pipeline.toml:", "its SHA-256 is"]);

    // Its author's next version, and what is no policy.
    let mut next = rust_policy();
    next.extend_from_slice(&[0, 2, 1, b'x']);
    std::fs::write(&wasm, &next).unwrap();
    let told = pin(&[])
        .expect_code(REFUSED)
        .expect_stderr(&["the policy is not the one that was pinned", "--confirm"]);
    assert!(told.stdout.contains("the policy: CHANGED"), "{told}");
    assert!(pipeline().ends_with(&with_hash), "nothing is written without --confirm");
    pin(&["--confirm"]).expect_success();
    assert!(pipeline().ends_with(&policy("0")));
    site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    std::fs::write(&wasm, b"\0asm\x01\0\0\0").unwrap();
    pin(&["--confirm"])
        .expect_code(CONFIG)
        .expect_stderr(&["the policy: not pinned", "not a component"]);
    with_policy(&site, "[policy]\nfiles = []\n");
    pin(&["--policy"])
        .expect_code(CONFIG)
        .expect_stderr(&["nothing to pin"]);
}
