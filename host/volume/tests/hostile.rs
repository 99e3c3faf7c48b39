//! Listings and trees that want to lead us out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{OPTIONS, back_up, forged, line, runtime, stage};
use essrun_volume::{ArchiveRequest, OnUnreadable, RestoreOptions, restore};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn no_listing_writes_outside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), b"untouched").unwrap();
    let out = outside.to_str().unwrap();
    let file = r#""size":4,"content":{}"#;
    let root = line("", "directory", "");
    let link = |to: &str| line("d", "symlink", &format!(r#""target":{to:?}"#));
    let cases: Vec<(&str, Vec<String>)> = vec![
        (
            "absolute",
            vec![root.clone(), line(&format!("{out}/new"), "file", file)],
        ),
        ("dot dot", vec![root.clone(), line("../outside/new", "file", file)]),
        (
            "dot dot within",
            vec![
                root.clone(),
                line("d", "directory", ""),
                line("d/../../outside/new", "file", file),
            ],
        ),
        (
            "file beneath a link",
            vec![root.clone(), link(out), line("d/new", "file", file)],
        ),
        (
            "directory beneath a link",
            vec![root.clone(), link(out), line("d/new", "directory", "")],
        ),
        (
            "link beneath a link",
            vec![root.clone(), link(out), line("d/new", "symlink", r#""target":"x""#)],
        ),
        (
            "link, then directory",
            vec![root.clone(), link(out), line("d", "directory", "")],
        ),
        (
            "link, then file",
            vec![root.clone(), link(&format!("{out}/victim")), line("d", "file", file)],
        ),
        (
            "hard link to a link",
            vec![
                root.clone(),
                link(&format!("{out}/victim")),
                line("e", "file", &format!(r#"{file},"hardlink":"d""#)),
            ],
        ),
        (
            "hard link through a link",
            vec![
                root.clone(),
                link(out),
                line("x", "directory", ""),
                line("x/e", "file", &format!(r#"{file},"hardlink":"d/victim""#)),
            ],
        ),
        (
            "hard link outside",
            vec![
                root.clone(),
                line("e", "file", &format!(r#"{file},"hardlink":"../outside/victim""#)),
            ],
        ),
        ("no parent", vec![root.clone(), line("nowhere/new", "file", file)]),
        (
            "file as parent",
            vec![root.clone(), line("d", "file", file), line("d/new", "file", file)],
        ),
        ("no root", vec![line("d", "file", file)]),
        (
            "a name of ours",
            vec![root.clone(), line(".essrun-before-1", "directory", "")],
        ),
        (
            "more bytes than said",
            vec![root.clone(), line("f", "file", r#""size":3,"content":{}"#)],
        ),
        (
            "huge",
            vec![
                root.clone(),
                line("f", "file", r#""size":9223372036854775807,"extents":[]"#),
            ],
        ),
        (
            "bytes the keeper does not have",
            vec![
                root.clone(),
                line(
                    "f",
                    "file",
                    r#""size":5,"content":{"bytes":5,"chunks":{"inline":[{"id":"0000000000000000000000000000000000000000000000000000000000000000","bytes":5}]}}"#,
                ),
            ],
        ),
    ];
    runtime().block_on(async {
        for (what, lines) in cases {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let (reader, record) = forged(&lines, b"evil").await;
            let goal = dir.path().join("goal");
            match stage(&reader, &record, &goal, OPTIONS).await {
                Err(e) => assert!(!e.to_string().is_empty()),
                Ok(_) => panic!("{what}: was accepted"),
            }
            assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"untouched", "{what}");
            assert_eq!(outside.read_dir().unwrap().count(), 1, "{what}");
            assert!(!goal.exists(), "{what}");
            // The failed staging directory is gone as well.
            assert_eq!(dir.path().read_dir().unwrap().count(), 1, "{what}");
        }
    });
}

#[test]
fn odd_attributes_and_owners_are_findings() {
    let dir = tempfile::tempdir().unwrap();
    let root = line("", "directory", "");
    let nobody = line("n", "file", r#""size":4,"content":{}"#)
        .replace(r#""uid":0"#, r#""uid":4294967295"#)
        .replace("448", "2541");
    let attribute = line(
        "o",
        "file",
        r#""size":4,"content":{},"xattrs":[["security.evil","AAAA"],["user.good","AAAA"]]"#,
    );
    runtime().block_on(async {
        let (reader, record) = forged(&[&root, &nobody, &attribute], b"evil").await;
        let goal = dir.path().join("goal");
        let staged = stage(&reader, &record, &goal, OPTIONS).await.unwrap();
        let checks: Vec<_> = staged.findings().iter().map(|f| f.check).collect();
        assert!(
            checks.contains(&"owners-not-set") && checks.contains(&"attributes-not-set"),
            "{checks:?}"
        );
        staged.swap().await.unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(goal.join("n").metadata().unwrap().mode() & 0o7777, 0o755);
    });
}

#[test]
fn records_of_other_kinds_and_formats_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (reader, record) = forged(&[&line("", "directory", "")], b"x").await;
        let refused = async |change: &dyn Fn(&mut essrun_artifact::ArtifactRecord)| {
            let mut record = record.clone();
            change(&mut record);
            stage(&reader, &record, &dir.path().join("goal"), OPTIONS)
                .await
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&|r| r.kind = "sqlite".into()).await.contains("not a volume"));
        assert!(refused(&|r| r.meta["format"] = 2.into()).await.contains("format 2"));
        assert!(refused(&|r| r.meta = serde_json::Value::Null).await.contains("format"));
        assert!(
            refused(&|r| r.meta["entries"] = 7.into())
                .await
                .contains("description says 7")
        );
        let mut cut = record.clone();
        cut.content = essrun_artifact::Content::empty();
        let e = stage(&reader, &cut, &dir.path().join("goal"), OPTIONS)
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(e.to_string().contains("empty"), "{e}");
    });
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

/// Somebody exchanges a directory for a link to somewhere else, all the while we walk.
#[test]
fn a_tree_that_moves_cannot_lead_the_walk_out() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::create_dir_all(outside.join("b")).unwrap();
    for i in 0..20 {
        std::fs::write(root.join(format!("a/b/f{i}")), b"inside").unwrap();
        std::fs::write(outside.join(format!("b/f{i}")), b"SECRET").unwrap();
        std::fs::write(root.join(format!("g{i}")), b"inside").unwrap();
    }
    symlink(&outside, root.join("link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (root, stop) = (root.clone(), stop.clone());
        move || {
            let mut swaps = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // a is now a directory, now the link; the same for one file.
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    root.join("a"),
                    rustix::fs::CWD,
                    root.join("link"),
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
                swaps += 1;
            }
            swaps
        }
    });
    runtime().block_on(async {
        for round in 0..60 {
            let request = ArchiveRequest {
                on_unreadable: OnUnreadable::Report,
                ..ArchiveRequest::default()
            };
            let (_, reader, record) = back_up(&root, request).await.unwrap();
            let goal = dir.path().join(format!("goal{round}"));
            // Whatever was met, the listing can be restored…
            stage(&reader, &record, &goal, OPTIONS)
                .await
                .unwrap()
                .swap()
                .await
                .unwrap();
            // …and holds nothing from outside.
            let grep = std::process::Command::new("grep")
                .args(["-r", "SECRET"])
                .arg(&goal)
                .output()
                .unwrap();
            assert_eq!(grep.status.code(), Some(1), "{}", String::from_utf8_lossy(&grep.stdout));
        }
    });
    stop.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 60, "the test must really have swapped");
    // Restoring over a link is refused as well.
    symlink(&outside, dir.path().join("goal")).unwrap();
    runtime().block_on(async {
        let (_, reader, record) = back_up(&outside, ArchiveRequest::default()).await.unwrap();
        let options = RestoreOptions {
            replace: true,
            ..OPTIONS
        };
        let e = stage(&reader, &record, &dir.path().join("goal"), options)
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(e.to_string().contains("symbolic link"), "{e}");
        assert!(restore::plan(&record, &dir.path().join("goal"), options).await.is_err());
    });
}
