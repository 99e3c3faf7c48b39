//! Writes the hash of a plugin's file into pipeline.toml, and nothing else of it: of components, and of a policy that is
//! one.
//!
//! Comments, order and layout stay as the operator wrote them. A hash that was there is replaced only when that was
//! confirmed: a file that changed by itself is what the pin is for. What cannot be loaded, or is not signed as the file
//! asks, is not pinned.

use super::inspect::{engine, load, without_name};
use super::{SignedBy, bad_file, read_file, verify};
use crate::config::{PolicyConfig, PolicyFile, Use};
use crate::error::{At, PipelineError};
use crate::plugin::words;
use crate::policy;
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
    /// Only this one; without it every plugin of the file.
    pub only: Option<What>,
    /// Replace hashes that are there.
    pub confirm: bool,
}

/// Whose file it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    Component { component: String },
    Policy,
}

impl What {
    /// The tables around its `use`.
    pub(crate) fn place(&self) -> Vec<&str> {
        match self {
            What::Component { component } => vec!["components", component],
            What::Policy => vec!["policy"],
        }
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Component { component } => write!(f, "component {component}"),
            What::Policy => f.write_str("the policy"),
        }
    }
}

/// How a pin stands to its file.
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

/// One pin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pin {
    #[serde(flatten)]
    pub what: What,
    pub path: PathBuf,
    pub change: Change,
    pub before: Option<String>,
    pub sha256: String,
    pub signed: bool,
    /// What a component says of itself; of a policy `questions`, which it decides.
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
    let (mut document, values) = parse(&file, &text)?;
    let as_it_was = written(&text, &document);
    let plugins = plugins(&file, &document, options.only.as_ref())?;
    let engine = engine()?;
    let mut pins = Vec::new();
    for what in plugins {
        let limits = limits(&file, &values, &what)?;
        let Some(used) = used(&mut document, &what) else {
            return Err(PipelineError::Internal(format!("{what} is no plugin any more")));
        };
        let pin = look(&file, &engine, &values, what, used, &limits).await?;
        if pin.change == Change::New || pin.change == Change::Changed && options.confirm {
            write_hash(used, &pin.sha256);
        }
        pins.push(pin);
    }
    let after = written(&text, &document);
    let refused = !options.confirm && pins.iter().any(|p| p.change == Change::Changed);
    let written = !refused && after != as_it_was;
    if written {
        if as_it_was != text {
            return Err(by_hand(&file, &pins));
        }
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

/// The file as it is written, and as it is meant.
pub(crate) fn parse(file: &Path, text: &str) -> Result<(DocumentMut, toml::Table), PipelineError> {
    let no_toml = |problem: String| bad_file(file, problem, "mend the file; see https://toml.io for the syntax");
    let document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| no_toml(e.to_string()))?;
    let values: toml::Table = text.parse().map_err(|e: toml::de::Error| no_toml(e.to_string()))?;
    Ok((document, values))
}

/// The file with the document in it. The document knows neither a mark of the byte order nor line ends of Windows, and
/// ends its last line whether it was ended or not: that stays as it was. Not every layout can be kept: keys `use.…` of
/// one table with others between them are put together, and line ends of two kinds become one.
pub(crate) fn written(before: &str, document: &DocumentMut) -> String {
    let mut text = document.to_string().replace("\r\n", "\n");
    if !before.ends_with('\n') && text.ends_with('\n') {
        text.pop();
    }
    let of_windows = before.matches("\r\n").count();
    if of_windows > 0 && of_windows == before.matches('\n').count() {
        text = text.replace('\n', "\r\n");
    }
    match before.starts_with('\u{feff}') && !text.starts_with('\u{feff}') {
        true => format!("\u{feff}{text}"),
        false => text,
    }
}

/// Nothing is written into a file that could not be kept as its operator wrote it.
fn by_hand(file: &Path, pins: &[Pin]) -> PipelineError {
    let mut hint = "write it yourself:".to_owned();
    for pin in pins.iter().filter(|p| p.change != Change::Same) {
        hint.push_str(&format!(
            " sha256 = \"{}\" beside the path of {};",
            pin.sha256, pin.what
        ));
    }
    hint.push_str(" or put keys of one table together, and use one kind of line end");
    let problem = "its layout would change elsewhere if a hash were written into it; nothing was written";
    bad_file(file, problem.to_owned(), &hint)
}

/// The plugins that are meant.
pub(crate) fn plugins(file: &Path, document: &DocumentMut, only: Option<&What>) -> Result<Vec<What>, PipelineError> {
    let mut plugins = Vec::new();
    let mut others = Vec::new();
    let mut sort = |what: What, table: &Item| {
        let used = table.as_table_like().and_then(|t| t.get("use"));
        let is_plugin = used
            .and_then(Item::as_table_like)
            .is_some_and(|u| u.contains_key("path"));
        if is_plugin { &mut plugins } else { &mut others }.push(what);
    };
    let components = document.get("components").and_then(Item::as_table_like);
    for (name, table) in components.iter().flat_map(|c| c.iter()) {
        let component = name.to_owned();
        sort(What::Component { component }, table);
    }
    if let Some(table) = document.get("policy") {
        sort(What::Policy, table);
    }
    let named = "a plugin is named by use = { path = \"x.wasm\" }";
    let wrong = |problem: String, hint: &str| Err(bad_file(file, problem, hint));
    match only {
        None if plugins.is_empty() => wrong("nothing of it comes from a file".to_owned(), named),
        None => Ok(plugins),
        Some(wanted) if plugins.contains(wanted) => Ok(vec![wanted.clone()]),
        Some(wanted) if others.contains(wanted) => {
            wrong(format!("{wanted} comes with essrun: there is nothing to pin"), named)
        }
        Some(What::Policy) => wrong("it has no [policy]".to_owned(), "leave --policy away"),
        Some(What::Component { component }) => {
            let known: Vec<String> = plugins.iter().map(What::to_string).collect();
            wrong(
                format!("no component {component:?}"),
                &format!("its plugins are: {}", known.join(", ")),
            )
        }
    }
}

/// The `limits` beside its `use`, which say what loading it may cost.
pub(crate) fn limits(file: &Path, values: &toml::Table, what: &What) -> Result<Limits, PipelineError> {
    let place = what.place();
    let mut given = Some(values);
    for key in &place {
        given = given.and_then(|table| table.get(*key)).and_then(toml::Value::as_table);
    }
    given.and_then(|table| table.get("limits")).map_or_else(
        || Ok(Limits::default()),
        |limits| {
            limits.clone().try_into().map_err(|e: toml::de::Error| {
                let problem = format!("{}.limits: {}", place.join("."), e.message());
                bad_file(file, problem, "docs/PLUGINS.md has the limits and their units")
            })
        },
    )
}

pub(crate) fn used<'d>(document: &'d mut DocumentMut, what: &What) -> Option<&'d mut dyn TableLike> {
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for key in what.place() {
        table = table.get_mut(key)?.as_table_like_mut()?;
    }
    table.get_mut("use")?.as_table_like_mut()
}

/// Reads, verifies, loads and asks one plugin.
async fn look(
    file: &Path,
    engine: &Engine,
    values: &toml::Table,
    what: What,
    used: &dyn TableLike,
    limits: &Limits,
) -> Result<Pin, PipelineError> {
    let base = file.parent().unwrap_or(Path::new("."));
    let given = |key: &str| used.get(key).and_then(Item::as_str);
    let path = base.join(given("path").unwrap_or_default());
    let wasm = read_file(&path, limits.compile.file)
        .map_err(|problem| bad_file(file, format!("{what}: {problem}"), "name the plugin's .wasm file"))?;
    let refused = |problem: String| {
        let problem = format!("not pinned: {problem}");
        match &what {
            What::Component { component } => PipelineError::component(component, problem),
            What::Policy => bad_file(
                file,
                format!("{what}: {problem}"),
                "docs/POLICY.md says what a policy is",
            ),
        }
    };
    let signed = match (given("signature"), given("public-key")) {
        (None, None) => None,
        (Some(signature), Some(key)) => {
            let signed = SignedBy {
                file: base.join(signature),
                public_key: key.to_owned(),
            };
            verify(&wasm, &signed).map_err(refused)?;
            Some(signed)
        }
        _ => {
            let problem = format!("{what}: only one of signature and public-key is given");
            return Err(bad_file(file, problem, "give both or neither"));
        }
    };
    let sha256 = hex::encode(Sha256::digest(&wasm));
    let is_signed = signed.is_some();
    let description = match &what {
        What::Component { component } => {
            let component = load(engine, component, &wasm, &sha256, limits).map_err(|e| refused(without_name(&e)))?;
            let description = component.describe(limits).await;
            words::description(&description.map_err(|e| refused(without_name(&e)))?)
        }
        What::Policy => {
            let origin = Use::File {
                path: path.clone(),
                sha256: sha256.clone(),
                signed,
            };
            let config = policy_config(file, values, origin, limits)?;
            let decides = policy::decides(&config, engine).await.map_err(|e| match e {
                PipelineError::Config { problem, .. } => refused(problem),
                other => other,
            })?;
            serde_json::json!({ "questions": decides })
        }
    };
    let before = given("sha256").filter(|s| is_hash(s)).map(str::to_ascii_lowercase);
    let change = match &before {
        None => Change::New,
        Some(before) if *before == sha256 => Change::Same,
        Some(_) => Change::Changed,
    };
    Ok(Pin {
        what,
        path,
        change,
        before,
        sha256,
        signed: is_signed,
        description,
    })
}

/// As much of `[policy]` as it takes to load it; the rest of the file need not be right yet.
fn policy_config(
    file: &Path,
    values: &toml::Table,
    origin: Use,
    limits: &Limits,
) -> Result<PolicyConfig, PipelineError> {
    let at = At {
        file: file.to_owned(),
        line: 0,
    };
    let base = file.parent().unwrap_or(Path::new("."));
    let files = |key: &str| {
        let given = values.get("policy").and_then(|p| p.get(key));
        let list = given.map_or(Some(<&[toml::Value]>::default()), |v| v.as_array().map(Vec::as_slice));
        let paths: Option<Vec<PolicyFile>> = list.and_then(|list| {
            let path = |v: &toml::Value| {
                v.as_str().map(|p| PolicyFile {
                    at: at.clone(),
                    path: base.join(p),
                })
            };
            list.iter().map(path).collect()
        });
        paths.ok_or_else(|| {
            bad_file(
                file,
                format!("policy.{key} is no list of paths"),
                "write [\"one.json\"]",
            )
        })
    };
    Ok(PolicyConfig {
        files: files("files")?,
        data: files("data")?,
        at: at.clone(),
        origin,
        questions: None,
        settings: serde_json::Map::new(),
        approvals: None,
        limits: limits.clone(),
    })
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Sets `sha256`, keeping the layout around it.
pub(crate) fn write_hash(used: &mut dyn TableLike, sha256: &str) {
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
            let _ = writeln!(t, "{}: {stands}{signed}: {}", pin.what, pin.path.display());
            if pin.change == Change::Same {
                continue;
            }
            if let Some(before) = &pin.before {
                let _ = writeln!(t, "  was     {before}");
            }
            let _ = writeln!(t, "  sha256  {}", pin.sha256);
            match pin.what {
                What::Component { .. } => t.push_str(&words::description_text(&pin.description)),
                What::Policy => {
                    let decides = pin.description.get("questions").and_then(Value::as_array);
                    let decides = decides.into_iter().flatten().filter_map(Value::as_str);
                    let _ = writeln!(t, "  decides {}", decides.collect::<Vec<_>>().join(", "));
                }
            }
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
            .map(|p| p.what.to_string())
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

    fn hashed(text: &str) -> String {
        let (mut document, _) = parse(Path::new("x.toml"), text).unwrap();
        let what = match document.contains_key("policy") {
            true => What::Policy,
            false => What::Component { component: "x".into() },
        };
        write_hash(used(&mut document, &what).unwrap(), "HASH");
        written(text, &document)
    }

    #[test]
    fn a_layout_that_would_change_is_seen_before() {
        let same = |text: &str| written(text, &parse(Path::new("x.toml"), text).unwrap().0) == text;
        assert!(same(
            "[components.x]\r\nuse.path = \"x\"\r\nuse.sha256 = \"y\"\r\ntier = \"bridge\""
        ));
        assert!(!same(
            "[components.x]\nuse.path = \"x\"\ntier = \"bridge\"\nuse.sha256 = \"y\"\n"
        ));
        assert!(!same("[components.x]\r\nuse.path = \"x\"\n"));
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
                "[policy]\nuse = { path = \"p.wasm\" }\nfiles = []\n",
                "[policy]\nuse = { path = \"p.wasm\", sha256 = \"HASH\" }\nfiles = []\n",
            ),
            (
                "\u{feff}# of an editor that marks\r\n[components.x]\r\nuse = { path = \"x\" }",
                "\u{feff}# of an editor that marks\r\n[components.x]\r\nuse = { path = \"x\", sha256 = \"HASH\" }",
            ),
            (
                "[components.x.use]\npath = \"x\"\nsignature = \"s\"\n",
                "[components.x.use]\npath = \"x\"\nsignature = \"s\"\nsha256 = \"HASH\"\n",
            ),
        ] {
            assert_eq!(hashed(before), after);
            assert_eq!(hashed(after), after, "twice is once");
        }
    }
}
