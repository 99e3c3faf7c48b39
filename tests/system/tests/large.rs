//! A server of ordinary size: no limit that is there to stop what runs wild stops what is only large, and each says which
//! key raises it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::suite::Suite;

const COMPONENT: i32 = 7;
const MEDIA: u32 = 300_000;

#[test]
fn a_synapse_with_many_media() {
    let suite = Suite::create();
    suite.home.start().stop();
    // Their files are where an S3 storage provider put them.
    suite.sql(&format!(
        "INSERT INTO local_media_repository (media_id, media_type, media_length, created_ts, upload_name, user_id) \
         SELECT 'AbCdEfGhIjKlMnOpQr' || lpad(n::text, 6, '0'), 'image/png', 1000, 1700000000000, 'x.png', '@a:example.org' \
         FROM generate_series(1, {MEDIA}) n"
    ));
    suite.prepare_backups();
    suite.essrun().run(&["init", "pipeline.toml"]).expect_success();
    let taken = suite.back_up().expect_success();
    let said = format!("{MEDIA} of {MEDIA} media have no file");
    assert!(taken.stdout.contains(&said), "{taken}");

    // Verification goes through all of them again.
    let identity = suite.identity();
    let drill = ["drill", "pipeline.toml", "--identity", identity.to_str().unwrap()];
    let drilled = suite.essrun().run_json(&drill).expect_success();
    let found = drilled
        .events_of("finding")
        .find(|f| f["check"] == "synapse-media-files")
        .unwrap_or_else(|| panic!("{drilled}"));
    assert_eq!(found["severity"], "warning", "{found}");
    assert!(
        found["message"].as_str().unwrap().contains(&MEDIA.to_string()),
        "{found}"
    );

    // What a component from elsewhere may, it would not have come through with: the error names the key, and nothing is
    // tried again, since looking at it again costs the same.
    let text = std::fs::read_to_string(suite.pipeline_file()).unwrap();
    for (limit, key) in [
        ("looked-at = \"64 MiB\"", "raise `looked-at`"),
        ("rows = 200000", "raise `rows`"),
    ] {
        std::fs::write(
            suite.pipeline_file(),
            format!("{text}\n[components.synapse.limits]\n{limit}\n"),
        )
        .unwrap();
        let stopped = suite.back_up().expect_code(COMPONENT).expect_stderr(&[key]);
        assert_eq!(stopped.events_of("instant").count(), 1, "it was tried again: {stopped}");
    }

    // Pages as small as may be are only slower.
    std::fs::write(
        suite.pipeline_file(),
        format!("{text}\n[components.synapse.limits]\npage = \"4 KiB\"\n"),
    )
    .unwrap();
    suite.back_up().expect_success();
}
