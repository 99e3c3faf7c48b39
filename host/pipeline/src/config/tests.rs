use super::*;

const GOOD: &str = r#"version = 1
name = "example"

[repository]
url = "repo"
recipients = ["age1x"]
writer-key = "writer.key"

[components.synapse]
use = "synapse"
databases.main = { url-env = "SYNAPSE_DB" }
volumes.media = { path = "/data/media" }
settings.leave-out = ["presence"]

[components.mas]
use = { path = "mas.wasm", sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }
databases.main = { service = "mas" }

[groups.core]
consistent = ["synapse", "mas"]
"#;

fn parse(text: &str) -> Result<Pipeline, PipelineError> {
    Pipeline::parse(Path::new("/etc/essrun/pipeline.toml"), text)
}

#[test]
fn a_good_file_is_read() {
    let p = parse(GOOD).unwrap();
    assert_eq!(p.repository.url, "/etc/essrun/repo");
    assert_eq!(
        p.repository.writer_key.as_deref(),
        Some(Path::new("/etc/essrun/writer.key"))
    );
    let synapse = p.component("synapse").unwrap();
    assert_eq!(synapse.origin, Use::BuiltIn("synapse".into()));
    assert_eq!(synapse.settings["leave-out"], serde_json::json!(["presence"]));
    assert_eq!(p.groups[0].accept, Accept::Fence);
}

/// What is broken, by replacing a piece of the good file; where the error must point; what it must say.
#[test]
fn bad_files_are_refused_with_line_and_hint() {
    let cases = [
        ("version = 1", "version = 7", 1, "version 7 is not known"),
        ("version = 1", "version = = 1", 1, ""),
        ("name = \"example\"", "name = \"Ex ample\"", 2, "not allowed"),
        ("name = \"example\"", "", 1, "missing field `name`"),
        ("writer-key", "writer-kee", 7, "unknown field `writer-kee`"),
        ("[\"age1x\"]", "[\"AGE-SECRET-KEY-1X\"]", 6, "identity"),
        ("use = \"synapse\"", "use = 3", 10, "built-in component"),
        ("[\"age1x\"]", "7", 6, "recipients: invalid type"),
        ("url-env = \"SYNAPSE_DB\"", "url-env = 3", 11, "url-env: invalid type"),
        ("use = \"synapse\"", "uses = \"synapse\"", 10, "unknown field `uses`"),
        (
            "{ url-env = \"SYNAPSE_DB\" }",
            "{ }",
            11,
            "needs to be told where it is",
        ),
        (
            "{ url-env = \"SYNAPSE_DB\" }",
            "{ url = \"x\", service = \"y\" }",
            11,
            "2 times",
        ),
        (
            "{ url-env = \"SYNAPSE_DB\" }",
            "{ sqlite = \"x\", owner = \"y\" }",
            11,
            "no meaning",
        ),
        ("{ path = \"/data/media\" }", "{ path = \"/\" }", 12, "/"),
        ("volumes.media", "volumes.main", 12, "database and a volume"),
        ("sha256 = \"aaaa", "sha256 = \"", 16, "64 hexadecimal"),
        ("aaaa\" }", "aaaa\", signature = \"x\" }", 16, "no public-key"),
        ("aaaa\" }", "aaaa\", public-key = \"RW\" }", 16, "no signature"),
        (
            "aaaa\" }",
            "aaaa\", signature = \"x\", public-key = \"RW\" }",
            16,
            "no minisign key",
        ),
        ("\"mas\"]", "\"sydent\"]", 20, "not there"),
        ("\"mas\"]", "\"synapse\"]", 20, "twice"),
        ("consistent =", "consistant =", 20, "unknown field"),
    ];
    for (from, to, line, says) in cases {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        match parse(&text) {
            Err(PipelineError::Config { at, problem, hint }) => {
                assert_eq!(at.line, line, "{to}: {problem}");
                assert!(problem.contains(says), "{to}: {problem:?} should say {says:?}");
                assert!(!hint.is_empty());
            }
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn a_secret_is_never_shown() {
    let p = parse(&GOOD.replace("url-env = \"SYNAPSE_DB\"", "url = \"postgresql://u:hunter2@h/d\"")).unwrap();
    assert!(!format!("{p:?}").contains("hunter2"));
}
