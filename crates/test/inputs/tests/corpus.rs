//! Every target takes its seeds, the seeds bent in many ways, and what a fuzzer once found.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use inputs::{TARGETS, Target, seeds};

/// Bent copies of each seed; those that touch the disk are slow.
const BENT: usize = 2_000;
const BENT_SLOW: usize = 300;

#[test]
fn every_target_bears_its_seeds_and_bent_ones() {
    for target in TARGETS {
        let seeds = seeds(target.name);
        assert!(!seeds.is_empty(), "{} has no seed", target.name);
        let slow = ["layer", "image_archive"].contains(&target.name);
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for seed in &seeds {
            (target.run)(seed);
            for _ in 0..if slow { BENT_SLOW } else { BENT } {
                (target.run)(&bent(seed, &mut state));
            }
        }
    }
}

/// One file for each input that once made a target fail, in a folder named as the target.
#[test]
fn what_a_fuzzer_found_stays_mended() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for Target { name, run } in TARGETS {
        for entry in std::fs::read_dir(corpus.join(name)).into_iter().flatten() {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }
}

/// Some bytes changed, taken out or doubled; often the end cut off.
fn bent(seed: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + below(state, 4) {
        if bytes.is_empty() {
            break;
        }
        let at = below(state, bytes.len());
        match below(state, 6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, below(state, 256) as u8),
            3 => bytes[at] ^= 1 << below(state, 8),
            4 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(state, 5)],
            _ => {
                let end = (at + 1 + below(state, 32)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

fn below(state: &mut u64, bound: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % bound as u64) as usize
}
