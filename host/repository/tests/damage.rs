//! Every kind of damage is seen, and named by the object it is in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_repository::*;
use std::path::{Path, PathBuf};

async fn filled() -> Place {
    let place = Place::new().await;
    let repository = place.writing().await;
    backup(&repository, &[("s/t", &rows(1, 20_000))]).await.unwrap();
    backup(&repository, &[("s/t", &rows(1, 25_000))]).await.unwrap();
    backup(&repository, &[("s/t", &rows(1, 26_000))]).await.unwrap();
    place
}

fn name(place: &Place, path: &Path) -> String {
    path.strip_prefix(place.root()).unwrap().to_str().unwrap().to_owned()
}

/// Findings of a check by someone without any key, who knows the writer's public key.
async fn public(place: &Place) -> Vec<Finding> {
    let stranger = Access {
        identities: vec![],
        options: Options {
            trusted_writers: vec![place.writer.public()],
            ..place.options()
        },
        ..place.as_reader("stranger")
    };
    let repository = Repository::open(place.store(), stranger).await.unwrap();
    repository.check(CheckMode::Public).await.unwrap().findings
}

async fn as_writer(place: &Place) -> Vec<Finding> {
    place.writing().await.check(CheckMode::Writer).await.unwrap().findings
}

fn only(findings: &[Finding], object: &str, kind: FindingKind) {
    assert!(
        findings.iter().any(|f| f.object == object && f.kind == kind),
        "{kind:?} of {object}: {findings:?}"
    );
    let others = findings.iter().filter(|f| f.kind != FindingKind::Unused);
    assert!(
        others.clone().all(|f| f.object == object),
        "only {object}: {findings:?}"
    );
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 0x04;
    std::fs::write(path, bytes).unwrap();
}

fn one(place: &Place, below: &str) -> PathBuf {
    place.objects(below).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_repository_is_good_for_everyone() {
    let place = filled().await;
    assert_eq!(public(&place).await, []);
    assert_eq!(as_writer(&place).await, []);
    let reader = place.reading().await;
    let mut verified = 0;
    for part in 1..=3 {
        let report = reader.check(CheckMode::Full { part, of: 3 }).await.unwrap();
        assert_eq!(report.findings, []);
        verified += report.chunks_verified;
    }
    let all = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert_eq!(verified, all.chunks_verified, "the parts are the whole");
    assert!(reader.check(CheckMode::Full { part: 4, of: 3 }).await.is_err());
    assert!(
        place
            .writing()
            .await
            .check(CheckMode::Full { part: 1, of: 1 })
            .await
            .is_err(),
        "needs an identity"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flip_in_any_kind_of_object_is_seen_without_a_key() {
    // The documents that no list names: all are there, and each is looked at.
    let place = Place::new().await;
    let repository = place.writing().await;
    let second = WriterKey::generate();
    repository.authorize(&second.public()).await.unwrap();
    let gone = backup(&repository, &[("s/t", &rows(9, 500))]).await.unwrap();
    let lost = backup(&repository, &[("s/t", &rows(70_000, 500))]).await.unwrap();
    let note = serde_json::json!({"passed": false});
    repository.annotate(&lost.id, "drill", note).await.unwrap();
    repository.forget(&gone.id, "a test").await.unwrap();
    let plan = repository
        .plan_prune(std::time::Duration::from_secs(3600))
        .await
        .unwrap();
    repository.prune(&plan).await.unwrap();
    // Of the backup that is left a pack is gone, and a revision says so.
    let newest = place.reading().await.read("latest").await.unwrap();
    let needed = newest.needed_objects().iter().find(|n| n.starts_with("data/")).unwrap();
    std::fs::remove_file(place.root().join(needed)).unwrap();
    repository.repair(true, &PlainArtifacts).await.unwrap();
    let running = repository.begin(START).await.unwrap();
    let good = public(&place).await;
    assert!(good.iter().all(|f| f.kind.is_harmless()), "{good:?}");
    for below in ["annotations", "leases", "prunes", "revisions", "tombstones", "writers"] {
        for at in [0, 30, 200, 100_000] {
            let path = one(&place, below);
            let whole = std::fs::read(&path).unwrap();
            flip(&path, at);
            let findings = public(&place).await;
            let object = name(&place, &path);
            assert!(
                findings
                    .iter()
                    .any(|f| f.object == object && f.kind == FindingKind::Forged),
                "{object} at {at}: {findings:?}"
            );
            std::fs::write(&path, whole).unwrap();
        }
    }
    assert_eq!(public(&place).await, good);
    running.abandon().await;
    // What somebody else put there is named, and is no damage.
    for stray in ["notes.txt", "data/00/notes.txt", "annotations/x/y.annotation"] {
        let path = place.root().join(stray);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"x").unwrap();
        let findings = public(&place).await;
        let found = findings.iter().find(|f| f.object == stray).unwrap();
        assert_eq!(found.kind, FindingKind::Stray);
        assert!(found.kind.is_harmless());
        std::fs::remove_file(&path).unwrap();
    }

    for below in ["data", "meta", "index", "lists"] {
        let place = filled().await;
        let path = one(&place, below);
        flip(&path, 400);
        let findings = public(&place).await;
        only(&findings, &name(&place, &path), FindingKind::WrongContent);
        let found = findings.iter().find(|f| f.kind == FindingKind::WrongContent).unwrap();
        assert!(!found.affects.is_empty(), "{findings:?}");
    }
    for at in [0, 30, 200, 100_000] {
        let place = filled().await;
        let path = place.objects("manifests").pop().unwrap();
        flip(&path, at);
        let findings = public(&place).await;
        assert!(
            findings
                .iter()
                .any(|f| f.object == name(&place, &path) && f.kind == FindingKind::Forged),
            "{findings:?}"
        );
    }
}

/// Each part reads its own packs, and the parts together little more than a check of everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_check_reads_a_part() {
    let place = Place::new().await;
    let repository = place.writing().await;
    backup(&repository, &[("s/t", &noise(1, 24 << 20))]).await.unwrap();
    let watched = Watched::new(place.store());
    let reader = Repository::open(watched.clone(), place.as_reader("parts"))
        .await
        .unwrap();
    let read = || watched.read_bytes.swap(0, std::sync::atomic::Ordering::Relaxed);
    let whole = reader.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    let all = read();
    let (mut sum, mut chunks) = (0, 0);
    for part in 1..=7 {
        let report = reader.check(CheckMode::Full { part, of: 7 }).await.unwrap();
        assert_eq!(report.findings, []);
        sum += read();
        chunks += report.chunks_verified;
    }
    assert_eq!(chunks, whole.chunks_verified);
    assert!(sum <= all * 13 / 10, "{sum} bytes in parts, {all} at once");
}

/// Knows of no artifact what it names besides its own content.
struct Unknowing;

#[async_trait::async_trait]
impl Makers for Unknowing {
    async fn contents(
        &self,
        artifact: &essrun_artifact::ArtifactRecord,
        from: &dyn essrun_artifact::BackupReader,
        visit: &mut dyn Visit,
    ) -> Result<bool, essrun_artifact::KeepError> {
        PlainArtifacts.contents(artifact, from, visit).await.map(|_| false)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_what_it_could_not_read_back() {
    let place = Place::new().await;
    backup(&place.writing().await, &[("s/t", &rows(1, 500))]).await.unwrap();
    let reader = place.reading().await;
    let report = reader.check_with(CheckMode::Full { part: 1, of: 1 }, &Unknowing).await;
    let report = report.unwrap();
    assert!(report.is_good());
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert_eq!(report.findings[0].kind, FindingKind::NotRead);
    assert!(report.findings[0].object.contains("s/t"), "{:?}", report.findings);
}

/// Who only ever checks remembers as well what it saw.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_seen_by_whoever_checked_before() {
    let place = filled().await;
    let newest = place.objects("manifests").pop().unwrap();
    let reader = place.reading().await;
    assert!(reader.check(CheckMode::Public).await.unwrap().is_good());
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::remove_file(&newest).unwrap();
    let findings = place.reading().await.check(CheckMode::Public).await.unwrap().findings;
    only(&findings, &name(&place, &newest), FindingKind::RolledBack);
    // What is doubtful is not remembered in place of what was seen.
    let findings = place.reading().await.check(CheckMode::Public).await.unwrap().findings;
    only(&findings, &name(&place, &newest), FindingKind::RolledBack);
    std::fs::write(&newest, bytes).unwrap();
    assert!(place.reading().await.check(CheckMode::Public).await.unwrap().is_good());
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_missing_and_swapped_objects_are_told_apart() {
    let place = filled().await;
    let path = one(&place, "data");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    only(&public(&place).await, &name(&place, &path), FindingKind::WrongSize);
    std::fs::remove_file(&path).unwrap();
    only(&public(&place).await, &name(&place, &path), FindingKind::Missing);
    // Another pack's bytes, cut to size, under this name.
    let mut other = std::fs::read(place.objects("data").pop().unwrap()).unwrap();
    other.resize(whole.len(), 0);
    std::fs::write(&path, other).unwrap();
    only(&public(&place).await, &name(&place, &path), FindingKind::WrongContent);
    // Reading says the same, by name, and hands out nothing wrong.
    let open = place.reading().await.read("latest").await.unwrap();
    assert!(read_artifact(&open, "s/t").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_chain_and_a_rollback_are_seen() {
    let place = filled().await;
    let manifests = place.objects("manifests");
    let middle = std::fs::read(&manifests[1]).unwrap();
    std::fs::remove_file(&manifests[1]).unwrap();
    let findings = public(&place).await;
    assert!(
        findings
            .iter()
            .any(|f| f.object == name(&place, &manifests[1]) && f.kind == FindingKind::ChainBroken),
        "{findings:?}"
    );
    std::fs::write(&manifests[1], middle).unwrap();
    assert_eq!(public(&place).await, []);

    // The newest is gone: whoever remembers it sees that; a stranger cannot.
    let newest = std::fs::read(&manifests[2]).unwrap();
    std::fs::remove_file(&manifests[2]).unwrap();
    let findings = as_writer(&place).await;
    assert!(
        findings
            .iter()
            .any(|f| f.kind == FindingKind::RolledBack && f.object == name(&place, &manifests[2])),
        "{findings:?}"
    );
    // The next backup does not take the lost one's place, so the hole stays visible to everyone.
    let summary = backup(&place.writing().await, &[("s/t", b"x")]).await.unwrap();
    assert_eq!(summary.sequence, 4);
    let findings = public(&place).await;
    assert!(
        findings.iter().any(|f| f.kind == FindingKind::ChainBroken),
        "{findings:?}"
    );
    std::fs::write(&manifests[2], newest).unwrap();
    assert!(as_writer(&place).await.iter().all(|f| f.kind == FindingKind::Unused));
}

fn rolled_back(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.kind == FindingKind::RolledBack)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_seen_without_the_cache_and_by_what_older_versions_remembered() {
    let place = filled().await;
    let (cache, state) = (place.as_writer().cache_dir, place.as_writer().state_dir);
    std::fs::remove_file(place.objects("manifests").pop().unwrap()).unwrap();
    std::fs::remove_dir_all(&cache).unwrap();
    assert!(
        rolled_back(&as_writer(&place).await),
        "emptying the cache forgot the head"
    );
    // As an older version left it: the head in the cache, and nothing else.
    let id = place.writing().await.id().to_owned();
    let head = format!("head-{}.json", place.writer.id());
    let (old, new) = (cache.join(&id).join(&head), state.join(&id).join(&head));
    std::fs::rename(&new, &old).unwrap();
    assert!(rolled_back(&as_writer(&place).await), "the head was not taken over");
    assert!(new.exists() && !old.exists());
    // An older head that turns up there again takes nothing back.
    let remembered = std::fs::read_to_string(&new).unwrap();
    std::fs::write(&old, remembered.replace("\"sequence\":3", "\"sequence\":1")).unwrap();
    assert!(rolled_back(&as_writer(&place).await));
    assert_eq!(std::fs::read_to_string(&new).unwrap(), remembered);
    assert!(!old.exists());
    // A reader's place is taken over in the same way.
    let reader = place.as_reader("moving");
    drop(
        Repository::open(place.store(), place.as_reader("moving"))
            .await
            .unwrap(),
    );
    let seen = std::fs::read_dir(&reader.state_dir).unwrap().flatten();
    let seen = seen
        .map(|e| e.file_name())
        .find(|n| n.to_str().unwrap().starts_with("place-"));
    let seen = seen.unwrap();
    std::fs::write(reader.cache_dir.join(&seen), "another configuration").unwrap();
    std::fs::remove_file(reader.state_dir.join(&seen)).unwrap();
    let said = Repository::open(place.store(), reader).await.unwrap_err().to_string();
    assert!(said.contains("another repository"), "{said}");
    // What is broken is not taken for nothing.
    std::fs::write(&new, b"{").unwrap();
    let said = place.writing().await.begin(START).await.unwrap_err().to_string();
    assert!(said.contains("remembered history"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_manifest_is_not_believed() {
    let place = filled().await;
    // Signed by somebody else, in the writer's own chain.
    let forger = Place::new().await;
    let repository = forger.writing().await;
    for _ in 0..4 {
        backup(&repository, &[("s/t", b"lies")]).await.unwrap();
    }
    let to = place.objects("manifests").pop().unwrap();
    let to = to.with_file_name("0000000004.manifest");
    std::fs::copy(forger.objects("manifests").pop().unwrap(), &to).unwrap();
    only(&public(&place).await, &name(&place, &to), FindingKind::Forged);
    assert_eq!(place.reading().await.backups().await.unwrap().len(), 3);
    std::fs::remove_file(&to).unwrap();
    // An old manifest of the right writer in a new place.
    std::fs::copy(&place.objects("manifests")[0], &to).unwrap();
    only(&public(&place).await, &name(&place, &to), FindingKind::Forged);
    // Forged and damaged manifests stop nobody from making the next backup elsewhere in time, but not silently.
    assert!(backup(&place.writing().await, &[("s/t", b"x")]).await.is_err());
    std::fs::remove_file(&to).unwrap();
    assert_eq!(
        backup(&place.writing().await, &[("s/t", b"x")]).await.unwrap().sequence,
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_repository_is_seen() {
    let place = filled().await;
    // A reader that was here before notices another configuration under the same address.
    place.reading().await;
    let other = filled().await;
    std::fs::remove_dir_all(place.root()).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([other.root(), place.root()])
        .status()
        .unwrap();
    assert!(copied.success());
    let said = Repository::open(place.store(), place.as_reader("reader-cache"))
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("another repository"), "{said}");
    // One that was told the writer from outside notices at once.
    let told = Access {
        options: Options {
            trusted_writers: vec![place.writer.public()],
            ..place.options()
        },
        ..place.as_reader("fresh")
    };
    assert!(matches!(
        Repository::open(place.store(), told).await,
        Err(RepositoryError::History { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_a_stranger_is_not_relied_on() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let table = rows(1, 5_000);
    backup(&repository, &[("s/t", &table)]).await.unwrap();
    // Indexes that cannot be opened or do not fit are left out; what they name is stored anew.
    for path in place.objects("index") {
        flip(&path, 300);
    }
    std::fs::remove_dir_all(place.dir.path().join("cache")).unwrap();
    let summary = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    assert_eq!(summary.stats.chunks_reused, 0);
    let open = place.reading().await.read("latest").await.unwrap();
    assert_eq!(read_artifact(&open, "s/t").await.unwrap(), table);
}
