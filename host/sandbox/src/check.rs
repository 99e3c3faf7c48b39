//! Looks through what a guest returned before anybody else sees it.
//!
//! Two kinds of text come back. Words for a person are cleaned: control characters could repaint a terminal. Names,
//! patterns and SQL are used by the host, so they are never altered: one that holds what no honest one holds spoils
//! the whole result. Lists and sums of bytes are bounded, since a plan is kept in the manifest and printed. Whether a
//! plan names only what was granted is checked by the pipeline, which knows the grants.

use crate::Limits;
use crate::contract::{backup, incident, restore, types};
use crate::log::{has_control, line, paragraph};

/// Bytes of a label or setting's name.
const NAME: usize = 128;

type Checked<T> = Result<T, String>;

/// Counts what a result holds.
struct Meter {
    items: u64,
    bytes: u64,
    most_items: u64,
    most_bytes: u64,
}

impl Meter {
    fn new(limits: &Limits) -> Self {
        Meter {
            items: 0,
            bytes: 0,
            most_items: u64::from(limits.result_items),
            most_bytes: limits.result,
        }
    }

    fn count(&mut self, items: usize) -> Checked<()> {
        self.items = self.items.saturating_add(items as u64);
        if self.items > self.most_items {
            return Err(format!(
                "more than {} items (`result-items` of its limits)",
                self.most_items
            ));
        }
        Ok(())
    }

    fn weigh(&mut self, text: &str) -> Checked<()> {
        self.bytes = self.bytes.saturating_add(text.len() as u64);
        if self.bytes > self.most_bytes {
            return Err(format!(
                "more than {} of text (`result` of its limits)",
                bytesize::ByteSize(self.most_bytes)
            ));
        }
        Ok(())
    }

    /// Words for a person.
    fn words(&mut self, text: &mut String) -> Checked<()> {
        self.weigh(text)?;
        *text = paragraph(text);
        Ok(())
    }

    /// A name, path or pattern: used as it is.
    fn exact(&mut self, what: &str, text: &str) -> Checked<()> {
        self.weigh(text)?;
        if has_control(text) {
            return Err(format!("a {what} with control characters: {}", line(text, NAME)));
        }
        Ok(())
    }

    /// SQL or JSON: may have lines.
    fn source(&mut self, what: &str, text: &str) -> Checked<()> {
        self.weigh(text)?;
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err(format!("{what} with control characters: {}", line(text, NAME)));
        }
        Ok(())
    }

    fn label(&mut self, text: &str) -> Checked<()> {
        self.weigh(text)?;
        let shaped = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if text.is_empty() || text.len() > NAME || !shaped {
            return Err(format!(
                "the label {:?}; labels are lower-case letters, digits and dashes",
                line(text, NAME)
            ));
        }
        Ok(())
    }

    fn notes(&mut self, note: &mut types::Note) -> Checked<()> {
        self.words(&mut note.text)
    }
}

pub(crate) fn description(mut d: types::Description, limits: &Limits) -> Checked<types::Description> {
    let mut m = Meter::new(limits);
    m.words(&mut d.system)?;
    m.exact("version", &d.version)?;
    m.words(&mut d.loss)?;
    m.count(d.needs.len())?;
    let mut labels = std::collections::BTreeSet::new();
    for need in &mut d.needs {
        m.label(&need.label)?;
        if !labels.insert(need.label.clone()) {
            return Err(format!("the label {:?} twice", need.label));
        }
        m.words(&mut need.purpose)?;
    }
    m.count(d.settings.len())?;
    let mut names = std::collections::BTreeSet::new();
    for setting in &mut d.settings {
        m.exact("setting's name", &setting.name)?;
        if setting.name.is_empty() || setting.name.len() > NAME {
            return Err("a setting with an empty or endless name".to_owned());
        }
        if !names.insert(setting.name.clone()) {
            return Err(format!("the setting {:?} twice", setting.name));
        }
        m.source("a default", &setting.default_json)?;
        m.words(&mut setting.purpose)?;
    }
    m.count(d.classes.len())?;
    for class in &mut d.classes {
        m.exact("pattern", &class.pattern)?;
        m.words(&mut class.exposes)?;
        m.count(class.on_leak.len())?;
        for step in &mut class.on_leak {
            m.words(step)?;
        }
    }
    m.count(d.fences.len())?;
    for fence in &d.fences {
        m.label(&fence.database)?;
        m.count(fence.tables.len())?;
        for table in &fence.tables {
            m.exact("table", table)?;
        }
    }
    Ok(d)
}

pub(crate) fn backup_plan(mut plan: backup::Plan, limits: &Limits) -> Checked<backup::Plan> {
    let mut m = Meter::new(limits);
    m.count(plan.steps.len())?;
    for step in &mut plan.steps {
        match step {
            backup::Step::DumpDatabase(dump) => {
                m.label(&dump.database)?;
                m.count(dump.leave_out_data.len())?;
                for rule in &mut dump.leave_out_data {
                    m.exact("table", &rule.table)?;
                    m.words(&mut rule.why)?;
                }
                m.count(dump.row_filters.len())?;
                for filter in &mut dump.row_filters {
                    m.exact("table", &filter.table)?;
                    m.source("SQL", &filter.keep_where)?;
                    m.words(&mut filter.why)?;
                }
            }
            backup::Step::CopySqlite(copy) => m.label(&copy.database)?,
            backup::Step::ArchiveVolume(archive) => {
                m.label(&archive.volume)?;
                for rules in [&mut archive.take, &mut archive.leave_out] {
                    m.count(rules.len())?;
                    for rule in rules {
                        m.exact("path pattern", &rule.pattern)?;
                        m.words(&mut rule.why)?;
                    }
                }
            }
            backup::Step::RecordFact(fact) => {
                m.exact("fact's key", &fact.key)?;
                m.source("a fact", &fact.value)?;
            }
            backup::Step::Note(note) => m.notes(note)?,
        }
    }
    Ok(plan)
}

pub(crate) fn restore_plan(mut plan: restore::Plan, limits: &Limits) -> Checked<restore::Plan> {
    let mut m = Meter::new(limits);
    m.count(plan.steps.len())?;
    for step in &mut plan.steps {
        match step {
            restore::Step::RestoreVolume(label) | restore::Step::RestoreDatabase(label) => m.label(label)?,
            restore::Step::RunSql(run) => {
                m.label(&run.database)?;
                m.source("SQL", &run.sql)?;
                m.words(&mut run.why)?;
            }
            restore::Step::SetOwner(owner) => {
                m.label(&owner.volume)?;
                m.exact("path", &owner.path)?;
                m.words(&mut owner.why)?;
            }
            restore::Step::Note(note) => m.notes(note)?,
        }
    }
    Ok(plan)
}

pub(crate) fn findings(mut findings: Vec<restore::Finding>, limits: &Limits) -> Checked<Vec<restore::Finding>> {
    let mut m = Meter::new(limits);
    m.count(findings.len())?;
    for finding in &mut findings {
        m.exact("check's name", &finding.check)?;
        m.words(&mut finding.message)?;
        m.words(&mut finding.remedy)?;
    }
    Ok(findings)
}

pub(crate) fn incident_plan(mut plan: incident::Plan, limits: &Limits) -> Checked<incident::Plan> {
    let mut m = Meter::new(limits);
    m.count(plan.steps.len())?;
    for step in &mut plan.steps {
        let (artifacts, why) = match step {
            incident::Step::Advise(advice) => (&advice.artifacts, &mut advice.text),
            incident::Step::RunSql(run) => {
                m.label(&run.database)?;
                m.source("SQL", &run.sql)?;
                m.source("SQL", &run.count_sql)?;
                (&run.artifacts, &mut run.why)
            }
        };
        m.count(artifacts.len())?;
        for pattern in artifacts {
            m.exact("artifact pattern", pattern)?;
        }
        m.words(why)?;
    }
    Ok(plan)
}

/// A guest's own words of failure, fit for a terminal.
pub(crate) fn guest_error(error: types::Error) -> types::Error {
    let clean = |text: String| line(&text, 4 * crate::log::LINE);
    match error {
        types::Error::InvalidSetting(t) => types::Error::InvalidSetting(clean(t)),
        types::Error::Unsupported(t) => types::Error::Unsupported(clean(t)),
        types::Error::Inspect(t) => types::Error::Inspect(clean(t)),
        types::Error::Other(t) => types::Error::Other(clean(t)),
    }
}
