//! What a person may get wrong in pipeline.toml or on the command line: told where, what, and what to do, with the
//! exit code that says whose fault it is; and nothing is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Essrun;
use std::net::TcpListener;
use std::path::Path;

struct Folder {
    dir: tempfile::TempDir,
    recipient: String,
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["media", "config"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let essrun = Essrun::in_dir(dir.path());
        let made = essrun
            .run(&["keygen", "identity", "--output", "identity.txt"])
            .expect_success();
        essrun
            .run(&["keygen", "writer", "--output", "writer.key"])
            .expect_success();
        let recipient = made
            .stdout
            .split_whitespace()
            .find(|word| word.starts_with("age1"))
            .unwrap()
            .to_owned();
        Folder { dir, recipient }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn good(&self) -> String {
        format!(
            r#"version = 1
name = "example"

[repository]
url = "repository"
recipients = ["{}"]
writer-key = "writer.key"
cache = "cache"

[components.synapse]
use = "synapse"

[components.synapse.databases]
main = {{ url-env = "SYNAPSE_DB" }}

[components.synapse.volumes]
media = {{ path = "media" }}
config = {{ path = "config" }}
"#,
            self.recipient
        )
    }

    fn essrun(&self) -> Essrun {
        Essrun::in_dir(self.path()).env("SYNAPSE_DB", "postgresql://nobody:hunter2@127.0.0.1:1/none")
    }
}

const CONFIG: i32 = 3;

#[test]
fn broken_pipeline_files() {
    let folder = Folder::new();
    let good = folder.good();
    // What is replaced by what; the line the message must name (0: none); what it must say.
    let cases: &[(&str, &str, usize, &[&str])] = &[
        ("version = 1", "version = 2", 1, &["version"]),
        ("version = 1", "version = \"one\"", 1, &["invalid type"]),
        ("version = 1\n", "version = 1\nversion = 1\n", 2, &["duplicate"]),
        ("name = \"example\"", "name = \"../etc\"", 2, &["name"]),
        ("name = \"example\"", "name = \"\"", 2, &["name"]),
        ("[repository]", "[repositry]", 4, &["unknown field", "repositry"]),
        ("[repository]", "[repository", 4, &["hint:"]),
        ("writer-key", "writerkey", 7, &["unknown field", "writerkey"]),
        ("use = \"synapse\"", "use = \"synaps\"", 10, &["synaps", "synapse"]),
        ("use = \"synapse\"", "use = { path = \"x.wasm\" }", 11, &["sha256"]),
        ("use = \"synapse\"\n", "", 10, &["use"]),
        (
            "main = { url-env = \"SYNAPSE_DB\" }",
            "main = { }",
            14,
            &["url-env", "told where"],
        ),
        ("main = {", "main = { url = \"postgresql://a/b\",", 14, &["2 times"]),
        ("main = {", "secondary = {", 10, &["databases.main"]),
        // A connection string in the wrong place is not shown.
        (
            "main = { url-env = \"SYNAPSE_DB\" }",
            "main = \"postgresql://u:hunter2@h/d\"",
            14,
            &["main: invalid type"],
        ),
        (
            "url-env = \"SYNAPSE_DB\"",
            "url-env = \"postgresql://u:hunter2@h/d\"",
            14,
            &["url-env is not the name"],
        ),
        (
            "url-env = \"SYNAPSE_DB\"",
            "url-file = \"postgresql://u:hunter2@h/d\"",
            14,
            &["url-file holds a connection string"],
        ),
        (
            "url-env = \"SYNAPSE_DB\"",
            "service = \"postgresql://u:hunter2@h/d\"",
            14,
            &["service holds a connection string"],
        ),
        (
            "url-env = \"SYNAPSE_DB\"",
            "url-env = \"SYNAPSE_DB\", admin-url-env = \"host=h password=hunter2\"",
            14,
            &["admin-url-env is not the name"],
        ),
        (
            "media = { path = \"media\" }",
            "media = { path = \"/\" }",
            17,
            &["volume"],
        ),
        ("media = {", "medias = {", 0, &["medias"]),
        (
            "[components.synapse.volumes]",
            "[components.synapse.settings]\nno-such-setting = 1\n[components.synapse.volumes]",
            0,
            &["no-such-setting"],
        ),
    ];
    let mut wrong = Vec::new();
    for (from, to, line, says) in cases {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from:?} is not in the good file");
        std::fs::write(folder.path().join("pipeline.toml"), &text).unwrap();
        let outcome = folder.essrun().run(&["pipeline.toml"]);
        let place = if *line > 0 {
            format!("pipeline.toml:{line}:")
        } else {
            String::new()
        };
        let mut expected = vec!["hint:", &place];
        expected.extend(*says);
        let unsaid: Vec<_> = expected
            .into_iter()
            .filter(|fragment| !outcome.stderr.contains(fragment))
            .collect();
        if outcome.code() != Some(CONFIG) || !unsaid.is_empty() || !outcome.stdout.is_empty() {
            wrong.push(format!("{to:?}: exit code 3 and {unsaid:?} expected of\n{outcome}"));
        }
        assert!(!outcome.stderr.contains("hunter2"), "a password was printed: {outcome}");
        if folder.path().join("repository").exists() {
            wrong.push(format!("{to:?}: something was written by\n{outcome}"));
            std::fs::remove_dir_all(folder.path().join("repository")).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{} case(s):\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_is_outside_the_file() {
    let folder = Folder::new();
    let file = folder.path().join("pipeline.toml");
    std::fs::write(&file, folder.good()).unwrap();
    let essrun = folder.essrun();
    // Nothing is made by the way: a repository comes from `init` alone.
    let refused = essrun.run(&["pipeline.toml"]);
    assert_eq!(refused.code(), Some(6), "{refused}");
    refused.expect_stderr(&["there is no repository", "init"]);
    essrun.run(&["init", "pipeline.toml"]).expect_success();
    // (what is replaced, by what, exit code, what is said)
    let cases: &[(&str, &str, i32, &[&str])] = &[
        (
            "url = \"repository\"",
            "url = \"ftp://example.org/x\"",
            CONFIG,
            &["pipeline.toml:5: ", "ftp://", "hint:", "s3://"],
        ),
        (
            "url-env = \"SYNAPSE_DB\"",
            "url-env = \"NOT_SET_ANYWHERE\"",
            CONFIG,
            &["NOT_SET_ANYWHERE", "hint:"],
        ),
        (
            "url-env = \"SYNAPSE_DB\"",
            "url-file = \"missing.url\"",
            CONFIG,
            &["missing.url", "hint:"],
        ),
        (
            "writer-key = \"writer.key\"",
            "writer-key = \"identity.txt\"",
            CONFIG,
            &["identity.txt", "hint:"],
        ),
        (
            "writer-key = \"writer.key\"",
            "writer-key = \"missing.key\"",
            CONFIG,
            &["missing.key", "hint:"],
        ),
        (
            "recipients = [\"",
            "recipients = [\"nonsense\", \"",
            CONFIG,
            &["hint:", "age1"],
        ),
    ];
    let mut wrong = Vec::new();
    for (from, to, code, says) in cases {
        let text = folder.good().replacen(from, to, 1);
        assert_ne!(text, folder.good(), "{from:?} is not in the good file");
        std::fs::write(&file, &text).unwrap();
        let outcome = essrun.run(&["pipeline.toml"]);
        let unsaid: Vec<_> = says
            .iter()
            .filter(|fragment| !outcome.stderr.contains(**fragment))
            .collect();
        if outcome.code() != Some(*code) || !unsaid.is_empty() {
            wrong.push(format!(
                "{to:?}: exit code {code} and {unsaid:?} expected of\n{outcome}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} case(s):\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_command_line() {
    let folder = Folder::new();
    let essrun = folder.essrun();
    std::fs::write(folder.path().join("pipeline.toml"), folder.good()).unwrap();
    essrun.run(&[]).expect_code(2);
    essrun.run(&["no-such-verb", "pipeline.toml"]).expect_code(2);
    essrun
        .run(&["backup", "--no-such-flag", "pipeline.toml"])
        .expect_code(2)
        .expect_stderr(&["--no-such-flag"]);
    essrun
        .run(&["missing.toml"])
        .expect_code(CONFIG)
        .expect_stderr(&["missing.toml", "hint:"]);
    essrun.run(&["./media"]).expect_code(CONFIG);
    let help = essrun.run(&["--help"]).expect_success();
    for word in [
        "backup",
        "restore",
        "list",
        "show",
        "extract",
        "check",
        "validate",
        "plan",
        "keygen",
        "Exit codes",
    ] {
        assert!(help.stdout.contains(word), "{word} is not in the help");
    }
    // Keys are never written over.
    for what in ["identity", "writer"] {
        let file = if what == "identity" {
            "identity.txt"
        } else {
            "writer.key"
        };
        let before = std::fs::read(folder.path().join(file)).unwrap();
        let refused = essrun.run(&["keygen", what, "--output", file]);
        assert!(refused.code().is_some_and(|code| code != 0), "{refused}");
        assert_eq!(std::fs::read(folder.path().join(file)).unwrap(), before);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(folder.path().join(file)).unwrap().permissions(),
        );
        assert_eq!(mode & 0o077, 0, "{file} can be read by others");
    }
    // With --json, errors are events too.
    let failed = essrun.run_json(&["missing.toml"]).expect_code(CONFIG);
    assert_eq!(failed.events_of("error").count(), 1, "{failed}");
}

#[test]
fn a_server_that_is_not_there() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("pipeline.toml"), folder.good()).unwrap();
    let essrun = folder.essrun();
    essrun.run(&["init", "pipeline.toml"]).expect_success();
    let failed = essrun.run(&["pipeline.toml"]);
    assert_eq!(failed.code(), Some(5), "{failed}");
    assert!(!failed.stderr.contains("hunter2"), "a password was printed: {failed}");
    let listed = essrun.run_json(&["list", "pipeline.toml"]).expect_success();
    assert!(
        !listed.stdout.contains("taken-at"),
        "a failed run left a backup: {listed}"
    );
}

/// Whose fault it is that nothing was taken: a component's that refuses, not of a server that was never asked.
#[test]
fn a_component_that_refuses() {
    let folder = Folder::new();
    let text = folder.good();
    let (repository, _) = text.split_once("[components.synapse]").unwrap();
    let text = format!("{repository}[components.extra]\nuse = \"generic\"\n");
    std::fs::write(folder.path().join("pipeline.toml"), text).unwrap();
    let essrun = folder.essrun();
    essrun.run(&["init", "pipeline.toml"]).expect_success();
    let refused = essrun.run(&["pipeline.toml"]);
    assert_eq!(refused.code(), Some(7), "{refused}");
    refused.expect_stderr(&["component extra", "nothing was backed up"]);
}

#[test]
fn no_recipients_no_reading() {
    let folder = Folder::new();
    // A server that would notice the first connection.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let url = format!("postgresql://user:hunter2@{}/synapse", server.local_addr().unwrap());
    let text = folder
        .good()
        .replace(&format!("recipients = [\"{}\"]\n", folder.recipient), "");
    assert!(!text.contains("recipients"));
    std::fs::write(folder.path().join("config/signing.key"), "ed25519 a_test secret\n").unwrap();
    std::fs::write(folder.path().join("pipeline.toml"), &text).unwrap();
    let essrun = folder.essrun().env("SYNAPSE_DB", url);
    for args in [vec!["pipeline.toml"], vec!["backup", "pipeline.toml", "--dry-run"]] {
        let refused = essrun.run(&args);
        assert_eq!(refused.code(), Some(4), "{refused}");
        let refused = refused.expect_stderr(&["recipients", "hint:", "keygen identity"]);
        let touched = server.accept();
        assert!(
            touched.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
            "the database was contacted: {refused}"
        );
    }
    // The same with recipients does contact it: the check above can fail.
    std::fs::write(folder.path().join("pipeline.toml"), folder.good()).unwrap();
    essrun.run(&["init", "pipeline.toml"]).expect_success();
    let visitor = std::thread::spawn(move || {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::time::Instant::now() < deadline {
            if server.accept().is_ok() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        false
    });
    let failed = essrun.run(&["pipeline.toml"]);
    assert_ne!(failed.code(), Some(0), "{failed}");
    assert!(visitor.join().unwrap(), "with recipients the database is contacted");
}
