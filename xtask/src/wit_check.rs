//! The contract's gate: every item of `wit/` carries `@since` and documentation, and nothing that was released changed
//! its meaning.
//!
//! Released copies lie under `wit/released/VERSION/`. A plugin built against one of them must go on working with every
//! host of the same major (before 1.0: minor) version; `semver-check` asks wasm's own type rules whether that is so.
//! `use` items and fields cannot carry `@since` in WIT's grammar or need none; cases and fields need documentation.

use crate::shell::{Problem, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use wit_parser::{Docs, Interface, PackageId, Resolve, SourceMap, Stability, TypeDefKind, WorldItem};

pub fn run() -> Result {
    let wit = essrun_testkit::workspace().join("wit");
    let now = sources(&wit)?;
    let items = complete(&now)?;
    println!(
        "wit: {} package(s), {items} items, each with @since and documentation",
        now.len()
    );
    let root = wit.join("released");
    let versions: Vec<PathBuf> = directory(&root)?.into_iter().filter(|path| path.is_dir()).collect();
    if versions.is_empty() {
        return Err(Problem::Other(format!(
            "{} holds no release: what was promised to plugins is kept there and never taken away",
            root.display()
        )));
    }
    for version in versions {
        let worlds = compatible(&sources(&version)?, &now)
            .map_err(|problem| Problem::Other(format!("released as {}: {problem}", version.display())))?;
        println!("wit: compatible with {} ({worlds} world(s))", version.display());
    }
    Ok(())
}

/// The text of one package.
struct Source {
    path: PathBuf,
    files: Vec<(String, String)>,
}

fn directory(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| Problem::Other(format!("{}: {e}", path.display()));
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    Ok(entries)
}

/// The packages of `root`: its directories that hold `.wit` files.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for path in directory(root)?.into_iter().filter(|path| path.is_dir()) {
        let mut files = Vec::new();
        for file in directory(&path)?
            .into_iter()
            .filter(|file| file.extension().is_some_and(|ext| ext == "wit"))
        {
            let text =
                std::fs::read_to_string(&file).map_err(|e| Problem::Other(format!("{}: {e}", file.display())))?;
            files.push((file.display().to_string(), text));
        }
        if !files.is_empty() {
            found.push(Source { path, files });
        }
    }
    if found.is_empty() {
        return Err(Problem::Other(format!("{} holds no WIT package", root.display())));
    }
    Ok(found)
}

/// Parses the packages together, whatever the order of their dependencies.
fn load(resolve: &mut Resolve, sources: &[Source]) -> Result<Vec<PackageId>> {
    let mut groups = Vec::new();
    for source in sources {
        let mut map = SourceMap::default();
        for (path, text) in &source.files {
            map.push_str(path, text);
        }
        let group = map
            .parse()
            .map_err(|(map, e)| Problem::Other(format!("{}:\n{}", source.path.display(), e.render(&map))))?;
        groups.push(group);
    }
    let main = groups
        .pop()
        .ok_or_else(|| Problem::Other("no WIT package".to_owned()))?;
    let before: HashSet<PackageId> = resolve.packages.iter().map(|(id, _)| id).collect();
    resolve
        .push_groups(main, groups)
        .map_err(|e| Problem::Other(format!("wit: {e:#}")))?;
    Ok(resolve
        .packages
        .iter()
        .map(|(id, _)| id)
        .filter(|id| !before.contains(id))
        .collect())
}

/// How many items there are; an error names those without `@since` or documentation.
fn complete(sources: &[Source]) -> Result<usize> {
    let mut resolve = Resolve::default();
    let loaded = load(&mut resolve, sources)?;
    let mut audit = Audit {
        resolve: &resolve,
        items: 0,
        problems: Vec::new(),
    };
    for package in loaded {
        audit.package(package);
    }
    if audit.problems.is_empty() {
        return Ok(audit.items);
    }
    Err(Problem::Other(format!(
        "the contract is not complete:\n{}",
        audit.problems.join("\n")
    )))
}

struct Audit<'a> {
    resolve: &'a Resolve,
    items: usize,
    problems: Vec<String>,
}

impl Audit<'_> {
    fn item(&mut self, name: &str, docs: &Docs, stability: &Stability, docs_needed: bool) {
        self.items += 1;
        if matches!(stability, Stability::Unknown) {
            self.problems.push(format!("- {name}: neither @since nor @unstable"));
        }
        if docs_needed {
            self.documented(name, docs);
        }
    }

    fn documented(&mut self, name: &str, docs: &Docs) {
        if docs.contents.as_deref().is_none_or(|text| text.trim().is_empty()) {
            self.problems.push(format!("- {name}: no documentation"));
        }
    }

    fn package(&mut self, id: PackageId) {
        let Some(package) = self.resolve.packages.get(id) else {
            return;
        };
        self.documented(&package.name.to_string(), &package.docs);
        for (name, interface) in &package.interfaces {
            if let Some(interface) = self.resolve.interfaces.get(*interface) {
                self.interface(&format!("{}/{name}", package.name), interface);
            }
        }
        for (name, world) in &package.worlds {
            let Some(world) = self.resolve.worlds.get(*world) else {
                continue;
            };
            let name = format!("{}/{name}", package.name);
            self.item(&name, &world.docs, &world.stability, true);
            for (key, item) in world.imports.iter().chain(&world.exports) {
                let name = format!("{name} {}", self.resolve.name_world_key(key));
                match item {
                    // An import or export of an interface is documented where the interface is.
                    WorldItem::Interface { stability, docs, .. } => self.item(&name, docs, stability, false),
                    WorldItem::Function(function) => self.item(&name, &function.docs, &function.stability, true),
                    WorldItem::Type { .. } => {}
                }
            }
        }
    }

    fn interface(&mut self, name: &str, interface: &Interface) {
        self.item(name, &interface.docs, &interface.stability, true);
        for (type_name, id) in &interface.types {
            let Some(definition) = self.resolve.types.get(*id) else {
                continue;
            };
            let name = format!("{name}.{type_name}");
            let used_from_elsewhere = matches!(definition.kind, TypeDefKind::Type(_));
            self.item(&name, &definition.docs, &definition.stability, !used_from_elsewhere);
            match &definition.kind {
                TypeDefKind::Record(record) => {
                    for field in &record.fields {
                        self.documented(&format!("{name}.{}", field.name), &field.docs);
                    }
                }
                TypeDefKind::Variant(variant) => {
                    for case in &variant.cases {
                        self.documented(&format!("{name}.{}", case.name), &case.docs);
                    }
                }
                TypeDefKind::Enum(cases) => {
                    for case in &cases.cases {
                        self.documented(&format!("{name}.{}", case.name), &case.docs);
                    }
                }
                TypeDefKind::Flags(flags) => {
                    for flag in &flags.flags {
                        self.documented(&format!("{name}.{}", flag.name), &flag.docs);
                    }
                }
                _ => {}
            }
        }
        for (function_name, function) in &interface.functions {
            self.item(
                &format!("{name}.{function_name}"),
                &function.docs,
                &function.stability,
                true,
            );
        }
    }
}

/// Whether everything built for `old` works with `now`; gives how many worlds were compared.
fn compatible(old: &[Source], now: &[Source]) -> Result<usize> {
    let mut resolve = Resolve::default();
    let now_ids = load(&mut resolve, now)?;
    let old_ids = load(&mut resolve, &set_apart(old))?;
    let mut compared = 0;
    for old_package in old_ids.iter().filter_map(|id| resolve.packages.get(*id)) {
        let name = (&old_package.name.namespace, &old_package.name.name);
        let successor = now_ids
            .iter()
            .filter_map(|id| resolve.packages.get(*id))
            .find(|package| (&package.name.namespace, &package.name.name) == name);
        for (world, old_world) in &old_package.worlds {
            let Some(new_world) = successor.and_then(|package| package.worlds.get(world)) else {
                return Err(Problem::Other(format!(
                    "world {world} of {}:{} is gone",
                    name.0, name.1
                )));
            };
            wit_component::semver_check(resolve.clone(), *old_world, *new_world).map_err(|e| {
                Problem::Other(format!(
                    "world {world} of {}:{} broke its promise: {e:#}",
                    name.0, name.1
                ))
            })?;
            compared += 1;
        }
    }
    Ok(compared)
}

/// Gives packages a version of their own (`1.2.3+released`), so that they can stand beside today's of the same version.
fn set_apart(sources: &[Source]) -> Vec<Source> {
    let apart = |text: &str| {
        let mut pieces = text.split('@');
        let mut result = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let version: String = piece.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            let version = version.trim_end_matches('.');
            result.push('@');
            match piece.strip_prefix(version) {
                // `@since` and the like carry no number right after the sign.
                Some(rest) if !version.is_empty() => result.extend([version, "+released", rest]),
                _ => result.push_str(piece),
            }
        }
        result
    };
    sources
        .iter()
        .map(|source| Source {
            path: source.path.clone(),
            files: source
                .files
                .iter()
                .map(|(path, text)| (path.clone(), apart(text)))
                .collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(text: &str) -> Vec<Source> {
        vec![Source {
            path: "test".into(),
            files: vec![("test.wit".to_owned(), text.to_owned())],
        }]
    }

    const RELEASED: &str = "
        /// P.
        package ess:test@0.1.0;
        /// I.
        @since(version = 0.1.0)
        interface look {
            /// R.
            @since(version = 0.1.0)
            record entry { /// F.
                path: string }
            /// F.
            @since(version = 0.1.0)
            find: func(path: string) -> option<entry>;
        }
        /// W.
        @since(version = 0.1.0)
        world component {
            @since(version = 0.1.0)
            import look;
            /// R.
            @since(version = 0.1.0)
            export run: func();
        }";

    #[test]
    fn the_contract_of_this_workspace_is_complete() {
        assert!(complete(&sources(&essrun_testkit::workspace().join("wit")).unwrap()).unwrap() > 50);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(complete(&contract(RELEASED)).unwrap(), 6);
        let undocumented = RELEASED.replace("/// F.\n", "\n");
        let said = complete(&contract(&undocumented)).unwrap_err().to_string();
        assert!(
            said.contains("look.entry.path: no documentation") && said.contains("look.find: no documentation"),
            "{said}"
        );
        let unversioned = RELEASED.replacen("@since(version = 0.1.0)", "", 1);
        let said = complete(&contract(&unversioned)).unwrap_err().to_string();
        assert!(said.contains("look: neither @since"), "{said}");
    }

    /// The contract as it was released, against changes of today's as somebody might make them in a hurry.
    #[test]
    fn what_was_released_is_kept() {
        let wit = essrun_testkit::workspace().join("wit");
        let released = || sources(&wit.join("released/0.1.0")).unwrap();
        assert!(
            compatible(&released(), &sources(&wit).unwrap()).unwrap() >= 2,
            "component and policy"
        );
        for (package, from, to) in [
            ("inspect", "    collate: string,\n", ""),
            ("inspect", "next: func(max-rows: u32)", "next: func(max-rows: u64)"),
            ("inspect", "get: func() -> string;", "get: func() -> list<u8>;"),
            ("backup", "verify: func(backup: backup-view)", "verify: func()"),
            ("backup", "    copy-sqlite(copy-sqlite),\n", ""),
            ("backup", "  enum tier {\n", "  enum tier {\n    /// New.\n    vital,\n"),
            ("policy", "question: question, input-json: string", "input-json: string"),
        ] {
            let mut now = sources(&wit).unwrap();
            let mut changed = false;
            for source in now.iter_mut().filter(|s| s.path.ends_with(package)) {
                for (_, text) in &mut source.files {
                    changed |= text.contains(from);
                    *text = text.replacen(from, to, 1);
                }
            }
            assert!(changed, "{from:?} is not in {package}");
            assert!(
                compatible(&released(), &now).is_err(),
                "{from:?} → {to:?} must be refused"
            );
        }
    }

    #[test]
    fn more_to_import_is_compatible_and_nothing_else() {
        let more = RELEASED.replace("find:", "also: func();\n/// F.\n@since(version = 0.1.0)\nfind:");
        assert_eq!(compatible(&contract(RELEASED), &contract(RELEASED)).unwrap(), 1);
        assert_eq!(compatible(&contract(RELEASED), &contract(&more)).unwrap(), 1);
        let next = more.replace("ess:test@0.1.0", "ess:test@0.1.1");
        assert_eq!(compatible(&contract(RELEASED), &contract(&next)).unwrap(), 1);
        for (what, changed) in [
            (
                "a function gone",
                more.replace("find: func(path: string) -> option<entry>;", "gone: func();"),
            ),
            (
                "another parameter",
                RELEASED.replace("find: func(path: string)", "find: func(path: string, deep: bool)"),
            ),
            (
                "another field",
                RELEASED.replace("path: string }", "path: string, /// F.\n size: u64 }"),
            ),
            (
                "one more export",
                RELEASED.replace("export run: func();", "export run: func();\nexport stop: func();"),
            ),
            ("no world", RELEASED.replace("world component", "world another")),
        ] {
            assert!(
                compatible(&contract(RELEASED), &contract(&changed)).is_err(),
                "{what} must be refused"
            );
        }
    }
}
