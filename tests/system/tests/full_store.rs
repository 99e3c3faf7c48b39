//! A repository whose file system is full, or read-only, and then is not any more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Essrun, Outcome};
use essrun_testkit::mount::Mounted;
use std::path::Path;

const STORE: i32 = 6;

/// Incompressible files of a megabyte.
fn fill(dir: &Path, count: u64) {
    std::fs::create_dir_all(dir).unwrap();
    for n in 0..count {
        let mut state = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(1 << 17)
        .flatten()
        .collect();
        std::fs::write(dir.join(format!("{n:03}")), bytes).unwrap();
    }
}

#[test]
fn a_full_store_is_said_and_a_run_after_it_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    // Room for one pack and not for two.
    let Some(disk) = Mounted::tmpfs(&root.join("disk"), "size=24m") else {
        return;
    };
    let run = |args: &[&str]| Essrun::in_dir(root).run(args);
    let json = |args: &[&str]| Essrun::in_dir(root).run_json(args);
    let made = run(&["keygen", "identity", "--output", "identity.txt"]).expect_success();
    let said = format!("{}\n{}", made.stdout, made.stderr);
    let recipient = said
        .split(|c: char| !c.is_ascii_alphanumeric())
        .find(|word| word.starts_with("age1"))
        .unwrap();
    run(&["keygen", "writer", "--output", "writer.key"]).expect_success();
    let pipeline = format!(
        "version = 1\nname = \"full\"\n\n[repository]\nurl = \"disk/repository\"\nrecipients = [\"{recipient}\"]\n\
         writer-key = \"writer.key\"\ncache = \"cache\"\nstate = \"state\"\n\n[run]\njobs = 1\n\n[components.site]\n\
         use = \"generic\"\nvolumes = {{ files = {{ path = \"files\" }} }}\n"
    );
    std::fs::write(root.join("pipeline.toml"), pipeline).unwrap();
    fill(&root.join("files"), 40);
    run(&["init", "pipeline.toml"]).expect_success();
    let says_so = |outcome: Outcome| outcome.expect_code(STORE).expect_stderr(&["cannot write", "make room"]);
    let backups = || json(&["list", "pipeline.toml"]).expect_success().events.len();

    says_so(run(&["pipeline.toml"]));
    assert_eq!(backups(), 0, "what is not whole is no backup");

    disk.again("size=128m");
    run(&["pipeline.toml"]).expect_success();
    let shown = json(&["show", "pipeline.toml"]).expect_success();
    let stats = &shown.events[0]["summary"]["stats"];
    assert!(stats["chunks_reused"].as_u64().unwrap() > 0, "{stats}");
    assert!(stats["chunks_new"].as_u64().unwrap() > 0, "{stats}");
    run(&["check", "pipeline.toml", "--identity", "identity.txt"]).expect_success();

    disk.again("ro");
    says_so(run(&["pipeline.toml"]));
    // Reading goes on.
    assert_eq!(backups(), 1);
    run(&["check", "pipeline.toml", "--identity", "identity.txt"]).expect_success();
    disk.again("rw");
    run(&["pipeline.toml"]).expect_success();
    assert_eq!(backups(), 2);
}
