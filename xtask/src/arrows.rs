//! The arrows between the rooms of `host/`: which crate may build upon which. They point one way, so that each room can be
//! understood, and tested, without those above it; README.md, "The tree", has them in words.
//!
//! Dependencies of tests are not held to this: a test may use whatever shows that its crate works.

use crate::shell::{self, Problem, Result};
use serde_json::Value;

/// A crate, and the crates of the workspace it may build upon.
const ALLOWED: &[(&str, &[&str])] = &[
    ("essrun", &["essrun-pipeline"]),
    (
        "essrun-pipeline",
        &[
            "essrun-artifact",
            "essrun-builtin",
            "essrun-postgres",
            "essrun-repository",
            "essrun-sandbox",
            "essrun-sqlite",
            "essrun-store",
            "essrun-volume",
        ],
    ),
    ("essrun-sandbox", &["essrun-artifact"]),
    ("essrun-postgres", &["essrun-artifact"]),
    ("essrun-sqlite", &["essrun-artifact"]),
    ("essrun-volume", &["essrun-artifact"]),
    ("essrun-repository", &["essrun-artifact", "essrun-store"]),
    ("essrun-store", &[]),
    ("essrun-builtin", &[]),
    ("essrun-artifact", &[]),
];

pub fn run() -> Result {
    let output = shell::quiet(shell::cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| Problem::Other(format!("cargo metadata: {e}")))?;
    let arrows = check(&metadata)?;
    println!(
        "arrows: {} crates of host/, {arrows} arrows, all allowed",
        ALLOWED.len()
    );
    Ok(())
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

/// How many arrows there are; an error names those that are not allowed.
fn check(metadata: &Value) -> Result<usize> {
    let root = text(metadata, "workspace_root").unwrap_or_default();
    let host = format!("{root}/host/");
    let packages = metadata.get("packages").and_then(Value::as_array);
    let rooms = packages
        .into_iter()
        .flatten()
        .filter(|p| text(p, "manifest_path").is_some_and(|path| path.starts_with(&host)));
    let (mut seen, mut arrows, mut wrong) = (Vec::new(), 0, Vec::new());
    for room in rooms {
        let name = text(room, "name").unwrap_or_default();
        seen.push(name);
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("- {name} is in host/ and has no place among the arrows"));
            continue;
        };
        let dependencies = room.get("dependencies").and_then(Value::as_array);
        for dependency in dependencies.into_iter().flatten() {
            // Only what lies in this workspace has a path.
            if dependency.get("path").is_none_or(Value::is_null) || text(dependency, "kind") == Some("dev") {
                continue;
            }
            arrows += 1;
            let upon = text(dependency, "name").unwrap_or_default();
            if !allowed.contains(&upon) {
                wrong.push(format!("- {name} → {upon}"));
            }
        }
    }
    for (name, _) in ALLOWED {
        if !seen.contains(name) {
            wrong.push(format!("- {name} has a place among the arrows and is not in host/"));
        }
    }
    match wrong.is_empty() {
        true => Ok(arrows),
        false => Err(Problem::Other(format!(
            "arrows that are not allowed (xtask/src/arrows.rs has those that are):\n{}",
            wrong.join("\n")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A workspace with all rooms, without arrows but these.
    fn workspace(arrows: &[(&str, &str, Option<&str>)]) -> Value {
        let package = |name: &str| {
            let dependencies: Vec<Value> = arrows
                .iter()
                .filter(|(from, _, _)| *from == name)
                .map(|(_, to, kind)| json!({"name": to, "kind": kind, "path": format!("/w/host/{to}")}))
                .chain([json!({"name": "serde", "kind": null, "source": "registry"})])
                .collect();
            json!({"name": name, "manifest_path": format!("/w/host/{name}/Cargo.toml"), "dependencies": dependencies})
        };
        let packages: Vec<Value> = ALLOWED.iter().map(|(name, _)| package(name)).collect();
        json!({"workspace_root": "/w", "packages": packages})
    }

    fn refused(metadata: &Value) -> String {
        check(metadata).unwrap_err().to_string()
    }

    #[test]
    fn only_the_arrows_of_the_house_are_allowed() {
        let down = ("essrun-pipeline", "essrun-postgres", None);
        assert_eq!(check(&workspace(&[down])).unwrap(), 1);
        for (from, to) in [
            ("essrun-postgres", "essrun-pipeline"),
            ("essrun-postgres", "essrun-volume"),
            ("essrun-artifact", "essrun-store"),
            ("essrun-store", "essrun-repository"),
            ("essrun", "essrun-repository"),
            ("essrun-volume", "essrun-testkit"),
        ] {
            let said = refused(&workspace(&[down, (from, to, None)]));
            assert!(said.contains(&format!("- {from} → {to}")), "{said}");
            assert!(!said.contains("essrun-pipeline → essrun-postgres"), "{said}");
            refused(&workspace(&[(from, to, Some("build"))]));
            assert_eq!(check(&workspace(&[(from, to, Some("dev"))])).unwrap(), 0);
        }
    }

    #[test]
    fn every_room_has_a_place() {
        let mut more = workspace(&[]);
        let room = json!({"name": "essrun-cellar", "manifest_path": "/w/host/cellar/Cargo.toml", "dependencies": []});
        more["packages"].as_array_mut().unwrap().push(room);
        assert!(refused(&more).contains("essrun-cellar is in host/"));
        let mut fewer = workspace(&[]);
        fewer["packages"].as_array_mut().unwrap().pop();
        assert!(refused(&fewer).contains("is not in host/"));
        let none = json!({"workspace_root": "/w", "packages": []});
        assert!(refused(&none).contains("essrun-pipeline"));
    }

    #[test]
    fn the_house_is_as_it_says() {
        run().unwrap();
    }
}
