//! In which order components are taken and come back.
//!
//! By tier; within a tier one that looks at another's database or files comes after it, so that MAS, which compares
//! itself with Synapse, comes after Synapse; what is left over is by name. It promises an order for any components: those
//! that look at each other in a ring are no error, and go by name.

use crate::body::{BackupBody, ComponentBody, Tier};
use crate::config::DatabaseSource;
use crate::load::Loaded;
use crate::{instant, peers};
use essrun_artifact::ArtifactRecord;

/// Where a component stands among the others.
#[derive(Debug)]
struct Place {
    tier: Tier,
    name: String,
    /// What it backs up: `host:port/database` or a path.
    owns: Vec<String>,
    /// What it only looks at.
    looks_at: Vec<String>,
}

impl Place {
    fn of(one: &Loaded) -> Place {
        let mut place = Place {
            tier: one.tier(),
            name: one.name().to_owned(),
            owns: Vec::new(),
            looks_at: Vec::new(),
        };
        for (label, grant) in &one.config.databases {
            // One whose address cannot be had stands alone; what is wrong with it is for those to say who need it.
            let source = match &grant.source {
                DatabaseSource::Postgres(secret) => instant::connection(secret).ok().map(|c| c.describe()),
                DatabaseSource::Sqlite(path) => Some(path.display().to_string()),
            };
            place.add(one.owns(label), source);
        }
        for (label, grant) in &one.config.volumes {
            place.add(one.owns(label), Some(grant.path.display().to_string()));
        }
        place
    }

    fn add(&mut self, owned: bool, source: Option<String>) {
        match owned {
            true => self.owns.extend(source),
            false => self.looks_at.extend(source),
        }
    }

    fn looks_at(&self, other: &Place) -> bool {
        self.name != other.name && self.looks_at.iter().any(|source| other.owns.contains(source))
    }
}

/// Sorts loaded components. A database is known however its server is spelled.
pub(crate) async fn loaded(components: &mut Vec<Loaded>) {
    let looks_at = peers::who_looks_at_whom(&components.iter().collect::<Vec<_>>()).await;
    sort(components, Place::of, |one, other| {
        looks_at.contains(&(one.name().to_owned(), other.name().to_owned()))
    });
}

/// Sorts the components of a backup in the same way, by where their labels came from when it was taken. What of them has
/// artifacts is their own, the rest was only looked at.
pub fn recorded(body: &mut BackupBody, artifacts: &[ArtifactRecord]) {
    let place = |c: &ComponentBody| {
        let mut place = Place {
            tier: c.tier,
            name: c.name.clone(),
            owns: Vec::new(),
            looks_at: Vec::new(),
        };
        for (label, source) in &c.sources {
            let (exact, below) = (format!("{}/{label}", c.name), format!("{}/{label}/", c.name));
            let own = artifacts
                .iter()
                .any(|a| a.name.as_str() == exact || a.name.as_str().starts_with(&below));
            place.add(own, Some(source.clone()));
        }
        place
    };
    sort(&mut body.components, place, |one, other| {
        peers::all_taken_as(one).any(|name| name.split('/').next() == Some(other.name.as_str()))
    });
}

fn sort<T>(items: &mut Vec<T>, place: impl Fn(&T) -> Place, looks_at: impl Fn(&T, &T) -> bool) {
    let mut left: Vec<(Place, T)> = std::mem::take(items)
        .into_iter()
        .map(|item| (place(&item), item))
        .collect();
    left.sort_by(|(a, _), (b, _)| (a.tier, &a.name).cmp(&(b.tier, &b.name)));
    while let Some((first, _)) = left.first() {
        let tier = first.tier;
        let later = left.partition_point(|(p, _)| p.tier == tier);
        let later = left.split_off(later);
        let of_tier = after_what_it_looks_at(std::mem::replace(&mut left, later), |(a, one), (b, other)| {
            a.looks_at(b) || looks_at(one, other)
        });
        items.extend(of_tier.into_iter().map(|(_, item)| item));
    }
}

/// The given order, but who looks at another comes after it. Those that look at each other stay as they are.
pub(crate) fn after_what_it_looks_at<T>(mut left: Vec<T>, looks_at: impl Fn(&T, &T) -> bool) -> Vec<T> {
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let next = left
            .iter()
            .position(|one| !left.iter().any(|other| looks_at(one, other)));
        ordered.push(left.remove(next.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Fact;
    use essrun_artifact::{ArtifactName, Content, Sensitivity};

    fn sorted(places: &[(Tier, &str, &[&str], &[&str])]) -> Vec<String> {
        let mut names: Vec<usize> = (0..places.len()).collect();
        let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let place = |n: &usize| {
            let (tier, name, owns, looks_at) = places[*n];
            Place {
                tier,
                name: name.to_owned(),
                owns: texts(owns),
                looks_at: texts(looks_at),
            }
        };
        sort(&mut names, place, |_, _| false);
        names.iter().map(|n| places[*n].1.to_owned()).collect()
    }

    #[test]
    fn who_is_looked_at_comes_first_within_its_tier() {
        use Tier::{Bridge, Critical, Feature};
        let order = sorted(&[
            (Bridge, "a-bridge", &["h:1/bridge"], &[]),
            (Critical, "mas", &["h:1/mas"], &["h:1/synapse"]),
            // What a critical one looks at does not make a bridge critical.
            (Critical, "auth", &["h:1/auth"], &["h:1/bridge", "h:1/mas"]),
            (Critical, "synapse", &["h:1/synapse", "/media"], &[]),
            (Feature, "adminbot", &["/bot"], &["h:1/synapse", "h:1/mas"]),
            (Critical, "zebra", &[], &[]),
        ]);
        assert_eq!(order, ["synapse", "mas", "auth", "zebra", "adminbot", "a-bridge"]);
    }

    #[test]
    fn a_ring_goes_by_name() {
        let ring: [(Tier, &str, &[&str], &[&str]); 3] = [
            (Tier::Feature, "b", &["b"], &["a"]),
            (Tier::Feature, "a", &["a"], &["b"]),
            (Tier::Feature, "self", &["self"], &["self", "nowhere"]),
        ];
        assert_eq!(sorted(&ring), ["self", "a", "b"]);
    }

    #[test]
    fn a_backup_tells_its_own_from_what_was_looked_at_by_its_artifacts() {
        let component = |name: &str, sources: serde_json::Value| {
            serde_json::json!({
                "name": name, "system": name, "tier": "critical", "component_version": "1", "wasm_sha256": "",
                "taken_at": 0, "sources": sources
            })
        };
        let mut body: BackupBody = serde_json::from_value(serde_json::json!({
            "version": 1, "pipeline": "p", "host": "h", "essrun": "0", "started_at": 0, "finished_at": 0,
            "components": [
                component("mas", serde_json::json!({"main": "h:1/mas", "synapse": "h:1/synapse"})),
                component("synapse", serde_json::json!({"main": "h:1/synapse", "media": "/media"})),
            ]
        }))
        .unwrap();
        let artifacts = ["mas/main/database", "synapse/main/database", "synapse/media"].map(|name| ArtifactRecord {
            name: ArtifactName::new(name).unwrap(),
            kind: "x".into(),
            sensitivity: Sensitivity::Secret,
            meta: serde_json::Value::Null,
            content: Content::empty(),
        });
        let ordered = |mut body: BackupBody| {
            recorded(&mut body, &artifacts);
            body.components.into_iter().map(|c| c.name).collect::<Vec<_>>()
        };
        assert_eq!(ordered(body.clone()), ["synapse", "mas"]);
        // However the server was spelled: what was found out while the backup was taken counts.
        body.components[0]
            .sources
            .insert("synapse".into(), "localhost:1/synapse".into());
        assert_eq!(ordered(body.clone()), ["mas", "synapse"]);
        body.components[0].facts.push(Fact {
            key: "instant/synapse/taken-as".into(),
            value: "synapse/main".into(),
        });
        assert_eq!(ordered(body), ["synapse", "mas"]);
    }
}
