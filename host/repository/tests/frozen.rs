//! Repositories written once and kept: today's code must read them, and find in each damaged one what is wrong with it.
//!
//! They lie in tests/frozen/v1, each a `.tar.zst` beside a `.json` that says what is to be found. `make_frozen` wrote
//! them, and `make_foreign` the one with a foreign recipient out of the good one
//! (`cargo test -p essrun-repository --test frozen -- --ignored make_frozen`); both refuse to write over one, since a
//! frozen repository that is made anew proves nothing. The keys in them are for nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_artifact::*;
use essrun_repository::*;
use essrun_store::{Objects, Store};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/frozen/v1")
}

fn digest(bytes: &[u8]) -> String {
    // BLAKE3 is at hand; which hash it is does not matter here.
    blake3::hash(bytes).to_hex().to_string()
}

/// A frozen repository, unpacked, with its keys.
struct Thawed {
    dir: tempfile::TempDir,
    expected: Value,
}

impl Thawed {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let packed = std::fs::read(frozen().join(format!("{name}.tar.zst"))).unwrap();
        let tar = tool("zstd", &["-d", "-c"], &packed);
        tool("tar", &["-x", "-C", dir.path().to_str().unwrap()], &tar);
        let text = std::fs::read_to_string(frozen().join(format!("{name}.json"))).unwrap();
        Thawed {
            dir,
            expected: serde_json::from_str(&text).unwrap(),
        }
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(Objects::directory(&self.dir.path().join("repository")).unwrap())
    }

    /// As someone with these keys, who knows the first writer.
    async fn open(&self, writer: bool, identity: bool) -> Repository {
        let key = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        let known = WriterKey::from_text(&key("writer.key")).unwrap();
        let now = WriterKey::from_text(&key("rotated.key")).unwrap();
        let access = Access {
            writer: writer.then_some(now),
            identities: match identity {
                true => Identity::from_text(&key("identity.txt"), "frozen").unwrap(),
                false => vec![],
            },
            recipients: Recipients::none(),
            cache_dir: self.dir.path().join(format!("cache-{writer}-{identity}")),
            state_dir: self.dir.path().join("state").join(format!("cache-{writer}-{identity}")),
            options: Options {
                trusted_writers: vec![known.public()],
                ..Options::default()
            },
        };
        Repository::open(self.store(), access).await.unwrap()
    }
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(frozen())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".tar.zst").map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_repositories_open_and_tell_what_is_wrong_with_them() {
    let names = names();
    assert!(names.len() >= 11 && names.contains(&"good".to_owned()), "{names:?}");
    for name in names {
        let thawed = Thawed::new(&name);
        let expected = &thawed.expected;
        let reader = thawed.open(false, true).await;
        let listed = reader.backups().await.unwrap();
        let ids: Vec<String> = listed.iter().map(|b| b.id.to_string()).collect();
        assert_eq!(json!(ids), expected["backups"], "{name}");
        // Written when what a run took stood in the public part.
        assert!(listed.iter().all(|b| b.stats.bytes_read > 0), "{name}: {listed:?}");
        for (artifact, wanted) in expected["artifacts"].as_object().unwrap() {
            let (id, artifact) = artifact.split_once(' ').unwrap();
            let read = match reader.read(id).await {
                Ok(open) => read_artifact(&open, artifact).await.map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            match wanted.as_str() {
                Some(wanted) => assert_eq!(digest(&read.unwrap()), wanted, "{name}: {artifact}"),
                None => assert!(read.is_err(), "{name}: {artifact} cannot be whole"),
            }
        }
        for (level, mode, writer, identity) in [
            ("public", CheckMode::Public, false, false),
            ("writer", CheckMode::Writer, true, false),
            ("full", CheckMode::Full { part: 1, of: 1 }, false, true),
        ] {
            let report = thawed.open(writer, identity).await.check(mode).await.unwrap();
            let mut found: Vec<String> = report
                .findings
                .iter()
                .filter(|f| f.kind != FindingKind::Unused)
                .map(|f| format!("{} {}", json!(f.kind).as_str().unwrap(), f.object))
                .collect();
            found.sort();
            assert_eq!(json!(found), expected["findings"][level], "{name}: {level}");
        }
    }
}

/// Small content of which some is in packs with others, some lies in two backups, and one has a stored list.
async fn fill(place: &Place) -> (Vec<(String, Option<String>)>, WriterKey) {
    let repository = place.writing().await;
    let (long, short) = (rows(1, 1_500), b"a few bytes".to_vec());
    let gone = backup(&repository, &[("s/gone", &rows(70_000, 300)), ("s/t", &rows(1, 400))])
        .await
        .unwrap();
    let first = backup(&repository, &[("s/t", &long), ("s/small", &short)])
        .await
        .unwrap();
    repository
        .annotate(&first.id, "drill", json!({"passed": true}))
        .await
        .unwrap();
    repository.forget(&gone.id, "for the frozen repository").await.unwrap();
    for _ in 0..3 {
        let plan = repository.plan_prune(Duration::ZERO).await.unwrap();
        repository.prune(&plan).await.unwrap();
    }
    let both = Access {
        identities: vec![place.identity.identity()],
        cache_dir: place.dir.path().join("both"),
        state_dir: place.dir.path().join("state").join("both"),
        ..place.as_writer()
    };
    let both = Repository::open(place.store(), both).await.unwrap();
    let repack = Rewrite::Repack { unused_percent: 1 };
    both.rewrite(repack, true, &PlainArtifacts, &NoProgress).await.unwrap();
    for _ in 0..3 {
        let plan = both.plan_prune(Duration::ZERO).await.unwrap();
        both.prune(&plan).await.unwrap();
    }
    let rotated = place.writer.rotated();
    repository.rotate(&rotated).await.unwrap();
    let access = Access {
        writer: Some(rotated.clone()),
        ..place.as_writer()
    };
    let repository = Repository::open(place.store(), access).await.unwrap();
    let mut changed = long.clone();
    changed.splice(50_000..50_003, *b"xyz");
    let second = backup(&repository, &[("s/t", &changed)]).await.unwrap();
    let third = backup(&repository, &[("s/small", &short)]).await.unwrap();
    let said = |id: &BackupId, name: &str, bytes: &[u8]| (format!("{id} {name}"), Some(digest(bytes)));
    let artifacts = vec![
        said(&first.id, "s/t", &long),
        said(&first.id, "s/small", &short),
        said(&second.id, "s/t", &changed),
        said(&third.id, "s/small", &short),
    ];
    (artifacts, rotated)
}

/// Packs a repository and its keys, and what is to be found in it.
fn freeze(from: &Path, title: &str, expected: &Value) {
    let to = frozen().join(format!("{title}.tar.zst"));
    assert!(!to.exists(), "{} is frozen already", to.display());
    let parts = ["repository", "writer.key", "rotated.key", "identity.txt"];
    let mut arguments = vec![
        "--owner=0",
        "--group=0",
        "--sort=name",
        "-c",
        "-C",
        from.to_str().unwrap(),
    ];
    arguments.extend(parts);
    let tar = tool("tar", &arguments, b"");
    std::fs::write(&to, tool("zstd", &["-19", "-c"], &tar)).unwrap();
    let text = serde_json::to_string_pretty(expected).unwrap() + "\n";
    std::fs::write(frozen().join(format!("{title}.json")), text).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// A signed document, taken apart and put together with stock tools, as somebody would who has stolen the key.
struct Forger {
    signing: ed25519_dalek::SigningKey,
    public: String,
}

impl Forger {
    fn new(key: &str) -> Self {
        let line = |name: &str| {
            key.lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap()
                .trim()
                .to_owned()
        };
        let seed: [u8; 32] = hex::decode(line("signing:")).unwrap().try_into().unwrap();
        Forger {
            signing: ed25519_dalek::SigningKey::from_bytes(&seed),
            public: line("# public:"),
        }
    }

    /// Title, claim and payload.
    fn apart(document: &[u8]) -> (String, Value, Vec<u8>) {
        let mut parts = document.splitn(4, |b| *b == b'\n');
        let mut next = || parts.next().unwrap().to_vec();
        let (title, claim, _, payload) = (next(), next(), next(), next());
        let title = String::from_utf8(title).unwrap();
        (title, serde_json::from_slice(&claim).unwrap(), payload)
    }

    fn sign(&self, title: &str, claim: &Value, payload: &[u8]) -> Vec<u8> {
        use ed25519_dalek::Signer;
        let (claim, hash) = (claim.to_string(), sha256(payload));
        let signature = self.signing.sign(format!("{title}\n{claim}\n{hash}\n").as_bytes());
        let signature = hex::encode(signature.to_bytes());
        let mut out = format!("{title}\n{claim}\ned25519 {} {hash} {signature}\n", self.public).into_bytes();
        out.extend(payload);
        out
    }
}

/// The second backup's pack is also sealed to somebody whom its index does not name. All is signed and in its place:
/// only the pack's own header tells.
#[test]
#[ignore = "writes tests/frozen/v1; run once for a format version"]
fn make_foreign() {
    let thawed = Thawed::new("good");
    let (dir, root) = (thawed.dir.path(), thawed.dir.path().join("repository"));
    let read = |name: &str| std::fs::read(root.join(name)).unwrap();
    let key = std::fs::read_to_string(dir.join("rotated.key")).unwrap();
    let forger = Forger::new(&key);
    let identity = dir.join("identity.txt").to_str().unwrap().to_owned();
    let public = |text: &str| {
        let secret = text
            .split_whitespace()
            .find(|w| w.starts_with("AGE-SECRET-KEY-"))
            .unwrap();
        let public = tool("age-keygen", &["-y"], secret.as_bytes());
        String::from_utf8(public).unwrap().trim().to_owned()
    };
    let reader = public(&std::fs::read_to_string(&identity).unwrap());
    let index_of_writer = public(&key);
    let eve = NewIdentity::generate().recipient();
    let writers = std::fs::read_dir(root.join("index")).unwrap().flatten();
    let writer = WriterKey::from_text(&key).unwrap().id().to_string();
    assert!(writers.map(|e| e.file_name()).any(|n| n.to_str() == Some(&writer)));

    let manifest = format!("manifests/{writer}/0000000001.manifest");
    let (title, mut claim, payload) = Forger::apart(&read(&manifest));
    let list = claim["list"].as_str().unwrap().to_owned();
    let text = String::from_utf8(read(&list)).unwrap();
    let listed = text.lines().filter_map(|l| l.split_once("  ")).map(|(_, name)| name);
    let own = listed.filter(|name| name.starts_with(&format!("index/{writer}/")));
    let (own_index, index_title, mut said, entries) = own
        .map(|name| {
            let (title, said, entries) = Forger::apart(&open_with_stock_tools(Path::new(&identity), &read(name)));
            (name, title, said, entries)
        })
        .find(|(_, _, said, _)| said["pack"].as_str().unwrap().starts_with("data/"))
        .unwrap();
    let pack = said["pack"].as_str().unwrap().to_owned();
    let plain = tool("age", &["-d", "-i", &identity], &read(&pack));
    let sealed = tool("age", &["-r", &reader, "-r", &eve], &plain);
    let tag = b"\n--- ";
    let at = sealed.windows(tag.len()).position(|w| w == tag).unwrap();
    let header = at + 1 + sealed[at + 1..].iter().position(|b| *b == b'\n').unwrap() + 1;
    let hash = sha256(&sealed);
    let new_pack = format!("data/{}/{hash}.{}.age", &hash[..2], sealed.len());
    said["pack"] = json!(new_pack);
    said["payload_offset"] = json!(header + 16);
    let index = forger.sign(&index_title, &said, &entries);
    let frame = tool("zstd", &["-c"], &index);
    let index = tool("age", &["-r", &reader, "-r", &index_of_writer], &frame);
    let new_index = format!("index/{writer}/{hash}.{}.{}.age", sha256(&index), index.len());
    let put = |name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        std::fs::write(root.join(name), bytes).unwrap();
    };
    put(&new_pack, &sealed);
    put(&new_index, &index);
    let mut lines: Vec<String> = text
        .lines()
        .filter(|l| !l.contains(pack.as_str()) && !l.contains(own_index))
        .map(str::to_owned)
        .collect();
    lines.push(format!("{hash}  {new_pack}"));
    lines.push(format!("{}  {new_index}", sha256(&index)));
    lines.sort_by(|a, b| a.split_once("  ").unwrap().1.cmp(b.split_once("  ").unwrap().1));
    let text = lines.join("\n") + "\n";
    let new_list = format!("lists/{}.{}.txt", sha256(text.as_bytes()), text.len());
    put(&new_list, text.as_bytes());
    claim["list"] = json!(new_list);
    let (old, new) = (read(&pack).len() + read(own_index).len(), sealed.len() + index.len());
    claim["needed_bytes"] = json!(claim["needed_bytes"].as_u64().unwrap() - old as u64 + new as u64);
    let first = forger.sign(&title, &claim, &payload);
    put(&manifest, &first);
    let next = format!("manifests/{writer}/0000000002.manifest");
    let (title, mut claim, payload) = Forger::apart(&read(&next));
    claim["previous"] = json!(sha256(&first));
    put(&next, &forger.sign(&title, &claim, &payload));
    for gone in [pack.as_str(), own_index, list.as_str()] {
        std::fs::remove_file(root.join(gone)).unwrap();
    }
    let found = json!([format!("foreign-recipient {new_pack}")]);
    let mut expected = thawed.expected.clone();
    expected["findings"] = json!({"public": [], "writer": found, "full": found});
    freeze(dir, "foreign-recipient", &expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes tests/frozen/v1; run once for a format version"]
async fn make_frozen() {
    let place = Place::new().await;
    let (artifacts, rotated) = fill(&place).await;
    place.writer.save(&place.dir.path().join("writer.key")).unwrap();
    rotated.save(&place.dir.path().join("rotated.key")).unwrap();
    place.identity.save(&place.dir.path().join("identity.txt")).unwrap();
    let ids: Vec<String> = place
        .reading()
        .await
        .backups()
        .await
        .unwrap()
        .iter()
        .map(|b| b.id.to_string())
        .collect();
    assert_eq!(ids.len(), 3);
    let name = |path: &Path| path.strip_prefix(place.root()).unwrap().to_str().unwrap().to_owned();
    // What only the second backup needs: its new pack.
    let second = place.reading().await.read(&ids[1]).await.unwrap();
    let first = place.reading().await.read(&ids[0]).await.unwrap();
    let own: Vec<String> = second
        .needed_objects()
        .iter()
        .filter(|o| !first.needed_objects().contains(o))
        .cloned()
        .collect();
    let pick = |prefix: &str| own.iter().find(|o| o.starts_with(prefix)).unwrap().clone();
    let (pack, index) = (pick("data/"), pick("index/"));
    let manifests = |writer: &WriterKey| -> Vec<String> {
        let below = format!("manifests/{}", writer.id());
        place.objects(&below).iter().map(|p| name(p)).collect()
    };
    let (old_chain, new_chain) = (manifests(&place.writer), manifests(&rotated));
    let revision = name(&place.objects("revisions")[0]);
    let root = place.root();
    let change = |object: &str, with: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(root.join(object)).unwrap();
        with(&mut bytes);
        std::fs::write(root.join(object), bytes).unwrap();
    };
    let lost_of_second = [format!("{} s/t", ids[1])];
    let all = |found: &[&str]| json!({"public": found, "writer": found, "full": found});
    // Name; the backups listed; artifacts that cannot be whole; what a check finds; how it came to be.
    type Damage<'a> = (&'a str, Vec<&'a String>, Vec<String>, Value, Box<dyn Fn() + 'a>);
    let every: Vec<&String> = ids.iter().collect();
    let damages: Vec<Damage<'_>> = vec![
        ("good", every.clone(), vec![], all(&[]), Box::new(|| {})),
        (
            "bit-flip",
            every.clone(),
            lost_of_second.to_vec(),
            // Read back, every chunk of the pack is named as well; the object comes first.
            all(&[&format!("wrong-content {pack}")]),
            Box::new(|| {
                change(&pack, &|b| {
                    let at = b.len() - 10;
                    b[at] ^= 4;
                })
            }),
        ),
        (
            "truncated",
            every.clone(),
            lost_of_second.to_vec(),
            all(&[&format!("wrong-size {pack}")]),
            Box::new(|| change(&pack, &|b| b.truncate(b.len() - 20))),
        ),
        (
            "missing-pack",
            every.clone(),
            lost_of_second.to_vec(),
            all(&[&format!("missing {pack}")]),
            Box::new(|| std::fs::remove_file(root.join(&pack)).unwrap()),
        ),
        (
            "swapped",
            every.clone(),
            lost_of_second.to_vec(),
            all(&[&format!("wrong-content {pack}")]),
            Box::new(|| {
                let other = first.needed_objects().iter().find(|o| o.starts_with("data/")).unwrap();
                let other = std::fs::read(root.join(other)).unwrap();
                change(&pack, &|b| {
                    let length = b.len();
                    *b = other.clone();
                    b.resize(length, 0);
                });
            }),
        ),
        (
            "missing-index",
            every.clone(),
            lost_of_second.to_vec(),
            all(&[&format!("missing {index}")]),
            Box::new(|| std::fs::remove_file(root.join(&index)).unwrap()),
        ),
        (
            "chain-hole",
            vec![&ids[0], &ids[2]],
            lost_of_second.to_vec(),
            all(&[&format!("chain-broken {}", new_chain[0])]),
            Box::new(|| std::fs::remove_file(root.join(&new_chain[0])).unwrap()),
        ),
        (
            "old-chain-cut",
            vec![&ids[1], &ids[2]],
            vec![format!("{} s/t", ids[0]), format!("{} s/small", ids[0])],
            all(&[&format!("chain-broken {}", old_chain[0])]),
            Box::new(|| std::fs::remove_file(root.join(&old_chain[0])).unwrap()),
        ),
        (
            "forged-manifest",
            vec![&ids[0], &ids[1]],
            vec![format!("{} s/small", ids[2])],
            json!({
                "public": [format!("forged {}", new_chain[1])],
                "writer": [format!("forged {}", new_chain[1])],
                "full": [format!("forged {}", new_chain[1])],
            }),
            Box::new(|| {
                change(&new_chain[1], &|b| {
                    let at = b.iter().position(|c| *c == b':').unwrap();
                    b[at + 3] ^= 1;
                })
            }),
        ),
        (
            "old-revision-gone",
            every.clone(),
            vec![format!("{} s/t", ids[0]), format!("{} s/small", ids[0])],
            Value::Null,
            Box::new(|| std::fs::remove_file(root.join(&revision)).unwrap()),
        ),
    ];
    std::fs::create_dir_all(frozen()).unwrap();
    for (title, backups, lost, findings, damage) in damages {
        let kept = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(&root)
            .arg(kept.path())
            .status()
            .unwrap();
        assert!(copied.success());
        damage();
        let findings = match findings {
            // Everything the old list names that was pruned since.
            Value::Null => {
                let claim = std::fs::read(root.join(&old_chain[0])).unwrap();
                let claim: Value = serde_json::from_slice(claim.split(|b| *b == b'\n').nth(1).unwrap()).unwrap();
                all(&[&format!("missing {}", claim["list"].as_str().unwrap())])
            }
            findings => findings,
        };
        let artifacts: serde_json::Map<String, Value> = artifacts
            .iter()
            .map(|(name, digest)| {
                (
                    name.clone(),
                    if lost.contains(name) {
                        Value::Null
                    } else {
                        json!(digest)
                    },
                )
            })
            .collect();
        let expected = json!({"backups": backups, "artifacts": artifacts, "findings": findings});
        freeze(place.dir.path(), title, &expected);
        std::fs::remove_dir_all(&root).unwrap();
        let restored = std::process::Command::new("cp")
            .arg("-a")
            .arg(kept.path().join("repository"))
            .arg(&root)
            .status()
            .unwrap();
        assert!(restored.success());
    }
}
