//! Makes a host believe that it stored a great many chunks: rows in its local chunk index, and sparse files of the right
//! names and sizes where packs and their indexes would lie. The tables are those of `host/repository/src/chunk_index.rs`;
//! if they change there, the run that follows finds no chunk of ours and the figure it prints says nothing, so the rows
//! are counted in the file essrun itself made.

use crate::shell::{Problem, Result};
use redb::{ConcurrencyMode, Database, ReadableTable, ReadableTableMetadata, TableDefinition};
use std::path::{Path, PathBuf};

const CHUNKS: TableDefinition<[u8; 36], (u32, u32, u32)> = TableDefinition::new("chunks");
const PACKS: TableDefinition<u32, &[u8]> = TableDefinition::new("packs");
const NUMBERS: TableDefinition<[u8; 32], u32> = TableDefinition::new("numbers");
const COUNTERS: TableDefinition<&str, u32> = TableDefinition::new("counters");

const CHUNKS_IN_PACK: u32 = 1000;
const PACK_BYTES: u64 = 16 << 20;
const INDEX_BYTES: u64 = 40 << 10;

fn other(e: impl std::fmt::Display) -> Problem {
    Problem::Other(format!("filling the index: {e}"))
}

/// The chunk index below a cache folder: `<repository>/chunks-<writer>.redb`.
fn find(cache: &Path) -> Result<(PathBuf, String)> {
    for repository in std::fs::read_dir(cache).map_err(other)?.flatten() {
        for file in std::fs::read_dir(repository.path()).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if let Some(writer) = name.strip_prefix("chunks-").and_then(|n| n.strip_suffix(".redb")) {
                return Ok((file.path(), writer.to_owned()));
            }
        }
    }
    Err(other(format!("no chunk index below {}", cache.display())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sparse(path: &Path, bytes: u64) -> Result {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(other)?;
    }
    std::fs::File::create(path)
        .and_then(|file| file.set_len(bytes))
        .map_err(other)
}

/// A number spread over 32 bytes, increasing with it.
fn spread(n: u64, salt: u8) -> [u8; 32] {
    let mut id = [salt; 32];
    for (to, from) in id.iter_mut().zip(n.to_be_bytes()) {
        *to = from;
    }
    id
}

pub fn fill(cache: &Path, repository: &Path, chunks: u32) -> Result {
    let (path, writer) = find(cache)?;
    let db: Database = redb::Builder::new()
        .set_cache_size(512 << 20)
        .set_concurrency_mode(ConcurrencyMode::MultiWriter)
        .create(&path)
        .map_err(other)?;
    let packs = chunks.div_ceil(CHUNKS_IN_PACK);
    let write = db.begin_write().map_err(other)?;
    let start = {
        let mut rows = write.open_table(PACKS).map_err(other)?;
        let mut numbers = write.open_table(NUMBERS).map_err(other)?;
        let mut counters = write.open_table(COUNTERS).map_err(other)?;
        let start = counters
            .get("next_pack")
            .map_err(other)?
            .map(|n| n.value())
            .unwrap_or(0);
        for n in 0..packs {
            let hash = spread(u64::from(n).wrapping_mul(0x0001_0000_0001_0001), 0xee);
            let (text, shard) = (hex(&hash), hex(hash.get(..1).unwrap_or_default()));
            let pack = format!("data/{shard}/{text}.{PACK_BYTES}.age");
            let index = format!("index/{writer}/{text}.{text}.{INDEX_BYTES}.age");
            sparse(&repository.join(&pack), PACK_BYTES)?;
            sparse(&repository.join(&index), INDEX_BYTES)?;
            let frames: Vec<(u32, u32)> = vec![(1 << 20, 1 << 20); 16];
            let row = serde_json::json!({"pack": pack, "index": index, "payload_offset": 200, "frames": frames});
            rows.insert(start + n, row.to_string().as_bytes()).map_err(other)?;
            numbers.insert(hash, start + n).map_err(other)?;
        }
        counters.insert("next_pack", start + packs).map_err(other)?;
        start
    };
    write.commit().map_err(other)?;
    // In the order of their ids, as a B-tree likes it; their packs are anywhere.
    let step = u64::MAX / u64::from(chunks.max(1));
    let mut n = 0u32;
    while n < chunks {
        let write = db.begin_write().map_err(other)?;
        {
            let mut table = write.open_table(CHUNKS).map_err(other)?;
            for _ in 0..500_000.min(chunks - n) {
                let pack = start + n.wrapping_mul(2_654_435_761) % packs;
                let mut key = [0u8; 36];
                let id = spread(u64::from(n) * step, 0x5c);
                for (to, from) in key.iter_mut().zip(id.into_iter().chain(pack.to_be_bytes())) {
                    *to = from;
                }
                table.insert(key, (n % 16, n % 4096, 16_384)).map_err(other)?;
                n += 1;
            }
        }
        write.commit().map_err(other)?;
    }
    let read = redb::ReadableDatabase::begin_read(&db).map_err(other)?;
    let there = read.open_table(CHUNKS).and_then(|t| Ok(t.len()?)).map_err(other)?;
    let bytes = std::fs::metadata(&path).map_err(other)?.len();
    println!(
        "  the index has {there} chunks in {packs} packs, {:.1} MB on disk",
        bytes as f64 / 1e6
    );
    Ok(())
}
