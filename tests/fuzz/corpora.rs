// Runs the committed corpora on the stable toolchain. Included by the `fuzz` module of each crate that has targets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn here() -> PathBuf {
    // Each crate lies two levels below the root.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Takes bytes from outside; must not panic whatever they are.
type Target = fn(&[u8]);

/// Hands every file of a target's corpus to it.
pub fn run(targets: &[(&str, Target)]) {
    let known = names(&here().join("targets"));
    for (name, target) in targets {
        assert!(known.contains(&format!("{name}.rs")), "{name} has no file in targets/");
        let corpus = here().join("corpus").join(name);
        let files = names(&corpus);
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            let bytes = std::fs::read(corpus.join(&file)).unwrap();
            let ran = std::panic::catch_unwind(|| target(&bytes));
            assert!(ran.is_ok(), "corpus/{name}/{file} makes {name} panic");
        }
        target(b"");
    }
}

/// What is fuzzed, what is run here and what is kept in corpora must be the same.
#[allow(dead_code)]
pub fn complete() {
    let targets: BTreeSet<String> = names(&here().join("targets"))
        .iter()
        .map(|file| file.strip_suffix(".rs").unwrap().to_owned())
        .collect();
    assert_eq!(targets, names(&here().join("corpus")));
    let manifest = std::fs::read_to_string(here().join("Cargo.toml")).unwrap();
    let bins = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"targets/"));
    let bins: BTreeSet<String> = bins
        .map(|rest| rest.strip_suffix(".rs\"").unwrap().to_owned())
        .collect();
    assert_eq!(targets, bins);
}
