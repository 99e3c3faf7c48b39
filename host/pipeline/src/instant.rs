//! Instants of a run: which databases are taken together, and the words for what was reached.

use crate::body::Instant;
use crate::config::{Accept, GroupConfig, Pipeline};
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::{order, peers};
use essrun_postgres::{Connection, Consistency, ConsistencyRequest, FenceTables, Reached, SnapshotGroup, TableName};

/// A planned group: its name, what is accepted, and its databases as (component, label, connection).
pub struct Planned {
    pub name: String,
    pub accept: Accept,
    pub members: Vec<(String, String, Connection)>,
    pub fences: Vec<FenceTables>,
}

/// Every Postgres database a run backs up stands in exactly one group: a configured one, or its component's own.
pub async fn plan(pipeline: &Pipeline, loaded: &[Loaded]) -> Result<Vec<Planned>, PipelineError> {
    let mut groups = Vec::new();
    let mut grouped: Vec<&str> = Vec::new();
    for GroupConfig {
        name,
        components,
        accept,
        ..
    } in &pipeline.groups
    {
        let members: Vec<&Loaded> = components
            .iter()
            .filter_map(|c| loaded.iter().find(|l| l.name() == c))
            .collect();
        grouped.extend(members.iter().map(|l| l.name()));
        let looks_at = peers::who_looks_at_whom(&members).await;
        // Where it cannot be at once: what MAS knows too late it can make again; what it does not know yet it would have
        // Synapse delete.
        let members = order::after_what_it_looks_at(members, |one, other| {
            looks_at.contains(&(one.name().to_owned(), other.name().to_owned()))
        });
        groups.push(group(name.clone(), *accept, &members)?);
    }
    for one in loaded.iter().filter(|l| !grouped.contains(&l.name())) {
        groups.push(group(one.name().to_owned(), Accept::Fence, &[one])?);
    }
    groups.retain(|g| !g.members.is_empty());
    Ok(groups)
}

fn group(name: String, accept: Accept, components: &[&Loaded]) -> Result<Planned, PipelineError> {
    let mut members = Vec::new();
    let mut fences = Vec::new();
    for one in components {
        for (label, connection) in peers::owned(one) {
            members.push((one.name().to_owned(), label.clone(), connection?));
            if let Some(fence) = one.description.fences.iter().find(|f| &f.database == label) {
                let tables = fence
                    .tables
                    .iter()
                    .map(|t| table_name(one.name(), t))
                    .collect::<Result<_, _>>()?;
                fences.push(FenceTables {
                    label: format!("{}/{label}", one.name()),
                    tables,
                });
            }
        }
    }
    Ok(Planned {
        name,
        accept,
        members,
        fences,
    })
}

fn table_name(component: &str, text: &str) -> Result<TableName, PipelineError> {
    let (schema, name) = text.split_once('.').ok_or_else(|| {
        PipelineError::component(component, format!("its fence names table {text:?} without a schema"))
    })?;
    Ok(TableName {
        schema: schema.to_owned(),
        name: name.to_owned(),
    })
}

/// The connection a secret stands for.
pub fn connection(secret: &crate::config::Secret) -> Result<Connection, PipelineError> {
    let text = secret.fetch()?;
    Connection::parse(&text).map_err(|e| PipelineError::Config {
        at: secret.at().clone(),
        problem: format!("{}: {e}", secret.origin()),
        hint: "write postgresql://user@host:port/database, or keyword=value words as for psql".into(),
    })
}

/// Takes the snapshots of a group.
pub async fn open(planned: &Planned) -> Result<SnapshotGroup, PipelineError> {
    let request = ConsistencyRequest {
        fence: if planned.accept == Accept::Instant {
            Vec::new()
        } else {
            planned.fences.clone()
        },
        allow_ordered: planned.accept == Accept::Ordered,
        ..ConsistencyRequest::default()
    };
    let databases = planned
        .members
        .iter()
        .map(|(component, label, c)| (format!("{component}/{label}"), c.clone()))
        .collect();
    SnapshotGroup::open(databases, &request).await.map_err(|e| {
        // What else could be accepted, in the words of the pipeline file.
        let more = match (&e, planned.accept) {
            (essrun_postgres::Error::Refused { .. }, Accept::Instant) => format!(
                "; [groups.{}] has accept = \"instant\": \"fence\" holds tables still for a moment, \"ordered\" takes \
                     one database after the other",
                planned.name
            ),
            (essrun_postgres::Error::Refused { .. }, Accept::Fence) if planned.members.len() > 1 => format!(
                "; accept = \"ordered\" in [groups.{}] takes one database after the other and records the gap",
                planned.name
            ),
            _ => String::new(),
        };
        PipelineError::source(format!("instant {}", planned.name), format!("{e}{more}"))
    })
}

/// The manifest's record of a group.
pub fn record(planned: &Planned, reached: &Reached) -> Result<Instant, PipelineError> {
    Ok(Instant {
        group: planned.name.clone(),
        databases: planned
            .members
            .iter()
            .map(|(component, label, _)| format!("{component}/{label}"))
            .collect(),
        reached: serde_json::to_value(reached).map_err(|e| PipelineError::Internal(e.to_string()))?,
    })
}

/// What a group reached, in words.
pub fn in_words(instant: &Instant) -> String {
    match serde_json::from_value::<Reached>(instant.reached.clone()) {
        Ok(reached) if reached.how == Consistency::Single => {
            format!("{}: one snapshot", instant.databases.join(", "))
        }
        Ok(reached) => format!("{}: {}", instant.databases.join(", "), reached.in_words()),
        Err(_) => format!(
            "{}: recorded in a form this essrun does not know",
            instant.databases.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::order::after_what_it_looks_at as in_order;

    #[test]
    fn who_looks_at_another_is_taken_after_it() {
        let order = |names: &[&'static str], looks: &[(&str, &str)]| {
            in_order(names.to_vec(), |a, b| looks.contains(&(*a, *b))).join(" ")
        };
        let looks = [("mas", "synapse"), ("sync", "mas")];
        for names in [["mas", "synapse"], ["synapse", "mas"]] {
            assert_eq!(order(&names, &looks), "synapse mas");
        }
        assert_eq!(
            order(&["sync", "mas", "irc", "synapse"], &looks),
            "irc synapse mas sync"
        );
        // Otherwise, and where there is no order, as the file has them.
        assert_eq!(order(&["b", "a", "c"], &[]), "b a c");
        assert_eq!(order(&["b", "a"], &[("a", "b"), ("b", "a")]), "b a");
    }
}
