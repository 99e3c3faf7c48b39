//! What comes with a plugin: the world its author describes, its signature, and the file its hash is written into.

use super::parts;
use crate::plugin::described::{self, DescribedEngine, Description, Standing, to_sqlite};
use crate::plugin::pin;
use crate::plugin::signature::{SignedBy, check};
use essrun_sandbox::World;
use essrun_sandbox::contract::inspect::EntryKind;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// More rows than this only take time.
const ROWS: u64 = 200;

/// A world; after lines of `%%` further texts, with which its databases are asked.
pub fn described(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parts = parts(text, "%%");
    let (world, queries) = parts.split_first().unwrap();
    let file = Path::new(if world.starts_with('{') { "w.json" } else { "w.toml" });
    let mut described = match described::parse(file, world.as_bytes().to_vec()) {
        Ok(described) => described,
        Err(e) => return says(&e.to_string(), "w."),
    };
    let schemas: BTreeSet<String> = ["public", "a b"].map(str::to_owned).into();
    for sql in queries {
        assert!(to_sqlite(sql, &schemas).len() <= sql.len());
        let plain = !sql.contains(['$', '\'', '"']) && !sql.contains("::");
        if plain && !sql.to_ascii_lowercase().contains("only") {
            assert_eq!(to_sqlite(sql, &BTreeSet::new()), **sql);
        }
    }
    let tables = described.databases.values().flat_map(|d| d.tables.values());
    let rows = tables.fold(0u64, |sum, t| sum.saturating_add(t.rows()));
    if rows > ROWS {
        return;
    }
    // An endless query ends by its time: not here by minutes.
    described.limits.query = described.limits.query.min(Duration::from_millis(20));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        match described::stand(file, "x", &described).await {
            Ok(standing) => stands(&described, &standing, queries).await,
            Err(e) => says(&e.to_string(), "."),
        }
    });
}

fn says(said: &str, place: &str) {
    assert!(said.contains(place), "it does not say where: {said}");
}

/// Every file below a folder, by its path.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            found.insert(path.to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// What was described is there and nothing else, and asking changes none of it.
async fn stands(described: &Description, standing: &Standing, queries: &[&str]) {
    let before = tree(standing.folder());
    let files: usize = described.volumes.values().map(|v| v.files.len()).sum();
    assert_eq!(before.len(), files + described.databases.len());
    for (label, volume) in &described.volumes {
        for (path, text) in &volume.files {
            let found = standing.look(label, vec![path.clone()]).await.unwrap();
            assert_eq!(found[0].as_ref().map(|e| e.kind), Some(EntryKind::File), "{path:?}");
            let read = standing.read(label, path, u32::MAX).await.unwrap();
            assert_eq!(read, text.as_bytes(), "{path:?}");
        }
    }
    for (label, database) in &described.databases {
        let tables = standing.tables(label).await.unwrap();
        assert!(tables.len() <= database.tables.len());
        if database.engine == DescribedEngine::Postgres {
            assert_eq!(tables.len(), database.tables.len());
        }
        standing.info(label).await.unwrap();
        for sql in queries {
            let Ok(mut rows) = standing.query(label, sql, Vec::new()).await else {
                continue;
            };
            // An answer that was written down may hold rows of any width; a database's have that of the columns.
            for _ in 0..3 {
                match rows.next(10, 1 << 16).await {
                    Ok(page) if page.is_empty() => break,
                    Ok(page) => assert!(page.len() <= 10),
                    Err(_) => break,
                }
            }
        }
    }
    assert_eq!(tree(standing.folder()), before, "asking changed something");
}

const KEY: &str = "RWTu01ZzZzA7VHMFtvQt+Vs/rokUkG1cSY/HIXy3ooO43nFREQWZE81O";
const SIGNED: &[u8] = include_bytes!("../../testdata/signed.txt");
const SIGNATURE: &str = include_str!("../../testdata/signed.txt.minisig");

/// Whole bytes of base64, whatever the last bits are.
fn bytes(base64: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut held, mut bits, mut out) = (0u32, 0, Vec::new());
    for digit in base64.bytes() {
        let Some(value) = DIGITS.iter().position(|d| *d == digit) else {
            continue;
        };
        held = (held << 6) | value as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    out
}

/// A signature (`s` before it), a key (`k`) or a file (`b`), with the genuine two others: only what means the same as the
/// genuine one is good.
pub fn signature(data: &[u8]) {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    let file = Path::new("x.minisig");
    if *which == b'b' {
        assert_eq!(check(data, KEY, SIGNATURE, file).is_ok(), data == SIGNED);
        return;
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match which {
        b's' => match check(SIGNED, KEY, text, file) {
            Ok(()) => {
                let lines = |text: &str| {
                    let line = |n| text.lines().nth(n).unwrap_or_default().to_owned();
                    (bytes(&line(1)), line(2), bytes(&line(3)))
                };
                assert_eq!(lines(text), lines(SIGNATURE));
            }
            Err(said) => says(&said, "x.minisig"),
        },
        b'k' => {
            let checked = check(SIGNED, text, SIGNATURE, file);
            let is_key = SignedBy::check_key(text).is_ok();
            assert!(is_key || checked.is_err());
            if checked.is_ok() {
                // The first two bytes name the kind of signature, which both kinds of key make.
                assert_eq!(bytes(text)[2..], bytes(KEY)[2..]);
            }
            if !is_key {
                says(&checked.unwrap_err(), "public-key");
            }
        }
        _ => {}
    }
}

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A pipeline file that hashes are written into: nothing else of it may change.
pub fn pin(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = Path::new("/nowhere/ess.toml");
    let (mut document, mut values) = match pin::parse(file, text) {
        Ok(parsed) => parsed,
        Err(e) => return says(&e.to_string(), "ess.toml"),
    };
    // What cannot be kept as it is, is left alone.
    if pin::written(text, &document) != text {
        return;
    }
    let plugins = match pin::plugins(file, &document, None) {
        Ok(plugins) => plugins,
        Err(e) => return says(&e.to_string(), "ess.toml"),
    };
    for what in plugins {
        if let Err(e) = pin::limits(file, &values, &what) {
            says(&e.to_string(), "limits");
        }
        pin::write_hash(pin::used(&mut document, &what).unwrap(), HASH);
        // The same with values that have no layout.
        let mut table = &mut values;
        for key in what.place().into_iter().chain(["use"]) {
            table = table.get_mut(key).unwrap().as_table_mut().unwrap();
        }
        table.insert("sha256".to_owned(), HASH.into());
        let after = pin::written(text, &document);
        let read: toml::Table = after.parse().unwrap_or_else(|e| panic!("{e}\n{text}\n→\n{after}"));
        assert_eq!(read, values, "{text}\n→\n{after}");
        pin::write_hash(pin::used(&mut document, &what).unwrap(), HASH);
        assert_eq!(pin::written(text, &document), after, "twice is once");
    }
}
