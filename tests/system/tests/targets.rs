//! What is wrong with what was asked for is said before the first step: targets that are one place, targets that are none,
//! a backup that somebody or something speaks against.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Essrun, Outcome};
use essrun_testkit::site::Site;
use serde_json::Value;
use std::path::{Path, PathBuf};

const REFUSED: i32 = 4;

/// `a` and `b` with a database and files each, and a bot that looks at the database of `a`; where the database of `b` is.
fn site() -> (Site, String) {
    let mut site = Site::create();
    let mut urls = Vec::new();
    for name in ["one", "two"] {
        urls.push(site.database(name).url());
        site.fill(name, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
        std::fs::write(site.folder(name).join("file.txt"), name).unwrap();
    }
    for folder in ["bot", "bot-config"] {
        std::fs::write(site.folder(folder).join("config.yml"), "bot_backup_phrase: \"x\"\n").unwrap();
    }
    site.prepare(&format!("{}{}", components(&site), bot(&site)));
    site.back_up().expect_success();
    (site, urls.remove(1))
}

fn components(site: &Site) -> String {
    let root = site.path().display();
    let one = |name: &str, at: &str| {
        format!(
            "[components.{name}]\nuse = \"generic\"\ndatabases.main = {{ url-env = \"{}_DB\" }}\n\
             volumes.files = {{ path = \"{root}/{at}\" }}\n",
            at.to_uppercase()
        )
    };
    one("a", "one") + &one("b", "two")
}

fn bot(site: &Site) -> String {
    let root = site.path().display();
    format!(
        "[components.adminbot]\nuse = \"adminbot\"\ndatabases.synapse = {{ url-env = \"ONE_DB\" }}\n\
         volumes = {{ data = {{ path = \"{root}/bot\" }}, config = {{ path = \"{root}/bot-config\" }} }}\n"
    )
}

fn restore(essrun: &Essrun, more: &[&str]) -> Outcome {
    let args = ["restore", "pipeline.toml", "--identity", "elsewhere/identity.txt"];
    essrun.run_json(&[&args[..], more].concat())
}

fn plan(outcome: &Outcome) -> &Value {
    outcome
        .events_of("restore-plan")
        .next()
        .unwrap_or_else(|| panic!("{outcome}"))
}

/// Findings of a plan as (component/label, message), of one check.
fn found(outcome: &Outcome, check: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for component in plan(outcome)["components"].as_array().unwrap() {
        for p in component["preconditions"].as_array().unwrap() {
            if p["check"] == check {
                assert_ne!(p["remedy"], "", "{p}");
                let what = format!(
                    "{}/{}",
                    component["component"].as_str().unwrap(),
                    p["label"].as_str().unwrap()
                );
                found.push((what, p["message"].as_str().unwrap().to_owned()));
            }
        }
    }
    found
}

fn everything(site: &Site) -> (Vec<String>, Vec<PathBuf>) {
    let mut files: Vec<PathBuf> = site.path().read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    (site.databases(), files)
}

#[test]
fn no_two_targets_are_one_place() {
    let (site, two) = site();
    let path = |name: &str| site.path().join(name).display().to_string();
    std::fs::create_dir(path("real")).unwrap();
    std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
    let to = |what: &str, at: &str| format!("{what}={at}");
    let only = ["--only", "a", "--only", "b"];
    let refused = |essrun: &Essrun, targets: [(&str, String); 4], at: &str, says: &str| {
        let before = everything(&site);
        let targets: Vec<String> = targets.iter().map(|(what, at)| to(what, at)).collect();
        let mut args: Vec<&str> = only.to_vec();
        for target in &targets {
            args.extend(["--to", target]);
        }
        args.push("--yes");
        // With and without leave to replace: then the second would have pushed the first aside.
        for more in [&[][..], &["--replace"]] {
            let outcome = restore(essrun, &[&args[..], more].concat()).expect_code(REFUSED);
            let outcome = outcome.expect_stderr(&["same-target", says, "nothing was changed"]);
            let found = found(&outcome, "same-target");
            assert!(
                found.len() == 1 && found[0].0 == at && found[0].1.contains(says),
                "{found:?}"
            );
            assert_eq!(everything(&site), before, "{targets:?}");
        }
    };
    let here = site.essrun();
    let elsewhere = |what: &'static str, at: &str| (what, path(at));
    let copy = |what: &'static str, name: &str| (what, name.to_owned());
    let apart = [elsewhere("a/files", "x"), elsewhere("b/files", "y")];
    let [ax, by] = apart.clone();
    refused(
        &here,
        [copy("a/main", "copy"), copy("b/main", "copy"), ax.clone(), by.clone()],
        "b/main",
        "into the database `copy` of a/main",
    );
    // The same server by another name.
    let url = two.replace("127%2E0%2E0%2E1", "localhost");
    assert_ne!(url, two);
    refused(
        &here.clone().env("TWO_DB", url),
        [copy("a/main", "copy"), copy("b/main", "copy"), ax, by],
        "b/main",
        "into the database `copy` of a/main",
    );
    for (a, b, says) in [
        ("x", "x", "to the place"),
        ("x", "x/in/it", "into the place"),
        ("x/in/it", "x", "around the place"),
        ("real/x", "link/x", "to the place"),
        ("real/x", "link/y/../x/in/it", "into the place"),
    ] {
        refused(
            &here,
            [
                copy("a/main", "c"),
                copy("b/main", "d"),
                elsewhere("a/files", a),
                elsewhere("b/files", b),
            ],
            "b/files",
            says,
        );
    }
    // Beside each other they are fine, also where one name begins as the other.
    let mut args = [&only[..], &["--yes"]].concat();
    let targets = [
        to("a/main", "copy"),
        to("b/main", "copy2"),
        to("a/files", &path("real/x")),
        to("b/files", &path("link/x2")),
    ];
    for target in &targets {
        args.extend(["--to", target]);
    }
    restore(&here, &args).expect_success();
    assert_eq!(std::fs::read_to_string(path("real/x2/file.txt")).unwrap(), "two");
}

#[test]
fn a_target_is_of_something_that_is_restored() {
    let (site, _) = site();
    let essrun = site.essrun();
    let before = everything(&site);
    let with = |to: &str, more: &[&str]| restore(&essrun, &[&["--yes", "--replace", "--to", to], more].concat());
    with("adminbot/synapse=x", &[]).expect_code(REFUSED).expect_stderr(&[
        "adminbot/synapse",
        "only looked at",
        "hint:",
    ]);
    with("a/nothing=x", &[])
        .expect_code(REFUSED)
        .expect_stderr(&["a/nothing"]);
    with("b/main=x", &["--only", "a"])
        .expect_code(REFUSED)
        .expect_stderr(&["b/main"]);
    with("a/files=x", &["--only", "a/main"])
        .expect_code(REFUSED)
        .expect_stderr(&["a/files", "nothing is restored"]);
    // Granted since the backup was taken.
    let file = site.path().join("pipeline.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let more = "databases.second = { sqlite = \"second.sqlite\" }\n";
    let granted = text.replacen(
        "[components.b]\nuse = \"generic\"\n",
        &format!("[components.b]\nuse = \"generic\"\n{more}"),
        1,
    );
    assert_ne!(granted, text);
    std::fs::write(&file, granted).unwrap();
    with("b/second=x", &[]).expect_code(REFUSED).expect_stderr(&[
        "b/second",
        "nothing is restored",
        "the backup does not hold it",
    ]);
    std::fs::write(&file, &text).unwrap();
    assert_eq!(everything(&site), before);
}

/// A destination that cannot be one is told with the plan, whatever else was asked for.
#[test]
fn a_destination_that_is_no_directory() {
    let (site, _) = site();
    let path = |name: &str| site.path().join(name);
    std::fs::write(path("plain"), "somebody's").unwrap();
    std::fs::create_dir(path("real")).unwrap();
    std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
    std::os::unix::fs::symlink(path("nowhere"), path("dangling")).unwrap();
    let before = everything(&site);
    for (at, says) in [
        (path("link"), "is a symbolic link"),
        (path("dangling"), "is a symbolic link"),
        (path("plain"), "is no directory"),
        (PathBuf::from("/"), "has no name of its own"),
    ] {
        let to = format!("a/files={}", at.display());
        for more in [
            &["--yes"][..],
            &["--yes", "--replace"],
            &["--yes", "--resume"],
            &["--dry-run"],
        ] {
            let args = [&["--only", "a/files", "--to", to.as_str()], more].concat();
            let outcome = restore(&site.essrun(), &args).expect_code(REFUSED);
            let outcome = outcome.expect_stderr(&["volume-destination", says, "nothing was changed"]);
            let found = found(&outcome, "volume-destination");
            assert!(
                found.len() == 1 && found[0].0 == "a/files" && found[0].1.contains(says),
                "{found:?}"
            );
        }
    }
    assert_eq!(everything(&site), before);
    assert_eq!(std::fs::read_to_string(path("plain")).unwrap(), "somebody's");
    assert_eq!(path("real").read_dir().unwrap().count(), 0);
}

fn packs(site: &Site) -> Vec<PathBuf> {
    let found = std::process::Command::new("find")
        .arg(site.path().join("repository"))
        .args(["-path", "*/data/*", "-type", "f"])
        .output()
        .unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    text.lines().map(PathBuf::from).collect()
}

fn notes(outcome: &Outcome) -> String {
    plan(outcome)["notes"].to_string()
}

#[test]
fn what_is_known_against_a_backup_is_said() {
    let mut site = Site::create();
    site.database("two");
    site.fill("two", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    std::fs::write(site.folder("one").join("file.txt"), "one").unwrap();
    std::fs::write(site.folder("two").join("file.txt"), "two").unwrap();
    let root = site.path().display().to_string();
    site.prepare(&format!(
        "[components.a]\nuse = \"generic\"\nvolumes.files = {{ path = \"{root}/one\" }}\n\
         [components.b]\nuse = \"generic\"\ndatabases.main = {{ url-env = \"TWO_DB\" }}\n\
         volumes.files = {{ path = \"{root}/two\" }}\n"
    ));
    let of_a = [&["pipeline.toml"], &["--only", "a"][..]].concat();
    site.essrun().run_json(&of_a).expect_success();
    let before = packs(&site);
    // Backups are dated by the second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.back_up().expect_success();
    let essrun = site.essrun();
    let dry = |more: &[&str]| restore(&essrun, &[&["--dry-run", "--replace"], more].concat());
    let good = dry(&[]).expect_success();
    assert_eq!(notes(&good), "[]", "{good}");

    // A drill that fails, and then one that passes.
    let file = site.path().join("pipeline.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let wrong = "[components.b.settings]\nmust-be-true = { main = [\"SELECT count(*) = 2 FROM public.t\"] }\n";
    std::fs::write(&file, format!("{text}{wrong}")).unwrap();
    site.with_identity("drill", &[]).expect_code(8);
    std::fs::write(&file, &text).unwrap();
    let failed = dry(&[]).expect_success();
    assert!(notes(&failed).contains("the last drill of this backup"), "{failed}");
    assert!(notes(&failed).contains("FAILED with 1 error(s)"), "{failed}");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.with_identity("drill", &[]).expect_success();
    assert_eq!(notes(&dry(&[])), "[]");

    // Its packs are lost: what is in the first backup as well is still there.
    for pack in packs(&site).iter().filter(|p| !before.contains(p)) {
        std::fs::remove_file(pack).unwrap();
    }
    site.with_identity("repair", &["--confirm"]);
    let live = everything(&site);
    let refused = restore(&essrun, &["--replace", "--yes"]).expect_code(REFUSED);
    let refused = refused.expect_stderr(&["damaged", "b/files", "--only", "another backup", "nothing was changed"]);
    let damaged = found(&refused, "damaged");
    for (label, artifact) in [("b/files", "b/files"), ("b/main", "b/main/public.t")] {
        let told = |(what, message): &(String, String)| what == label && message.starts_with(&format!("{artifact} "));
        assert!(damaged.iter().any(told), "{artifact}: {damaged:?}");
    }
    assert!(damaged.iter().all(|(what, _)| what.starts_with("b/")), "{damaged:?}");
    assert_eq!(everything(&site), live);
    std::fs::write(site.path().join("one/file.txt"), "changed").unwrap();
    restore(&essrun, &["--replace", "--yes", "--only", "a"]).expect_success();
    assert_eq!(read(&site.path().join("one/file.txt")), "one");

    // One that a policy finds odd.
    std::fs::write(
        site.path().join("judge.rego"),
        "package essrun.judge_result\nimport rego.v1\nsuspect := true\nreasons := [\"half of it is gone\"]\n",
    )
    .unwrap();
    std::fs::write(&file, format!("{text}\n[policy]\nfiles = [\"judge.rego\"]\n")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.back_up().expect_code(10);
    let odd = dry(&[]).expect_success();
    assert!(notes(&odd).contains("this backup is SUSPECT"), "{odd}");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
