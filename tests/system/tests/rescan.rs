//! `--rescan`: what a file system does not tell of is found by reading, and only by reading.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::site::Site;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

/// Maps the file, writes to its first page once, and writes one more byte there each time it is told a line. In memory that is mapped and was
/// written to, a byte changes without the file system being asked: size, times and inode stay as they were.
const FORGER: &str = "
import mmap, sys
file = open(sys.argv[1], 'r+b')
memory = mmap.mmap(file.fileno(), 0)
memory[0:1] = b'a'
print('ready', flush=True)
for line in sys.stdin:
    memory[2000:2001] = line[:1].encode()
    print('done', flush=True)
";

#[test]
fn one_byte_that_no_time_tells_of() {
    // Only what is kept in memory alone has no write-back that sets the times.
    let memory = std::path::Path::new("/dev/shm");
    if !memory.is_dir() {
        eprintln!("no /dev/shm here, skipped");
        return;
    }
    let volume = tempfile::tempdir_in(memory).unwrap();
    let file = volume.path().join("file");
    std::fs::write(&file, vec![b'x'; 10_000]).unwrap();
    let site = Site::create();
    site.prepare(&format!(
        "[components.any]\nuse = \"generic\"\nvolumes = {{ files = {{ path = \"{}\" }} }}\n",
        volume.path().display()
    ));
    let mut forger = Command::new("python3")
        .args(["-c", FORGER])
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let (mut tell, mut told) = (
        forger.stdin.take().unwrap(),
        BufReader::new(forger.stdout.take().unwrap()).lines(),
    );
    assert_eq!(told.next().unwrap().unwrap(), "ready");
    // A file that was changed a moment ago is read again, whatever its times say.
    std::thread::sleep(std::time::Duration::from_millis(3_500));

    let byte = |outcome: Outcome| {
        outcome.expect_success();
        let to = site.path().join("extracted");
        site.with_identity(
            "extract",
            &["any/files", "--path", "file", "--output", to.to_str().unwrap()],
        )
        .expect_success();
        let bytes = std::fs::read(&to).unwrap();
        std::fs::remove_file(&to).unwrap();
        bytes[2000]
    };
    assert_eq!(byte(site.back_up()), b'x');
    let looks = || {
        let found = file.metadata().unwrap();
        let (modified, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        (found.ino(), found.len(), modified, changed)
    };
    let before = looks();
    tell.write_all(b"y\n").unwrap();
    assert_eq!(told.next().unwrap().unwrap(), "done");
    assert_eq!(std::fs::read(&file).unwrap()[2000], b'y');
    assert_eq!(looks(), before, "the forgery shows: this test shows nothing");

    assert_eq!(byte(site.back_up()), b'x', "what looks unchanged is not read");
    assert_eq!(byte(site.essrun().run_json(&["pipeline.toml", "--rescan"])), b'y');
    // And is right from then on.
    assert_eq!(byte(site.back_up()), b'y');
    drop(tell);
    forger.wait().unwrap();
}
