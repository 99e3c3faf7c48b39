//! Measurements, run by hand: `cargo test --release -p essrun-postgres --test measure -- --ignored --nocapture`.
//! They assert nothing about time; they print what was seen, ours beside stock `pg_dump` and `pg_restore`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{PREFIX, connection, create, drill, try_restore};
use essrun_artifact::memory::MemoryBackup;
use essrun_artifact::{NoProgress, Sensitivity};
use essrun_postgres::SnapshotGroup;
use essrun_postgres::dump::{self, DumpRequest, FormatPolicy};
use essrun_testkit::postgres::Cluster;
use std::sync::Arc;
use std::time::Instant;

/// Shaped like Synapse's largest tables, about `mib` MiB.
fn fill(mib: u32) -> String {
    let n = mib * 300;
    format!(
        "CREATE TABLE state_groups_state (state_group bigint NOT NULL, room_id text NOT NULL, type text NOT NULL, state_key text NOT NULL, event_id text NOT NULL);
         INSERT INTO state_groups_state SELECT g / 40, '!room' || g % 50 || ':example.org', 'm.room.member', '@user' || g % 4000 || ':example.org', '$' || md5(g::text) FROM generate_series(1, {n} * 8) g;
         CREATE INDEX state_groups_state_type_idx ON state_groups_state (state_group, type, state_key);
         CREATE TABLE event_json (event_id text NOT NULL UNIQUE, room_id text NOT NULL, internal_metadata text NOT NULL, json text NOT NULL, format_version int);
         INSERT INTO event_json SELECT '$' || md5(g::text), '!room' || g % 50 || ':example.org', '{{\"stream_ordering\":' || g || '}}',
           '{{\"type\":\"m.room.message\",\"content\":{{\"body\":\"' || repeat(md5((g * 7)::text) || E' \\\\n ', 12) || '\"}},\"hashes\":\"' || md5((g * 3)::text) || '\"}}', 3 FROM generate_series(1, {n}) g;
         CREATE TABLE events (stream_ordering bigint PRIMARY KEY, topological_ordering bigint, event_id text UNIQUE, type text, room_id text, sender text, depth bigint, processed boolean, received_ts bigint, contains_url boolean);
         INSERT INTO events SELECT g, g, '$' || md5(g::text), 'm.room.message', '!room' || g % 50 || ':example.org', '@user' || g % 4000 || ':example.org', g, true, 1700000000000 + g, false FROM generate_series(1, {n} * 2) g;
         CREATE INDEX events_room ON events (room_id, topological_ordering, stream_ordering); CREATE INDEX events_ts ON events (received_ts, stream_ordering);
         CREATE TABLE device_inbox (user_id text, device_id text, stream_id bigint, message_json text);
         INSERT INTO device_inbox SELECT '@user' || g % 4000, 'DEV' || g % 9, g, repeat(md5(g::text), 30) FROM generate_series(1, {n} / 6) g;
         CREATE TABLE blobs (id bigint PRIMARY KEY, data bytea); INSERT INTO blobs SELECT g, decode(repeat(md5(g::text), 40), 'hex') FROM generate_series(1, {n} / 6) g;
         VACUUM ANALYZE"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn dump_and_restore_beside_stock_tools() {
    let mib = std::env::var("ESSRUN_MEASURE_MIB")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(300);
    let cluster = Cluster::start(&[("shared_buffers", "256MB"), ("max_wal_size", "4GB")]).unwrap();
    create(&cluster, "s", &fill(mib));
    println!(
        "database: {}",
        cluster
            .psql("s", "SELECT pg_size_pretty(pg_database_size('s'))")
            .unwrap()
    );
    let source = connection(&cluster, "s");
    let file = tempfile::NamedTempFile::new().unwrap();
    for round in 0..2 {
        let began = Instant::now();
        let mut stock = cluster.client("pg_dump");
        stock.args(["-Fc", "-Z0", "-f"]).arg(file.path()).env("PGDATABASE", "s");
        assert!(stock.status().unwrap().success());
        println!("round {round}: pg_dump -Fc -Z0: {:.2} s", began.elapsed().as_secs_f64());
        let mut kept = None;
        for (name, format, jobs) in [
            ("text, 1 job", FormatPolicy::Text, 1),
            ("text, 2 jobs", FormatPolicy::Text, 2),
            ("auto, 2 jobs", FormatPolicy::Auto, 2),
        ] {
            let request = DumpRequest {
                format,
                jobs,
                ..DumpRequest::default()
            };
            let group = SnapshotGroup::single("s", &source).await.unwrap();
            let plan = dump::plan(&group.snapshots()[0], &request).await.unwrap();
            if round == 0 && jobs == 2 {
                print!("{plan}");
            }
            let backup = MemoryBackup::new();
            let (writer, classify) = (Arc::new(backup.clone()), Arc::new(|_: &_| Sensitivity::Secret));
            let began = Instant::now();
            let report = dump::execute(
                &group.snapshots()[0],
                plan,
                PREFIX,
                writer,
                classify,
                Arc::new(NoProgress),
            )
            .await
            .unwrap();
            println!(
                "round {round}: ours {name}: {:.2} s, {} MiB",
                began.elapsed().as_secs_f64(),
                report.bytes >> 20
            );
            kept = Some(backup);
        }
        cluster.psql("postgres", "CREATE DATABASE r").unwrap();
        let began = Instant::now();
        let mut stock = cluster.client("pg_restore");
        stock.args(["-j2", "-d", "r"]).arg(file.path());
        assert!(stock.status().unwrap().success());
        println!(
            "round {round}: pg_restore -j2: {:.2} s (and no ANALYZE)",
            began.elapsed().as_secs_f64()
        );
        cluster.psql("postgres", "DROP DATABASE r").unwrap();
        let restored = try_restore(kept.unwrap().commit().unwrap(), &source, &drill("s"))
            .await
            .unwrap();
        println!("round {round}: ours restore: {:?}", restored.report());
        restored.drop_scratch().await.unwrap();
    }
}
