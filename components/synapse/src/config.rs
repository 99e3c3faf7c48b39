//! The configuration volume: taken whole, of which two things are understood, the signing key and server_name.
//!
//! Of the signing key only the key id and the public half leave this room: they prove after a restore that the right
//! key is back, and are what `old_signing_keys` needs when it is lost. The seed must never be logged or recorded.

use crate::settings::Settings;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use curve25519_dalek::EdwardsPoint;
use essrun_guest::{matches, prelude::*, volume::EntryKind};
use sha2::{Digest, Sha512};

/// A key file is a line or a few.
const KEY_FILE_BYTES: u32 = 16 * 1024;
const HOMESERVER_FILE_BYTES: u32 = 1 << 20;
/// A configuration directory beyond this is none.
const MOST_ENTRIES: usize = 20_000;

/// A signing key's id and public half.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey {
    /// `ed25519:a_GQJb`
    pub id: String,
    /// Unpadded base64, as Matrix writes keys.
    pub public: String,
}

impl PublicKey {
    /// Early releases of the chart made weak keys, all with the version `0`.
    pub fn vulnerable_generation(&self) -> bool {
        self.id == "ed25519:0"
    }
}

/// What to do about a key of that generation.
pub const VULNERABLE: &str = "if init-secrets of an early ESS Helm release made it, it is weak (CVE-2026-24044): let the chart \
     make `ed25519:1`, revoke this one through old_signing_keys, and run the background job event_resign";

/// Takes the volume and records what is understood of it.
pub fn plan(mut plan: BackupPlan, settings: &Settings) -> Result<BackupPlan, Error> {
    if !volume::granted("config")? {
        return Ok(plan.warn(
            "no `config` is granted: homeserver.yaml, the SIGNING KEY and the bridges' registrations are not in this \
             backup. Without the signing key a restored server breaks federation; grant the directory as `config`, or \
             keep it with the component host-secrets",
        ));
    }
    plan = plan.archive(ArchiveVolume::all("config"));
    let files = find(settings, &settings.signing_key_file)?;
    if files.is_empty() {
        plan = plan.warn(format!(
            "no file in `config` matches signing-key-file {:?}: the signing key is not known to be in this backup. Set \
             signing-key-file to its path, or make sure it is kept elsewhere",
            settings.signing_key_file
        ));
    }
    for file in files {
        match read_keys(&file) {
            Ok(keys) => {
                for key in keys {
                    plan = plan.fact(format!("signing-key/{file}/{}", key.id), &key.public);
                    if key.vulnerable_generation() {
                        plan = plan.warn(format!("{file} holds the signing key {}: {VULNERABLE}", key.id));
                    }
                }
            }
            Err(problem) => plan = plan.warn(format!("{file} is no signing key Synapse could read: {problem}")),
        }
    }
    match server_name(settings)? {
        Some(name) => Ok(plan.fact("server-name", name)),
        None => Ok(plan.note(format!(
            "no server_name at the beginning of a line of {:?}; a restore needs the very same server_name",
            settings.homeserver_file
        ))),
    }
}

/// The keys are back, and are the same.
pub fn verify(findings: &mut Findings, backup: &BackupView) -> Result<(), Error> {
    if !backup.holds("config") || !volume::granted("config")? {
        findings.push(check("synapse-signing-key").warn(
            "the backup holds no configuration, so nothing is known of the signing key",
            "put the old signing key in place before the first start; Synapse makes a new one silently when it is missing",
        ));
        return Ok(());
    }
    let recorded: Vec<(&str, &str)> = backup.facts_below("signing-key/").collect();
    if recorded.is_empty() {
        findings.push(check("synapse-signing-key").warn(
            "no signing key was recognised when the backup was taken",
            "make sure that signing_key_path of homeserver.yaml names a file that exists before the first start",
        ));
    }
    let mut good = Vec::new();
    for (key, public) in recorded {
        let Some((file, id)) = key.rsplit_once('/') else {
            continue;
        };
        let found = match volume::look("config", file)? {
            None => Err("is missing".to_owned()),
            Some(_) => read_keys(file),
        };
        let remedy = "do not start Synapse: restore `config` again, or put the right key file in place";
        match found.map(|keys| keys.into_iter().find(|k| k.id == id)) {
            Ok(Some(key)) if key.public == public => {
                if key.vulnerable_generation() {
                    findings.push(
                        check("synapse-signing-key-generation")
                            .warn(format!("{file} holds the signing key {id}"), VULNERABLE),
                    );
                }
                good.push(format!("{file} {id}"));
            }
            Ok(Some(key)) => findings.push(check("synapse-signing-key").fail(
                format!(
                    "{file} has another {id}: its public key is {}, it was {public}",
                    key.public
                ),
                remedy,
            )),
            Ok(None) => {
                findings.push(check("synapse-signing-key").fail(format!("{file} has no key {id} any more"), remedy))
            }
            Err(problem) => findings.push(check("synapse-signing-key").fail(format!("{file} {problem}"), remedy)),
        }
    }
    if !good.is_empty() {
        findings.push(check("synapse-signing-key").pass(format!("as when the backup was taken: {}", good.join(", "))));
    }
    Ok(())
}

/// The files of `config` that match a pattern: over the whole path if it has a `/`, else over the file's name.
fn find(settings: &Settings, pattern: &str) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for (seen, entry) in volume::walk("config", "", true)?.enumerate() {
        let entry = entry?;
        if seen >= MOST_ENTRIES {
            return Err(Error::invalid_setting(
                "signing-key-file",
                format!(
                    "`config` has more than {MOST_ENTRIES} entries; grant the directory of homeserver.yaml only, or \
                     name the exact path instead of {:?}",
                    settings.signing_key_file
                ),
            ));
        }
        let name = entry.path.rsplit('/').next().unwrap_or(&entry.path);
        let subject = if pattern.contains('/') {
            entry.path.as_str()
        } else {
            name
        };
        // A symlink is how Kubernetes mounts secrets; whether it can be read is seen when it is.
        if entry.kind == EntryKind::File && matches(pattern, subject) {
            found.push(entry.path);
        }
    }
    found.sort();
    Ok(found)
}

/// The keys of a file; the error never shows its contents.
fn read_keys(file: &str) -> Result<Vec<PublicKey>, String> {
    let text = volume::read_text("config", file, KEY_FILE_BYTES).map_err(|e| e.text().to_owned())?;
    parse_keys(&text)
}

/// `ed25519 VERSION SEED` a line, the seed 32 bytes in unpadded base64.
pub fn parse_keys(text: &str) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (algorithm, version, seed, rest) = (words.next(), words.next(), words.next(), words.next());
        let (Some("ed25519"), Some(version), Some(seed), None) = (algorithm, version, seed, rest) else {
            return Err(format!("line {} is not `ed25519 VERSION SEED`", number + 1));
        };
        let bytes = STANDARD_NO_PAD
            .decode(seed.trim_end_matches('='))
            .ok()
            .and_then(|b| <[u8; 32]>::try_from(b).ok())
            .ok_or_else(|| format!("line {}: the seed is not 32 bytes of base64", number + 1))?;
        keys.push(PublicKey {
            id: format!("ed25519:{version}"),
            public: public_of(&bytes),
        });
    }
    if keys.is_empty() {
        Err("it is empty".into())
    } else {
        Ok(keys)
    }
}

/// The Ed25519 public key of a seed (RFC 8032, 5.1.5).
fn public_of(seed: &[u8; 32]) -> String {
    let digest = Sha512::digest(seed);
    let mut scalar = [0u8; 32];
    for (to, from) in scalar.iter_mut().zip(digest.iter()) {
        *to = *from;
    }
    STANDARD_NO_PAD.encode(EdwardsPoint::mul_base_clamped(scalar).compress().as_bytes())
}

/// `server_name` from a line of its own; YAML beyond that is not understood here.
fn server_name(settings: &Settings) -> Result<Option<String>, Error> {
    for file in find(settings, &settings.homeserver_file)? {
        let text = match volume::read_text("config", &file, HOMESERVER_FILE_BYTES) {
            Ok(text) => text,
            Err(e) => {
                log::warn(&format!("{file}: {}", e.text()));
                continue;
            }
        };
        let name = text
            .lines()
            .filter_map(|l| l.strip_prefix("server_name:"))
            .map(|v| {
                v.split(" #")
                    .next()
                    .unwrap_or(v)
                    .trim()
                    .trim_matches(['"', '\''])
                    .to_owned()
            })
            .find(|v| !v.is_empty());
        if name.is_some() {
            return Ok(name);
        }
    }
    Ok(None)
}
