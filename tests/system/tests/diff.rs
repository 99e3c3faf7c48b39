//! `essrun diff`: what changed between two backups of a real database, an SQLite file and a tree of files, to the row,
//! the byte and the file; and nothing where nothing did.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::site::Site;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn committed(outcome: &Outcome) -> String {
    let event = outcome.events_of("committed").next();
    event.unwrap_or_else(|| panic!("nothing was committed: {outcome}"))["backup"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn diff(site: &Site, args: &[&str]) -> Value {
    let outcome = site
        .essrun()
        .run_json(&[&["diff", "pipeline.toml"], args].concat())
        .expect_success();
    outcome.events_of("diff").next().unwrap().clone()
}

fn component<'a>(diff: &'a Value, name: &str) -> &'a Value {
    let components = diff["components"].as_array().unwrap();
    components.iter().find(|c| c["component"] == name).unwrap()
}

fn artifact<'a>(component: &'a Value, name: &str) -> &'a Value {
    let artifacts = component["artifacts"].as_array().unwrap();
    let found = artifacts.iter().find(|a| a["artifact"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {component:#}"))
}

fn write(site: &Site, name: &str, text: &str) {
    std::fs::write(site.path().join(name), text).unwrap();
}

fn site() -> Site {
    let mut site = Site::create();
    site.database("wiki");
    site.fill(
        "wiki",
        "CREATE TABLE pages (id int PRIMARY KEY, text text); CREATE TABLE links (a int, b int); CREATE TABLE old (a int);\n\
         INSERT INTO pages SELECT n, md5(n::text) || md5((n + 1)::text) FROM generate_series(1, 50000) AS n;\n\
         INSERT INTO links SELECT n, n + 1 FROM generate_series(1, 500) AS n;",
    );
    site.folder("files/deep");
    for (name, text) in [("kept", "k"), ("gone", "g"), ("edited", "before"), ("deep/chmod", "c")] {
        write(&site, &format!("files/{name}"), text);
    }
    site.prepare(
        "[run]\njobs = 1\n[components.wiki]\nuse = \"generic\"\ndatabases.main = { url-env = \"WIKI_DB\" }\n\
         volumes.files = { path = \"files\" }\n",
    );
    site
}

#[test]
fn what_changed_is_told_to_the_row_and_the_file() {
    let site = site();
    let first = committed(&site.back_up().expect_success());
    std::thread::sleep(Duration::from_millis(1100));

    // Nothing changed, but for the time.
    let second = committed(&site.back_up().expect_success());
    let none = diff(&site, &[&first, &second]);
    assert_eq!(none["changed"], false, "{none:#}");
    assert_eq!(component(&none, "wiki")["artifacts"], json!([]));
    let words = site.essrun().run(&["diff", "pipeline.toml", &first]).expect_success();
    assert!(words.stdout.contains("nothing changed"), "{words}");

    site.fill(
        "wiki",
        "INSERT INTO pages SELECT n, md5(n::text) || md5((n + 1)::text) FROM generate_series(50001, 50100) AS n;\n\
         CREATE TABLE fresh (a int); INSERT INTO fresh VALUES (1), (2); DROP TABLE old;",
    );
    write(&site, "files/edited", "afterwards");
    write(&site, "files/deep/new", "1234567");
    std::fs::remove_file(site.path().join("files/gone")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    let chmod = site.path().join("files/deep/chmod");
    std::fs::set_permissions(chmod, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let third = committed(&site.back_up().expect_success());

    let all = diff(&site, &[&first, &third]);
    assert_eq!((&all["changed"], &all["from"]["backup"]), (&json!(true), &json!(first)));
    assert_eq!(all["to"]["backup"], json!(third));
    assert!(all["to"]["stored-bytes"].as_u64().unwrap() > 0);
    let wiki = component(&all, "wiki");
    assert_eq!(wiki["change"], "changed");
    let pages = artifact(wiki, "main/public.pages");
    assert_eq!(pages["change"], "changed");
    assert_eq!(pages["items"], json!({"from": 50000, "to": 50100}));
    // A hundred rows at the end: a small part of the table, whatever chunks end there.
    let (new, whole) = (
        pages["new-bytes"].as_u64().unwrap(),
        pages["bytes"]["to"].as_u64().unwrap(),
    );
    assert!(new >= 100 * 65 && new < whole / 4, "{pages:#}");
    let fresh = artifact(wiki, "main/public.fresh");
    assert_eq!(
        (&fresh["change"], &fresh["items"]),
        (&json!("added"), &json!({"from": null, "to": 2}))
    );
    let old = artifact(wiki, "main/public.old");
    assert_eq!((&old["change"], &old["items"]["to"]), (&json!("removed"), &Value::Null));
    let artifacts = wiki["artifacts"].as_array().unwrap();
    assert!(
        artifacts.iter().all(|a| a["artifact"] != "main/public.links"),
        "{wiki:#}"
    );
    let schema = &wiki["schemas"]["main"];
    assert!(schema["from"].is_string() && schema["to"].is_string() && schema["from"] != schema["to"]);
    assert_eq!(
        wiki["facts"]["dumped-rows/main/public.pages"],
        json!({"from": "50000", "to": "50100"})
    );
    let volume = artifact(wiki, "files");
    assert_eq!(volume["new-bytes"], 7 + "afterwards".len());
    assert_eq!(
        volume["files"],
        json!({
            "added": {"count": 1, "first": ["deep/new"]},
            "removed": {"count": 1, "first": ["gone"]},
            "changed": {"count": 1, "first": ["edited"]},
            "attributes": {"count": 1, "first": ["deep/chmod"]},
        })
    );

    // The other way about, and fewer names.
    let back = diff(&site, &[&third, &first, "--files", "0"]);
    let volume = artifact(component(&back, "wiki"), "files");
    assert_eq!(volume["files"]["added"], json!({"count": 1, "first": []}));
    assert_eq!(
        artifact(component(&back, "wiki"), "main/public.fresh")["change"],
        "removed"
    );

    let words = site
        .essrun()
        .run(&["diff", "pipeline.toml", &first, &third])
        .expect_success();
    for said in [
        "~ main/public.pages",
        "50000 → 50100 (+100) items",
        "+ main/public.fresh",
        "- main/public.old",
        "definitions of main changed",
        "+ deep/new",
        "- gone",
        "~ edited",
        "o deep/chmod",
    ] {
        assert!(words.stdout.contains(said), "{said:?} is not in\n{words}");
    }
    site.essrun()
        .run(&["diff", "pipeline.toml", &first, &third, "--only", "mas"])
        .expect_code(4)
        .expect_stderr(&["holds component mas", "wiki"]);
    site.essrun()
        .run(&["diff", "pipeline.toml", "19990101"])
        .expect_code(6)
        .expect_stderr(&["19990101"]);
}

/// A file whose time was put back is compared by what the backups hold, not by its time; and a component that came,
/// went or failed is told.
#[test]
fn components_come_and_go() {
    let site = site();
    let pipeline = std::fs::read_to_string(site.path().join("pipeline.toml")).unwrap();
    let first = committed(&site.back_up().expect_success());
    write(
        &site,
        "pipeline.toml",
        &format!("{pipeline}\n[components.more]\nuse = \"generic\"\nvolumes.files = {{ path = \"files/deep\" }}\n"),
    );
    let edited = site.path().join("files/edited");
    let time: SystemTime = edited.metadata().unwrap().modified().unwrap();
    write(&site, "files/edited", "BEFORE");
    std::fs::File::options()
        .write(true)
        .open(&edited)
        .unwrap()
        .set_modified(time)
        .unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let second = committed(&site.back_up().expect_success());
    let both = diff(&site, &[&first, &second]);
    assert_eq!(component(&both, "more")["change"], "added");
    assert_eq!(
        artifact(component(&both, "more"), "files")["files"]["added"]["count"],
        2,
        "the folder and its file"
    );
    let files = &artifact(component(&both, "wiki"), "files")["files"];
    assert_eq!(files["changed"], json!({"count": 1, "first": ["edited"]}));

    // Where neither server nor writer key is, with an identity.
    let elsewhere = |path: &Path| std::fs::rename(site.path().join("writer.key"), path).unwrap();
    elsewhere(&site.path().join("away.key"));
    let args = [first.as_str(), &second, "--identity", "elsewhere/identity.txt"];
    assert_eq!(diff(&site, &args)["components"], both["components"]);
}
