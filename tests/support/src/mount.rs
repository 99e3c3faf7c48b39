//! File systems of a test's own: a small one, one that turns read-only, one that takes names in other letters for one.
//!
//! Only root may mount. Anybody else's tests leave out what needs it, and say so; root's fail where they cannot.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system; unmounted when dropped, so after everything that is on it.
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// A tmpfs in a new directory, with options of tmpfs; none where this process may mount nothing.
    pub fn tmpfs(at: &Path, options: &str) -> Option<Mounted> {
        std::fs::create_dir(at).expect("a directory to mount on");
        Self::made(at, tmpfs(at, options))
    }

    /// Where `aB` and `Ab` are one: NTFS as Windows reads it, through FUSE, since few kernels are built with one that
    /// folds; none where there is no FUSE, as in most containers.
    pub fn folding(at: &Path) -> Option<Mounted> {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("not shown: there is no /dev/fuse");
            return None;
        }
        std::fs::create_dir(at).expect("a directory to mount on");
        let image = at.with_extension("ntfs");
        let made = std::fs::File::create(&image).and_then(|file| file.set_len(16 << 20));
        made.expect("an image");
        let mut make = Command::new("/sbin/mkntfs");
        make.args(["--quiet", "--force", "--quick"]).arg(&image);
        let mut mount = Command::new("lowntfs-3g");
        mount.args(["-o", "ignore_case"]).arg(&image).arg(at);
        Self::made(at, succeeds(&mut make) && succeeds(&mut mount))
    }

    fn made(at: &Path, mounted: bool) -> Option<Mounted> {
        // /proc/self belongs to the effective user of this process.
        let root = std::fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0;
        assert!(mounted || !root, "root cannot mount at {}", at.display());
        mounted.then(|| Mounted { at: at.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The same tmpfs with other options.
    pub fn again(&self, options: &str) {
        assert!(tmpfs(&self.at, &format!("remount,{options}")), "remounting");
    }
}

fn tmpfs(at: &Path, options: &str) -> bool {
    succeeds(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "essrun-test"])
            .arg(at),
    )
}

fn succeeds(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(e) => {
            eprintln!("{command:?}: {e}");
            false
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = Command::new("umount").arg(&self.at).status();
    }
}
