//! The components and policy interpreters that come with essrun, compiled by this crate's build script and embedded as
//! bytes.
//!
//! They are ordinary components: the sandbox loads them like any other and gives them nothing more. What is special is
//! only where they come from, so their hash is known at build time and pipeline.toml need not pin it. This crate must
//! never run one; it hands out bytes.
#![deny(unsafe_code)]

/// A component embedded in the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltIn {
    /// Its name: what `use = "builtin:NAME"` or the component's own name in pipeline.toml refers to.
    pub name: &'static str,
    /// The WASI component.
    pub wasm: &'static [u8],
    /// SHA-256 of `wasm`, 64 lower-case hexadecimal digits.
    pub sha256: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/all.rs"));

/// All components, ordered by name.
pub fn all() -> &'static [BuiltIn] {
    COMPONENTS
}

/// The component with this name.
pub fn get(name: &str) -> Option<&'static BuiltIn> {
    COMPONENTS.iter().find(|b| b.name == name)
}

/// The interpreter of policies in this language.
pub fn policy(language: &str) -> Option<&'static BuiltIn> {
    POLICIES.iter().find(|b| b.name == language)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// A component is knowledge of one system: what grows past this carries something else.
    const MOST_BYTES: usize = 512 * 1024;

    /// A whole language weighs more than the knowledge of one system.
    const MOST_BYTES_OF_A_LANGUAGE: usize = 3 * 1024 * 1024;

    #[test]
    fn every_builtin_is_a_small_component_with_its_own_hash() {
        assert!(all().iter().any(|b| b.name == "synapse"));
        let sound = |b: &BuiltIn, most: usize| {
            // Preamble of a component (layer 1), not of a core module (layer 0).
            assert_eq!(b.wasm.get(..8), Some(&b"\0asm\x0d\0\x01\0"[..]), "{}", b.name);
            assert!(b.wasm.len() < most, "{} has {} bytes", b.name, b.wasm.len());
            assert_eq!(hex::encode(Sha256::digest(b.wasm)), b.sha256);
        };
        for b in all() {
            sound(b, MOST_BYTES);
            assert_eq!(get(b.name), Some(b));
        }
        assert_eq!(get("no-such-component"), None);
        sound(policy("rego").unwrap(), MOST_BYTES_OF_A_LANGUAGE);
        assert_eq!(policy("no-such-language"), None);
        assert_eq!(get("rego"), None, "an interpreter is no component");
    }
}
