//! What a person or program sees: text and bars, or JSON lines. Control characters from outside never reach a terminal.

use crate::cli::Global;
use essrun_pipeline::body::{Instant, Severity};
use essrun_pipeline::instant::in_words;
use essrun_pipeline::report::{Event, Reporter};
use essrun_pipeline::{PipelineError, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as Moment};

/// How often a JSON progress event is written for one artifact.
const JSON_PROGRESS_EVERY: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub struct Ui {
    inner: Arc<Inner>,
}

struct Inner {
    json: bool,
    quiet: bool,
    bars: MultiProgress,
    work: Mutex<HashMap<String, Work>>,
}

struct Work {
    bar: Option<ProgressBar>,
    bytes: u64,
    items: u64,
    told: Moment,
}

impl Ui {
    pub fn new(global: &Global) -> Ui {
        let shown = !global.json && !global.quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Ui {
            inner: Arc::new(Inner {
                json: global.json,
                quiet: global.quiet,
                bars: MultiProgress::with_draw_target(target),
                work: Mutex::default(),
            }),
        }
    }

    /// For a verb that writes data to standard output: events are text on standard error, also with `--json`.
    pub fn beside_data(&self) -> Ui {
        Ui {
            inner: Arc::new(Inner {
                json: false,
                quiet: self.inner.quiet,
                bars: self.inner.bars.clone(),
                work: Mutex::default(),
            }),
        }
    }

    /// Sends log lines to stderr without tearing the bars. RUST_LOG overrides `-v`.
    pub fn log_to_stderr(&self, verbose: u8) {
        let default = match verbose {
            0 => "warn",
            1 => "info,wasmtime=warn,cranelift=warn",
            _ => "debug,wasmtime=info,cranelift=info,tokio_postgres=info",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
        let bars = self.inner.bars.clone();
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(move || AboveBars { bars: bars.clone() });
        // A second subscriber in one process can only be a test's.
        let _ = if self.inner.json {
            builder.json().try_init()
        } else {
            builder.try_init()
        };
    }

    pub fn json(&self) -> bool {
        self.inner.json
    }

    /// The answer of a verb: one JSON object with `--json`, else the text.
    pub fn answer(&self, json: &impl serde::Serialize, text: impl FnOnce() -> String) {
        if self.inner.json {
            self.json_line(json);
        } else {
            self.out(&text());
        }
    }

    /// Text on stdout, safe for a terminal.
    pub fn out(&self, text: &str) {
        self.inner
            .bars
            .suspend(|| print_all(&mut std::io::stdout().lock(), &clean(text)));
    }

    /// Text on stderr, safe for a terminal; not with `--quiet`.
    pub fn say(&self, text: &str) {
        if !self.inner.quiet {
            self.inner
                .bars
                .suspend(|| print_all(&mut std::io::stderr().lock(), &clean(text)));
        }
    }

    pub fn error(&self, error: &PipelineError) {
        if self.inner.json {
            let exit = error.exit();
            self.json_line(&serde_json::json!({
                "event": "error", "exit": exit, "code": exit.code(), "message": error.to_string(),
            }));
        }
        self.inner
            .bars
            .suspend(|| print_all(&mut std::io::stderr().lock(), &clean(&format!("essrun: {error}"))));
    }

    /// Asks on the terminal; `false` where there is none.
    pub fn confirm(&self, question: &str) -> bool {
        if !std::io::stdin().is_terminal() {
            return false;
        }
        self.inner.bars.suspend(|| {
            eprint!("{} [y/N] ", clean(question));
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
        })
    }

    fn json_line(&self, value: &impl serde::Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => print_all(&mut std::io::stdout().lock(), &line),
            Err(e) => tracing::error!("an event could not be written as JSON: {e}"),
        }
    }

    fn work(&self) -> std::sync::MutexGuard<'_, HashMap<String, Work>> {
        self.inner.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a line; a closed pipe ends the output, not the backup.
fn print_all(out: &mut impl Write, text: &str) {
    let _ = writeln!(out, "{}", text.trim_end_matches('\n'));
    let _ = out.flush();
}

/// Replaces control characters other than newline and tab: names and messages come from outside.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

struct AboveBars {
    bars: MultiProgress,
}

impl Write for AboveBars {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.bars.suspend(|| std::io::stderr().write(buffer))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl Progress for Ui {
    fn started(&self, what: &str, total_bytes: Option<u64>) {
        if self.inner.json {
            self.json_line(&Event::Started {
                artifact: what.to_owned(),
                total_bytes,
            });
        }
        let bar = (!self.inner.json && !self.inner.quiet).then(|| {
            let (bar, template) = match total_bytes {
                Some(total) if total > 0 => (
                    ProgressBar::new(total),
                    "  {msg:40!} {bar:24} {bytes:>11} {bytes_per_sec:>13} {eta:>5}",
                ),
                _ => (
                    ProgressBar::new_spinner(),
                    "  {msg:40!} {spinner} {bytes:>11} {bytes_per_sec:>13}",
                ),
            };
            let bar = self.inner.bars.add(bar);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(clean(what));
            bar
        });
        self.work().insert(
            what.to_owned(),
            Work {
                bar,
                bytes: 0,
                items: 0,
                told: Moment::now(),
            },
        );
    }

    fn advanced(&self, what: &str, bytes: u64, items: u64) {
        let mut work = self.work();
        let Some(w) = work.get_mut(what) else { return };
        w.bytes += bytes;
        w.items += items;
        if let Some(bar) = &w.bar {
            bar.inc(bytes);
        }
        if self.inner.json && w.told.elapsed() >= JSON_PROGRESS_EVERY {
            w.told = Moment::now();
            let line = serde_json::json!({"event": "progress", "artifact": what, "bytes": w.bytes, "items": w.items});
            drop(work);
            self.json_line(&line);
        }
    }

    fn finished(&self, what: &str) {
        if let Some(w) = self.work().remove(what) {
            if let Some(bar) = w.bar {
                bar.finish_and_clear();
                self.inner.bars.remove(&bar);
            }
            if self.inner.json {
                self.json_line(&Event::Finished {
                    artifact: what.to_owned(),
                    bytes: w.bytes,
                    items: w.items,
                });
            }
        }
    }

    fn kept(&self, what: &str, why: &str) {
        // Tables are told one by one to programs; to people their number is.
        if self.inner.json || what.matches('/').count() < 2 {
            self.event(Event::Kept {
                artifact: what.to_owned(),
                why: why.to_owned(),
            });
        }
    }
}

impl Reporter for Ui {
    fn event(&self, event: Event) {
        if self.inner.json {
            self.json_line(&event);
            return;
        }
        match event {
            Event::Component {
                component,
                system,
                version,
            } => self.say(&format!("{component}: {system} {version}")),
            Event::Instant {
                group,
                databases,
                reached,
            } => {
                let instant = Instant {
                    group,
                    databases,
                    reached,
                };
                self.say(&format!("{}: {}", instant.group, in_words(&instant)));
            }
            Event::Step { component, step, why } => match why {
                Some(why) => self.say(&format!("  {component}: {step}\n      why: {why}")),
                None => self.say(&format!("  {component}: {step}")),
            },
            Event::Note {
                component,
                severity,
                text,
            } => match severity {
                Severity::Info => self.say(&format!("  {component}: note: {text}")),
                other => self.say(&format!("  {component}: {other}: {text}")),
            },
            Event::Finding { finding } => {
                let mut line = format!(
                    "  {:<8} {} {}: {}",
                    finding.severity, finding.component, finding.check, finding.message
                );
                if !finding.remedy.is_empty() {
                    line.push_str(&format!("\n           to do: {}", finding.remedy));
                }
                self.say(&line);
            }
            Event::Phase { phase } => self.say(&format!("── {phase}")),
            Event::Committed {
                backup,
                artifacts,
                bytes,
                new_bytes,
                stored_bytes,
            } => self.say(&format!(
                "backup {backup}: {artifacts} artifacts, {} read, {} new, {} stored",
                human(bytes),
                human(new_bytes),
                human(stored_bytes)
            )),
            Event::Swapped { component, label, kept } => match kept {
                Some(kept) => self.say(&format!(
                    "  {component}/{label}: in service; the old one is kept as {kept}"
                )),
                None => self.say(&format!("  {component}/{label}: in service")),
            },
            Event::Policy {
                question,
                outcome,
                reasons,
                failure,
            } => {
                let mut line = format!("policy, {question}: {outcome}");
                for why in reasons.iter().chain(&failure) {
                    line.push_str(&format!("\n  - {why}"));
                }
                self.say(&line);
            }
            Event::Failed { component, problem } => self.say(&format!("  {component}: FAILED: {problem}")),
            Event::Kept { artifact, why } => self.say(&format!("  {artifact}: kept: {why}")),
            Event::Started { .. } | Event::Finished { .. } => {}
        }
    }
}

/// Bytes for a person.
pub fn human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
