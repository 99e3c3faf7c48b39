//! Whose plugin it is: a minisign signature beside the file, checked with the key that pipeline.toml names.
//!
//! The pin says *these bytes*; a signature says *these bytes come from the holder of that key*. It is asked for in
//! addition, never instead: a signed plugin is pinned too. Only the present form of signatures (over the file's BLAKE2b
//! hash) is taken; the old one, over the whole file, is refused as minisign itself does by now.

use minisign_verify::{PublicKey, Signature};
use std::path::{Path, PathBuf};

/// A signature file holds four short lines.
const MOST: u64 = 16 * 1024;

/// Who must have signed a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy {
    /// The `.minisig` file.
    pub file: PathBuf,
    /// The key's second line, `RW…`.
    pub public_key: String,
}

impl SignedBy {
    /// Whether the key is one at all; says what is wrong.
    pub fn check_key(public_key: &str) -> Result<(), String> {
        PublicKey::from_base64(public_key)
            .map(drop)
            .map_err(|e| format!("public-key is no minisign key ({e})"))
    }
}

/// Checks `wasm` against the signature; says what is wrong.
pub fn verify(wasm: &[u8], signed: &SignedBy) -> Result<(), String> {
    check(wasm, &signed.public_key, &text(&signed.file)?, &signed.file)
}

/// The same with the text of the signature's file at hand.
pub(crate) fn check(wasm: &[u8], public_key: &str, text: &str, file: &Path) -> Result<(), String> {
    let key = PublicKey::from_base64(public_key).map_err(|e| format!("public-key is no minisign key ({e})"))?;
    let shown = file.display();
    let signature = Signature::decode(text).map_err(|e| format!("{shown} is no minisign signature ({e})"))?;
    key.verify(wasm, &signature, false)
        .map_err(|e| format!("its signature in {shown} is not good: {e}"))
}

fn text(file: &Path) -> Result<String, String> {
    let bytes = super::read_file(file, MOST)?;
    String::from_utf8(bytes).map_err(|_| format!("{} is no minisign signature", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with `minisign -G -W` and `minisign -S -m signed.txt`; the secret half was thrown away.
    const KEY: &str = include_str!("../../testdata/signed.pub");
    const SIGNED: &[u8] = include_bytes!("../../testdata/signed.txt");
    const SIGNATURE: &str = include_str!("../../testdata/signed.txt.minisig");
    const OTHER: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    fn key() -> String {
        KEY.lines().nth(1).unwrap().to_owned()
    }

    fn checked(signature: &str, key: &str, bytes: &[u8]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.minisig");
        std::fs::write(&file, signature).unwrap();
        let public_key = key.to_owned();
        verify(bytes, &SignedBy { file, public_key })
    }

    #[test]
    fn what_was_signed_and_nothing_else() {
        assert_eq!(checked(SIGNATURE, &key(), SIGNED), Ok(()));
        let said = |r: Result<(), String>| r.unwrap_err();
        assert!(said(checked(SIGNATURE, &key(), b"other bytes")).contains("is not good"));
        assert!(said(checked(SIGNATURE, OTHER, SIGNED)).contains("is not good"));
        assert!(said(checked(SIGNATURE, "RW", SIGNED)).contains("no minisign key"));
        assert!(said(checked("", &key(), SIGNED)).contains("no minisign signature"));
        // The trusted comment is signed too.
        let forged = SIGNATURE.replace("timestamp", "timestamq");
        assert_ne!(forged, SIGNATURE);
        assert!(said(checked(&forged, &key(), SIGNED)).contains("is not good"));
        for cut in 0..SIGNATURE.len().saturating_sub(1) {
            assert!(checked(&SIGNATURE[..cut], &key(), SIGNED).is_err(), "{cut}");
        }
    }
}
