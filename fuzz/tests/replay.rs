//! Every target over its corpus, and over some thousand random inputs that are the same every time.

use std::{collections::BTreeSet, fs, path::PathBuf};

use fuzz::TARGETS;
use mesh_core::rng::{Rng, Seed};

/// Random inputs for each target; the slow ones, which run whole nodes, get fewer.
const RANDOM: u64 = 4000;
const RANDOM_SLOW: u64 = 250;
const SLOW: &[&str] = &[
    "control_session",
    "coordinator",
    "derp_client",
    "node_requests",
    "peer_paths",
    "saved_state",
    "tunnel_pair",
    "wireguard_inbound",
];

#[test]
fn every_corpus_file_passes() {
    for (name, target) in TARGETS {
        let files = files(&format!("corpus/{name}"));
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            // Said before, so that a panic has its input above it.
            println!("{name} {}", file.display());
            target(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn random_inputs_pass() {
    for (name, target) in TARGETS {
        let inputs = if SLOW.contains(name) { RANDOM_SLOW } else { RANDOM };
        let corpus: Vec<_> = files(&format!("corpus/{name}")).iter().map(|file| fs::read(file).unwrap()).collect();
        for number in 0..inputs {
            let mut rng = Seed::from_number(number).stream(name, 0);
            println!("{name} random {number}");
            target(&random(&mut rng, &corpus));
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_nothing_is_left_over() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let folders = fs::read_dir(root().join("corpus")).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), targets);
    assert_eq!(targets.len(), TARGETS.len(), "names are unique");
}

#[test]
fn the_corpora_stay_small() {
    let bytes: u64 = TARGETS
        .iter()
        .flat_map(|(name, _)| files(&format!("corpus/{name}")))
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(bytes < 300_000, "{bytes} bytes");
}

/// Half of them bytes at random, half a file of the corpus with some bytes changed, taken out or put in.
fn random(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    if rng.below(2) == 0 {
        let mut bytes = vec![0; rng.below(400) as usize];
        rng.fill(&mut bytes);
        return bytes;
    }
    let mut bytes = corpus[rng.below(corpus.len() as u64) as usize].clone();
    for _ in 0..=rng.below(8) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(3) {
            0 => bytes.insert(at, rng.u32() as u8),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            _ if at < bytes.len() => bytes[at] = rng.u32() as u8,
            _ => {}
        }
    }
    bytes
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(root().join(folder))
        .expect("a folder of the crate")
        .map(|entry| entry.expect("its entry").path())
        .collect();
    files.sort();
    files
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}
