//! What of a backup is restored: all of it, some components, or of a component only some labels.

use super::RestoreOptions;
use super::plan::{Item, Step};
use crate::body::{Note, Severity};
use crate::error::PipelineError;
use std::collections::BTreeSet;

impl Step {
    /// The label it is about.
    pub fn label(&self) -> &str {
        match self {
            Step::Volume(label) | Step::Database(label) => label,
            Step::RunSql { label, .. } | Step::SetOwner { label, .. } => label,
        }
    }
}

impl RestoreOptions {
    /// The components named by `only`; none: all.
    pub fn components(&self) -> Vec<String> {
        let named = self.only.iter().map(|one| one.split('/').next().unwrap_or(one));
        let mut seen = BTreeSet::new();
        named.filter(|name| seen.insert(*name)).map(str::to_owned).collect()
    }

    /// The labels asked for of a component; `None`: all of them.
    fn labels(&self, component: &str) -> Option<BTreeSet<&str>> {
        let of_it = || {
            self.only
                .iter()
                .filter_map(|one| one.split_once('/'))
                .filter(move |(name, _)| *name == component)
        };
        let whole = self.only.iter().any(|one| one == component);
        (!whole && of_it().next().is_some()).then(|| of_it().map(|(_, label)| label).collect())
    }

    /// Whether a label of a component that is restored is restored with it.
    pub(super) fn restores(&self, component: &str, label: &str) -> bool {
        self.labels(component).is_none_or(|labels| labels.contains(label))
    }
}

/// Drops the steps about other labels than those asked for, with what comes after them, and says what stays as it is.
pub(super) fn narrow(item: &mut Item, options: &RestoreOptions) -> Result<(), PipelineError> {
    let name = item.loaded.name().to_owned();
    let Some(wanted) = options.labels(&name) else {
        return Ok(());
    };
    let planned: BTreeSet<String> = item
        .steps
        .iter()
        .filter(|s| matches!(s, Step::Volume(_) | Step::Database(_)))
        .map(|s| s.label().to_owned())
        .collect();
    if let Some(unknown) = wanted.iter().find(|label| !planned.contains(**label)) {
        return Err(PipelineError::refused(
            format!("--only names {name}/{unknown}, which is not restored from this backup"),
            match planned.is_empty() {
                true => "nothing of this component is".to_owned(),
                false => format!(
                    "of {name} there are: {}",
                    planned.iter().cloned().collect::<Vec<_>>().join(", ")
                ),
            },
        ));
    }
    item.steps.retain(|s| wanted.contains(s.label()));
    item.untouched = planned.into_iter().filter(|l| !wanted.contains(l.as_str())).collect();
    if !item.untouched.is_empty() {
        let rest: Vec<&str> = item.untouched.iter().map(String::as_str).collect();
        item.notes.push(Note {
            severity: Severity::Warning,
            text: format!(
                "only a part of it is restored; what it has under {} stays as it is now, and may not fit a backup of \
                 another time",
                rest.join(", ")
            ),
        });
        let prefix_of = |name: &str| name.split('/').next().is_some_and(|label| wanted.contains(label));
        item.view.artifacts.retain(|a| prefix_of(&a.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_from_components() {
        let only = |only: &[&str]| RestoreOptions {
            only: only.iter().map(|o| (*o).to_owned()).collect(),
            ..RestoreOptions::default()
        };
        let all = only(&[]);
        assert!(all.components().is_empty() && all.restores("a", "main"));
        let some = only(&["a/main", "b", "a/files", "b/main"]);
        assert_eq!(some.components(), ["a", "b"]);
        assert!(some.restores("a", "main") && some.restores("a", "files") && !some.restores("a", "config"));
        assert!(some.restores("b", "config"), "named as a whole as well");
    }
}
