//! Peers: the databases one component looks at and another backs up.
//!
//! Which is which is not written in the pipeline file: a peer is granted by an address of its own, often with a role that
//! can only read. So it is found out, here and nowhere else. While a backup is taken the servers are asked who they are;
//! what is found is kept in the backup as the fact `instant/LABEL/taken-as`, and a restore, whose servers may all be
//! gone, goes by that. Where nobody can be asked and nothing is recorded, addresses are compared.

use crate::backup::open::Opened;
use crate::body::{BackupBody, ComponentBody, Instant, Note, Severity};
use crate::config::{DatabaseSource, Pipeline};
use crate::error::PipelineError;
use crate::instant;
use crate::load::Loaded;
use essrun_postgres::{Connection, Inspector, Snapshot, SnapshotGroup};
use std::collections::BTreeSet;

/// Facts with keys that begin so are the host's, and never a component's.
pub(crate) const OURS: &str = "instant/";

/// The PostgreSQL databases granted to a component, with their addresses: those it backs up, or those it only looks at.
fn granted(one: &Loaded, owned: bool) -> impl Iterator<Item = (&String, Result<Connection, PipelineError>)> {
    one.config.databases.iter().filter_map(move |(label, grant)| {
        let DatabaseSource::Postgres(secret) = &grant.source else {
            return None;
        };
        (one.owns(label) == owned).then(|| (label, instant::connection(secret)))
    })
}

/// What a component backs up.
pub(crate) fn owned(one: &Loaded) -> impl Iterator<Item = (&String, Result<Connection, PipelineError>)> {
    granted(one, true)
}

/// What a component only looks at.
pub(crate) fn looked_at(one: &Loaded) -> impl Iterator<Item = (&String, Result<Connection, PipelineError>)> {
    granted(one, false)
}

/// Whether `one` looks at a database that `other` backs up, by their addresses.
async fn looks_at(one: &Loaded, other: &Loaded) -> bool {
    // An address that cannot be had is told by whoever needs it.
    for peer in looked_at(one).filter_map(|(_, peer)| peer.ok()) {
        for theirs in owned(other).filter_map(|(_, theirs)| theirs.ok()) {
            if peer.same_database(&theirs).await {
                return true;
            }
        }
    }
    false
}

/// Of these components each (name, name) of one that looks at a database another backs up.
pub(crate) async fn who_looks_at_whom(components: &[&Loaded]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for one in components {
        for other in components.iter().filter(|other| other.name() != one.name()) {
            if looks_at(one, other).await {
                found.insert((one.name().to_owned(), other.name().to_owned()));
            }
        }
    }
    found
}

/// Snapshots, to be found by what their servers say they are.
pub(crate) struct Snapshots<'a>(Vec<(&'a Snapshot, Option<String>)>);

impl<'a> Snapshots<'a> {
    /// Those of a run, where any of its components looks at what is not its own.
    pub async fn of(groups: &'a [SnapshotGroup], opened: &[Opened]) -> Snapshots<'a> {
        let mut all = Vec::new();
        if !opened.iter().any(|one| looked_at(&one.loaded).next().is_some()) {
            return Snapshots(all);
        }
        for snapshot in groups.iter().flat_map(SnapshotGroup::snapshots) {
            all.push((snapshot, identity(snapshot.inspector()).await));
        }
        Snapshots(all)
    }

    /// The snapshot of the database this leads to, whoever connects.
    pub async fn find(&self, peer: &Connection) -> Option<&'a Snapshot> {
        let ours = identity(&Inspector::new(peer.clone())).await;
        for (snapshot, theirs) in &self.0 {
            let same = match (&ours, theirs) {
                (Some(ours), Some(theirs)) => ours == theirs,
                _ => peer.same_database(snapshot.connection()).await,
            };
            if same {
                return Some(snapshot);
            }
        }
        None
    }
}

/// `None` where the server cannot be asked or does not tell; one that is not there is told when it is looked into.
async fn identity(inspector: &Inspector) -> Option<String> {
    match inspector.identity().await {
        Ok(identity) => Some(identity),
        Err(e) => {
            tracing::info!("{}: its address must do: {e}", inspector.connection());
            None
        }
    }
}

/// Puts beside a component's plan which databases its peers are, and says where they are not taken with its own.
pub(crate) fn record(one: &mut Opened, pipeline: &Pipeline, instants: &[Instant]) {
    let name = one.loaded.name().to_owned();
    one.plan.facts.retain(|key, _| !key.starts_with(OURS));
    let group = |database: &str| instants.iter().find(|i| i.databases.iter().any(|d| d == database));
    let own: Vec<String> = owned(&one.loaded).map(|(label, _)| format!("{name}/{label}")).collect();
    for (label, peer) in &one.peers {
        let Some(peer) = peer else { continue };
        one.plan.facts.insert(format!("{OURS}{label}/taken-as"), peer.clone());
        let Some(database) = own.first() else { continue };
        let together = group(database).map(|i| &i.group) == group(peer).map(|i| &i.group);
        if !together {
            one.plan.notes.push(Note {
                severity: Severity::Warning,
                text: format!(
                    "{database} and {peer}, which it looks at as `{label}`, are not taken at one instant: restored, one \
                     can know what the other does not. Write into {}:\n{}",
                    pipeline.file.display(),
                    lines(pipeline, &name, peer.split('/').next().unwrap_or(peer))
                ),
            });
        }
    }
}

/// What to write so that both are in one group.
fn lines(pipeline: &Pipeline, one: &str, other: &str) -> String {
    let named = |name: &str| pipeline.groups.iter().find(|g| g.components.iter().any(|c| c == name));
    let (group, mut members) = match (named(other), named(one)) {
        (Some(group), _) | (None, Some(group)) => (group.name.as_str(), group.components.clone()),
        (None, None) => ("core", Vec::new()),
    };
    for name in [other, one] {
        if !members.iter().any(|m| m == name) {
            members.push(name.to_owned());
        }
    }
    let members: Vec<String> = members.iter().map(|m| format!("{m:?}")).collect();
    format!("    [groups.{group}]\n    consistent = [{}]", members.join(", "))
}

/// What is to be said about peers that nobody here backs up: (component, severity, text).
pub(crate) fn unknown(opened: &[Opened]) -> Vec<(String, Severity, String)> {
    let mut said = Vec::new();
    for one in opened {
        // Only who backs up a database has something to compare with a peer's.
        let severity = match owned(&one.loaded).next() {
            Some(_) => Severity::Warning,
            None => Severity::Info,
        };
        for (label, _) in one.peers.iter().filter(|(_, peer)| peer.is_none()) {
            let at = one.sources.get(label).map_or("", String::as_str);
            said.push((
                one.loaded.name().to_owned(),
                severity,
                format!(
                    "{label} ({at}) is no database that a component here backs up: it is looked at as it is at that \
                     moment, in a restore too. If it is meant to be one of them, write host, port and name as there; the \
                     role may be another"
                ),
            ));
        }
    }
    said
}

/// The databases that a restore makes again, to be found by who looks at them.
pub(crate) struct Restored(Vec<(String, Connection)>);

impl Restored {
    /// Of these components, with the labels that are `wanted` (component, label).
    pub fn of<'a>(
        loaded: impl IntoIterator<Item = &'a Loaded>,
        body: &BackupBody,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Result<Restored, PipelineError> {
        let mut all = Vec::new();
        for one in loaded {
            if body.component(one.name()).is_some_and(|c| c.failed.is_none()) {
                for (label, connection) in owned(one).filter(|(label, _)| wanted(one.name(), label)) {
                    all.push((format!("{}/{label}", one.name()), connection?));
                }
            }
        }
        Ok(Restored(all))
    }

    /// Whether this COMPONENT/LABEL is among them.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(ours, _)| ours == name)
    }

    /// Which of them a peer is, as COMPONENT/LABEL.
    pub async fn find(&self, one: &Loaded, label: &str, peer: &Connection, body: &BackupBody) -> Option<&str> {
        let recorded = taken_as(one.name(), label, body);
        for (name, connection) in &self.0 {
            let same = match recorded {
                Some(recorded) => recorded == name,
                None => peer.same_database(connection).await,
            };
            if same {
                return Some(name);
            }
        }
        None
    }
}

/// Whether a fact says that a peer was seen in the snapshot the backup holds.
pub(crate) fn is_taken_as(key: &str) -> bool {
    key.starts_with(OURS) && key.ends_with("/taken-as")
}

/// Which of a backup's databases a component saw as `label`, in the very snapshot the backup holds.
pub(crate) fn taken_as<'a>(component: &str, label: &str, body: &'a BackupBody) -> Option<&'a str> {
    let key = format!("{OURS}{label}/taken-as");
    let facts = &body.component(component)?.facts;
    facts.iter().find(|f| f.key == key).map(|f| f.value.as_str())
}

/// Each of a backup's databases that a component saw in the very snapshot the backup holds.
pub(crate) fn all_taken_as(component: &ComponentBody) -> impl Iterator<Item = &str> {
    let facts = component.facts.iter().filter(|f| is_taken_as(&f.key));
    facts.map(|f| f.value.as_str())
}
