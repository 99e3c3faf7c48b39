//! The whole line on a real Synapse: filled, backed up while it is written to, lost, restored, used again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::suite::Suite;
use essrun_testkit::synapse::{Writer, fill};
use std::path::Path;
use std::time::Instant;

/// A file tree as text: path, kind, permissions, owner, modification time and contents of everything in it.
fn tree(root: &Path) -> String {
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            "find . -printf '%P %y %m %U:%G %T@ %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum",
        ])
        .current_dir(root)
        .output()
        .expect("find");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("test trees have UTF-8 names")
}

#[test]
fn a_real_synapse_comes_back() {
    let suite = Suite::create();
    let server = suite.home.start();
    let client = server.client();
    let filled = fill(&client);
    filled.assert_all_there(&client);

    suite.prepare_backups();
    suite.essrun().run(&["init", "pipeline.toml"]).expect_success();
    suite.essrun().run(&["validate", "pipeline.toml"]).expect_success();

    // A first backup of what is there, then one while it is written to.
    suite.back_up().expect_success();
    let room = &filled.rooms[0].id;
    let writers: Vec<Writer> = [0, 1]
        .iter()
        .map(|who| Writer::start(client.clone(), filled.token(*who), room))
        .collect();
    writers.iter().for_each(|writer| writer.wait_for(12));
    let begun = Instant::now();
    let backup = suite.back_up().expect_success();
    assert_eq!(backup.events_of("committed").count(), 1, "{backup}");
    // Our own component says itself what is secret in the tables that are there.
    assert!(!backup.to_string().contains("component's author"), "{backup}");
    writers
        .iter()
        .for_each(|writer| writer.wait_for(writer.entries_so_far() + 5));
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    let late = client
        .login("alice", &filled.accounts[0].password)
        .expect("a login after the backup");
    assert_ne!(suite.sql("SELECT count(*) FROM e2e_one_time_keys_json"), "0");
    let config = tree(&suite.home.config());
    server.stop();

    // Nothing the host holds or the repository shows gives anything away.
    let password = &suite.database.password;
    for secret in [
        password.as_str(),
        "Quittenschnaps",
        filled.token(0),
        &std::fs::read_to_string(suite.home.signing_key()).unwrap(),
    ] {
        assert!(
            !backup.stdout.contains(secret) && !backup.stderr.contains(secret),
            "{secret:?} was printed"
        );
        let found = std::process::Command::new("grep")
            .args(["-rlaF", "--", secret.trim()])
            .args([suite.repository(), suite.path().join("cache")])
            .output()
            .expect("grep");
        assert_eq!(
            found.status.code(),
            Some(1),
            "{secret:?} is in {}",
            String::from_utf8_lossy(&found.stdout)
        );
    }

    // One-time keys never reach the repository: the table is there, its rows are not.
    let shown = suite
        .essrun()
        .run_json(&["show", "pipeline.toml", "--artifacts"])
        .expect_success();
    assert!(shown.stdout.contains("synapse/main/public.events\""), "{shown}");
    assert!(
        shown.stdout.contains("synapse/main/public.e2e_fallback_keys_json\""),
        "{shown}"
    );
    assert!(
        !shown.stdout.contains("synapse/main/public.e2e_one_time_keys_json\""),
        "{shown}"
    );
    suite.essrun().run(&["list", "pipeline.toml"]).expect_success();
    suite.essrun().run(&["check", "pipeline.toml"]).expect_success();
    let identity = suite.identity();
    let identity = identity.to_str().unwrap();
    suite
        .essrun()
        .run(&["check", "pipeline.toml", "--identity", identity])
        .expect_success();

    suite.destroy();
    assert!(!suite.databases().contains(&"synapse".to_owned()));
    let restored = suite.restore().expect_success();
    assert!(
        !restored.stdout.contains(password.as_str()) && !restored.stderr.contains(password.as_str()),
        "a password was printed"
    );
    assert_eq!(suite.sql("SELECT count(*) FROM e2e_one_time_keys_json"), "0");
    assert_eq!(
        tree(&suite.home.config()),
        config,
        "configuration and signing key come back to the bit"
    );
    assert_eq!(
        suite.databases(),
        ["postgres", "synapse"],
        "nothing else is left behind"
    );

    let server = suite.home.start();
    filled.assert_all_there(&client);
    for written in &written {
        let back = written.assert_consistent(&client, begun);
        assert!(
            back < written.entries.len(),
            "what was written after the backup cannot be there"
        );
    }
    assert_eq!(
        client
            .whoami(&late.token)
            .expect_err("a token younger than the backup")
            .status,
        401
    );
    filled.assert_one_time_keys_gone(&client);
    filled.assert_usable(&client);

    // A second restore into what is now in use is refused and changes nothing.
    let marker = client
        .send_text(filled.token(0), room, "after the restore")
        .expect("a message");
    suite
        .restore()
        .expect_code(4)
        .expect_stderr(&["refused", "synapse", "hint:"]);
    client
        .event(filled.token(0), room, &marker)
        .expect("the message is still there");
    server.stop();
    suite.restore().expect_code(4);
    assert_eq!(suite.databases(), ["postgres", "synapse"]);
    let server = suite.home.start();
    client
        .event(filled.token(0), room, &marker)
        .expect("the message is still there");
    // Some undelivered keys were delivered by now, and fallback keys used; all else must be as it was.
    let problems = filled.missing(&client);
    assert!(problems.iter().all(|p| p.contains("to-device")), "{problems:#?}");
    server.stop();

    // With --replace it goes through, and the old ones are kept.
    suite
        .essrun()
        .run_json(&["restore", "pipeline.toml", "--identity", identity, "--yes", "--replace"])
        .expect_success();
    assert_eq!(
        suite.databases().len(),
        3,
        "the replaced database is kept: {:?}",
        suite.databases()
    );
    let server = suite.home.start();
    filled.assert_all_there(&client);
    assert_eq!(
        client
            .event(filled.token(0), room, &marker)
            .expect_err("restored to before it")
            .status,
        404
    );
    server.stop();
}
