//! What the walk, the comparison and the handing over cost by themselves: a tree is archived twice into a keeper in
//! memory. `cargo run --release -p essrun-volume --example walk_costs -- DIRECTORY [JOBS]`
//!
//! The second run takes everything over, so it shows what an unchanged tree costs. Times of a keeper that compresses,
//! encrypts and stores are not in it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use essrun_artifact::memory::MemoryBackup;
use essrun_artifact::{ArtifactName, BackupReader, NoProgress, Sensitivity};
use essrun_volume::{Archive, ArchiveRequest, Volume, archive};
use std::sync::Arc;
use std::time::Instant;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let root = args.next().unwrap_or_else(|| ".".into());
    let jobs = args.next().and_then(|n| n.parse().ok()).unwrap_or(2);
    let store = MemoryBackup::new();
    let mut previous = None;
    for run in ["first", "second"] {
        let name = ArtifactName::new(format!("costs/{run}")).unwrap();
        let begun = Instant::now();
        let report = archive::execute(
            Arc::new(Volume::open(root.as_ref()).unwrap()),
            ArchiveRequest::default(),
            Archive {
                name: name.clone(),
                sensitivity: Sensitivity::Internal,
                watch: None,
                previous: previous.take(),
                rescan: false,
                jobs,
            },
            Arc::new(store.clone()),
            Arc::new(NoProgress),
        )
        .await
        .unwrap();
        println!(
            "{run}: {:.2} s, {} files, {} bytes, {} taken over, {} bytes read",
            begun.elapsed().as_secs_f64(),
            report.files,
            report.bytes,
            report.taken_over_files,
            report.read_bytes
        );
        let reader: Arc<dyn BackupReader> = Arc::new(store.clone().commit().unwrap());
        let record = reader.artifact(&name).unwrap().clone();
        previous = Some((reader, record));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!(
        "{}",
        status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default()
    );
}
