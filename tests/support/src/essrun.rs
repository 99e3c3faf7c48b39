//! Runs the essrun binary as a person or a timer would, and kills it as a power cut would.
//!
//! The binary is `$ESSRUN_BIN`, or the one cargo built beside the running test. Nothing of the caller's environment
//! that could steer essrun or libpq is passed on.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where the binary is; panics with what to do when it was not built.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("ESSRUN_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "ESSRUN_BIN is {}, which is no file", path.display());
        return path;
    }
    let own = std::env::current_exe().expect("the running test has a path");
    let beside = own
        .ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join("essrun"))
        .find(|path| path.is_file());
    beside.unwrap_or_else(|| {
        panic!(
            "no essrun binary near {}: run `cargo xtask test`, or `cargo build -p essrun` first",
            own.display()
        )
    })
}

/// When to send SIGKILL, or to do something else.
#[derive(Clone, Copy, Debug)]
pub enum Kill {
    /// So long after the start.
    After(Duration),
    /// As soon as this many JSON events have been printed.
    AtEvent(usize),
    /// As soon as an event of this kind has been printed.
    AtKind(&'static str),
    /// As soon as this phase has been announced.
    AtPhase(&'static str),
}

/// How a run ended and what it said.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// The lines of stdout that are JSON, with `--json`.
    pub events: Vec<Value>,
    pub begun: Instant,
    pub took: Duration,
}

impl Outcome {
    /// The exit code; none when killed.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Outcome {
        assert_eq!(self.code(), Some(code), "{self}");
        self
    }

    #[track_caller]
    pub fn expect_success(self) -> Outcome {
        self.expect_code(0)
    }

    /// Standard error must contain each of the fragments.
    #[track_caller]
    pub fn expect_stderr(self, fragments: &[&str]) -> Outcome {
        for fragment in fragments {
            assert!(
                self.stderr.contains(fragment),
                "{fragment:?} is not in the error output of\n{self}"
            );
        }
        self
    }

    /// Events with `"event": kind`.
    pub fn events_of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["event"] == kind)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\n{}\n{}{}", self.command, self.status, self.stdout, self.stderr)
    }
}

/// One way of calling essrun.
#[derive(Clone, Debug)]
pub struct Essrun {
    binary: PathBuf,
    dir: PathBuf,
    env: BTreeMap<String, String>,
    run_as: Option<(u32, u32)>,
}

/// What is done to it while it runs.
type Act<'a> = &'a mut dyn FnMut(&mut Child);

impl Essrun {
    /// Runs in `dir`.
    #[track_caller]
    pub fn in_dir(dir: &Path) -> Essrun {
        Essrun {
            binary: binary(),
            dir: dir.to_owned(),
            env: BTreeMap::new(),
            run_as: None,
        }
    }

    /// Another copy of the binary, run as this user and group.
    pub fn as_user(mut self, binary: PathBuf, run_as: (u32, u32)) -> Essrun {
        self.binary = binary;
        self.run_as = Some(run_as);
        self
    }

    pub fn env(mut self, key: &str, value: impl Into<String>) -> Essrun {
        self.env.insert(key.to_owned(), value.into());
        self
    }

    /// The command line, for other ways of running it (a profiler, `time`).
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if name.starts_with("ESSRUN_") || name.starts_with("PG") {
                command.env_remove(&key);
            }
        }
        // What a host remembers of repositories is the test's own, like all else.
        command.env("ESSRUN_STATE", self.dir.join(".state"));
        command.env("NO_COLOR", "1").envs(&self.env);
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        self.finish(args, None)
    }

    /// With `--json`; stdout is one JSON object a line, which is asserted.
    #[track_caller]
    pub fn run_json(&self, args: &[&str]) -> Outcome {
        let args: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        let outcome = self.finish(&args, None);
        for line in outcome.stdout.lines() {
            assert!(
                serde_json::from_str::<Value>(line).is_ok(),
                "not a JSON line: {line:?} in\n{outcome}"
            );
        }
        outcome
    }

    /// Runs with `--json` and sends SIGKILL at the given moment, unless it ended before.
    pub fn run_and_kill(&self, args: &[&str], kill: Kill) -> Outcome {
        let args: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        self.finish(&args, Some((kill, &mut slay)))
    }

    /// Runs with `--json` to its end, and does something at the given moment, unless it ended before.
    pub fn run_and(&self, args: &[&str], at: Kill, mut act: impl FnMut()) -> Outcome {
        let args: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        self.finish(&args, Some((at, &mut |_| act())))
    }

    fn finish(&self, args: &[&str], at: Option<(Kill, Act<'_>)>) -> Outcome {
        let begun = Instant::now();
        let mut child = self
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.binary.display()));
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            // The pipe ends when the process does; a torn last line is still worth showing.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let stdout = child.stdout.take().expect("stdout is piped");
        let (heard, hearing) = std::sync::mpsc::channel::<String>();
        let output = std::thread::spawn(move || {
            let mut lines = Vec::new();
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).into_owned();
                line.clear();
                // Nobody listens when no kill is asked for.
                let _ = heard.send(text.clone());
                lines.push(text);
            }
            lines
        });
        if let Some((at, act)) = at {
            // It may end before it has printed so many, or such a one.
            let come = match at {
                Kill::After(delay) => {
                    std::thread::sleep(delay.saturating_sub(begun.elapsed()));
                    true
                }
                Kill::AtEvent(count) => hearing.iter().take(count).count() == count,
                Kill::AtKind(kind) => hearing.iter().any(|line| has(&line, "event", kind)),
                Kill::AtPhase(phase) => hearing.iter().any(|line| has(&line, "phase", phase)),
            };
            if come {
                act(&mut child);
            }
        }
        let status = child.wait().expect("waiting for essrun");
        let took = begun.elapsed();
        let lines = output.join().expect("reading stdout");
        let stderr = errors.join().expect("reading stderr");
        Outcome {
            command: format!("essrun {}", args.join(" ")),
            status,
            events: lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
            stdout: lines.concat(),
            stderr,
            begun,
            took,
        }
    }
}

fn has(line: &str, field: &str, value: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|event| event[field] == value)
}

fn slay(child: &mut Child) {
    // It may have ended by itself: then there is nothing to kill.
    let _ = child.kill();
}

/// Moments spread evenly over a run like `sample`.
#[track_caller]
pub fn moments(sample: &Outcome, of_time: u32, of_events: usize) -> Vec<Kill> {
    let by_time = (0..of_time).map(|n| Kill::After(sample.took.mul_f64(f64::from(n) / f64::from(of_time))));
    let events = sample.events.len();
    assert!(events >= of_events, "only {events} events to stop at: {sample}");
    let by_event = (0..of_events).map(|n| Kill::AtEvent(1 + n * events / of_events));
    by_time.chain(by_event).collect()
}
