//! Packs written anew: repack, rekey, a rotated writer key, and forgetting undone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_artifact::*;
use essrun_repository::*;
use essrun_store::*;
use std::sync::Arc;
use std::time::Duration;

const NO_GRACE: Duration = Duration::ZERO;
const REPACK: Rewrite = Rewrite::Repack { unused_percent: 10 };

async fn prune_all(repository: &Repository) {
    for _ in 0..3 {
        let plan = repository.plan_prune(NO_GRACE).await.unwrap();
        repository.prune(&plan).await.unwrap();
    }
}

impl Place {
    /// Where both keys are.
    fn as_both(&self, cache: &str) -> Access {
        Access {
            identities: vec![self.identity.identity()],
            cache_dir: self.dir.path().join(cache),
            state_dir: self.dir.path().join("state").join(cache),
            ..self.as_writer()
        }
    }

    async fn both(&self) -> Repository {
        Repository::open(self.store(), self.as_both("both")).await.unwrap()
    }
}

async fn good(repository: &Repository) -> u64 {
    let report = repository.check(CheckMode::Full { part: 1, of: 1 }).await.unwrap();
    assert!(report.is_good(), "{:?}", report.findings);
    report.backups
}

async fn reads(repository: &Repository, id: &BackupId, table: &[u8]) {
    let open = repository.read(id.as_str()).await.unwrap();
    assert!(read_artifact(&open, "s/t").await.unwrap() == table, "{id}");
}

/// A first backup of two halves, a second of one of them: forgetting the first leaves packs half used.
async fn half_used(place: &Place) -> (BackupSummary, Vec<u8>) {
    let (kept, gone) = (rows(1, 6_000), rows(500_000, 6_000));
    let mixed: Vec<u8> = kept
        .chunks(40_000)
        .zip(gone.chunks(40_000))
        .flat_map(|(a, b)| [a, b].concat())
        .collect();
    let repository = place.writing().await;
    let first = backup(&repository, &[("s/t", &mixed)]).await.unwrap();
    let second = backup(&repository, &[("s/t", &kept)]).await.unwrap();
    repository.forget(&first.id, "a test").await.unwrap();
    (second, kept)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repack_frees_what_prune_alone_cannot() {
    let place = Place::new().await;
    let (second, kept) = half_used(&place).await;
    prune_all(&place.writing().await).await;
    let before = place.bytes_in("data");
    let both = place.both().await;

    let plan = both.rewrite(REPACK, false, &PlainArtifacts, &NoProgress).await.unwrap();
    assert!(!plan.done && !plan.packs.is_empty(), "{plan:?}");
    assert_eq!(plan.backups, std::slice::from_ref(&second.id));
    assert_eq!(place.objects("revisions").len(), 0, "planning changes nothing");
    let needs = place
        .writing()
        .await
        .rewrite(REPACK, false, &PlainArtifacts, &NoProgress)
        .await;
    assert!(needs.unwrap_err().to_string().contains("identity"));

    let done = both.rewrite(REPACK, true, &PlainArtifacts, &NoProgress).await.unwrap();
    assert!(done.done && done.stored_bytes > 0);
    assert_eq!(place.objects("leases").len(), 0);
    reads(&place.reading().await, &second.id, &kept).await;
    prune_all(&both).await;
    let after = place.bytes_in("data");
    assert!(after < before, "{after} of {before}");
    assert_eq!(good(&place.reading().await).await, 1);
    reads(&place.reading().await, &second.id, &kept).await;
    // Those who never saw the repack go on as before, and a second one finds nothing to do.
    let next = backup(&place.writing().await, &[("s/t", &kept)]).await.unwrap();
    assert_eq!(next.stats.chunks_new, 0, "what was repacked is known");
    let again = both.rewrite(REPACK, true, &PlainArtifacts, &NoProgress).await.unwrap();
    assert_eq!(again.packs.len(), 0, "{again:?}");
    assert_eq!(good(&place.reading().await).await, 2);
}

/// The store dies after each number of changes; what is left is good, and the next run completes the work.
#[tokio::test(flavor = "multi_thread")]
async fn a_repack_that_dies_at_any_step_leaves_the_repository_good() {
    for step in 0..60u64 {
        let place = Place::new().await;
        let (second, kept) = half_used(&place).await;
        prune_all(&place.writing().await).await;
        let faulty = Arc::new(Faulty::new(place.store(), FaultPlan::dead_after(step)));
        let died = match Repository::open(faulty, place.as_both("dying")).await {
            Ok(dying) => dying.rewrite(REPACK, true, &PlainArtifacts, &NoProgress).await.is_err(),
            Err(_) => true,
        };
        assert_eq!(good(&place.reading().await).await, 1, "step {step}");
        reads(&place.reading().await, &second.id, &kept).await;
        let both = place.both().await;
        both.rewrite(REPACK, true, &PlainArtifacts, &NoProgress).await.unwrap();
        // A lease of the dead run makes prune wait; it is what a killed run leaves, and runs out.
        for lease in place.objects("leases") {
            std::fs::remove_file(lease).unwrap();
        }
        prune_all(&both).await;
        let report = place
            .reading()
            .await
            .check(CheckMode::Full { part: 1, of: 1 })
            .await
            .unwrap();
        assert_eq!(report.findings, [], "step {step}");
        reads(&place.reading().await, &second.id, &kept).await;
        if !died {
            assert!(step > 4, "a repack takes some steps");
            return;
        }
    }
    panic!("the repack never succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn rekeyed_contents_open_to_the_new_recipient_only_and_never_to_the_writer() {
    let place = Place::new().await;
    let table = rows(1, 9_000);
    let first = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    let new = NewIdentity::generate();
    let to_new = || Recipients::parse([new.recipient()]).unwrap();
    let writer_now = Access {
        recipients: to_new(),
        ..place.as_writer()
    };
    let writer_now = Repository::open(place.store(), writer_now).await.unwrap();
    let findings = writer_now.check(CheckMode::Writer).await.unwrap().findings;
    let about = |who: &str| {
        findings
            .iter()
            .any(|f| f.kind == FindingKind::OtherRecipients && f.object.contains(who))
    };
    assert!(
        about(&place.identity.recipient()) && about(&new.recipient()),
        "{findings:?}"
    );

    let both = Access {
        recipients: to_new(),
        ..place.as_both("both")
    };
    let both = Repository::open(place.store(), both).await.unwrap();
    let repack = both.rewrite(REPACK, true, &PlainArtifacts, &NoProgress).await.unwrap();
    assert!(repack.packs.is_empty(), "a repack changes no recipients: {repack:?}");
    let done = both
        .rewrite(Rewrite::Rekey, true, &PlainArtifacts, &NoProgress)
        .await
        .unwrap();
    assert_eq!(done.backups, std::slice::from_ref(&first.id));
    prune_all(&both).await;

    let reader = Access {
        identities: vec![new.identity()],
        ..place.as_reader("new")
    };
    let reader = Repository::open(place.store(), reader).await.unwrap();
    reads(&reader, &first.id, &table).await;
    assert_eq!(good(&reader).await, 1);
    let old = place.reading().await;
    assert!(
        old.read(first.id.as_str()).await.is_err(),
        "the old identity opens nothing any more"
    );
    let findings = writer_now.check(CheckMode::Writer).await.unwrap().findings;
    assert_eq!(findings, []);
    // The writer knows what is there and opens none of it.
    let writer = writer_now.read(first.id.as_str()).await.unwrap();
    let said = read_artifact(&writer, "s/t").await.unwrap_err().to_string();
    assert!(said.contains("none of the given keys"), "{said}");
    let next = backup(&writer_now, &[("s/t", &table)]).await.unwrap();
    assert_eq!(next.stats.chunks_new, 0, "nothing is stored again");
    for pack in place.objects("data") {
        let head = std::fs::read(pack).unwrap();
        let text = String::from_utf8_lossy(&head[..200]).into_owned();
        assert_eq!(text.matches("-> X25519").count(), 1, "{text}");
    }
    let again = both
        .rewrite(Rewrite::Rekey, true, &PlainArtifacts, &NoProgress)
        .await
        .unwrap();
    assert!(again.packs.is_empty() && again.backups.is_empty(), "{again:?}");
}

/// Objects of which an identity opens something, with age itself.
fn opens(place: &Place, identity: &NewIdentity) -> Vec<String> {
    let file = place.dir.path().join(format!("{}.txt", identity.recipient()));
    if !file.exists() {
        identity.save(&file).unwrap();
    }
    let mut found = Vec::new();
    for path in place.objects("") {
        let bytes = std::fs::read(&path).unwrap();
        let magic = b"age-encryption.org/v1\n";
        let Some(at) = bytes.windows(magic.len()).position(|w| w == magic) else {
            continue;
        };
        let sealed = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(sealed.path(), &bytes[at..]).unwrap();
        let opened = std::process::Command::new("age")
            .args(["-d", "-i", file.to_str().unwrap(), sealed.path().to_str().unwrap()])
            .output()
            .unwrap();
        if opened.status.success() {
            found.push(path.strip_prefix(place.root()).unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_seals_what_was_noted_beside_backups_anew_and_leaves_only_manifests() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let gone = backup(&repository, &[("s/t", &rows(90_000, 500))]).await.unwrap();
    let kept = backup(&repository, &[("s/t", &rows(1, 500))]).await.unwrap();
    for id in [&gone.id, &kept.id] {
        let note = serde_json::json!({"passed": false, "why": "the room of Alice is missing"});
        repository.annotate(id, "drill", note).await.unwrap();
    }
    repository
        .annotate(&kept.id, "suspect", serde_json::json!({"reason": "few rows"}))
        .await
        .unwrap();
    let before = repository.annotations(&kept.id).await.unwrap();
    repository.forget(&gone.id, "a test").await.unwrap();
    let old = opens(&place, &place.identity);
    assert_eq!(old.iter().filter(|o| o.starts_with("annotations/")).count(), 3);

    let new = NewIdentity::generate();
    let both = Access {
        recipients: Recipients::parse([new.recipient()]).unwrap(),
        ..place.as_both("both")
    };
    let both = Repository::open(place.store(), both).await.unwrap();
    let rekey = async |confirm| {
        both.rewrite(Rewrite::Rekey, confirm, &PlainArtifacts, &NoProgress)
            .await
            .unwrap()
    };
    let plan = rekey(false).await;
    assert_eq!(
        plan.annotations.len(),
        2,
        "those of the forgotten one go with it: {plan:?}"
    );
    assert_eq!(place.objects("annotations").len(), 3, "planning changes nothing");
    rekey(true).await;
    let again = rekey(true).await;
    assert!(again.annotations.is_empty() && again.packs.is_empty(), "{again:?}");
    // Said once, by the same words and of the same time.
    let words = |all: &[Annotation]| -> Vec<_> {
        let mut all: Vec<_> = all
            .iter()
            .map(|a| (a.kind.clone(), a.created_at, a.writer.clone(), a.body.to_string()))
            .collect();
        all.sort();
        all
    };
    let reader = Access {
        identities: vec![new.identity()],
        ..place.as_reader("new")
    };
    let reader = Repository::open(place.store(), reader).await.unwrap();
    assert_eq!(words(&reader.annotations(&kept.id).await.unwrap()), words(&before));
    prune_all(&both).await;
    assert_eq!(place.objects("annotations").len(), 2);
    assert_eq!(words(&reader.annotations(&kept.id).await.unwrap()), words(&before));
    // What is written once and signed in a chain stays: docs/THREATS.md says so.
    let left = opens(&place, &place.identity);
    assert_eq!(
        left,
        [format!("manifests/{}/0000000002.manifest", place.writer.id())],
        "the old identity opens more than that"
    );
    assert!(opens(&place, &new).iter().any(|o| o.starts_with("annotations/")));
    assert_eq!(good(&reader).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_writer_key_goes_on_with_the_chain_and_the_chunks() {
    let place = Place::new().await;
    let table = rows(1, 5_000);
    let old = place.writing().await;
    let first = backup(&old, &[("s/t", &table)]).await.unwrap();
    let new = place.writer.rotated();
    let running = old.begin(START).await.unwrap();
    let said = old.rotate(&new).await.unwrap_err().to_string();
    assert!(said.contains("runs with the present key"), "{said}");
    running.commit(serde_json::Value::Null).await.unwrap();
    assert!(old.rotate(&WriterKey::generate()).await.is_err(), "not made from it");
    old.rotate(&new).await.unwrap();

    let said = place.writing().await.begin(START).await.unwrap_err().to_string();
    assert!(said.contains("was rotated"), "{said}");
    let access = Access {
        writer: Some(new.clone()),
        ..place.as_writer()
    };
    let repository = Repository::open(place.store(), access).await.unwrap();
    let second = backup(&repository, &[("s/t", &table)]).await.unwrap();
    assert_eq!((second.sequence, second.stats.chunks_new), (1, 0));
    let stranger = || Access {
        identities: vec![],
        options: Options {
            trusted_writers: vec![place.writer.public()],
            ..place.options()
        },
        ..place.as_reader("stranger")
    };
    let open = Repository::open(place.store(), stranger()).await.unwrap();
    assert_eq!(open.check(CheckMode::Public).await.unwrap().findings, []);
    let reader = place.reading().await;
    reads(&reader, &first.id, &table).await;
    reads(&reader, &second.id, &table).await;
    assert_eq!(good(&reader).await, 3);
    assert_eq!(
        good(
            &Repository::open(
                place.store(),
                Access {
                    writer: Some(new.clone()),
                    ..place.as_both("n")
                }
            )
            .await
            .unwrap()
        )
        .await,
        3
    );
    // The end of the old chain is signed: to take its newest backup away is seen by everybody.
    let last = place
        .objects("manifests")
        .into_iter()
        .find(|p| p.ends_with(format!("{}/0000000002.manifest", place.writer.id())))
        .unwrap();
    let bytes = std::fs::read(&last).unwrap();
    std::fs::remove_file(&last).unwrap();
    let findings = open.check(CheckMode::Public).await.unwrap().findings;
    assert!(
        findings.iter().any(|f| f.kind == FindingKind::ChainBroken),
        "{findings:?}"
    );
    std::fs::write(&last, bytes).unwrap();
    // Whoever has the old key can write nothing more that is believed.
    let forged = last.with_file_name("0000000003.manifest");
    let side = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .arg(place.root())
        .arg(side.path())
        .status()
        .unwrap();
    assert!(copied.success());
    for card in std::fs::read_dir(side.path().join("repository/writers")).unwrap() {
        std::fs::remove_file(card.unwrap().path()).unwrap();
    }
    let thief: Arc<dyn Store> = Arc::new(Objects::directory(&side.path().join("repository")).unwrap());
    let access = Access {
        cache_dir: side.path().join("cache"),
        state_dir: side.path().join("state").join("cache"),
        ..place.as_writer()
    };
    backup(&Repository::open(thief, access).await.unwrap(), &[("s/t", b"lies")])
        .await
        .unwrap();
    let name = format!("repository/manifests/{}/0000000003.manifest", place.writer.id());
    std::fs::copy(side.path().join(name), &forged).unwrap();
    assert_eq!(place.reading().await.backups().await.unwrap().len(), 3);
    let findings = open.check(CheckMode::Public).await.unwrap().findings;
    assert!(
        findings
            .iter()
            .any(|f| f.kind == FindingKind::Forged && f.detail.contains("given up")),
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_writer_key_loses_no_backup_and_a_fresh_chain_is_told_from_outside() {
    let place = Place::new().await;
    let table = rows(1, 5_000);
    let first = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
    let fresh = WriterKey::generate();
    let access = |trusted: Vec<WriterPublic>| Access {
        writer: Some(fresh.clone()),
        cache_dir: place.dir.path().join("new-host"),
        state_dir: place.dir.path().join("state").join("new-host"),
        options: Options {
            trusted_writers: trusted,
            ..place.options()
        },
        ..place.as_writer()
    };
    let unknown = Repository::open(place.store(), access(vec![])).await.unwrap();
    let said = unknown.begin(START).await.unwrap_err().to_string();
    assert!(
        said.contains("trusted-writers") && said.contains(&fresh.public().to_string()),
        "{said}"
    );
    let both = vec![place.writer.public(), fresh.public()];
    let repository = Repository::open(place.store(), access(both.clone())).await.unwrap();
    let second = backup(&repository, &[("s/t", &table)]).await.unwrap();
    let reader = Access {
        options: Options {
            trusted_writers: both,
            ..place.options()
        },
        ..place.as_reader("told")
    };
    let reader = Repository::open(place.store(), reader).await.unwrap();
    reads(&reader, &first.id, &table).await;
    reads(&reader, &second.id, &table).await;
    assert_eq!(good(&reader).await, 2);
    // Who was not told does not believe it, and loses nothing of what it believes.
    let untold = place.reading().await;
    assert_eq!(untold.backups().await.unwrap().len(), 1);
    reads(&untold, &first.id, &table).await;
    // The new writer may forget what the lost one wrote.
    repository.forget(&first.id, "a test").await.unwrap();
    prune_all(&repository).await;
    assert_eq!(good(&reader).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forgetting_is_undone_within_the_grace_time_only() {
    const GRACE: Duration = Duration::from_secs(3600);
    let place = Place::new().await;
    let repository = place.writing().await;
    let table = rows(1, 5_000);
    let first = backup(&repository, &[("s/t", &table)]).await.unwrap();
    assert!(
        repository.unforget(first.id.as_str(), GRACE).await.is_err(),
        "it is not forgotten"
    );
    repository.forget(&first.id, "a test").await.unwrap();
    for _ in 0..2 {
        let plan = repository.plan_prune(GRACE).await.unwrap();
        repository.prune(&plan).await.unwrap();
    }
    assert_eq!(repository.unforget("2", GRACE).await.unwrap(), first.id);
    reads(&place.reading().await, &first.id, &table).await;
    prune_all(&repository).await;
    reads(&place.reading().await, &first.id, &table).await;
    assert_eq!(good(&place.reading().await).await, 1);
    assert_eq!(place.objects("leases").len(), 0);

    repository.forget(&first.id, "again").await.unwrap();
    assert!(
        repository.unforget(first.id.as_str(), NO_GRACE).await.is_err(),
        "too late by that grace time"
    );
    let path = place.objects("data").remove(0);
    std::fs::remove_file(path).unwrap();
    let said = repository
        .unforget(first.id.as_str(), GRACE)
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("gone"), "{said}");
    assert_eq!(repository.backups().await.unwrap().len(), 0, "it stays forgotten");
}

/// A list that was forgotten with its backup is not relied on by a backup that happens to need the very same objects.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_about_to_be_pruned_is_not_taken_over() {
    let place = Place::new().await;
    let repository = place.writing().await;
    let table = rows(1, 3_000);
    let first = backup(&repository, &[("s/t", &table)]).await.unwrap();
    backup(&repository, &[("s/t", &table), ("s/more", &rows(90_000, 3_000))])
        .await
        .unwrap();
    repository.forget(&first.id, "a test").await.unwrap();
    let plan = repository.plan_prune(NO_GRACE).await.unwrap();
    assert!(plan.mark.iter().any(|n| n.starts_with("lists/")), "{plan:?}");
    repository.prune(&plan).await.unwrap();
    let old = repository.plan_prune(NO_GRACE).await.unwrap();
    let third = backup(&repository, &[("s/t", &table)]).await.unwrap();
    // Carried out by a prune that looked before the third was there.
    for name in old.delete.iter().filter(|n| n.starts_with("lists/")) {
        std::fs::remove_file(place.root().join(name)).unwrap();
    }
    reads(&place.reading().await, &third.id, &table).await;
}

/// Rekeying and rotating die after each number of changes; all that was there can be read by someone all the time, and
/// the next run completes the work.
#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_and_a_rotation_that_die_at_any_step_can_be_taken_up_again() {
    for step in 0..80u64 {
        let place = Place::new().await;
        let table = rows(1, 3_000);
        let first = backup(&place.writing().await, &[("s/t", &table)]).await.unwrap();
        let new = NewIdentity::generate();
        let rotated = place.writer.rotated();
        let both = |writer: &WriterKey, cache: &str| Access {
            writer: Some(writer.clone()),
            recipients: Recipients::parse([new.recipient()]).unwrap(),
            ..place.as_both(cache)
        };
        let faulty = Arc::new(Faulty::new(place.store(), FaultPlan::dead_after(step)));
        let done = async {
            let dying = Repository::open(faulty, both(&place.writer, "dying")).await?;
            dying.rotate(&rotated).await?;
            Ok::<_, RepositoryError>(())
        };
        let mut done = done.await.is_ok();
        let is_rotated = Repository::open(place.store(), both(&rotated, "look")).await.unwrap();
        if is_rotated.writers().len() == 1 {
            let again = Repository::open(place.store(), both(&place.writer, "again"))
                .await
                .unwrap();
            again.rotate(&rotated).await.unwrap();
        }
        let faulty = Arc::new(Faulty::new(place.store(), FaultPlan::dead_after(step)));
        done &= match Repository::open(faulty, both(&rotated, "dying-too")).await {
            Ok(dying) => {
                let rekey = dying.rewrite(Rewrite::Rekey, true, &PlainArtifacts, &NoProgress);
                rekey.await.is_ok()
            }
            Err(_) => false,
        };
        let either = Access {
            identities: vec![place.identity.identity(), new.identity()],
            ..place.as_reader("either")
        };
        let either = Repository::open(place.store(), either).await.unwrap();
        reads(&either, &first.id, &table).await;
        assert_eq!(good(&either).await, 1, "step {step}");
        let again = Repository::open(place.store(), both(&rotated, "again-too"))
            .await
            .unwrap();
        again
            .rewrite(Rewrite::Rekey, true, &PlainArtifacts, &NoProgress)
            .await
            .unwrap();
        let reader = Access {
            identities: vec![new.identity()],
            ..place.as_reader("new")
        };
        let reader = Repository::open(place.store(), reader).await.unwrap();
        reads(&reader, &first.id, &table).await;
        if done {
            assert!(step > 4);
            return;
        }
    }
    panic!("it never succeeded");
}
