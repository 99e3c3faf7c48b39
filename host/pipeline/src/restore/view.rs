//! The backup as a component sees it, and how its databases stand in time beside those of its peers.
//!
//! A component that compares its database with a peer's must know whether the two were taken at one instant. Only the
//! host knows: it puts facts below `instant/LABEL/` beside the component's own, for each peer that is looked at.

use super::RestoreOptions;
use crate::body::{BackupBody, Instant};
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::peers::{self, OURS, Restored};
use crate::repo;
use essrun_artifact::BackupReader;
use essrun_postgres::{Inspector, Reached};
use essrun_repository::OpenBackup;
use essrun_sandbox::contract::{restore as wit, types};
use std::time::{SystemTime, UNIX_EPOCH};

/// The backup as the component sees it.
pub(crate) fn of(name: &str, body: &BackupBody, backup: &OpenBackup) -> Result<wit::BackupView, PipelineError> {
    let Some(component) = body.component(name) else {
        return Err(PipelineError::Internal(format!(
            "component {name} is not in the backup"
        )));
    };
    let prefix = format!("{name}/");
    let artifacts = backup
        .artifacts()
        .iter()
        .filter_map(|a| {
            let rest = a.name.as_str().strip_prefix(&prefix)?;
            Some(wit::Artifact {
                name: rest.to_owned(),
                kind: a.kind.clone(),
                items: repo::items(a),
                size_bytes: repo::size(a),
            })
        })
        .collect();
    Ok(wit::BackupView {
        id: backup.summary().id.to_string(),
        taken_at_unix_seconds: component.taken_at,
        component_version: component.component_version.clone(),
        facts: component
            .facts
            .iter()
            .filter(|f| !f.key.starts_with(OURS))
            .map(|f| types::Fact {
                key: f.key.clone(),
                value: f.value.clone(),
            })
            .collect(),
        artifacts,
    })
}

/// What this restore makes again, and how it stands to what a component looks at.
pub(super) struct Beside(Restored);

impl Beside {
    pub fn of(loaded: &[Loaded], body: &BackupBody, options: &RestoreOptions) -> Result<Beside, PipelineError> {
        Restored::of(loaded, body, |component, label| options.restores(component, label)).map(Beside)
    }

    /// For each peer of a component: `instant/LABEL/how`; `instant/LABEL/gap-ms`, by how much later than the peer's the
    /// component's own database was taken, where there is such a database; and `instant/LABEL/taken-as` where the backup
    /// says that the component saw it in the snapshot that is restored now.
    pub async fn facts(&self, one: &Loaded, body: &BackupBody) -> Result<Vec<types::Fact>, PipelineError> {
        let mut facts = Vec::new();
        let below = format!("{}/", one.name());
        let own = |label: &str| label.starts_with(&below) && self.0.has(label);
        let Some((own_group, own_at)) = taken(body, own) else {
            return Ok(facts);
        };
        for (label, peer) in peers::looked_at(one) {
            let peer = peer?;
            let restored = self.0.find(one, label, &peer, body).await;
            let (how, peer_at) = match restored.and_then(|name| taken(body, |label| label == name)) {
                Some((group, at)) if group == own_group => (how(group), Some(at)),
                Some((_, at)) => ("apart".to_owned(), Some(at)),
                None => match Inspector::new(peer).info().await {
                    Ok(_) => ("live".to_owned(), Some(now_ms())),
                    Err(e) => {
                        tracing::info!("{}/{label} is not there now: {e}", one.name());
                        ("absent".to_owned(), None)
                    }
                },
            };
            let mut fact = |key: &str, value: String| {
                facts.push(types::Fact {
                    key: format!("{OURS}{label}/{key}"),
                    value,
                });
            };
            fact("how", how);
            if let Some(at) = peer_at {
                fact("gap-ms", own_at.saturating_sub(at).to_string());
            }
            if let (Some(name), Some(_)) = (restored, peers::taken_as(one.name(), label, body)) {
                fact("taken-as", name.to_owned());
            }
        }
        Ok(facts)
    }
}

/// The group a database was taken in, and when, by the clock of the machine that took it.
pub(crate) fn taken(body: &BackupBody, is: impl Fn(&str) -> bool) -> Option<(&Instant, i64)> {
    body.instants.iter().find_map(|group| {
        let reached: Reached = serde_json::from_value(group.reached.clone()).ok()?;
        let member = reached.members.iter().find(|m| is(&m.label))?;
        Some((group, i64::try_from(member.taken_at_unix_ms).unwrap_or(i64::MAX)))
    })
}

/// `same-instant`, `fenced` or `ordered`.
pub(crate) fn how(group: &Instant) -> String {
    let how = group.reached.get("how").and_then(|how| how.as_str());
    how.unwrap_or("ordered").to_owned()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
