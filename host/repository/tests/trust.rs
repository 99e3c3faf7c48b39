//! Whom a repository believes: rotated keys that go on signing, and writers that are shut out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_repository::*;

fn told(place: &Place, cache: &str, trusted: &[WriterPublic], distrusted: &[WriterPublic]) -> Access {
    Access {
        options: Options {
            trusted_writers: trusted.to_vec(),
            distrusted_writers: distrusted.to_vec(),
            ..place.options()
        },
        ..place.as_reader(cache)
    }
}

async fn opened(place: &Place, access: Access) -> Repository {
    Repository::open(place.store(), access).await.unwrap()
}

/// The thief of a key that was given up signs another card, which ends the chain later.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_card_lets_a_retired_key_add_nothing() {
    let place = Place::new().await;
    let (owner, thief) = (place.writing().await, place.writing().await);
    let kept = backup(&owner, &[("s/t", &rows(1, 500))]).await.unwrap();
    let new = place.writer.rotated();
    owner.rotate(&new).await.unwrap();
    // The thief, who looks away from the card, goes on, and gives the key up once more. Its card is met first.
    let added = backup(&thief, &[("s/t", b"lies")]).await.unwrap();
    let second = loop {
        let key = place.writer.rotated();
        if key.id() < new.id() {
            break key;
        }
    };
    thief.rotate(&second).await.unwrap();
    assert_eq!(place.objects("writers").len(), 2);

    let reader = opened(&place, told(&place, "reader", &[place.writer.public()], &[])).await;
    let listed: Vec<BackupId> = reader.backups().await.unwrap().into_iter().map(|b| b.id).collect();
    assert_eq!(listed, [kept.id], "not {}", added.id);
    let findings = reader.check(CheckMode::Public).await.unwrap().findings;
    assert!(
        findings
            .iter()
            .any(|f| f.kind == FindingKind::Forged && f.detail.contains("given up")),
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distrusted_writer_is_shut_out_and_so_is_whom_it_let_in() {
    let place = Place::new().await;
    let (second, third) = (WriterKey::generate(), WriterKey::generate());
    let access = |key: &WriterKey, name: &str| Access {
        writer: Some(key.clone()),
        cache_dir: place.dir.path().join(name),
        state_dir: place.dir.path().join("state").join(name),
        ..place.as_writer()
    };
    let first = backup(&place.writing().await, &[("s/t", &rows(1, 500))]).await.unwrap();
    place.writing().await.authorize(&second.public()).await.unwrap();
    let repository = opened(&place, access(&second, "second")).await;
    backup(&repository, &[("s/t", &rows(2, 500))]).await.unwrap();
    repository.authorize(&third.public()).await.unwrap();
    let repository = opened(&place, access(&third, "third")).await;
    backup(&repository, &[("s/t", &rows(3, 500))]).await.unwrap();

    let (p, s) = (place.writer.public(), second.public());
    let all = opened(&place, told(&place, "all", &[p], &[])).await;
    assert_eq!(
        all.backups().await.unwrap().len(),
        3,
        "naming the first shuts nobody out"
    );
    let told_so = opened(&place, told(&place, "told", &[p], &[s])).await;
    assert_eq!(told_so.writers(), [p]);
    let listed: Vec<BackupId> = told_so.backups().await.unwrap().into_iter().map(|b| b.id).collect();
    assert_eq!(listed, std::slice::from_ref(&first.id));
    // What they wrote is not believed, by name.
    let findings = told_so.check(CheckMode::Public).await.unwrap().findings;
    let forged = |below: &str| {
        let of = findings.iter().filter(|f| f.kind == FindingKind::Forged);
        of.filter(|f| f.object.starts_with(below)).count()
    };
    assert_eq!((forged("manifests/"), forged("writers/")), (2, 1), "{findings:?}");
    // It cannot write either, and is told why.
    let options = Options {
        distrusted_writers: vec![s],
        ..place.options()
    };
    let shut_out = Access {
        options,
        ..access(&second, "second")
    };
    let said = opened(&place, shut_out)
        .await
        .begin(START)
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("distrusted-writers"), "{said}");
    // One that is both is a mistake.
    let both = Repository::open(place.store(), told(&place, "both", &[p], &[p])).await;
    assert!(matches!(both, Err(RepositoryError::Refused { .. })));
}

/// The first writer's key was stolen: another that was let in goes on without it.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_writer_too_can_be_shut_out() {
    let place = Place::new().await;
    backup(&place.writing().await, &[("s/t", &rows(1, 500))]).await.unwrap();
    let rotated = place.writer.rotated();
    place.writing().await.rotate(&rotated).await.unwrap();
    let (p, r) = (place.writer.public(), rotated.public());
    let access = Access {
        writer: Some(rotated.clone()),
        options: Options {
            trusted_writers: vec![r],
            distrusted_writers: vec![p],
            ..place.options()
        },
        ..place.as_writer()
    };
    let made = backup(&opened(&place, access).await, &[("s/t", &rows(2, 500))])
        .await
        .unwrap();
    let reader = opened(&place, told(&place, "told", &[r], &[p])).await;
    assert_eq!(reader.writers(), [r]);
    let listed: Vec<BackupId> = reader.backups().await.unwrap().into_iter().map(|b| b.id).collect();
    assert_eq!(listed, [made.id]);
    let findings = reader.check(CheckMode::Public).await.unwrap().findings;
    assert!(
        findings.iter().all(|f| f.kind != FindingKind::ChainBroken),
        "where the old chain ended is still known: {findings:?}"
    );
}
