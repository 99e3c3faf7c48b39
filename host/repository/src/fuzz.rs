//! The doors that fuzzers come in by: one function of plain bytes for each thing that is decoded here.
//!
//! They are the functions that the repository itself reads with, not copies of them. Where a signature or an envelope
//! stands before a decoder, what is given is signed or sealed first, as a thief of the key would; so it is the decoder
//! that is tried, and not the lock before it. In signed claims the words `@repository@`, `@writer@`, `@public@` and
//! `@manifest@` stand for what the place at hand has there, so that a corpus depends on no key.
//!
//! Whatever comes in, nothing may panic, take long or take much memory; and what is accepted must hold what the rest of
//! the room relies on, which is asserted here. `tests/fuzz` runs these for hours, the test below on every corpus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod frames;
pub use frames::frames;

use crate::core::{Card, Config, Core};
use crate::envelope::{self, Header, Sealer};
use crate::keys::{Identity, Recipients, WriterKey};
use crate::manifest::{Head, Manifest, Sealed};
use crate::names::{self, IndexName, ListName, PackName};
use crate::read::{self, Fetcher, RefReader};
use crate::signed::{self, Kind};
use crate::write::LeaseClaim;
use crate::{Access, BackupId, Options, Repository, annotation, forget, index_object, prune, revision};
use bytes::Bytes;
use essrun_artifact::{ArtifactName, Content};
use essrun_store::{ObjectName, Objects, Store};
use std::collections::HashSet;
use std::sync::{Arc, OnceLock, RwLock};

/// A decoder, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("annotation", annotation),
    ("claims", claims),
    ("envelope", envelope),
    ("frames", frames),
    ("index", index),
    ("keys", keys),
    ("list", list),
    ("manifest", manifest),
    ("names", names),
    ("pack", pack),
    ("range", range),
    ("revision", revision),
    ("signed", signed),
];

/// What an envelope may grow to here.
const PLAIN: usize = 1 << 20;

/// A repository in memory, its keys, and the first backup's manifest.
struct Place {
    core: Arc<Core>,
    key: WriterKey,
    recipients: Recipients,
    manifest: Manifest,
    fetcher: Arc<Fetcher>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

const FIRST: &str = r#"{"repository":"@repository@","backup":"20260131t041500z-9f3a01c2","sequence":1,
"previous":"0000000000000000000000000000000000000000000000000000000000000000","created_at":1,"committed_at":2,
"list":"lists/0000000000000000000000000000000000000000000000000000000000000000.0.txt","needed_objects":0,"needed_bytes":0}"#;

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let key = WriterKey::generate();
        let identity = crate::NewIdentity::generate();
        let recipients = Recipients::parse([identity.recipient()]).unwrap();
        let store: Arc<dyn Store> = Arc::new(Objects::memory());
        let access = Access {
            writer: Some(key.clone()),
            identities: vec![identity.identity()],
            recipients: recipients.clone(),
            cache_dir: dir.path().to_owned(),
            state_dir: dir.path().join("state"),
            options: Options::default(),
        };
        let core = runtime.block_on(async {
            Repository::init(store.clone(), &key, &recipients).await.unwrap();
            Core::open(store, access).await.unwrap()
        });
        let core = Arc::new(core);
        let claim = FIRST.replace('\n', "").replace("@repository@", &core.config.id);
        let object = names::manifest(&key.id(), 1).unwrap();
        let bytes = signed::sign(Kind::Manifest, claim.as_bytes(), b"", &key);
        let manifest = Manifest::read(&core, &object, &bytes).unwrap();
        let nothing = Arc::new(RwLock::new(HashSet::new()));
        let fetcher = Arc::new(Fetcher::new(core.clone(), core.index().unwrap(), nothing, [0; 32]));
        Place {
            core,
            key,
            recipients,
            manifest,
            fetcher,
            runtime,
            _dir: dir,
        }
    })
}

/// The first line, with the words in it put in, and what is behind it.
fn split(data: &[u8]) -> (Vec<u8>, &[u8]) {
    let at = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (line, rest) = data.split_at(at);
    let mut line = line.to_vec();
    if line.contains(&b'@')
        && let Ok(text) = std::str::from_utf8(&line)
    {
        let here = place();
        let text = text
            .replace("@repository@", &here.core.config.id)
            .replace("@writer@", here.key.id().as_str())
            .replace("@public@", &here.key.public().to_string())
            .replace("@manifest@", &hex::encode(here.manifest.hash));
        line = text.into_bytes();
    }
    (line, rest.get(1..).unwrap_or_default())
}

fn object(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

/// Any bytes as a signed document of each kind.
pub fn signed(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    for kind in [Kind::Manifest, Kind::Index, Kind::Config] {
        if let Ok(document) = signed::read("x", kind, &bytes) {
            assert!(bytes.ends_with(&document.payload));
            let _ = document.untrusted::<serde_json::Value>();
        }
    }
}

/// A manifest's claim, and on the lines behind it what would be sealed.
pub fn manifest(data: &[u8]) {
    let (here, (claim, sealed)) = (place(), split(data));
    let bytes = signed::sign(Kind::Manifest, &claim, sealed, &here.key);
    if let Ok(read) = Manifest::read(&here.core, &here.manifest.object, &bytes) {
        assert_eq!((read.claim.sequence, &read.writer), (1, &here.key.id()));
        assert_eq!(read.list.object().unwrap().as_str(), read.claim.list);
        let _ = serde_json::to_string(&read.summary(None, None)).unwrap();
    }
    let Ok(sealed) = serde_json::from_slice::<Sealed>(sealed) else {
        return;
    };
    let _ = Recipients::parse(&sealed.recipients);
    let _ = crate::write::naming_key(&sealed, "x");
    for artifact in &sealed.artifacts {
        assert!(ArtifactName::new(artifact.name.as_str()).is_ok());
        content(here, &artifact.content);
    }
}

/// Asks for the chunks of a content that nobody has: what it claims must not be believed.
fn content(here: &Place, content: &Content) {
    if let Ok(mut refs) = RefReader::new(here.fetcher.clone(), content) {
        here.runtime
            .block_on(async { while let Ok(Some(_)) = refs.next().await {} });
    }
    let stream = read::ContentStream::new(here.fetcher.clone(), content, 0);
    if let Ok(mut stream) = stream {
        let read = here.runtime.block_on(stream.next_bytes());
        assert!(content.bytes == 0 || !matches!(read, Ok(None)), "bytes out of nothing");
    }
}

/// A revision's claim and payload.
pub fn revision(data: &[u8]) {
    let (here, (claim, payload)) = (place(), split(data));
    let bytes = signed::sign(Kind::Revision, &claim, payload, &here.key);
    let name = names::revision(&here.key.id(), 1, 1).unwrap();
    if let Ok(revision) = revision::parse(&here.core, &name, &bytes) {
        assert_eq!((revision.claim.sequence, revision.claim.number), (1, 1));
        assert_eq!(revision.list.object().unwrap().as_str(), revision.claim.list);
        assert_eq!(revision.payload, payload);
    }
}

/// An annotation's claim, and what is sealed in it.
pub fn annotation(data: &[u8]) {
    let (here, (claim, plain)) = (place(), split(data));
    let sealed = envelope::seal(&here.recipients, plain, 1).unwrap();
    let bytes = signed::sign(Kind::Annotation, &claim, &sealed.bytes, &here.key);
    if let Ok(read) = annotation::parse(&here.core, &here.manifest, object("x"), &bytes) {
        assert_eq!(read.backup, here.manifest.claim.backup);
        assert_eq!(Some(read.body), serde_json::from_slice(plain).ok());
    }
}

/// The claims without a payload: the first byte says of which kind.
pub fn claims(data: &[u8]) {
    let here = place();
    let Some((kind, rest)) = data.split_first() else { return };
    let (claim, payload) = split(rest);
    let core = &here.core;
    let document = |kind| {
        let bytes = signed::sign(kind, &claim, payload, &here.key);
        (signed::read("x", kind, &bytes).unwrap(), bytes)
    };
    match kind {
        b'c' => drop(document(Kind::Config).0.untrusted::<Config>()),
        b'w' => drop(document(Kind::Writer).0.trusted::<Card>(&core.trusted)),
        b'l' => drop(document(Kind::Lease).0.trusted::<LeaseClaim>(&core.trusted)),
        b't' => {
            let name = names::tombstone(&here.key.id(), 1).unwrap();
            if let Ok((writer, tombstone)) = forget::parse(core, &name, &document(Kind::Tombstone).1, 0) {
                assert_eq!((writer, tombstone.claim.sequence), (here.key.id(), 1));
            }
        }
        b'p' => drop(prune::parse(core, object("prunes/x"), &document(Kind::Prune).1, 0)),
        b'h' => drop(serde_json::from_slice::<Head>(&claim)),
        _ => {}
    }
}

/// An index's claim and entries.
pub fn index(data: &[u8]) {
    let (here, (claim, entries)) = (place(), split(data));
    let bytes = signed::sign(Kind::Index, &claim, entries, &here.key);
    let Ok(index) = index_object::decode("x", &bytes, &here.core.config.id, &here.core.trusted) else {
        return;
    };
    let mut end = 0;
    for frame in &index.frames {
        assert_eq!(frame.offset, end);
        end += u64::from(frame.compressed);
    }
    assert!(index.payload_offset + end <= index.pack.sum.bytes);
    assert_eq!(index.chunks.len() * index_object::ENTRY, entries.len());
    for (_, place) in &index.chunks {
        let frame = index.frames[place.frame as usize];
        assert!(place.bytes > 0 && u64::from(place.offset) + u64::from(place.bytes) <= u64::from(frame.plain));
    }
}

/// The decrypted bytes of a pack whose index was lost.
pub fn pack(data: &[u8]) {
    if let Ok(frames) = index_object::recover("x", data, &[7; 32]) {
        let length: usize = frames.iter().map(|f| f.compressed as usize).sum();
        assert_eq!(length, data.len());
        assert!(frames.iter().flat_map(|f| &f.chunks).all(|c| c.bytes > 0));
    }
}

/// An age file, and what is in one: frames that may be none.
pub fn envelope(data: &[u8]) {
    let here = place();
    if let Ok(header) = Header::parse(data) {
        assert!(header.payload_offset <= data.len() as u64 + 16);
        let _ = header.fits(&here.recipients.kinds());
    }
    assert!(envelope::open("x", &here.core.identities, data, PLAIN).is_err());
    let mut sealer = Sealer::new(&here.recipients, data.len()).unwrap();
    sealer.write(data).unwrap();
    let sealed = sealer.finish().unwrap();
    if let Ok(plain) = envelope::open("x", &here.core.identities, &sealed.bytes, PLAIN) {
        assert!(plain.len() <= PLAIN);
    }
    let back = envelope::open_sealed("x", &here.core.identities, &sealed.bytes, PLAIN).unwrap();
    assert_eq!(back, &data[..data.len().min(PLAIN)]);
}

/// A stretch of an age file of which a header and some blocks are at hand, some of them not those that were asked for.
/// Numbers of three bytes say which stretch, of how many fetched bytes from where, and which bits are flipped.
pub fn range(data: &[u8]) {
    static SEALED: OnceLock<(Vec<u8>, envelope::Sealed)> = OnceLock::new();
    let here = place();
    let (plain, sealed) = SEALED.get_or_init(|| {
        let plain: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let mut sealer = Sealer::new(&here.recipients, plain.len()).unwrap();
        sealer.write(&plain).unwrap();
        (plain, sealer.finish().unwrap())
    });
    let mut numbers = data
        .chunks_exact(3)
        .map(|n| u64::from(u32::from_be_bytes([0, n[0], n[1], n[2]])));
    let mut number = || numbers.next().unwrap_or(0);
    let (from, to) = (number(), number());
    let honest = envelope::sealed_range(sealed.payload_offset, sealed.bytes.len() as u64, from, to);
    // What is fetched, and where it is said to be from; an even shift forward, an odd one back.
    let shifted = |by: u64, at: u64| match by % 2 {
        0 => at.saturating_add(by / 2),
        _ => at.saturating_sub(by / 2 + 1),
    };
    let end = sealed.bytes.len() as u64;
    let (start, stop, said) = (
        shifted(number(), honest.start).min(end),
        shifted(number(), honest.end).min(end),
        shifted(number(), honest.start),
    );
    let mut blocks = sealed.bytes[start as usize..(stop.max(start)) as usize].to_vec();
    let cut = shifted(number(), sealed.payload_offset).min(end);
    let mut header = sealed.bytes[..cut as usize].to_vec();
    for (bits, bytes) in [(number(), &mut blocks), (number(), &mut header)] {
        if let Some(byte) = bytes.get_mut((bits >> 8) as usize) {
            *byte ^= bits as u8;
        }
    }
    let intact = blocks == sealed.bytes[honest.start as usize..honest.end.max(honest.start) as usize]
        && header == sealed.bytes[..sealed.payload_offset as usize]
        && said == honest.start;
    let identities = &here.core.identities;
    let read = envelope::open_range("x", identities, header.into(), blocks.into(), said, from, to);
    let wanted = plain.get(from as usize..to as usize);
    match (&read, wanted) {
        // Whatever was handed in: these bytes or none.
        (Ok(read), _) if from < to => assert_eq!(Some(read.as_slice()), wanted),
        (Ok(read), _) => assert!(read.is_empty()),
        (Err(e), Some(wanted)) => assert!(!intact || wanted.is_empty(), "{from}..{to}: {e}"),
        (Err(_), None) => {}
    }
}

/// A list of needed objects.
pub fn list(data: &[u8]) {
    for name in read::parse_list("x", data).unwrap_or_default() {
        assert!(names::sum_in_name(&name).is_some());
        ObjectName::new(name).expect("a listed name is one of an object");
    }
}

/// Names of objects, and what is said to be one.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(pack) = PackName::parse(text) {
        assert_eq!(pack.object().unwrap().as_str(), text);
    }
    if let Some(index) = IndexName::parse(text) {
        assert_eq!(index.object().unwrap().as_str(), text);
    }
    if let Some(list) = ListName::parse(text) {
        assert_eq!(list.object().unwrap().as_str(), text);
    }
    if let Some((writer, sequence)) = names::parse_sequenced(text, "manifests", "manifest") {
        assert_eq!(names::manifest(&writer, sequence).unwrap().as_str(), text);
    }
    if let Some((writer, sequence, number)) = names::parse_revision(text) {
        assert_eq!(names::revision(&writer, sequence, number).unwrap().as_str(), text);
    }
    if names::sum_in_name(text).is_some() {
        assert!(ObjectName::new(text).is_ok());
    }
    if let Ok(id) = BackupId::new(text) {
        assert!(names::lease(&id, 1).is_ok());
    }
    if let Ok(name) = ArtifactName::new(text) {
        assert_eq!(name.as_str(), text);
    }
}

/// Key files and recipients, as people hand them over.
pub fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = WriterKey::from_text(text) {
        let back = WriterKey::from_text(&key.to_text()).unwrap();
        assert_eq!(back.public(), key.public());
    }
    let _ = Identity::from_text(text, "x");
    if let Ok(recipients) = Recipients::parse(text.lines()) {
        assert!(recipients.len() <= 20);
    }
    if let Ok(public) = text.parse::<crate::WriterPublic>() {
        assert_eq!(public.to_string(), text.trim().to_lowercase());
    }
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpora.rs"]
mod corpora;

#[cfg(test)]
mod tests {
    use super::corpora;

    #[test]
    fn every_corpus_is_decoded_or_refused() {
        corpora::run(super::TARGETS);
    }

    #[test]
    fn every_fuzz_target_has_its_file_and_its_corpus() {
        corpora::complete();
    }
}
