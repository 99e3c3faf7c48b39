//! `essrun plugin new`: a crate to start from, with its tests.
//!
//! The guest SDK is not on a registry, so the author says where it is: the folder `guest-sdk` of essrun's source, or the
//! address of a git repository that holds it. Nothing is fetched here and nothing that exists is touched.

use super::bad_file;
use crate::error::PipelineError;
use serde::Serialize;
use std::path::{Path, PathBuf};

const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../templates/plugin/Cargo.toml")),
    ("src/lib.rs", include_str!("../../templates/plugin/src/lib.rs")),
    ("world.toml", include_str!("../../templates/plugin/world.toml")),
    ("README.md", include_str!("../../templates/plugin/README.md")),
    (".gitignore", include_str!("../../templates/plugin/gitignore")),
];

/// What was made.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Made {
    pub event: &'static str,
    pub folder: PathBuf,
    pub files: Vec<&'static str>,
}

/// Makes the folder `name` below `parent`.
pub fn run(parent: &Path, name: &str, sdk: &str) -> Result<Made, PipelineError> {
    let plain = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let folder = parent.join(name);
    if !plain {
        return Err(bad_file(
            &folder,
            format!("{name:?} cannot be a plugin's name"),
            "use lower-case letters, digits and dashes, at most 64, beginning with a letter",
        ));
    }
    let sdk = dependency(sdk)?;
    std::fs::create_dir(&folder).map_err(|e| {
        bad_file(
            &folder,
            format!("cannot be made: {e}"),
            "choose another name, or another folder to run this in",
        )
    })?;
    let file = name.replace('-', "_");
    let env = file.to_ascii_uppercase();
    for (path, template) in FILES {
        let text = template
            .replace("{{name}}", name)
            .replace("{{file}}", &file)
            .replace("{{env}}", &env)
            .replace("{{sdk}}", &sdk);
        let path = folder.join(path);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, text));
        written.map_err(|e| bad_file(&path, format!("cannot be written: {e}"), "check the disk"))?;
    }
    Ok(Made {
        event: "plugin-made",
        folder,
        files: FILES.iter().map(|(path, _)| *path).collect(),
    })
}

/// Where the SDK is, as a dependency in Cargo.toml.
fn dependency(sdk: &str) -> Result<String, PipelineError> {
    let quoted = |text: &str| toml_edit::Value::from(text).to_string();
    if sdk.contains("://") || sdk.starts_with("git@") {
        return Ok(format!("{{ git = {} }}", quoted(sdk)));
    }
    let path = Path::new(sdk);
    let hint = "give the folder guest-sdk of essrun's source, or the address of a git repository that holds it";
    let manifest = path.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest)
        .map_err(|e| bad_file(path, format!("is not the guest SDK: {}: {e}", manifest.display()), hint))?;
    let package = text.parse::<toml::Table>().ok().and_then(|t| {
        let name = t.get("package")?.get("name")?.as_str()?;
        Some(name.to_owned())
    });
    if package.as_deref() != Some("essrun-guest") {
        return Err(bad_file(
            path,
            "is not the guest SDK (the crate essrun-guest)".to_owned(),
            hint,
        ));
    }
    let whole = std::fs::canonicalize(path).map_err(|e| bad_file(path, format!("cannot be found: {e}"), hint))?;
    Ok(format!("{{ path = {} }}", quoted(&whole.display().to_string())))
}

impl Made {
    pub fn text(&self) -> String {
        format!(
            "made {}: {}\nnext: cd {0}, then README.md says how to test, build and try it; change what says CHANGE ME\n",
            self.folder.display(),
            self.files.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-sdk");
        let sdk = sdk.to_str().unwrap();
        for bad in ["", "../x", "X", "-x", "a b", "a/b", "1a", &"a".repeat(65)] {
            assert!(run(dir.path(), bad, sdk).is_err(), "{bad}");
        }
        assert!(run(dir.path(), "wiki", dir.path().to_str().unwrap()).is_err());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left of what was refused"
        );
        let made = run(dir.path(), "my-wiki", sdk).unwrap();
        for file in &made.files {
            let text = std::fs::read_to_string(made.folder.join(file)).unwrap();
            assert!(!text.contains("{{"), "{file} has an open place");
        }
        assert!(run(dir.path(), "my-wiki", sdk).is_err(), "what exists is not touched");
        let made = run(dir.path(), "far", "https://example.org/essrun.git").unwrap();
        let manifest = std::fs::read_to_string(made.folder.join("Cargo.toml")).unwrap();
        let parsed: toml::Table = manifest.parse().unwrap();
        assert_eq!(
            parsed["dependencies"]["essrun-guest"]["git"].as_str(),
            Some("https://example.org/essrun.git")
        );
    }
}
