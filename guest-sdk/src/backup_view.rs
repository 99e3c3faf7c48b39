//! Reading what a backup says about itself.

use crate::{Artifact, BackupView};

impl BackupView {
    /// The value of a fact kept by `plan-backup`.
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.facts.iter().find(|f| f.key == key).map(|f| f.value.as_str())
    }

    /// A fact that is a whole number; `None` when it is absent or is none.
    pub fn fact_integer(&self, key: &str) -> Option<i64> {
        self.fact(key)?.parse().ok()
    }

    /// The facts whose key begins with `prefix`, without it: `("public.users", "12")` for `rows/`.
    pub fn facts_below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> + 'a {
        self.facts
            .iter()
            .filter_map(move |f| Some((f.key.strip_prefix(prefix)?, f.value.as_str())))
    }

    /// The artifact with this name (`main/public.users`).
    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|a| a.name == name)
    }

    /// Whether the backup holds anything under a label: the artifact `LABEL`, or any `LABEL/…`.
    pub fn holds(&self, label: &str) -> bool {
        self.artifacts.iter().any(|a| {
            a.name
                .strip_prefix(label)
                .is_some_and(|r| r.is_empty() || r.starts_with('/'))
        })
    }

    /// The tables whose data the backup holds under a label, with their rows where known: `("public.users", Some(12))`.
    pub fn tables<'a>(&'a self, label: &'a str) -> impl Iterator<Item = (&'a str, Option<u64>)> + 'a {
        self.artifacts
            .iter()
            .filter(|a| a.kind == "postgres-table")
            .filter_map(move |a| {
                let name = a.name.strip_prefix(label)?.strip_prefix('/')?;
                Some((name, a.items))
            })
    }
}
