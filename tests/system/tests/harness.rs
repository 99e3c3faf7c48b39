//! The harness itself, proved without essrun: a real Synapse is filled, dumped and restored with Postgres' own tools,
//! and the checks see what such a restore brings back and what it loses. A check that cannot fail proves nothing, so
//! each is also shown something broken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::suite::Suite;
use essrun_testkit::synapse::{Writer, fill};
use std::process::Command;
use std::time::Instant;

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    let status = Command::new("cp")
        .args(["-a", "-T"])
        .arg(from)
        .arg(to)
        .status()
        .expect("cp");
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

#[test]
fn what_pg_dump_brings_back_is_seen_and_what_is_lost_too() {
    let suite = Suite::create();
    let server = suite.home.start();
    let client = server.client();
    let filled = fill(&client);
    filled.assert_all_there(&client);
    assert_eq!(
        suite.sql("SELECT count(*) FROM e2e_one_time_keys_json"),
        "39",
        "four times ten, one of them claimed"
    );

    let writer = Writer::start(client.clone(), filled.token(0), &filled.rooms[0].id);
    writer.wait_for(12);
    let begun = Instant::now();
    let dump = suite.path().join("dump");
    let dumped = suite
        .cluster
        .client("pg_dump")
        .args([
            "-Fc",
            "--exclude-table-data",
            "e2e_one_time_keys_json",
            "-d",
            "synapse",
            "-f",
        ])
        .arg(&dump)
        .status()
        .expect("pg_dump");
    assert!(dumped.success());
    let saved = suite.path().join("saved");
    copy_tree(&suite.home.root, &saved);
    let enough = writer.entries_so_far() + 10;
    writer.wait_for(enough);
    let written = writer.stop();
    let late = client
        .login("alice", &filled.accounts[0].password)
        .expect("a login after the dump");
    server.stop();

    suite.destroy();
    suite
        .cluster
        .psql(
            "postgres",
            "CREATE DATABASE synapse OWNER synapse_user ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0",
        )
        .expect("a fresh database");
    let restored = suite
        .cluster
        .client("pg_restore")
        .args(["--exit-on-error", "-d", "synapse"])
        .arg(&dump)
        .status()
        .expect("pg_restore");
    assert!(restored.success());
    copy_tree(&saved, &suite.home.root);

    let server = suite.home.start();
    filled.assert_all_there(&client);
    let back = written.assert_consistent(&client, begun);
    assert!(
        back < written.entries.len(),
        "what was written after the dump cannot be there"
    );
    assert_eq!(
        client
            .whoami(&late.token)
            .expect_err("a token younger than the dump")
            .status,
        401
    );
    filled.assert_one_time_keys_gone(&client);
    filled.assert_usable(&client);

    // Now break things one by one: the checks must see each.
    let medium = &filled.media[1].media_id;
    let (a, b, rest) = (&medium[..2], &medium[2..4], &medium[4..]);
    let file = suite
        .home
        .media_store()
        .join("local_content")
        .join(a)
        .join(b)
        .join(rest);
    let bytes = std::fs::read(&file).expect("the medium's file is where Synapse keeps it");
    let mut damaged = bytes.clone();
    damaged[1000] ^= 1;
    std::fs::write(&file, damaged).expect("damaging a medium");
    expect_problem(&filled.missing(&client), medium);
    std::fs::write(&file, bytes).expect("mending it");
    assert_eq!(filled.missing(&client), Vec::<String>::new());
    server.stop();

    let message = &filled.messages[3];
    for (sql, seen) in [
        (
            format!(
                "UPDATE event_json SET json = replace(json, 'newline', 'newlime') WHERE event_id = '{}'",
                filled.messages[3].event_id
            ),
            message.event_id.as_str(),
        ),
        (
            "DELETE FROM e2e_room_keys WHERE user_id LIKE '@carol%' AND session_id LIKE 'session2+7%'".to_owned(),
            "key backup of account 2",
        ),
        (
            "DELETE FROM access_tokens WHERE user_id LIKE '@bob%'".to_owned(),
            "old token of @bob",
        ),
        (
            "DELETE FROM device_inbox WHERE user_id LIKE '@carol%'".to_owned(),
            "to-device message for @carol",
        ),
    ] {
        assert_ne!(
            suite.sql(&format!("WITH w AS ({sql} RETURNING 1) SELECT count(*) FROM w")),
            "0",
            "{sql}"
        );
        let server = suite.home.start();
        expect_problem(&filled.missing(&client), seen);
        server.stop();
    }
}

#[track_caller]
fn expect_problem(problems: &[String], seen: &str) {
    assert!(
        problems.iter().any(|p| p.contains(seen)),
        "{seen:?} is not among the problems found: {problems:#?}"
    );
}
