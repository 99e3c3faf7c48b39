//! What the files in `deploy/` rely on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::site::Site;
use essrun_testkit::workspace;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

fn manifest(name: &str) -> String {
    std::fs::read_to_string(workspace().join("deploy/kubernetes").join(name)).unwrap()
}

/// The CronJob's Pod is no root: it reads the writer key as a file of root's, mode 0440, for its group.
#[test]
fn a_pod_reads_its_writer_key_and_no_other_may() {
    assert!(manifest("backup.yaml").contains("secretName: essrun-writer, defaultMode: 0440"));
    let site = Site::create();
    std::fs::write(site.folder("files").join("a.txt"), "a").unwrap();
    site.prepare("[components.site]\nuse = \"generic\"\nvolumes.files = { path = \"files\" }\n");
    let somebody = site.give_to_somebody();
    let key = site.path().join("writer.key");
    let meta = site.path().metadata().unwrap();
    let (uid, gid) = (meta.uid(), meta.gid());
    let mode = |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();

    // One's own key is for oneself alone.
    mode(0o440);
    somebody
        .run(&["pipeline.toml"])
        .expect_code(3)
        .expect_stderr(&["writer.key", "others may read it", "0640"]);
    if uid == std::fs::metadata("/proc/self").unwrap().uid() {
        // Not root: no file can be made root's, and nobody else's group can be given.
        mode(0o400);
        somebody.run(&["pipeline.toml"]).expect_success();
        return;
    }
    let give = |owner: &str| {
        assert!(Command::new("chown").arg(owner).arg(&key).status().unwrap().success());
    };
    give(&format!("0:{gid}"));
    mode(0o440);
    somebody.run(&["pipeline.toml"]).expect_success();
    mode(0o640);
    somebody.run(&["list", "pipeline.toml"]).expect_success();
    for (owner, bits) in [
        (format!("0:{gid}"), 0o444),
        ("0:0".to_owned(), 0o444),
        (format!("0:{gid}"), 0o660),
    ] {
        give(&owner);
        mode(bits);
        somebody
            .run(&["pipeline.toml"])
            .expect_code(3)
            .expect_stderr(&["others may read it"]);
    }
}

/// What comes back as files must be there when the Job's Pod is gone.
#[test]
fn the_restored_secret_outlives_the_job() {
    let restore = manifest("restore.yaml");
    assert!(!restore.contains("emptyDir"), "{restore}");
    let (claims, rest) = restore.split_once("kind: Job").unwrap();
    assert!(claims.contains("kind: PersistentVolumeClaim") && claims.contains("name: essrun-restored"));
    let (job, pod) = rest.split_once("kind: Pod").unwrap();
    for user in [job, pod] {
        assert!(
            user.contains("mountPath: /kubernetes")
                && user.contains("persistentVolumeClaim: {claimName: essrun-restored}"),
            "{user}"
        );
    }
    let readme = manifest("README.md");
    for said in [
        "essrun-restored:/kubernetes",
        "ess-generated",
        "matrix-tools-init-secrets",
        "essrun-state",
    ] {
        assert!(readme.contains(said), "{said}");
    }
}

/// A gate that was not tried is not one that held.
#[test]
fn the_gate_says_what_it_skips() {
    let gate = std::fs::read_to_string(workspace().join(".ci/run")).unwrap();
    let (_, last) = gate.split_once("if command -v cargo-deny").unwrap();
    let script = format!("set -euo pipefail\nstep() {{ printf '%s\\n' \"$*\"; }}\nif command -v cargo-deny{last}");
    let empty = tempfile::tempdir().unwrap();
    let told = Command::new("/bin/bash")
        .args(["-c", &script])
        .env("PATH", empty.path())
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("licences and sources: SKIPPED"), "{told}");
}
