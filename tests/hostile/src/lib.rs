//! A component that does what its setting `deed` says, none of it good.
//!
//! The sandbox's other hostile guests are written in wasm's text form. This one is for the misdeeds that need Rust's
//! standard library, because what matters there is what std itself does: panic messages, exit, sleep, clocks,
//! randomness, threads. With the feature `files` or `sockets` it also uses what the sandbox never links.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used)]

mod plans;
mod restores;

use essrun_guest::prelude::*;
use essrun_guest::{BackupPlan, BackupView, RestorePlan, db, settings};

struct Hostile;

#[derive(serde::Deserialize)]
struct Settings {
    deed: String,
}

impl Component for Hostile {
    fn describe() -> Description {
        // It lies, too: nothing it takes is secret, it says.
        Description::new("Hostile", env!("CARGO_PKG_VERSION"), Tier::Feature)
            .need(Need::database("main", "to do harm with").optional())
            .need(Need::volume("files", "likewise").optional())
            .setting("deed", "\"behave\"", "what to do")
            .class(ArtifactClass::new("*", Sensitivity::Internal, "nothing at all"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let Settings { deed } = settings::get()?;
        match deed.as_str() {
            "behave" => {}
            "panic" => panic!("the \u{1b}[31mreason\u{7} nobody\nshould miss"),
            "index" => {
                let nothing: Vec<u8> = Vec::new();
                return Err(Error::Other(format!("{}", nothing[deed.len()])));
            }
            "exit" => std::process::exit(7),
            "abort" => std::process::abort(),
            "sleep" => std::thread::sleep(std::time::Duration::from_secs(100_000)),
            "spin" => while std::time::Instant::now().elapsed().as_secs() < 100_000 {},
            "thread" => {
                // There are none: std says so, and the host notices nothing.
                let spawned = std::thread::Builder::new().spawn(|| ());
                return Err(Error::Other(format!("spawned: {}", spawned.is_ok())));
            }
            "allocate" => {
                let mut all = Vec::new();
                loop {
                    all.push(vec![1u8; 1 << 20]);
                    std::hint::black_box(&all);
                }
            }
            "recurse" => return Err(Error::Other(depth(1).to_string())),
            "environment" => {
                let seen = format!(
                    "arguments {:?}, variables {:?}, directory {:?}, stdin {:?}",
                    std::env::args().collect::<Vec<_>>(),
                    std::env::vars().collect::<Vec<_>>(),
                    std::env::current_dir().ok(),
                    std::io::read_to_string(std::io::stdin()).ok(),
                );
                return Err(Error::Other(seen));
            }
            "shout" => loop {
                println!("{}", "out".repeat(1000));
                eprintln!("{}", "err".repeat(1000));
            },
            "all-rows" => {
                // The guest keeps asking; the host's limit comes back as an error it can show.
                let rows = db::query("main", "SELECT 1", &[])?.all()?;
                return Err(Error::Other(format!("{} rows", rows.len())));
            }
            "hash" => {
                let set: std::collections::HashSet<u32> = (0..1000).collect();
                return Err(Error::Other(format!("{}", set.len())));
            }
            "log-flood" => loop {
                log::info("\u{1b}[2J flood");
            },
            other => match plans::plan(other) {
                Some(plan) => return plan,
                None => misdeed(other)?,
            },
        }
        Ok(BackupPlan::new())
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        let Settings { deed } = settings::get()?;
        Ok(match restores::plan(&deed) {
            Some(plan) => plan,
            None => essrun_guest::artifacts_back(&Self::describe(), backup),
        })
    }

    fn verify(_: &BackupView) -> Result<Vec<Finding>, Error> {
        let Settings { deed } = settings::get()?;
        restores::verify(&deed).unwrap_or_else(|| Ok(Vec::new()))
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        let Settings { deed } = settings::get()?;
        Ok(restores::respond(&deed, backup).unwrap_or_default())
    }
}

#[allow(unconditional_recursion)]
fn depth(n: u64) -> u64 {
    std::hint::black_box(n) + depth(n + 1)
}

fn misdeed(deed: &str) -> Result<(), Error> {
    #[cfg(feature = "files")]
    if deed == "files" {
        return Err(Error::Other(format!("{:?}", std::fs::read_to_string("/etc/passwd"))));
    }
    #[cfg(feature = "sockets")]
    if deed == "sockets" {
        return Err(Error::Other(format!(
            "{:?}",
            std::net::TcpStream::connect("127.0.0.1:22")
        )));
    }
    Err(Error::Other(format!("no such deed: {deed}")))
}

essrun_guest::export!(Hostile);
