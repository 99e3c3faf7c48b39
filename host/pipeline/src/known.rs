//! What essrun itself knows to be secret, held against what components say.
//!
//! How sensitive an artifact is decides how it is guarded and what an incident report tells people to do; a component
//! from elsewhere must not be able to talk that down. The rules lie in `known-secrets.toml`, with where each is written.
//! They can only raise: an artifact a component calls secret is not looked at. What is raised is said, with the
//! component's name, in the plan, in the report and in the backup.

use crate::backup::open::Opened;
use crate::body::{Class, Note, Severity};
use crate::error::PipelineError;
use crate::load::matches;
use essrun_artifact::Sensitivity;
use essrun_postgres::dump::{DumpPlan, artifact_name};
use essrun_volume::{EntryKind, TreePath, Volume, Watch};
use serde::Deserialize;
use std::sync::{Arc, OnceLock};

/// A volume's small files are searched only so far; names are watched in all of it.
const ENTRIES: usize = 5_000;
const FILES: usize = 200;
const FILE_BYTES: u64 = 256 * 1024;
/// Files that hold settings or keys.
const ENDINGS: &[&str] = &["yaml", "yml", "toml", "conf", "cfg", "ini", "env", "json", "pem", "key"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    table: Vec<Rule>,
    file: Vec<Rule>,
    line: Vec<Rule>,
    loss: Vec<Loss>,
}

/// What it costs when one secret is missing on the day, and what to do instead.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Loss {
    system: Vec<String>,
    pub piece: String,
    pub without: String,
    pub instead: String,
    #[cfg_attr(not(test), allow(dead_code))]
    source: String,
}

/// One rule; which of the first four keys it has is checked by the tests of this module.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Rule {
    table: Option<String>,
    #[serde(default)]
    columns: Vec<String>,
    file: Option<String>,
    line: Option<String>,
    holds: String,
    on_leak: String,
    #[cfg_attr(not(test), allow(dead_code))]
    source: String,
}

fn rules() -> Result<&'static Rules, PipelineError> {
    static RULES: OnceLock<Result<Rules, String>> = OnceLock::new();
    RULES
        .get_or_init(|| toml::from_str(include_str!("../known-secrets.toml")).map_err(|e| e.to_string()))
        .as_ref()
        .map_err(|e| PipelineError::Internal(format!("known-secrets.toml: {e}")))
}

impl Rules {
    fn of_table(&self, name: &str, columns: &[String]) -> Option<&Rule> {
        let name = name.to_ascii_lowercase();
        self.table.iter().find(|rule| {
            rule.table.as_deref().is_some_and(|pattern| matches(pattern, &name))
                && (rule.columns.iter()).all(|wanted| columns.iter().any(|c| c.eq_ignore_ascii_case(wanted)))
        })
    }

    fn of_file(&self, path: &[u8]) -> Option<&Rule> {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        self.file
            .iter()
            .find(|rule| rule.file.as_deref().is_some_and(|pattern| matches(pattern, &name)))
    }

    fn of_text(&self, text: &str) -> Option<&Rule> {
        let blank = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '{' | ',');
        text.lines().find_map(|line| {
            let line = line.trim_start_matches(|c: char| blank(c) || c == '-' && !line.contains("-----BEGIN"));
            let key: String = line
                .chars()
                .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
                .collect();
            let last = key.rsplit('.').next().unwrap_or_default();
            self.line.iter().find(|rule| {
                rule.line
                    .as_deref()
                    .is_some_and(|known| known == last || (known.starts_with("-----") && line.starts_with(known)))
            })
        })
    }
}

/// What the secrets of a system cost when they are missing, by the name its component gives the system.
pub(crate) fn losses(system: &str) -> Result<impl Iterator<Item = &'static Loss>, PipelineError> {
    let system = system.to_ascii_lowercase();
    let of = move |loss: &&Loss| loss.system.iter().any(|s| system.starts_with(&s.to_ascii_lowercase()));
    Ok(rules()?.loss.iter().filter(of))
}

/// What is raised: an artifact, by its name after `component/`.
struct Raised {
    rest: String,
    /// Where in it the secret is, where the artifact's name does not say.
    at: Option<String>,
    holds: String,
    on_leak: Option<String>,
}

/// Raises what of an opened component's plan is known to be secret and was called less. Called when the plan is made,
/// before anything is taken; files in volumes are watched by [`watch`] while they are taken.
pub async fn raise(one: &mut Opened) -> Result<(), PipelineError> {
    let rules = rules()?;
    // Where a plan is made again, it begins with what the component itself says.
    one.loaded.classes.truncate(one.loaded.description.classes.len());
    let mut raised = Vec::new();
    for (label, plan) in &one.plan.dump_plans {
        raised.extend(in_dump(rules, one, label, plan)?);
    }
    for label in &one.plan.copies {
        let Some(copy) = one.copies.get(label) else { continue };
        if one.loaded.sensitivity(label) == Sensitivity::Secret {
            continue;
        }
        let failed = |e| PipelineError::source(format!("{}/{label}", one.loaded.name()), e);
        let tables = copy.open().await.map_err(failed)?.tables().await.map_err(failed)?;
        let found = (tables.iter()).find_map(|t| rules.of_table(&t.name, &t.columns).map(|rule| (t, rule)));
        if let Some((table, rule)) = found {
            raised.push(Raised::new(label.clone(), Some(format!("table {}", table.name)), rule));
        }
    }
    for label in one.plan.archives.keys() {
        let Some(volume) = one.volumes.get(label).cloned() else {
            continue;
        };
        if one.loaded.sensitivity(label) == Sensitivity::Secret {
            continue;
        }
        let found = tokio::task::spawn_blocking(move || in_files(rules, &volume))
            .await
            .map_err(|e| PipelineError::Internal(e.to_string()))?;
        if let Some((path, rule)) = found {
            raised.push(Raised::new(label.clone(), Some(path), rule));
        }
    }
    for r in raised {
        r.say(one);
    }
    Ok(())
}

fn in_dump(rules: &'static Rules, one: &Opened, label: &str, plan: &DumpPlan) -> Result<Vec<Raised>, PipelineError> {
    let prefix = format!("{}/{label}", one.loaded.name());
    let mut raised = Vec::new();
    for table in &plan.tables {
        let Some(rule) = rules.of_table(&table.table.name, &table.columns) else {
            continue;
        };
        let name = artifact_name(&prefix, &table.table).map_err(|e| PipelineError::source(prefix.clone(), e))?;
        let rest = name.as_str().split_once('/').map_or("", |(_, rest)| rest);
        if one.loaded.sensitivity(rest) < Sensitivity::Secret {
            raised.push(Raised::new(rest.to_owned(), None, rule));
        }
    }
    Ok(raised)
}

/// A first look into the small files of a volume. What cannot be read here fails, and is said, when it is taken.
fn in_files(rules: &'static Rules, volume: &Volume) -> Option<(String, &'static Rule)> {
    let mut walk = volume.walk("", true).ok()?;
    let (mut entries, mut files) = (0, 0);
    while entries < ENTRIES && files < FILES {
        let page = walk.next_page(1_000).ok()?;
        if page.is_empty() {
            return None;
        }
        entries += page.len();
        for entry in page {
            // A name that is no UTF-8 cannot be asked for; names are watched as bytes.
            let Ok(path) = std::str::from_utf8(entry.path.as_bytes()) else {
                continue;
            };
            let ending = path.rsplit_once('.').map_or("", |(_, ending)| ending);
            if entry.kind != EntryKind::File || entry.size_bytes > FILE_BYTES || !ENDINGS.contains(&ending) {
                continue;
            }
            files += 1;
            let Ok(bytes) = volume.read(path, FILE_BYTES) else {
                continue;
            };
            if let Some(rule) = rules.of_text(&String::from_utf8_lossy(&bytes)) {
                return Some((entry.path.to_string(), rule));
            }
        }
    }
    None
}

/// Watches the names of what is archived as `label`; none where the artifact is called secret anyway.
pub fn watch(one: &Opened, label: &str) -> Result<Option<Watch>, PipelineError> {
    let rules = rules()?;
    if one.loaded.sensitivity(label) == Sensitivity::Secret {
        return Ok(None);
    }
    Ok(Some(Arc::new(move |path: &TreePath| {
        rules.of_file(path.as_bytes()).map(|rule| rule.holds.clone())
    })))
}

/// Says what the watch over a volume saw.
pub fn seen(one: &mut Opened, label: &str, path: &TreePath, holds: &str) -> Result<(), PipelineError> {
    let on_leak = rules()?.of_file(path.as_bytes()).map(|rule| rule.on_leak.clone());
    let raised = Raised {
        rest: label.to_owned(),
        at: Some(path.to_string()),
        holds: holds.to_owned(),
        on_leak,
    };
    raised.say(one);
    Ok(())
}

impl Raised {
    fn new(rest: String, at: Option<String>, rule: &Rule) -> Raised {
        Raised {
            rest,
            at,
            holds: rule.holds.clone(),
            on_leak: Some(rule.on_leak.clone()),
        }
    }

    /// The class goes with the backup like the component's own; the note tells the person.
    fn say(self, one: &mut Opened) {
        let called = match one.loaded.sensitivity(&self.rest) {
            Sensitivity::Internal => "internal",
            Sensitivity::Personal => "personal",
            Sensitivity::Secret => "secret",
        };
        let at = self.at.map(|at| format!("{at}: ")).unwrap_or_default();
        one.plan.notes.push(Note {
            severity: Severity::Warning,
            text: format!(
                "component {} calls {} {called}, but essrun knows it holds secrets ({at}{}); it is kept as secret. Tell the \
                 component's author",
                one.loaded.name(),
                self.rest,
                self.holds
            ),
        });
        one.loaded.classes.push(Class {
            pattern: self.rest,
            sensitivity: Sensitivity::Secret,
            exposes: format!(
                "{at}{} (known to essrun{})",
                self.holds,
                self.on_leak
                    .as_ref()
                    .map(|what| format!("; if it leaked: {what}"))
                    .unwrap_or_default()
            ),
            on_leak: self.on_leak.into_iter().collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn every_rule_is_whole() {
        let rules = rules().unwrap();
        let all = rules.table.iter().chain(&rules.file).chain(&rules.line);
        for rule in all {
            assert!(!rule.holds.is_empty() && !rule.on_leak.is_empty() && !rule.source.is_empty());
        }
        for loss in &rules.loss {
            assert!(!loss.system.is_empty() && !loss.source.is_empty());
            assert!(!loss.piece.is_empty() && !loss.without.is_empty() && !loss.instead.is_empty());
        }
        assert!(
            rules
                .table
                .iter()
                .all(|r| r.table.is_some() && r.file.is_none() && r.line.is_none())
        );
        assert!(
            rules
                .file
                .iter()
                .all(|r| r.file.is_some() && r.table.is_none() && r.line.is_none())
        );
        assert!(
            rules
                .line
                .iter()
                .all(|r| r.line.is_some() && r.table.is_none() && r.file.is_none())
        );
    }

    #[test]
    fn tables_are_known_by_name_and_columns() {
        let rules = rules().unwrap();
        let holds = |name: &str, with: &[&str]| rules.of_table(name, &columns(with)).map(|r| r.holds.as_str());
        assert!(holds("access_tokens", &["id", "token"]).is_some());
        assert!(holds("ACCESS_TOKENS", &["ID", "TOKEN"]).is_some());
        assert!(holds("users", &["name"]).is_none());
        assert!(holds("users", &["name", "password_hash"]).is_some());
        assert!(holds("e2e_room_keys_versions", &[]).is_some());
        assert!(holds("whatever", &["id", "auth_key"]).is_some());
        assert!(holds("events", &["event_id", "sender"]).is_none());
        assert!(holds("e2e_fallback_keys_json", &["key_json"]).is_none());
    }

    #[test]
    fn losses_are_found_by_system() {
        let of = |system: &str| losses(system).unwrap().map(|l| l.piece.as_str()).collect::<Vec<_>>();
        assert!(of("Synapse")[0].contains("signing key"));
        assert!(
            of("Matrix Authentication Service")
                .iter()
                .any(|p| p.contains("secrets.encryption"))
        );
        assert!(
            of("WhatsApp bridge (mautrix-whatsapp)")
                .iter()
                .any(|p| p.contains("pickle_key"))
        );
        assert!(of("Wiki").is_empty());
        // Every name a rule is for is one that a built-in component gives its system.
        let built_in = [
            "Synapse",
            "Matrix Authentication Service",
            "Host secrets",
            "Sydent",
            "Sliding Sync",
            "Adminbot",
            "Auditbot",
            "IRC bridge (matrix-appservice-irc)",
            "WhatsApp bridge (mautrix-whatsapp)",
            "Telegram bridge (mautrix-telegram)",
            "XMPP bridge (matrix-bifrost)",
            "SIP bridge",
            "Hookshot",
        ];
        for name in rules().unwrap().loss.iter().flat_map(|l| &l.system) {
            assert!(built_in.iter().any(|b| b.starts_with(name.as_str())), "{name}");
        }
    }

    #[test]
    fn files_are_known_by_name_and_by_their_lines() {
        let rules = rules().unwrap();
        for known in [
            "a/example.org.signing.key",
            "homeserver.yaml",
            "x/PASSKEY.PEM",
            "irc-registration.yaml",
            "sygnal/AuthKey_ABC123.p8",
            "sygnal/push.P12",
        ] {
            assert!(rules.of_file(known.as_bytes()).is_some(), "{known}");
        }
        for unknown in [
            "local_content/ab/cd/efgh",
            "signing.key.md5",
            "homeserver.yaml/README",
            "log.yaml",
        ] {
            assert!(rules.of_file(unknown.as_bytes()).is_none(), "{unknown}");
        }
        for known in [
            "a: b\nregistration_shared_secret: \"x\"",
            "  - as_token: x",
            "{ \"hs_token\": 5 }",
            "encryption.pickle_key = \"x\"",
            "{\n  \"type\": \"service_account\",\n  \"private_key\": \"-----BEGIN PRIVATE KEY-----\\nMII\"\n}",
            "crypto:\n  request_secret_path: /data/secret",
            "-----BEGIN RSA PRIVATE KEY-----\nMII",
        ] {
            assert!(rules.of_text(known).is_some(), "{known}");
        }
        for unknown in [
            "",
            "# as_token: x",
            "the as_token: x",
            "-----BEGIN CERTIFICATE-----",
            "as_tokens: 5",
        ] {
            assert!(rules.of_text(unknown).is_none(), "{unknown}");
        }
    }
}
