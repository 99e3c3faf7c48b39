//! Random histories, for tests: whatever two hosts do in whatever order, with days going by in between, what is listed is
//! there in full and reads back.
//!
//! Time is made up: the hosts' clocks and the store's go by [`clock`], so that grace times and leases are the real ones.
//! Runs are taken apart into their steps, and up to three are under way while all else happens.

use crate::clock::{made_up, now};
use crate::core::Core;
use crate::keys::{NewIdentity, Recipients, WriterKey};
use crate::names::ListName;
use crate::{
    Access, Backup, BackupId, BackupStart, CheckMode, Options, PlainArtifacts, PrunePlan, Repository, Rewrite,
    overview, read,
};
use async_trait::async_trait;
use bytes::Bytes;
use essrun_artifact::*;
use essrun_store::{ObjectInfo, ObjectName, Objects, Outcome, Store, StoreError};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A lease is renewed all the time, in real time; made-up time goes by in steps that leave it valid.
const LEASE_VALID: Duration = Duration::from_secs(12 * 3600);
const STEP: i64 = 5 * HOUR;

/// A store in memory whose clock is the made-up one.
#[derive(Debug)]
struct Dated {
    inner: Objects,
    times: Mutex<HashMap<ObjectName, i64>>,
}

impl Dated {
    fn new() -> Arc<Self> {
        Arc::new(Dated {
            inner: Objects::memory(),
            times: Mutex::default(),
        })
    }

    fn dated(&self, info: ObjectInfo) -> ObjectInfo {
        let modified_unix_seconds = self.times.lock().unwrap()[&info.name];
        ObjectInfo {
            modified_unix_seconds,
            ..info
        }
    }
}

#[async_trait]
impl Store for Dated {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn put_new(&self, name: &ObjectName, bytes: Bytes) -> Result<Outcome, StoreError> {
        // Before it is there: what can be seen has a time.
        self.times.lock().unwrap().entry(name.clone()).or_insert_with(now);
        self.inner.put_new(name, bytes).await
    }
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.inner.get(name).await
    }
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(name, range).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectInfo>, StoreError> {
        Ok(self.inner.head(name).await?.map(|info| self.dated(info)))
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let found = self.inner.list(prefix).await?;
        Ok(found.into_iter().map(|info| self.dated(info)).collect())
    }
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await?;
        self.times.lock().unwrap().remove(name);
        Ok(())
    }
}

/// Rows of a table: those of overlapping stretches share chunks.
fn rows(from: u64) -> Vec<u8> {
    let row = |n: u64| {
        let mix = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(
            "{n}\t${mix:016x}{:016x}\t{{\"type\":\"m.room.message\"}}\n",
            mix.rotate_left(31) ^ n
        )
    };
    (from..from + 900).map(row).collect::<String>().into_bytes()
}

type Artifacts = BTreeMap<String, Vec<u8>>;

/// A run under way.
struct Run {
    which: usize,
    backup: Backup,
    /// Written or taken over, and not recorded yet.
    loose: Vec<(Content, Vec<u8>)>,
    recorded: Artifacts,
}

impl Run {
    async fn write(&mut self, bytes: Vec<u8>) {
        let mut lane = self.backup.lane(LaneSpec::TABLE).unwrap();
        lane.write(Bytes::from(bytes.clone())).await.unwrap();
        let content = lane.cut().await.unwrap();
        lane.close().await.unwrap();
        self.loose.push((content, bytes));
    }

    async fn record(&mut self) {
        for (content, bytes) in self.loose.drain(..) {
            let name = format!("s/{}", self.recorded.len());
            let record = ArtifactRecord {
                name: ArtifactName::new(&name).unwrap(),
                kind: "test".into(),
                sensitivity: Sensitivity::Personal,
                meta: serde_json::Value::Null,
                content,
            };
            self.backup.record(record).await.unwrap();
            self.recorded.insert(name, bytes);
        }
    }
}

/// What is to be there.
struct Kept {
    which: usize,
    artifacts: Artifacts,
}

/// What came about in all histories, to see that they do what they are for.
#[derive(Debug, Default)]
struct Seen {
    /// Objects deleted while a run was under way.
    swept_beside_runs: u64,
    adopted: u64,
    brought_back: u64,
    rewritten: u64,
    dropped: u64,
}

struct History {
    store: Arc<Dated>,
    dir: tempfile::TempDir,
    writers: [WriterKey; 2],
    identities: [NewIdentity; 2],
    /// Whether contents go to the second identity, too.
    to_both: bool,
    listed: BTreeMap<BackupId, Kept>,
    forgotten: BTreeMap<BackupId, Kept>,
    runs: Vec<Run>,
    plans: Vec<PrunePlan>,
    dice: StdRng,
}

impl History {
    async fn new(seed: u64) -> Self {
        let history = History {
            store: Dated::new(),
            dir: tempfile::tempdir().unwrap(),
            writers: [WriterKey::generate(), WriterKey::generate()],
            identities: [NewIdentity::generate(), NewIdentity::generate()],
            to_both: false,
            listed: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            runs: Vec::new(),
            plans: Vec::new(),
            dice: StdRng::seed_from_u64(seed),
        };
        let [first, second] = &history.writers;
        let recipients = history.access(0, false).recipients;
        Repository::init(history.store.clone(), first, &recipients)
            .await
            .unwrap();
        history.open(0, false).await.authorize(&second.public()).await.unwrap();
        history
    }

    fn access(&self, which: usize, identity: bool) -> Access {
        let of = if self.to_both { 2 } else { 1 };
        let cache = self.dir.path().join(format!("{which}-{identity}"));
        Access {
            writer: self.writers.get(which).cloned(),
            identities: if identity {
                vec![self.identities[0].identity()]
            } else {
                vec![]
            },
            recipients: Recipients::parse(self.identities[..of].iter().map(NewIdentity::recipient)).unwrap(),
            state_dir: cache.join("state"),
            cache_dir: cache,
            options: Options {
                pack_bytes: 48 << 10,
                lease_refresh: Duration::from_millis(1),
                lease_valid: LEASE_VALID,
                ..Options::default()
            },
        }
    }

    async fn open(&self, which: usize, identity: bool) -> Repository {
        Repository::open(self.store.clone(), self.access(which, identity))
            .await
            .unwrap()
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.dice.random_range(0..sides)
    }

    fn some_rows(&mut self) -> Vec<u8> {
        rows(self.roll(6) as u64 * 300)
    }

    /// One of the backups, if there are any.
    fn pick(&mut self, forgotten: bool) -> Option<BackupId> {
        let sides = if forgotten {
            self.forgotten.len()
        } else {
            self.listed.len()
        };
        let at = self.roll(sides.max(1));
        let of = if forgotten { &self.forgotten } else { &self.listed };
        of.keys().nth(at).cloned()
    }

    /// Lets time go by, and all runs announce themselves meanwhile.
    async fn advance(&mut self, seconds: i64) {
        let mut left = seconds;
        while left > 0 {
            let step = left.min(STEP);
            made_up::advance(step);
            left -= step;
            let today = now();
            for run in &self.runs {
                let of = format!("leases/{}.", run.backup.id());
                loop {
                    let leases = self.store.list("leases").await.unwrap();
                    let fresh = |l: &ObjectInfo| l.name.as_str().starts_with(&of) && l.modified_unix_seconds >= today;
                    if leases.iter().any(fresh) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    async fn begin(&mut self) {
        let which = self.roll(2);
        let start = BackupStart {
            sensitivity: Sensitivity::Personal,
        };
        let backup = self.open(which, false).await.begin(start).await.unwrap();
        self.runs.push(Run {
            which,
            backup,
            loose: Vec::new(),
            recorded: Artifacts::new(),
        });
    }

    async fn commit(&mut self, run: Run) {
        let done = run.backup.commit(serde_json::Value::Null).await.unwrap();
        let kept = Kept {
            which: run.which,
            artifacts: run.recorded,
        };
        self.listed.insert(done.id, kept);
    }

    async fn adopt(&mut self, at: usize, seen: &mut Seen) {
        let Some(from) = self.pick(false) else { return };
        let (kept, run) = (&self.listed[&from], &self.runs[at]);
        // What another writer wrote is named by another key.
        if kept.which != run.which {
            return;
        }
        let open = self.open(run.which, false).await.read(from.as_str()).await.unwrap();
        for record in open.artifacts() {
            if run.backup.adopt(&record.content).await.unwrap() {
                seen.adopted += 1;
                let bytes = kept.artifacts[record.name.as_str()].clone();
                self.runs[at].loose.push((record.content.clone(), bytes));
                return;
            }
        }
    }

    async fn rewrite(&mut self, what: Rewrite, seen: &mut Seen) {
        let which = self.roll(2);
        let both = self.open(which, true).await;
        let report = both.rewrite(what, true, &PlainArtifacts, &NoProgress).await.unwrap();
        seen.rewritten += report.packs.len() as u64;
    }

    async fn step(&mut self, seen: &mut Seen) -> &'static str {
        let at = self.roll(self.runs.len().max(1));
        let running = !self.runs.is_empty();
        let which = self.roll(2);
        match self.roll(24) {
            0 | 1 => {
                self.begin().await;
                let mut run = self.runs.pop().unwrap();
                run.write(self.some_rows()).await;
                run.record().await;
                self.commit(run).await;
                "a whole backup"
            }
            2..4 if self.runs.len() < 3 => {
                self.begin().await;
                "begin"
            }
            4 | 5 if running => {
                let table = self.some_rows();
                self.runs[at].write(table).await;
                "write"
            }
            6 | 7 if running => {
                self.adopt(at, seen).await;
                "adopt"
            }
            8 if running => {
                self.runs[at].record().await;
                "record"
            }
            9 if running => {
                let run = self.runs.remove(at);
                self.commit(run).await;
                "commit"
            }
            10 if running && self.roll(2) == 0 => {
                drop(self.runs.remove(at));
                seen.dropped += 1;
                "drop"
            }
            11 | 12 => {
                if let Some(id) = self.pick(false) {
                    self.open(which, false).await.forget(&id, "retention").await.unwrap();
                    self.forgotten.extend(self.listed.remove_entry(&id));
                }
                "forget"
            }
            13 => {
                if let Some(id) = self.pick(true)
                    && self.open(which, false).await.unforget(id.as_str(), GRACE).await.is_ok()
                {
                    seen.brought_back += 1;
                    self.listed.extend(self.forgotten.remove_entry(&id));
                }
                "undo"
            }
            14 => {
                self.plans
                    .push(self.open(which, false).await.plan_prune(GRACE).await.unwrap());
                "plan a prune"
            }
            15 => {
                // It may be days old.
                if let Some(plan) = self.plans.pop() {
                    self.prune(which, &plan, seen).await;
                }
                "carry an old plan out"
            }
            16 | 17 => {
                let plan = self.open(which, false).await.plan_prune(GRACE).await.unwrap();
                self.prune(which, &plan, seen).await;
                "prune"
            }
            18 => {
                self.rewrite(Rewrite::Repack { unused_percent: 1 }, seen).await;
                "repack"
            }
            19 => {
                self.to_both = !self.to_both;
                self.rewrite(Rewrite::Rekey, seen).await;
                "rekey"
            }
            20 => {
                let both = self.open(which, true).await;
                both.repair(true, &PlainArtifacts).await.unwrap();
                "repair"
            }
            21 => {
                self.advance(10 * MINUTE).await;
                "ten minutes"
            }
            22 => {
                self.advance(2 * HOUR).await;
                "two hours"
            }
            23 => {
                self.advance(8 * DAY).await;
                "eight days"
            }
            _ => "nothing",
        }
    }

    async fn prune(&mut self, which: usize, plan: &PrunePlan, seen: &mut Seen) {
        let report = self.open(which, false).await.prune(plan).await.unwrap();
        if !self.runs.is_empty() {
            seen.swept_beside_runs += report.deleted;
        }
    }

    /// What is listed is what was committed and not forgotten, and all of it is there.
    async fn is_there(&self, when: &str) {
        let core = Core::open(self.store.clone(), self.access(9, true)).await.unwrap();
        let sizes: HashMap<String, u64> = (self.store.list("").await.unwrap().into_iter())
            .map(|info| (info.name.to_string(), info.bytes))
            .collect();
        let mut listed = Vec::new();
        for (seen, forgotten) in overview::backups(&core).await.unwrap() {
            if forgotten {
                continue;
            }
            let list = seen.revision.as_ref().map_or(&seen.claim.list, |r| &r.list);
            let list = ListName::parse(list).unwrap();
            for object in read::read_list(&core, &list)
                .await
                .unwrap_or_else(|e| panic!("{when}: {e}"))
            {
                let sum = crate::names::sum_in_name(&object).unwrap();
                assert_eq!(
                    sizes.get(&object),
                    Some(&sum.bytes),
                    "{when}: {object} of {}",
                    seen.claim.backup
                );
            }
            listed.push(seen.claim.backup);
        }
        listed.sort();
        assert_eq!(listed, self.listed.keys().cloned().collect::<Vec<_>>(), "{when}");
    }

    async fn reads_back(&self, when: &str) {
        let reader = self.open(9, true).await;
        for (id, kept) in &self.listed {
            let open = reader.read(id.as_str()).await.unwrap();
            assert_eq!(open.artifacts().len(), kept.artifacts.len(), "{when}: {id}");
            for record in open.artifacts() {
                let (mut bytes, mut content) = (Vec::new(), open.open(&record.content).await.unwrap());
                while let Some(part) = content.next().await.unwrap_or_else(|e| panic!("{when}: {id}: {e}")) {
                    bytes.extend_from_slice(&part);
                }
                assert!(
                    bytes == kept.artifacts[record.name.as_str()],
                    "{when}: {id}/{}",
                    record.name
                );
            }
        }
    }
}

/// One thread, so that all that runs goes by the one made-up clock.
#[tokio::test]
async fn random_histories_never_lose_a_listed_backup() {
    let mut seen = Seen::default();
    for seed in 0..10 {
        let mut history = History::new(seed).await;
        let mut last = Vec::new();
        for number in 0..90 {
            let what = history.step(&mut seen).await;
            last.push(what);
            let when = format!("seed {seed}, step {number} ({what})");
            history.is_there(&when).await;
            if number % 10 == 9 {
                history.reads_back(&when).await;
            }
        }
        for run in std::mem::take(&mut history.runs) {
            history.commit(run).await;
        }
        history.is_there("the end").await;
        history
            .reads_back(&format!("seed {seed}, the end, after {last:?}"))
            .await;
        let report = history
            .open(9, true)
            .await
            .check(CheckMode::Full { part: 1, of: 1 })
            .await
            .unwrap();
        assert!(report.is_good(), "seed {seed}: {:?}", report.findings);
    }
    let Seen {
        swept_beside_runs,
        adopted,
        brought_back,
        rewritten,
        dropped,
    } = seen;
    let counts = [swept_beside_runs, adopted, brought_back, rewritten, dropped];
    assert!(
        counts.iter().all(|n| *n > 0),
        "the histories are not what they were: {seen:?}"
    );
}
