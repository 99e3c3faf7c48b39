//! Runs a command and measures it: wall time, and the peak of resident memory of all its processes together.

use crate::shell::{Problem, Result};
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often memory is looked at. Short peaks between two looks are missed for sums, not for single processes.
const EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub struct Measured {
    pub seconds: f64,
    /// The larger of: the largest sum seen, the largest high-water mark of a single process.
    pub peak_memory: u64,
}

impl Measured {
    /// This one, then the other.
    pub fn then(&self, next: &Measured) -> Measured {
        Measured {
            seconds: self.seconds + next.seconds,
            peak_memory: self.peak_memory.max(next.peak_memory),
        }
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:6.1} s, peak {} MB", self.seconds, self.peak_memory / 1_000_000)
    }
}

pub fn run(command: &mut Command) -> Result<Measured> {
    let shown = format!("{command:?}");
    let not_run = |cause| Problem::NotRun {
        program: shown.clone(),
        cause,
    };
    let errors = tempfile::tempfile().map_err(|e| Problem::Other(format!("a temporary file: {e}")))?;
    let for_child = errors
        .try_clone()
        .map_err(|e| Problem::Other(format!("a temporary file: {e}")))?;
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(for_child)
        .spawn()
        .map_err(not_run)?;
    let root = child.id();
    let over = AtomicBool::new(false);
    let peak = AtomicU64::new(0);
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(memory_of_tree(root), Ordering::Relaxed);
                std::thread::sleep(EVERY);
            }
        });
        let status = child.wait();
        over.store(true, Ordering::Relaxed);
        status
    });
    let seconds = begun.elapsed().as_secs_f64();
    let status = status.map_err(not_run)?;
    if !status.success() {
        return Err(Problem::Failed {
            program: shown.clone(),
            status,
            said: format!(":\n{}", rest_of(errors)),
        });
    }
    Ok(Measured {
        seconds,
        peak_memory: peak.into_inner(),
    })
}

fn rest_of(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    // Only to explain a failure that is reported anyway.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Resident bytes of a process and all below it; or the high-water mark of one of them, where that is more.
fn memory_of_tree(root: u32) -> u64 {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while it is looked at: then it holds nothing.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1))
            .and_then(|p| p.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut sum, mut mark) = (0, 0);
    let mut waiting = vec![root];
    while let Some(pid) = waiting.pop() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        sum += kilobytes(&status, "VmRSS:") * 1024;
        mark = mark.max(kilobytes(&status, "VmHWM:") * 1024);
        waiting.extend(children.remove(&pid).unwrap_or_default());
    }
    sum.max(mark)
}

fn kilobytes(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (
        values.len() % 2,
        values.get(middle),
        middle.checked_sub(1).and_then(|m| values.get(m)),
    ) {
        (1, Some(value), _) => *value,
        (0, Some(high), Some(low)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn memory_of_children_counts() {
        let script = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import time; b = bytearray(90_000_000); time.sleep(0.5)']))";
        let measured = run(Command::new("python3").args(["-c", script])).unwrap();
        assert!((90_000_000..400_000_000).contains(&measured.peak_memory), "{measured}");
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(failed.contains("why") && failed.contains('3'), "{failed}");
    }
}
