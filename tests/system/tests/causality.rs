//! Writers commit to Synapse's database and then to MAS's, several in parallel and without pause, while backup after
//! backup is taken of both. In none may MAS know what Synapse does not: that is looked for in the stored artifacts.
//!
//! A few backups of each kind always; `cargo xtask bench instant` takes five hundred of each and prints what taking the
//! instant cost, as the manifests have it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::pair::Pair;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const WRITERS: usize = 3;
/// Writers and what serves them get what the backups leave of the processor, which is enough to write without pause.
const NICE: i32 = 10;
/// As many rows of its own a writer leaves in each database, so that the five hundredth backup is no larger.
const KEEP: u64 = 30;

fn backups() -> usize {
    let asked = std::env::var("INSTANT_BACKUPS").ok();
    asked.map_or(8, |n| n.parse().expect("INSTANT_BACKUPS is a number"))
}

struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    fn start(pair: &Pair) -> Writers {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..WRITERS)
            .map(|who| {
                let (stop, written) = (stop.clone(), written.clone());
                let (synapse, mas) = (pair.suite.database.url(), pair.mas.database.url());
                std::thread::spawn(move || {
                    // Of this thread alone, as Linux counts.
                    yield_to_backups(None);
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime.block_on(write(who, &synapse, &mas, &stop, &written));
                })
            })
            .collect();
        Writers { stop, written, threads }
    }

    fn so_far(&self) -> u64 {
        assert!(self.threads.iter().all(|t| !t.is_finished()), "a writer has failed");
        self.written.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a writer has failed");
        }
    }
}

/// Made in Synapse, then in MAS; taken away from MAS, then from Synapse: at every moment MAS has nothing more, and one
/// less of each writer at most.
async fn write(who: usize, synapse: &str, mas: &str, stop: &AtomicBool, written: &AtomicU64) {
    let synapse = connect(synapse).await;
    let mas = connect(mas).await;
    let user = format!("w{who}");
    let made = format!("INSERT INTO users (name, creation_ts) VALUES ('@{user}:example.org', 1)");
    synapse.batch_execute(&made).await.expect("a user in Synapse");
    let made = format!("INSERT INTO users (user_id, username, created_at) VALUES (gen_random_uuid(), '{user}', now())");
    mas.batch_execute(&made).await.expect("a user in MAS");
    for n in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let device = |n: u64| format!("D{who}X{n}E");
        let cause = format!(
            "INSERT INTO devices (user_id, device_id, hidden) VALUES ('@{user}:example.org', '{}', false)",
            device(n)
        );
        let effect = format!(
            "INSERT INTO compat_sessions (compat_session_id, user_id, device_id, created_at) \
             SELECT gen_random_uuid(), user_id, '{}', now() FROM users WHERE username = '{user}'",
            device(n)
        );
        synapse
            .batch_execute(&cause)
            .await
            .expect("writing to Synapse's database");
        mas.batch_execute(&effect).await.expect("writing to MAS's database");
        if let Some(old) = n.checked_sub(KEEP).map(device) {
            let effect = format!("DELETE FROM compat_sessions WHERE device_id = '{old}'");
            let cause = format!("DELETE FROM devices WHERE device_id = '{old}'");
            mas.batch_execute(&effect).await.expect("writing to MAS's database");
            synapse
                .batch_execute(&cause)
                .await
                .expect("writing to Synapse's database");
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .expect("connecting");
    tokio::spawn(connection);
    let server = client.query_one("SELECT pg_backend_pid()", &[]).await;
    let server: i32 = server.expect("who serves it").get(0);
    yield_to_backups(Some(rustix::process::Pid::from_raw(server).expect("a process")));
    client
}

fn yield_to_backups(process: Option<rustix::process::Pid>) {
    rustix::process::setpriority_process(process, NICE).expect("writers yield");
}

/// The writers' devices in a stored table, whatever format its rows are stored in.
fn devices(pair: &Pair, backup: &str, artifact: &str) -> BTreeSet<String> {
    let identity = pair.suite.identity();
    let identity = identity.to_str().unwrap();
    let args = [
        "extract",
        "pipeline.toml",
        artifact,
        "--backup",
        backup,
        "--identity",
        identity,
    ];
    let output = pair.essrun().command(&args).output().expect("essrun");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| {
            let inner = word.strip_prefix('D').and_then(|w| w.strip_suffix('E'));
            let parts = inner.and_then(|w| w.split_once('X'));
            parts.is_some_and(|(a, b)| a.parse::<u64>().is_ok() && b.parse::<u64>().is_ok())
        })
        .map(str::to_owned)
        .collect()
}

fn never_seen_with_effect_but_not_cause(two_servers: bool, how: &str) {
    let pair = Pair::new(two_servers);
    let writers = Writers::start(&pair);
    while writers.so_far() < 2 * KEEP * WRITERS as u64 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (mut took, mut held, mut tries, mut before) = (Vec::new(), Vec::new(), Vec::new(), None::<BTreeSet<String>>);
    let (mut would_be_seen, mut written) = (0, 0);
    let count = backups();
    let mut taken = Vec::new();
    for n in 0..count {
        let from = writers.so_far();
        let backup = pair.essrun().run_json(&["pipeline.toml"]).expect_success();
        let during = writers.so_far() - from;
        assert!(during > 0, "nobody wrote while backup {n} was taken");
        written += during;
        let committed = backup.events_of("committed").next().unwrap();
        taken.push(committed["backup"].as_str().unwrap().to_owned());
    }
    writers.stop();
    for (n, id) in taken.iter().enumerate() {
        let causes = devices(&pair, id, "synapse/main/public.devices");
        let effects = devices(&pair, id, "mas/main/public.compat_sessions");
        let without: Vec<_> = effects.difference(&causes).collect();
        assert!(
            without.is_empty(),
            "backup {n}, {id}: MAS knows what Synapse does not: {without:?}"
        );
        let under_way: Vec<_> = causes.difference(&effects).collect();
        assert!(under_way.len() <= WRITERS, "backup {n}, {id}: MAS lacks {under_way:?}");
        assert!(
            effects.len() as u64 >= (KEEP - 2) * WRITERS as u64,
            "{} devices",
            effects.len()
        );
        // The same look at two that do not belong together does see it.
        would_be_seen += usize::from(before.is_some_and(|causes| !effects.is_subset(&causes)));
        before = Some(causes);

        let shown = pair
            .run(&["--json", "show", "pipeline.toml", "--backup", id])
            .expect_success();
        let shown: Value = serde_json::from_str(shown.stdout.trim()).unwrap();
        let instant = &shown["body"]["instants"][0];
        assert_eq!(
            instant["databases"],
            serde_json::json!(["synapse/main", "mas/main"]),
            "{instant}"
        );
        let reached = &instant["reached"];
        assert_eq!(reached["how"], how, "{reached}");
        took.push(reached["took_ms"].as_f64().unwrap());
        tries.push(reached["tries"].as_u64().unwrap() as f64);
        held.extend(reached["hold_ms"].as_f64());
    }
    assert_eq!(would_be_seen, count - 1, "the check sees what it looks for");
    assert_eq!(held.len(), if two_servers { count } else { 0 });
    println!("{count} backups, {how}, {written} writes to both meanwhile: no effect without its cause");
    println!("  the instant took  {}", spread(took, "ms"));
    println!("  tries             {}", spread(tries, ""));
    if two_servers {
        println!("  the fence held    {}", spread(held, "ms"));
    }
}

fn spread(mut of: Vec<f64>, unit: &str) -> String {
    of.sort_by(f64::total_cmp);
    let at = |share: f64| of[((of.len() - 1) as f64 * share).round() as usize];
    format!(
        "median {:.1} {unit}, p95 {:.1} {unit}, longest {:.1} {unit}",
        at(0.5),
        at(0.95),
        at(1.0)
    )
}

#[test]
fn on_one_server() {
    never_seen_with_effect_but_not_cause(false, "same-instant");
}

#[test]
fn on_two_servers() {
    never_seen_with_effect_but_not_cause(true, "fenced");
}
