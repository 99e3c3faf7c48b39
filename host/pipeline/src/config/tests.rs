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

#[test]
fn writers_to_be_believed_and_not_to_be_are_read() {
    let (one, other) = (
        essrun_repository::WriterKey::generate().public(),
        essrun_repository::WriterKey::generate().public(),
    );
    let named =
        format!("writer-key = \"writer.key\"\ntrusted-writers = [\"{one}\"]\ndistrusted-writers = [\"{other}\"]");
    let p = parse(&GOOD.replace("writer-key = \"writer.key\"", &named)).unwrap();
    assert_eq!(p.repository.trusted_writers, [one]);
    assert_eq!(p.repository.distrusted_writers, [other]);
    let broken = GOOD.replace("writer-key", "distrusted-writers = [\"nobody\"]\nwriter-key");
    let said = parse(&broken).unwrap_err().to_string();
    assert!(said.contains("essrun-writer-"), "{said}");
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
        ("url = \"repo\"", "url = \"\"", 5, "url is empty"),
        (
            "url = \"repo\"",
            "url = \"ftp://example.org/x\"",
            5,
            "\"ftp://\": this kind of address is not known",
        ),
        ("url = \"repo\"", "url = \"s3://\"", 5, "\"s3://\": no bucket is named"),
        (
            "url = \"repo\"",
            "url = \"file://host/x\"",
            5,
            "a file address names no host",
        ),
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
fn keys_in_an_address_are_refused_and_not_shown() {
    let said = parse(&GOOD.replacen("url = \"repo\"", "url = \"s3://AKIA:hunter2@bucket/x\"", 1)).unwrap_err();
    assert!(
        matches!(&said, PipelineError::Config { at, .. } if at.line == 5),
        "{said}"
    );
    assert!(!said.to_string().contains("hunter2"), "{said}");
}

#[test]
fn a_secret_is_never_shown() {
    let p = parse(&GOOD.replace("url-env = \"SYNAPSE_DB\"", "url = \"postgresql://u:hunter2@h/d\"")).unwrap();
    assert!(!format!("{p:?}").contains("hunter2"));
    let main = "main = { url-env = \"SYNAPSE_DB\" }";
    assert!(GOOD.contains(main));
    for (wrong, says) in [
        (
            "main = \"postgresql://u:hunter2@h/d\"",
            "main: invalid type: string, expected",
        ),
        (
            "main = 'postgresql://u:\", expected hunter2@h/d'",
            "main: invalid type: string, expected",
        ),
        (
            "main = { url-env = \"postgresql://u:hunter2@h/d\" }",
            "url-env is not the name",
        ),
        (
            "main = { url-env = \"host=h password=hunter2\" }",
            "url-env is not the name",
        ),
        ("main = { url-env = \"\" }", "url-env is not the name"),
        ("main = { url-env = \"1A\" }", "url-env is not the name"),
        (
            "main = { url-file = \"postgresql://u:hunter2@h/d\" }",
            "url-file holds a connection string",
        ),
        (
            "main = { url-file = \"host=h password = hunter2\" }",
            "url-file holds a connection string",
        ),
        (
            "main = { service = \"POSTGRES://u:hunter2@h/d\" }",
            "service holds a connection string",
        ),
        (
            "main = { sqlite = \"postgresql://u:hunter2@h/d\" }",
            "sqlite holds a connection string",
        ),
        (
            "main = { url-env = \"A\", admin-url-env = \"postgresql://u:hunter2@h/d\" }",
            "admin-url-env is not the name",
        ),
        (
            "main = { url-env = \"A\", admin-url-file = \"postgresql://u:hunter2@h/d\" }",
            "admin-url-file holds a connection string",
        ),
        ("main = { \"postgresql://u:hunter2@h/d\" = 1 }", "unknown field"),
        ("\"postgresql://u:hunter2@h/d\" = { url-env = \"A\" }", "is not allowed"),
    ] {
        let error = parse(&GOOD.replace(main, wrong)).unwrap_err();
        assert!(
            error.to_string().contains(says) && error.to_string().contains("hint:"),
            "{wrong}: {error}"
        );
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{wrong}: {error}");
    }
}

#[test]
fn built_in_components_have_room_and_others_are_kept_small() {
    let limits = |more: &str| {
        let text = GOOD.replace(
            "use = \"synapse\"",
            &format!("use = \"synapse\"\nlimits.memory = \"65 MiB\"{more}"),
        );
        parse(&text).unwrap().component("synapse").unwrap().limits.clone()
    };
    assert_eq!(limits("").memory, 65 << 20);
    assert_eq!(limits("").looked_at, essrun_sandbox::Limits::built_in().looked_at);
    assert_eq!(limits("\nlimits.rows = 7").rows, 7);
    let plugin = format!("use = {{ path = \"x.wasm\", sha256 = \"{}\" }}", "0".repeat(64));
    let other = parse(&GOOD.replace("use = \"synapse\"", &plugin)).unwrap();
    assert_eq!(
        other.component("synapse").unwrap().limits,
        essrun_sandbox::Limits::default()
    );
}

#[test]
fn a_policy_is_read_and_its_settings_become_json() {
    let text = format!(
        "{GOOD}\n[policy]\nfiles = [\"a.rego\", \"/etc/b\"]\ndata = [\"c.json\"]\nquestions = [\"may-run\", \"retention\"]\n\
         approvals = \"yes\"\nlimits.cpu = \"2 s\"\n[policy.settings]\nuntil = 2026-01-06T00:00:00Z\nday = 2026-01-06\n\
         most = 0.5\nlist = [{{ a = 1 }}]\n"
    );
    let policy = parse(&text).unwrap().policy.unwrap();
    let paths: Vec<_> = policy
        .files
        .iter()
        .map(|f| (f.path.to_str().unwrap(), f.at.line))
        .collect();
    assert_eq!(paths, [("/etc/essrun/a.rego", 23), ("/etc/b", 23)]);
    assert_eq!(policy.origin, Use::BuiltIn("rego".into()));
    assert_eq!(policy.approvals.as_deref(), Some(Path::new("/etc/essrun/yes")));
    assert_eq!(policy.limits.cpu, std::time::Duration::from_secs(2));
    assert_eq!(policy.questions.unwrap().len(), 2);
    assert_eq!(
        serde_json::Value::Object(policy.settings),
        serde_json::json!({
            "until": "2026-01-06T00:00:00Z", "day": "2026-01-06", "most": 0.5, "list": [{"a": 1}]
        })
    );
    assert!(parse(GOOD).unwrap().policy.is_none());
}

#[test]
fn a_wrong_policy_is_refused_with_line_and_hint() {
    for (policy, line, says) in [
        ("[policy]\n", 22, "names no files"),
        ("[policy]\nfile = [\"a\"]\n", 23, "unknown field `file`"),
        ("[policy]\nfiles = \"a\"\n", 23, "sequence"),
        (
            "[policy]\nfiles = [\"a\"]\nuse = \"lua\"\n",
            24,
            "no interpreter for \"lua\"",
        ),
        ("[policy]\nuse = { path = \"a.wasm\" }\n", 23, "missing field `sha256`"),
        (
            "[policy]\nuse = { path = \"a.wasm\", sha256 = \"12\" }\n",
            23,
            "64 hexadecimal",
        ),
        (
            "[policy]\nfiles = [\"a\"]\nquestions = [\"may-rnu\"]\n",
            24,
            "unknown variant `may-rnu`",
        ),
        (
            "[policy]\nfiles = [\"a\"]\nquestions = [\n\"may-run\",\n\"may-run\"]\n",
            26,
            "named twice",
        ),
        ("[policy]\nfiles = [\"a\"]\nlimits.cpu = \"0 s\"\n", 24, "no time"),
        ("[policy]\nfiles = [\"a\"]\nsettings.x = nan\n", 24, "no number"),
        (
            "[policy]\nfiles = [\"a\"]\n[policy.limit]\n",
            24,
            "unknown field `limit`",
        ),
    ] {
        match parse(&format!("{GOOD}\n{policy}")) {
            Err(PipelineError::Config { at, problem, hint }) => {
                assert!(problem.contains(says), "{policy}: {problem:?} should say {says:?}");
                assert_eq!(at.line, line, "{policy}: {problem}");
                assert!(!hint.is_empty());
            }
            other => panic!("{policy}: {other:?}"),
        }
    }
    // A component needs no scripts.
    let hash = "a".repeat(64);
    parse(&format!(
        "{GOOD}\n[policy]\nuse = {{ path = \"a.wasm\", sha256 = \"{hash}\" }}\n"
    ))
    .unwrap();
}

#[test]
fn recipients_may_be_marked_as_kept_offline() {
    let given = |list: &str| parse(&GOOD.replace("[\"age1x\"]", list));
    let repository = given("[\"age1x\", { key = \"age1y\", offline = true }, { key = \"age1z\" }]")
        .unwrap()
        .repository;
    assert_eq!(repository.recipients, ["age1x", "age1y", "age1z"]);
    assert_eq!(repository.offline.into_iter().collect::<Vec<_>>(), ["age1y"]);
    for (bad, says) in [
        ("[{ key = \"AGE-SECRET-KEY-1X\", offline = true }]", "identity"),
        ("[{ key = \"age1y\", online = true }]", "unknown field `online`"),
        ("[{ offline = true }]", "missing field `key`"),
        ("[7]", "recipient"),
    ] {
        let error = given(bad).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("toml:6"), "{bad}: {error}");
    }
}

/// Whatever stands in the file: a pipeline or an error that says where, never a panic.
#[test]
fn twisted_files_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut roll = move |sides: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % sides as u64) as usize
    };
    let pieces = [
        "[",
        "]",
        "=",
        "\"",
        "{",
        "}",
        "\n",
        "= 1",
        "= []",
        "[[x]]",
        ".",
        "\u{0}",
        "ü",
        "inf",
        "1979-05-27",
    ];
    let (mut good, mut bad) = (0, 0);
    for _ in 0..3000 {
        let mut text = GOOD.to_owned();
        for _ in 0..=roll(3) {
            let at = roll(text.len());
            let to = (at + roll(12)).min(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(to) {
                text.replace_range(at..to, pieces[roll(pieces.len())]);
            }
        }
        match parse(&text) {
            Ok(_) => good += 1,
            Err(e) => {
                bad += 1;
                assert!(e.to_string().contains("pipeline.toml"), "{e}\n{text}");
            }
        }
    }
    assert!(good > 0 && bad > 100, "{good} {bad}");
}

#[test]
fn the_examples_are_read() {
    let s3 = parse(include_str!("../../../../examples/s3.toml")).unwrap();
    assert_eq!(
        s3.repository.store.s3.endpoint.as_deref(),
        Some("https://s3.example.org")
    );
    parse(include_str!("../../../../examples/synapse.toml")).unwrap();
    let pair = parse(include_str!("../../../../examples/synapse-mas.toml")).unwrap();
    assert_eq!(pair.groups[0].components, ["synapse", "mas"]);
    // What is commented out there is right as well.
    let all = include_str!("../../../../examples/s3.toml")
        .replace("# limit", "limit")
        .replace("# path-style", "path-style")
        .replace("# credentials", "credentials")
        .replace("# profile", "profile")
        .replace("# object-lock", "object-lock")
        .replace("# allow-http", "allow-http");
    let store = parse(&all).unwrap().repository.store;
    assert_eq!(store.limit_upload, Some(10 << 20));
    assert_eq!(store.s3.object_lock, Some(std::time::Duration::from_secs(30 * 86_400)));
    assert!(store.s3.allow_http && store.s3.path_style == Some(false));
    assert_eq!(store.s3.unlocked, ["leases", "prunes"]);
}

#[test]
fn bad_stores_are_refused_with_line_and_hint() {
    let with = |lines: &str| {
        parse(&GOOD.replace(
            "writer-key = \"writer.key\"",
            &format!("writer-key = \"writer.key\"\n{lines}"),
        ))
    };
    for (lines, line, says) in [
        ("limit-upload = \"fast\"", 8, "no rate"),
        ("limit-download = \"3B\"", 8, "no rate"),
        ("[repository.s3]\nregion = \"x\"", 8, "no s3:// address"),
        ("[repository.s3]\nsecret-key = \"x\"", 9, "unknown field"),
    ] {
        let said = with(lines).unwrap_err().to_string();
        assert!(
            said.contains(&format!(":{line}:")) && said.contains(says),
            "{lines}: {said}"
        );
    }
    let s3 = |lines: &str| {
        parse(&GOOD.replace("url = \"repo\"", "url = \"s3://bucket/x\"").replace(
            "[components.synapse]",
            &format!("[repository.s3]\n{lines}\n[components.synapse]"),
        ))
    };
    assert!(s3("object-lock = \"7d\"").is_ok());
    for (lines, says) in [
        ("object-lock = \"1h\"", "shorter than a day"),
        ("object-lock = \"soon\"", "no length of time"),
        (
            "instance-credentials = true\nprofile = \"x\"",
            "beside other credentials",
        ),
    ] {
        let said = s3(lines).unwrap_err().to_string();
        assert!(said.contains(says), "{lines}: {said}");
    }
}

#[test]
fn the_default_level_is_the_one_that_is_told() {
    let level = parse(GOOD).unwrap().repository.compression_level;
    let text = GOOD.replacen("url = \"repo\"", "url = \"repo\"\ncompression-level = 20", 1);
    let refused = parse(&text).unwrap_err().to_string();
    assert!(refused.contains(&format!("{level} is the default")), "{refused}");
}
