//! Comfortable ways to write a description.

use crate::{ArtifactClass, Description, Fence, Need, NeedKind, NeedRole, Sensitivity, Setting, Tier};

impl Description {
    /// A description without needs, settings and classes.
    pub fn new(system: &str, version: &str, tier: Tier) -> Self {
        Description {
            system: system.into(),
            version: version.into(),
            tier,
            loss: String::new(),
            needs: Vec::new(),
            settings: Vec::new(),
            classes: Vec::new(),
            fences: Vec::new(),
        }
    }

    /// What stops working, and what cannot be had again, when the data is lost.
    pub fn loss(mut self, loss: &str) -> Self {
        self.loss = loss.into();
        self
    }

    /// Asks to be granted something.
    pub fn need(mut self, need: Need) -> Self {
        self.needs.push(need);
        self
    }

    /// Understands a setting; `default_json` is its default, as JSON.
    pub fn setting(mut self, name: &str, default_json: &str, purpose: &str) -> Self {
        self.settings.push(Setting {
            name: name.into(),
            default_json: default_json.into(),
            purpose: purpose.into(),
        });
        self
    }

    /// Says how sensitive some artifacts are.
    pub fn class(mut self, class: ArtifactClass) -> Self {
        self.classes.push(class);
        self
    }

    /// What a dump of a PostgreSQL database holds besides its tables: definitions, facts about it, positions of sequences.
    pub fn schema(self, label: &str) -> Self {
        let internal =
            |what: &str, exposes| ArtifactClass::new(&format!("{label}/{what}"), Sensitivity::Internal, exposes);
        self.class(internal("ddl*", "the schema"))
            .class(internal("database", "the database's name, encoding and versions"))
            .class(internal("sequences", "how many rows were ever made"))
    }

    /// Tables of a database to hold still for a moment when it must agree with a database on another server.
    pub fn fence(mut self, database: &str, tables: &[&str]) -> Self {
        self.fences.push(Fence {
            database: database.into(),
            tables: tables.iter().map(|t| (*t).into()).collect(),
        });
        self
    }

    /// Whether a label is asked for.
    pub fn needs_label(&self, label: &str) -> bool {
        self.needs.iter().any(|n| n.label == label)
    }
}

impl Need {
    fn new(label: &str, kind: NeedKind, purpose: &str) -> Self {
        Need {
            label: label.into(),
            kind,
            role: NeedRole::Owned,
            required: true,
            purpose: purpose.into(),
        }
    }

    /// An owned, required database.
    pub fn database(label: &str, purpose: &str) -> Self {
        Need::new(label, NeedKind::Database, purpose)
    }

    /// An owned, required file tree.
    pub fn volume(label: &str, purpose: &str) -> Self {
        Need::new(label, NeedKind::Volume, purpose)
    }

    /// A pipeline without it is accepted.
    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    /// Another component's, which backs it up and restores it. It is looked at; only a statement of the answer to a leak may
    /// change it, shown to a person first.
    pub fn peer(mut self) -> Self {
        self.role = NeedRole::Peer;
        self
    }
}

impl ArtifactClass {
    /// How sensitive the artifacts of a pattern are, and what a reader of them can do or learn.
    pub fn new(pattern: &str, sensitivity: Sensitivity, exposes: &str) -> Self {
        ArtifactClass {
            pattern: pattern.into(),
            sensitivity,
            exposes: exposes.into(),
            on_leak: Vec::new(),
        }
    }

    /// The next thing to do when it leaked.
    pub fn on_leak(mut self, step: &str) -> Self {
        self.on_leak.push(step.into());
        self
    }
}
