//! The arguments of `essrun plugin …`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Args)]
pub struct PluginArgs {
    #[command(subcommand)]
    pub what: Plugin,
}

#[derive(Subcommand)]
pub enum Plugin {
    /// Make a crate to start a plugin from, in Rust, with its tests
    New(NewArgs),
    /// What a plugin's file is, imports, exports and asks for; runs nothing of it but its description
    Inspect(InspectArgs),
    /// Run a plugin in a described world, without a server: print its plans and findings, or compare them
    Test(TestArgs),
    /// Write the hashes of plugins into the pipeline file
    Pin(PinArgs),
}

#[derive(Args)]
pub struct InspectArgs {
    /// The plugin's .wasm file
    pub plugin: PathBuf,
    /// Allow what a plugin with a whole language runtime costs (Python, JavaScript)
    #[arg(long)]
    pub large: bool,
}

#[derive(Args)]
pub struct NewArgs {
    /// Its name: the folder that is made
    pub name: String,
    /// Where the guest SDK is: the folder guest-sdk of essrun's source, or a git repository that holds it
    #[arg(long, value_name = "PATH-OR-GIT-URL")]
    pub sdk: String,
}

#[derive(Args)]
pub struct TestArgs {
    /// The plugin's .wasm file
    pub plugin: PathBuf,
    /// The described world, .toml or .json (docs/PLUGINS.md)
    pub world: PathBuf,
    /// Compare with the answers kept in this file
    #[arg(long, value_name = "FILE")]
    pub expect: Option<PathBuf>,
    /// Keep the answers in this file
    #[arg(long, value_name = "FILE", conflicts_with = "expect")]
    pub record: Option<PathBuf>,
}

#[derive(Args)]
pub struct PinArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// Only this component
    pub component: Option<String>,
    /// Only the policy, where it is a plugin
    #[arg(long, conflicts_with = "component")]
    pub policy: bool,
    /// Replace hashes that are there
    #[arg(long)]
    pub confirm: bool,
}
