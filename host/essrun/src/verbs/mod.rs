//! One file per verb: arguments in, one call of the pipeline room, an answer out.

mod authorize;
mod backup;
mod check;
mod diff;
mod drill;
mod extract;
mod forget;
mod incident;
mod init;
mod keygen;
mod list;
mod plan;
mod plugin;
mod policy;
mod prune;
mod rekey;
mod repack;
mod repair;
mod restore;
mod rotate;
mod show;
mod status;
mod validate;

use crate::cli::Verb;
use crate::ui::Ui;
use essrun_pipeline::PipelineError;

pub async fn run(verb: Verb, ui: &Ui) -> Result<(), PipelineError> {
    match verb {
        Verb::Backup(args) => backup::run(args, ui).await,
        Verb::Restore(args) => restore::run(args, ui).await,
        Verb::Drill(args) => drill::run(args, ui).await,
        Verb::Plan(args) => plan::run(args, ui).await,
        Verb::List(args) => list::run(args, ui).await,
        Verb::Show(args) => show::run(args, ui).await,
        Verb::Diff(args) => diff::run(args, ui).await,
        Verb::Status(args) => status::run(args, ui).await,
        Verb::Extract(args) => extract::run(args, ui).await,
        Verb::Check(args) => check::run(args, ui).await,
        Verb::Validate(args) => validate::run(args, ui).await,
        Verb::Forget(args) => forget::run(args, ui).await,
        Verb::Prune(args) => prune::run(args, ui).await,
        Verb::Repack(args) => repack::run(args, ui).await,
        Verb::Rekey(args) => rekey::run(args, ui).await,
        Verb::Repair(args) => repair::run(args, ui).await,
        Verb::Rotate(args) => rotate::run(args, ui).await,
        Verb::Authorize(args) => authorize::run(args, ui).await,
        Verb::Incident(args) => incident::run(args, ui).await,
        Verb::Policy(verb) => policy::run(verb, ui).await,
        Verb::Plugin(args) => plugin::run(args, ui).await,
        Verb::Init(args) => init::run(args, ui).await,
        Verb::Keygen(args) => keygen::run(args, ui),
    }
}

/// Seconds since 1970 as UTC text.
fn utc(unix_seconds: i64) -> String {
    essrun_pipeline::time::utc(unix_seconds)
}
