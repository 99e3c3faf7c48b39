//! Components: loaded, asked what they are, and held against what the pipeline grants them.

use crate::body::{Class, Tier};
use crate::config::{ComponentConfig, Pipeline, Use};
use crate::error::{At, PipelineError};
use crate::order;
use crate::plugin::{self, SignedBy};
use crate::report::{Event, Reporter};
use essrun_artifact::Sensitivity;
use essrun_sandbox::contract::types::{self, Description, NeedKind, NeedRole};
use essrun_sandbox::{Component, Engine, EngineConfig, Origin};
use std::path::Path;

/// A component ready to be called.
#[derive(Clone)]
pub struct Loaded {
    pub config: ComponentConfig,
    pub component: Component,
    pub description: Description,
    pub classes: Vec<Class>,
    pub sha256: String,
    pub third_party: bool,
}

impl Loaded {
    pub fn name(&self) -> &str {
        &self.config.name
    }

    pub fn tier(&self) -> Tier {
        match self.description.tier {
            types::Tier::Critical => Tier::Critical,
            types::Tier::Feature => Tier::Feature,
            types::Tier::Rebuildable => Tier::Rebuildable,
            types::Tier::Bridge => Tier::Bridge,
        }
    }

    /// Labels this component backs up (not those it only looks at).
    pub fn owns(&self, label: &str) -> bool {
        self.description
            .needs
            .iter()
            .any(|n| n.label == label && n.role == NeedRole::Owned)
    }

    /// How sensitive an artifact is, by its name after `component/`.
    pub fn sensitivity(&self, rest: &str) -> Sensitivity {
        sensitivity(&self.classes, rest)
    }

    /// The most sensitive artifact this component could make.
    pub fn greatest_sensitivity(&self) -> Sensitivity {
        // What no class covers counts as secret, and no set of patterns is known to cover everything.
        Sensitivity::Secret
    }
}

/// An artifact without a class counts as secret; of several classes the highest counts.
pub fn sensitivity(classes: &[Class], rest: &str) -> Sensitivity {
    classes
        .iter()
        .filter(|c| matches(&c.pattern, rest))
        .map(|c| c.sensitivity)
        .max()
        .unwrap_or(Sensitivity::Secret)
}

/// `*` stands for any run of characters.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else {
        return text.is_empty();
    };
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The engine all components of a run share.
pub fn engine(pipeline: &Pipeline) -> Result<Engine, PipelineError> {
    engine_with(&pipeline.repository.cache)
}

/// An engine that keeps compiled code below this directory.
pub fn engine_with(cache: &Path) -> Result<Engine, PipelineError> {
    let cache_dir = Some(cache.join("components"));
    Engine::new(EngineConfig {
        cache_dir,
        ..EngineConfig::default()
    })
    .map_err(|e| PipelineError::Internal(e.to_string()))
}

/// Loads the components of a pipeline (or those of `only`), each checked against its grants, in the order they come back
/// in. Nothing is opened.
pub async fn all(
    pipeline: &Pipeline,
    only: &[String],
    engine: &Engine,
    reporter: &dyn Reporter,
) -> Result<Vec<Loaded>, PipelineError> {
    let (loaded, failed) = each(pipeline, only, engine, reporter).await?;
    match failed.into_iter().next() {
        Some(first) => Err(first.error),
        None => Ok(loaded),
    }
}

/// A component that could not be loaded: its file is another one, refused, or stopped while it described itself.
pub struct Unloaded {
    pub config: ComponentConfig,
    pub error: PipelineError,
}

/// The same, where one that cannot be loaded costs only itself. What is wrong in the file is an error all the same.
pub async fn each(
    pipeline: &Pipeline,
    only: &[String],
    engine: &Engine,
    reporter: &dyn Reporter,
) -> Result<(Vec<Loaded>, Vec<Unloaded>), PipelineError> {
    for name in only {
        if pipeline.component(name).is_none() {
            return Err(PipelineError::refused(
                format!("no component {name:?} in {}", pipeline.file.display()),
                format!("there are: {}", names(pipeline)),
            ));
        }
    }
    let (mut loaded, mut failed) = (Vec::new(), Vec::new());
    for config in &pipeline.components {
        if only.is_empty() || only.contains(&config.name) {
            let one = match load(engine, config).await {
                Ok(one) => one,
                Err(error @ PipelineError::Component { .. }) => {
                    let config = config.clone();
                    failed.push(Unloaded { config, error });
                    continue;
                }
                Err(error) => return Err(error),
            };
            reporter.event(Event::Component {
                component: one.name().to_owned(),
                system: one.description.system.clone(),
                version: one.description.version.clone(),
            });
            loaded.push(one);
        }
    }
    order::loaded(&mut loaded).await;
    Ok((loaded, failed))
}

fn names(pipeline: &Pipeline) -> String {
    pipeline
        .components
        .iter()
        .map(|c| c.name.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

async fn load(engine: &Engine, config: &ComponentConfig) -> Result<Loaded, PipelineError> {
    let name = &config.name;
    let (wasm, origin, sha256, third_party) = match &config.origin {
        Use::BuiltIn(builtin) => {
            let Some(found) = essrun_builtin::get(builtin) else {
                let known: Vec<_> = essrun_builtin::all().iter().map(|b| b.name).collect();
                return Err(config_error(
                    &config.at,
                    format!("component {name}: there is no built-in component {builtin:?}"),
                    format!(
                        "built in are {}; a plugin is named by {{ path, sha256 }}",
                        known.join(", ")
                    ),
                ));
            };
            (
                std::borrow::Cow::Borrowed(found.wasm),
                Origin::BuiltIn,
                found.sha256.to_owned(),
                false,
            )
        }
        Use::File { path, sha256, signed } => {
            let wasm = plugin_file(config, path, signed.as_ref()).await?;
            (
                std::borrow::Cow::Owned(wasm),
                Origin::ThirdParty { sha256: sha256.clone() },
                sha256.clone(),
                true,
            )
        }
    };
    // Compiling takes seconds where the cache is empty; signals and timers go on meanwhile.
    let shape = &config.limits.compile;
    let component = tokio::task::block_in_place(|| engine.load_within(name, &wasm, origin, shape))
        .map_err(|e| PipelineError::component(name, e))?;
    let description = component
        .describe(&config.limits)
        .await
        .map_err(|e| PipelineError::component(name, e))?;
    check_grants(config, &description)?;
    Ok(Loaded {
        config: config.clone(),
        component,
        classes: classes(&description),
        description,
        sha256,
        third_party,
    })
}

/// What it says of its artifacts.
pub(crate) fn classes(description: &Description) -> Vec<Class> {
    description
        .classes
        .iter()
        .map(|c| Class {
            pattern: c.pattern.clone(),
            sensitivity: match c.sensitivity {
                types::Sensitivity::Internal => Sensitivity::Internal,
                types::Sensitivity::Personal => Sensitivity::Personal,
                types::Sensitivity::Secret => Sensitivity::Secret,
            },
            exposes: c.exposes.clone(),
            on_leak: c.on_leak.clone(),
        })
        .collect()
}

/// The plugin's bytes, signed as pipeline.toml asks. The sandbox compares them with the pin.
async fn plugin_file(
    config: &ComponentConfig,
    path: &std::path::Path,
    signed: Option<&SignedBy>,
) -> Result<Vec<u8>, PipelineError> {
    let name = &config.name;
    let (path, most, signed) = (path.to_owned(), config.limits.compile.file, signed.cloned());
    let read = tokio::task::spawn_blocking(move || {
        let wasm = plugin::read_file(&path, most)?;
        Ok((signed.map(|s| plugin::verify(&wasm, &s)), wasm))
    })
    .await
    .map_err(|e| PipelineError::Internal(e.to_string()))?;
    let (verified, wasm) = read.map_err(|problem: String| {
        config_error(
            &config.at,
            format!("component {name}: {problem}"),
            "name the plugin's .wasm file".to_owned(),
        )
    })?;
    match verified {
        Some(Err(problem)) => Err(PipelineError::component(
            name,
            format!(
                "refused: {problem}; ask its author for the file and its signature again, and trust neither until then"
            ),
        )),
        _ => Ok(wasm),
    }
}

pub(crate) fn check_grants(config: &ComponentConfig, description: &Description) -> Result<(), PipelineError> {
    let name = &config.name;
    let asked = |kind: NeedKind| -> String {
        let list: Vec<String> = description
            .needs
            .iter()
            .filter(|n| n.kind == kind)
            .map(|n| {
                format!(
                    "{} ({}{})",
                    n.label,
                    if n.required { "required: " } else { "optional: " },
                    n.purpose
                )
            })
            .collect();
        if list.is_empty() {
            "none".to_owned()
        } else {
            list.join("; ")
        }
    };
    for need in &description.needs {
        let (granted, table) = match need.kind {
            NeedKind::Database => (config.databases.contains_key(&need.label), "databases"),
            NeedKind::Volume => (config.volumes.contains_key(&need.label), "volumes"),
        };
        if need.required && !granted {
            return Err(config_error(
                &config.at,
                format!("component {name} needs {table}.{}: {}", need.label, need.purpose),
                format!("add it under [components.{name}.{table}]"),
            ));
        }
    }
    let unasked = |label: &str, kind: NeedKind| !description.needs.iter().any(|n| n.label == label && n.kind == kind);
    for (label, grant) in &config.databases {
        if unasked(label, NeedKind::Database)
            && !description
                .needs
                .iter()
                .any(|n| n.label == "*" && n.kind == NeedKind::Database)
        {
            return Err(config_error(
                &grant.at,
                format!("component {name} knows no database {label:?}"),
                format!("it asks for: {}", asked(NeedKind::Database)),
            ));
        }
    }
    for (label, grant) in &config.volumes {
        if unasked(label, NeedKind::Volume)
            && !description
                .needs
                .iter()
                .any(|n| n.label == "*" && n.kind == NeedKind::Volume)
        {
            return Err(config_error(
                &grant.at,
                format!("component {name} knows no volume {label:?}"),
                format!("it asks for: {}", asked(NeedKind::Volume)),
            ));
        }
    }
    for (key, at) in &config.settings_at {
        if !description.settings.iter().any(|s| &s.name == key) {
            let known: Vec<_> = description.settings.iter().map(|s| s.name.as_str()).collect();
            return Err(config_error(
                at,
                format!("component {name} knows no setting {key:?}"),
                if known.is_empty() {
                    "it has no settings".to_owned()
                } else {
                    format!("it knows: {}", known.join(", "))
                },
            ));
        }
    }
    Ok(())
}

fn config_error(at: &At, problem: String, hint: String) -> PipelineError {
    PipelineError::Config {
        at: at.clone(),
        problem,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_runs() {
        for (pattern, text, hit) in [
            ("media", "media", true),
            ("media", "media2", false),
            ("main/public.*", "main/public.users", true),
            ("main/*keys*", "main/public.e2e_fallback_keys_json", true),
            ("*", "", true),
            ("*a*b", "xxaxxb", true),
            ("*a*b", "xxbxxa", false),
            ("a*a", "a", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), hit, "{pattern} {text}");
        }
    }

    #[test]
    fn the_highest_class_counts_and_none_is_secret() {
        let class = |pattern: &str, sensitivity| Class {
            pattern: pattern.into(),
            sensitivity,
            exposes: String::new(),
            on_leak: vec![],
        };
        let classes = [
            class("main/*", Sensitivity::Personal),
            class("main/ddl*", Sensitivity::Internal),
        ];
        assert_eq!(sensitivity(&classes, "main/ddl-pre-data"), Sensitivity::Personal);
        assert_eq!(sensitivity(&classes, "media"), Sensitivity::Secret);
    }
}
