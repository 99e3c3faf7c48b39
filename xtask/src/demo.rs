//! The demo: a real Synapse is filled, backed up while people go on writing, lost with all it had, and brought back.
//!
//! Everything is real and thrown away at the end; nothing outside a temporary folder and `.essrun/` is touched. Each
//! claim printed here is checked first: the demo ends with an error where one does not hold.

use crate::setup;
use crate::shell::{self, Problem, Result};
use essrun_testkit::suite::{DATABASE_VARIABLE, Suite};
use essrun_testkit::synapse::{Filled, Writer, fill};
use std::io::IsTerminal;
use std::process::Command;
use std::time::{Duration, Instant};

pub fn run() -> Result {
    setup::run(&[])?;
    let binary = shell::essrun("debug")?;
    // Servers are killed when their owners are dropped, which unwinding does; so failures below may panic.
    std::thread::Builder::new()
        .name("the demo".to_owned())
        .spawn(move || tell(&binary))
        .map_err(|e| Problem::Other(format!("cannot start the demo: {e}")))?
        .join()
        .unwrap_or_else(|_| Err(Problem::Other("the demo failed; the reason is above".to_owned())))
}

fn tell(binary: &std::path::Path) -> Result {
    let begun = Instant::now();
    chapter("A small company runs Synapse on PostgreSQL");
    let suite = Suite::create();
    say(&format!(
        "PostgreSQL on port {}, everything in {}",
        suite.cluster.port(),
        suite.path().display()
    ));
    let server = suite.home.start();
    let client = server.client();
    say(&format!("Synapse answers on {}", suite.home.url()));
    let filled = fill(&client);
    say(&inventory(&filled));
    let before = filled.missing(&client);
    none_missing(&before, "before anything happened")?;

    chapter("Keys, and a pipeline");
    let essrun = Runner { binary, suite: &suite };
    std::fs::create_dir_all(suite.path().join("elsewhere")).map_err(|e| Problem::Other(e.to_string()))?;
    let recipient = essrun.answer(&["keygen", "identity", "--output", "elsewhere/identity.txt"])?;
    let recipient = recipient
        .split_whitespace()
        .find(|word| word.starts_with("age1"))
        .unwrap_or_default()
        .to_owned();
    say("The identity opens backups. A real one would never be on this machine.");
    essrun.show(&["keygen", "writer", "--output", "writer.key"])?;
    let pipeline = suite.pipeline(&recipient);
    std::fs::write(suite.pipeline_file(), &pipeline).map_err(|e| Problem::Other(e.to_string()))?;
    println!("{}", indent(&pipeline));
    essrun.show(&["init", "pipeline.toml"])?;
    essrun.show(&["validate", "pipeline.toml"])?;

    chapter("The backup, while people go on writing");
    let room = &filled
        .rooms
        .first()
        .ok_or_else(|| Problem::Other("no room was made".to_owned()))?
        .id;
    let writer = Writer::start(client.clone(), filled.token(0), room);
    writer.wait_for(10);
    let taken = Instant::now();
    essrun.show(&["pipeline.toml"])?;
    let so_far = writer.entries_so_far();
    writer.wait_for(so_far + 3);
    let written = writer.stop();
    let promised = written.before(taken);
    say(&format!(
        "{promised} messages were acknowledged before it began, {} while it ran and after.",
        written.entries.len() - promised
    ));
    essrun.show(&["list", "pipeline.toml"])?;
    essrun.show(&["show", "pipeline.toml"])?;
    essrun.show(&["check", "pipeline.toml"])?;

    chapter("The disaster");
    server.kill();
    suite.destroy();
    say("Synapse was killed; its database is dropped; media, configuration and signing key are deleted.");
    if suite.databases().iter().any(|name| name == "synapse")
        || suite.home.media_store().exists()
        || suite.home.config().exists()
    {
        return Err(Problem::Other("something survived the disaster".to_owned()));
    }

    chapter("The restore");
    essrun.show(&[
        "plan",
        "pipeline.toml",
        "--restore",
        "--identity",
        "elsewhere/identity.txt",
    ])?;
    let restoring = Instant::now();
    essrun.show(&[
        "restore",
        "pipeline.toml",
        "--identity",
        "elsewhere/identity.txt",
        "--yes",
    ])?;
    say(&format!("It took {}.", seconds(restoring.elapsed())));

    chapter("Is it all there?");
    let server = suite.home.start();
    say("Synapse starts on what was restored. Now every thing is asked for again:");
    none_missing(&filled.missing(&client), "after the restore")?;
    say(&format!("all of it: {}", inventory(&filled)));
    let back = written.assert_consistent(&client, taken);
    say(&format!(
        "{back} of the messages written meanwhile, among them all {promised} acknowledged before the backup; no gap."
    ));
    filled.assert_one_time_keys_gone(&client);
    say("no one-time key came back: claims give the fallback keys, clients upload new ones.");
    filled.assert_usable(&client);
    say("a new user registered, joined, wrote, uploaded; old users see it.");
    let marker = client
        .send_text(filled.token(0), room, "we are back")
        .map_err(|e| Problem::Other(e.to_string()))?;

    chapter("A second restore would destroy this: it is refused");
    essrun.refused(&[
        "restore",
        "pipeline.toml",
        "--identity",
        "elsewhere/identity.txt",
        "--yes",
    ])?;
    client
        .event(filled.token(0), room, &marker)
        .map_err(|e| Problem::Other(format!("the last message is gone: {e}")))?;
    server.stop();
    println!(
        "\n{} The demo took {}.",
        bold("All came back."),
        seconds(begun.elapsed())
    );
    Ok(())
}

struct Runner<'a> {
    binary: &'a std::path::Path,
    suite: &'a Suite,
}

impl Runner<'_> {
    fn command(&self, args: &[&str]) -> Command {
        println!("\n  {}", bold(&format!("$ essrun {}", args.join(" "))));
        let mut command = Command::new(self.binary);
        command
            .args(args)
            .current_dir(self.suite.path())
            // Throwaway, as all of it: nothing of the demo stays in /var/lib.
            .env("ESSRUN_STATE", self.suite.path().join(".state"))
            .env(DATABASE_VARIABLE, self.suite.database.url());
        command
    }

    /// Shown as it is on a terminal.
    fn show(&self, args: &[&str]) -> Result {
        let status = self.command(args).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Problem::Other(format!("essrun {} ended with {status}", args.join(" ")))),
            Err(e) => Err(Problem::Other(format!("{}: {e}", self.binary.display()))),
        }
    }

    fn answer(&self, args: &[&str]) -> Result<String> {
        let output = shell::quiet(&mut self.command(args))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{}", indent(&text));
        Ok(text)
    }

    fn refused(&self, args: &[&str]) -> Result {
        match self.command(args).status() {
            Ok(status) if status.code() == Some(4) => Ok(()),
            Ok(status) => Err(Problem::Other(format!(
                "it should have been refused (exit code 4), but ended with {status}"
            ))),
            Err(e) => Err(Problem::Other(format!("{}: {e}", self.binary.display()))),
        }
    }
}

fn none_missing(problems: &[String], when: &str) -> Result {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Problem::Other(format!(
        "{} thing(s) are missing or different {when}:\n{}",
        problems.len(),
        problems.join("\n")
    )))
}

fn inventory(filled: &Filled) -> String {
    format!(
        "{} users with their logins and tokens, {} rooms, {} messages in awkward scripts and sizes (some edited, some redacted), \
         {} media, {} key backups, {} undelivered room keys",
        filled.accounts.len(),
        filled.rooms.len(),
        filled.messages.len(),
        filled.media.len(),
        filled.key_backups.len(),
        filled.to_device.len()
    )
}

fn chapter(title: &str) {
    println!("\n{}", bold(&format!("══ {title}")));
}

fn say(text: &str) {
    println!("  {text}");
}

fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() {
        format!("\u{1b}[1m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("      {line}\n")).collect()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
