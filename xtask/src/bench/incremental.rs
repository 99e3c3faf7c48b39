//! A day later: how little is stored again, how fast, with how much memory, beside stock restic and borg.
//!
//! Three parts, each against its aim. *Tables*: a Synapse-shaped database, then a day of it. *Media*: many small files,
//! unchanged and then with one in a hundred new. *Index*: a host that knows ten million chunks; its local index is
//! filled directly and its packs are sparse files, because what counts there is only that memory stays bounded.
//!
//! The peers get the same bytes their users give them: `pg_dump` through a pipe, and the folder itself. Both encrypt and
//! compress with their own defaults (borg: zstd,3).

use super::database::World;
use super::measure::{self, Measured, median};
use super::{ratio, size};
use crate::shell::{self, Problem, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args, Clone, Copy)]
pub struct Options {
    /// Events in the database; the default makes tables of about 400 MB
    #[arg(long, default_value_t = 120_000)]
    events: u32,
    /// Small files
    #[arg(long, default_value_t = 100_000)]
    files: u32,
    /// Chunks that the host knows already
    #[arg(long, default_value_t = 10_000_000)]
    chunks: u32,
    /// How often the unchanged folder is backed up by each
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only this part
    #[arg(long)]
    only: Option<Part>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Part {
    Tables,
    Media,
    Index,
}

pub fn run(binary: PathBuf, options: Options) -> Result {
    let wanted = |part: Part| options.only.is_none_or(|only| only == part);
    if wanted(Part::Tables) || wanted(Part::Index) {
        let world = World::make(binary.clone(), options.events)?;
        if wanted(Part::Tables) {
            tables(&world)?;
        }
        if wanted(Part::Index) {
            many_chunks(&world, options.chunks)?;
        }
    }
    if wanted(Part::Media) {
        media(binary, options)?;
    }
    Ok(())
}

fn io(what: &Path) -> impl Fn(std::io::Error) -> Problem + '_ {
    move |e| Problem::Other(format!("{}: {e}", what.display()))
}

/// The other tools, their repositories below one folder.
struct Peers {
    root: PathBuf,
}

const PEERS: [&str; 2] = ["restic", "borg"];

impl Peers {
    fn make(root: PathBuf) -> Result<Peers> {
        std::fs::create_dir_all(&root).map_err(io(&root))?;
        let peers = Peers { root };
        shell::quiet(peers.with_env(Command::new("restic").args(["init", "-q"])))?;
        shell::quiet(peers.with_env(Command::new("borg").args(["init", "-e", "repokey-blake2"])))?;
        Ok(peers)
    }

    fn repository(&self, peer: &str) -> PathBuf {
        self.root.join(peer)
    }

    fn with_env<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("RESTIC_REPOSITORY", self.repository("restic"))
            .env("RESTIC_PASSWORD", "a password")
            .env("RESTIC_CACHE_DIR", self.root.join("restic-cache"))
            .env("RESTIC_PROGRESS_FPS", "0.1")
            .env("BORG_REPO", self.repository("borg"))
            .env("BORG_PASSPHRASE", "a password")
            .env("BORG_BASE_DIR", self.root.join("borg-base"))
    }

    /// Takes what a command prints.
    fn piped(&self, peer: &str, dump: &str) -> Command {
        let takes = match peer {
            "restic" => "restic backup -q --stdin --stdin-filename dump.sql",
            _ => "borg create --compression zstd,3 ::{now:%s%f} -",
        };
        let mut command = Command::new("bash");
        command.args(["-c", &format!("set -euo pipefail; {dump} | {takes}")]);
        self.with_env(&mut command);
        command
    }

    fn folder(&self, peer: &str, folder: &Path) -> Command {
        let mut command = match peer {
            "restic" => Command::new("restic"),
            _ => Command::new("borg"),
        };
        match peer {
            "restic" => command.args(["backup", "-q"]),
            _ => command.args(["create", "--compression", "zstd,3", "::{now:%s%f}"]),
        };
        command.arg(folder);
        self.with_env(&mut command);
        command
    }
}

/// A run, and what it added to its repository.
struct Added {
    run: Measured,
    bytes: u64,
}

fn add(command: &mut Command, repository: &Path) -> Result<Added> {
    let before = size(&[repository.to_owned()])?;
    let run = measure::run(command, None)?;
    let bytes = size(&[repository.to_owned()])?.saturating_sub(before);
    Ok(Added { run, bytes })
}

fn line(what: &str, who: &str, added: &Added, of: u64) {
    println!(
        "  {what:<12} {who:<7} {}, stored {:8.2} MB ({:.1} % of its first)",
        added.run,
        added.bytes as f64 / 1e6,
        100.0 * ratio(added.bytes, of)
    );
}

fn tables(world: &World) -> Result {
    println!("\na day of tables: 1 % new rows, 0.2 % written again");
    let peers = Peers::make(world.folder("peers"))?;
    let dump = format!(
        "{} --exclude-table-data e2e_one_time_keys_json synapse",
        world.program("pg_dump").display()
    );
    let zstd = shell::quiet(
        Command::new("bash")
            .args([
                "-c",
                &format!("set -euo pipefail; {dump} | tee >(wc -c >&2) | zstd -q -3 -T2 | wc -c"),
            ])
            .envs(world.libpq()),
    )?;
    let number = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().parse::<u64>().unwrap_or(0);
    let (whole, plain) = (number(&zstd.stdout), number(&zstd.stderr));
    println!(
        "  pg_dump {:.1} MB, as one stream through zstd -3 {:.1} MB",
        plain as f64 / 1e6,
        whole as f64 / 1e6
    );

    world.fresh_repository(true)?;
    let mut first = Vec::new();
    let own = add(&mut world.essrun(&["--json", "pipeline.toml"]), &world.repository())?;
    line("first", "essrun", &own, own.bytes);
    println!(
        "  first backup against the whole stream: {:.3} (aim ≤ 1.03)",
        ratio(own.bytes, whole)
    );
    first.push(own.bytes);
    for peer in PEERS {
        let added = add(peers.piped(peer, &dump).envs(world.libpq()), &peers.repository(peer))?;
        line("first", peer, &added, added.bytes);
        first.push(added.bytes);
    }
    for day in 1..=2 {
        world.script(&format!("SET bench.day = '{day}';\n{}", include_str!("day.sql")))?;
        let own = add(&mut world.essrun(&["--json", "pipeline.toml"]), &world.repository())?;
        let name = format!("day {day}");
        let of = |n: usize| first.get(n).copied().unwrap_or(0);
        line(&name, "essrun", &own, of(0));
        for (n, peer) in PEERS.iter().enumerate() {
            let added = add(peers.piped(peer, &dump).envs(world.libpq()), &peers.repository(peer))?;
            line(&name, peer, &added, of(n + 1));
        }
        println!(
            "  {name}: essrun stored {:.1} % again (aim ≤ 10), peak memory {} MB (aim < 256)",
            100.0 * ratio(own.bytes, of(0)),
            own.run.peak_memory / 1_000_000
        );
    }
    Ok(())
}

/// The same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// As a media store is laid out: two levels of folders, files that do not compress.
fn fill(root: &Path, files: std::ops::Range<u32>, seed: u64) -> Result {
    let mut numbers = Numbers(seed | 1);
    for n in files {
        let folder = root.join(format!("{:02x}/{:02x}", n % 61, n / 61 % 31));
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        let length = 500 + (numbers.next() % 5000) as usize;
        let file = folder.join(format!("{n:08}"));
        std::fs::write(&file, numbers.bytes(length)).map_err(io(&file))?;
    }
    Ok(())
}

fn media(binary: PathBuf, options: Options) -> Result {
    let dir = tempfile::Builder::new()
        .prefix("essrun-bench-")
        .tempdir()
        .map_err(|e| Problem::Other(format!("a temporary folder: {e}")))?;
    let root = dir.path();
    let folder = root.join("media");
    fill(&folder, 0..options.files, 1)?;
    println!(
        "\n{} small files, {:.1} MB",
        options.files,
        size(std::slice::from_ref(&folder))? as f64 / 1e6
    );
    let peers = Peers::make(root.join("peers"))?;
    let essrun = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .current_dir(root)
            .env("ESSRUN_STATE", root.join(".state"));
        command
    };
    let made = shell::quiet(&mut essrun(&["keygen", "identity", "--output", "identity.txt"]))?;
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    let recipient = said
        .split_whitespace()
        .find(|word| word.starts_with("age1"))
        .unwrap_or_default();
    shell::quiet(&mut essrun(&["keygen", "writer", "--output", "writer.key"]))?;
    let pipeline = format!(
        "version = 1\nname = \"media\"\n\n[repository]\nurl = \"repository\"\nrecipients = [\"{recipient}\"]\n\
         writer-key = \"writer.key\"\ncache = \"cache\"\n\n[components.media]\nuse = \"generic\"\n\
         volumes = {{ files = {{ path = \"{}\" }} }}\n",
        folder.display()
    );
    let file = root.join("pipeline.toml");
    std::fs::write(&file, pipeline).map_err(io(&file))?;
    shell::quiet(&mut essrun(&["init", "pipeline.toml"]))?;

    let mut first = Vec::new();
    let run = |who: &str| match who {
        "essrun" => add(&mut essrun(&["--json", "pipeline.toml"]), &root.join("repository")),
        peer => add(&mut peers.folder(peer, &folder), &peers.repository(peer)),
    };
    let all = ["essrun", "restic", "borg"];
    for who in all {
        let added = run(who)?;
        line("first", who, &added, added.bytes);
        first.push(added.bytes);
    }
    let mut unchanged: Vec<Vec<f64>> = vec![Vec::new(); all.len()];
    for _ in 0..options.rounds {
        for ((who, first), times) in all.iter().zip(&first).zip(&mut unchanged) {
            let added = run(who)?;
            line("unchanged", who, &added, *first);
            times.push(added.run.seconds);
        }
    }
    let medians: Vec<f64> = unchanged.iter().map(|times| median(times.iter().copied())).collect();
    if let [own, restic, borg] = medians.as_slice() {
        println!(
            "  unchanged: {:.2} of the faster peer (aim ≤ 0.5)",
            own / restic.min(*borg)
        );
    }
    fill(&folder, options.files..options.files + options.files / 100, 7)?;
    for (who, first) in all.iter().zip(&first) {
        let added = run(who)?;
        line("1 % new", who, &added, *first);
    }
    Ok(())
}

fn many_chunks(world: &World, chunks: u32) -> Result {
    println!("\na host that knows {chunks} chunks");
    world.fresh_repository(true)?;
    let before = measure::run(&mut world.essrun(&["--json", "pipeline.toml"]), world.server())?;
    println!("  first backup, a small index      {before}");
    let before = measure::run(&mut world.essrun(&["--json", "pipeline.toml"]), world.server())?;
    println!("  unchanged, a small index         {before}");
    super::index::fill(&world.cache(), &world.repository(), chunks)?;
    let unchanged = measure::run(&mut world.essrun(&["--json", "pipeline.toml"]), world.server())?;
    println!("  unchanged, {chunks} chunks    {unchanged}");
    world.script(&format!("SET bench.day = 'index';\n{}", include_str!("day.sql")))?;
    let day = measure::run(&mut world.essrun(&["--json", "pipeline.toml"]), world.server())?;
    println!("  a day later, {chunks} chunks  {day}");
    println!(
        "  peak memory {} MB (aim < 256)",
        unchanged.peak_memory.max(day.peak_memory) / 1_000_000
    );
    Ok(())
}
