//! What components answer, as JSON with the contract's own names. Golden files are written in it, so it changes only
//! with the contract.

use essrun_sandbox::contract::{backup, incident, restore, types};
use serde_json::{Value, json};
use std::fmt::Write as _;

fn tier(t: types::Tier) -> &'static str {
    match t {
        types::Tier::Critical => "critical",
        types::Tier::Feature => "feature",
        types::Tier::Bridge => "bridge",
        types::Tier::Rebuildable => "rebuildable",
    }
}

fn severity(s: types::Severity) -> &'static str {
    match s {
        types::Severity::Info => "info",
        types::Severity::Warning => "warning",
        types::Severity::Error => "error",
    }
}

pub(super) fn description(d: &types::Description) -> Value {
    let needs: Vec<Value> = d
        .needs
        .iter()
        .map(|n| {
            json!({
                "label": n.label,
                "kind": match n.kind { types::NeedKind::Database => "database", types::NeedKind::Volume => "volume" },
                "role": match n.role { types::NeedRole::Owned => "owned", types::NeedRole::Peer => "peer" },
                "required": n.required,
                "purpose": n.purpose,
            })
        })
        .collect();
    let classes: Vec<Value> = d
        .classes
        .iter()
        .map(|c| {
            json!({
                "pattern": c.pattern,
                "sensitivity": match c.sensitivity {
                    types::Sensitivity::Internal => "internal",
                    types::Sensitivity::Personal => "personal",
                    types::Sensitivity::Secret => "secret",
                },
                "exposes": c.exposes,
                "on-leak": c.on_leak,
            })
        })
        .collect();
    let settings: Vec<Value> = d
        .settings
        .iter()
        .map(|s| json!({"name": s.name, "default-json": s.default_json, "purpose": s.purpose}))
        .collect();
    let fences: Vec<Value> = d
        .fences
        .iter()
        .map(|f| json!({"database": f.database, "tables": f.tables}))
        .collect();
    json!({
        "system": d.system, "version": d.version, "tier": tier(d.tier), "loss": d.loss, "needs": needs,
        "settings": settings, "classes": classes, "fences": fences,
    })
}

fn str_of<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list_of<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A description for a person.
pub(super) fn description_text(d: &Value) -> String {
    let mut t = String::new();
    let _ = writeln!(
        t,
        "  it says of itself\n    {} {}, tier {}\n    lost without a backup: {}",
        str_of(d, "system"),
        str_of(d, "version"),
        str_of(d, "tier"),
        str_of(d, "loss")
    );
    let _ = writeln!(t, "  asks for");
    for n in list_of(d, "needs") {
        let required = if n.get("required") == Some(&Value::Bool(true)) {
            "required"
        } else {
            "optional"
        };
        let peer = if str_of(n, "role") == "peer" {
            ", only looked at"
        } else {
            ""
        };
        let _ = writeln!(
            t,
            "    {} {} ({required}{peer}): {}",
            str_of(n, "kind"),
            str_of(n, "label"),
            str_of(n, "purpose")
        );
    }
    for s in list_of(d, "settings") {
        let _ = writeln!(
            t,
            "    setting {} = {}: {}",
            str_of(s, "name"),
            str_of(s, "default-json"),
            str_of(s, "purpose")
        );
    }
    let _ = writeln!(t, "  calls its artifacts (what it does not name counts as secret)");
    for c in list_of(d, "classes") {
        let _ = writeln!(
            t,
            "    {} {}: {}",
            str_of(c, "pattern"),
            str_of(c, "sensitivity"),
            str_of(c, "exposes")
        );
    }
    t
}

fn rules(rules: &[backup::PathRule]) -> Vec<Value> {
    rules
        .iter()
        .map(|r| json!({"pattern": r.pattern, "why": r.why}))
        .collect()
}

pub(super) fn backup_plan(plan: &backup::Plan) -> Value {
    let step = |step: &backup::Step| match step {
        backup::Step::DumpDatabase(d) => json!({"dump-database": {
            "database": d.database,
            "leave-out-data": d.leave_out_data.iter().map(|r| json!({"table": r.table, "why": r.why})).collect::<Vec<_>>(),
            "row-filters": d.row_filters.iter()
                .map(|f| json!({"table": f.table, "keep-where": f.keep_where, "why": f.why})).collect::<Vec<_>>(),
        }}),
        backup::Step::CopySqlite(c) => json!({"copy-sqlite": {"database": c.database}}),
        backup::Step::ArchiveVolume(a) => json!({"archive-volume": {
            "volume": a.volume, "take": rules(&a.take), "leave-out": rules(&a.leave_out),
        }}),
        backup::Step::RecordFact(f) => json!({"record-fact": {"key": f.key, "value": f.value}}),
        backup::Step::Note(n) => note(n),
    };
    plan.steps.iter().map(step).collect()
}

fn note(n: &types::Note) -> Value {
    json!({"note": {"severity": severity(n.severity), "text": n.text}})
}

pub(super) fn restore_plan(plan: &restore::Plan) -> Value {
    let step = |step: &restore::Step| match step {
        restore::Step::RestoreVolume(label) => json!({"restore-volume": label}),
        restore::Step::RestoreDatabase(label) => json!({"restore-database": label}),
        restore::Step::RunSql(r) => json!({"run-sql": {"database": r.database, "sql": r.sql, "why": r.why}}),
        restore::Step::SetOwner(o) => json!({"set-owner": {
            "volume": o.volume, "path": o.path, "uid": o.uid, "gid": o.gid, "why": o.why,
        }}),
        restore::Step::Note(n) => note(n),
    };
    plan.steps.iter().map(step).collect()
}

pub(super) fn findings(findings: &[restore::Finding]) -> Value {
    findings
        .iter()
        .map(|f| json!({"check": f.check, "severity": severity(f.severity), "message": f.message, "remedy": f.remedy}))
        .collect()
}

pub(super) fn incident_plan(plan: &incident::Plan) -> Value {
    let step = |step: &incident::Step| match step {
        incident::Step::Advise(a) => json!({"advise": {"artifacts": a.artifacts, "text": a.text}}),
        incident::Step::RunSql(s) => json!({"run-sql": {
            "artifacts": s.artifacts, "database": s.database, "sql": s.sql, "count-sql": s.count_sql, "why": s.why,
        }}),
    };
    plan.steps.iter().map(step).collect()
}

pub(super) fn error(e: &types::Error) -> Value {
    let (kind, text) = match e {
        types::Error::InvalidSetting(t) => ("invalid-setting", t),
        types::Error::Unsupported(t) => ("unsupported", t),
        types::Error::Inspect(t) => ("inspect", t),
        types::Error::Other(t) => ("other", t),
    };
    json!({"error": {(kind): text}})
}
