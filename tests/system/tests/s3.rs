//! The whole line on a real object store, through the binary: with keys that can only add, from several processes at
//! once, and killed at any moment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::{Kill, Outcome};
use essrun_testkit::mas::Mas;
use essrun_testkit::seaweed::{ADMIN, Key, Seaweed, WRITER};
use essrun_testkit::site::{Site, tree};
use std::time::Duration;

struct World {
    server: Seaweed,
    site: Site,
    mas: Mas,
}

impl World {
    fn create() -> World {
        let server = Seaweed::start();
        server.make_bucket("backups");
        let mut site = Site::create();
        let mas = Mas::create(&site.cluster, &site.path().join("mas"));
        site.set_env("MAS_DB", &mas.database.url());
        // Something that takes several packs.
        site.cluster
            .psql_script(
                "mas",
                "SET ROLE mas_user; CREATE TABLE padding (n int, t text);
                 INSERT INTO padding SELECT n, (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 30) i) FROM generate_series(1, 40000) n",
            )
            .unwrap();
        let world = World { server, site, mas };
        world.keys("writer", WRITER);
        world.keys("admin", ADMIN);
        let file = world.site.path().join("writer.credentials");
        let more = format!(
            "limit-upload = \"200MiB\"\n\n[repository.s3]\nendpoint = \"{}\"\nallow-http = true\ncredentials-file = \"{}\"\n",
            world.server.endpoint(),
            file.display()
        );
        let components = format!(
            "[components.mas]\nuse = \"mas\"\ndatabases = {{ main = {{ url-env = \"MAS_DB\" }} }}\n\
             volumes = {{ config = {{ path = \"{}\" }} }}\n\n[retention]\nkeep-last = 1\n",
            world.mas.config.display()
        );
        world.site.prepare_in("s3://backups/ess", &more, &components);
        world
    }

    fn keys(&self, name: &str, key: Key) {
        let text = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            key.id, key.secret
        );
        std::fs::write(self.site.path().join(format!("{name}.credentials")), text).unwrap();
    }

    /// A second pipeline.toml, with one thing replaced.
    fn variant(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.site.path().join("pipeline.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(self.site.path().join(name), text.replace(from, to)).unwrap();
    }

    fn backups(&self) -> usize {
        let listed = self.site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
        listed.events.len()
    }

    /// All but the lease of a process that no longer runs, which MAS's component leaves out.
    fn dump(&self) -> String {
        let output = self
            .site
            .cluster
            .client("pg_dump")
            .args(["-d", "mas", "--exclude-table-data=queue_leader", "--restrict-key=same"])
            .output()
            .unwrap();
        let output = match output.status.success() {
            true => output,
            // Older ones have no such option, and need none.
            false => self
                .site
                .cluster
                .client("pg_dump")
                .args(["-d", "mas", "--exclude-table-data=queue_leader"])
                .output()
                .unwrap(),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // A large table is taken and put back in parts, so the order of its rows is nobody's promise.
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }
}

fn says_no_secret(outcome: Outcome) -> Outcome {
    for secret in [WRITER.secret, ADMIN.secret] {
        assert!(
            !outcome.stdout.contains(secret) && !outcome.stderr.contains(secret),
            "{outcome}"
        );
    }
    outcome
}

#[test]
fn a_suite_goes_to_an_object_store_and_comes_back() {
    let world = World::create();
    let site = &world.site;
    let run = |args: &[&str]| says_no_secret(site.essrun().run(args)).expect_success();
    let validated = run(&["validate", "pipeline.toml"]);
    for part in [
        "If-None-Match",
        "listing shows at once",
        "these keys cannot delete",
        "good: a backup would run",
    ] {
        assert!(validated.stdout.contains(part), "{part:?} is not in\n{validated}");
    }
    let (before, config) = (world.dump(), tree(&world.mas.config));
    run(&["pipeline.toml"]);
    let again = site.back_up().expect_success();
    assert!(again.stdout.contains("committed"), "{again}");
    run(&["check", "pipeline.toml", "--identity", "elsewhere/identity.txt"]);

    site.drop_database("mas");
    std::fs::remove_dir_all(&world.mas.config).unwrap();
    site.with_identity("restore", &["--yes"]).expect_success();
    same(&world.dump(), &before);
    assert_eq!(tree(&world.mas.config), config);

    // The host's own keys free nothing; keys that may delete do, and what is left is whole.
    run(&["forget", "pipeline.toml", "--confirm"]);
    run(&["prune", "pipeline.toml", "--grace", "0d", "--confirm"]);
    let refused = run(&["prune", "pipeline.toml", "--grace", "0d", "--confirm"]);
    assert!(refused.stdout.contains("kept by the store"), "{refused}");
    world.variant("admin.toml", "writer.credentials", "admin.credentials");
    let freed = run(&["prune", "admin.toml", "--grace", "0d", "--confirm"]);
    assert!(
        freed.stdout.contains(" deleted (") && !freed.stdout.contains(" 0 deleted ("),
        "{freed}"
    );
    assert_eq!(world.backups(), 1);
    run(&["check", "pipeline.toml", "--identity", "elsewhere/identity.txt"]);

    // Somebody else's bucket is not ours to write to, and it is said which.
    world.variant("other.toml", "s3://backups/ess", "s3://backups/other");
    let denied = says_no_secret(site.essrun().run(&["init", "other.toml"]));
    assert_ne!(denied.code(), Some(0), "{denied}");
    denied.expect_stderr(&["s3://backups/other", "rights on the bucket"]);
}

#[test]
fn several_processes_at_once_lose_nothing() {
    let world = World::create();
    let runs: Vec<_> = (0..4)
        .map(|n| {
            // As on a host of its own: another cache, the same writer key.
            let name = format!("host-{n}.toml");
            world.variant(&name, "/cache\"", &format!("/cache-{n}\""));
            let essrun = world.site.essrun();
            std::thread::spawn(move || essrun.run_json(&[&name]))
        })
        .collect();
    for run in runs {
        run.join().unwrap().expect_success();
    }
    assert_eq!(world.backups(), 4);
    world.site.with_identity("check", &[]).expect_success();
}

#[test]
fn a_backup_killed_at_any_moment_leaves_a_good_repository() {
    let world = World::create();
    let site = &world.site;
    let sample = site.back_up().expect_success();
    let events = sample.events.len();
    // All new each time, so that there is something to upload.
    let change = "UPDATE padding SET t = md5(t || random()::text) || t";
    let mut moments: Vec<Kill> = (1..=6).map(|n| Kill::After(sample.took * n / 7)).collect();
    moments.extend((1..=4).map(|n| Kill::AtEvent((events * n / 5).max(1))));
    moments.push(Kill::After(sample.took.saturating_sub(Duration::from_millis(40))));
    let (mut killed, mut there) = (0, 1);
    for kill in moments {
        site.sql("mas", change);
        let outcome = site.essrun().run_and_kill(&["pipeline.toml"], kill);
        assert!(outcome.was_killed() || outcome.code() == Some(0), "{kill:?}: {outcome}");
        killed += usize::from(outcome.was_killed());
        site.essrun().run(&["check", "pipeline.toml"]).expect_success();
        let now = world.backups();
        assert!(now == there || now == there + 1, "{kill:?}: {now} after {there}");
        assert!(outcome.was_killed() || now == there + 1, "{kill:?}: {outcome}");
        there = now;
    }
    assert!(
        killed >= 6,
        "only {killed} runs were still going when their moment came"
    );
    let before = world.dump();
    site.back_up().expect_success();
    site.with_identity("check", &[]).expect_success();
    // No part of an upload is left in the bucket under any other name.
    let uploads = world.server.expect("GET", "/backups", "uploads=", &[], b"");
    assert!(!uploads.contains("<Upload>"), "{uploads}");
    site.drop_database("mas");
    std::fs::remove_dir_all(&world.mas.config).unwrap();
    site.with_identity("restore", &["--yes"]).expect_success();
    same(&world.dump(), &before);
}

/// Line by line: a difference is one line, not a whole dump.
fn same(after: &str, before: &str) {
    for (after, before) in after.lines().zip(before.lines()) {
        assert_eq!(after, before);
    }
    assert_eq!(after.len(), before.len());
}
