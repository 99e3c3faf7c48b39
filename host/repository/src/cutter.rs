//! Where content is cut into chunks: FastCDC with cut points that depend on the writer's secret.
//!
//! The gear table is drawn from the chunk key, so chunk lengths of known content (a file everybody has) do not tell
//! its presence to whoever sees the repository. Cut points must stay the same for as long as a chunk key lives;
//! changing anything here makes the next backup store everything anew.

use crate::keys::ChunkKey;
use essrun_artifact::Cut;
use fastcdc::v2020::{Normalization, cut_gear, select_masks};

/// The longest chunk any cut makes; decoders refuse longer ones.
pub(crate) const CHUNK_LIMIT: usize = 4 << 20;

/// Finds cut points.
#[derive(Clone)]
pub(crate) struct Cutter {
    gear: Vec<u64>,
    gear_shifted: Vec<u64>,
    min: usize,
    average: usize,
    max: usize,
    mask_s: u64,
    mask_l: u64,
}

impl Cutter {
    pub fn new(key: &ChunkKey, cut: Cut) -> Self {
        let (min, average, max) = match cut {
            // Measured: at 16 KiB a day's scattered changes re-upload about a twentieth of a table, at 1 MiB nearly all.
            Cut::Fine => (4 << 10, 16 << 10, 64 << 10),
            Cut::Coarse => (256 << 10, 1 << 20, CHUNK_LIMIT),
        };
        let mut table = [0u8; 256 * 8];
        let mut hasher = blake3::Hasher::new_derive_key("essrun 2026 chunk cut v1");
        hasher.update(&key.0);
        hasher.finalize_xof().fill(&mut table);
        let gear: Vec<u64> = table
            .chunks_exact(8)
            .map(|eight| eight.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte)))
            .collect();
        let gear_shifted = gear.iter().map(|g| g << 1).collect();
        let (mask_s, mask_l) = select_masks(average, Normalization::Level2);
        Cutter {
            gear,
            gear_shifted,
            min,
            average,
            max,
            mask_s,
            mask_l,
        }
    }

    /// The most bytes needed to decide a cut. With fewer, only the end of content may be cut.
    pub fn window(&self) -> usize {
        self.max
    }

    /// The length of the next chunk; more than zero unless there are no bytes.
    pub fn next(&self, bytes: &[u8]) -> usize {
        let (_, at) = cut_gear(
            bytes,
            self.min,
            self.average,
            self.max,
            self.mask_s,
            self.mask_l,
            self.mask_s << 1,
            self.mask_l << 1,
            &self.gear,
            &self.gear_shifted,
        );
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; length];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cuts(cutter: &Cutter, bytes: &[u8]) -> Vec<usize> {
        let (mut at, mut all) = (0, Vec::new());
        while at < bytes.len() {
            at += cutter.next(&bytes[at..bytes.len().min(at + cutter.window())]);
            all.push(at);
        }
        all
    }

    #[test]
    fn cuts_are_in_bounds_and_about_the_wanted_size() {
        let bytes = noise(8 << 20);
        let cutter = Cutter::new(&ChunkKey([1; 32]), Cut::Fine);
        let all = cuts(&cutter, &bytes);
        let mean = bytes.len() / all.len();
        assert!((10_000..32_000).contains(&mean), "{mean}");
        let lengths = all.iter().scan(0, |last, at| Some(at - std::mem::replace(last, *at)));
        assert!(lengths.clone().all(|l| l <= 64 << 10));
        assert_eq!(lengths.sum::<usize>(), bytes.len());
    }

    #[test]
    fn an_insertion_moves_few_cuts_and_another_key_moves_all() {
        let bytes = noise(4 << 20);
        let cutter = Cutter::new(&ChunkKey([1; 32]), Cut::Fine);
        let before = cuts(&cutter, &bytes);
        let mut changed = bytes.clone();
        changed.splice(1_000_000..1_000_000, [1, 2, 3]);
        let after: std::collections::HashSet<usize> = cuts(&cutter, &changed).into_iter().collect();
        let kept = before
            .iter()
            .filter(|at| after.contains(&if **at > 1_000_000 { **at + 3 } else { **at }))
            .count();
        assert!(before.len() - kept < 10, "{} of {} kept", kept, before.len());
        let other: std::collections::HashSet<usize> = cuts(&Cutter::new(&ChunkKey([2; 32]), Cut::Fine), &bytes)
            .into_iter()
            .collect();
        let same = before.iter().filter(|at| other.contains(at)).count();
        assert!(same < before.len() / 20, "{same} of {}", before.len());
    }

    #[test]
    fn the_cut_of_a_known_content_never_changes() {
        let cutter = Cutter::new(&ChunkKey([7; 32]), Cut::Fine);
        let all = cuts(&cutter, &noise(1 << 20));
        let told = format!("{:?}", &all[..4]);
        assert_eq!(told, include_str!("../tests/data/cuts.txt").trim());
    }
}
