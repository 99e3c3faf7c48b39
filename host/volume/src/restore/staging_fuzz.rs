//! A staging directory with any `state.json`, as a restore finds it, drops it, or ends the swap that was under way.
//!
//! Whatever it says, nothing is moved or removed but in the destination, beside it under the names of ours, and in the
//! staging directory; and what was live is still there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::staging::{self, State};
use super::target::Target;
use super::{KEPT_PREFIX, LeftoverState, STAGING_PREFIX, swap};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How many files below a directory hold this.
fn holding(directory: &Path, text: &[u8]) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap() {
            kind if kind.is_dir() => holding(&entry.path(), text),
            kind if kind.is_file() => usize::from(std::fs::read(entry.path()).unwrap() == text),
            _ => 0,
        })
        .sum()
}

/// The first byte says how things stand: whether there is a live tree, whether it was exchanged with the staged one
/// already. The rest is the state, with `@ground@` for the folder that all lies in and `@inode@` for the new tree's.
pub(crate) fn run(data: &[u8], ground: &Path) {
    let Some((stand, text)) = data.split_first() else {
        return;
    };
    let (goal, path) = (ground.join("goal"), ground.join(format!("{STAGING_PREFIX}0")));
    let tree = path.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("f"), b"new").unwrap();
    std::fs::write(path.join("lock"), b"").unwrap();
    let inode = tree.metadata().unwrap().ino().to_string();
    let (live, exchanged) = (stand & 1 != 0, stand & 2 != 0);
    if live {
        std::fs::create_dir(&goal).unwrap();
        std::fs::write(goal.join("f"), b"old").unwrap();
    }
    if exchanged {
        let aside = ground.join("aside");
        std::fs::rename(&tree, &aside).unwrap();
        if live {
            std::fs::rename(&goal, &tree).unwrap();
        }
        std::fs::rename(&aside, &goal).unwrap();
    }
    let changed = String::from_utf8_lossy(text)
        .replace("@ground@", ground.to_str().unwrap())
        .replace("@inode@", &inode);
    let text = if text.contains(&b'@') { changed.as_bytes() } else { text };
    std::fs::write(path.join("state.json"), text).unwrap();
    if let Ok(state) = State::parse(text) {
        let again = State::parse(&serde_json::to_vec(&state).unwrap());
        assert_eq!(again, Ok(state));
    }
    let count = |text| holding(ground, text);
    let target = Target::look(&goal).unwrap();
    for leftover in staging::leftovers(&target).unwrap() {
        assert_eq!(leftover.path, path);
        match leftover.state {
            LeftoverState::InUse => panic!("nobody else is here"),
            LeftoverState::Swapping => {
                assert!(!staging::drop_one(&leftover).unwrap(), "it may hold what was live");
                let ended = swap::resume(&path);
                assert_eq!(count(b"old"), usize::from(live), "{ended:?}");
                if let Ok(swapped) = ended {
                    assert_eq!(swapped.destination, goal);
                    assert!(!path.exists());
                }
            }
            LeftoverState::Extracting | LeftoverState::Complete => {
                assert!(staging::drop_one(&leftover).unwrap());
                assert!(!path.exists());
                // One that says so after an exchange lies, and nobody can know.
                assert!(exchanged || count(b"old") == usize::from(live));
            }
        }
    }
    for entry in ground.read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_str().unwrap();
        let ours = [STAGING_PREFIX, KEPT_PREFIX, "goal.before-"];
        let known = matches!(name, "goal" | "outside") || ours.iter().any(|prefix| name.starts_with(prefix));
        assert!(known, "{name:?} was made beside the destination");
    }
}
