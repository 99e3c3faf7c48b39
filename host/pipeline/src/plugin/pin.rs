//! Writes the hash of a plugin's file into pipeline.toml, and nothing else of it.
//!
//! Comments, order and layout stay as the operator wrote them. A hash that was there is replaced only when that was
//! confirmed: a file that changed by itself is what the pin is for. What cannot be loaded, or is not signed as the file
//! asks, is not pinned.

use super::inspect::{engine, load, without_name};
use super::{SignedBy, bad_file, read_file, verify};
use crate::error::PipelineError;
use crate::plugin::words;
use essrun_sandbox::{Engine, Limits};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use toml_edit::{DocumentMut, Item, TableLike};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct PinOptions {
    /// Only this component; without it every plugin of the file.
    pub component: Option<String>,
    /// Replace hashes that are there.
    pub confirm: bool,
}

/// How a component's pin stands to its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// There was none.
    New,
    /// It is the file's.
    Same,
    /// The file is another one.
    Changed,
}

/// One component's pin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pin {
    pub component: String,
    pub path: PathBuf,
    pub change: Change,
    pub before: Option<String>,
    pub sha256: String,
    pub signed: bool,
    pub description: Value,
}

/// What was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pinned {
    pub event: &'static str,
    pub pipeline: PathBuf,
    pub pins: Vec<Pin>,
    pub written: bool,
}

/// Compares every pin with its file; writes those that are new, and with `confirm` those that changed.
pub async fn run(file: &Path, options: &PinOptions) -> Result<Pinned, PipelineError> {
    // Through a link the file itself is replaced, not the link.
    let file = std::fs::canonicalize(file)
        .map_err(|e| bad_file(file, format!("cannot be read: {e}"), "name an existing pipeline file"))?;
    let text = std::fs::read_to_string(&file)
        .map_err(|e| bad_file(&file, format!("cannot be read: {e}"), "name an existing pipeline file"))?;
    let no_toml = |problem: String| bad_file(&file, problem, "mend the file; see https://toml.io for the syntax");
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| no_toml(e.to_string()))?;
    let values: toml::Table = text.parse().map_err(|e: toml::de::Error| no_toml(e.to_string()))?;
    let names = plugins(&file, &document, options.component.as_deref())?;
    let engine = engine()?;
    let mut pins = Vec::new();
    for name in names {
        let limits = limits(&file, &values, &name)?;
        let Some(used) = used(&mut document, &name) else {
            return Err(PipelineError::Internal(format!("{name} is no plugin any more")));
        };
        let pin = look(&file, &engine, &name, used, &limits).await?;
        if pin.change == Change::New || pin.change == Change::Changed && options.confirm {
            write_hash(used, &pin.sha256);
        }
        pins.push(pin);
    }
    let after = document.to_string();
    let refused = !options.confirm && pins.iter().any(|p| p.change == Change::Changed);
    let written = !refused && after != text;
    if written {
        replace(&file, &after)
            .map_err(|e| bad_file(&file, format!("cannot be written: {e}"), "check its permissions"))?;
    }
    Ok(Pinned {
        event: "pinned",
        pipeline: file,
        pins,
        written,
    })
}

/// The names of the plugins that are meant.
fn plugins(file: &Path, document: &DocumentMut, only: Option<&str>) -> Result<Vec<String>, PipelineError> {
    let components = document.get("components").and_then(Item::as_table_like);
    let mut names = Vec::new();
    let mut others = Vec::new();
    for (name, component) in components.iter().flat_map(|c| c.iter()) {
        let used = component.as_table_like().and_then(|c| c.get("use"));
        let is_plugin = used
            .and_then(Item::as_table_like)
            .is_some_and(|u| u.contains_key("path"));
        if is_plugin { &mut names } else { &mut others }.push(name.to_owned());
    }
    let wrong = |problem: String, hint: &str| Err(bad_file(file, problem, hint));
    match only {
        None if names.is_empty() => wrong(
            "no component of it comes from a file".to_owned(),
            "a plugin is named by use = { path = \"x.wasm\" }",
        ),
        None => Ok(names),
        Some(name) if names.iter().any(|n| n == name) => Ok(vec![name.to_owned()]),
        Some(name) if others.iter().any(|n| n == name) => wrong(
            format!("component {name:?} is built in: there is nothing to pin"),
            "a plugin is named by use = { path = \"x.wasm\" }",
        ),
        Some(name) => wrong(
            format!("no component {name:?}"),
            &format!("its plugins are: {}", names.join(", ")),
        ),
    }
}

/// `components.NAME.limits`, which say what loading it may cost.
fn limits(file: &Path, values: &toml::Table, name: &str) -> Result<Limits, PipelineError> {
    let given = values
        .get("components")
        .and_then(|c| c.get(name))
        .and_then(|c| c.get("limits"));
    given.map_or_else(
        || Ok(Limits::default()),
        |limits| {
            limits.clone().try_into().map_err(|e: toml::de::Error| {
                let problem = format!("components.{name}.limits: {}", e.message());
                bad_file(file, problem, "docs/PLUGINS.md has the limits and their units")
            })
        },
    )
}

fn used<'d>(document: &'d mut DocumentMut, name: &str) -> Option<&'d mut dyn TableLike> {
    document
        .get_mut("components")?
        .as_table_like_mut()?
        .get_mut(name)?
        .as_table_like_mut()?
        .get_mut("use")?
        .as_table_like_mut()
}

/// Reads, verifies, loads and asks one plugin.
async fn look(
    file: &Path,
    engine: &Engine,
    name: &str,
    used: &dyn TableLike,
    limits: &Limits,
) -> Result<Pin, PipelineError> {
    let base = file.parent().unwrap_or(Path::new("."));
    let given = |key: &str| used.get(key).and_then(Item::as_str);
    let path = base.join(given("path").unwrap_or_default());
    let wasm = read_file(&path, limits.compile.file).map_err(|problem| {
        bad_file(
            file,
            format!("component {name}: {problem}"),
            "name the plugin's .wasm file",
        )
    })?;
    let refused = |problem: String| PipelineError::component(name, format!("not pinned: {problem}"));
    let signed = match (given("signature"), given("public-key")) {
        (None, None) => false,
        (Some(signature), Some(key)) => {
            let signed = SignedBy {
                file: base.join(signature),
                public_key: key.to_owned(),
            };
            verify(&wasm, &signed).map_err(refused)?;
            true
        }
        _ => {
            let problem = format!("component {name}: only one of signature and public-key is given");
            return Err(bad_file(file, problem, "give both or neither"));
        }
    };
    let sha256 = hex::encode(Sha256::digest(&wasm));
    let component = load(engine, name, &wasm, &sha256, limits).map_err(|e| refused(without_name(&e)))?;
    let description = component
        .describe(limits)
        .await
        .map_err(|e| refused(without_name(&e)))?;
    let before = given("sha256").filter(|s| is_hash(s)).map(str::to_ascii_lowercase);
    let change = match &before {
        None => Change::New,
        Some(before) if *before == sha256 => Change::Same,
        Some(_) => Change::Changed,
    };
    Ok(Pin {
        component: name.to_owned(),
        path,
        change,
        before,
        sha256,
        signed,
        description: words::description(&description),
    })
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Sets `sha256`, keeping the layout around it.
fn write_hash(used: &mut dyn TableLike, sha256: &str) {
    if let Some(value) = used.get_mut("sha256").and_then(Item::as_value_mut) {
        let decor = value.decor().clone();
        *value = sha256.into();
        *value.decor_mut() = decor;
        return;
    }
    // In `{ path = "x" }` the space before the brace belongs to the last value; it moves to the new one.
    let mut hash = toml_edit::Value::from(sha256);
    let last = used.iter().last().map(|(key, _)| key.to_owned());
    if let Some(last) = last.and_then(|key| used.get_mut(&key)).and_then(Item::as_value_mut) {
        let suffix = last.decor().suffix().cloned().unwrap_or_default();
        hash.decor_mut().set_prefix(" ");
        hash.decor_mut().set_suffix(suffix);
        last.decor_mut().set_suffix("");
    }
    used.insert("sha256", Item::Value(hash));
}

/// Replaces the file in one step, with its own permissions.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let dir = file.parent().unwrap_or(Path::new("."));
    let mut fresh = tempfile::NamedTempFile::new_in(dir)?;
    fresh.write_all(text.as_bytes())?;
    fresh
        .as_file()
        .set_permissions(std::fs::metadata(file)?.permissions())?;
    fresh.as_file().sync_all()?;
    fresh.persist(file).map_err(|e| e.error)?;
    Ok(())
}

impl Pinned {
    pub fn text(&self) -> String {
        let mut t = String::new();
        for pin in &self.pins {
            let stands = match pin.change {
                Change::New => "new",
                Change::Same => "unchanged",
                Change::Changed => "CHANGED",
            };
            let signed = if pin.signed { ", signature good" } else { "" };
            // Writing into a String does not fail.
            let _ = writeln!(t, "{}: {stands}{signed}: {}", pin.component, pin.path.display());
            if pin.change == Change::Same {
                continue;
            }
            if let Some(before) = &pin.before {
                let _ = writeln!(t, "  was     {before}");
            }
            let _ = writeln!(t, "  sha256  {}", pin.sha256);
            t.push_str(&words::description_text(&pin.description));
        }
        let end = if self.written { "written: " } else { "nothing written: " };
        let _ = writeln!(t, "{end}{}", self.pipeline.display());
        t
    }

    /// A file that is not the pinned one, and nobody confirmed it.
    pub fn into_error(self) -> Result<(), PipelineError> {
        if self.written {
            return Ok(());
        }
        let changed: Vec<_> = self
            .pins
            .into_iter()
            .filter(|p| p.change == Change::Changed)
            .map(|p| p.component)
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        Err(PipelineError::refused(
            format!(
                "the file of {} is not the one that was pinned; nothing was written",
                changed.join(", ")
            ),
            "if you know why it changed, look at it (essrun plugin inspect) and give --confirm",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> String {
        let mut document: DocumentMut = text.parse().unwrap();
        write_hash(used(&mut document, "x").unwrap(), "HASH");
        document.to_string()
    }

    #[test]
    fn only_the_hash_changes() {
        for (before, after) in [
            (
                "# mine\n[components.x] # here\nuse = { path = \"x.wasm\" } # pinned\n\n[run]\njobs=2\n",
                "# mine\n[components.x] # here\nuse = { path = \"x.wasm\", sha256 = \"HASH\" } # pinned\n\n[run]\njobs=2\n",
            ),
            (
                "[components]\nx = {use={path='x',sha256='old'}}\n",
                "[components]\nx = {use={path='x',sha256=\"HASH\"}}\n",
            ),
            (
                "[components.x]\nuse.path = \"x\"   # why\nuse.sha256 =   \"old\"  # ours\n",
                "[components.x]\nuse.path = \"x\"   # why\nuse.sha256 =   \"HASH\"  # ours\n",
            ),
            (
                "[components.x.use]\npath = \"x\"\nsignature = \"s\"\n",
                "[components.x.use]\npath = \"x\"\nsignature = \"s\"\nsha256 = \"HASH\"\n",
            ),
        ] {
            assert_eq!(written(before), after);
            assert_eq!(written(after), after, "twice is once");
        }
    }
}
