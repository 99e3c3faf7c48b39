//! The one table of exit codes: errors, `--json` events, help and docs all read it.

/// Why essrun ended as it did. The number is stable; scripts may rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    Done,
    Internal,
    Usage,
    Config,
    Refused,
    Source,
    Repository,
    Component,
    Findings,
    Incomplete,
    Suspect,
    Interrupted,
}

/// (kind, number, name, meaning)
pub const TABLE: &[(Exit, u8, &str, &str)] = &[
    (Exit::Done, 0, "done", "everything asked for was done"),
    (
        Exit::Internal,
        1,
        "internal",
        "a fault in essrun itself; please report it",
    ),
    (Exit::Usage, 2, "usage", "the command line is wrong"),
    (
        Exit::Config,
        3,
        "config",
        "pipeline.toml, a key file or a setting is wrong; the message says file and line",
    ),
    (
        Exit::Refused,
        4,
        "refused",
        "a precondition or policy forbids it: target not empty, no recipients, no approval",
    ),
    (Exit::Source, 5, "source", "a database server or file system failed"),
    (
        Exit::Repository,
        6,
        "repository",
        "the repository or its store failed, or a key does not open it",
    ),
    (
        Exit::Component,
        7,
        "component",
        "a component failed: trap, limit, error, or a plan that was not granted",
    ),
    (
        Exit::Findings,
        8,
        "findings",
        "verification or check found errors; nothing was put in service",
    ),
    (
        Exit::Incomplete,
        9,
        "incomplete",
        "a backup was committed, but some components are missing from it",
    ),
    (
        Exit::Suspect,
        10,
        "suspect",
        "a backup was committed, but the policy finds it odd: forget never credits it",
    ),
    (
        Exit::Interrupted,
        130,
        "interrupted",
        "stopped by a signal; what was begun is safe to run again",
    ),
];

impl Exit {
    /// The process exit code.
    pub fn code(self) -> u8 {
        TABLE.iter().find(|row| row.0 == self).map_or(1, |row| row.1)
    }

    /// The table as text, for help.
    pub fn help() -> String {
        let mut text = String::from("Exit codes:\n");
        for (_, code, name, meaning) in TABLE {
            text.push_str(&format!("  {code:>3}  {name:<12} {meaning}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct() {
        let mut codes: Vec<_> = TABLE.iter().map(|row| row.1).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
    }
}
