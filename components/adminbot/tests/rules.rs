//! Every rule of the component: those it shares with Auditbot, and no other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bots;

use essrun_component_adminbot::Adminbot;

#[test]
fn files_belong_to_the_bots_numeric_user() {
    bots::files_belong_to_the_bots_numeric_user::<Adminbot>("adminbot");
}

#[test]
fn an_empty_volume_is_an_error_and_the_passphrase_is_looked_for() {
    bots::an_empty_volume_is_an_error_and_the_passphrase_is_looked_for::<Adminbot>("adminbot");
}

#[test]
fn after_a_leak_only_the_bots_sessions_end() {
    bots::after_a_leak_only_the_bots_sessions_end::<Adminbot>();
}
