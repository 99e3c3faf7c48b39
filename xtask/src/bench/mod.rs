//! (room under construction)
use crate::shell::{Problem, Result};
#[derive(clap::Subcommand)]
pub enum Bench {
    /// Backup against `pg_dump | zstd | age`
    Backup,
}
pub fn run(_what: Bench) -> Result {
    crate::setup::run(crate::setup::PEERS)?;
    Err(Problem::Other("not there yet".into()))
}
