//! Every rule of the component: those it shares with Adminbot, and the logs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../adminbot/tests/bots/mod.rs"]
mod bots;

use bots::{CONFIG, find, world};
use essrun_component_auditbot::Auditbot;
use essrun_guest::mock::{Volume, World};
use essrun_guest::prelude::*;

#[test]
fn files_belong_to_the_bots_numeric_user() {
    bots::files_belong_to_the_bots_numeric_user::<Auditbot>("auditbot");
}

#[test]
fn an_empty_volume_is_an_error_and_the_passphrase_is_looked_for() {
    bots::an_empty_volume_is_an_error_and_the_passphrase_is_looked_for::<Auditbot>("auditbot");
}

#[test]
fn after_a_leak_only_the_bots_sessions_end() {
    bots::after_a_leak_only_the_bots_sessions_end::<Auditbot>();
}

#[test]
fn cleartext_logs_are_flagged_wherever_they_are() {
    let warned = |w: &World, text: &str| {
        w.run(Auditbot::plan_backup)
            .unwrap()
            .notes()
            .any(|n| n.severity == Severity::Warning && n.text.contains(text))
    };
    assert!(warned(&world(10006, CONFIG), "cleartext audit logs (from `data`)"));
    let rotates = |w: &World| {
        let plan = w.run(Auditbot::plan_backup).unwrap();
        plan.notes()
            .any(|n| n.text.contains("logfile_size") && n.text.contains("logfile_keep"))
    };
    assert!(rotates(&world(10006, CONFIG)));
    assert!(!rotates(&world(10006, CONFIG).setting("logs-in-bucket", true)));
    let bucket = world(10006, CONFIG).setting("logs-in-bucket", true);
    assert!(warned(&bucket, "NOT in this backup"));
    assert_eq!(find::<Auditbot>(&bucket, "auditbot-logs"), Severity::Warning);
    let mirrored = bucket.volume("logs", Volume::new().file("a.log", "hello"));
    assert!(warned(&mirrored, "cleartext audit logs (from `logs`)"));
    let d = Auditbot::describe();
    assert!(
        d.classes
            .iter()
            .any(|c| c.pattern == "logs" && c.sensitivity == Sensitivity::Secret && c.exposes.contains("CLEARTEXT"))
    );
}
