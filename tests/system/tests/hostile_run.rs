//! A whole run with nearly fifty strangers in it, each with a misdeed of its own: the run goes on, says who did what, stays
//! small, and backs up the honest one. And a stranger who says that secrets are none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::plugins;
use essrun_testkit::sha256_hex;
use essrun_testkit::site::Site;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A deed, and what is said of who did it; where two limits are near each other, either.
const DEEDS: &[(&str, &str)] = &[
    ("panic", "it panicked"),
    ("index", "it panicked"),
    ("exit", "it called exit"),
    ("abort", "it panicked"),
    ("sleep", "the whole call took more than"),
    ("spin", "it computed for more than"),
    ("allocate", "of memory|it computed for more than"),
    ("recurse", "nest too deep|it trapped|it computed for more than"),
    ("shout", "it computed for more than"),
    ("log-flood", "it floods the log|it computed for more than"),
    ("dump-ungranted", "its plan dumps \"other\", which it was not granted"),
    (
        "archive-ungranted",
        "its plan archives \"root\", which it was not granted",
    ),
    (
        "archive-database",
        "its plan archives \"main\", which it was not granted",
    ),
    ("dump-volume", "its plan dumps \"files\", which it was not granted"),
    ("copy-postgres", "its plan copies \"main\", which is no SQLite database"),
    ("dump-twice", "its plan dumps \"main\" twice"),
    ("label-path", "the label \"../files\""),
    ("take-above", ".."),
    ("take-root", "/etc/passwd"),
    ("take-escape", "control characters"),
    ("filter-ends", "public.item"),
    ("filter-closes", "public.item"),
    ("filter-function", "public.item"),
    ("filter-writes", "read-only transaction|nextval"),
    ("filter-divides", "division by zero"),
    ("take-long", "pattern"),
    ("query-forever", "denied|took more than"),
    ("fact-twice", "records the fact \"a\" twice"),
    ("fact-control", "control characters"),
    ("fact-nameless", "unfit name"),
    ("note-long", "more than 8.0 MiB of text"),
    ("notes-many", "more than 100000 items"),
    ("rules-many", "more than 100000 items"),
    ("query-two", "denied"),
    ("query-copy", "denied"),
    ("query-file", "denied"),
    ("query-write", "denied"),
    ("query-sequence", "denied"),
    ("query-role", "denied"),
    ("query-end", "denied"),
    ("read-above", "Err("),
    ("read-link", "Err("),
    ("read-root", "Err("),
    ("look-other", "Denied"),
];

const SCHEMA: &str = "
    CREATE TABLE item (id bigserial PRIMARY KEY, title text);
    INSERT INTO item (title) SELECT 'item ' || n FROM generate_series(1, 100) n;
    CREATE TABLE access_tokens (id bigint PRIMARY KEY, user_id text, token text);
    INSERT INTO access_tokens VALUES (1, '@a:example.org', 'syt_secret');";

/// A file that is no plugin, in the place of one.
struct Odd {
    name: &'static str,
    bytes: Vec<u8>,
    says: &'static str,
}

fn odd() -> Vec<Odd> {
    let wat = |text: &str| wat::parse_str(text).unwrap();
    vec![
        Odd {
            name: "native",
            bytes: std::fs::read("/proc/self/exe").unwrap()[..4096].to_vec(),
            says: ".cwasm",
        },
        Odd {
            name: "core",
            bytes: wat("(module)"),
            says: "not a component",
        },
        Odd {
            name: "async",
            bytes: wat("(component (core func (canon backpressure.inc)))"),
            says: "asynchronous ABI",
        },
        Odd {
            name: "bomb",
            bytes: wat(&format!("(component (core module {}))", "(func)".repeat(30_001))),
            says: "compiling it could exhaust the host",
        },
        Odd {
            name: "typed",
            bytes: wat(r#"(component (instance $i) (export "ess:backup/system@0.1.0" (instance $i)))"#),
            says: "does not fit the contract",
        },
        Odd {
            name: "foreign",
            bytes: wat(r#"(component (import "wasi:filesystem/types@0.2.6" (instance)))"#),
            says: "wasi:filesystem/types@0.2.6",
        },
    ]
}

fn site(strangers: &str, hostile: &Path) -> Site {
    let mut site = Site::create();
    site.database("shop");
    site.fill("shop", SCHEMA);
    let files = site.folder("files");
    std::fs::write(files.join("a.txt"), "Dear …").unwrap();
    std::fs::create_dir(files.join("deep")).unwrap();
    std::fs::write(files.join("deep/example.org.signing.key"), "ed25519 a_1 AAAA\n").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", files.join("link")).unwrap();
    std::fs::copy(hostile, site.path().join("hostile.wasm")).unwrap();
    site.prepare(&format!(
        "[components.honest]\nuse = \"generic\"\ndatabases.main = {{ url-env = \"SHOP_DB\" }}\n\
         volumes.files = {{ path = \"files\" }}\n\n{strangers}"
    ));
    site
}

/// Only those that need the database are given it: each holds a snapshot of its own while the run lasts.
fn stranger(name: &str, hash: &str) -> String {
    let database = [
        "dump-twice",
        "copy",
        "filter",
        "rule-quote",
        "query",
        "note-escape",
        "archive-database",
        "lie",
    ];
    let database = match database.iter().any(|deed| name.starts_with(deed)) {
        true => "databases.main = { url-env = \"SHOP_DB\" }\n",
        false => "",
    };
    format!(
        "[components.{name}]\nuse = {{ path = \"hostile.wasm\", sha256 = \"{hash}\" }}\n{database}\
         volumes.files = {{ path = \"files\" }}\nsettings.deed = \"{name}\"\n\
         limits = {{ cpu = \"300 ms\", wall-clock = \"5 s\" }}\n\n"
    )
}

#[test]
fn misdeeds_cost_only_who_did_them() {
    let wasm = plugins::hostile();
    let hash = sha256_hex(&std::fs::read(&wasm).unwrap());
    let mut strangers: String = DEEDS.iter().map(|(deed, _)| stranger(deed, &hash)).collect();
    // No harm: what was said reaches nothing.
    for deed in ["note-escape", "filter-unknown", "rule-quote"] {
        strangers.push_str(&stranger(deed, &hash));
    }
    for file in odd() {
        let hash = sha256_hex(&file.bytes);
        strangers.push_str(&format!(
            "[components.{0}]\nuse = {{ path = \"{0}.wasm\", sha256 = \"{hash}\" }}\n\n",
            file.name
        ));
    }
    let site = site(&strangers, &wasm);
    for file in odd() {
        std::fs::write(site.path().join(format!("{}.wasm", file.name)), file.bytes).unwrap();
    }

    // Python tells how large the process became.
    let essrun = site.essrun().command(&["--json", "pipeline.toml"]);
    let script = "import resource, subprocess, sys\ncode = subprocess.run(sys.argv[1:]).returncode\n\
                  print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\nsys.exit(code)";
    let mut measured = Command::new("python3");
    measured
        .args(["-c", script])
        .arg(essrun.get_program())
        .args(essrun.get_args());
    measured.current_dir(site.path());
    for (key, value) in essrun.get_envs() {
        match value {
            Some(value) => measured.env(key, value),
            None => measured.env_remove(key),
        };
    }
    let output = measured.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(9),
        "the backup is there, and incomplete:\n{stdout}{stderr}"
    );
    for bad in ['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}', '\r'] {
        assert!(
            !stdout.contains(bad) && !stderr.contains(bad),
            "{bad:?} reached the terminal"
        );
    }
    let kib: u64 = stderr.trim_end().rsplit('\n').next().unwrap().parse().unwrap();
    assert!(kib < 256 * 1024, "the host grew to {kib} KiB");

    let events: Vec<Value> = stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let expected = DEEDS.iter().map(|(deed, says)| (*deed, *says));
    let files = odd();
    let expected = expected.chain(files.iter().map(|o| (o.name, o.says)));
    let mut wrong = Vec::new();
    for (name, says) in expected {
        let failed = events.iter().find(|e| e["event"] == "failed" && e["component"] == name);
        match failed.and_then(|e| e["problem"].as_str()) {
            Some(problem) if says.split('|').any(|s| problem.contains(s)) && !problem.contains("GOT ") => {}
            other => wrong.push(format!("{name}: should say {says:?}, says {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let lost = events.iter().filter(|e| e["event"] == "failed").count();
    assert_eq!(lost, DEEDS.len() + odd().len(), "nobody else failed");
    assert_eq!(
        site.sql("shop", "SELECT count(*) FROM item").trim(),
        "100",
        "nothing was dropped"
    );
    assert_eq!(site.sql("shop", "SELECT max(id) FROM item").trim(), "100");

    // The honest one is whole, and the backup names those it lacks.
    let shown = site
        .essrun()
        .run(&["show", "pipeline.toml", "--identity", "elsewhere/identity.txt"]);
    let shown = shown.expect_success().stdout;
    assert!(
        shown.contains("dump-ungranted") && shown.contains("not granted"),
        "{shown}"
    );
    site.drop_database("shop");
    std::fs::remove_dir_all(site.path().join("files")).unwrap();
    site.with_identity("restore", &["--yes", "--only", "honest"])
        .expect_success();
    assert_eq!(site.sql("shop", "SELECT count(*) FROM item").trim(), "100");
    assert_eq!(
        std::fs::read_to_string(site.path().join("files/a.txt")).unwrap(),
        "Dear …"
    );
}

#[test]
fn what_is_known_to_be_secret_is_kept_as_secret_whatever_a_stranger_says() {
    let wasm = plugins::hostile();
    let hash = sha256_hex(&std::fs::read(&wasm).unwrap());
    let site = site(&stranger("lie", &hash), &wasm);
    let backed_up = site.back_up().expect_success();
    let notes: Vec<&str> = backed_up.events_of("note").filter_map(|e| e["text"].as_str()).collect();
    let told = |part: &str| {
        notes
            .iter()
            .any(|n| n.contains("component lie calls") && n.contains(part))
    };
    assert!(told("main/public.access_tokens internal"), "{backed_up}");
    assert!(!notes.iter().any(|n| n.contains("public.item")), "{backed_up}");

    let shown = site.essrun().run_json(&[
        "show",
        "pipeline.toml",
        "--artifacts",
        "--identity",
        "elsewhere/identity.txt",
    ]);
    let shown = shown.expect_success().stdout;
    assert!(
        shown.contains("deep/example.org.signing.key"),
        "the report names the file: {shown}"
    );
    // An incident goes by what essrun knows.
    let leak = site
        .essrun()
        .run(&["incident", "pipeline.toml", "latest", "--only", "lie"])
        .expect_success()
        .to_string();
    for said in ["access tokens", "end all sessions", "signing key"] {
        assert!(leak.contains(said), "{said:?} is not in\n{leak}");
    }

    // Said to be internal or not: nothing is taken for nobody.
    let file = site.path().join("pipeline.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("recipients")).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    site.back_up()
        .expect_code(4)
        .expect_stderr(&["takes sensitive data", "no recipients"]);
}
