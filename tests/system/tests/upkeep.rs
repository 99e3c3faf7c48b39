//! Looking after a repository through the command line: check at each level, repair, repack, rekey, rotate, and the
//! reader written from docs/FORMAT.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Essrun, Outcome};
use essrun_testkit::site::{Site, tree};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file tree and a repository, no server.
struct Folder {
    dir: tempfile::TempDir,
}

const KEEP: &str = "\n[retention]\nkeep-last = 1\n";
const FINDINGS: i32 = 8;

impl Folder {
    fn new() -> Folder {
        let folder = Folder {
            dir: tempfile::tempdir().unwrap(),
        };
        let made = folder.run(&["keygen", "identity", "--output", "identity.txt"]);
        folder.run(&["keygen", "writer", "--output", "writer.key"]);
        folder.pipeline(&recipient_in(&made), "writer.key", "");
        folder.fill(0..40);
        folder.run(&["init", "pipeline.toml"]);
        folder
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// One worker, so that which files share a pack is no accident.
    fn pipeline(&self, recipient: &str, writer: &str, more: &str) {
        let text = format!(
            "version = 1\nname = \"folder\"\n\n[repository]\nurl = \"repository\"\nrecipients = [\"{recipient}\"]\n\
             writer-key = \"{writer}\"\ncache = \"cache\"\n{more}\n[run]\njobs = 1\n\n[components.site]\nuse = \"generic\"\n\
             volumes = {{ files = {{ path = \"files\" }} }}\n{KEEP}"
        );
        std::fs::write(self.path().join("pipeline.toml"), text).unwrap();
    }

    /// Incompressible files; the same number has the same bytes.
    fn fill(&self, numbers: std::ops::Range<u64>) {
        std::fs::create_dir_all(self.path().join("files/sub")).unwrap();
        for n in numbers {
            let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let bytes: Vec<u8> = (0..20_000)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            std::fs::write(self.path().join(format!("files/sub/{n:03}")), bytes).unwrap();
        }
    }

    fn essrun(&self) -> Essrun {
        Essrun::in_dir(self.path())
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Outcome {
        self.essrun().run(args).expect_success()
    }

    fn objects(&self, below: &str) -> Vec<PathBuf> {
        let output = Command::new("find")
            .arg(self.path().join("repository").join(below))
            .args(["-type", "f"])
            .output()
            .unwrap();
        let mut found: Vec<PathBuf> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(PathBuf::from)
            .collect();
        found.sort();
        found
    }

    /// `check` without any key, with the writer key, with an identity.
    fn check(&self, level: &str) -> Outcome {
        let essrun = self.essrun();
        let key = self.path().join("writer.key");
        let hidden = self.path().join("writer.key.away");
        match level {
            "public" => {
                std::fs::rename(&key, &hidden).unwrap();
                let outcome = essrun.run_json(&["check", "pipeline.toml"]);
                std::fs::rename(&hidden, &key).unwrap();
                outcome
            }
            "writer" => essrun.run_json(&["check", "pipeline.toml"]),
            _ => essrun.run_json(&["check", "pipeline.toml", "--identity", "identity.txt"]),
        }
    }

    #[track_caller]
    fn restored(&self, identity: &str, to: &str) {
        self.run(&[
            "extract",
            "pipeline.toml",
            "site/files",
            "--identity",
            identity,
            "--output",
            to,
        ]);
        assert_eq!(tree(&self.path().join(to)), tree(&self.path().join("files")));
    }
}

fn recipient_in(outcome: &Outcome) -> String {
    let words = outcome.stdout.split_whitespace();
    words.rev().find(|w| w.starts_with("age1")).unwrap().to_owned()
}

fn name(folder: &Folder, path: &Path) -> String {
    path.strip_prefix(folder.path().join("repository"))
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

#[track_caller]
fn finds(outcome: &Outcome, kind: &str, object: &str) {
    let report = outcome.events.iter().find(|e| e["findings"].is_array());
    let findings = report.unwrap_or_else(|| panic!("{outcome}"))["findings"]
        .as_array()
        .unwrap();
    assert!(
        findings.iter().any(|f| f["kind"] == kind && f["object"] == object),
        "{kind} of {object} is not among {findings:#?}"
    );
    assert_eq!(outcome.code(), Some(FINDINGS), "{outcome}");
}

#[test]
fn each_kind_of_damage_is_named_at_each_level() {
    let folder = Folder::new();
    folder.run(&["pipeline.toml"]);
    folder.fill(40..50);
    folder.run(&["pipeline.toml"]);
    for level in ["public", "writer", "full"] {
        folder.check(level).expect_success();
    }
    let pack = folder.objects("data").remove(0);
    let manifest = folder.objects("manifests").remove(0);
    let newest = folder.objects("manifests").remove(1);
    let damage = |path: &Path, with: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>, kind: &str, levels: &[&str]| {
        let whole = std::fs::read(path).unwrap();
        match with(whole.clone()) {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        for level in levels {
            finds(&folder.check(level), kind, &name(&folder, path));
        }
        std::fs::write(path, whole).unwrap();
    };
    let all = ["public", "writer", "full"];
    let flip = |mut b: Vec<u8>| {
        b[300] ^= 1;
        Some(b)
    };
    damage(&pack, &flip, "wrong-content", &all);
    damage(&pack, &|b| Some(b[..b.len() - 1].to_vec()), "wrong-size", &all);
    damage(&pack, &|_| None, "missing", &all);
    let other = std::fs::read(folder.objects("data").pop().unwrap()).unwrap();
    let swap = |b: Vec<u8>| {
        let mut other = other.clone();
        other.resize(b.len(), 7);
        Some(other)
    };
    damage(&pack, &swap, "wrong-content", &all);
    damage(&manifest, &|_| None, "chain-broken", &all);
    damage(&manifest, &flip, "forged", &all);
    // An old state played back: only who remembers the newer one can tell; this host does, whatever keys it has.
    damage(&newest, &|_| None, "rolled-back", &all);
    for level in ["public", "writer", "full"] {
        folder.check(level).expect_success();
    }
    // A part a day is as good, one week later.
    let mut chunks = 0;
    for day in 1..=7 {
        let part = format!("{day}/7");
        let args = [
            "check",
            "pipeline.toml",
            "--identity",
            "identity.txt",
            "--subset",
            &part,
        ];
        let outcome = folder.essrun().run_json(&args).expect_success();
        chunks += outcome.events.last().unwrap()["chunks_verified"].as_u64().unwrap();
    }
    let whole = folder.check("full");
    let whole = whole.events.last().unwrap()["chunks_verified"].as_u64().unwrap();
    assert!(whole >= 50, "files are read back, not only their listing: {whole}");
    assert_eq!(chunks, whole);
}

#[test]
fn repack_rekey_rotate_and_repair_keep_every_file() {
    let folder = Folder::new();
    folder.run(&["pipeline.toml"]);
    for n in 0..30 {
        std::fs::remove_file(folder.path().join(format!("files/sub/{n:03}"))).unwrap();
    }
    // Which of two backups of one second is the newer is not known to retention.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    folder.run(&["pipeline.toml"]);
    let prune = || {
        for _ in 0..2 {
            folder.run(&["prune", "pipeline.toml", "--grace", "0d", "--confirm"]);
        }
    };
    // Forgotten, brought back, forgotten.
    let first = folder.essrun().run_json(&["list", "pipeline.toml"]).events[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    folder.run(&["forget", "pipeline.toml", "--confirm"]);
    folder.run(&["forget", "pipeline.toml", "--undo", &first]);
    assert_eq!(folder.essrun().run_json(&["list", "pipeline.toml"]).events.len(), 2);
    folder.run(&["forget", "pipeline.toml", "--confirm"]);
    prune();
    let bytes = || {
        folder
            .objects("data")
            .iter()
            .map(|p| p.metadata().unwrap().len())
            .sum::<u64>()
    };
    let before = bytes();
    let said = folder.run(&["repack", "pipeline.toml", "--identity", "identity.txt"]);
    assert!(said.stdout.contains("--confirm does it"), "{said}");
    prune();
    assert_eq!(bytes(), before, "a dry run changes nothing");
    folder.run(&["repack", "pipeline.toml", "--identity", "identity.txt", "--confirm"]);
    prune();
    assert!(bytes() < before / 2, "{} of {before}", bytes());
    folder.restored("identity.txt", "after-repack");
    folder.check("full").expect_success();

    // To an SSH key.
    let keygen = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "backup", "-f", "ssh"])
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert!(keygen.success());
    let public = std::fs::read_to_string(folder.path().join("ssh.pub")).unwrap();
    folder.pipeline(public.trim(), "writer.key", "");
    let noted = folder.check("writer").expect_success();
    assert!(noted.stdout.contains("other-recipients"), "{noted}");
    folder.run(&["rekey", "pipeline.toml", "--identity", "identity.txt", "--confirm"]);
    prune();
    folder.restored("ssh", "after-rekey");
    let old = [
        "extract",
        "pipeline.toml",
        "site/files",
        "--identity",
        "identity.txt",
        "--output",
        "never",
    ];
    folder
        .essrun()
        .run(&old)
        .expect_code(6)
        .expect_stderr(&["none of the given keys"]);
    let without = ["extract", "pipeline.toml", "site/files", "--output", "never-either"];
    folder.essrun().run(&without).expect_code(6);
    let noted = folder.check("writer").expect_success();
    assert!(!noted.stdout.contains("other-recipients"), "{noted}");

    // A new writer key.
    folder.run(&["rotate", "pipeline.toml", "--output", "new.key"]);
    assert!(!folder.path().join("new.key").exists());
    folder.run(&["rotate", "pipeline.toml", "--output", "new.key", "--confirm"]);
    folder.essrun().run(&["pipeline.toml"]).expect_stderr(&["was rotated"]);
    folder.pipeline(public.trim(), "new.key", "");
    folder.fill(50..52);
    // Backups are dated by the second, and of one second those of two writers stand in no order.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let made = folder.essrun().run_json(&["pipeline.toml"]).expect_success();
    let new = made.events_of("committed").next().unwrap()["new-bytes"]
        .as_u64()
        .unwrap();
    assert!(
        (40_000..120_000).contains(&new),
        "only the two new files are new: {new}"
    );
    folder.restored("ssh", "after-rotate");

    // An index lost, a killed run's leftovers.
    let index = folder.objects("index").remove(0);
    std::fs::remove_file(&index).unwrap();
    let staging = folder.objects("data").remove(0).display().to_string() + "#1";
    std::fs::write(&staging, b"half a pack").unwrap();
    let old = Command::new("touch")
        .args(["-d", "3 days ago", &staging])
        .status()
        .unwrap();
    assert!(old.success());
    let plan = folder.run(&["repair", "pipeline.toml", "--identity", "ssh"]);
    assert!(
        plan.stdout.contains("would be made again") && plan.stdout.contains("1 files of killed runs"),
        "{plan}"
    );
    assert!(Path::new(&staging).exists());
    folder.run(&["repair", "pipeline.toml", "--identity", "ssh", "--confirm"]);
    assert!(!Path::new(&staging).exists());
    folder
        .essrun()
        .run(&["check", "pipeline.toml", "--identity", "ssh"])
        .expect_success();
    folder.restored("ssh", "after-repair");
    // What is gone for good is said in list and show, and the next backup is whole again.
    for pack in folder.objects("data") {
        std::fs::remove_file(pack).unwrap();
    }
    folder.run(&["repair", "pipeline.toml", "--identity", "ssh", "--confirm"]);
    let listed = folder.run(&["list", "pipeline.toml"]);
    assert!(listed.stdout.contains("DAMAGED"), "{listed}");
    let shown = folder.run(&["show", "pipeline.toml"]);
    assert!(
        shown.stdout.contains("DAMAGED, cannot be restored: site/files"),
        "{shown}"
    );
    folder.run(&["pipeline.toml"]);
    folder.restored("ssh", "after-loss");
    folder.run(&["repair", "pipeline.toml", "--identity", "ssh", "--confirm"]);
    let listed = folder.run(&["list", "pipeline.toml"]);
    assert!(
        !listed.stdout.contains("DAMAGED"),
        "what is there again is whole again: {listed}"
    );
}

/// A plugin that wraps file keys by adding a constant: it only has to speak age's plugin protocol.
const PLUGIN: &str = r#"#!/usr/bin/env python3
import base64, sys
ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
def bech32(hrp, data):
    bits = "".join(f"{b:08b}" for b in data)
    words = [int(bits[i:i+5].ljust(5, "0"), 2) for i in range(0, len(bits), 5)]
    check = 1
    for v in [ord(c) >> 5 for c in hrp] + [0] + [ord(c) & 31 for c in hrp] + words + [0] * 6:
        top, check = check >> 25, (check & 0x1ffffff) << 5 ^ v
        for i, g in enumerate([0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3]):
            check ^= g if top >> i & 1 else 0
    check ^= 1
    return hrp + "1" + "".join(ALPHABET[w] for w in words + [check >> 5 * (5 - i) & 31 for i in range(6)])
def read():
    line = sys.stdin.readline().rstrip("\n")
    body = ""
    while True:
        part = sys.stdin.readline().rstrip("\n")
        body += part
        if len(part) < 64:
            return line.split(" ")[1:], base64.b64decode(body + "=" * (-len(body) % 4))
def write(words, body=b""):
    text = base64.b64encode(body).decode().rstrip("=")
    lines = [text[i:i+64] for i in range(0, len(text) + 1, 64)]
    print("->", *words)
    print("\n".join(lines), flush=True)
def phase():
    found = []
    while True:
        words, body = read()
        if words[0] == "done":
            return found
        found.append((words, body))
turn = lambda key: bytes(b ^ 0x5a for b in key)
mode = sys.argv[1] if len(sys.argv) > 1 else ""
if mode == "--age-plugin=recipient-v1":
    found = phase()
    files = [body for words, body in found if words[0] == "wrap-file-key"]
    for at, key in enumerate(files):
        write(["recipient-stanza", str(at), "essruntest", "x"], turn(key))
        read()
    write(["done"])
elif mode == "--age-plugin=identity-v1":
    for words, body in phase():
        if words[0] == "recipient-stanza" and words[2] == "essruntest":
            write(["file-key", words[1]], turn(body))
            read()
    write(["done"])
else:
    print(bech32("age1essruntest", b"recipient"))
    print(bech32("age-plugin-essruntest-", b"identity").upper())
"#;

#[test]
fn a_plugins_recipient_is_written_to_and_read_with() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let plugin = bin.join("age-plugin-essruntest");
    std::fs::write(&plugin, PLUGIN).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let keys = Command::new(&plugin).output().unwrap();
    assert!(keys.status.success(), "{}", String::from_utf8_lossy(&keys.stderr));
    let keys = String::from_utf8(keys.stdout).unwrap();
    let (recipient, identity) = keys.trim().split_once('\n').unwrap();
    std::fs::write(folder.path().join("plugin.txt"), format!("{identity}\n")).unwrap();
    std::fs::set_permissions(folder.path().join("plugin.txt"), std::fs::Permissions::from_mode(0o600)).unwrap();
    folder.pipeline(recipient, "writer.key", "");
    let essrun = folder.essrun();
    essrun
        .run(&["pipeline.toml"])
        .expect_stderr(&["install age-plugin-essruntest"]);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let essrun = essrun.env("PATH", path);
    essrun.run(&["pipeline.toml"]).expect_success();
    essrun
        .run(&["check", "pipeline.toml", "--identity", "plugin.txt"])
        .expect_success();
    let out = [
        "extract",
        "pipeline.toml",
        "site/files",
        "--identity",
        "plugin.txt",
        "--output",
        "out",
    ];
    essrun.run(&out).expect_success();
    assert_eq!(tree(&folder.path().join("out")), tree(&folder.path().join("files")));
    let pack = std::fs::read(folder.objects("data").remove(0)).unwrap();
    let head = String::from_utf8_lossy(&pack[..200]).into_owned();
    assert!(head.contains("-> essruntest x\n") && !head.contains("X25519"), "{head}");
}

/// Two hosts, one repository: the second is let in by the first, and neither minds the other.
#[test]
fn a_second_host_is_let_in_and_keeps_to_itself() {
    let first = Folder::new();
    first.run(&["pipeline.toml"]);
    // The second host: keys, cache, state and files of its own.
    let second = Folder {
        dir: tempfile::tempdir().unwrap(),
    };
    let made = second.run(&["keygen", "writer", "--output", "writer.key"]);
    let word = |text: &str, begins: &str| {
        let found = text.split_whitespace().find(|w| w.starts_with(begins));
        found.unwrap_or_else(|| panic!("no {begins}… in {text}")).to_owned()
    };
    let public = word(&made.stdout, "essrun-writer-");
    let known = word(
        &std::fs::read_to_string(first.path().join("writer.key")).unwrap(),
        "essrun-writer-",
    );
    let identity = std::fs::read_to_string(first.path().join("identity.txt")).unwrap();
    second.pipeline(
        &word(&identity, "age1"),
        "writer.key",
        &format!("trusted-writers = [\"{known}\"]\n"),
    );
    let file = second.path().join("pipeline.toml");
    let shared = first.path().join("repository");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("url = \"repository\"", &format!("url = {shared:?}"));
    let text = text.replace("name = \"folder\"", "name = \"other\"");
    std::fs::write(&file, text).unwrap();
    second.fill(100..140);

    for verb in [
        &["init", "pipeline.toml"][..],
        &["pipeline.toml"],
        &["validate", "pipeline.toml"],
    ] {
        let refused = second.essrun().run(verb);
        assert_ne!(refused.code(), Some(0), "{refused}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains("essrun authorize") && said.contains(&public), "{refused}");
    }
    let own = second
        .essrun()
        .run(&["authorize", "pipeline.toml", &public, "--confirm"]);
    assert_ne!(own.code(), Some(0), "nobody lets himself in: {own}");
    let dry = first.run(&["authorize", "pipeline.toml", &public]);
    assert!(dry.stdout.contains("nothing was changed"), "{dry}");
    assert_ne!(second.essrun().run(&["init", "pipeline.toml"]).code(), Some(0));
    first.run(&["authorize", "pipeline.toml", &public, "--confirm"]);
    first
        .essrun()
        .run(&["authorize", "pipeline.toml", &public, "--confirm"])
        .expect_stderr(&["known to this repository already"]);
    first
        .essrun()
        .run(&["authorize", "pipeline.toml", "essrun-writer-00", "--confirm"])
        .expect_stderr(&["64 hexadecimal digits"]);
    let joined = second.essrun().run_json(&["init", "pipeline.toml"]).expect_success();
    assert_eq!(joined.events[0]["joined"], true, "{joined}");

    second.run(&["pipeline.toml"]);
    second.run(&["validate", "pipeline.toml"]);
    first.run(&["pipeline.toml"]);
    // The newest is the first host's; the second's `latest` is its own, and unchanged files are taken over from it.
    let again = second.essrun().run_json(&["pipeline.toml"]).expect_success();
    assert!(again.stdout.contains("backup"), "{again}");
    let list = |host: &Folder| {
        host.essrun()
            .run_json(&["list", "pipeline.toml"])
            .expect_success()
            .events
    };
    let seen = list(&second);
    assert_eq!(seen.len(), 4);
    // Of one second those of two hosts stand in no order; one host's do.
    let own: Vec<_> = seen.iter().filter(|b| b["readable"] == true).collect();
    assert_eq!(own.len(), 2, "{seen:?}");
    let stored = |n: usize| own[n]["stored-bytes"].as_u64().unwrap();
    assert!(
        stored(1) < stored(0) / 10,
        "everything was read and stored again: {seen:?}"
    );
    first.run(&["pipeline.toml"]);
    let status = second.essrun().run_json(&["status", "pipeline.toml"]).expect_success();
    assert!(!status.stdout.contains("was not asked for"), "{status}");
    let identity = first.path().join("identity.txt");
    let identity = identity.to_str().unwrap();
    let drill = second.run(&["drill", "pipeline.toml", "--identity", identity]);
    assert!(drill.stdout.contains(own[1]["id"].as_str().unwrap()), "{drill}");
    let shown = second.run(&["show", "pipeline.toml"]);
    assert!(shown.stdout.contains("pipeline \"other\""), "{shown}");

    // Each host's rules are for its own backups.
    let forgotten = second.run(&["forget", "pipeline.toml", "--confirm"]);
    assert!(
        forgotten.stdout.contains("left alone: 3 of other writers"),
        "{forgotten}"
    );
    let left = list(&first);
    assert_eq!(left.len(), 4, "{left:?}");
    assert_eq!(left.iter().filter(|b| b["readable"] == true).count(), 3);
    let other = seen.iter().find(|b| b["readable"] == false).unwrap();
    let other = other["writer"].as_str().unwrap();
    // What is known of another's backups takes an identity: without, nothing is decided.
    let blind = second
        .essrun()
        .run(&["forget", "pipeline.toml", "--of", other, "--confirm"])
        .expect_stderr(&["refused", "--identity"]);
    assert_ne!(blind.code(), Some(0), "{blind}");
    assert_eq!(list(&first).len(), 4, "nothing was forgotten");
    let of = second.run(&["forget", "pipeline.toml", "--of", other, "--identity", identity]);
    assert_eq!(of.stdout.matches("would forget").count(), 2, "{of}");
    for host in [&first, &second] {
        host.run(&["check", "pipeline.toml", "--identity", identity]);
    }
}

/// Two pipelines with one key: each has rules of its own, and pushes none of the other's backups out.
#[test]
fn a_pipeline_forgets_none_of_another_one_with_the_same_key() {
    let folder = Folder::new();
    let text = std::fs::read_to_string(folder.path().join("pipeline.toml")).unwrap();
    let other = text.replace("name = \"folder\"", "name = \"other\"");
    std::fs::write(folder.path().join("other.toml"), other).unwrap();
    for pipeline in ["pipeline.toml", "pipeline.toml", "other.toml", "other.toml"] {
        folder.run(&[pipeline]);
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    let said = folder.essrun().run_json(&["forget", "pipeline.toml", "--confirm"]);
    let said = said.expect_success();
    let event = said.events_of("forget").next().unwrap();
    assert_eq!(event["other-pipelines"], 2, "{said}");
    assert_eq!(event["others"], 0, "{said}");
    let keeps: Vec<bool> = (event["decisions"].as_array().unwrap().iter())
        .map(|d| d["keep"].as_bool().unwrap())
        .collect();
    assert_eq!(keeps, [true, false], "{said}");
    let left = folder.essrun().run_json(&["list", "pipeline.toml"]).events.len();
    assert_eq!(left, 3);
    // What anyone can read of it says no more than that.
    let stones = folder.objects("tombstones");
    assert_eq!(stones.len(), 1);
    let claim = std::fs::read_to_string(&stones[0]).unwrap();
    assert!(claim.contains("\"reason\":\"retention\""), "{claim}");
    let words = folder.run(&["forget", "other.toml"]);
    assert!(words.stdout.contains("left alone: 1 of other pipelines"), "{words}");
    assert_eq!(words.stdout.matches("would forget").count(), 1, "{words}");
}

/// A writer key that is lost: nothing else is.
#[test]
fn a_lost_writer_key_loses_no_backup() {
    let folder = Folder::new();
    folder.run(&["pipeline.toml"]);
    let old = std::fs::read_to_string(folder.path().join("writer.key")).unwrap();
    let public = |text: &str| {
        text.split_whitespace()
            .find(|w| w.starts_with("essrun-writer-"))
            .unwrap()
            .to_owned()
    };
    let old = public(&old);
    std::fs::remove_file(folder.path().join("writer.key")).unwrap();
    std::fs::remove_dir_all(folder.path().join("cache")).unwrap();
    folder.restored("identity.txt", "without-a-writer-key");
    let made = folder.run(&["keygen", "writer", "--output", "fresh.key"]);
    let new = public(&made.stdout);
    let recipient = std::fs::read_to_string(folder.path().join("identity.txt")).unwrap();
    let recipient = recipient
        .split_whitespace()
        .find(|w| w.starts_with("age1"))
        .unwrap()
        .to_owned();
    folder.pipeline(&recipient, "fresh.key", "");
    folder
        .essrun()
        .run(&["pipeline.toml"])
        .expect_stderr(&["trusted-writers", &new, &old]);
    folder.pipeline(
        &recipient,
        "fresh.key",
        &format!("trusted-writers = [\"{old}\", \"{new}\"]\n"),
    );
    folder.run(&["pipeline.toml"]);
    assert_eq!(folder.essrun().run_json(&["list", "pipeline.toml"]).events.len(), 2);
    folder
        .essrun()
        .run(&["check", "pipeline.toml", "--identity", "identity.txt"])
        .expect_success();
    folder.restored("identity.txt", "with-a-fresh-one");
    folder.pipeline(&recipient, "fresh.key", "trusted-writers = [\"nobody\"]\n");
    folder
        .essrun()
        .run(&["list", "pipeline.toml"])
        .expect_code(3)
        .expect_stderr(&["pipeline.toml:9"]);
}

/// The reader knows docs/FORMAT.md, `age` and `zstd`, and nothing else of essrun.
#[test]
fn a_reader_written_from_the_documentation_restores_a_table_and_a_file_tree() {
    let mut site = Site::create();
    let root = site.path().display().to_string();
    site.database("data");
    site.fill(
        "data",
        "CREATE TABLE events (id bigserial PRIMARY KEY, body text, at timestamptz, raw bytea);
         INSERT INTO events SELECT n, repeat(md5(n::text), 3) || E'\\t\\\\ünï', now(), decode(md5(n::text), 'hex')
           FROM generate_series(1, 30000) n;
         INSERT INTO events VALUES (0, NULL, NULL, NULL);
         SELECT setval('events_id_seq', 30000);",
    );
    let files = site.folder("files/deep/er");
    std::fs::write(files.join("plain"), vec![7u8; 300_000]).unwrap();
    std::fs::write(files.join("empty"), b"").unwrap();
    let odd = std::ffi::OsStr::new("a name with \u{fc}\nin it");
    std::fs::write(files.join(odd), b"odd").unwrap();
    {
        use std::os::unix::ffi::OsStrExt;
        std::fs::write(files.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xff")), b"hex").unwrap();
    }
    std::fs::hard_link(files.join("plain"), files.join("twin")).unwrap();
    std::os::unix::fs::symlink("plain", files.join("link")).unwrap();
    let sparse = std::fs::File::create(files.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    {
        use std::os::unix::fs::FileExt;
        sparse.write_all_at(b"island", 2 << 20).unwrap();
    }
    site.prepare(&format!(
        "[components.other]\nuse = \"generic\"\ndatabases = {{ main = {{ url-env = \"DATA_DB\" }} }}\n\
         volumes = {{ files = {{ path = \"{root}/files\" }} }}\n"
    ));
    site.back_up().expect_success();
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reader/essrun_read.py");
    let read = |rest: &[&str]| {
        let output = Command::new("python3")
            .arg(&reader)
            .arg(site.path().join("repository"))
            .arg(site.identity())
            .args(rest)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let target = site.path().join("read");
    read(&["tree", "latest", "other/files", target.to_str().unwrap()]);
    let listed = |dir: &Path| {
        // tree() speaks UTF-8; one name here does not.
        let script = "find . -printf '%P %y %m %U:%G %T@ %l %n %s\\0' | sort -z | sha256sum; \
                      find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum; find . | wc -l";
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(dir)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let sizes = |dir: &Path| listed(dir);
    assert_eq!(sizes(&target), sizes(&site.path().join("files")));
    let list = String::from_utf8(read(&["list"])).unwrap();
    assert!(list.contains("postgres-table  other/main/public.events"), "{list}");
    // The database is made from what the backup says of it, its tables by the SQL in it.
    let text = |rest: &[&str]| String::from_utf8(read(rest)).unwrap();
    let cat = |name: &str| text(&["cat", "latest", &format!("other/main/{name}")]);
    let facts: serde_json::Value = serde_json::from_str(&cat("database")).unwrap();
    let fact = |name: &str| facts[name].as_str().unwrap().replace('\'', "''");
    assert_eq!(fact("locale_provider"), "c");
    site.sql(
        "postgres",
        &format!(
            "CREATE DATABASE again TEMPLATE template0 ENCODING '{}' LC_COLLATE '{}' LC_CTYPE '{}' OWNER \"{}\"",
            fact("encoding"),
            fact("collate"),
            fact("ctype"),
            fact("owner")
        ),
    );
    let script = |sql: &str| {
        site.cluster
            .psql_script("again", &format!("SET client_encoding = 'UTF8';\n{sql}"))
            .unwrap()
    };
    script(&cat("ddl-pre-data"));
    let meta: serde_json::Value = serde_json::from_str(&text(&["meta", "latest", "other/main/public.events"])).unwrap();
    assert_eq!(meta["kind"], "postgres-table");
    let meta = &meta["meta"];
    let columns = meta["columns"].as_array().unwrap().iter();
    let columns: Vec<String> = columns.map(|c| format!("\"{}\"", c.as_str().unwrap())).collect();
    let copy = format!(
        "COPY {}.{} ({}) FROM STDIN (FORMAT {})",
        meta["schema"].as_str().unwrap(),
        meta["table"].as_str().unwrap(),
        columns.join(", "),
        meta["format"].as_str().unwrap()
    );
    let rows = site.path().join("rows");
    std::fs::write(&rows, read(&["cat", "latest", "other/main/public.events"])).unwrap();
    let mut psql = site.cluster.client("psql");
    let loaded = psql
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", &copy])
        .env("PGDATABASE", "again")
        .env("PGCLIENTENCODING", "UTF8")
        .stdin(std::fs::File::open(&rows).unwrap())
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    script(&cat("sequences"));
    script(&cat("ddl-post-data"));
    let digest = "SELECT count(*) || md5(string_agg(e::text, '|' ORDER BY id)) FROM events e";
    assert_eq!(site.sql("again", digest), site.sql("data", digest));
    // Keys, sequences, defaults and owners are those that were.
    let shape = "SELECT string_agg(format('%s %s %s %s', relname, relkind, relowner::regrole, pg_get_indexdef(oid)), E'\\n' \
                 ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(site.sql("again", shape), site.sql("data", shape));
    assert!(site.sql("again", shape).contains("events_pkey"));
    let next = "INSERT INTO events (body) VALUES ('next') RETURNING id";
    assert_eq!(site.sql("again", next), site.sql("data", next));
}
