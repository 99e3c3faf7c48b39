//! A homeserver's signing key, as far as a component may know it: its id and its public half.
//!
//! They prove after a restore that the right key is back, and are what `old_signing_keys` needs when it is lost. The
//! seed must never be logged, recorded or shown in an error.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use curve25519_dalek::EdwardsPoint;
use sha2::{Digest, Sha512};

/// A signing key's id and public half.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey {
    /// `ed25519:a_GQJb`
    pub id: String,
    /// Unpadded base64, as Matrix writes keys.
    pub public: String,
}

impl PublicKey {
    /// Early releases of the ESS chart made weak keys, all with the version `0`.
    pub fn vulnerable_generation(&self) -> bool {
        self.id == "ed25519:0"
    }
}

/// What to do about a key of that generation.
pub const VULNERABLE: &str = "if init-secrets of an early ESS Helm release made it, it is weak (CVE-2026-24044): let the chart \
     make `ed25519:1`, revoke this one through old_signing_keys, and run the background job event_resign";

/// The keys of a file: `ed25519 VERSION SEED` a line, the seed 32 bytes in unpadded base64.
pub fn parse(text: &str) -> Result<Vec<PublicKey>, String> {
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
