//! Secrets and configuration that belong to no single system: files the pipeline names, and in Kubernetes the generated
//! Secret and the deployment-marker ConfigMap of ESS, given as files.
//!
//! They are the smallest artifacts and the ones nothing else can replace: the Secret must be of the same generation as
//! the database dump, or Synapse and MAS cannot log in; the marker tells the chart how far a one-way migration has gone.
//! Values never leave this component: facts hold names, and the public half of the signing key.

#![deny(unsafe_code)]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use essrun_guest::{incident, prelude::*, signing_key};
use serde::Deserialize;
use std::collections::BTreeSet;

/// The component.
pub struct HostSecrets;

const FILE_BYTES: u32 = 1 << 20;
/// What ESS generates, and what the loss of each means.
const GENERATED: &[(&str, &str)] = &[
    ("POSTGRES_SYNAPSE_PASSWORD", "Synapse cannot log in to its database"),
    (
        "POSTGRES_MATRIX_AUTHENTICATION_SERVICE_PASSWORD",
        "MAS cannot log in to its database",
    ),
    ("POSTGRES_ADMIN_PASSWORD", "nobody administers the databases"),
    (
        "SYNAPSE_SIGNING_KEY",
        "federation breaks: the server cannot prove to be itself",
    ),
    (
        "SYNAPSE_MACAROON",
        "guest tokens, unsubscribe links and logins under way break",
    ),
    (
        "SYNAPSE_REGISTRATION_SHARED_SECRET",
        "administrators cannot be made from the command line",
    ),
    ("SYNAPSE_EXTRA", "further configuration of Synapse"),
    ("MAS_SYNAPSE_SHARED_SECRET", "MAS and Synapse do not trust each other"),
    (
        "MAS_ENCRYPTION_SECRET",
        "parts of MAS's database cannot be read any more",
    ),
    ("MAS_RSA_PRIVATE_KEY", "signatures of MAS are not valid any more"),
    (
        "MAS_ECDSA_PRIME256V1_PRIVATE_KEY",
        "signatures of MAS are not valid any more",
    ),
    (
        "ELEMENT_CALL_LIVEKIT_SECRET",
        "calls stop until both sides have a new one",
    ),
    ("HOOKSHOT_REGISTRATION", "Hookshot cannot speak to Synapse"),
    (
        "HOOKSHOT_RSA_PASSKEY",
        "tokens Hookshot keeps in Synapse cannot be read any more",
    ),
];
const MARKER: &str = "MATRIX_STACK_MSC3861";

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    required: Vec<String>,
}

impl Component for HostSecrets {
    fn describe() -> Description {
        Description::new("Host secrets", env!("CARGO_PKG_VERSION"), Tier::Critical)
            .loss("Without them the other backups may not be usable: databases cannot be opened by their systems, and the server cannot prove to be itself.")
            .need(Need::volume("files", "a directory of secrets and configuration: ~/.element-enterprise-server/config, Helm values files, the signing key").optional())
            .need(Need::volume("kubernetes", "the generated Secret and the deployment-marker ConfigMap as files: mounted, one file a key, or the output of `kubectl get secret,configmap -o yaml` for the labels matrix-tools-init-secrets and matrix-tools-deployment-markers").optional())
            .setting("required", "[]", "patterns of files that must be there, such as \"cluster.yml\", \"secrets.yml\"; without one the backup fails")
            .class(ArtifactClass::new("*", Sensitivity::Secret, "everything: whoever has these files can become any part of the suite")
                .on_leak("rotate the signing key: new key first, the old PUBLIC key into old_signing_keys")
                .on_leak("replace every password and shared secret, database passwords first, and restart both sides of each")
                .on_leak("MAS's encryption secret cannot be replaced without losing what it encrypts: replace client and provider secrets with it"))
    }

    fn plan_backup() -> Result<BackupPlan, Error> {
        let settings: Settings = settings::get()?;
        let mut plan = BackupPlan::new();
        for label in ["files", "kubernetes"] {
            if !volume::granted(label)? {
                continue;
            }
            plan = plan.archive(ArchiveVolume::all(label));
            let seen = look(label)?;
            for file in &seen.files {
                plan = plan.fact(format!("file/{label}/{file}"), "present");
            }
            for name in &seen.secrets {
                plan = plan.fact(format!("secret/{label}/{name}"), "present");
            }
            if let Some(marker) = &seen.marker {
                plan = plan.fact("deployment-marker", marker);
            }
            for key in &seen.keys {
                plan = plan.fact(format!("signing-key/{label}/{}", key.id), &key.public);
                if key.vulnerable_generation() {
                    plan = plan.warn(format!(
                        "`{label}` holds the signing key {}: {}",
                        key.id,
                        signing_key::VULNERABLE
                    ));
                }
            }
            if label == "kubernetes" {
                plan = complete(plan, &seen);
            }
        }
        if plan.steps.is_empty() {
            return Err(Error::Other(
                "neither `files` nor `kubernetes` is granted, so there is nothing to take".into(),
            ));
        }
        let missing = missing(&settings.required)?;
        match missing.is_empty() {
            true => Ok(plan),
            false => Err(Error::Other(format!(
                "required files are not there: {}; put them in place, or change the setting `required`",
                missing.join(", ")
            ))),
        }
    }

    fn plan_restore(backup: &BackupView) -> Result<RestorePlan, Error> {
        let mut plan = essrun_guest::artifacts_back(&Self::describe(), backup);
        if backup.holds("kubernetes") {
            plan = plan
                .warn("apply the Secret and the ConfigMap (kubectl apply -f; where they were saved one file a key, kubectl create secret generic … --from-file, with the labels) BEFORE the chart is installed: it makes new ones otherwise, which fit neither the databases nor the federation")
                .note("the Secret and the database backup must be of the same generation: passwords in it are those of the databases' roles");
        }
        Ok(plan.note("first of all: the other systems need what is in here"))
    }

    fn verify(backup: &BackupView) -> Result<Vec<Finding>, Error> {
        let settings: Settings = settings::get()?;
        let mut findings = Findings::new();
        for label in ["files", "kubernetes"] {
            if !backup.holds(label) {
                continue;
            }
            let seen = look(label)?;
            let mut lost = Vec::new();
            for (file, _) in backup.facts_below(&format!("file/{label}/")) {
                if !seen.files.contains(file) {
                    lost.push(file.to_owned());
                }
            }
            for (name, _) in backup.facts_below(&format!("secret/{label}/")) {
                if !seen.secrets.contains(name) {
                    lost.push(name.to_owned());
                }
            }
            let remedy = "restore it again; nothing else has these";
            findings.push(match lost.is_empty() {
                true => check(format!("host-secrets-{label}")).pass(format!(
                    "{} files, {} generated secrets",
                    seen.files.len(),
                    seen.secrets.len()
                )),
                false => check(format!("host-secrets-{label}"))
                    .fail(format!("not there any more: {}", lost.join(", ")), remedy),
            });
            for (id, public) in backup.facts_below(&format!("signing-key/{label}/")) {
                let same = seen.keys.iter().any(|k| k.id == id && k.public == public);
                findings.push(match same {
                    true => check("host-secrets-signing-key").pass(format!("{id} is the same")),
                    false => check("host-secrets-signing-key").fail(format!("{id} is missing or another"), remedy),
                });
            }
            if seen.keys.iter().any(signing_key::PublicKey::vulnerable_generation) {
                findings.push(
                    check("host-secrets-signing-key-generation")
                        .warn("the signing key is ed25519:0", signing_key::VULNERABLE),
                );
            }
        }
        let missing = missing(&settings.required)?;
        if !missing.is_empty() {
            findings.push(check("host-secrets-required").fail(
                format!("required files are not there: {}", missing.join(", ")),
                "take them from another backup",
            ));
        }
        Ok(findings.into())
    }

    fn respond(backup: &BackupView) -> Result<IncidentPlan, Error> {
        Ok(incident::from_classes(&Self::describe(), backup))
    }
}

/// What is said of the generated Secret and the marker.
fn complete(plan: BackupPlan, seen: &Seen) -> BackupPlan {
    let mut plan = plan;
    for (name, loss) in GENERATED
        .iter()
        .filter(|(n, _)| ["SYNAPSE_SIGNING_KEY", "MAS_ENCRYPTION_SECRET"].contains(n))
    {
        if !seen.secrets.contains(*name) {
            plan = plan.warn(format!(
                "`kubernetes` has no {name}; unless it is kept elsewhere, after a loss {loss}"
            ));
        }
    }
    if seen.marker.is_none() {
        plan = plan.warn(format!(
            "`kubernetes` has no {MARKER}: save the ConfigMap labelled matrix-tools-deployment-markers too, or a new \
             installation over old data can enter a state the chart forbids"
        ));
    }
    plan
}

#[derive(Default)]
struct Seen {
    files: BTreeSet<String>,
    /// Names of generated secrets.
    secrets: BTreeSet<String>,
    keys: BTreeSet<signing_key::PublicKey>,
    marker: Option<String>,
}

impl Seen {
    /// One name with its value, of a Secret or ConfigMap; others are passed over.
    fn entry(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        if name == MARKER {
            // Only the states the chart knows: the value becomes a fact.
            let known = ["legacy_auth", "syn2mas_migrated", "delegated_auth"]
                .iter()
                .find(|m| **m == value);
            self.marker = known.map(|m| (*m).to_owned()).or(self.marker.take());
        } else if GENERATED.iter().any(|(n, _)| *n == name) {
            self.secrets.insert(name.to_owned());
            if name == "SYNAPSE_SIGNING_KEY" {
                let text = STANDARD
                    .decode(value)
                    .ok()
                    .and_then(|b| String::from_utf8(b).ok())
                    .unwrap_or_else(|| value.to_owned());
                self.keys.extend(signing_key::parse(&text).unwrap_or_default());
            }
        }
    }
}

/// Names what a volume holds; values are looked at for the signing key and the marker only.
fn look(label: &str) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    for file in volume::find(label, "*")? {
        // Large or binary files are kept, and not looked into.
        if let Ok(text) = volume::read_text(label, &file, FILE_BYTES) {
            if let Ok(keys) = signing_key::parse(&text) {
                seen.keys.extend(keys);
            }
            // Mounted into a pod, each key of a Secret or ConfigMap is a file of its name that holds the plain value.
            let own_name = file.rsplit('/').next().unwrap_or(&file);
            seen.entry(own_name, text.trim());
            for line in text.lines() {
                let Some((name, value)) = line.trim().split_once(':') else {
                    continue;
                };
                let name = name.trim().trim_matches('"');
                let value = value.trim().trim_end_matches(',').trim_matches(['"', '\'']);
                seen.entry(name, value);
            }
        }
        seen.files.insert(file);
    }
    Ok(seen)
}

/// The required patterns no file of either volume matches.
fn missing(required: &[String]) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    for pattern in required {
        let mut found = false;
        for label in ["files", "kubernetes"] {
            found = found || (volume::granted(label)? && !volume::find(label, pattern)?.is_empty());
        }
        if !found {
            missing.push(pattern.clone());
        }
    }
    Ok(missing)
}

essrun_guest::export!(HostSecrets);
