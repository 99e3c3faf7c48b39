//! Definitions, from `pg_dump` at our snapshot.
//!
//! `pg_dump` knows every corner of the catalog and keeps knowing it; we do not compete. It must be at least as new as
//! the server, or it would not know the server's newer corners. Its sections are asked for without `--schema-only`,
//! because only then is the refreshing of materialized views among them, in the order of their dependencies.

use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::snapshot::Snapshot;
use crate::sqltext;
use futures_util::future::join_all;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::OnceCell;

/// Definitions longer than this are not a database's but somebody's attack on our memory.
const MOST: u64 = 128 << 20;

/// A `pg_dump` that fits, and its version as it says it.
#[derive(Debug, Clone)]
pub(super) struct PgDump {
    path: PathBuf,
    pub version: String,
}

/// Finds the oldest `pg_dump` that is not older than the server.
pub(super) async fn find(server_version: u32) -> Result<PgDump> {
    let wanted = server_version / 10_000;
    let found = INSTALLED.get_or_init(installed).await;
    let newest = found.last().map(|(_, p)| p.version.clone());
    found
        .iter()
        .find(|(major, _)| *major >= wanted)
        .map(|(_, p)| p.clone())
        .ok_or_else(|| Error::Child {
            program: "pg_dump".to_owned(),
            why: match newest {
                Some(newest) => format!("the newest here is {newest}, and the server is version {wanted}"),
                None => "it is not installed".to_owned(),
            },
            hint: format!("install postgresql-client-{wanted} or newer"),
        })
}

/// Asked for by the plan, the definitions and the dump of every database; what is installed is looked for once a run.
static INSTALLED: OnceCell<Vec<(u32, PgDump)>> = OnceCell::const_new();

/// Every `pg_dump` of this machine with its major version, the oldest first.
async fn installed() -> Vec<(u32, PgDump)> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    if let Ok(dir) = std::fs::read_dir("/usr/lib/postgresql") {
        candidates.extend(dir.flatten().map(|e| e.path().join("bin/pg_dump")));
    }
    if let Some(path) = std::env::var_os("PATH") {
        candidates.extend(std::env::split_paths(&path).map(|dir| dir.join("pg_dump")));
    }
    // `/bin` is `/usr/bin`; a wrapper is called by its own name all the same, since it goes by that.
    let mut seen = HashSet::new();
    candidates.retain(|path| path.is_file() && path.canonicalize().is_ok_and(|real| seen.insert(real)));
    let asked = candidates.into_iter().map(|path| async move {
        let (major, version) = version(&path).await?;
        Some((major, PgDump { path, version }))
    });
    let mut found: Vec<(u32, PgDump)> = join_all(asked).await.into_iter().flatten().collect();
    found.sort_by_key(|(major, _)| *major);
    found
}

async fn version(path: &Path) -> Option<(u32, String)> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, `… 18beta1`
    let number = text
        .split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, number.to_owned()))
}

/// Both sections.
#[derive(Debug, PartialEq)]
pub(super) struct Definitions {
    pub pre: Vec<u8>,
    pub post: Vec<u8>,
}

/// Both sections, at the snapshot. Our locks are held by then: somebody who wants one of the tables for himself waits for
/// us, and `pg_dump`, which locks them as well, would wait behind him for ever. Then the snapshot must be given up, so
/// that he goes first, and taken again.
pub(super) async fn definitions(snapshot: &Snapshot, database: &str, lock_timeout_ms: u64) -> Result<Definitions> {
    let pg_dump = find(snapshot.version()).await?;
    let of = async |name: &str| section(&pg_dump, snapshot.connection(), snapshot, name, lock_timeout_ms).await;
    let in_the_way = |e: Error| match e {
        Error::Child { why, .. }
            if why.contains("LOCK TABLE")
                && (why.contains("statement timeout")
                    || why.contains("lock timeout")
                    || why.contains("does not exist")) =>
        {
            Error::Changed {
                database: database.to_owned(),
            }
        }
        e => e,
    };
    let (pre, post) = tokio::try_join!(of("pre-data"), of("post-data")).map_err(in_the_way)?;
    Ok(Definitions { pre, post })
}

/// One section, `pre-data` or `post-data`, as a script that was read to its end and found whole.
async fn section(
    pg_dump: &PgDump,
    connection: &Connection,
    snapshot: &Snapshot,
    section: &str,
    lock_timeout_ms: u64,
) -> Result<Vec<u8>> {
    let failed = |why: String| Error::Child {
        program: format!("pg_dump --section={section}"),
        why,
        hint: "its own words say what it missed; it needs SELECT on every table".to_owned(),
    };
    let environment = connection.environment()?;
    let mut command = Command::new(&pg_dump.path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .envs(environment.variables.iter().map(|(name, value)| (name, value)))
        .env("LC_ALL", "C")
        .arg(format!("--section={section}"))
        .arg(format!("--snapshot={}", snapshot.id()))
        .arg(format!("--lock-wait-timeout={lock_timeout_ms}"))
        .args([
            "--no-password",
            "--encoding=UTF8",
            "--quote-all-identifiers",
            "--format=plain",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed("it gave no output".to_owned()));
    };
    let (out, err) = tokio::join!(read(out, MOST), read(err, 64 << 10));
    let out = out.map_err(|e| failed(e.to_string()))?;
    if out.len() as u64 > MOST {
        return Err(failed(format!("the definitions are longer than {MOST} bytes")));
    }
    let status = child.wait().await.map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        let said = err.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said = said.lines().filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
        return Err(failed(format!("{status}: {said}")));
    }
    let text = std::str::from_utf8(&out).map_err(|_| failed("its output is not UTF-8".to_owned()))?;
    sqltext::statements(text).map_err(failed)?;
    Ok(steady(text).into_bytes())
}

/// The script with another word in its `\restrict` and `\unrestrict` lines. `pg_dump` makes one up each time, so that
/// nothing it found in the database can end the restriction for a psql that reads the script. Then no two dumps of the
/// same definitions would have the same bytes. Ours is the digest of all the rest, which holds whatever was found: the
/// same for the same definitions, and still nobody can put it into what it is a digest of.
fn steady(script: &str) -> String {
    // Before anything that was found: further down the line could be somebody's text.
    let first = script.lines().find(|line| !line.is_empty() && !line.starts_with("--"));
    let word = first.and_then(|line| line.strip_prefix("\\restrict ")).map(str::trim);
    let Some(word) = word.filter(|word| word.len() >= 16 && script.matches(word).count() == 2) else {
        return script.to_owned();
    };
    let digest = blake3::hash(script.replace(word, "").as_bytes()).to_hex();
    script.replace(word, digest.as_str())
}

async fn read(from: impl AsyncRead + Unpin, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut from = from;
    (&mut from).take(most + 1).read_to_end(&mut bytes).await?;
    // What is over must still be read, or the child would wait for ever.
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_definitions_have_the_same_bytes() {
        let script = |word: &str, rest: &str| {
            format!(
                "--\n-- PostgreSQL database dump\n--\n\n\\restrict {word}\n\nSET a = 0;\n{rest}\n\\unrestrict {word}\n\n"
            )
        };
        let (one, other) = ("IgGyQ0bpsVeKQLTt0123", "ZgGyQ0bpsVeKQLTt0123");
        let steadied = steady(&script(one, "CREATE TABLE a ();"));
        assert_eq!(steadied, steady(&script(other, "CREATE TABLE a ();")));
        assert!(!steadied.contains(one) && steadied.contains("CREATE TABLE a ();"));
        let word = steadied.lines().find_map(|l| l.strip_prefix("\\restrict ")).unwrap();
        assert!(steadied.ends_with(&format!("\n\\unrestrict {word}\n\n")));
        assert!(!steady(&script(one, "CREATE TABLE b ();")).contains(word));
        // Who knows the word of today's definitions and puts it into them changes the word.
        assert_eq!(steady(&script(one, word)).matches(word).count(), 1);
        sqltext::statements(&steadied).unwrap();
    }

    #[test]
    fn a_line_that_pg_dump_did_not_write_is_left() {
        for script in [
            "-- c\n\nSET a = 0;\nSELECT '\n\\restrict CREATEaTABLEaTABLE\n', 'CREATEaTABLEaTABLE';\n",
            "\\restrict short\n\\unrestrict short\n",
            "\\restrict IgGyQ0bpsVeKQLTt0123\nSELECT 1;\n",
            "",
        ] {
            assert_eq!(steady(script), script);
        }
    }
}
