//! Runs a command and measures it: wall time, processor time (its own and the server's), and the peak of resident memory
//! of all its processes together. Processor time is what a busy machine cannot spoil.

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
    /// Of the command and all it started.
    pub cpu: f64,
    /// Of the database server, in the same time.
    pub server_cpu: f64,
    /// The larger of: the largest sum seen, the largest high-water mark of a single process.
    pub peak_memory: u64,
}

impl Measured {
    /// This one, then the other.
    pub fn then(&self, next: &Measured) -> Measured {
        Measured {
            seconds: self.seconds + next.seconds,
            cpu: self.cpu + next.cpu,
            server_cpu: self.server_cpu + next.server_cpu,
            peak_memory: self.peak_memory.max(next.peak_memory),
        }
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:6.1} s, processor {:.1} s + server {:.1} s, peak {} MB",
            self.seconds,
            self.cpu,
            self.server_cpu,
            self.peak_memory / 1_000_000
        )
    }
}

/// `server`: the process id of the database server's first process.
pub fn run(command: &mut Command, server: Option<u32>) -> Result<Measured> {
    let shown = format!("{command:?}");
    let not_run = |cause| Problem::NotRun {
        program: shown.clone(),
        cause,
    };
    let errors = tempfile::tempfile().map_err(|e| Problem::Other(format!("a temporary file: {e}")))?;
    let for_child = errors
        .try_clone()
        .map_err(|e| Problem::Other(format!("a temporary file: {e}")))?;
    let before = (of_children("self"), server.map_or(0.0, of_server));
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
        cpu: of_children("self") - before.0,
        server_cpu: server.map_or(0.0, of_server) - before.1,
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

/// What `/proc/PID/stat` says, from its third field on.
fn stat(process: &str) -> Vec<String> {
    // A process may end while it is looked at: then it says nothing.
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_whitespace().map(str::to_owned).collect()
}

fn ticks(stat: &[String], fields: [usize; 2]) -> f64 {
    let sum: u64 = fields.iter().filter_map(|at| stat.get(*at)?.parse::<u64>().ok()).sum();
    sum as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Processor time of the ended children of a process, and of theirs.
fn of_children(process: &str) -> f64 {
    ticks(&stat(process), [13, 14])
}

/// Processor time of a server: its ended sessions and those that run.
fn of_server(first: u32) -> f64 {
    let running = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| {
        let stat = stat(&entry.file_name().to_string_lossy());
        let ours = stat.get(1).is_some_and(|parent| *parent == first.to_string());
        if ours { ticks(&stat, [11, 12]) } else { 0.0 }
    });
    of_children(&first.to_string()) + running.sum::<f64>()
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
    fn processor_time_of_children_and_of_servers_counts() {
        let work = "import time\nwhile time.process_time() < 0.3: pass";
        let nested = format!("import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {work:?}]))");
        let measured = run(Command::new("python3").args(["-c", &nested]), None).unwrap();
        assert!(measured.cpu >= 0.29 && measured.server_cpu == 0.0, "{measured}");
        // A "server" whose child works and runs on.
        let child = format!("{work}\ntime.sleep(60)");
        let mut server = Command::new("sh")
            .args(["-c", "python3 -c \"$1\" & wait", "sh", &child])
            .spawn()
            .unwrap();
        let id = server.id();
        let before = of_server(id);
        let deadline = Instant::now() + Duration::from_secs(60);
        while of_server(id) - before < 0.29 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(of_server(id) - before >= 0.29);
        let inner: Vec<u32> = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| stat(&pid.to_string()).get(1).is_some_and(|p| *p == id.to_string()))
            .collect();
        for pid in inner {
            Command::new("kill").arg(pid.to_string()).status().unwrap();
        }
        server.wait().unwrap();
    }

    #[test]
    fn memory_of_children_counts() {
        let script = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import time; b = bytearray(90_000_000); time.sleep(0.5)']))";
        let measured = run(Command::new("python3").args(["-c", script]), None).unwrap();
        assert!((90_000_000..400_000_000).contains(&measured.peak_memory), "{measured}");
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), None)
            .unwrap_err()
            .to_string();
        assert!(failed.contains("why") && failed.contains('3'), "{failed}");
    }
}
