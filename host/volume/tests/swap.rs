//! The live tree: untouched before the swap, kept after it, safe whenever we are killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Mounted, OPTIONS, as_nobody, back_up, is_root, runtime, stage};
use essrun_volume::{ArchiveRequest, LeftoverState, RestoreOptions, VolumeError, restore};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const REPLACE: RestoreOptions = RestoreOptions {
    replace: true,
    ..OPTIONS
};

fn tree(at: &Path, what: &str, files: usize) {
    std::fs::create_dir_all(at.join("sub")).unwrap();
    for i in 0..files {
        std::fs::write(at.join(format!("sub/f{i}")), what).unwrap();
    }
    std::fs::write(at.join("top"), what).unwrap();
}

fn reads(at: &Path) -> String {
    std::fs::read_to_string(at.join("top")).unwrap()
}

#[test]
fn absent_empty_full() {
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    tree(&source, "new", 3);
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o751)).unwrap();
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        let plan = restore::plan(&record, &goal, OPTIONS).await.unwrap();
        assert_eq!((plan.entries, plan.replaces, plan.mount_point), (6, false, false));

        stage(&reader, &record, &goal, OPTIONS)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!(reads(&goal), "new");
        assert_eq!(goal.metadata().unwrap().mode() & 0o7777, 0o751);

        std::fs::remove_dir_all(&goal).unwrap();
        std::fs::create_dir(&goal).unwrap();
        assert_eq!(
            stage(&reader, &record, &goal, OPTIONS)
                .await
                .unwrap()
                .swap()
                .await
                .unwrap()
                .kept,
            None
        );
        assert_eq!(reads(&goal), "new");

        std::fs::write(goal.join("top"), "live").unwrap();
        for refused in [
            stage(&reader, &record, &goal, OPTIONS).await.map(|_| ()),
            restore::plan(&record, &goal, OPTIONS).await.map(|_| ()),
        ] {
            let e = refused.unwrap_err();
            assert!(
                matches!(e, VolumeError::Destination { .. }) && e.to_string().contains("not empty"),
                "{e}"
            );
        }
        assert!(restore::plan(&record, &goal, REPLACE).await.unwrap().replaces);
        let staged = stage(&reader, &record, &goal, REPLACE).await.unwrap();
        assert_eq!(reads(&goal), "live", "untouched until the swap");
        assert_eq!(reads(staged.root()), "new");
        assert_eq!(staged.volume().unwrap().read("top", 10).unwrap(), b"new");
        assert_eq!(
            restore::list_leftovers(&goal).await.unwrap()[0].state,
            LeftoverState::InUse
        );
        assert_eq!(restore::drop_leftovers(&goal).await.unwrap(), []);
        let swapped = staged.swap().await.unwrap();
        let kept = swapped.kept.unwrap();
        assert_eq!((reads(&goal), reads(&kept)), ("new".into(), "live".into()));
        assert!(kept.file_name().unwrap().as_bytes().starts_with(b"goal.before-"));
        assert_eq!(restore::list_leftovers(&goal).await.unwrap(), []);

        // Filled between the restore and the swap: refused, both are kept.
        std::fs::remove_dir_all(&goal).unwrap();
        let staged = stage(&reader, &record, &goal, OPTIONS).await.unwrap();
        tree(&goal, "came meanwhile", 1);
        assert!(staged.swap().await.unwrap_err().to_string().contains("not empty"));
        assert_eq!(reads(&goal), "came meanwhile");
        let left = restore::list_leftovers(&goal).await.unwrap();
        assert_eq!(left[0].state, LeftoverState::Complete);
        assert_eq!(restore::drop_leftovers(&goal).await.unwrap(), left);
        assert!(!left[0].path.exists());

        // No parent, a file, a file system's root.
        for bad in [dir.path().join("no/parent"), goal.join("top"), PathBuf::from("/")] {
            assert!(
                matches!(
                    restore::plan(&record, &bad, REPLACE).await,
                    Err(VolumeError::Destination { .. })
                ),
                "{bad:?}"
            );
        }
    });
}

#[test]
fn owners_can_be_set_before_the_swap() {
    if !is_root() {
        eprintln!("needs root, skipped");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    tree(&source, "new", 2);
    std::os::unix::fs::symlink("/etc/passwd", source.join("sub/link")).unwrap();
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        let mut staged = stage(&reader, &record, &goal, OPTIONS).await.unwrap();
        staged.set_owner("", 10991, 10991).await.unwrap();
        staged.set_owner("sub", 10006, 999).await.unwrap();
        assert!(staged.set_owner("../x", 1, 1).await.is_err());
        assert!(staged.set_owner("absent", 1, 1).await.is_err());
        assert!(staged.set_owner("sub/link/x", 1, 1).await.is_err());
        staged.swap().await.unwrap();
        let owner = |p: &str| {
            let m = goal.join(p).symlink_metadata().unwrap();
            (m.uid(), m.gid())
        };
        assert_eq!(
            [
                owner(""),
                owner("top"),
                owner("sub"),
                owner("sub/f1"),
                owner("sub/link")
            ],
            [(10991, 10991), (10991, 10991), (10006, 999), (10006, 999), (10006, 999)]
        );
        assert_eq!(std::fs::metadata("/etc/passwd").unwrap().uid(), 0);
    });
}

#[test]
fn a_mount_point_is_swapped_from_inside() {
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    tree(&source, "new", 3);
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o750)).unwrap();
    std::fs::create_dir(&goal).unwrap();
    let Some(_mounted) = Mounted::tmpfs(&goal) else {
        return;
    };
    std::fs::create_dir(goal.join("lost+found")).unwrap();
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        let plan = restore::plan(&record, &goal, OPTIONS).await.unwrap();
        assert!(plan.mount_point && !plan.replaces, "{plan:?}");
        let device = goal.metadata().unwrap().dev();
        let swapped = stage(&reader, &record, &goal, OPTIONS)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!((swapped.kept, reads(&goal)), (None, "new".into()));
        assert_eq!(goal.metadata().unwrap().dev(), device, "still the mounted file system");
        assert_eq!(goal.metadata().unwrap().mode() & 0o7777, 0o750);
        assert_eq!(goal.metadata().unwrap().mtime(), source.metadata().unwrap().mtime());

        std::fs::write(goal.join("top"), "live").unwrap();
        assert!(stage(&reader, &record, &goal, OPTIONS).await.is_err());
        let kept = stage(&reader, &record, &goal, REPLACE)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap()
            .kept
            .unwrap();
        assert_eq!((reads(&goal), reads(&kept)), ("new".into(), "live".into()));
        assert!(goal.join("lost+found").is_dir());
        // What we keep there is not part of the next backup, nor does it count as content.
        let (report, _, _) = back_up(&goal, ArchiveRequest::default()).await.unwrap();
        assert_eq!(report.files, 4);
        // Archiving the parent names the mount and does not enter it.
        let (report, _, _) = back_up(dir.path(), ArchiveRequest::default()).await.unwrap();
        assert_eq!(report.skipped.first[0].0.to_text(), "goal");
        assert_eq!(report.files, 4);
    });
}

fn refused<T>(result: Result<T, VolumeError>, why: &str) {
    match result.map(|_| ()) {
        Err(e @ VolumeError::Destination { .. }) if e.to_string().contains(why) => {}
        other => panic!("{why}: {other:?}"),
    }
}

/// What the swap would refuse hours later is refused by the plan, and again before anything is swapped.
#[test]
fn what_cannot_be_swapped_is_not_planned() {
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    tree(&source, "new", 3);
    std::fs::create_dir(&goal).unwrap();
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        let before = restore::plan(&record, &goal, REPLACE).await.unwrap();
        let planned = RestoreOptions {
            planned_mount_point: Some(before.mount_point),
            ..REPLACE
        };
        let early = stage(&reader, &record, &goal, planned).await.unwrap();
        early.swap_ready().await.unwrap();
        let Some(mounted) = Mounted::tmpfs(&goal) else { return };
        // Mounted since the plan: not even staged. Since the staging: not ready to be swapped.
        refused(
            stage(&reader, &record, &goal, planned).await,
            "was mounted or unmounted",
        );
        refused(early.swap_ready().await, "was mounted or unmounted");
        refused(early.swap().await, "was mounted or unmounted");

        // Something mounted in a mount point: it cannot be moved.
        let late = stage(&reader, &record, &goal, REPLACE).await.unwrap();
        std::fs::create_dir(goal.join("inner")).unwrap();
        let inner = Mounted::tmpfs(&goal.join("inner")).unwrap();
        for r in [
            restore::plan(&record, &goal, REPLACE).await.map(|_| ()),
            stage(&reader, &record, &goal, REPLACE).await.map(|_| ()),
            late.swap_ready().await,
        ] {
            refused(r, "another file system is mounted here");
        }
        drop(inner);
        late.swap_ready().await.unwrap();
        late.discard().await.unwrap();

        // A file system that is mounted read-only, of which permissions say nothing.
        mounted.read_only();
        refused(restore::plan(&record, &goal, REPLACE).await, "mounted read-only");
    });
}

#[test]
fn what_may_not_be_written_to_is_not_planned() {
    if as_nobody("what_may_not_be_written_to_is_not_planned") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("there/goal"));
    let mode = |at: &Path, mode| std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
    tree(&source, "new", 3);
    tree(&goal, "live", 1);
    runtime().block_on(async {
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        restore::plan(&record, &goal, REPLACE).await.unwrap();
        mode(goal.parent().unwrap(), 0o555);
        refused(restore::plan(&record, &goal, REPLACE).await, "may not be written to");
        mode(goal.parent().unwrap(), 0o755);
        // The exchange writes to the live directory too: it gets another parent.
        mode(&goal, 0o555);
        refused(restore::plan(&record, &goal, REPLACE).await, "may not be written to");
        refused(stage(&reader, &record, &goal, REPLACE).await, "may not be written to");
        mode(&goal, 0o755);
        stage(&reader, &record, &goal, REPLACE)
            .await
            .unwrap()
            .swap()
            .await
            .unwrap();
        assert_eq!(reads(&goal), "new");

        // The restored root itself, not to be written to by its owner.
        for at in [source.join("sub"), source.clone()] {
            mode(&at, 0o555);
        }
        let (_, reader, record) = back_up(&source, ArchiveRequest::default()).await.unwrap();
        let staged = stage(&reader, &record, &goal, REPLACE).await.unwrap();
        let kept = staged.swap().await.unwrap().kept.unwrap();
        assert_eq!((reads(&goal), reads(&kept)), ("new".into(), "new".into()));
        assert_eq!(goal.metadata().unwrap().mode() & 0o7777, 0o555);
        assert_eq!(restore::list_leftovers(&goal).await.unwrap(), []);

        // Such a tree can be removed all the same.
        assert!(std::fs::remove_dir_all(&goal).is_err(), "else this shows nothing");
        restore::remove_tree(&goal).unwrap();
        assert!(!goal.exists());
        mode(&source, 0o755);
        mode(&source.join("sub"), 0o755);
    });
}

/// Not a test by itself: restores over the tree in `$GOAL` until it is killed.
#[test]
fn child_restores_until_killed() {
    let Ok(dir) = std::env::var("ESSRUN_TEST_KILL") else {
        return;
    };
    let dir = PathBuf::from(dir);
    runtime().block_on(async {
        let (_, reader, record) = back_up(&dir.join("source"), ArchiveRequest::default()).await.unwrap();
        std::fs::write(dir.join("ready"), b"").unwrap();
        loop {
            let staged = stage(&reader, &record, &dir.join("goal"), REPLACE).await.unwrap();
            staged.swap().await.unwrap();
        }
    });
}

#[test]
fn killed_at_any_time_a_whole_tree_is_live() {
    let dir = tempfile::tempdir().unwrap();
    let (source, goal) = (dir.path().join("source"), dir.path().join("goal"));
    tree(&source, "new", 40);
    tree(&goal, "live", 40);
    let whole = |at: &Path| {
        let words: std::collections::BTreeSet<String> = (0..40)
            .map(|i| std::fs::read_to_string(at.join(format!("sub/f{i}"))).unwrap())
            .chain([reads(at)])
            .collect();
        assert_eq!(words.len(), 1, "a mixture");
    };
    for round in 0..15u64 {
        let _ = std::fs::remove_file(dir.path().join("ready"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_restores_until_killed"])
            .env("ESSRUN_TEST_KILL", dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..2000 {
            if dir.path().join("ready").exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(3 + round * 7 % 40));
        child.kill().unwrap();
        child.wait().unwrap();
        whole(&goal);
        runtime().block_on(async {
            // Killed between making the directory and its lock, it counts as in use for some seconds.
            let in_use = async || {
                let left = restore::list_leftovers(&goal).await.unwrap();
                left.iter().any(|left| left.state == LeftoverState::InUse)
            };
            for _ in 0..40 {
                if !in_use().await {
                    break;
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            for left in restore::list_leftovers(&goal).await.unwrap() {
                assert_ne!(left.state, LeftoverState::InUse, "its owner is dead");
                if left.state == LeftoverState::Swapping {
                    restore::resume_swap(&left).await.unwrap();
                    whole(&goal);
                }
            }
            restore::drop_leftovers(&goal).await.unwrap();
            assert_eq!(restore::list_leftovers(&goal).await.unwrap(), []);
        });
        for kept in dir.path().read_dir().unwrap().map(|e| e.unwrap()) {
            if kept.file_name().as_bytes().starts_with(b"goal.before-") {
                whole(&kept.path());
                std::fs::remove_dir_all(kept.path()).unwrap();
            }
        }
    }
}
