//! The doors that fuzzers come in by: listings, the trees restored from them, patterns, what a killed restore left.
//!
//! Whatever comes in, nothing may panic, and what is accepted must hold what the rest of the room relies on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::listing::Decoder;
use crate::{ListedEntry, Owners, Patterns, RestoreOptions, TreePath, restore};
use essrun_artifact::memory::MemoryBackup;
use essrun_artifact::{
    ArtifactName, ArtifactRecord, BackupReader, BackupWriter, ChunkList, Content, Lane, LaneSpec, NoProgress,
    Sensitivity,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("listing", listing),
    ("patterns", patterns),
    ("staging", staging),
    ("tree", tree),
];

fn read(pieces: impl Iterator<Item = Vec<u8>>) -> Result<Vec<ListedEntry>, String> {
    let mut decoder = Decoder::default();
    let mut entries = Vec::new();
    for piece in pieces {
        decoder.push(&piece);
        while let Some(entry) = decoder.next()? {
            entries.push(entry);
        }
    }
    decoder.end()?;
    Ok(entries)
}

/// A listing, whole and cut into pieces; what was read is written and read again.
pub fn listing(data: &[u8]) {
    let whole = read(std::iter::once(data.to_vec()));
    assert_eq!(
        whole,
        read(data.chunks(7).map(<[u8]>::to_vec)),
        "where it is cut matters"
    );
    let mut again = Vec::new();
    for entry in whole.iter().flatten() {
        assert!(TreePath::new(entry.path.as_bytes()).is_ok());
        entry.encode(&mut again).unwrap();
    }
    if whole.is_ok() {
        assert_eq!(whole, read(std::iter::once(again)));
    }
}

/// The first line is a pattern, the rest a path.
pub fn patterns(data: &[u8]) {
    let at = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (pattern, path) = data.split_at(at);
    let Ok(pattern) = std::str::from_utf8(pattern) else {
        return;
    };
    let Ok(patterns) = Patterns::new([pattern]) else { return };
    let covered = patterns.covers(path);
    let mut within = patterns.root();
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
        assert!(
            !covered || within.may_match_below(),
            "a walk would not have come here: {pattern:?}"
        );
        within = patterns.enter(&within, name);
    }
    assert_eq!(within.covered(), covered);
}

/// A directory of its own for one run, with something beside the destination that must stay as it is.
struct Ground(PathBuf);

impl Ground {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("essrun-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::create_dir(path.join("outside")).unwrap();
        std::fs::write(path.join("outside/victim"), b"untouched").unwrap();
        Ground(path)
    }

    fn outside_is_untouched(&self) {
        let outside = self.0.join("outside");
        assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"untouched");
        assert_eq!(outside.read_dir().unwrap().count(), 1, "written outside");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What is beside a destination, and was left there by a restore or somebody else.
pub fn staging(data: &[u8]) {
    let ground = Ground::new();
    restore::fuzz_staging(data, &ground.0);
    ground.outside_is_untouched();
}

/// A listing, restored. In it `"@"` as a file's content stands for four bytes that are there, and `@ground@` for
/// the folder the destination lies in.
pub fn tree(data: &[u8]) {
    // What takes long here is the disk, and nothing new is behind more entries.
    if data.iter().filter(|b| **b == b'\n').count() > 30 {
        return;
    }
    let ground = Ground::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(restored(data, &ground));
    ground.outside_is_untouched();
    let known = |name: &std::ffi::OsStr| {
        let name = name.to_string_lossy();
        name == "outside" || name == "goal" || name.starts_with(restore::STAGING_PREFIX)
    };
    for entry in ground.0.read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        assert!(known(&name), "{name:?} was made beside the destination");
    }
}

async fn restored(data: &[u8], ground: &Ground) {
    let backup = MemoryBackup::new();
    let mut lane = backup.lane(LaneSpec::TABLE).unwrap();
    let kept = store(&mut lane, b"evil").await;
    let kept = serde_json::to_string(&kept).unwrap();
    // Bytes that are not text stay as they are.
    let text = String::from_utf8_lossy(data);
    let changed = text
        .replace("\"@\"", &kept)
        .replace("@ground@", ground.0.to_str().unwrap_or_default());
    let listing = if text.contains('@') {
        changed.into_bytes()
    } else {
        data.to_vec()
    };
    let mut decoded = Vec::new();
    let mut decoder = Decoder::default();
    decoder.push(&listing);
    while let Ok(Some(entry)) = decoder.next() {
        decoded.push(entry);
    }
    // A file as long as a disk is refused by the disk, which takes its time.
    let huge = |e: &ListedEntry| matches!(&e.kind, crate::Kind::File { size, .. } if *size > 1 << 30);
    if decoded.iter().any(huge) {
        return;
    }
    let content = store(&mut lane, &listing).await;
    lane.close().await.unwrap();
    let record = ArtifactRecord {
        name: ArtifactName::new("fuzz/tree").unwrap(),
        kind: crate::KIND.into(),
        sensitivity: Sensitivity::Personal,
        meta: serde_json::json!({
            "format": 1, "entries": decoded.len(), "files": 0, "directories": 0, "symlinks": 0, "hardlinks": 0,
            "bytes": 0, "unstable": 0, "unreadable": 0, "take": [], "leave_out": [],
        }),
        content,
    };
    backup.record(record.clone()).await.unwrap();
    let reader: Arc<dyn BackupReader> = Arc::new(backup.commit().unwrap());
    let options = RestoreOptions {
        owners: Owners::Current,
        jobs: 1,
        ..RestoreOptions::default()
    };
    let goal = ground.0.join("goal");
    let staged = restore::execute(reader, &record, &goal, options, Arc::new(NoProgress)).await;
    assert!(!goal.exists(), "the destination was touched before the swap");
    if let Ok(staged) = staged {
        let fatal = staged.findings().iter().any(|f| f.fatal);
        assert_eq!(staged.swap().await.is_ok(), !fatal);
    }
}

async fn store(lane: &mut Box<dyn Lane>, bytes: &[u8]) -> Content {
    lane.write(bytes::Bytes::copy_from_slice(bytes)).await.unwrap();
    let content = lane.cut().await.unwrap();
    assert!(matches!(content.chunks, ChunkList::Inline(_)));
    content
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpora.rs"]
mod corpora;

#[cfg(test)]
mod tests {
    use super::corpora;

    #[test]
    fn every_corpus_is_decoded_or_refused() {
        corpora::run(super::TARGETS);
    }
}
