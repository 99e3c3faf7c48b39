//! The arguments. Every verb takes the pipeline file first; `essrun pipeline.toml` is `essrun backup pipeline.toml`.

pub mod plugin;

use clap::{Args, Parser, Subcommand, ValueEnum};
use essrun_pipeline::Exit;
use essrun_pipeline::policy::Question;
use essrun_pipeline::policy::input::Verb as Asking;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Parser)]
#[command(
    name = "essrun",
    version,
    about = "Backs up and restores an Element Server Suite",
    after_help = Exit::help(),
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Args, Clone)]
pub struct Global {
    /// Print one JSON object per line on stdout instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes; errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// More of what components and rooms log (-v: info, -vv: debug)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Take a backup (the verb may be left out: essrun pipeline.toml)
    Backup(BackupArgs),
    /// Put a backup back: into fresh databases and staged files, verified, then swapped in
    Restore(RestoreArgs),
    /// Restore into scratch databases and folders, verify, and drop everything again
    Drill(DrillArgs),
    /// Print what a backup (default), restore or disaster recovery would do, and why
    Plan(PlanArgs),
    /// List the backups in the repository
    List(ReadArgs),
    /// Show one backup: what is in it, facts, notes, what was left out, how consistent it is
    Show(ShowArgs),
    /// What changed between two backups: components, artifacts, facts, files
    Diff(DiffArgs),
    /// How old the newest backups are, the last drill, what is missing; fails by `[status]` of the pipeline
    Status(ReadArgs),
    /// Write one artifact out: SQL, COPY text or files
    Extract(ExtractArgs),
    /// Check the repository: every object against the signed lists, or with an identity read everything back
    Check(CheckArgs),
    /// Check the pipeline file, components, grants, servers and store, without taking a backup
    Validate(PipelineArgs),
    /// Which backups [retention] keeps, and why; --confirm forgets the others
    Forget(ForgetArgs),
    /// Free the space of what no backup needs; --confirm does it
    Prune(PruneArgs),
    /// Write partly used packs anew, without what nothing needs; --confirm does it
    Repack(RepackArgs),
    /// Encrypt what lies in the repository to the recipients of today; --confirm does it
    Rekey(RekeyArgs),
    /// Do what can be done about damage; --confirm does it
    Repair(RepairArgs),
    /// Replace the writer key by a new one that goes on where it ends; --confirm does it
    Rotate(RotateArgs),
    /// Let another host's writer key into the repository; --confirm does it
    Authorize(AuthorizeArgs),
    /// A backup leaked: what it gives away, what to do in order, and (--apply) what essrun can do itself
    Incident(IncidentArgs),
    /// Try a policy out, ask it why, or overrule it about a suspect backup
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Components from elsewhere: make, look at, try, pin
    Plugin(plugin::PluginArgs),
    /// Create the repository named in the pipeline file
    Init(PipelineArgs),
    /// Make keys
    Keygen(KeygenArgs),
}

#[derive(Args)]
pub struct PipelineArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
}

#[derive(Args)]
pub struct ReadArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// File with an age identity (needed only where the writer key is not; may be given several times)
    #[arg(long, short = 'i', value_name = "FILE", env = "ESSRUN_IDENTITY")]
    pub identity: Vec<PathBuf>,
}

#[derive(Args)]
pub struct BackupArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Only print what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Read every file, also those that look unchanged
    #[arg(long)]
    pub rescan: bool,
    /// Only these components
    #[arg(long = "only", value_name = "COMPONENT")]
    pub only: Vec<String>,
}

#[derive(Args, Clone)]
pub struct WhichBackup {
    /// Id of the backup, a unique beginning of it, or `latest`
    #[arg(long, default_value = "latest")]
    pub backup: String,
    /// File with an age identity that opens the backup (may be given several times)
    #[arg(long, short = 'i', value_name = "FILE", env = "ESSRUN_IDENTITY")]
    pub identity: Vec<PathBuf>,
}

/// What of a backup is restored, where to, and what that may do: the same for a restore and for the plan of one.
#[derive(Args)]
pub struct RestoreChoice {
    #[command(flatten)]
    pub which: WhichBackup,
    /// Only these components, or of one only what it has under a label (may be given several times)
    #[arg(long = "only", value_name = "COMPONENT[/LABEL]")]
    pub only: Vec<String>,
    /// Replace databases and volumes that are there; the old ones are kept under dated names
    #[arg(long)]
    pub replace: bool,
    /// End other sessions on a database that is to be replaced
    #[arg(long, requires = "replace")]
    pub disconnect: bool,
    /// Put a component's database or volume elsewhere: COMPONENT/LABEL=DATABASE-NAME-OR-PATH
    #[arg(long = "to", value_name = "COMPONENT/LABEL=TARGET")]
    pub to: Vec<String>,
    /// Restore although extensions have other versions on this server
    #[arg(long)]
    pub allow_drift: bool,
    /// Restore although it does not seem to fit on the file system it goes to
    #[arg(long)]
    pub force_space: bool,
    /// Keep what was restored for inspection when verification fails
    #[arg(long)]
    pub keep_failed: bool,
    /// Go on with a restore that was stopped: what it did is read back and kept where it is as the backup has it
    #[arg(long)]
    pub resume: bool,
}

#[derive(Args)]
pub struct RestoreArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub choice: RestoreChoice,
    /// Only print what would be done, as `plan --restore` does
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before changing anything; without a terminal nobody can be asked
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Args)]
pub struct DrillArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub which: WhichBackup,
    /// Only these components
    #[arg(long = "only", value_name = "COMPONENT")]
    pub only: Vec<String>,
    /// Folder for restored files, on a file system with room for them
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Go ahead although it does not seem to fit on the file system it goes to
    #[arg(long)]
    pub force_space: bool,
}

#[derive(Args)]
pub struct PlanArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// What a restore would do, and what stands in its way: `restore --dry-run`
    #[arg(long, conflicts_with = "disaster")]
    pub restore: bool,
    /// A runbook for the day everything is lost
    #[arg(long)]
    pub disaster: bool,
    /// Write the runbook as a file to print (.md or .html)
    #[arg(long, requires = "disaster", value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub choice: RestoreChoice,
}

#[derive(Args)]
pub struct ShowArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub which: WhichBackup,
    /// Also list every artifact
    #[arg(long)]
    pub artifacts: bool,
}

#[derive(Args)]
pub struct DiffArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The first backup: its id, a unique beginning of it, or `latest`
    pub from: String,
    /// The second one
    #[arg(default_value = "latest")]
    pub to: String,
    /// File with an age identity (needed only where the writer key is not)
    #[arg(long, short = 'i', value_name = "FILE", env = "ESSRUN_IDENTITY")]
    pub identity: Vec<PathBuf>,
    /// Only these components
    #[arg(long = "only", value_name = "COMPONENT")]
    pub only: Vec<String>,
    /// How many files to name of those added, removed and changed; all are counted
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub files: usize,
}

#[derive(Args)]
pub struct ExtractArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The artifact, as `essrun show --artifacts` names it
    pub artifact: String,
    #[command(flatten)]
    pub which: WhichBackup,
    /// Where to: a file (default: stdout), or for a volume a new directory
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// Also what a component had finished before it failed: whole by itself, but not what belongs with it
    #[arg(long)]
    pub incomplete: bool,
    /// Only this path of a volume
    #[arg(long)]
    pub path: Option<String>,
}

#[derive(Args)]
pub struct CheckArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Read everything back with this identity
    #[arg(long, short = 'i', value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Of everything, read back only one part: `1/7` for the first of seven
    #[arg(long, requires = "identity", value_name = "K/N")]
    pub subset: Option<String>,
}

#[derive(Args)]
pub struct ForgetArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Really forget; without it nothing is changed
    #[arg(long)]
    pub confirm: bool,
    /// Bring a forgotten backup back: its id or a unique beginning of it
    #[arg(long, value_name = "BACKUP", conflicts_with = "confirm")]
    pub undo: Option<String>,
    /// Decide on the backups of this writer instead of one's own, as when its key was lost (`list --json` shows writers)
    #[arg(long, value_name = "WRITER", conflicts_with = "undo")]
    pub of: Option<String>,
    /// File with an age identity: what is known of another writer's backups is read with it
    #[arg(long, short = 'i', value_name = "FILE", env = "ESSRUN_IDENTITY")]
    pub identity: Vec<PathBuf>,
    /// With --undo: the grace time that `prune` is run with
    #[arg(long, default_value = "7d", requires = "undo")]
    pub grace: String,
}

#[derive(Args)]
pub struct PruneArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// How long what is not needed stays, so that running backups and second thoughts lose nothing (7d, 36h)
    #[arg(long, default_value = "7d")]
    pub grace: String,
    /// Really mark and delete; without it nothing is changed
    #[arg(long)]
    pub confirm: bool,
}

#[derive(Args)]
pub struct RepackArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// File with an age identity: packs are read with it (run this where the identity is, with a copy of the writer key)
    #[arg(long, short = 'i', value_name = "FILE", required = true, env = "ESSRUN_IDENTITY")]
    pub identity: Vec<PathBuf>,
    /// Packs of which at least this many percent are needed by no backup
    #[arg(long, default_value_t = 20, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub unused: u8,
    /// Really write; without it nothing is changed
    #[arg(long)]
    pub confirm: bool,
}

#[derive(Args)]
pub struct RekeyArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// File with an identity that opens what is there now
    #[arg(long, short = 'i', value_name = "FILE", required = true, env = "ESSRUN_IDENTITY")]
    pub identity: Vec<PathBuf>,
    /// Really write; without it nothing is changed
    #[arg(long)]
    pub confirm: bool,
}

#[derive(Args)]
pub struct RepairArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// File with an age identity; more can be repaired with it
    #[arg(long, short = 'i', value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Really repair; without it nothing is changed
    #[arg(long)]
    pub confirm: bool,
}

#[derive(Args)]
pub struct AuthorizeArgs {
    /// The pipeline file of a host whose key the repository knows
    pub pipeline: PathBuf,
    /// The public half of the other key, as `essrun keygen writer` printed it: essrun-writer-…
    pub writer: String,
    /// Really let it in; without it nothing is changed
    #[arg(long)]
    pub confirm: bool,
}

#[derive(Args)]
pub struct RotateArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Where to write the new key
    #[arg(long, short)]
    pub output: PathBuf,
    /// Really rotate; without it nothing is changed
    #[arg(long)]
    pub confirm: bool,
}

#[derive(Args)]
pub struct IncidentArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Id of the leaked backup, a unique beginning of it, or `latest`
    pub backup: String,
    /// File with an age identity (needed only where the writer key is not)
    #[arg(long, short = 'i', value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Only these components
    #[arg(long = "only", value_name = "COMPONENT")]
    pub only: Vec<String>,
    /// Run the statements in the live databases, each after it was shown and confirmed
    #[arg(long)]
    pub apply: bool,
    /// With --apply: do not ask for each
    #[arg(long, short, requires = "apply")]
    pub yes: bool,
}

#[derive(Subcommand)]
pub enum PolicyVerb {
    /// Run the tests of a policy: rules test_… and pairs of .input.json and .expected.json
    Test(PolicyTestArgs),
    /// Show what the policy is told and what it answers; nothing is changed
    Explain(PolicyExplainArgs),
    /// Say that a suspect backup is as it should be; signed and kept beside it
    Accept(PolicyAcceptArgs),
}

#[derive(Args)]
pub struct PolicyTestArgs {
    /// A pipeline file with [policy], or a directory of .rego files
    pub target: PathBuf,
}

#[derive(Args)]
pub struct PolicyExplainArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// About this backup: its id, a unique beginning of it, or `latest`; without it: about now
    pub backup: Option<String>,
    /// Only this question
    #[arg(long, value_enum)]
    pub question: Option<QuestionArg>,
    /// File with an age identity: needed to plan a restore, which may-restore is about
    #[arg(long, short = 'i', value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// As if the restore were to replace what is there
    #[arg(long)]
    pub replace: bool,
    /// As which verb may-restore is asked
    #[arg(
        long = "as",
        value_enum,
        value_name = "VERB",
        default_value = "restore",
        conflicts_with = "question"
    )]
    pub verb: AskingVerb,
    /// What `extract` would hand out, as `essrun show --artifacts` names it
    #[arg(long, required_if_eq("verb", "extract"))]
    pub artifact: Option<String>,
}

/// Verbs that ask may-restore and whose plan can be made without them.
#[derive(Clone, Copy, ValueEnum)]
pub enum AskingVerb {
    Restore,
    Extract,
    Incident,
}

impl From<AskingVerb> for Asking {
    fn from(verb: AskingVerb) -> Asking {
        match verb {
            AskingVerb::Restore => Asking::Restore,
            AskingVerb::Extract => Asking::Extract,
            AskingVerb::Incident => Asking::Incident,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum QuestionArg {
    MayRun,
    JudgeResult,
    Retention,
    MayRestore,
}

impl From<QuestionArg> for Question {
    fn from(question: QuestionArg) -> Question {
        match question {
            QuestionArg::MayRun => Question::MayRun,
            QuestionArg::JudgeResult => Question::JudgeResult,
            QuestionArg::Retention => Question::Retention,
            QuestionArg::MayRestore => Question::MayRestore,
        }
    }
}

#[derive(Args)]
pub struct PolicyAcceptArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Id of the backup, a unique beginning of it, or `latest`
    pub backup: String,
    /// Why it is as it should be
    #[arg(long)]
    pub reason: String,
}

#[derive(Args)]
pub struct KeygenArgs {
    #[command(subcommand)]
    pub what: Keygen,
}

#[derive(Subcommand)]
pub enum Keygen {
    /// The identity that opens backups; keep it away from the backup host. Prints the recipient.
    Identity {
        /// Where to write it (refused when the file exists)
        #[arg(long, short)]
        output: PathBuf,
    },
    /// The writer key the backup host signs and deduplicates with; it opens no backup
    Writer {
        /// Where to write it (refused when the file exists)
        #[arg(long, short)]
        output: PathBuf,
    },
}

/// Puts `backup` before a first argument that is a file rather than a verb.
pub fn with_default_verb(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let first = args
        .iter()
        .skip(1)
        .position(|a| !a.to_string_lossy().starts_with('-'))
        .map(|i| i + 1);
    if let Some(index) = first
        && let Some(text) = args.get(index).map(|a| a.to_string_lossy().into_owned())
        && (text.ends_with(".toml") || text.contains('/'))
    {
        args.insert(index, OsString::from("backup"));
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn given(args: &[&str]) -> Vec<String> {
        with_default_verb(args.iter().map(OsString::from))
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_file_alone_is_a_backup() {
        assert_eq!(given(&["essrun", "p.toml"]), ["essrun", "backup", "p.toml"]);
        assert_eq!(
            given(&["essrun", "--json", "/etc/p"]),
            ["essrun", "--json", "backup", "/etc/p"]
        );
        assert_eq!(given(&["essrun", "list", "p.toml"]), ["essrun", "list", "p.toml"]);
        assert_eq!(given(&["essrun", "--help"]), ["essrun", "--help"]);
    }
}
